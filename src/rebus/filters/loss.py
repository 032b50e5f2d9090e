"""The two contrastive losses over a batch's logits [B, B] (row: picture, column: text; the diagonal belongs together).

softmax: Radford et al. 2021 (CLIP), section 2.3. sigmoid: Zhai et al. 2023 (SigLIP), section 3.2.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def softmax_loss(logits: "torch.Tensor") -> "torch.Tensor":
    """Which text is this picture's, and which picture is this text's: the mean of both cross-entropies, in nats."""
    import torch

    own = torch.arange(len(logits), device=logits.device)
    both = [torch.nn.functional.cross_entropy(one, own) for one in (logits, logits.T)]
    return (both[0] + both[1]) / 2


def sigmoid_loss(logits: "torch.Tensor") -> "torch.Tensor":
    """Each pair by itself: does it belong together? Summed over texts, the mean over pictures."""
    import torch

    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -torch.nn.functional.logsigmoid(signs * logits).sum(-1).mean()
