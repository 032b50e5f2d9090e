"""Contract 6 for plans: another tokenizer, another image rule, other shards are refused, with what differs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rebus.errors import StrangerError
from rebus.fingerprint import Manifest, write_manifest
from rebus.packs.config import PackRecipe
from rebus.packs.plan import open_plan
from rebus.packs.run import run
from rebus.tokens.config import FixedConfig, TokensConfig


@pytest.fixture
def tokens(tmp_path: Path, tiny_tokenizer_folder: Path) -> TokensConfig:
    """Its own copy, so that a test may change it."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tiny_tokenizer_folder / "tokenizer.json").read_bytes())
    return TokensConfig(tokenizer=folder, image=FixedConfig(size=8, tokens_per_side=2))


@pytest.fixture
def plan(tmp_path: Path, tokens: TokensConfig, tiny_shards: Callable[..., Path]) -> Path:
    recipe = PackRecipe(shards=[tiny_shards(12)], tokens=tokens, capacity=96, out=tmp_path / "plan", num_workers=1)
    run(recipe)
    return recipe.out


def test_its_own_rules_are_welcome(plan: Path, tokens: TokensConfig):
    assert open_plan(plan).num_packs == open_plan(plan, tokens).num_packs > 0


def test_another_image_rule_is_named(plan: Path, tokens: TokensConfig):
    other = tokens.model_copy(update={"image": FixedConfig(size=8, tokens_per_side=3), "template": "chatml"})
    with pytest.raises(StrangerError) as caught:
        open_plan(plan, other)
    assert "tokens.image.tokens_per_side: expected 3, found 2" in str(caught.value)
    assert "tokens.template: expected 'chatml', found 'plain'" in str(caught.value)
    assert "tokens.image.size" not in str(caught.value)


def test_a_changed_tokenizer_is_found(plan: Path, tokens: TokensConfig):
    path = tokens.tokenizer / "tokenizer.json"
    body = json.loads(path.read_text())
    body["model"]["merges"] = body["model"]["merges"][:-1]
    path.write_text(json.dumps(body))
    with pytest.raises(StrangerError, match=r"tokens\.fingerprint: expected"):
        open_plan(plan)


def test_a_plan_of_an_earlier_version_is_refused(plan: Path):
    path = plan / "manifest.json"
    body = json.loads(path.read_text())
    del body["made_by"]["version"]
    path.write_text(json.dumps(body))
    with pytest.raises(StrangerError, match=r"another version of Rebus\. Pack again"):
        open_plan(plan)


def test_shards_made_anew_are_found(plan: Path, tmp_path: Path):
    write_manifest(tmp_path / "shards", Manifest("shards", {"made": "otherwise"}))
    with pytest.raises(StrangerError, match="Pack again"):
        open_plan(plan)


def test_a_plan_is_no_selection_and_no_shards(plan: Path, tokens: TokensConfig):
    recipe = PackRecipe(shards=[plan], tokens=tokens, out=plan.parent / "other", num_workers=1)
    with pytest.raises(StrangerError, match="holds plan, but shards is wanted"):
        run(recipe)
