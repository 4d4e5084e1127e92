"""A Postgres of the tests' own with a migrated database for each test, to be killed, frozen and brought back."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from hybrid_memory.testing.postgres import Cluster
from tests.plugins.postgres import Database, Server, prepare

TEMPLATE = "migrated"


class OwnServer(Cluster):
    """The server, and what can be done to it."""

    prepared = False

    @property
    def server(self) -> Server:
        return Server(name="own", dsn=self.dsn, socket_dir=self.postgres.socket_dir)

    @asynccontextmanager
    async def database(self) -> AsyncGenerator[Database]:
        """A migrated database for the length of a block."""
        await self.heal()
        if not self.prepared:
            await self.execute(f"create database {TEMPLATE}")
            await prepare(Database(name=TEMPLATE, server=self.server))
            self.prepared = True
        name = f"test_{uuid.uuid4().hex}"
        await self.execute(f"create database {name} template {TEMPLATE}")
        try:
            yield Database(name=name, server=self.server)
        finally:
            await self.heal()
