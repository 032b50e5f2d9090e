"""What benchmarks/training.py compares with: transformers' own LLaVA in padded batches, in a plain loop and in
transformers' Trainer.

Neither is a strawman: attention is SDPA, batches are padded on the right to their longest document, so that under
causality no mask is needed and none is passed (a mask is slower); AdamW is the fused one; nothing is computed twice.
"""

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.trainer_pt_utils import LengthGroupedSampler

from rebus.batches.batch import IGNORE, Batch
from training_data import Shape

Row = dict[str, torch.Tensor]
"""input_ids, labels int64 [T]; pixel_values [n, 144, C], the features, where the document has pictures."""


class Cached(nn.Module):
    """Stands for the tower: what it gets are the features."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(hidden_states=(pixel_values,))  # type: ignore[arg-type]


def make_llava(shape: Shape) -> Any:
    """Random weights; the last id of the vocabulary, which no document holds, stands at a picture's places."""
    torch.manual_seed(0)
    vision = {"hidden_size": shape.feature_width, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**vision, intermediate_size=8),
        text_config=transformers.LlamaConfig(**shape.text),
        image_token_index=shape.text["vocab_size"] - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model: Any = transformers.LlavaForConditionalGeneration(config)
    model.model.vision_tower = Cached()
    return model.train()


def rows_of(batch: Batch, image_token: int) -> list[Row]:
    """The documents of a pack as transformers takes them: placeholders have an id, labels are not yet shifted."""
    rows, bounds = [], batch.bounds.tolist()
    for start, end in itertools.pairwise(bounds):
        ids, labels = batch.ids[start:end].clone(), batch.labels[start:end].roll(1)
        labels[0] = IGNORE
        row = {"input_ids": ids.masked_fill(ids < 0, image_token), "labels": labels}
        inside = (batch.slots[:, 0] >= start) & (batch.slots[:, 0] < end)
        rows.append({**row, "pixel_values": batch.pixels[inside]} if inside.any() else row)
    return rows


def padded(rows: Sequence[Row]) -> Row:
    """One right-padded batch."""
    pad = nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad([row["input_ids"] for row in rows], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=IGNORE),
    }
    pictures = [row["pixel_values"] for row in rows if "pixel_values" in row]
    return {**batch, "pixel_values": torch.cat(pictures)} if pictures else batch


def within(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Documents in the order given, cut into batches of at most `budget` positions, padding included."""
    batches: list[list[int]] = [[]]
    for number, length in enumerate(lengths):
        longest = max([length, *(lengths[other] for other in batches[-1])])
        if batches[-1] and longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(number)
    return batches


class PlainLoop:
    """(a): an optimizer step over the documents of a pack, in padded batches."""

    def __init__(self, shape: Shape) -> None:
        self.model = make_llava(shape)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def step(self, rows: Sequence[Row], batches: Sequence[Sequence[int]]) -> None:
        """batches: which of the rows each padded batch holds."""
        num_supervised = sum(int((row["labels"] != IGNORE).sum()) for row in rows)
        for batch in batches:
            inputs = padded([rows[number] for number in batch])
            self.model(**inputs, use_cache=False, num_items_in_batch=num_supervised).loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class GroupedTrainer(transformers.TrainerCallback):
    """(b): transformers' Trainer, a step at a time, in a thread of its own that waits for its turn.

    Its batches are those of its own length-grouping sampler over all `rows`, `per_batch` documents each, of which
    `num_steps` evenly spaced ones are trained on: the sampler goes from long to short, and a few of its first would be
    long ones alone.
    """

    def __init__(self, shape: Shape, rows: Sequence[Row], per_batch: int, num_steps: int, folder: Path) -> None:
        order = list(LengthGroupedSampler(per_batch, dataset=rows, generator=torch.Generator().manual_seed(0)))  # type: ignore[arg-type]
        batches = [order[start : start + per_batch] for start in range(0, len(order) - per_batch, per_batch)]
        chosen = [batches[int((number + 0.5) * len(batches) / num_steps)] for number in range(num_steps)]
        self.batches = [[rows[document] for document in batch] for batch in chosen]
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._train, args=(shape, folder), daemon=True)
        self._step, self._failure = 0, None
        self._thread.start()
        self._await()

    def step(self) -> list[Row]:
        """Takes one step; returns the documents that it trained on."""
        self._go.release()
        self._await()
        self._step += 1
        return self.batches[self._step - 1]

    def _await(self) -> None:
        self._done.acquire()
        if self._failure is not None:
            raise self._failure

    def _train(self, shape: Shape, folder: Path) -> None:
        try:
            settings = transformers.TrainingArguments(
                output_dir=str(folder),
                per_device_train_batch_size=len(self.batches[0]),
                train_sampling_strategy="sequential",  # the batches are its length-grouping sampler's already
                num_train_epochs=1,
                learning_rate=1e-5,
                optim="adamw_torch_fused",
                max_grad_norm=1.0,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                remove_unused_columns=False,
            )
            rows: Any = [row for batch in self.batches for row in batch]
            model, quiet = make_llava(shape), transformers.trainer_callback.PrinterCallback
            trainer = transformers.Trainer(model, settings, data_collator=padded, train_dataset=rows, callbacks=[self])
            trainer.remove_callback(quiet)
            trainer.train()
        except BaseException as error:  # it belongs to whoever waits
            self._failure = error
            self._done.release()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._done.release()
        self._go.acquire()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._done.release()
        self._go.acquire()

    def end(self) -> None:
        """Lets the thread end once all steps were taken."""
        self._go.release()
        self._thread.join()
