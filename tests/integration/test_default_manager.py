"""The one convenience without a manager at hand: a default one, opened from the environment at the first call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hybrid_memory import Closed, InvalidInput, Status, close_default, ensure_user_memories
from tests.plugins.postgres import Database
from tests.support.waiting import until

FACT = "conversation_fact"
VARIABLES = ["DB", "USER", "PASSWORD", "HOST", "PORT", "POOL_SIZE", "SSL"]


@pytest.fixture
async def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[pytest.MonkeyPatch]:
    for name in [f"POSTGRES_{name}" for name in VARIABLES] + ["HYBRID_MEMORY_DSN", "HYBRID_MEMORY_ADMIN_DSN"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HYBRID_MEMORY_DATA_DIR", str(tmp_path / "data"))
    yield monkeypatch
    await close_default()


def _nobody(folder: Path) -> str:
    return f"postgresql://nobody@/none?host={folder}"


async def test_it_takes_the_dsn_and_the_directory_of_the_environment(
    environment: pytest.MonkeyPatch, postgres: Database, tmp_path: Path
) -> None:
    environment.setenv("HYBRID_MEMORY_DSN", postgres.app_dsn)
    ann = await ensure_user_memories("ann")
    receipt = await ann.store({"n": 1}, context_type=FACT, wait=20)
    assert receipt.status is Status.DURABLE
    assert (tmp_path / "data" / "slot-00.db").exists()


async def test_it_takes_the_parts_that_the_older_systems_know(
    environment: pytest.MonkeyPatch, postgres: Database, tmp_path: Path
) -> None:
    del tmp_path
    folder = postgres.direct_dsn.rpartition("host=")[2].partition("&")[0]
    environment.setenv("POSTGRES_HOST", folder.replace("%2F", "/"))
    environment.setenv("POSTGRES_DB", postgres.name)
    environment.setenv("POSTGRES_USER", "memory_app")
    environment.setenv("POSTGRES_POOL_SIZE", "5")
    environment.setenv("POSTGRES_SSL", "false")
    ann = await ensure_user_memories("ann")
    assert (await ann.store({}, context_type=FACT, wait=20)).status is Status.DURABLE


async def test_all_callers_share_one_manager(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("HYBRID_MEMORY_DSN", _nobody(tmp_path))
    handles = await asyncio.gather(*(ensure_user_memories(user) for user in ("ann", "bea", "ann")))
    receipt = await handles[0].store({}, context_type=FACT, wait=0)
    assert await handles[2].get(receipt.node_id) is not None
    assert await handles[1].get(receipt.node_id) is None
    assert len(list((tmp_path / "data").glob("slot-*.db"))) == 1


async def test_after_closing_the_next_call_opens_another_on_the_same_data(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("HYBRID_MEMORY_DSN", _nobody(tmp_path))
    first = await ensure_user_memories("ann")
    receipt = await first.store({"n": 1}, context_type=FACT, wait=0)
    await close_default()
    with pytest.raises(Closed):
        await first.get(receipt.node_id)
    second = await ensure_user_memories("ann")
    node = await second.get(receipt.node_id)
    assert node is not None
    assert node.content == {"n": 1}


async def test_closing_without_a_manager_and_twice_is_fine(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    await close_default()
    environment.setenv("HYBRID_MEMORY_DSN", _nobody(tmp_path))
    await ensure_user_memories("ann")
    await asyncio.gather(close_default(), close_default())
    await close_default()


async def test_closing_while_it_opens_closes_it(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("HYBRID_MEMORY_DSN", _nobody(tmp_path))
    opening = asyncio.ensure_future(ensure_user_memories("ann"))
    await until((tmp_path / "data").exists)
    await close_default()
    outcome = (await asyncio.gather(opening, return_exceptions=True))[0]
    if not isinstance(outcome, BaseException):
        with pytest.raises(Closed):
            await outcome.list()
    # Had it been left open, its file would still be locked and a second one would have been begun.
    await ensure_user_memories("ann")
    assert len(list((tmp_path / "data").glob("slot-*.db"))) == 1


async def test_a_wrong_variable_is_named_and_mending_it_is_enough(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("HYBRID_MEMORY_DSN", _nobody(tmp_path))
    environment.setenv("POSTGRES_POOL_SIZE", "many")
    with pytest.raises(InvalidInput, match="POSTGRES_POOL_SIZE"):
        await ensure_user_memories("ann")
    environment.setenv("POSTGRES_POOL_SIZE", "5")
    assert (await ensure_user_memories("ann")).user_id == "ann"


def test_each_event_loop_may_have_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYBRID_MEMORY_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HYBRID_MEMORY_DSN", _nobody(tmp_path))

    async def use() -> int:
        handles = await asyncio.gather(*(ensure_user_memories("ann") for _ in range(3)))
        await handles[0].store({}, context_type=FACT, wait=0)
        count = len((await handles[1].list()).items)
        await close_default()
        return count

    assert [asyncio.run(use()), asyncio.run(use())] == [1, 2]
