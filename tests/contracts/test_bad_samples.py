"""Contract 7: a bad sample costs itself alone. Damage of many kinds goes through the whole way; each one is named with
shard, key and reason, and every clean sample is trained on."""

import io
import json
import tarfile
from pathlib import Path

import PIL.Image
import pytest

from rebus.config import load_recipe
from rebus.errors import DataError
from rebus.packs.config import PackRecipe
from rebus.packs.plan import open_plan
from rebus.packs.run import run as pack
from rebus.pictures import ImageConfig
from rebus.scores.config import ScoreRecipe
from rebus.scores.run import run as score
from rebus.selection.config import SelectionRecipe
from rebus.selection.run import run as select
from rebus.shards.config import ShardsRecipe
from rebus.shards.read import read_index, read_quarantine
from rebus.shards.run import run as index
from rebus.tokens.config import TokensConfig
from rebus.training.config import TrainRecipe
from rebus.training.loop import run as train

CLEAN = [f"clean{number:02d}" for number in range(12)]


def picture(kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((40, 40), 90).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def clean(key: str) -> dict[str, bytes]:
    return {"png": picture(), "txt": f"a photo of {key}".encode(), "json": json.dumps({"key": key}).encode()}


SHOWN_BY_THE_INDEX: dict[str, dict[str, bytes]] = {
    "zero": {**clean("zero"), "png": b""},
    "textual": {**clean("textual"), "png": b"this is not a picture"},
    "wordless": {"png": picture(), "json": b"{}"},
    "empty": {**clean("empty"), "txt": b"  \n"},
    "latin": {**clean("latin"), "txt": "caf\xe9".encode("latin-1")},
    "broken": {**clean("broken"), "json": b"{'key': "},
    "pictureless": {"txt": b"a photo", "json": b"{}"},
    "placeholder": {**clean("placeholder"), "txt": b"a photo <image> of a square"},
    "endless": {**clean("endless"), "txt": b"word " * 30_000},
}
SHOWN_BY_DECODING = {"half": {**clean("half"), "png": picture()[:300]}}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """One shard: clean samples with a damaged one after each, among them odd but whole pictures."""
    folder = tmp_path / "pool"
    folder.mkdir()
    samples = {key: clean(key) for key in CLEAN}
    samples["clean00"]["png"] = picture(mode="L")
    samples["clean01"]["png"] = picture(mode="RGBA")
    samples["clean02"] = {**clean("clean02"), "jpg": picture("JPEG", "CMYK")}
    del samples["clean02"]["png"]
    damaged = list((SHOWN_BY_THE_INDEX | SHOWN_BY_DECODING).items())
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, (key, members) in enumerate(samples.items()):
            write(tar, key, members)
            if number < len(damaged):
                write(tar, *damaged[number])
    index(ShardsRecipe(source="tars", input=folder, out=folder, max_bad_share=0.6, num_workers=1))
    return folder


def write(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    for extension, content in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def keys_of(pool: Path, plan: Path) -> list[str]:
    rows = read_index(pool / "00000.tar")["key"].to_pylist()
    return sorted(rows[row] for row in open_plan(plan).table["row"].to_pylist())


def pack_pool(pool: Path, language: Path, selection: Path | None) -> Path:
    tokens = TokensConfig(tokenizer=language, image=ImageConfig(size=32, tokens_per_side=2))
    out = pool.parent / "plan"
    pack(PackRecipe(shards=[pool], selection=selection, tokens=tokens, capacity=96, out=out))
    return out


def test_the_index_names_each_damaged_sample_and_keeps_every_clean_one(pool):
    damages = {damage.key: damage for damage in read_quarantine(pool / "00000.tar")}
    assert set(damages) == set(SHOWN_BY_THE_INDEX)
    assert len({damage.reason for damage in damages.values()}) == len(damages), "each kind has a name of its own"
    assert all(damage.shard == "00000.tar" and damage.offset >= 0 for damage in damages.values())
    assert sorted(read_index(pool / "00000.tar")["key"].to_pylist()) == sorted([*CLEAN, *SHOWN_BY_DECODING])


def test_scoring_finds_what_only_decoding_shows_and_selection_drops_it(pool, speaking_folder):
    out = pool.parent
    score(ScoreRecipe(shards=pool, out=out / "scores", scorers={"image_stats": {}}, max_bad_share=0.2))
    (line,) = (out / "scores" / "quarantine" / "00000.jsonl").read_text().splitlines()
    assert {name: json.loads(line)[name] for name in ("key", "reason")} == {
        "key": "half",
        "reason": "undecodable image",
    }
    rules = [{"name": "any size", "column": "image_stats.width", "min": 1}]
    tree = {"shards": pool, "scores": out / "scores", "rules": rules, "out": out / "selection"}
    select(SelectionRecipe.model_validate(tree))
    plan = pack_pool(pool, speaking_folder, out / "selection")
    assert keys_of(pool, plan) == sorted(CLEAN)


def test_training_leaves_out_what_it_cannot_decode_and_says_so(pool, speaking_folder, tiny_way):
    plan = pack_pool(pool, speaking_folder, None)
    assert keys_of(pool, plan) == sorted([*CLEAN, *SHOWN_BY_DECODING])
    recipe = tiny_way.recipe("run", plan=str(plan), epochs=1, steps=None, packs_per_step=1)
    checkpoint = train(load_recipe(TrainRecipe, recipe))
    lines = (checkpoint / "quarantine.jsonl").read_text().splitlines()
    assert {(json.loads(line)["key"], json.loads(line)["reason"]) for line in lines} == {("half", "undecodable image")}


def test_too_many_bad_samples_stop_the_stage_with_a_table_of_reasons(pool):
    recipe = ScoreRecipe(shards=pool, out=pool.parent / "strict", scorers={"image_stats": {}}, max_bad_share=0.01)
    with pytest.raises(DataError, match=r"(?s)1 of 13 samples.*1  undecodable image"):
        score(recipe)
    assert not (pool.parent / "strict" / "manifest.json").exists()
