"""`rebus doctor`: is this machine fit for Rebus, or, with data, which samples are not."""

from pathlib import Path

from rebus.doctor.examine import examine
from rebus.doctor.findings import print_findings, write_findings
from rebus.doctor.machine import check_machine
from rebus.engine import default_workers


def run(
    path: Path | None, *, root: Path | None = None, workers: int | None = None, json_out: Path | None = None
) -> int:
    """Looks at the machine (no path) or at data. Returns the exit status: 1 if it is unfit or a sample is damaged.

    path: a shard (a tar or a link), a folder of them, or a JSON, JSONL, CSV or TSV table. root: where the picture
    paths of a table start from; its own folder by default. json_out: where every finding is written too.
    """
    if path is None:
        return check_machine()
    findings = examine(path, root or path.parent, workers or default_workers())
    if json_out is not None:
        write_findings(json_out, path, findings)
    print_findings(path, findings, json_out)
    return 1 if findings.damaged else 0
