"""The embedded server as its users see it: start or attach, take over, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Generator, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self
from urllib.parse import quote

from hybrid_memory.embedded.binaries import usable_programs
from hybrid_memory.embedded.launch import POLL_SECONDS, Keeper, Recipe, launch, try_lock
from hybrid_memory.embedded.place import (
    Place,
    mark_made,
    prepare_home,
    read_place,
    remove_place,
    server_account,
    settle_place,
)
from hybrid_memory.embedded.postmaster import SUPERUSER, Postmaster, read_postmaster, takes_sessions
from hybrid_memory.errors import Closed, DataDirBusy, Misconfigured, Unreachable

_DEADLINE: Final = timedelta(seconds=30)
_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


class EmbeddedPostgres:
    """A Postgres server of our own on one data directory, shared by all processes that name the same one.

    The first process to come owns the server, the others attach to it. It is gone when its owner stops it or dies,
    killed with -9 included (`keeper` tells how); then whoever calls `ensure_running` first owns the next one. A
    `flock` that every process of a server holds makes sure that there is one at a time.

    It listens on a unix socket in a directory that only the server's account (and root) can enter, which is all its
    authentication; with `listen_port` also on loopback, there with a password. Run by root, the server is `nobody`'s,
    and what that account cannot reach (programs and data under a 0700 home) is kept in a private directory instead,
    written down in `place.json` in the data directory.

    Works on an event loop in any thread, one loop at a time; a forked child may not use its parent's.
    """

    __slots__ = ("_closed", "_guard", "_home", "_keeper", "_pid", "_place", "_recipe")

    def __init__(self, *, home: Path, recipe: Recipe) -> None:
        self._home = home
        self._recipe = recipe
        self._place: Place | None = None
        self._keeper: Keeper | None = None
        self._guard = asyncio.Lock()
        self._closed = False
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<EmbeddedPostgres {self._home} {'owner' if self.owner else 'attached'}>"

    @classmethod
    async def start(
        cls,
        data_dir: Path,
        *,
        deadline: timedelta = _DEADLINE,
        listen_port: int | None = None,
        settings: Mapping[str, str] = _NO_SETTINGS,
    ) -> Self:
        """Start the server of `data_dir`, or attach to the one that runs; it takes sessions when this returns.

        Makes the cluster if there is none. `listen_port` and `settings` count for the process that comes to own the
        server. Raises `Misconfigured` when a person must act and `Unreachable` when the deadline passes; nothing is
        left running then, nor when cancelled.
        """
        with _explained(data_dir):
            home = await asyncio.to_thread(prepare_home, data_dir)
            account = server_account()
            programs = await asyncio.to_thread(usable_programs, account)
        recipe = Recipe(programs=programs, account=account, listen_port=listen_port, settings=dict(settings))
        server = cls(home=home, recipe=recipe)
        await server.ensure_running(deadline=deadline)
        return server

    @staticmethod
    async def erase(data_dir: Path) -> None:
        """Delete the cluster of `data_dir`, wherever it is kept. Raises `DataDirBusy` while its server runs."""
        with _explained(data_dir):
            await asyncio.to_thread(_erase, data_dir)

    @property
    def data_dir(self) -> Path:
        """The data directory asked for, resolved."""
        return self._home

    @property
    def owner(self) -> bool:
        """Whether this process runs the server; False when another one does."""
        return self._keeper is not None and self._keeper.alive

    @property
    def pid(self) -> int | None:
        """The pid of the postmaster, None if there is no pid file."""
        postmaster = self._postmaster()
        return None if postmaster is None else postmaster.pid

    @property
    def socket_dir(self) -> Path:
        """The directory of the unix socket; the same after a restart or a take-over."""
        return self._known_place().sockets

    @property
    def cluster_dir(self) -> Path:
        """Where the cluster really is: in the data directory, or elsewhere if the server's account cannot go there."""
        return self._known_place().cluster

    @property
    def log_file(self) -> Path:
        """The server's log; it holds no statement and no value."""
        return self._known_place().log_file

    def admin_dsn(self, database: str = "postgres") -> str:
        """The superuser's DSN over the unix socket."""
        postmaster = self._postmaster()
        port = self._recipe.port if postmaster is None else postmaster.port
        host = quote(str(self.socket_dir), safe="")
        return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?host={host}&port={port}"

    def tcp_dsn(self, database: str = "postgres") -> str:
        """The superuser's DSN over loopback, with its password: a secret. Only with `listen_port`."""
        port = self._recipe.listen_port
        if port is None:
            raise Misconfigured("this server does not listen on TCP", fix="start it with listen_port")
        with _explained(self._home):
            password = self._known_place().password_file.read_text(encoding="ascii")
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{port}/{quote(database, safe='')}"

    async def ensure_running(self, *, deadline: timedelta = _DEADLINE) -> None:
        """Make sure that the server takes sessions: it does, or it is started, or whoever starts it is waited for.

        Call it when a connection fails; the owner may have died, and then this process becomes the owner. Raises as
        `start` does, and `Closed` after `stop`.
        """
        self._check_usable()
        give_up = time.monotonic() + deadline.total_seconds()
        async with self._guard:
            with _explained(self._home):
                while not await self._answers():
                    if (lock := try_lock(self._home)) is not None:
                        await self._own(lock, give_up)
                        return
                    if time.monotonic() > give_up:
                        raise Unreachable(
                            f"the embedded Postgres of {self._home} did not answer in time",
                            fix=f"another process runs it, or part of it still lives: see its log in {self._home}",
                        )
                    await asyncio.sleep(POLL_SECONDS)

    async def stop(self, *, deadline: timedelta = _DEADLINE) -> None:
        """Shut the server down (fast) if it is ours, else only let go of it. Calling it again does nothing.

        When it is cancelled or the deadline passes (`Unreachable`) the shutdown goes on by itself.
        """
        if self._closed:
            return
        self._check_usable()
        self._closed = True
        if self._keeper is not None:
            self._keeper.dismiss()
            await self._keeper.ended(deadline)

    async def kill(self) -> None:
        """Kill the postmaster with -9, as a fault test does; `ensure_running` brings it back. Only for its owner."""
        self._check_usable()
        if self._keeper is None or not self._keeper.alive:
            raise DataDirBusy("another process owns this server", fix="kill it there")
        self._keeper.kill_server()
        await self._keeper.ended(_DEADLINE)

    async def _answers(self) -> bool:
        """Whether a server, ours or another process's, takes sessions now."""
        self._place = read_place(self._home)
        postmaster = self._postmaster()
        return postmaster is not None and postmaster.ready and await takes_sessions(postmaster)

    async def _own(self, lock: int, give_up: float) -> None:
        """Start the server under the lock just taken, and wait until it takes sessions."""
        # No await until the lock has passed to the keeper, so no cancellation can come between.
        try:
            place = settle_place(self._home, self._recipe.account)
            keeper = launch(place, self._recipe, lock=lock)
        finally:
            os.close(lock)
        if self._keeper is not None:
            self._keeper.dismiss()  # its server is gone, or the lock would not have been free
        self._keeper = keeper
        ready = False
        try:
            while not (ready := await self._answers()):
                if not keeper.alive:
                    raise keeper.failure()
                if time.monotonic() > give_up:
                    raise Unreachable("the embedded Postgres did not start in time", fix=f"see {place.log_file}")
                await asyncio.sleep(POLL_SECONDS)
        finally:
            if not ready:
                keeper.dismiss()
        self._place = mark_made(place)

    def _postmaster(self) -> Postmaster | None:
        return None if self._place is None else read_postmaster(self._place.cluster)

    def _known_place(self) -> Place:
        if self._place is None:
            raise Closed("the embedded Postgres was never started")
        return self._place

    def _check_usable(self) -> None:
        if self._closed:
            raise Closed("the embedded Postgres was stopped", fix="start another one")
        if os.getpid() != self._pid:
            raise Closed("the embedded Postgres belongs to the parent process", fix="start one after the fork")


def _erase(data_dir: Path) -> None:
    home = prepare_home(data_dir)
    lock = try_lock(home)
    if lock is None:
        raise DataDirBusy(f"the server of {home} is running", fix="stop the processes that use it")
    try:
        place = read_place(home)
        if place is not None:
            remove_place(place)
    finally:
        os.close(lock)


@contextlib.contextmanager
def _explained(path: Path) -> Generator[None]:
    """Map what the system refuses (rights, a full disk, a missing program) to the error tree, once."""
    try:
        yield
    except OSError as refused:
        raise Misconfigured(
            f"the embedded Postgres of {path} cannot be run: {refused}", fix="see to rights and room on that disk"
        ) from refused
