"""LLaVA's own layout: what is read computes what the parts compute, and what is written back is what was there."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rebus.checkpoints.layouts import original_llava as layout
from rebus.checkpoints.layouts.folder import read_json
from rebus.checkpoints.layouts.original_files import (
    read_lora,
    read_projector,
    stored_in,
    write_folder,
    write_lora,
    write_projector,
)
from rebus.errors import ConfigError, DataError
from rebus.model.assemble import assemble, fill
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import AnyresConfig, FixedConfig
from tiny_foreign import FIELDS, HIDDEN, NEWLINE, VISION, original_folder, original_state, parts, rounded
from tiny_models import document_positions

WIDTH, SIDE = HIDDEN, 3


def opened(folder: Path) -> VisionLanguageModel:
    found = layout.read(folder, template="vicuna_v1")
    model = assemble(found.model, found.image, vision=found.vision, text=found.text)
    fill(model, stored_in(folder, model), origin=str(folder))
    return model.eval()


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(path).items()
    }


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_it_computes_what_the_parts_compute(tmp_path: Path, form: str):
    model = opened(original_folder(tmp_path, form=form, image_aspect_ratio="pad"))
    tower, language, projector = map(rounded, parts())
    pixels, ids = torch.randn(1, 3, 42, 42), torch.arange(20)
    with torch.no_grad():
        features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        embeddings = language.get_input_embeddings()(ids)
        embeddings[4 : 4 + SIDE**2] = projector(features)[0]
        wanted = language(inputs_embeds=embeddings[None], use_cache=False).logits[0]
        ids[4 : 4 + SIDE**2] = -1
        bounds = torch.tensor([0, 20], dtype=torch.int32)
        slots, grids = torch.tensor([[4, SIDE**2]]), torch.tensor([[1, 42, 42]])
        states = model.hidden(ids, document_positions(bounds), bounds, pixels, slots, grids)
    torch.testing.assert_close(model.head(states), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_back_again_to_the_bit(tmp_path: Path, form: str):
    """Layers that Rebus never builds (the tower's last, its final norm) come back too, and every field."""
    source = original_folder(tmp_path / "source", form=form)
    model = opened(source)
    assert not any("encoder.layers.2." in name for name in model.state_dict())
    write_folder(model, source, tmp_path / "back")
    wanted, found = original_state(), state_of(tmp_path / "back")
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in wanted.items()
    )
    assert read_json(tmp_path / "back" / "config.json") == read_json(source / "config.json")
    assert opened(tmp_path / "back").state_dict().keys() == model.state_dict().keys()


def test_what_was_trained_is_what_is_written(tmp_path: Path):
    source = original_folder(tmp_path / "source")
    model = opened(source)
    with torch.no_grad():
        model.connector.image_newline.fill_(0.5)
        model.tower.model.encoder.layers[0].mlp.fc1.bias.fill_(0.25)
    write_folder(model, source, tmp_path / "back")
    found, wanted = state_of(tmp_path / "back"), original_state()
    changed = {name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)}
    trained = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"
    assert changed == {NEWLINE, trained}
    assert found[NEWLINE].eq(0.5).all()


