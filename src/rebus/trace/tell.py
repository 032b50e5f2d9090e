"""A trace in the terminal, as prose that follows the data."""

from typing import Any

from rich.text import Text

from rebus.log import output, printable

MAX_CHARS = 300


def tell_sample(found: dict[str, Any]) -> None:
    _head(f"sample {found['uid'] or '(no uid)'}")
    for place in found["places"]:
        _tell_place(place)
    for damage in found["damaged"]:
        _line(f"{damage['path']}: key {damage['key']} is damaged: {damage['reason']} {damage['detail']}", "red")
    for reason in found["unread"]:
        _line(f"not looked into: {reason}", "yellow")
    if not found["places"] and not found["damaged"]:
        _line("in none of the shards that were found")
    _section("scores", found["scores"], _tell_scores)
    _section("selections", found["selections"], _tell_selection)
    _section("plans", found["plans"], _tell_plan)
    _section("training", found["runs"], _tell_run)


def tell_step(found: dict[str, Any]) -> None:
    _head(f"step {found['step']} of {found['run']}, epoch {found['epoch']}: {found['state']}")
    _line(f"plan {found['plan']}, packs {', '.join(str(one['pack']) for one in found['packs'])}")
    for one in found["packs"]:
        tell_pack({"plan": found["plan"], **one})


def tell_pack(found: dict[str, Any]) -> None:
    _head(f"pack {found['pack']} of {found['plan']}{_rank(found)}: {len(found['documents'])} documents")
    for document in found["documents"]:
        parts = f", parts {document['parts']}" if "parts" in document else ""
        key = f", key {document['key']}" if "key" in document else ""
        where = f"{document['shard']} row {document['row']}{key}{parts}"
        _line(f"{document['uid']}  {_positions(document)}  {where}", "bold")
        _tell_text(document)


def _tell_place(place: dict[str, Any]) -> None:
    sizes = f"{place['width']} x {place['height']}" if place["num_images"] else "no picture"
    more = f", {place['num_images']} pictures" if place["num_images"] > 1 else ""
    _line(f"{place['shards']}/{place['shard']}, row {place['row']}, key {place['key']}: {place['kind']}, {sizes}{more}")
    _line(f"  made from {place['made_from']}", "grey62")
    _tell_text(place)


def _tell_text(found: dict[str, Any]) -> None:
    if "unreadable" in found:
        _line(f"  {found['unreadable']}", "red")
    else:
        text = found["text"]
        _line(f"  {text[:MAX_CHARS]}{' ...' if len(text) > MAX_CHARS else ''}", "cyan")


def _tell_scores(found: dict[str, Any]) -> None:
    _line(found["scores"] + (f" ({found['note']})" if found["note"] else ""))
    for scorer, values in found["values"].items():
        _line(f"  {scorer}: " + ", ".join(f"{name} {_number(value)}" for name, value in values.items()))
    for damage in found["damage"]:
        _line(f"  not scored: {damage.get('reason')} {damage.get('detail', '')}", "red")


def _tell_selection(found: dict[str, Any]) -> None:
    verdict = "kept" if found["kept"] else f"dropped by '{found['dropped_by']}'"
    _line(f"{found['selection']}: {verdict} ({found['shard']}, row {found['row']})")
    if found["rule"]:
        settings = ", ".join(f"{name} {value}" for name, value in found["rule"].items() if value is not None)
        _line(f"  rule: {settings}")
    for pair in found["duplicates"]:
        _line("  duplicates: " + ", ".join(f"{name} {_number(value)}" for name, value in pair.items()))


def _tell_plan(found: dict[str, Any]) -> None:
    if "unknown" in found:
        _line(f"{found['plan']}: unknown. {found['unknown']}", "yellow")
    elif not found["documents"] and not found["refused"]:
        _line(f"{found['plan']}: not in it")
    for document in found["documents"]:
        parts = f", parts {document['parts']}" if "parts" in document else ""
        _line(f"{found['plan']}: pack {document['pack']}, {_positions(document)}{parts}")
    for line in found["refused"]:
        _line(f"{found['plan']}: refused: {line.get('reason')} {line.get('detail', '')}", "red")


def _tell_run(found: dict[str, Any]) -> None:
    if "unknown" in found:
        _line(f"{found['run']}: unknown. {found['unknown']}", "yellow")
        return
    steps = [f"{one['step']} (epoch {one['epoch']}{_rank(one)}, {one['state']})" for one in found["steps"]]
    said = f"steps {', '.join(steps)}, of {found['num_steps']}" if steps else "in none of its steps"
    _line(f"{found['run']}: {said}")
    for line in found["damaged"]:
        _line(f"  could not be loaded: {line.get('reason')} {line.get('detail', '')}", "red")


def _rank(found: dict[str, Any]) -> str:
    return f", rank {found['rank']} of {found['world']}" if "rank" in found else ""


def _positions(document: dict[str, Any]) -> str:
    first = document["first_position"]
    return f"positions {first} to {first + document['num_tokens'] - 1}"


def _number(value: Any) -> str:
    if isinstance(value, str) and not (value and value.isprintable()):
        return repr(value)  # an empty text, or an answer with its line break, would break the line in two
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _section(title: str, found: list[dict[str, Any]], tell: Any) -> None:
    _head(title)
    for one in found:
        tell(one)
    if not found:
        _line("none was found")


def _head(text: str) -> None:
    output.print()
    _line(text, "bold")


def _line(text: str, style: str = "") -> None:
    output.print(Text(printable(text, kept="\n"), style), soft_wrap=True)
