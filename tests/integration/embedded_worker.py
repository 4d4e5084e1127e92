"""A process that holds an embedded Postgres: it reports its state as a line of JSON, then obeys lines of its input."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path

from hybrid_memory.embedded import EmbeddedPostgres
from hybrid_memory.errors import HybridMemoryError


def report(server: EmbeddedPostgres, child: int | None) -> None:
    state = {
        "owner": server.owner,
        "pid": server.pid,
        "dsn": server.admin_dsn(),
        "uid": os.geteuid(),
        "child": child,
    }
    sys.stdout.write(json.dumps(state) + "\n")
    sys.stdout.flush()


def fork_a_child_that_stays() -> int:
    child = os.fork()
    if child == 0:
        for inherited in (0, 1, 2):
            os.close(inherited)
        signal.alarm(120)
        while True:
            signal.pause()
    return child


async def hold(data_dir: Path, *, fork: bool) -> None:
    server = await EmbeddedPostgres.start(data_dir)
    report(server, fork_a_child_that_stays() if fork else None)
    while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if command == "ensure":
            try:
                await server.ensure_running()
            except HybridMemoryError as failed:
                sys.exit(f"{failed} {failed.fix}")
        report(server, None)
    await server.stop()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("data_dir", type=Path)
    options.add_argument("--thread", action="store_true")
    options.add_argument("--fork", action="store_true")
    asked = options.parse_args()
    if asked.thread:
        thread = threading.Thread(target=lambda: asyncio.run(hold(asked.data_dir, fork=asked.fork)))
        thread.start()
        thread.join()
    else:
        asyncio.run(hold(asked.data_dir, fork=asked.fork))


if __name__ == "__main__":
    main()
