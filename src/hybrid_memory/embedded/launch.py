"""Starting a keeper with its server, and ending it: the part that deals in processes and descriptors."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final

import orjson

from hybrid_memory.embedded import keeper as keeper_script
from hybrid_memory.embedded.place import Account, Place, lock_file, old_log
from hybrid_memory.embedded.postmaster import SUPERUSER
from hybrid_memory.errors import Misconfigured, Unreachable

POLL_SECONDS: Final = 0.005
"""How often the start, the end and the lock of a server are looked at."""

_LOG_BYTES: Final = 1_000_000
_LOG_TAIL_BYTES: Final = 2_000
_DEFAULT_PORT: Final = 5432  # without TCP it is only part of the socket's name

_SETTINGS: Final = MappingProxyType(
    {
        "shared_buffers": "128MB",
        "max_connections": "50",
        # Parallel work needs /dev/shm, of which containers have 64 MB: an index build there fails, not just slows.
        "max_parallel_workers_per_gather": "0",
        "max_parallel_maintenance_workers": "0",
        # No statement, no failing value and no row may reach the log; `log` leaves out a client's ordinary errors.
        "log_min_messages": "log",
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "log_checkpoints": "off",
        "log_autovacuum_min_duration": "-1",
    }
)
# Given last, so that nothing a caller sets can take durability away or open the socket.
_FIXED: Final = MappingProxyType(
    {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "unix_socket_permissions": "0700"}
)
_INITDB: Final = (
    f"--username={SUPERUSER}",
    "--auth-local=trust",  # who can open the socket is decided by its directory, 0700
    "--auth-host=scram-sha-256",  # a port is open to every account of the machine
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",  # code point order as in Python and SQLite, yet letters beyond ASCII have case
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to run a server: which programs, under which account, with what. `listen_port` None is no TCP."""

    programs: Path
    account: Account
    listen_port: int | None
    settings: Mapping[str, str]

    @property
    def port(self) -> int:
        """The port, which is also part of the socket's name."""
        return _DEFAULT_PORT if self.listen_port is None else self.listen_port


class Keeper:
    """A running keeper process as its owner holds it. Dropping it ends the server: the pipe closes with it."""

    __slots__ = ("_place", "_process", "_said_before")

    def __init__(self, process: subprocess.Popen[bytes], *, place: Place, said_before: int) -> None:
        self._process = process
        self._place = place
        self._said_before = said_before

    @property
    def alive(self) -> bool:
        """Whether the keeper, hence the server or its start, is still there."""
        return self._process.poll() is None

    def dismiss(self) -> None:
        """Close the pipe: the keeper ends the server, then itself. Does not wait; it is reaped whenever it ends."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        self._process.stdin.close()
        if self.alive:
            threading.Thread(target=self._process.wait, name="embedded-postgres-end", daemon=True).start()

    def kill_server(self) -> None:
        """Have the postmaster killed with -9; the keeper does it, who knows that the pid is still its child's."""
        if self._process.stdin is not None:
            self._process.stdin.write(keeper_script.KILL_COMMAND)

    async def ended(self, deadline: timedelta) -> None:
        """Wait until keeper and postmaster are gone. Raises `Unreachable` at the deadline."""
        give_up = time.monotonic() + deadline.total_seconds()
        while self.alive:
            if time.monotonic() > give_up:
                raise Unreachable("the embedded Postgres has not ended yet", fix="it is still shutting down: wait")
            await asyncio.sleep(POLL_SECONDS)

    def failure(self) -> Misconfigured | Unreachable:
        """Why the keeper ended before the server was ready."""
        if self._process.returncode == keeper_script.EXIT_BUSY:
            return Unreachable(
                f"a server started by other means runs on {self._place.cluster}", fix="stop it (pg_ctl stop)"
            )
        with self._place.log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._said_before, size - _LOG_TAIL_BYTES))
            last_words = log.read().decode(errors="replace").strip().splitlines()[-3:]
        return Misconfigured(
            f"the embedded Postgres could not start: {' | '.join(last_words)}", fix=f"see {self._place.log_file}"
        )


def try_lock(home: Path) -> int | None:
    """The descriptor of the locked lock file, None while any process of a server still holds it."""
    lock = os.open(lock_file(home), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def launch(place: Place, recipe: Recipe, *, lock: int) -> Keeper:
    """Start a keeper, which inherits `lock` and starts the server. Does not wait for it; works in any thread."""
    log = _open_log(place.log_file)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper_script.__file__, _task(place, recipe, lock=lock)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            bufsize=0,
            cwd="/",
            pass_fds=(lock,),
            start_new_session=True,  # a Ctrl-C in the terminal is for the owner to handle
        )
        return Keeper(process, place=place, said_before=os.fstat(log).st_size)
    finally:
        os.close(log)


def _task(place: Place, recipe: Recipe, *, lock: int) -> bytes:
    account, port = recipe.account, recipe.port
    settings = {
        "listen_addresses": "" if recipe.listen_port is None else "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(place.sockets),
        **_SETTINGS,
        **recipe.settings,
        **_FIXED,
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    task = keeper_script.Task(
        owner=os.getpid(),
        uid=account.uid if account.switched else -1,
        gid=account.gid if account.switched else -1,
        lock=lock,
        cluster=str(place.cluster),
        password_file=str(place.password_file),
        socket_lock=str(place.sockets / f".s.PGSQL.{port}.lock"),
        initdb=[str(recipe.programs / "initdb"), *_INITDB],
        postgres=[str(recipe.programs / "postgres"), "-D", str(place.cluster), *options],
    )
    return orjson.dumps(task._asdict())


def _open_log(path: Path) -> int:
    """The log, opened to append; a large one is put aside first."""
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        path.replace(old_log(path))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
