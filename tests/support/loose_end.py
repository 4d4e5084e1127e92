"""A process whose event loop is closed while a manager is open and writes are on their way."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from hybrid_memory import HybridMemoryManager


def main(data_dir: Path) -> None:
    loop = asyncio.new_event_loop()
    opened = HybridMemoryManager.open(postgres="off", data_dir=data_dir)
    manager = loop.run_until_complete(opened.__aenter__())
    for number in range(10):
        loop.run_until_complete(manager.store_persistent_memory("ada", {"text": str(number)}, "conversation_fact"))
    os.write(sys.stdout.fileno(), b"10 acknowledged\n")
    writing = [
        loop.create_task(manager.store_persistent_memory("ada", {"text": str(number)}, "conversation_fact"))
        for number in range(10, 20)
    ]
    loop.run_until_complete(asyncio.sleep(0))
    del writing
    loop.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
