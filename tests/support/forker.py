"""A process that opens a manager and forks while its event loop rests, as a server that loads its application first."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path

import structlog

from hybrid_memory import Closed, HybridMemoryManager, Settings
from tests.support.beneath import connections, is_open, tiers

KIND = "conversation_fact"


def tell(**words: object) -> None:
    os.write(sys.stdout.fileno(), json.dumps(words).encode() + b"\n")


async def refused(manager: HybridMemoryManager) -> bool:
    """In the child, in a loop of its own: the inherited manager is refused, one of its own works."""
    try:
        await manager.store_persistent_memory("ada", {"text": "child"}, KIND)
    except Closed:
        return True
    return False


async def own_slot(data_dir: Path) -> int:
    async with HybridMemoryManager.open(data_dir=data_dir, postgres="off") as manager:
        receipt = await manager.store_persistent_memory("bob", {"text": "child"}, KIND)
        assert await manager.user("bob").get(receipt.node_id) is not None
        return tiers(manager).file.slot.number


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # the one by which this folder was read


def inherited(data_dir: Path) -> int:
    """How many descriptors of the parent's file this process holds."""
    fds = Path("/proc/self/fd")
    names = [_target(fd) for fd in fds.iterdir()]
    return sum(name == str(data_dir / "slot-00.db") for name in names)


def end(ending: str) -> None:
    if ending == "stays":
        sys.stdin.readline()
    if ending == "exits":
        sys.exit(0)  # with all that an interpreter finalizes
    os._exit(0)


def main(dsn: str, data_dir: Path, ending: str) -> None:
    settings = Settings(poll_interval=timedelta(milliseconds=50))
    # Not closed by a `with`: in the child that would run the inherited loop.
    runner = asyncio.Runner()
    opened = HybridMemoryManager.open(dsn=dsn, data_dir=data_dir, settings=settings)
    manager = runner.run(opened.__aenter__())
    for number in range(5):
        runner.run(manager.store_persistent_memory("ada", {"text": f"before {number}"}, KIND, wait=0))
    if (pid := os.fork()) == 0:
        file = tiers(manager).file
        held = inherited(data_dir)
        was_refused, slot = asyncio.run(refused(manager)), asyncio.run(own_slot(data_dir))
        closed = held - inherited(data_dir)
        # SQLite keeps a descriptor back as long as the process has a lock, so counting them alone tells nothing.
        shut = sum(not is_open(connection) for connection in connections(file))
        tell(who="child", pid=os.getpid(), refused=was_refused, slot=slot, held=held, closed=closed, shut=shut)
        end(ending)
    if ending != "stays":
        _, status = os.waitpid(pid, 0)
        tell(who="parent", status=status)
    while sys.stdin.readline():
        receipt = runner.run(manager.store_persistent_memory("ada", {"text": "after"}, KIND, wait=10))
        tell(who="parent", status=receipt.status)
    runner.run(opened.__aexit__(None, None, None))
    runner.close()


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
