"""A selection's rules in words, and which columns they look at, from what the manifest says of them."""

from typing import Any

from rebus.errors import RebusError
from rebus.report.figures import number
from rebus.selection.pool import INDEX_COLUMNS
from rebus.selection.rules import open_rule

Rule = dict[str, Any]
OF_COLUMNS = ("column", "where", "baseline")
IN_WORDS = {"equals": "is", "not_equals": "is not", "one_of": "is one of"}
LOOKS = {
    "exact": "keeps one of pictures with the same bytes",
    "uid": "keeps one of samples with the same uid",
    "text": "keeps one of captions with the same words",
}


def words_of(rule: Rule) -> str:
    kind = rule.get("rule", "column")
    if kind == "column":
        return _test(rule)
    if kind == "where":
        return condition(rule["where"])
    if kind == "duplicates":
        return _duplicates(rule)
    if kind == "unseen":
        return (
            f"drops pictures that are in {', '.join(map(str, rule['evals']))} ({rule.get('by', '')}{_nearness(rule)})"
        )
    options = {name: value for name, value in options_of(rule).items() if name != kind}
    given = [f"{name} {value}" for name, value in options.items() if value is not True and value not in ({}, [])]
    return ", ".join([f"{kind} {rule.get(kind, '')}".strip(), *given])


def condition(tree: Rule) -> str:
    """`all`, `any` and `not` as and, or, not; inner ones in parentheses."""
    for joint, word in (("all", " and "), ("any", " or ")):
        if tree.get(joint):
            return word.join(_inner(part) for part in tree[joint])
    if tree.get("not"):
        return f"not {_inner(tree['not'])}"
    return _test(tree.get("test", tree))


def _inner(tree: Rule) -> str:
    is_joint = any(tree.get(joint) and len(tree[joint]) > 1 for joint in ("all", "any"))
    return f"({condition(tree)})" if is_joint else condition(tree)


def _test(rule: Rule) -> str:
    column, within = rule["column"], " of each shard" if rule.get("within") else ""
    for measure, words in (("min", "at least"), ("max", "at most")):
        if rule.get(measure) is not None:
            return f"{column} {words} {number(rule[measure])}"
        if rule.get(f"{measure}_quantile") is not None:
            return f"{column} {words} its {100 * rule[f'{measure}_quantile']:g}% quantile{within}"
    for measure, words in IN_WORDS.items():
        if rule.get(measure) is not None:
            return f"{column} {words} {_word(rule[measure])}"
    if rule.get("keep_fraction") is not None:
        return f"keeps the {100 * rule['keep_fraction']:g}%{within} that are highest in {column}"
    return f"drops the {100 * (rule.get('drop_fraction') or 0):g}%{within} that are lowest in {column}"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    return "empty" if value == "" else str(value)


def _duplicates(rule: Rule) -> str:
    first = f", the one with the highest {rule['prefer']}" if rule.get("prefer") else ""
    by = rule.get("by", "")
    what = LOOKS.get(by, f"keeps one of those that are near each other ({by}{_nearness(rule)})")
    return f"{what}{first}"


def _nearness(rule: Rule) -> str:
    if rule.get("by") == "embedding":
        return f" {rule.get('column', '')}, cosine at least {rule.get('similarity', 0):g}"
    return f", at most {rule['distance']} bits apart" if rule.get("by") == "perceptual" and "distance" in rule else ""


def columns_of(rule: Rule) -> set[str]:
    """The columns that a rule of bounds, shares or words compares, as it names them; those of the index left out.
    Empty for other rules, and for one that this version does not understand."""
    kind = rule.get("rule", "column")
    if kind not in OF_COLUMNS:
        return set()
    try:
        opened = open_rule(rule["name"], kind, options_of(rule))
    except RebusError:
        return set()
    return set(opened.module.columns(opened.options)) - set(INDEX_COLUMNS)


def options_of(rule: Rule) -> Rule:
    return {name: value for name, value in rule.items() if name not in ("name", "rule")}
