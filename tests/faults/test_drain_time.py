"""How long the queue will take to run out is told before it is waited for, and is unknown where nobody can know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from hybrid_memory import HybridMemoryManager
from hybrid_memory.events import Draining
from hybrid_memory.retry import BreakerState
from hybrid_memory.testing.proxy import Proxy
from tests.integration.cli_support import run
from tests.plugins.postgres import Database, connected
from tests.support.beneath import staff
from tests.support.managers import FACT, Ears, drained, opened
from tests.support.waiting import until

WAITING = 40


async def queue(manager: HybridMemoryManager, user: str, count: int) -> None:
    stores = [manager.user(user).store({"n": number}, context_type=FACT, wait=0) for number in range(count)]
    await asyncio.gather(*stores)


@asynccontextmanager
async def held(database: Database, user: str) -> AsyncGenerator[None]:
    """In the block somebody else holds the user's head, so that nothing of the user's can be carried."""
    async with connected(database.admin_dsn) as admin:
        await admin.execute("insert into memory.heads (user_id) values ($1) on conflict do nothing", user)
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("select from memory.heads where user_id = $1 for update", user)
        yield
        await transaction.rollback()


async def test_once_something_was_carried_what_waits_is_predicted_by_its_pace(
    postgres: Database, tmp_path: Path
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        assert (await manager.health()).drain_seconds == 0
        await queue(manager, "ann", WAITING)
        await drained(manager)
        async with held(postgres, "bob"):
            await queue(manager, "bob", WAITING)
            predicted = (await manager.health()).drain_seconds
            assert predicted is not None
            assert 0 < predicted < 20
            told = len(ears.all(Draining))
            # Who only wakes the relay waits for nothing, and is told nothing.
            assert await manager.drain(timedelta()) == WAITING
            assert len(ears.all(Draining)) == told
            draining = asyncio.ensure_future(manager.drain(timedelta(seconds=30)))
            announced = (await ears.hear(Draining, times=told + 1))[-1]
            assert announced.operations == WAITING
            assert announced.seconds is not None
        assert await draining == 0
        assert (await manager.health()).drain_seconds == 0


async def test_before_anything_was_carried_it_is_unknown(postgres: Database, tmp_path: Path) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        async with held(postgres, "bob"):
            await queue(manager, "bob", WAITING)
            assert (await manager.health()).drain_seconds is None
            draining = asyncio.ensure_future(manager.drain(timedelta(seconds=30)))
            assert await ears.hear(Draining) == [Draining(operations=WAITING, seconds=None)]
        assert await draining == 0


async def test_while_postgres_is_away_it_is_unknown(postgres: Database, socket_folder: Path, tmp_path: Path) -> None:
    async with Proxy.before(postgres.app_dsn, socket_folder) as proxy, opened(proxy.dsn, tmp_path) as manager:
        await queue(manager, "ann", WAITING)
        await drained(manager)
        proxy.refuse()
        proxy.cut()
        await queue(manager, "ann", 1)
        await until(lambda: staff(manager).relay.breaker_state is not BreakerState.CLOSED)
        assert (await manager.health()).drain_seconds is None
        await proxy.heal()
        await drained(manager)
        assert (await manager.health()).drain_seconds == 0


async def test_what_is_to_stay_queued_has_no_time(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path, persistent_users=lambda user: user == "ann") as manager:
        await queue(manager, "ann", WAITING)
        await drained(manager)
        await queue(manager, "bob", 1)
        assert await manager.drain(timedelta(seconds=30)) == 1
        assert (await manager.health()).drain_seconds is None


async def test_the_command_line_shows_it(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path) as manager:
        await queue(manager, "ann", WAITING)
        await drained(manager)
        async with held(postgres, "bob"):
            await queue(manager, "bob", WAITING)
            status = await run("status", "--json", "--data-dir", tmp_path)
            assert status.data["slots"][0]["health"]["drain_seconds"] > 0
            shown = await run("status", "--data-dir", tmp_path)
            header, row = (line.split("\t") for line in shown.out.splitlines()[:2])
            assert row[header.index("drains in")].endswith((" s", " min"))
            stuck = await run("outbox", "drain", "--within", "0.2", "--json", "--data-dir", tmp_path)
            assert stuck.data["slots"][0]["drain_seconds"] > 0
            assert "at the present pace" in stuck.error["fix"]
