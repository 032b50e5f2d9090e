"""`rebus doctor`: is this machine fit for Rebus, or, with data, which samples are not."""

from pathlib import Path

from rebus.config import Place
from rebus.doctor.examine import examine
from rebus.doctor.findings import print_findings, write_findings
from rebus.doctor.machine import check_machine
from rebus.doctor.recipe import find_recipe


def run(
    path: Place | None,
    *,
    root: Path | None = None,
    tokenizer: Path | None = None,
    workers: int | None = None,
    json_out: Path | None = None,
) -> int:
    """Looks at the machine (no path) or at data. Returns the exit status: 1 if it is unfit or a sample is damaged.

    path: whatever `rebus shards` reads, or has written (doctor.recipe.find_recipe), or a recipe of it. root, tokenizer:
    as in that recipe. json_out: where every finding is written too.
    """
    if path is None:
        return check_machine()
    recipe = find_recipe(path, root=root, tokenizer=tokenizer, num_workers=workers)
    findings = examine(recipe)
    if json_out is not None:
        write_findings(json_out, path, findings)
    print_findings(recipe, path, findings, json_out)
    return 1 if findings.damaged else 0
