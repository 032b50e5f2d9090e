"""What the documentation shows is what the code takes: recipes validate, snippets compute what they say."""

import re
from pathlib import Path

import pytest
import yaml

from rebus.config import Config, check_recipe
from rebus.model.config import ModelConfig
from rebus.tokens.config import TokensConfig
from rebus.training.config import TrainRecipe
from rebus.training.metrics import StepRow
from rebus.training.timing import PHASES
from rebus.training.trackers import scalars

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS: dict[str, type[Config]] = {"model": ModelConfig, "tokens": TokensConfig}
BLOCKS = re.findall(r"^```yaml (\w+)\n(.*?)^```", (DOCS / "families.md").read_text(), re.M | re.S)


@pytest.mark.parametrize(("section", "text"), BLOCKS)
def test_recipes_in_the_docs_are_accepted(section: str, text: str):
    check_recipe(SECTIONS[section], yaml.safe_load(text), "docs/families.md")


def test_the_training_recipe_in_the_docs_is_accepted():
    [recipe] = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "training.md").read_text(), re.M | re.S)
    check_recipe(TrainRecipe, yaml.safe_load(recipe), "docs/training.md")


def test_the_adapters_in_the_docs_are_accepted():
    recipes = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "lora.md").read_text(), re.M | re.S)
    assert len(recipes) == 3
    for recipe in recipes:
        check_recipe(TrainRecipe, yaml.safe_load(recipe), "docs/lora.md")


def test_the_docs_name_what_trackers_show():
    page = (DOCS / "training.md").read_text()
    numbers = dict.fromkeys(("step", "epoch", "loss", "grad_norm", "lr", "num_tokens", "num_supervised"), 0)
    numbers |= dict.fromkeys(("num_visual", "num_documents", "num_images", "tokens_total", "step_seconds"), 0)
    row = StepRow(**numbers, phases=dict.fromkeys(PHASES, 0.0), mfu=0.5, heldout=1.0)
    for name in scalars(row):
        kind, _, rest = name.partition("/")
        assert f"`{name}`" in page or (kind == "time" and "`time/PHASE`" in page and f"`{rest}`" in page), name
    assert "`grad_norm/PART`" in page


def test_token_counts_in_the_docs_are_computed():
    [snippet] = [code for code in re.findall(r"^```python\n(.*?)^```", families(), re.M | re.S) if "layout(" in code]
    names: dict = {}
    imports, calls = snippet.split("\n\n")
    exec(imports, names)
    for line in calls.strip().splitlines():
        code, said = line.split("#")
        assert eval(code, names) == int(said), line


def families() -> str:
    return (DOCS / "families.md").read_text()


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "index.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
