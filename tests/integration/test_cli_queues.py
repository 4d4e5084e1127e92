"""What the command line promises to an operator: nothing waits unseen, and what is erased is erased everywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, Settings
from hybrid_memory.clock import IdSource, SystemClock
from hybrid_memory.connect import connect
from hybrid_memory.settings import read_environment
from hybrid_memory.sqlite.driver import choose_driver
from tests.integration.cli_support import (
    NOWHERE,
    leave_behind,
    manager_on,
    no_environment,
    run,
    run_at_terminal,
    store,
)
from tests.plugins.postgres import Database

pytestmark = pytest.mark.direct("an administrator's commands go directly")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    no_environment(monkeypatch)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[HybridMemoryManager]:
    """A manager that runs without a Postgres, so that all it is given stays queued."""
    async with manager_on(tmp_path, None) as manager:
        yield manager


async def live_nodes(admin: asyncpg.Connection) -> dict[str, int]:
    rows = await admin.fetch("select user_id, count(*) as nodes from memory.nodes where deleted_at is null group by 1")
    return {row["user_id"]: row["nodes"] for row in rows}


async def leave_dead_letters(data_dir: Path, count: int) -> list[str]:
    """Store memories in a file that nobody holds afterwards, as if Postgres had refused them for good."""
    await leave_behind(data_dir, {"alice": count})
    clock = SystemClock()
    tiers = await connect(
        dsn=None,
        data_dir=data_dir,
        postgres="off",
        environment=read_environment(),
        settings=Settings(),
        clock=clock,
        ids=IdSource(clock),
    )
    outbox = tiers.file.outbox
    queued = outbox.claim(after_seq=0, limit=count)
    for operation in queued:
        await outbox.bury(operation, sqlstate="22P05", reason="for the test")
    await tiers.close()
    return [operation.op_id for operation in queued]


async def test_an_empty_directory_has_no_status_to_tell(tmp_path: Path) -> None:
    ran = await run("status", "--json", "--data-dir", tmp_path / "new")
    assert ran.data["slots"] == []
    assert ran.data["totals"] == {"running": 0, "gone": 0, "queued": 0, "dead_letters": 0}
    assert not (tmp_path / "new").exists()


async def test_all_running_managers_are_asked_and_the_answers_put_together(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        for count in (1, 2):
            manager = await stack.enter_async_context(manager_on(tmp_path, None))
            await store(manager, "alice", count)
        ran = await run("status", "--json", "--data-dir", tmp_path)
        assert [(slot["slot"], slot["owner"], slot["health"]["queued"]) for slot in ran.data["slots"]] == [
            (0, "running", 1),
            (1, "running", 2),
        ]
        assert ran.data["totals"] == {"running": 2, "gone": 0, "queued": 3, "dead_letters": 0}
        one = await run("status", "--json", "--data-dir", tmp_path, "--slot", "1")
        assert [slot["slot"] for slot in one.data["slots"]] == [1]
        listed = await run("outbox", "list", "--json", "--data-dir", tmp_path)
        assert listed.data["queued"] == 3
        assert sorted(entry["slot"] for entry in listed.data["operations"]) == [0, 1, 1]
    missing = await run("status", "--json", "--data-dir", tmp_path, "--slot", "7")
    assert (missing.code, missing.error["code"]) == (1, "not_found")


async def test_the_queue_of_a_dead_owner_is_listed_without_being_touched(tmp_path: Path) -> None:
    left = await leave_behind(tmp_path, {"alice": 2, "bob": 1})
    for _ in range(2):
        ran = await run("outbox", "list", "--json", "--data-dir", tmp_path)
        assert ran.data["queued"] == 3
        assert [entry["entity_id"] for entry in ran.data["operations"]] == [*left["alice"], *left["bob"]]
    only = await run("outbox", "list", "--json", "--data-dir", tmp_path, "--user", "bob")
    assert [entry["user_id"] for entry in only.data["operations"]] == ["bob"]
    status = await run("status", "--json", "--data-dir", tmp_path)
    assert status.data["slots"][0]["condition"] == "gone"
    assert "outbox drain" in (await run("status", "--data-dir", tmp_path)).out


async def test_draining_carries_the_queues_of_the_living_and_of_the_dead(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    await leave_behind(tmp_path, {"alice": 3})
    async with manager_on(tmp_path, None) as first:
        # The first slot is taken again, so the next manager leaves its queue in a second one.
        await leave_behind(tmp_path, {"bob": 2})
        assert first.queue().entries == 3
    async with manager_on(tmp_path, postgres) as alive:
        await alive.user("carol").store({"text": "now"}, context_type="conversation_fact", wait=0)
        ran = await run("outbox", "drain", "--json", "--data-dir", tmp_path, "--dsn", postgres.app_dsn)
        assert ran.code == 0, ran.out
        assert ran.data["left"] == 0
        assert [(slot["slot"], slot["owner"]) for slot in ran.data["slots"]] == [(0, "running"), (1, "gone")]
        assert await live_nodes(admin) == {"alice": 3, "bob": 2, "carol": 1}
    again = await run("outbox", "drain", "--json", "--data-dir", tmp_path, "--dsn", postgres.app_dsn)
    assert (again.code, again.data["carried"], again.data["left"]) == (0, 0, 0)


async def test_draining_into_nowhere_keeps_everything_and_says_so(tmp_path: Path) -> None:
    await leave_behind(tmp_path, {"alice": 2})
    words = ("outbox", "drain", "--json", "--data-dir", tmp_path, "--within", "0.5")
    ran = await run(*words, "--dsn", NOWHERE)
    assert (ran.code, ran.error["code"], ran.data["left"], ran.data["carried"]) == (3, "unreachable", 2, 0)
    assert "failed_to_persist_to_postgres" in ran.err
    assert "s3cret" not in ran.out + ran.err
    # An administrator may not carry it, and it must not go to another Postgres instead.
    refused = await run(*words, "--admin-dsn", NOWHERE)
    assert (refused.code, refused.error["code"]) == (4, "refused")
    assert (await run("outbox", "list", "--json", "--data-dir", tmp_path)).data["queued"] == 2


async def test_retrying_wakes_the_living_and_tells_of_the_dead(running: HybridMemoryManager, tmp_path: Path) -> None:
    await store(running, "alice")
    await leave_behind(tmp_path, {"bob": 1})
    ran = await run("outbox", "retry", "--json", "--data-dir", tmp_path)
    assert ran.data["woken"] == 1
    assert [(slot["slot"], slot["woken"]) for slot in ran.data["slots"]] == [(0, True), (1, False)]


async def test_dead_letters_are_listed_retried_and_discarded_with_a_manager_running(
    tmp_path: Path,
) -> None:
    op_ids = await leave_dead_letters(tmp_path, 3)
    words = ("--json", "--data-dir", tmp_path)
    async with manager_on(tmp_path, None) as running:
        listed = await run("dead-letters", "list", *words)
        assert listed.data["dead_letters"] == 3
        assert {letter["op_id"] for letter in listed.data["letters"]} == set(op_ids)
        told = {(letter["sqlstate"], letter["reason"]) for letter in listed.data["letters"]}
        assert told == {("22P05", "for the test")}
        assert (await run("dead-letters", "retry", op_ids[0], *words)).data["count"] == 1
        assert running.queue().entries == 1
        assert (await run("dead-letters", "discard", "--all", *words)).data["count"] == 2
        assert running.queue().dead_letters == 0
        missing = await run("dead-letters", "discard", op_ids[1], *words)
        assert (missing.code, missing.error["code"]) == (1, "not_found")


async def test_dead_letters_of_a_dead_owner_can_be_decided_too(tmp_path: Path) -> None:
    op_ids = await leave_dead_letters(tmp_path, 2)
    words = ("--json", "--data-dir", tmp_path)
    assert (await run("status", *words)).data["totals"]["dead_letters"] == 2
    assert (await run("dead-letters", "retry", *op_ids, *words)).data["count"] == 2
    assert (await run("outbox", "list", *words)).data["queued"] == 2


@pytest.mark.parametrize("words", [("forget", "alice"), ("forget", "--all")])
async def test_forgetting_is_refused_without_a_terminal_and_without_a_yes(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    await leave_behind(tmp_path, {"alice": 1})
    ran = await run(*words, "--json", "--data-dir", tmp_path, "--admin-dsn", NOWHERE, "--dsn", NOWHERE)
    assert (ran.code, ran.error["code"]) == (4, "refused")
    assert "--yes" in ran.error["fix"]
    assert (await run("outbox", "list", "--json", "--data-dir", tmp_path)).data["queued"] == 1


async def test_forgetting_erases_in_postgres_and_in_every_file(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with manager_on(tmp_path, postgres) as first:
        (here,) = await store(first, "alice")
        await store(first, "bob")
        await leave_behind(tmp_path, {"alice": 2})
        ran = await run("forget", "alice", "--yes", "--json", "--data-dir", tmp_path, "--dsn", postgres.app_dsn)
        assert ran.code == 0, ran.out
        assert (ran.data["users"], ran.data["durable"]) == (["alice"], True)
        assert [(slot["owner"], slot["removed"]["nodes"]) for slot in ran.data["slots"]] == [
            ("running", 1),
            ("gone", 2),
        ]
        assert await first.user("alice").get(here) is None
        assert first.queue().entries == 0
    assert await live_nodes(admin) == {"bob": 1}
    assert (await run("outbox", "list", "--json", "--data-dir", tmp_path)).data["queued"] == 0
    for file in tmp_path.glob("slot-*.db*"):
        assert b"alice likes" not in file.read_bytes()


async def test_forgetting_everybody_needs_the_administrator_and_leaves_nobody(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    async with manager_on(elsewhere, postgres) as manager:
        await store(manager, "alice")
    await leave_behind(tmp_path / "here", {"bob": 1})
    words = ("forget", "--all", "--yes", "--json", "--data-dir", tmp_path / "here", "--dsn", postgres.app_dsn)
    assert (await run(*words)).error["code"] == "refused"
    ran = await run(*words, "--admin-dsn", postgres.admin_dsn)
    assert (ran.code, ran.data["users"]) == (0, ["alice", "bob"])
    assert await live_nodes(admin) == {}
    again = await run(*words, "--admin-dsn", postgres.admin_dsn)
    assert (again.code, again.data["users"]) == (0, [])


async def test_forgetting_while_postgres_is_away_erases_here_and_queues_the_rest(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with manager_on(tmp_path, postgres) as manager:
        await store(manager, "alice")
    words = ("--json", "--data-dir", tmp_path)
    ran = await run("forget", "alice", "--yes", "--within", "0.5", *words, "--dsn", NOWHERE)
    assert (ran.code, ran.error["code"], ran.data["durable"]) == (3, "unreachable", False)
    assert ran.data["slots"][0]["removed"]["nodes"] == 1
    assert await live_nodes(admin) == {"alice": 1}
    assert (await run("outbox", "drain", *words, "--dsn", postgres.app_dsn)).code == 0
    assert await live_nodes(admin) == {}


@pytest.mark.parametrize(("answer", "code", "left"), [("no", 4, {"alice": 1}), ("", 4, {"alice": 1}), ("yes", 0, {})])
async def test_forgetting_asks_at_a_terminal(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, answer: str, code: int, left: dict[str, int]
) -> None:
    async with manager_on(tmp_path, postgres) as manager:
        await store(manager, "alice")
    words = ("forget", "alice", "--data-dir", tmp_path, "--dsn", postgres.app_dsn)
    given, shown = await run_at_terminal(*words, answer=answer or "\n")
    assert "[y/N]" in shown
    assert given == code, shown
    assert await live_nodes(admin) == left


async def test_forgetting_everybody_asks_for_a_whole_word(postgres: Database, tmp_path: Path) -> None:
    async with manager_on(tmp_path, postgres) as manager:
        await store(manager, "alice")
    words = ("forget", "--all", "--data-dir", tmp_path, "--dsn", postgres.app_dsn, "--admin-dsn", postgres.admin_dsn)
    assert (await run_at_terminal(*words, answer="y"))[0] == 4
    assert (await run_at_terminal(*words, answer="everybody"))[0] == 0


async def test_a_file_that_is_not_ours_is_told_and_the_others_are_asked(tmp_path: Path) -> None:
    async with manager_on(tmp_path, None):
        await leave_behind(tmp_path, {"bob": 1})
    (tmp_path / "slot-00.db").unlink()
    foreign = choose_driver().connect(tmp_path / "slot-00.db", create=True)
    foreign.execute("create table diary (entry text)")
    foreign.close()
    ran = await run("status", "--json", "--data-dir", tmp_path)
    assert (ran.code, ran.error["code"]) == (1, "storage_corrupt")
    assert ran.data["slots"][0]["error"]["code"] == "storage_corrupt"
    assert ran.data["slots"][1]["health"]["queued"] == 1
    assert "unreadable" in (await run("status", "--data-dir", tmp_path)).out
