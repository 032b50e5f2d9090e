"""Contracts 1 and 2 for the model families: the numbers of transformers' own classes on the same weights, in packs as
alone, logits, loss and every gradient; through the whole way from bytes to loss."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from rebus.batches.collate import Document
from rebus.model.attention import PACKED, REFERENCE
from rebus.model.config import IMAGE_ID
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import NativeConfig
from rebus.pictures.decode import decode_image
from rebus.records import Image, Video
from rebus.tokens.positions import prompt_positions
from tiny_families import IMAGE_TOKEN, MAKERS, VIDEO_TOKEN, Family, arguments, batch_of, documents_of

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
WAYS = [(backend, device) for device in DEVICES for backend in (PACKED, REFERENCE)]


@lru_cache(maxsize=1)
def made(name: str) -> Family:
    return MAKERS[name]()


@pytest.fixture(params=list(MAKERS))
def family(request: pytest.FixtureRequest) -> Family:
    found = made(request.param)
    use(found.ours.cpu(), PACKED)
    found.ours.requires_grad_(True)
    return found


@pytest.fixture
def documents(family: Family, tiny_tokenizer_folder: Path) -> list[Document]:
    return documents_of(family, tiny_tokenizer_folder)


def use(model: VisionLanguageModel, backend: str) -> None:
    model.language.set_attn_implementation(backend)
    if isinstance(model.image, NativeConfig):
        model.tower.attention = backend


def logits_of(model: VisionLanguageModel, batch: Any) -> torch.Tensor:
    inputs = arguments(batch)
    del inputs["labels"]
    return model.head(model.hidden(**inputs))


def theirs_inputs(family: Family, document: Document) -> dict[str, torch.Tensor]:
    """What transformers' processor would hand its model: PIL classes for pixels, its own ids for placeholders."""
    encoded = document.encoded
    ids = torch.from_numpy(encoded.ids.astype(np.int64))
    for start, length, visual in zip(encoded.image_starts, encoded.image_lengths, encoded.images, strict=True):
        ids[start : start + length] = VIDEO_TOKEN if isinstance(visual, Video) else IMAGE_TOKEN
    inputs = {"input_ids": ids[None], **pixels_of(family, encoded.images)}
    if isinstance(family.image, NativeConfig):
        inputs["position_ids"] = torch.from_numpy(prompt_positions(encoded, family.image))[:, None]
    return inputs


def opened(image: Image) -> PIL.Image.Image:
    return decode_image(image.data or b"")


def pixels_of(family: Family, visuals: tuple[Image | Video, ...]) -> dict[str, torch.Tensor]:
    import transformers

    pictures = [opened(one) for one in visuals if isinstance(one, Image)]
    found: dict[str, torch.Tensor] = {}
    if family.name == "llava_next" and pictures:
        processor = transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 56},
            crop_size={"height": 56, "width": 56},
            image_grid_pinpoints=family.theirs.config.image_grid_pinpoints,
        )
        return dict(processor(pictures, return_tensors="pt"))
    if family.name == "llava_siglip" and pictures:
        return dict(
            transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56})(pictures, return_tensors="pt")
        )
    if not isinstance(family.image, NativeConfig):
        return found
    rule = family.image
    if pictures:
        size = {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels}
        made = transformers.Qwen2VLImageProcessorPil(size=size)(pictures, return_tensors="pt")
        found = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
    for video in (one for one in visuals if isinstance(one, Video)):
        found |= video_pixels(video, rule)
    return found


