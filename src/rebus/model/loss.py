"""Cross entropy without a full [T, vocabulary] of logits: chunks of supervised positions, gradients made on the way.

At 49,152 words and 1,000 tokens, logits and their gradient are 400 MB; a chunk of 256 holds 100 MB, once.
"""

from typing import Any

import torch
from torch.nn import functional

IGNORED = -100
CHUNK = 256
FP16_SCALE = 128.0
"""fp16 has nothing below 6e-8, where most of a softmax over 150,000 words lies; this is a power of two, so exact."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of token losses. The gradient by logits is known as soon as the loss is, so it is folded into gradients by
    hidden states and weight at once, and no logit is computed twice."""

    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        (
            by_hidden,
            by_weight,
            by_bias,
        ) = (  # sums over chunks in float32: in half precision they would lose what comes last
            torch.zeros_like(tensor, dtype=torch.float32) if tensor is not None and needed else None
            for tensor, needed in zip((hidden, weight, bias), context.needs_input_grad, strict=False)
        )
        context.dtypes = [tensor.dtype if tensor is not None else None for tensor in (hidden, weight, bias)]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(labels), CHUNK):
            part, target = hidden[start : start + CHUNK], labels[start : start + CHUNK]
            logits = functional.linear(part, weight, bias).float()  # [chunk, vocabulary]
            normaliser = logits.logsumexp(-1)
            total += (normaliser - logits.gather(1, target[:, None]).squeeze(1)).sum()
            if not any(context.needs_input_grad):
                continue
            gradient = logits.sub_(normaliser[:, None]).exp_()  # softmax
            gradient.scatter_add_(1, target[:, None], torch.full_like(normaliser[:, None], -1.0))
            if by_bias is not None:
                by_bias += gradient.sum(0)
            scale = FP16_SCALE if weight.dtype == torch.float16 else 1.0
            gradient = gradient.mul_(scale).to(weight.dtype)
            if by_hidden is not None:
                by_hidden[start : start + CHUNK] = (gradient @ weight).float().div_(scale)
            if by_weight is not None and weight.dtype == torch.float32:
                by_weight.addmm_(gradient.T, part.to(weight.dtype))  # no second array of the weight's size
            elif by_weight is not None:
                by_weight.add_(gradient.T @ part.to(weight.dtype), alpha=1 / scale)
        context.saved = (by_hidden, by_weight, by_bias)
        return total

    @staticmethod
    def backward(context: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, context.saved = context.saved, ()  # autograd takes as .grad, uncopied, what nobody else holds
        scaled = (None if sums is None else sums.mul_(outer[0]) for sums in kept)
        return (*(None if s is None else s.to(d) for s, d in zip(scaled, context.dtypes, strict=True)), None)


def token_loss(
    hidden: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """SUM of the cross entropies (float32, in nats) at supervised positions, and their number.

    hidden: [T, H]. labels: int64 [T], the target predicted at each position, -100 where none; on the host they cost no
    wait for a GPU. weight [V, H] and bias [V] of the output layer. Divide once, by the global count of the whole step
    (contract 3). Backward runs once.
    """
    supervised = (labels != IGNORED).nonzero().squeeze(1)
    where, targets = (one.to(hidden.device, non_blocking=True) for one in (supervised, labels[supervised]))
    total = _ChunkedCrossEntropy.apply(hidden.index_select(0, where), weight, bias, targets)
    return total, len(supervised)
