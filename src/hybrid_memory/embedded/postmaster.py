"""What a running server says of itself: its pid file, and whether it takes a session."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUPERUSER: Final = "postgres"

_PROTOCOL_3: Final = 196_608
_HEADER: Final = struct.Struct("!cI")
_ANSWER_SECONDS: Final = 2.0
# What the last line of the pid file says; a hot standby never gets to `ready`.
_TAKES_SESSIONS: Final = frozenset({"ready", "standby"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Postmaster:
    """The pid file of a server. `ready` only means that it was when the file was written: a killed one leaves it."""

    pid: int
    port: int
    sockets: Path
    ready: bool

    @property
    def socket(self) -> Path:
        """The socket it listens on."""
        return self.sockets / f".s.PGSQL.{self.port}"


def read_postmaster(cluster: Path) -> Postmaster | None:
    """The pid file of `cluster`, None if there is none or it is not (yet) a complete one."""
    # Lines: pid, cluster, start time, port, first socket directory, first address, shared memory key, state.
    try:
        lines = (cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        pid, port, sockets, state = int(lines[0]), int(lines[3]), Path(lines[4]), lines[7]
    except (FileNotFoundError, IndexError, ValueError):
        return None
    return Postmaster(pid=pid, port=port, sockets=sockets, ready=state.strip() in _TAKES_SESSIONS)


async def takes_sessions(postmaster: Postmaster) -> bool:
    """Whether the server takes a session to its end of start-up right now; never longer than two seconds."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(postmaster.socket)
            try:
                return await _greet(reader, writer)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, EOFError):  # not there, refused, closed early, or too slow (TimeoutError is an OSError)
        return False


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    parameters = f"user\0{SUPERUSER}\0database\0postgres\0\0".encode()
    writer.write(struct.pack("!II", len(parameters) + 8, _PROTOCOL_3) + parameters)
    while True:
        kind, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        await reader.readexactly(length - 4)
        if kind == b"E":
            return False
        if kind == b"Z":  # ready for a query
            writer.write(b"X\0\0\0\4")  # a polite end, so the server has nothing to log
            return True
