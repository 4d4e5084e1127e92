"""The one door: the promised surface, what opening and closing do, and the way to Postgres and back."""

from __future__ import annotations

import asyncio
import inspect
import os
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
import structlog
from structlog.testing import LogCapture

import hybrid_memory
from hybrid_memory import (
    Closed,
    Conflict,
    HybridMemoryManager,
    Progress,
    Settings,
    Status,
    Unreachable,
    UserMemory,
    Verdict,
)
from hybrid_memory.checkpoints import Checkpoints
from hybrid_memory.events import LoadFinished, LoadStarted, Persisted, PersistFailed
from hybrid_memory.graph import JsonInput, JsonValue, NodeId
from tests.plugins.postgres import Database
from tests.support.clocks import HandClock
from tests.support.managers import Ears, both_tiers_agree, drained, opened
from tests.support.waiting import until

FACT = "conversation_fact"
ABSENT = NodeId("01900000-0000-7000-8000-000000000000")
SECRET = "zebrafinch"
LONG = 20.0


# The promised surface: each method as others call it; what is added to it must be optional and named.


class PromisedManager:
    @classmethod
    def open(
        cls,
        *,
        dsn: str | None = None,
        data_dir: Path | None = None,
        postgres: Literal["auto", "embedded", "off"] = "auto",
        settings: Settings | None = None,
    ) -> object: ...
    async def ensure_user_memories(
        self, user_id: str, *, progress: Callable[[Progress], None] | None = None
    ) -> object: ...
    async def store_persistent_memory(
        self,
        user_id: str,
        content: Mapping[str, JsonInput],
        context_type: str,
        *,
        tags: Iterable[str] = (),
        summary: str | None = None,
        wait: float = 0.25,
    ) -> object: ...
    def store_transient_memory(
        self, thread_id: str, content: Mapping[str, JsonInput], context_type: str, *, ttl: timedelta | None = None
    ) -> object: ...
    async def promote(self, thread_id: str, node_id: NodeId, user_id: str, *, wait: float = 0.25) -> object: ...
    async def persist_relationship(
        self,
        user_id: str,
        source_id: NodeId,
        target_id: NodeId,
        relationship_type: str,
        *,
        weight: float = 1.0,
        properties: Mapping[str, JsonInput] | None = None,
        wait: float = 0.25,
    ) -> object: ...
    async def retrieve_relevant(
        self,
        query_text: str,
        *,
        user_id: str,
        context_types: Iterable[str] | None = None,
        limit: int = 10,
        min_relevance: float = 0.0,
    ) -> object: ...
    async def health(self) -> object: ...


class PromisedHandle:
    async def store(
        self,
        content: object,
        *,
        context_type: str,
        node_id: object = None,
        namespace: str = "default",
        key: object = None,
        tags: object = (),
        summary: object = None,
        importance: object = None,
        ttl: object = None,
        expected_rev: object = None,
        wait: float = 0.25,
    ) -> object: ...
    async def store_entity(
        self,
        system: str,
        entity_id: str,
        entity_type: str,
        data: object,
        *,
        name: object = None,
        wait: float = 0.25,
    ) -> object: ...
    async def relate(
        self,
        source_id: object,
        target_id: object,
        relationship_type: object,
        *,
        weight: float = 1.0,
        properties: object = None,
        wait: float = 0.25,
    ) -> object: ...
    async def get(self, node_id: object) -> object: ...
    async def get_many(self, node_ids: object) -> object: ...
    async def list(
        self, *, where: object = None, order: str = "-created_at", limit: int = 100, cursor: str | None = None
    ) -> object: ...
    async def search(self, text: str, *, where: object = None, limit: int = 10) -> object: ...
    async def neighbours(
        self, node_id: object, *, depth: int = 1, types: object = None, direction: str = "both", limit: int = 100
    ) -> object: ...
    async def delete(self, node_id: object, *, wait: float = 0.25) -> object: ...
    def freshness(self) -> object: ...


class PromisedCheckpoints:
    async def save(
        self, thread_id: object, checkpoint_id: object, state: object, parent_id: object = None
    ) -> object: ...
    async def load(self, thread_id: object) -> object: ...
    async def list(self, thread_id: object) -> object: ...
    async def delete(self, thread_id: object) -> object: ...


