"""EfficientNet-Lite0 as transformers' EfficientNetModel, exactly: the geometry is B0's.

Lite differs in two things: ReLU6 is `hidden_act: relu6`, and there is no squeeze-and-excite. transformers always has
one, so it is made an identity: weights of zero and a bias of 30, for sigmoid(30) is 1.0 in float32.
"""

from typing import TYPE_CHECKING, Any

from rebus.errors import DataError

if TYPE_CHECKING:
    import torch

NUM_BLOCKS = 16
GATE = 30.0  # 1 - sigmoid(30) = 9e-14, below float32's 6e-8
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def efficientnet(tensors: "dict[str, torch.Tensor]", image_size: int) -> Any:
    """tensors: the original's names. Returns an EfficientNetModel whose pooled output is the mean feature [B, 1280].

    Raises: DataError where a tensor is missing.
    """
    import transformers

    config = transformers.EfficientNetConfig(
        image_size=image_size,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        batch_norm_eps=1e-3,
    )
    config.hidden_size = 1280  # what VisionTextDualEncoder calls the width of the pooled output
    model = transformers.EfficientNetModel(config)
    state = model.state_dict()
    for name, source in _names():
        if source not in tensors:
            raise DataError(f"these are no weights of EfficientNet-Lite0: there is no '{source}'.")
        state[name] = tensors[source]
    for name, tensor in state.items():
        if ".squeeze_excite." in name:
            state[name] = tensor.new_full(tensor.shape, GATE if name.endswith("expand.bias") else 0.0)
    model.load_state_dict(state)
    return model.eval()


def _names() -> list[tuple[str, str]]:
    """(transformers' name, the original's) of every tensor but the classifier's."""
    names = [("embeddings.convolution.weight", "_conv_stem.weight"), ("encoder.top_conv.weight", "_conv_head.weight")]
    names += _norm("embeddings.batchnorm", "_bn0") + _norm("encoder.top_bn", "_bn1")
    for number in range(NUM_BLOCKS):
        ours, theirs = f"encoder.blocks.{number}", f"_blocks.{number}"
        if number:  # the first block expands nothing
            names.append((f"{ours}.expansion.expand_conv.weight", f"{theirs}._expand_conv.weight"))
            names += _norm(f"{ours}.expansion.expand_bn", f"{theirs}._bn0")
        names.append((f"{ours}.depthwise_conv.depthwise_conv.weight", f"{theirs}._depthwise_conv.weight"))
        names += _norm(f"{ours}.depthwise_conv.depthwise_norm", f"{theirs}._bn1")
        names.append((f"{ours}.projection.project_conv.weight", f"{theirs}._project_conv.weight"))
        names += _norm(f"{ours}.projection.project_bn", f"{theirs}._bn2")
    return names


def _norm(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [(f"{ours}.{part}", f"{theirs}.{part}") for part in NORM]
