"""MLM-Filter (Wang et al. 2024, arXiv:2403.02677): a vision-language model gives a picture and its caption 0 to 100.

Four metrics. The score is the mean of the numbers that the model might have said, weighted by their probabilities; the
number that it did say stands beside it (`_hard`), with its text (`_raw`). The model runs here, or behind an endpoint.
"""

from typing import Any

from rebus.fingerprint import fingerprint, folder_fingerprint
from rebus.scores.mlm.answers import columns
from rebus.scores.mlm.config import MlmConfig
from rebus.scores.mlm.prompts import read_prompts
from rebus.scores.scorer import Opened


class Options(MlmConfig):
    """See rebus.scores.mlm.config: `model` or `endpoint`, `metrics`, `prompts`, `cache`, `expectation`."""


def open_scorer(options: Options) -> Opened:
    """Loads the model, or gets ready to ask the endpoint. Raises: ConfigError where there is none to ask."""
    from rebus.scores.mlm.endpoint import Endpoint
    from rebus.scores.mlm.local import LocalModel

    prompts = read_prompts(options.metrics, options.prompts)
    asked: Endpoint | LocalModel = (
        Endpoint(options, prompts) if options.endpoint is not None else LocalModel(options, prompts)
    )

    def measure(looked: list[Any]) -> dict[str, Any]:
        return columns(asked.ask(looked), options)

    return Opened(asked.look, measure)


def inputs(options: Options) -> dict[str, str]:
    """Fingerprints of the prompts and of the model's files. What a server runs under a name it does not tell."""
    prompts = read_prompts(options.metrics, options.prompts)
    found = {f"prompt {metric}": fingerprint(text) for metric, text in prompts.items()}
    if options.model is not None:
        found["model"] = folder_fingerprint(options.model)
    return found
