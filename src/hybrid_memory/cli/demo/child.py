"""Child processes, ended for certain."""

from __future__ import annotations

import asyncio
import contextlib


async def dismiss(process: asyncio.subprocess.Process) -> None:
    """End a process whatever it does, if it has not ended, and let go of its pipes."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    # What it wrote must be read, or its end is never noticed.
    await process.communicate()