def _promises() -> Iterator[tuple[str, Callable[..., object], Callable[..., object]]]:
    for promised, real in (
        (PromisedManager, HybridMemoryManager),
        (PromisedHandle, UserMemory),
        (PromisedCheckpoints, Checkpoints),
    ):
        for name in vars(promised):
            if not name.startswith("_"):
                yield f"{real.__name__}.{name}", getattr(promised, name), getattr(real, name)


@pytest.mark.parametrize(("name", "promised", "real"), list(_promises()), ids=[name for name, _, _ in _promises()])
def test_a_method_is_called_as_promised(
    name: str, promised: Callable[..., object], real: Callable[..., object]
) -> None:
    assert inspect.iscoroutinefunction(real) == inspect.iscoroutinefunction(promised), name
    wanted, given = inspect.signature(promised).parameters, inspect.signature(real).parameters
    for parameter in wanted.values():
        assert given[parameter.name].kind == parameter.kind
        assert given[parameter.name].default == parameter.default
    kept = [name for name in given if name in wanted]
    assert kept == list(wanted)
    for added in given.keys() - wanted.keys():
        assert given[added].default is not inspect.Parameter.empty


def test_the_module_has_its_two_functions_and_every_public_name() -> None:
    assert list(inspect.signature(hybrid_memory.ensure_user_memories).parameters) == ["user_id"]
    assert not inspect.signature(hybrid_memory.close_default).parameters
    for name in hybrid_memory.__all__:
        assert getattr(hybrid_memory, name).__doc__ or name in {"Filter", "NodeId", "RelationshipId"}


# Opening and closing


async def test_without_a_directory_it_uses_one_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with HybridMemoryManager.open(postgres="off") as manager:
        (folder,) = tmp_path.iterdir()
        receipt = await manager.store_persistent_memory("ann", {"n": 1}, FACT)
        assert receipt.status is Status.PENDING
        assert list(folder.glob("*.db"))
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


