"""Asking a running manager over its socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

import orjson

from hybrid_memory.control.address import short_address
from hybrid_memory.control.answers import Answer, Failure
from hybrid_memory.control.desk import LONGEST_WAIT_SECONDS
from hybrid_memory.graph import JsonValue

# An answer holds at most a thousand rows of some hundred bytes.
_MOST_ANSWER_BYTES: Final = 16 * 2**20
_ANSWER_SECONDS: Final = LONGEST_WAIT_SECONDS + 10.0

_SILENT: Final = Failure(
    code="data_dir_busy",
    message="a process holds this file, but does not answer",
    retryable=True,
    fix="try again when it has started; else see to that process, or stop it",
)


async def ask(path: Path, call: str, arguments: Mapping[str, JsonValue]) -> Answer:
    """Ask the manager that listens at `path`. Where nobody answers in time, the answer is a failure."""
    request = orjson.dumps({"call": call, "arguments": dict(arguments)}, option=orjson.OPT_APPEND_NEWLINE)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            line = await _exchange(path, request)
        said = cast("JsonValue", orjson.loads(line))
    except (OSError, ValueError):
        # Nobody listens, silence, a broken connection, an answer cut off: all mean the same to who asks.
        return Answer(data={}, failure=_SILENT)
    return _understood(said)


async def _exchange(path: Path, request: bytes) -> bytes:
    with short_address(path) as address:
        reader, writer = await asyncio.open_unix_connection(address, limit=_MOST_ANSWER_BYTES)
    try:
        writer.write(request)
        await writer.drain()
        return await reader.readline()
    finally:
        writer.transport.abort()


def _understood(said: JsonValue) -> Answer:
    if isinstance(said, dict):
        data, error = said.get("data"), said.get("error")
        if isinstance(data, dict):
            return Answer(data=data)
        if isinstance(error, dict):
            failure = Failure(
                code=str(error.get("code")),
                message=str(error.get("message")),
                retryable=error.get("retryable") is True,
                fix=str(error.get("fix", "")),
            )
            return Answer(data={}, failure=failure)
    return Answer(data={}, failure=_SILENT)
