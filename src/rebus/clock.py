"""What a command cost. Where REBUS_CLOCK names a file, every finished command adds one JSON line to it."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def clocked(name: str) -> Iterator[None]:
    """Measures a command: wall and CPU seconds, and the peak resident memory of this process in GB (1e9 bytes)."""
    started = time.monotonic()
    yield
    path = os.environ.get("REBUS_CLOCK")
    if path is None:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    row = {
        "name": name,
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_gb": round(usage.ru_maxrss * unit / 1e9, 3),
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