async def test_what_was_stored_and_queued_is_there_after_a_restart(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        receipt = await manager.store_persistent_memory("ann", {"text": "tea"}, FACT, tags=["t"], summary="s")
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        ann = await manager.ensure_user_memories("ann")
        node = await ann.get(receipt.node_id)
        assert node is not None
        assert (node.content, node.tags, node.summary) == ({"text": "tea"}, ("t",), "s")
        assert [hit.node for hit in await ann.search("tea")] == [node]
        assert manager.queue().entries == 1


async def test_two_managers_on_one_directory_have_a_file_each(tmp_path: Path) -> None:
    async with (
        HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as one,
        HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as other,
    ):
        receipt = await one.store_persistent_memory("ann", {}, FACT)
        assert await other.user("ann").get(receipt.node_id) is None


async def test_an_error_in_the_block_closes_it_and_is_passed_on(tmp_path: Path) -> None:
    held: list[HybridMemoryManager] = []

    async def fail() -> None:
        async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
            held.append(manager)
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    with pytest.raises(Closed):
        held[0].queue()


Call = Callable[[HybridMemoryManager, UserMemory], object]

_CALLS: dict[str, Call] = {
    "ensure_user_memories": lambda m, _: m.ensure_user_memories("ann"),
    "user": lambda m, _: m.user("ann"),
    "store_persistent_memory": lambda m, _: m.store_persistent_memory("ann", {}, FACT),
    "store_transient_memory": lambda m, _: m.store_transient_memory("t", {}, FACT),
    "transient_memories": lambda m, _: m.transient_memories("t"),
    "promote": lambda m, _: m.promote("t", ABSENT, "ann"),
    "persist_relationship": lambda m, _: m.persist_relationship("ann", ABSENT, ABSENT, "led_to"),
    "retrieve_relevant": lambda m, _: m.retrieve_relevant("tea", user_id="ann"),
    "forget": lambda m, _: m.forget("ann"),
    "drain": lambda m, _: m.drain(timedelta(0)),
    "queue": lambda m, _: m.queue(),
    "dead_letters": lambda m, _: m.dead_letters,
    "durable_digest": lambda m, _: m.durable_digest("ann"),
    "health": lambda m, _: m.health(),
    "checkpoints.save": lambda m, _: m.checkpoints.save("t", "c", {}),
    "checkpoints.load": lambda m, _: m.checkpoints.load("t"),
    "checkpoints.list": lambda m, _: m.checkpoints.list("t"),
    "checkpoints.delete": lambda m, _: m.checkpoints.delete("t"),
    "handle.store": lambda _, u: u.store({}, context_type=FACT),
    "handle.store_entity": lambda _, u: u.store_entity("crm", "7", "customer", {}),
    "handle.relate": lambda _, u: u.relate(ABSENT, ABSENT, "led_to"),
    "handle.get": lambda _, u: u.get(ABSENT),
    "handle.get_many": lambda _, u: u.get_many([ABSENT]),
    "handle.list": lambda _, u: u.list(),
    "handle.search": lambda _, u: u.search("tea"),
    "handle.neighbours": lambda _, u: u.neighbours(ABSENT),
    "handle.delete": lambda _, u: u.delete(ABSENT),
    "handle.freshness": lambda _, u: u.freshness(),
    "handle.token": lambda _, u: u.token(),
    "handle.barrier": lambda _, u: u.barrier("1.-.0.00000000-0000-4000-8000-000000000000.0", wait=0),
    "handle.digest": lambda _, u: u.digest(),
}


async def _outcome(call: Call, manager: HybridMemoryManager, handle: UserMemory) -> object:
    result = call(manager, handle)
    return await result if inspect.isawaitable(result) else result


def test_every_public_method_is_among_the_calls() -> None:
    public = {name for name in vars(HybridMemoryManager) if not name.startswith("_")} - {"open", "close"}
    public |= {f"handle.{name}" for name in vars(UserMemory) if not name.startswith("_")}
    public |= {f"checkpoints.{name}" for name in vars(Checkpoints) if not name.startswith("_")}
    assert public == set(_CALLS)


async def test_whatever_is_called_on_a_closed_manager_says_so_at_once(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        handle = await manager.ensure_user_memories("ann")
        checkpoints = manager.checkpoints
    assert checkpoints is manager.checkpoints
    for name, call in _CALLS.items():
        with pytest.raises(Closed) as caught:
            await _outcome(call, manager, handle)
        assert caught.value.fix, name


async def test_closing_twice_or_at_the_same_time_is_fine(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        await asyncio.gather(manager.close(), manager.close())
        await manager.close()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        assert manager.queue().entries == 0


async def test_closing_that_is_cancelled_still_lets_go_of_the_file(tmp_path: Path) -> None:
    patient = Settings(drain_on_close=timedelta(hours=1))
    async with HybridMemoryManager.open(
        dsn=f"postgresql://nobody@/none?host={tmp_path}", data_dir=tmp_path, settings=patient
    ) as manager:
        await manager.store_persistent_memory("ann", {}, FACT, wait=0)
        # Before the relay knows that nobody is there, closing would wait for the queue to run out.
        closing = asyncio.ensure_future(manager.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, slot=0) as manager:
        assert manager.queue().entries == 1


async def test_a_receipt_outlives_its_manager_but_waits_no_longer(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        receipt = await manager.store_persistent_memory("ann", {}, FACT)
        waiting = asyncio.ensure_future(receipt.durable())
        await asyncio.sleep(0)
    for outcome in (waiting, receipt.durable(), receipt.durable(5)):
        with pytest.raises(Closed):
            await asyncio.wait_for(outcome, 5)


async def test_a_forked_child_is_refused(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        handle = await manager.ensure_user_memories("ann")
        await handle.store({}, context_type=FACT)
        left = await _in_a_child(lambda: [name for name, call in _CALLS.items() if not _refused(call, manager, handle)])
        assert left == b""
        assert manager.queue().entries == 1
        await handle.store({}, context_type=FACT)


def _refused(call: Call, manager: HybridMemoryManager, handle: UserMemory) -> bool:
    try:
        result = call(manager, handle)
        if inspect.iscoroutine(result):
            result.send(None)
    except Closed:
        return True
    except BaseException:  # noqa: BLE001 - told to the parent as a failure
        return False
    return False


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def _in_a_child(work: Callable[[], list[str]]) -> bytes:
    """What `work` found, told by a forked child that does nothing else and leaves without cleaning up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = b"the child failed"
        try:
            told = " ".join(work()).encode()
        finally:
            os.write(writing, told)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = await asyncio.to_thread(pipe.read)
    await asyncio.to_thread(os.waitpid, pid, 0)
    return told


async def test_another_thread_and_its_loop_are_refused(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        handle = await manager.ensure_user_memories("ann")
        left: list[str] = []

        async def call_all() -> None:
            for name, call in _CALLS.items():
                try:
                    await asyncio.wait_for(_outcome(call, manager, handle), 5)
                except Closed:
                    continue
                left.append(name)

        other = threading.Thread(target=lambda: asyncio.run(call_all()))
        other.start()
        await asyncio.to_thread(other.join)
        assert left == []


# Names of the older systems, and odds and ends


async def test_the_managers_short_ways_lead_to_the_handle(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        one = await manager.store_persistent_memory("ann", {"text": "a"}, "search_result", tags=["t"], summary="s")
        two = await manager.store_persistent_memory("ann", {"text": "b"}, "tool_output")
        await manager.persist_relationship("ann", one.node_id, two.node_id, "led_to", weight=2, properties={"why": "x"})
        ann = manager.user("ann")
        node = await ann.get(one.node_id)
        assert node is not None
        assert (node.context_type, node.tags, node.summary) == ("search_result", ("t",), "s")
        (neighbour,) = await ann.neighbours(one.node_id)
        assert (neighbour.node.node_id, neighbour.relationship.weight) == (two.node_id, 2.0)
        assert neighbour.relationship.properties == {"why": "x"}


async def test_ensuring_a_user_without_postgres_gives_the_handle_at_once(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        ann = await manager.ensure_user_memories("ann")
        assert (ann.user_id, ann.freshness().degraded) == ("ann", True)
        with pytest.raises(Unreachable):
            await manager.durable_digest("ann")


async def test_forgetting_a_user_leaves_nothing_of_it_here(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        ann, bea = await manager.ensure_user_memories("ann"), await manager.ensure_user_memories("bea")
        receipt = await ann.store({"text": SECRET}, context_type=FACT)
        kept = await bea.store({"text": SECRET}, context_type=FACT)
        removed = await manager.forget("ann")
        assert removed["nodes"] == 1
        assert await ann.get(receipt.node_id) is None
        assert await ann.search(SECRET) == []
        assert await bea.get(kept.node_id) is not None


# With Postgres


async def test_what_one_process_stores_another_reads_to_the_letter(postgres: Database, tmp_path: Path) -> None:
    content: dict[str, JsonValue] = {
        "floats": [1e22, -0.0, 1e300, 5e-324, 1.0, 0.1],
        "ints": [2**63 - 1, -(2**63), 2**53 + 1, 0],
        "texts": ["", "e\u0301 \u00e9", "\U0001f600", "\x01\u2028", "\\u0000"],
        "rest": [None, True, [], {}, {"": {"a.b": 1}}],
    }
    async with opened(postgres, tmp_path / "one") as one, opened(postgres, tmp_path / "two") as two:
        ann = await one.ensure_user_memories("ann")
        receipt = await ann.store(
            content, context_type=FACT, tags=["\u00fc", "b"], summary="s", importance=0.1, wait=LONG
        )
        assert (receipt.status, receipt.verdict, receipt.rev) == (Status.DURABLE, Verdict.APPLIED, 1)
        other = (await ann.store({"n": 2}, context_type=FACT, wait=LONG)).node_id
        await ann.relate(receipt.node_id, other, "led_to", weight=0.1, properties=content, wait=LONG)
        seen = await two.ensure_user_memories("ann")
        mine, theirs = await ann.get(receipt.node_id), await seen.get(receipt.node_id)
        assert theirs is not None
        assert theirs == mine
        assert sorted(repr(theirs.content)) == sorted(repr(content))
        assert await seen.neighbours(receipt.node_id) == await ann.neighbours(receipt.node_id)
        assert await seen.digest() == await ann.digest() == await two.durable_digest("ann")
        assert seen.freshness().complete


async def test_what_postgres_has_decided_is_told_before_the_file_says_it(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path) as manager:
        ann = await manager.ensure_user_memories("ann")
        one = await ann.store({"n": 1}, context_type=FACT, wait=LONG)
        two = await ann.store({"n": 2}, context_type=FACT, wait=LONG)
        edge = await ann.relate(one.node_id, two.node_id, "led_to", wait=LONG)
        # The file learns of it with a later commit, or after some 40 ms.
        assert ann.freshness().rev == edge.rev == 3
        (neighbour,) = await ann.neighbours(one.node_id)
        assert (neighbour.node.rev, neighbour.relationship.rev) == (two.rev, edge.rev)
        node = await ann.get(one.node_id)
        assert node is not None
        assert node.rev == one.rev
        await both_tiers_agree(manager, ann)
        assert ann.freshness().rev == 3


async def test_an_expected_revision_is_that_of_the_last_write(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path) as manager:
        ann = await manager.ensure_user_memories("ann")
        first = await ann.store({"n": 1}, context_type=FACT, key="k", expected_rev=0, wait=LONG)
        assert first.rev == 1
        for wrong in (0, 2, -1, 2**63 - 1):
            with pytest.raises(Conflict) as caught:
                await ann.store({"n": 9}, context_type=FACT, key="k", expected_rev=wrong)
            assert caught.value.actual_rev == 1
        second = await ann.store({"n": 2}, context_type=FACT, key="k", expected_rev=1, wait=LONG)
        assert (second.verdict, second.rev) == (Verdict.APPLIED, 2)
        node = await ann.get(first.node_id)
        assert node is not None
        assert (node.content, node.rev) == ({"n": 2}, 2)
        assert manager.queue().entries == 0


async def test_two_processes_expecting_the_same_revision_do_not_both_win(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path / "one") as one, opened(postgres, tmp_path / "two") as two:
        ann = await one.ensure_user_memories("ann")
        receipt = await ann.store({"n": 0}, context_type=FACT, key="k", wait=LONG)
        handles = [ann, await two.ensure_user_memories("ann")]
        tries = [
            await handle.store({"n": n}, context_type=FACT, key="k", expected_rev=1, wait=LONG)
            for n, handle in enumerate(handles, start=1)
        ]
        assert [done.verdict for done in tries] == [Verdict.APPLIED, Verdict.REJECTED]
        await both_tiers_agree(two, handles[1])
        node = await handles[1].get(receipt.node_id)
        assert node is not None
        assert node.content == {"n": 1}


async def test_a_session_begins_with_the_whole_graph_and_tells_how_far_it_is(
    postgres: Database, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "one") as manager:
        ann = await manager.ensure_user_memories("ann")
        await asyncio.gather(*(ann.store({"n": n}, context_type=FACT, wait=0) for n in range(30)))
        await drained(manager)
    ears, steps = Ears(), list[Progress]()
    async with opened(postgres, tmp_path / "two", ears=ears) as manager:
        ann, same = await asyncio.gather(
            manager.ensure_user_memories("ann", progress=steps.append), manager.ensure_user_memories("ann")
        )
        assert len((await ann.list()).items) == len((await same.list()).items) == 30
        assert ann.freshness().complete
        assert ann.freshness().rev == 30
    assert (steps[-1].user_id, steps[-1].loaded, steps[-1].total, steps[-1].finished) == ("ann", 30, 30, True)
    assert [step.loaded for step in steps] == sorted(step.loaded for step in steps)
    assert len(ears.all(LoadStarted)) == 1
    (finished,) = ears.all(LoadFinished)
    assert (finished.nodes, finished.relationships, finished.full) == (30, 0, True)


async def test_a_copy_confirmed_within_a_minute_is_not_asked_for_again(postgres: Database, tmp_path: Path) -> None:
    clock = HandClock()
    quiet = Settings(poll_interval=timedelta(hours=1))
    ears = Ears()
    async with HybridMemoryManager.open(
        dsn=postgres.app_dsn, data_dir=tmp_path / "one", clock=clock, settings=quiet, observer=ears
    ) as manager:
        ann = await manager.ensure_user_memories("ann")
        assert ann.freshness().age == timedelta(0)
        clock.advance(timedelta(seconds=59))
        await manager.ensure_user_memories("ann")
        assert ann.freshness().age == timedelta(seconds=59)
        clock.advance(timedelta(seconds=1))
        await manager.ensure_user_memories("ann")
        assert ann.freshness().age == timedelta(0)
    assert len(ears.all(LoadStarted)) == 1


@pytest.mark.usefixtures("one_place")
async def test_an_outage_changes_only_the_word_on_the_receipt(postgres: Database, tmp_path: Path) -> None:
    nobody = f"postgresql://nobody@/none?host={tmp_path}"
    ears = Ears()
    async with opened(nobody, tmp_path / "data", ears=ears) as manager:
        ann = await manager.ensure_user_memories("ann")
        receipt = await ann.store({"text": "tea"}, context_type=FACT, wait=LONG)
        assert receipt.status is Status.PENDING
        assert [hit.node.node_id for hit in await ann.search("tea")] == [receipt.node_id]
        await ears.hear(PersistFailed)
        assert ann.freshness().degraded
    async with opened(postgres, tmp_path / "data") as manager:
        await drained(manager)
        ann = await manager.ensure_user_memories("ann")
        node = await ann.get(receipt.node_id)
        assert node is not None
        assert (node.content, node.rev) == ({"text": "tea"}, 1)
        await both_tiers_agree(manager, ann)


# What is told


@asynccontextmanager
async def _logged(dsn: str, folder: Path, ears: Ears) -> AsyncGenerator[tuple[HybridMemoryManager, LogCapture]]:
    capture = LogCapture()
    structlog.configure(processors=[capture])
    try:
        async with opened(dsn, folder, ears=ears) as manager:
            yield manager, capture
    finally:
        structlog.reset_defaults()


async def test_operators_hear_the_names_they_know_and_never_a_word_of_a_memory(
    postgres: Database, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ears = Ears()
    async with _logged(postgres.app_dsn, tmp_path, ears) as (manager, capture):
        ann = await manager.ensure_user_memories("ann")
        receipt = await ann.store(
            {SECRET: SECRET},
            context_type=SECRET,
            key=SECRET,
            namespace=SECRET,
            tags=[SECRET],
            summary=SECRET,
            wait=LONG,
        )
        await ann.store_entity(SECRET, SECRET, SECRET, {SECRET: SECRET}, name=SECRET, wait=LONG)
        await ann.relate(receipt.node_id, receipt.node_id, SECRET, properties={SECRET: SECRET}, wait=LONG)
        await ann.search(SECRET)
        await manager.promote(SECRET, await manager.store_transient_memory(SECRET, {SECRET: SECRET}, SECRET), "ann")
        await ears.hear(Persisted, times=4)
        names = {str(entry["event"]) for entry in capture.entries}
        assert {
            "loading_user_memories_from_postgres",
            "user_memories_loaded",
            "node_persisted_to_postgres",
        } <= names
        told = f"{capture.entries} {ears.heard} {await manager.health()}"
        assert SECRET not in told
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err


async def test_a_failure_to_persist_is_a_warning_without_the_password(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ears = Ears()
    dsn = f"postgresql://ann:{SECRET}@127.0.0.1:1/{SECRET}"
    async with _logged(dsn, tmp_path, ears) as (manager, capture):
        await manager.store_persistent_memory("ann", {}, FACT)
        await until(lambda: any(entry["event"] == "failed_to_persist_to_postgres" for entry in capture.entries))
        (entry, *_) = [one for one in capture.entries if one["event"] == "failed_to_persist_to_postgres"]
        assert entry["log_level"] == "warning"
        shown = f"{capture.entries} {ears.heard} {await manager.health()} {manager!r} {manager.user('ann')!r}"
        with pytest.raises(Unreachable) as caught:
            await manager.durable_digest("ann")
        assert SECRET not in shown + repr(caught.value) + repr(caught.value.__cause__)
    shown_to_people = capfd.readouterr()
    assert SECRET not in shown_to_people.out + shown_to_people.err


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgres//ann:{SECRET}@h/d",
        f"host=h password={SECRET}",
        f"postgresql://ann:{SECRET}@127.0.0.1:1/d?sslmode={SECRET}",
        SECRET,
    ],
)
async def test_a_dsn_that_no_server_answers_to_shows_in_health_and_is_not_repeated(tmp_path: Path, dsn: str) -> None:
    ears = Ears()
    async with opened(dsn, tmp_path, ears=ears) as manager:
        receipt = await manager.store_persistent_memory("ann", {}, FACT)
        assert receipt.status is Status.PENDING
        await ears.hear(PersistFailed)
        health = await manager.health()
        assert health.condition != "ok"
        assert SECRET not in f"{health} {ears.heard}"
