"""Training: a loop of plain steps. Which pairs a step sees, and what is hidden of them, is arithmetic; a state is one
file, so a run that was killed goes on with the same bits."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rebus.errors import DataError
from rebus.filters.config import FilterRecipe
from rebus.filters.loss import sigmoid_loss, softmax_loss
from rebus.filters.network import Network
from rebus.fingerprint import write_atomically
from rebus.log import progress_bar, say

if TYPE_CHECKING:
    import torch

STATE, METRICS = "state.safetensors", "metrics.jsonl"
MAX_SCALE = math.log(100)  # CLIP's bound (section 2.5): beyond it a batch teaches only its hardest pairs
BETAS = (0.9, 0.98)


def batch_of(recipe: FilterRecipe, first_texts: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(pairs [B], places of one text each [B]) of a step, by seed and step alone. A rest too small for a batch waits
    for the next epoch's shuffle."""
    num_pairs = len(first_texts) - 1
    epoch, place = divmod(step, steps_per_epoch(recipe, num_pairs))
    size = min(recipe.batch_size, num_pairs)
    rows = np.random.default_rng([recipe.seed, 2, epoch]).permutation(num_pairs)[place * size : (place + 1) * size]
    shares = np.random.default_rng([recipe.seed, 3, epoch]).random(num_pairs)[rows]
    counts = np.diff(first_texts)[rows]
    return rows, first_texts[rows] + (shares * counts).astype(np.int64)


def steps_per_epoch(recipe: FilterRecipe, num_pairs: int) -> int:
    return max(1, num_pairs // recipe.batch_size)


def lr_share(step: int, num_steps: int, warmup: int) -> float:
    """Linear rise, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup))) / 2


def train(recipe: FilterRecipe, network: Network, out: Path) -> list[dict[str, float]]:
    """Trains in place, saving a state every save_every steps; goes on from one that is there. Returns a row a step.

    Raises: DataError where there are fewer than two pairs, or the loss is no longer a number.
    """
    import torch

    num_pairs = len(network.first_texts) - 1
    if num_pairs < 2:
        raise DataError(f"{num_pairs} pair to train on: contrast needs two at least.")
    num_steps = recipe.epochs * steps_per_epoch(recipe, num_pairs)
    named = _parameters(network)
    optimizer = _optimizer(recipe, named)
    peaks = [group["lr"] for group in optimizer.param_groups]
    rows = _load(out, named, optimizer)
    if rows:
        say(f"{out}: goes on after step {len(rows):,} of {num_steps:,}")
    with progress_bar() as bar:
        task = bar.add_task("training", total=num_steps, completed=len(rows), note="")
        for step in range(len(rows), num_steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * lr_share(step, num_steps, recipe.warmup_steps)
            torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout inside towers
            loss = _step(recipe, network, optimizer, step)
            if not math.isfinite(loss):
                raise DataError(f"the loss is {loss} at step {step}. Lower the learning rates.")
            rows.append({"step": step, "loss": loss, "logit_scale": math.exp(network.logit_scale.item())})
            bar.update(task, advance=1, note=f"loss {loss:.3f}")
            if (step + 1) % recipe.save_every == 0 or step + 1 == num_steps:
                _save(out, named, optimizer, rows)
    return rows


def _step(recipe: FilterRecipe, network: Network, optimizer: "torch.optim.Optimizer", step: int) -> float:
    import torch

    sides = [side.module for side in (network.image, network.text) if side.module is not None]
    for module in sides:
        module.train()
    pairs, texts = batch_of(recipe, network.first_texts, step)
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    logits = network.logits(pairs, texts, generator)
    loss = (softmax_loss if recipe.loss == "softmax" else sigmoid_loss)(logits)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        network.logit_scale.clamp_(max=MAX_SCALE)
    return loss.item()


def _parameters(network: Network) -> "dict[str, torch.nn.Parameter]":
    """All that is trained, by name; a frozen tower has none here."""
    named = {"logit_scale": network.logit_scale}
    if network.logit_bias.requires_grad:
        named["logit_bias"] = network.logit_bias
    for name, side in (("vision", network.image), ("text", network.text)):
        if side.weight is not None:
            named[f"{name}.head"] = side.weight
        if side.module is not None:
            named |= {f"{name}.tower.{key}": value for key, value in side.module.named_parameters()}
    return named


def _optimizer(recipe: FilterRecipe, named: "dict[str, torch.nn.Parameter]") -> "torch.optim.AdamW":
    """AdamW; what is no matrix (norms, biases, the scale) does not decay."""
    import torch

    rates = {"vision.tower": recipe.vision_lr, "text.tower": recipe.text_lr}
    groups = []
    for name, parameter in named.items():
        lr = rates.get(".".join(name.split(".")[:2])) or recipe.heads.lr
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.append({"params": [parameter], "lr": lr, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=BETAS)


def _save(out: Path, named: Any, optimizer: Any, rows: list[dict[str, float]]) -> None:
    """Weights, moments and the loss curve in one file: whole or not at all."""
    from safetensors.torch import save as to_bytes

    tensors = {f"weight.{name}": parameter.detach() for name, parameter in named.items()}
    for name, parameter in named.items():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(out / STATE, to_bytes(tensors, {"rows": json.dumps(rows)}))
    write_atomically(out / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def _load(out: Path, named: Any, optimizer: Any) -> list[dict[str, float]]:
    """Lays the saved state over weights and optimizer; returns the rows of the steps it has behind it."""
    import torch
    from safetensors import safe_open

    if not (out / STATE).is_file():
        return []
    with safe_open(out / STATE, "pt") as state, torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(state.get_tensor(f"weight.{name}"))
            moments = {key: state.get_tensor(f"{key}.{name}") for key in ("exp_avg", "exp_avg_sq", "step")}
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
        return json.loads(state.metadata()["rows"])
