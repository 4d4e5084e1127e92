"""What the connections to one server know together of the way to it, so that they do not storm it in vain."""

from __future__ import annotations

import time
from typing import Final

from hybrid_memory.errors import DurableTierError
from hybrid_memory.retry import Backoff

# No jitter: it keeps no schedule, it only bounds how often those try who have their own.
_BETWEEN_TRIES: Final = Backoff(first_seconds=0.1, cap_seconds=2.0)


class Reach:
    """Whether the last attempt to connect failed, and whether another may be made now.

    Whoever waits for a link or a free place while another tries to connect in vain, fails with it: a hundred callers
    who would each try for five seconds, one after the other, would wait for minutes. And who comes right after a
    failure is told of it without a try of its own: after some failures in a row there is one in two seconds.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._in_a_row = 0
        self._failed_at = 0.0
        self._error: DurableTierError | None = None

    def failed(self, error: DurableTierError) -> None:
        """An attempt to connect has failed."""
        self.failures += 1
        self._in_a_row += 1
        self._failed_at = time.monotonic()
        self._error = error

    def succeeded(self) -> None:
        """An attempt to connect has not."""
        self._in_a_row = 0
        self._error = None

    def check(self, failures: int) -> None:
        """Raise the last failure, if there have been more than `failures` since somebody asked, or it is too fresh."""
        if self._error is None:
            return
        too_fresh = time.monotonic() - self._failed_at < _BETWEEN_TRIES.ceiling(self._in_a_row)
        if too_fresh or self.failures != failures:
            raise self._error.with_traceback(None)
