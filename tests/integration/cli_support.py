"""Calling the command line as a person or a program would, in this process or at a terminal."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from hybrid_memory import HybridMemoryManager
from hybrid_memory.cli import main
from tests.plugins.postgres import Database

SCRIPT = Path(sys.executable).with_name("hybrid-memory")
NOWHERE = "postgresql://app:s3cret@127.0.0.1:1/nowhere"
VARIABLES = ("HYBRID_MEMORY_DSN", "HYBRID_MEMORY_ADMIN_DSN", "HYBRID_MEMORY_DATA_DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        document: dict[str, Any] = orjson.loads(lines[0])
        assert document.keys() == {"ok", "command", "data", "error"}
        assert document["ok"] == (self.code == 0) == (document["error"] is None)
        if document["error"] is not None:
            assert document["error"].keys() == {"code", "message", "retryable", "fix"}
        return document

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.document["data"]
        return data

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.document["error"]
        return error


async def run(*words: str | Path) -> Ran:
    """Run a command without a terminal, on a thread of its own, so that managers of the test go on answering."""
    return await asyncio.to_thread(_run, [str(word) for word in words])


def _run(words: list[str]) -> Ran:
    out, err, terminal = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(words)
    finally:
        sys.stdin = terminal
    return Ran(code=code, out=out.getvalue(), err=err.getvalue())


async def run_at_terminal(*words: str | Path, answer: str = "", columns: int = 100) -> tuple[int, str]:
    """Run the console script at a terminal of its own; returns its exit code and all that the terminal showed."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "30"}
    process = await asyncio.create_subprocess_exec(
        SCRIPT, *map(str, words), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    try:
        if answer:
            os.write(ours, f"{answer}\n".encode())
        shown = await asyncio.to_thread(_read_all, ours)
    finally:
        os.close(ours)
    return await process.wait(), shown


def _read_all(terminal: int) -> str:
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux says so when the other side is gone
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's own settings out of the tests."""
    for name in (*VARIABLES, *(name for name in os.environ if name.startswith("POSTGRES_"))):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def manager_on(data_dir: Path, postgres: Database | None) -> AsyncGenerator[HybridMemoryManager]:
    """A running manager, without a Postgres if none is given."""
    dsn = None if postgres is None else postgres.app_dsn
    async with HybridMemoryManager.open(
        data_dir=data_dir, dsn=dsn, postgres="off" if postgres is None else "auto"
    ) as manager:
        yield manager


async def store(manager: HybridMemoryManager, user_id: str, count: int = 1, **content: Any) -> list[str]:
    handle = manager.user(user_id)
    kept = {"text": f"{user_id} likes green tea", **content}
    wait = 5.0 if (await manager.health()).postgres != "off" else 0.0
    return [(await handle.store(kept, context_type="conversation_fact", wait=wait)).node_id for _ in range(count)]


async def leave_behind(data_dir: Path, users: Mapping[str, int]) -> dict[str, list[str]]:
    """Store memories in a file that nobody holds afterwards, with all of it still queued."""
    async with manager_on(data_dir, None) as manager:
        return {user_id: await store(manager, user_id, count) for user_id, count in users.items()}
