"""The command line of hybrid_memory."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 ok, 1 a negative result, 2 usage, 3 unreachable, 4 refused."""
    # Loaded when called: a process that runs one module of this package alone starts without all of it.
    from hybrid_memory.cli.program import run  # noqa: PLC0415

    return run(argv)
