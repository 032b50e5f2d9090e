"""Recipes are strict: an unknown key names the nearest one, a wrong value says what would be right."""

from pathlib import Path

import pytest
import yaml
from pydantic import Field

from rebus.config import Config, apply_override, check_recipe, dump_recipe, load_recipe
from rebus.errors import ConfigError


class Inner(Config):
    learning_rate: float = Field(default=1e-3, gt=0)


class Outer(Config):
    out: Path
    optimizer: Inner = Inner()
    parts: dict[str, Inner] = Field(default_factory=dict)


def test_overrides_reach_into_lists():
    tree = {"rules": [{"min": 1}, {"min": 2}]}
    apply_override(tree, "rules.1.min=5")
    assert tree == {"rules": [{"min": 1}, {"min": 5}]}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_overrides_lie_over_the_file(tmp_path):
    path = write(tmp_path, "out: a\noptimizer: {learning_rate: 0.5}\n")
    recipe = load_recipe(Outer, path, ["optimizer.learning_rate=1e-4", "out=b", "parts.head.learning_rate=2"])
    assert recipe == Outer(out=Path("b"), optimizer=Inner(learning_rate=1e-4), parts={"head": Inner(learning_rate=2)})


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("outt: a", [], "unknown key 'outt' (did you mean 'out'?)"),
        ("out: a\noptimizer: {learning_rat: 1}", [], "'optimizer.learning_rat' (did you mean 'learning_rate'?)"),
        ("out: a\nparts: {x: {learningrate: 1}}", [], "'parts.x.learningrate' (did you mean 'learning_rate'?)"),
        ("optimizer: {}", [], "missing key 'out'"),
        ("out: a\noptimizer: {learning_rate: -1}", [], "greater than 0"),
        ("- a\n- b", [], "must hold a mapping"),
        ("out: [", [], "is not YAML"),
        ("out: a", ["optimizer"], "not of the form key=value"),
        ("out: a", ["out.x=1"], "'out' is a value in the recipe"),
        ("out: a\nrows: [{a: 1}]", ["rows.1.a=1"], "'1' is no place in a list of 1"),
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe(Outer, write(tmp_path, text), overrides)
    assert message in str(caught.value)


def test_a_missing_recipe_says_where_recipes_are(tmp_path):
    with pytest.raises(ConfigError, match="recipes/"):
        load_recipe(Outer, tmp_path / "none.yaml")


def test_the_dumped_recipe_repeats_the_run(tmp_path):
    recipe = Outer(out=Path("x"), optimizer=Inner(learning_rate=0.25))
    dump_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(Outer, tmp_path / "again.yaml") == recipe
    assert yaml.safe_load((tmp_path / "again.yaml").read_text())["optimizer"] == {"learning_rate": 0.25}


def test_kinds_of_a_section_are_told_apart_in_plain_words():
    from rebus.tokens.config import TokensConfig

    def message(image: dict) -> str:
        with pytest.raises(ConfigError) as caught:
            check_recipe(TokensConfig, {"tokenizer": "x", "image": image}, "r.yaml")
        return str(caught.value)

    assert "unknown key 'image.sise' (did you mean 'size'?)" in message({"kind": "anyres", "sise": 3})
    assert "'image' is of no kind 'anyress' (did you mean 'anyres'?); there are fixed, anyres, native" in message(
        {"kind": "anyress"}
    )
    assert "'image.size' = 'big': Input should be a valid integer" in message({"size": "big"})
