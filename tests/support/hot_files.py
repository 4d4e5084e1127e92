"""Hot-tier files as the contract tests open them."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from hybrid_memory.changes import (
    NodeChange,
    NodeRow,
    Operation,
    RelationshipChange,
    RelationshipRow,
    Rule,
    node_row,
    relationship_row,
)
from hybrid_memory.clock import Clock, IdSource, SystemClock, keyed_node_id, relationship_id
from hybrid_memory.graph import NodeId, Verdict
from hybrid_memory.jsontext import encode
from hybrid_memory.messages import Applied, AppliedUser, BatchApplied, Head
from hybrid_memory.sqlite.accepting import QueueBounds
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.slots import prepare_directory, take_slot

CLOCK = SystemClock()
IDS = IdSource(CLOCK)
ROOMY = QueueBounds(entries=100_000, payload_bytes=2**30)
EPOCH = "6b1f0a52-9a51-4a4e-8a55-6d7f0f3a9f10"


@asynccontextmanager
async def hot_file(data_dir: Path, *, bounds: QueueBounds = ROOMY, clock: Clock = CLOCK) -> AsyncGenerator[HotFile]:
    slot = take_slot(prepare_directory(data_dir))
    try:
        file = await HotFile.open(slot, clock=clock, ids=IDS, bounds=bounds, index_bytes=2**24)
    except BaseException:
        slot.release()
        raise
    try:
        yield file
    finally:
        await file.close()


def fresh(text: str = "tea") -> NodeChange:
    """A wish to store a new node."""
    return _change(NodeId(IDS.new()), None, text, Rule.APPEND, new=True)


def keyed(key: str, text: str = "tea", *, user_id: str = "ada", expected_rev: int | None = None) -> NodeChange:
    """A wish to store the node of a key."""
    rule = Rule.REPLACE if expected_rev is None else Rule.COMPARE
    return _change(NodeId(keyed_node_id(user_id, "default", key)), key, text, rule, expected_rev=expected_rev)


def _change(
    node_id: NodeId, key: str | None, text: str, rule: Rule, *, new: bool = False, expected_rev: int | None = None
) -> NodeChange:
    return NodeChange(
        node_id=node_id,
        namespace="default",
        key=key,
        context_type="fact",
        content=encode({"text": text}),
        text_content=text,
        summary=None,
        tags=None,
        importance=None,
        rule=rule,
        expected_rev=expected_rev,
        fresh=new,
    )


ENTITY = NodeId("5f8f9d54-6d8c-5f0e-9d1f-0a7a3c6f2b11")


def entity(**fields: str) -> NodeChange:
    """A wish to merge into the entity."""
    return fresh()._replace(
        node_id=ENTITY,
        content=encode({"entity_data": dict(fields)}),
        rule=Rule.MERGE,
        fresh=False,
        entity_system="crm",
        entity_id="e",
        entity_type="p",
    )


def related(source: NodeId, target: NodeId, *, user_id: str = "ada") -> RelationshipChange:
    """A wish to relate two nodes."""
    return RelationshipChange(
        relationship_id=relationship_id(user_id, source, "led_to", target),
        source_id=source,
        target_id=target,
        relationship_type="led_to",
        weight=1.0,
        properties="{}",
    )


def node_from_postgres(change: NodeChange, rev: int, *, stamp: int | None = None) -> NodeRow:
    """The row that Postgres would send for a node."""
    moment = CLOCK.now_us()
    return node_row(change, None, now_us=moment, stamp=moment << 12 if stamp is None else stamp)._replace(rev=rev)


def edge_from_postgres(change: RelationshipChange, rev: int) -> RelationshipRow:
    """The row that Postgres would send for a relationship."""
    moment = CLOCK.now_us()
    return relationship_row(change, None, now_us=moment, stamp=moment << 12)._replace(rev=rev)


def head(rev: int, *, user_id: str = "ada", epoch: str = EPOCH, erased_rev: int = 0, done_seq: int = 0) -> Head:
    return Head(user_id=user_id, epoch=epoch, rev=rev, erased_rev=erased_rev, timeline=1, done_seq=done_seq)


def carried(operations: Sequence[Operation], *, before_rev: int = 0) -> BatchApplied:
    """What Postgres answers when it applied all operations of one user as they were sent."""
    applied = [
        Applied(operation=one, verdict=Verdict.APPLIED, rev=rev) for rev, one in enumerate(operations, before_rev + 1)
    ]
    user = AppliedUser(
        user_id=operations[0].user_id,
        epoch=EPOCH,
        before_rev=before_rev,
        head_rev=before_rev + len(operations),
        as_sent=True,
    )
    return BatchApplied(operations=tuple(applied), users=(user,))


async def count(file: HotFile, table: str) -> int:
    """How many rows a table has."""

    def work(connection: sqlite3.Connection) -> int:
        found: tuple[int] = connection.execute(f"select count(*) from {table}").fetchone()
        return found[0]

    return await file.database.read(work)


async def load(file: HotFile, rev: int, nodes: Sequence[NodeRow], edges: Sequence[RelationshipRow] = ()) -> None:
    """Load a user's graph as of a head."""
    generation = await file.replica.begin_load(head(rev))
    assert generation is not None
    await file.replica.add_nodes(generation, nodes)
    await file.replica.add_relationships(generation, edges)
    await file.replica.show_load(generation, complete=True)
