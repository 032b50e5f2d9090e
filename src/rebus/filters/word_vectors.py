"""A text tower from nothing but a language model's input embeddings: transformers' BertModel that averages them.

The word vectors are centred and of length sqrt(width) (BERT's own LayerNorm does that to each). One layer attends
evenly (queries and keys are zero), passes values through, and adds nothing behind: its output at [CLS], whose own
vector is zero, is the LayerNorm of the mean. The pooler multiplies by a number so small that its tanh is a line.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.errors import ConfigError

if TYPE_CHECKING:
    import torch

POOLER_GAIN = 0.01  # features are of size 1: tanh(0.01 x) / 0.01 differs from x by 3e-5


def word_vectors(folder: Path, width: int | None, max_tokens: int) -> tuple[Any, Any]:
    """(BertModel, PreTrainedTokenizerFast with [CLS] and [PAD] added) from the hub folder of a language model.

    Raises: ConfigError where it holds no tokenizer.json or no embedding table, or is narrower than `width`.
    """
    import torch
    import transformers

    tokenizer = _tokenizer(folder, max_tokens)
    table = _projected(_table(folder), width)
    rows = torch.zeros(max(len(tokenizer), len(table)), table.shape[1])
    rows[: len(table)] = table
    rows[[tokenizer.cls_token_id, tokenizer.pad_token_id]] = 0
    config = transformers.BertConfig(
        vocab_size=len(rows),
        hidden_size=table.shape[1],
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=table.shape[1],
        max_position_embeddings=max_tokens,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertModel(config)
    with torch.no_grad():
        _make_average(model, rows)
    return model.eval(), tokenizer


def _make_average(model: Any, rows: "torch.Tensor") -> None:
    """Sets the weights. The feed-forward part's first matrix stays random, so that it can learn where it is let."""
    import torch

    layer, one = model.encoder.layer[0], torch.eye(rows.shape[1])
    model.embeddings.word_embeddings.weight.copy_(rows)
    silent = (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings)
    for module in (*silent, layer.attention.self.query, layer.attention.self.key, layer.output.dense):
        module.weight.zero_()
    for module in (layer.attention.self.value, layer.attention.output.dense):
        module.weight.copy_(one)
    model.pooler.dense.weight.copy_(one * POOLER_GAIN)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()


def _table(folder: Path) -> "torch.Tensor":
    """The input embeddings [vocabulary, hidden], float32, read without building the model."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                if name.endswith("embed_tokens.weight"):
                    return tensors.get_tensor(name).float()
    raise ConfigError(
        f"{folder} holds no embed_tokens.weight in a .safetensors file. `rebus import` makes hub folders."
    )


def _projected(table: "torch.Tensor", width: int | None) -> "torch.Tensor":
    """Centred, on its principal axes where fewer than all are kept."""
    import torch

    centred = table - table.mean(dim=0)
    if width is None or width == table.shape[1]:
        return centred
    if width > table.shape[1]:
        raise ConfigError(f"text.width is {width}, the word vectors have {table.shape[1]} numbers.")
    _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    return centred @ axes[:, -width:].flip(1)


def _tokenizer(folder: Path, max_tokens: int) -> Any:
    """The language model's tokens behind a [CLS] of our own."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder} holds no tokenizer.json. `rebus import` makes hub folders that do.")
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings["post_processor"] = None  # that of a chat model adds what no caption has
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.add_special_tokens(["[CLS]", "[PAD]"])
    first = ("[CLS]", tokenizer.token_to_id("[CLS]"))
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[first])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", pad_token="[PAD]", model_max_length=max_tokens
    )
