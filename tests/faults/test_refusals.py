"""Refusals that do not say whose fault they are: one's trouble stays one's own, and a sick server buries nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import Status, Verdict
from hybrid_memory import caution as caution_module
from hybrid_memory import staff as staff_module
from hybrid_memory.events import Buried, PersistFailed
from hybrid_memory.retry import Backoff
from tests.faults.test_queue import in_an_outage
from tests.plugins.postgres import Database, connected
from tests.support.managers import FACT, Ears, both_tiers_agree, drained, head_rev, opened
from tests.support.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("one_place")

SECONDS = 20.0


@pytest.fixture(autouse=True)
def _tried_alone_soon(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    brisk = Backoff(first_seconds=0.02, cap_seconds=0.05)
    monkeypatch.setattr(caution_module, "ALONE", brisk)
    monkeypatch.setattr(staff_module, "Backoff", lambda: brisk)


@asynccontextmanager
async def refused(admin: asyncpg.Connection, state: str, when: str, *, at_commit: bool = False) -> AsyncGenerator[None]:
    """Postgres refuses inserted nodes for which `when` holds with the state, at once or when they are committed."""
    trigger = "constraint trigger refuse after" if at_commit else "trigger refuse before"
    deferred = "deferrable initially deferred" if at_commit else ""
    await admin.execute(
        "create sequence memory.refusals; grant usage on sequence memory.refusals to public;"
        " create function memory.refuse() returns trigger language plpgsql as $$ begin"
        f" if {when} then raise exception 'refused' using errcode = '{state}'; end if; return new; end $$;"
        f" create {trigger} insert on memory.nodes {deferred} for each row execute function memory.refuse()"
    )
    try:
        yield
    finally:
        await admin.execute("drop function memory.refuse cascade; drop sequence memory.refusals")


@pytest.mark.parametrize("at_commit", [False, True], ids=["at once", "at the commit"])
@pytest.mark.parametrize("state", ["40P01", "40001"])
async def test_a_deadlock_is_tried_again_at_once_and_nobody_notices(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, state: str, *, at_commit: bool
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"n": 0}, context_type=FACT, wait=SECONDS)  # past the self-test of a new link
        # A sequence counts on when its transaction is rolled back.
        async with refused(admin, state, "nextval('memory.refusals') <= 2", at_commit=at_commit):
            receipt = await memory.store({"n": 1}, context_type=FACT, wait=SECONDS)
        assert (receipt.status, receipt.rev) == (Status.DURABLE, 2)
        assert ears.all(PersistFailed) == []


@pytest.mark.parametrize("state", ["XX000", "57014", "P0001"])
async def test_an_operation_that_fails_alone_while_others_get_through_is_buried_and_its_user_goes_on(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, state: str
) -> None:
    users = [f"user-{number}" for number in range(5)]
    async with in_an_outage(tmp_path) as manager:
        receipts = {
            (user, number): await manager.user(user).store({"n": number}, context_type=FACT, wait=0)
            for number in range(4)
            for user in users
        }
        bad = await manager.user("user-2").store({"n": "bad"}, context_type=FACT, wait=0)
        after = await manager.user("user-2").store({"n": "after"}, context_type=FACT, wait=0)
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears) as manager:
        async with refused(admin, state, "new.content->>'n' = 'bad'"):
            await drained(manager)
        (letter,) = await manager.dead_letters.list()
        assert (letter.operation.op_id, letter.sqlstate) == (bad.op_id, state)
        assert [event.op_id for event in ears.all(Buried)] == [bad.op_id]
        assert len(ears.all(PersistFailed)) >= caution_module.STRIKES
    assert len(receipts) + 1 == await admin.fetchval("select count(*) from memory.nodes")
    assert await head_rev(admin, "user-2") == 5
    newest = await admin.fetchval("select node_id::text from memory.nodes where user_id = 'user-2' and rev = 5")
    assert newest == after.node_id


@pytest.mark.parametrize("state", ["53100", "53200", "XX000", "57014"])
async def test_a_server_that_refuses_everybody_is_waited_for_and_nothing_is_buried(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, state: str
) -> None:
    async with in_an_outage(tmp_path) as manager:
        for number in range(3):
            for user in ("ada", "bo", "cy"):
                await manager.user(user).store({"n": number}, context_type=FACT, wait=0)
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears) as manager:
        # All but the row that the self-test of each new link tries.
        async with refused(admin, state, "new.content::jsonb ? 'n'"):
            await ears.hear(PersistFailed, times=8 * caution_module.STRIKES)
            assert manager.queue().entries == 9
            assert (await manager.health()).causes != ()
        await drained(manager)
        assert await manager.dead_letters.list() == []
        for user in ("ada", "bo", "cy"):
            assert await head_rev(admin, user) == 3
            await both_tiers_agree(manager, await manager.ensure_user_memories(user))
        assert (await manager.health()).causes == ()


@pytest.mark.parametrize("state", ["53100", "55P03"])
async def test_a_lack_of_room_or_of_a_lock_is_never_the_fault_of_an_operation(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, state: str
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        memories = [await manager.ensure_user_memories(user) for user in ("ada", "bo")]
        async with refused(admin, state, "new.content->>'n' = 'stuck'"):
            stuck = await memories[0].store({"n": "stuck"}, context_type=FACT, wait=0)
            await ears.hear(PersistFailed)
            assert (await memories[1].store({"n": 1}, context_type=FACT, wait=0)).status is Status.PENDING
            await ears.hear(PersistFailed, times=3 * caution_module.STRIKES)
            assert (manager.queue().entries, manager.queue().dead_letters) == (1, 0)
        assert (await stuck.durable(SECONDS)).verdict is Verdict.APPLIED


async def test_what_takes_too_long_together_goes_in_smaller_parts(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with in_an_outage(tmp_path) as manager:
        for number in range(60):
            await manager.user("ada").store({"n": number}, context_type=FACT, wait=0)
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears) as manager:
        await admin.execute(
            "create function memory.refuse() returns trigger language plpgsql as $$ begin"
            " if (select count(*) from added) > 8 then raise exception 'slow' using errcode = '57014'; end if;"
            " return null; end $$;"
            " create trigger refuse after insert on memory.nodes referencing new table as added"
            " for each statement execute function memory.refuse()"
        )
        await drained(manager)
        assert {event.code for event in ears.all(PersistFailed)} == {"overloaded"}
        assert await manager.dead_letters.list() == []
        await both_tiers_agree(manager, await manager.ensure_user_memories("ada"))


@pytest.mark.parametrize("held_by", ["application", "administrator"])
async def test_who_holds_a_users_rows_is_named_with_its_process_and_its_age(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, held_by: str
) -> None:
    dsn = postgres.app_dsn if held_by == "application" else postgres.admin_dsn
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager, connected(dsn) as holder:
        memory, other = await manager.ensure_user_memories("ada"), await manager.ensure_user_memories("bo")
        await memory.store({"n": 0}, context_type=FACT, wait=SECONDS)
        async with holder.transaction():
            await holder.execute("select set_config('memory.user_id', 'ada', true)")
            await holder.execute("select from memory.heads where user_id = 'ada' for update")
            stuck = await memory.store({"n": 1}, context_type=FACT, wait=0)
            named = f"1 users' writes wait: contended, process {holder.get_server_pid()} of the server has held a lock"

            async def is_named() -> bool:
                # Another's write that gets through in between does not make it forgotten.
                await other.store({"n": 2}, context_type=FACT, wait=SECONDS)
                return any(cause.startswith(named) for cause in (await manager.health()).causes)

            await eventually(is_named, seconds=SECONDS)
            (cause,) = (await manager.health()).causes
            assert int(cause.rpartition(" for ")[2].removesuffix(" s")) >= 2
        assert (await stuck.durable(SECONDS)).verdict is Verdict.APPLIED
        assert (await manager.health()).causes == ()
        asked = await admin.fetchval("select count(*) from pg_stat_activity where application_name like '% locks'")
        assert asked == 0, "who asked is still connected"


async def test_while_one_users_rows_are_locked_the_others_get_through_and_nothing_is_buried(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path) as manager:
        memories = {user: await manager.ensure_user_memories(user) for user in ("ada", "bo", "cy")}
        async with admin.transaction():
            await admin.execute("select from memory.heads where user_id = 'ada' for update")
            stuck = [await memories["ada"].store({"n": number}, context_type=FACT, wait=0) for number in range(2)]
            free = [await memories[user].store({"n": 1}, context_type=FACT, wait=0) for user in ("bo", "cy")]
            outcomes = await asyncio.gather(*(receipt.durable(SECONDS) for receipt in free))
            assert {outcome.verdict for outcome in outcomes} == {Verdict.APPLIED}
            await until(lambda: manager.queue().entries == 2)
            (cause,) = (await manager.health()).causes
            assert cause.startswith("1 users' writes wait: contended")
        revs = [(await receipt.durable(SECONDS)).rev for receipt in stuck]
        assert revs == [1, 2]
        assert await manager.dead_letters.list() == []
        assert (await manager.health()).causes == ()
