"""Stand-ins for all that recipes name: hub folders with the real configs, small tokenizers with the family's special
tokens and no weights; a few samples in each source's format, made into shards and plans by the recipes themselves; and
what an earlier stage would have left. All under one folder that stands for the one recipes are run from."""

import contextlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import PIL.Image

from rebus.checkpoints.save import base_fingerprints
from rebus.config import Config, load_recipe
from rebus.fingerprint import MANIFEST, Manifest, write_manifest
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.shards.config import ShardsRecipe
from rebus.shards.run import run as make_shards
from rebus.training.config import TrainRecipe

REPOSITORY = Path(__file__).parent.parent
OWN_TESTS = ("quickstart", "interleaved", "filter", "curation")
"""Folders of recipes that run for real elsewhere: in the demo, in tests/test_curation_way.py."""
OWN_VERBS = dict.fromkeys(("download", "score", "select", "reshard"), Config)  # have tests of their own

LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
QWEN2 = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
QWEN2 |= {"bos_token_id": 151643, "eos_token_id": 151645, "use_sliding_window": False, "sliding_window": 32768}
QWEN2_VISION = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "patch_size": 14}
QWEN2_VISION |= {"spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}


def _vision(kind: str, width: int, mlp: int, layers: int, size: int) -> dict[str, Any]:
    shape = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": 16}
    return {"model_type": f"{kind}_vision_model", "patch_size": 14, "image_size": size, **shape}


def _text(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return {**shape, "num_attention_heads": heads, "num_key_value_heads": kv, **more}


def _qwen2_vl(text: dict[str, Any], tied: bool) -> dict[str, Any]:
    tokens = {"vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654}
    tokens |= {"image_token_id": 151655, "video_token_id": 151656}
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    vision = {**QWEN2_VISION, "hidden_size": text["hidden_size"]}
    more = {"rope_scaling": rope, "tie_word_embeddings": tied, "vision_config": vision, "max_window_layers": 28}
    return {"model_type": "qwen2_vl", **QWEN2, **tokens, **text, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-1.5B-Instruct": {
        "model_type": "qwen2",
        **QWEN2,
        **_text(1536, 8960, 28, 12, 2, 151936, max_window_layers=21, tie_word_embeddings=True),
    },
    "siglip-so400m-patch14-384": {
        "model_type": "siglip",
        "text_config": {**_vision("siglip", 1152, 4304, 27, 384), "model_type": "siglip_text_model"},
        "vision_config": _vision("siglip", 1152, 4304, 27, 384),
    },
    "vicuna-7b-v1.5": {
        **LLAMA,
        **_text(4096, 11008, 32, 32, 32, 32000, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2),
    },
    "Meta-Llama-3-8B-Instruct": {
        **LLAMA,
        **_text(4096, 14336, 32, 32, 8, 128256, max_position_embeddings=8192, rope_theta=5e5),
        "bos_token_id": 128000,
        "eos_token_id": 128009,
    },
    "clip-vit-large-patch14-336": {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {**_vision("clip", 1024, 4096, 24, 336), "hidden_act": "quick_gelu", "projection_dim": 768},
    },
    "Qwen2-VL-2B-Instruct": _qwen2_vl(_text(1536, 8960, 28, 12, 2, 151936), tied=True),
    "Qwen2-VL-7B-Instruct": _qwen2_vl(_text(3584, 18944, 28, 28, 4, 152064), tied=False),
    "Qwen2-VL-72B-Instruct": _qwen2_vl(_text(8192, 29568, 80, 64, 8, 152064), tied=False),
}
"""config.json as the hub has it, without what no shape depends on."""

QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SPECIAL = {"vicuna-7b-v1.5": ("<unk>", "<s>", "</s>"), "Meta-Llama-3-8B-Instruct": LLAMA3_TOKENS}
PREPROCESSOR = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}


@dataclass(frozen=True)
class Place:
    """A folder to run recipes from. recipes: those of `rebus train` by their path from there."""

    folder: Path
    recipes: dict[str, TrainRecipe]


def recipe_paths(kind: type[Config]) -> list[str]:
    """Recipes of a kind by their path from the repository; their names say which verb takes them."""
    found = [path.relative_to(REPOSITORY) for path in sorted((REPOSITORY / "recipes").rglob("*.yaml"))]
    return [str(path) for path in found if path.parts[1] not in OWN_TESTS and kind_of(path) is kind]


def kind_of(path: Path) -> type[Config]:
    kinds: dict[str, type[Config]] = {"shards": ShardsRecipe, "pack": PackRecipe, **OWN_VERBS}
    return kinds.get(path.stem.split("_")[0], TrainRecipe)


def make_place(folder: Path) -> Place:
    """Models, data, shards, plans and earlier stages that all recipes need."""
    (folder / "recipes").symlink_to(REPOSITORY / "recipes")
    for name in CONFIGS:
        write_model(folder / "models" / name)
    write_data(folder / "data")
    with contextlib.chdir(folder):
        for path in recipe_paths(ShardsRecipe):
            make_shards(load_recipe(ShardsRecipe, Path(path), ["num_workers=1"]))
        for path in recipe_paths(PackRecipe):
            pack(load_recipe(PackRecipe, Path(path), ["num_workers=1"]))
        recipes = {path: load_recipe(TrainRecipe, Path(path)) for path in recipe_paths(TrainRecipe)}
        for init in {recipe.init for recipe in recipes.values() if recipe.init is not None}:
            if init.parts[0] == "runs":
                write_stage(next(recipe for recipe in recipes.values() if recipe.out == init))
    return Place(folder, recipes)


def write_model(folder: Path) -> Path:
    """A hub folder of this name with its real config and no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[folder.name]))
    if "vision_config" in CONFIGS[folder.name]:
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    if "vocab_size" in CONFIGS[folder.name]:
        (folder / "tokenizer.json").write_text(_tokenizer(SPECIAL.get(folder.name, QWEN_TOKENS)))
    return folder


@lru_cache
def _tokenizer(special: tuple[str, ...]) -> str:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a photo of a red square. What is in the photo? A red square."] * 4, trainer)
    text: str = tokenizer.to_str()
    return text


def write_stage(recipe: TrainRecipe) -> None:
    """What a finished run of the recipe leaves, as far as shapes go: no tensor."""
    assert recipe.model is not None
    plan = json.loads((recipe.plan / MANIFEST).read_text())["facts"]["tokens"]
    recipe.out.mkdir(parents=True)
    home = recipe.model.language
    if "language" in recipe.trains:
        home = Path(shutil.copytree(home, recipe.out / "language"))
    base = base_fingerprints(recipe.model, home, with_tower="tower" not in recipe.trains)
    body = {"model": recipe.model.model_dump(mode="json"), "image": plan["image"], "tokens": plan, "base": base}
    (recipe.out / "model.json").write_text(json.dumps(body))
    write_manifest(recipe.out, Manifest("checkpoint", body))


def write_data(data: Path) -> None:
    """Every source as its recipe of `rebus shards` names it, with four samples each."""
    for name in ("ccs_webdataset", "datacomp_medium_mlm_filter_su_85_union_dfn_webdataset"):
        _write_tar(data / "open_qwen2vl" / name / "00000.tar")
    pictures = [_write_picture(data / "llava_pretrain" / "images", number) for number in range(4)]
    rows = [json.dumps({"file": name, "caption": f"a photo of {name}"}) for name in pictures]
    (data / "llava_pretrain" / "captions.jsonl").write_text("\n".join(rows))
    _write_turns(data / "llava665k" / "llava_v1_5_mix665k.json", data / "llava665k" / "images")
    _write_turns(data / "mammoth" / "mammoth_si_10M.json", data / "mammoth" / "single_image_data")
    mix = data / "llava_next" / "open-llava-next" / "open-llava-next_instruct_mix1M.json"
    _write_turns(mix, data / "llava_next")
    listed = json.loads((REPOSITORY / "recipes" / "qwen2_vl" / "six_datasets.json").read_text())
    for entry in listed.values():
        _write_messages(data.parent / entry["annotation"], data)
    _write_elements(data / "own")


def _picture(number: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (120 + 40 * number, 90), (40 * number, 90, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


def _write_picture(folder: Path, number: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.jpg").write_bytes(_picture(number))
    return f"{number}.jpg"


def _write_tar(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(4):
            for name, content in _members(number):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _members(number: int) -> Iterator[tuple[str, bytes]]:
    yield f"{number:09d}.jpg", _picture(number)
    yield f"{number:09d}.txt", f"a photo of square {number}".encode()
    yield f"{number:09d}.json", json.dumps({"key": f"{number:09d}"}).encode()


def _write_turns(table: Path, images: Path) -> None:
    """LLaVA's conversations; the last has no picture."""
    table.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(4):
        shown = {"image": _write_picture(images, number)} if number < 3 else {}
        asked = ("<image>\n" if shown else "") + f"What is in the photo, {number}?"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "A red square."}]
        rows.append({"id": str(number), **shown, "conversations": turns})
    table.write_text(json.dumps(rows))


def _write_messages(table: Path, images: Path) -> None:
    """PaddleMIX's messages, with the pictures beside them."""
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(4):
        asked = {"role": "user", "content": f"<image>\n{table.stem}: what is in the photo?"}
        turns = [asked, {"role": "assistant", "content": f"A red square, {number}."}]
        rows.append({"messages": turns, "images": [_write_picture(images, number)]})
    table.write_text(json.dumps(rows))


def _write_elements(folder: Path) -> None:
    """Messages of elements, as Qwen2-VL's examples write them; one with two pictures."""
    rows = []
    for number in range(4):
        shown = [_write_picture(folder, one) for one in range(1 + number % 2)]
        content: list[dict[str, Any]] = [{"type": "image", "image": name} for name in shown]
        content.append({"type": "text", "text": f"What is in the photo, {number}?"})
        answer = {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]}
        rows.append({"messages": [{"role": "user", "content": content}, answer]})
    (folder / "data.json").write_text(json.dumps(rows))
