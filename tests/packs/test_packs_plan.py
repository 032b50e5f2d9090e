"""What a plan promises its readers: multiplicities, splits, blocks, cuts, costs, and the same bytes everywhere."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rebus.packs import run as pack_run
from rebus.packs.config import CostConfig, PackRecipe, ShardsFolder
from rebus.packs.plan import Plan, Reference, open_plan, pack_costs
from rebus.pictures.config import FixedConfig
from rebus.shards.read import open_index, read_sample
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import encode
from rebus.tokens.tokenizer import load_tokens
from tiny_samples import TinySample, tiny_picture, write_shards


@pytest.fixture
def plan(tmp_path: Path, tiny_tokenizer_folder: Path) -> Callable[..., Plan]:
    image = FixedConfig(size=64, patch_size=32, tokens_per_side=2)
    tokens = TokensConfig(tokenizer=tiny_tokenizer_folder, image=image, template="chatml")

    def make(*shards: Path | ShardsFolder, name: str = "plan", **changes) -> Plan:
        settings = {"capacity": 96, "num_workers": 1, "out": tmp_path / name, "tokens": tokens}
        pack_run.run(PackRecipe(**{"shards": shards, **settings, **changes}))
        return open_plan(tmp_path / name)

    return make


def documents(plan: Plan) -> list[Reference]:
    return [document for pack in range(plan.num_packs) for document in plan.documents(pack)]


def captions(folder: Path, number: int) -> Path:
    samples = [TinySample(f"{folder.name} {i} {'a ' * (i % 9)}", tiny_picture()) for i in range(number)]
    return write_shards(folder, samples, samples_per_shard=8)


def test_repeats_come_exactly_so_often_and_never_twice_in_a_pack(plan, tmp_path: Path):
    one, two = captions(tmp_path / "one", 30), captions(tmp_path / "two", 20)
    made = plan(ShardsFolder(folder=one, repeat=2.5), ShardsFolder(folder=two, repeat=0.5), seed=3)
    copies = Counter((document.shard, document.row) for document in documents(made))
    of_one = Counter(number for (shard, _), number in copies.items() if shard.parent == one)
    assert of_one == {2: 15, 3: 15}
    assert [number for (shard, _), number in copies.items() if shard.parent == two] == [1] * 10
    for pack in range(made.num_packs):
        together = [(document.shard, document.row) for document in made.documents(pack)]
        assert len(set(together)) == len(together)
    facts = made.manifest.facts
    assert (facts["num_documents"], facts["num_repeated"], facts["num_omitted"]) == (85, 45, 10)


def test_weights_share_the_epoch(plan, tmp_path: Path):
    one, two = captions(tmp_path / "one", 30), captions(tmp_path / "two", 10)
    made = plan(ShardsFolder(folder=one, weight=1), ShardsFolder(folder=two, weight=3))
    assert Counter(document.shard.parent.name for document in documents(made)) == {"one": 10, "two": 30}


def test_both_sides_of_a_split_are_disjoint_and_complete_in_any_mixture(plan, tmp_path: Path):
    one, two = captions(tmp_path / "one", 60), captions(tmp_path / "two", 20)
    train = plan(one, name="train", holdout=0.3)
    held = plan(one, name="held", holdout=0.3, part="heldout")
    mixed = plan(two, one, name="mixed", holdout=0.3, part="heldout", seed=9)
    uids = [{document.uid for document in documents(each)} for each in (train, held, mixed)]
    assert not uids[0] & uids[1]
    assert len(uids[0]) + len(uids[1]) == 60
    assert 8 <= len(uids[1]) <= 28
    assert uids[1] < uids[2]
    assert not uids[0] & uids[2]
    assert train.manifest.facts["num_other"] == len(uids[1])


def test_packs_keep_to_their_block_of_shards(plan, tmp_path: Path):
    made = plan(captions(tmp_path / "one", 40), block_shards=2)  # five shards: blocks of 2, 2, 1
    assert len(made.blocks) == 4
    assert made.blocks[0] == 0
    assert made.blocks[-1] == made.num_packs
    for block, (start, end) in enumerate(zip(made.blocks[:-1].tolist(), made.blocks[1:].tolist(), strict=True)):
        shards = {int(document.shard.stem) // 2 for pack in range(start, end) for document in made.documents(pack)}
        assert shards == {block}
    assert len(documents(made)) == 40
    assert plan(captions(tmp_path / "two", 9), name="whole").blocks.tolist() == [
        0,
        open_plan(tmp_path / "whole").num_packs,
    ]


def test_every_block_of_a_mixture_holds_its_share_of_each_folder(plan, tmp_path: Path):
    one, two = captions(tmp_path / "one", 64), captions(tmp_path / "two", 32)  # eight shards and four
    made = plan(one, two, block_shards=3)
    assert len(made.blocks) == 5
    for start, end in zip(made.blocks[:-1].tolist(), made.blocks[1:].tolist(), strict=True):
        inside = [document for pack in range(start, end) for document in made.documents(pack)]
        assert Counter(document.shard.parent for document in inside) == {one: 16, two: 8}
    assert len({(document.shard, document.row) for document in documents(made)}) == 96


def test_a_cut_conversation_is_planned_as_it_is_encoded(plan, tmp_path: Path):
    turns = ({"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a red square"}) * 3
    samples = [TinySample(messages=turns), TinySample(messages=turns[:2]), TinySample("a photo", tiny_picture())]
    shards = write_shards(tmp_path / "shards", samples)
    made = plan(shards, oversize="cut", max_bad_share=0.0, capacity=40)
    tokens = load_tokens(made.tokens)
    found = {document.row: document for document in documents(made)}
    assert (found[0].first_part, found[0].end_part, found[1].end_part, found[2].end_part) == (0, 2, -1, -1)
    for row, document in found.items():
        sample = document.cut(read_sample(document.shard, open_index(document.shard).place(row)))
        assert encode(sample, tokens).num_tokens == document.num_tokens <= 40
    assert found[2].num_patches == 4
    facts = made.manifest.facts
    assert (facts["num_cut"], facts["num_pieces"]) == (1, 1)
    assert facts["num_dropped"] == 2 * found[0].num_tokens  # three like exchanges, of which one is kept


def test_costs_are_worked_out_for_each_pack(plan, tmp_path: Path):
    made = plan(captions(tmp_path / "one", 20), cost=CostConfig(per_token=1, per_token_squared=0.5, per_patch=10))
    expected = [
        sum(d.num_tokens + 0.5 * d.num_tokens**2 + 10 * d.num_patches for d in made.documents(pack))
        for pack in range(made.num_packs)
    ]
    assert made.costs.tolist() == pytest.approx(expected)
    assert made.manifest.facts["cost_spread"] == pytest.approx(max(expected) / np.mean(expected))
    assert not made.cross_document
    across = pack_costs(
        np.array([3, 4]), np.array([0, 2]), np.array([0, 2]), made_cost := CostConfig(), cross_document=True
    )
    assert across == pytest.approx([7 + made_cost.per_token_squared * 49 + 0.2])


def test_pictures_are_limited_by_images_and_by_patches(plan, tmp_path: Path):
    shards = captions(tmp_path / "one", 20)
    for limit in ({"max_images_per_pack": 2}, {"max_patches_per_pack": 11}):
        made = plan(shards, **limit)
        assert max(len(made.documents(pack)) for pack in range(made.num_packs)) == 2


def test_processes_with_other_hash_seeds_plan_the_same_bytes(plan, tmp_path: Path, tiny_tokenizer_folder: Path):
    one, two = captions(tmp_path / "one", 40), captions(tmp_path / "two", 20)
    code = (
        "import sys; from pathlib import Path\n"
        "from rebus.packs.config import PackRecipe, ShardsFolder\nfrom rebus.packs.run import run\n"
        f"shards = [ShardsFolder(folder={str(one)!r}, repeat=2.3), Path({str(two)!r})]\n"
        f"tokens = {{'tokenizer': {str(tiny_tokenizer_folder)!r}, 'image': {{'size': 8, 'tokens_per_side': 2}}}}\n"
        "run(PackRecipe(shards=shards, tokens=tokens, capacity=96, block_shards=4, holdout=0.1, oversize='cut',\n"
        "    num_workers=int(sys.argv[2]), out=Path(sys.argv[1])))\n"
        "assert 'torch' not in sys.modules\n"
    )
    for seed, workers in (("1", "1"), ("2", "2")):
        script = tmp_path / "plan.py"
        script.write_text("if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in code.splitlines()))
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, str(script), str(tmp_path / f"plan{seed}"), workers]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    for name in ("plan.arrow", "pack.json", "quarantine.jsonl"):
        assert (tmp_path / "plan1" / name).read_bytes() == (tmp_path / "plan2" / name).read_bytes()
