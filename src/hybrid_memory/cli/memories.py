"""`users`, `recent`, `show`, `search`, `entities`, `counts`: what Postgres holds, of everybody or of one user."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import cast

import orjson

from hybrid_memory import validation
from hybrid_memory.cli.outcome import Cell, Column, Document, Line, Outcome, Table, Toned, Usage
from hybrid_memory.cli.places import Place, administration
from hybrid_memory.cli.wording import clipped, counted, moment
from hybrid_memory.errors import NotFound
from hybrid_memory.graph import JsonValue, MemoryNode, Relationship
from hybrid_memory.postgres.administration import TypeCount, UserLine, Wanted

_CONTENT = "content."


async def users(arguments: argparse.Namespace, place: Place) -> Outcome:
    """All users, the one active last first."""
    del arguments
    async with administration(place) as asked:
        lines = await asked.users()
    table = Table(
        title=counted(len(lines), "user"),
        columns=(
            Column(name="user", folds=True),
            Column(name="nodes"),
            Column(name="relationships"),
            Column(name="entities"),
            Column(name="rev"),
            Column(name="last active (UTC)"),
            Column(name="note"),
        ),
        rows=tuple(_user_row(line) for line in lines),
        empty="Nobody has stored anything yet.",
    )
    return Outcome(data={"users": [_json(line) | {"erased": line.erased} for line in lines]}, sections=(table,))


def _user_row(line: UserLine) -> tuple[Cell, ...]:
    note = Toned(text="erased" if line.erased else "", tone="dim")
    return (
        line.user_id,
        line.nodes,
        line.relationships,
        line.entities,
        line.rev,
        moment(line.last_activity),
        note,
    )


async def counts(arguments: argparse.Namespace, place: Place) -> Outcome:
    """How many memories of which type each user has."""
    user_id = _user(arguments)
    async with administration(place, user_id) as asked:
        found = await asked.counts(user_id)
    total = sum(count.nodes for count in found)
    table = Table(
        title=counted(total, "memory", "memories"),
        columns=(
            Column(name="user", folds=True),
            Column(name="type"),
            Column(name="nodes"),
            Column(name="latest (UTC)"),
        ),
        rows=tuple(_count_row(count) for count in found),
        empty="Nothing is stored.",
    )
    return Outcome(data={"total": total, "counts": [_json(count) for count in found]}, sections=(table,))


def _count_row(count: TypeCount) -> tuple[Cell, ...]:
    return (count.user_id, count.context_type, count.nodes, moment(count.latest))


async def recent(arguments: argparse.Namespace, place: Place) -> Outcome:
    """What was stored last."""
    user_id = _user(arguments)
    return await _found(place, Wanted(user_id=user_id, limit=arguments.limit), "stored last", "Nothing is stored.")


async def search(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Memories that fit the text, or hold a value at a path."""
    text: str | None = arguments.text
    path: str | None = arguments.path
    if text is None and path is None:
        raise Usage("give a text to search for, or --path")
    if arguments.equals is not None and path is None:
        raise Usage("--equals needs a --path")
    wanted = Wanted(
        user_id=_user(arguments),
        text=None if text is None else validation.text("text", text, max_bytes=2**16),
        path=None if path is None else _path(path),
        equals=None if arguments.equals is None else _json_text(arguments.equals),
        limit=arguments.limit,
    )
    return await _found(place, wanted, "found", "Nothing fits.")


def _path(path: str) -> tuple[str, ...]:
    names = tuple(path.removeprefix(_CONTENT).split("."))
    if not path.startswith(_CONTENT) or not all(names):
        raise Usage("a path leads into the content, as in content.address.city or content.items.0")
    return names


def _json_text(value: str) -> str:
    """The value as JSON text: taken as JSON if it is, else as a string."""
    try:
        return orjson.dumps(orjson.loads(value)).decode()
    except orjson.JSONDecodeError:
        return orjson.dumps(value).decode()


async def _found(place: Place, wanted: Wanted, how: str, empty: str) -> Outcome:
    async with administration(place, wanted.user_id) as asked:
        nodes = await asked.nodes(wanted)
    table = Table(
        title=f"{counted(len(nodes), 'memory', 'memories')} {how}",
        columns=(
            Column(name="created (UTC)", tone="dim"),
            Column(name="user", folds=True),
            Column(name="type"),
            Column(name="node", below=True, tone="dim"),
            Column(name="memory", folds=True),
        ),
        rows=tuple(_node_row(node) for node in nodes),
        empty=empty,
    )
    return Outcome(data={"nodes": [_json(node) for node in nodes]}, sections=(table,))


