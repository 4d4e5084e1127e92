"""A server that these tests may kill and freeze, made once; each test gets a database of its own on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybrid_memory.testing.disk import FaultDisk
from hybrid_memory.testing.failover import Pair, failing_over
from hybrid_memory.testing.postgres import short_folder
from tests.plugins.postgres import Database
from tests.support.own_server import OwnServer
from tests.support.sick_disk import Puppet, puppet


@dataclass(frozen=True, slots=True, kw_only=True)
class Sick:
    """A database, and the server under it that is to be made sick."""

    server: OwnServer
    database: Database


@pytest.fixture(scope="session")
def own_server() -> Iterator[OwnServer]:
    with short_folder() as folder, asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        server = runner.run(OwnServer.start(folder))
        try:
            yield server
        finally:
            runner.run(server.stop())


@pytest.fixture
async def sick(own_server: OwnServer) -> AsyncIterator[Sick]:
    async with own_server.database() as database:
        yield Sick(server=own_server, database=database)


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """Where a proxy may listen: the path of a socket must be short."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
async def failover() -> AsyncIterator[Pair]:
    """A primary and a standby of this test's own, with a migrated database, reached by one DSN."""
    async with failing_over() as pair:
        yield pair


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultDisk]:
    """A disk that fails beneath a process when it is told to."""
    folder = tmp_path_factory.mktemp("disk")
    with FaultDisk(folder / "root", folder=folder / "shim") as made:
        yield made


@pytest.fixture
async def player(disk: FaultDisk) -> AsyncIterator[Puppet]:
    """A process on that disk that does as it is told."""
    async with puppet(disk) as started:
        yield started
