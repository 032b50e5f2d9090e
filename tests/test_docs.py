"""What the documentation shows is what the code takes: recipes validate, snippets compute what they say."""

import re
from pathlib import Path

import pytest
import yaml

from rebus.config import Config, check_recipe
from rebus.model.config import ModelConfig
from rebus.tokens.config import TokensConfig

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS: dict[str, type[Config]] = {"model": ModelConfig, "tokens": TokensConfig}
BLOCKS = re.findall(r"^```yaml (\w+)\n(.*?)^```", (DOCS / "families.md").read_text(), re.M | re.S)


@pytest.mark.parametrize(("section", "text"), BLOCKS)
def test_recipes_in_the_docs_are_accepted(section: str, text: str):
    check_recipe(SECTIONS[section], yaml.safe_load(text), "docs/families.md")


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