def test_another_image_rule_is_written(tmp_path: Path):
    source = original_folder(tmp_path / "source")
    model = opened(source)
    model.image = model.image.model_copy(update={"max_tiles": 4})
    write_folder(model, source, tmp_path / "back")
    fields = read_json(tmp_path / "back" / "config.json")
    assert fields["image_aspect_ratio"] == "anyres_max_4"
    assert layout.read(tmp_path / "back", template="plain").image == model.image


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu"])
def test_names_of_connectors_come_back(kind: str):
    stored = ["weight", "bias"] if kind == "linear" else [f"{2 * i}.weight" for i in range(int(kind[3]))]
    for rest in stored:
        [(ours, tensor)] = layout.to_ours(f"model.mm_projector.{rest}", torch.ones(2))
        assert ours.startswith("connector.mlp.")
        [(name, _)] = layout.from_ours(ours, tensor, connector=kind)
        assert name == f"model.mm_projector.{rest}"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"image_aspect_ratio": "square"}, {"kind": "fixed", "resize": "crop", "tokens_per_side": 3}),
        ({"image_aspect_ratio": None}, {"kind": "fixed", "resize": "crop"}),
        ({"image_aspect_ratio": "pad"}, {"kind": "fixed", "resize": "pad", "size": 42}),
        ({"mm_patch_merge_type": "spatial"}, {"kind": "anyres", "merge": "spatial"}),
        ({"image_aspect_ratio": "anyres_max_9"}, {"max_tiles": 9, "merge": "spatial_unpad"}),
        ({"image_grid_pinpoints": "[(42, 84), (84, 42)]"}, {"canvases": ((42, 84), (84, 42))}),
        ({"image_grid_pinpoints": "(1x1),...,(2x2)"}, {"canvases": ((42, 42), (42, 84), (84, 42), (84, 84))}),
        ({"image_grid_pinpoints": None}, {"canvases": ((42, 84), (84, 42), (84, 84), (126, 42), (42, 126))}),
    ],
)
def test_image_rules(fields: dict[str, Any], wanted: dict[str, Any]):
    vision = {**VISION, "model_type": "clip_vision_model"}
    rule = layout.image_rule({**FIELDS, **fields}, vision)
    assert {name: getattr(rule, name) for name in wanted} == wanted
    assert isinstance(rule, AnyresConfig | FixedConfig)
    assert not rule.reduced_jpeg


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"s2": True}, "s2 = True"),
        ({"model_type": "llava_mpt"}, "llava_mpt"),
        ({"mm_projector_type": "cabstract"}, "cabstract"),
        ({"image_aspect_ratio": "highres"}, "highres"),
        ({"mm_patch_merge_type": "unpad"}, "'unpad'"),
    ],
)
def test_what_rebus_does_not_compute_is_refused(tmp_path: Path, fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        layout.read(original_folder(tmp_path, **fields), template="plain")


def test_the_template_is_the_tokenizers_or_someones_to_say(tmp_path: Path):
    folder = original_folder(tmp_path)
    assert "template" not in layout.read(folder).tokens
    assert layout.read(folder, template="vicuna_v1").tokens["template"] == "vicuna_v1"
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokens = layout.read(folder).tokens
    assert (tokens["template"], tokens["end_of_text"], tokens["max_tokens"]) == ("own", "</s>", 300)


def test_a_folder_without_a_tower_takes_it_from_where_it_says(tmp_path: Path):
    """As LLaVA's second stage with a frozen tower may write: the tower's weights in another folder."""
    folder = original_folder(tmp_path, form="bin")
    state = original_state()
    tower = {name.removeprefix(layout.TOWER): t for name, t in state.items() if name.startswith(layout.TOWER)}
    safetensors.torch.save_file(tower, folder / "tower" / "model.safetensors", metadata={"format": "pt"})
    wanted = opened(folder).state_dict()
    torch.save({name: t for name, t in state.items() if "vision" not in name}, folder / "pytorch_model.bin")
    found = opened(folder)
    assert found.config.tower.weights == folder / "tower"
    assert all(torch.equal(wanted[name], tensor) for name, tensor in found.state_dict().items())


def test_a_tower_that_is_nowhere_is_asked_for(tmp_path: Path):
    with pytest.raises(DataError, match="--tower"):
        layout.read(original_folder(tmp_path, mm_vision_tower="someone/tower"), template="plain")
    found = layout.read(tmp_path, template="plain", tower=[tmp_path / "tower"])
    assert found.vision["hidden_size"] == 16
    points = [[336, 672], [672, 336]]
    large = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "image_grid_pinpoints": points}
    known = original_folder(tmp_path / "known", **large)
    assert layout.read(known, template="plain").image.row_shape == (3, 336, 336)


def test_text_fields_alone_reach_the_language_model(tmp_path: Path):
    text = layout.read(original_folder(tmp_path), template="plain").text
    assert not any(name.startswith(("mm_", "image_", "unfreeze")) for name in text)
    model = opened(tmp_path)
    assert model.language.config.rope_parameters["rope_theta"] == 5000.0


def test_projector_files(tmp_path: Path):
    model = opened(original_folder(tmp_path))
    tensors = {
        f"model.mm_projector.{i}.{k}": torch.randn(WIDTH, *n) for i, n in ((0, [16]), (2, [WIDTH])) for k in ["weight"]
    }
    tensors |= {f"model.mm_projector.{i}.bias": torch.randn(WIDTH) for i in (0, 2)}
    torch.save(tensors, tmp_path / "mm_projector.bin")
    read_projector(model, tmp_path / "mm_projector.bin")
    assert torch.equal(model.connector.mlp[2].bias, tensors["model.mm_projector.2.bias"])
    write_projector(model, tmp_path / "again.bin")
    again = torch.load(tmp_path / "again.bin", weights_only=True)
    assert torch.equal(again.pop(NEWLINE), model.connector.image_newline)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    del tensors["model.mm_projector.2.bias"]
    torch.save(tensors, tmp_path / "mm_projector.bin")
    with pytest.raises(DataError, match="lacks 1 of 4"):
        read_projector(model, tmp_path / "mm_projector.bin")


def test_lora_folders_on_top_of_a_base(tmp_path: Path):
    """As peft and LLaVA write them: adapters by peft itself, the rest under its prefix."""
    import peft

    folder, base = tmp_path / "lora", original_folder(tmp_path / "base")
    language = rounded(parts()[1])
    settings = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(language, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(folder)
    rest = {f"base_model.model.{name}": t.float() + 1 for name, t in original_state().items() if "mm_proj" in name}
    torch.save(rest | {f"base_model.model.{NEWLINE}": torch.zeros(WIDTH)}, folder / "non_lora_trainables.bin")

    model = opened(base)
    read_lora(model, folder)
    ids, bounds = torch.arange(9), torch.tensor([0, 9], dtype=torch.int32)
    nothing = torch.zeros(0, 3, 42, 42), torch.zeros(0, 2).long(), torch.zeros(0, 3).long()
    with torch.no_grad():
        wanted = adapted.eval()(input_ids=ids[None], use_cache=False).logits[0]
        found = model.head(model.eval().hidden(ids, ids, bounds, *nothing))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert model.connector.image_newline.eq(0).all()

    write_lora(model, tmp_path / "again", base=str(base))
    again = opened(base)
    read_lora(again, tmp_path / "again")
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    peft.PeftModel.from_pretrained(parts()[1], tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"connector_norm": True}, "norm"), ({"connector": "fused_mlp"}, "fused_mlp")],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, change: dict[str, Any], reason: str):
    model = opened(original_folder(tmp_path / "source"))
    model.config = model.config.model_copy(update=change)
    with pytest.raises(DataError, match=reason):
        write_folder(model, tmp_path / "source", tmp_path / "out")