def video_pixels(video: Video, rule: NativeConfig) -> dict[str, torch.Tensor]:
    """Frame pairs as pictures of the image processor: it lays the pair of one patch side by side in a row."""
    import transformers

    size = {"shortest_edge": rule.video_min_pixels, "longest_edge": rule.video_max_pixels}
    frames = [opened(frame) for frame in video.frames]
    frames += frames[-1:] * (len(frames) % 2)
    made = transformers.Qwen2VLImageProcessorPil(size=size)(frames, return_tensors="pt")
    _, height, width = made["image_grid_thw"][0].tolist()
    rows = made["pixel_values"].view(len(frames) // 2, 2, height * width, 3, 2, 196)
    pairs = torch.stack([rows[:, 0, :, :, 0], rows[:, 1, :, :, 0]], dim=3).flatten(0, 1).flatten(1)
    return {"pixel_values_videos": pairs, "video_grid_thw": torch.tensor([[len(frames) // 2, height, width]])}


def test_logits_equal_transformers(family: Family, documents: list[Document]):
    for document in documents:
        ours = logits_of(family.ours, batch_of([document], family.image))
        theirs = family.theirs(**theirs_inputs(family, document), use_cache=False).logits[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "device"), WAYS)
def test_packed_logits_equal_alone(family: Family, documents: list[Document], backend: str, device: str):
    alone = torch.cat([logits_of(family.ours, batch_of([document], family.image)) for document in documents])
    use(family.ours.to(device), backend)
    packed = logits_of(family.ours, batch_of(documents, family.image).to(device)).cpu()
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert alone.std() > 0.1, "flat logits would hide a mistake"


def gradients_of(model: VisionLanguageModel, batches: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    losses = [model.loss(**arguments(batch))[0] for batch in batches]
    torch.stack(losses).sum().backward()
    return torch.stack(losses).sum().detach().cpu(), {
        name: parameter.grad.cpu().clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_same_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of the tensor's largest value, or of a thousandth of the model's: a key's bias has none but rounding,
    since softmax ignores what all keys share."""
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("backend", "device"), WAYS)
def test_loss_and_every_gradient(family: Family, documents: list[Document], backend: str, device: str):
    singles = [batch_of([document], family.image) for document in documents]
    alone, alone_gradients = gradients_of(family.ours, singles)
    use(family.ours.to(device), backend)
    packed, packed_gradients = gradients_of(family.ours, [batch_of(documents, family.image).to(device)])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert_same_gradients(packed_gradients, alone_gradients)
    assert packed_gradients.keys() == {name for name, _ in family.ours.named_parameters()}, "nothing is left untrained"
    assert all(gradient.any() for gradient in packed_gradients.values())


def test_gradients_equal_transformers(family: Family, documents: list[Document]):
    """Theirs by torch's own cross entropy over all logits; the names are ours by the tensors' values."""
    _, ours = gradients_of(family.ours, [batch_of(documents, family.image)])
    family.theirs.zero_grad()
    for document in documents:
        labels = batch_of([document], family.image).labels
        logits = family.theirs(**theirs_inputs(family, document), use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").backward()
    values = {signature(p): p.grad for p in family.theirs.parameters() if p.grad is not None}
    twins = {name: values[signature(p)].view_as(p) for name, p in family.ours.named_parameters()}
    assert_same_gradients(ours, twins)


def signature(parameter: torch.Tensor) -> tuple[float, ...]:
    """Random weights are known by their first values."""
    return tuple(parameter.detach().flatten()[:8].tolist())


def test_text_alone_walks_the_same_graph(family: Family, documents: list[Document]):
    """Contract 11: every parameter has a gradient, those of tower and connector are zero, and no logit changes."""
    text = [document for document in documents if not document.encoded.images]
    batch = batch_of(text, family.image)
    _, gradients = gradients_of(family.ours, [batch])
    assert gradients.keys() == {name for name, _ in family.ours.named_parameters()}
    seen = [gradient for name, gradient in gradients.items() if not name.startswith("language.")]
    assert seen
    assert not any(gradient.any() for gradient in seen)
    theirs = family.theirs(input_ids=batch.ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits_of(family.ours, batch), theirs, rtol=1e-5, atol=1e-5)


def test_slots_equal_features(family: Family, documents: list[Document]):
    """Contract 1."""
    batch = batch_of(documents, family.image)
    tokens, lengths = family.ours.image_tokens(batch.pixels, batch.grids)
    assert lengths == batch.slots[:, 1].tolist()
    assert len(tokens) == sum(lengths) == int((batch.ids == IMAGE_ID).sum())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_positions_of_pictures_are_those_of_transformers(name: str, tiny_tokenizer_folder: Path):
    """Without a video transformers' own positions are right too; after one they are not (tests/tokens)."""
    family = made(name)
    for document in documents_of(family, tiny_tokenizer_folder):
        starts, lengths = document.encoded.slots.T
        side_by_side = (starts[1:] == (starts + lengths)[:-1]).any()  # theirs takes touching pictures for one
        if not len(starts) or side_by_side or any(isinstance(one, Video) for one in document.encoded.images):
            continue
        inputs = theirs_inputs(family, document)
        ours = inputs.pop("position_ids")
        kinds = (inputs["input_ids"] == IMAGE_TOKEN).int()
        theirs, _ = family.theirs.model.get_rope_index(
            inputs["input_ids"], mm_token_type_ids=kinds, image_grid_thw=inputs["image_grid_thw"]
        )
        assert torch.equal(ours, theirs)


def test_gradient_checkpointing_changes_nothing(family: Family, documents: list[Document]):
    batch = batch_of(documents, family.image)
    _, plain = gradients_of(family.ours.train(), [batch])
    family.ours.checkpoint_activations()
    _, again = gradients_of(family.ours, [batch])
    family.ours.checkpoint_activations(False)
    family.ours.eval()
    assert_same_gradients(again, plain)