def _node_row(node: MemoryNode) -> tuple[Cell, ...]:
    return (moment(node.created_at)[:16], node.user_id, node.context_type, node.node_id, _gist(node))


def _gist(node: MemoryNode) -> str:
    """A memory in a line: its summary, else its text, else all of it."""
    if node.summary:
        return clipped(node.summary)
    if node.entity_system is not None:
        name = node.content.get("entity_name")
        label = f"{node.entity_type} {node.entity_id} of {node.entity_system}"
        return clipped(f"{name} ({label})" if isinstance(name, str) else label)
    text = node.content.get("text")
    return clipped(text if isinstance(text, str) else orjson.dumps(node.content).decode())


async def entities(arguments: argparse.Namespace, place: Place) -> Outcome:
    """The entities of one system."""
    user_id = _user(arguments)
    system = validation.entity_system(arguments.system)
    async with administration(place, user_id) as asked:
        nodes = await asked.nodes(Wanted(user_id=user_id, system=system, limit=arguments.limit))
    table = Table(
        title=f"{counted(len(nodes), 'entity', 'entities')} of {system}",
        columns=(
            Column(name="user", folds=True),
            Column(name="id", folds=True),
            Column(name="node", below=True, tone="dim"),
            Column(name="type"),
            Column(name="data", folds=True),
            Column(name="updated (UTC)", tone="dim"),
        ),
        rows=tuple(_entity_row(node) for node in nodes),
        empty="There are none.",
    )
    return Outcome(data={"system": system, "entities": [_json(node) for node in nodes]}, sections=(table,))


def _entity_row(node: MemoryNode) -> tuple[Cell, ...]:
    data = clipped(orjson.dumps(node.content.get("entity_data", {})).decode())
    updated = moment(node.updated_at)[:16]
    return (node.user_id, node.entity_id or "", node.node_id, node.entity_type or "", data, updated)


async def show(arguments: argparse.Namespace, place: Place) -> Outcome:
    """One memory, with its relationships."""
    user_id = _user(arguments)
    node_id = validation.node_id("node", arguments.node)
    async with administration(place, user_id) as asked:
        found = await asked.nodes(Wanted(user_id=user_id, node_id=node_id, limit=2))
        if not found:
            raise NotFound("there is no such memory (any more)", fix="`hybrid-memory recent` shows what there is")
        if len(found) > 1:
            raise Usage("several users have a memory of this id", fix="name one with --user")
        node = found[0]
        relationships = await asked.relationships(node.user_id, node_id)
        history = await asked.history(node.user_id, node_id)
    past = f"{counted(history.replaced, 'earlier content')} kept, {history.lost:,} lost to a conflict"
    return Outcome(
        data={
            "node": _json(node),
            "relationships": [_json(one) for one in relationships],
            "history": {"replaced": history.replaced, "lost": history.lost},
        },
        sections=(
            _fields(node),
            Document(title="content", value=node.content),
            _edges(node, relationships),
            Line(text=past, tone="dim"),
        ),
    )


def _fields(node: MemoryNode) -> Table:
    told = [(name, value) for name, value in _json(node).items() if name not in {"content", "node_id"}]
    rows = [(name, _word(value)) for name, value in told if value not in (None, [], "")]
    return Table(
        title=node.node_id,
        columns=(Column(name="field", tone="dim"), Column(name="value", folds=True)),
        rows=tuple(rows),
    )


def _word(value: JsonValue) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _edges(node: MemoryNode, relationships: Sequence[Relationship]) -> Table:
    return Table(
        title=counted(len(relationships), "relationship"),
        columns=(Column(name=""), Column(name="type"), Column(name="node"), Column(name="weight")),
        rows=tuple(_edge_row(node, one) for one in relationships),
        empty="It has no relationships.",
    )


def _edge_row(node: MemoryNode, one: Relationship) -> tuple[Cell, ...]:
    outward = one.source_id == node.node_id
    return (
        "→" if outward else "←",
        one.relationship_type,
        one.target_id if outward else one.source_id,
        f"{one.weight:g}",
    )


def _user(arguments: argparse.Namespace) -> str | None:
    return None if arguments.user is None else validation.user_id(arguments.user)


def _json(value: MemoryNode | Relationship | UserLine | TypeCount) -> dict[str, JsonValue]:
    """A value's members as JSON; times as ISO 8601, UTC."""
    return {field.name: _member(getattr(value, field.name)) for field in fields(value)}


def _member(value: object) -> JsonValue:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [*cast("tuple[JsonValue, ...]", value)]
    return cast("JsonValue", value)
