"""What became of the questions of a run, and when to stop asking."""

import threading
from collections import Counter
from dataclasses import dataclass, field

from rebus.errors import DataError
from rebus.log import printable, say


@dataclass
class Tally:
    """Counts of one process. stop_after: so many failures in a row end the run."""

    name: str
    stop_after: int
    num_requests: int = 0
    num_retries: int = 0
    num_cached: int = 0
    num_answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    num_in_a_row: int = 0
    _told: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self) -> None:
        self.num_answered += 1
        self.num_in_a_row = 0

    def fail(self, reason: str) -> None:
        """Raises: DataError with the table of reasons where nothing but failures comes any more."""
        self.failures[reason] += 1
        self.num_in_a_row += 1
        if self.num_in_a_row >= self.stop_after:
            raise DataError(
                f"{self.name}: {self.num_in_a_row:,} questions in a row were not answered:\n{self.table()}\n"
                "Put that right and run again, or raise stop_after; answers that came are kept."
            )

    def table(self) -> str:
        return "\n".join(f"  {count:>8,}  {printable(reason)}" for reason, count in self.failures.most_common())

    def tell_once(self, message: str) -> None:
        with self._lock:
            is_new = message not in self._told
            self._told.add(message)
        if is_new:
            say(f"{self.name}: {message}")

    def close(self) -> None:
        """One line at the end of the process, and the reasons where something failed."""
        if not (self.num_requests or self.num_cached or self.failures):
            return
        lost = self.failures.total()
        counts = f"{self.num_requests:,} requests, {self.num_retries:,} of them repeated; {self.num_cached:,} answers"
        say(f"{self.name}: {counts} were kept before, {lost:,} did not come" + (f":\n{self.table()}" if lost else ""))
