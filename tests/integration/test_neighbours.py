"""Neighbours: nearest first, then heaviest, along the relationships asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager, InvalidInput, Neighbour, UserMemory
from hybrid_memory.graph import Direction
from tests.support.clocks import HandClock

FACT = "conversation_fact"
ABSENT = "01900000-0000-7000-8000-000000000000"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def ann(tmp_path: Path, clock: HandClock) -> AsyncIterator[UserMemory]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        yield await manager.ensure_user_memories("ann")


class Graph:
    """A graph drawn by names: `await graph.draw("a b led_to 2")` relates a to b with weight 2."""

    def __init__(self, memory: UserMemory) -> None:
        self.memory = memory
        self.ids: dict[str, str] = {}

    async def draw(self, *edges: str) -> None:
        for edge in edges:
            source, target, kind, weight = edge.split()
            for name in (source, target):
                if name not in self.ids:
                    self.ids[name] = (await self.memory.store({"name": name}, context_type=FACT)).node_id
            await self.memory.relate(self.ids[source], self.ids[target], kind, weight=float(weight))

    def told(self, found: list[Neighbour]) -> str:
        names = {node_id: name for name, node_id in self.ids.items()}
        return " ".join(f"{names[one.node.node_id]}{one.depth}" for one in found)


@pytest.fixture
async def graph(ann: UserMemory) -> Graph:
    """a leads to b and c, b to d, d to e, e back to a; f relates to a."""
    graph = Graph(ann)
    await graph.draw(
        "a b led_to 1", "a c led_to 5", "b d led_to 1", "d e refines 1", "e a led_to 1", "f a relates_to 3"
    )
    return graph


@pytest.mark.parametrize(
    ("direction", "depth", "told"),
    [
        ("out", 1, "c1 b1"),
        ("out", 2, "c1 b1 d2"),
        ("out", 3, "c1 b1 d2 e3"),
        ("out", 8, "c1 b1 d2 e3"),
        ("in", 1, "f1 e1"),
        ("in", 2, "f1 e1 d2"),
        ("both", 1, "c1 f1 b1 e1"),
        ("both", 2, "c1 f1 b1 e1 d2"),
    ],
)
async def test_neighbours_come_nearest_first_then_heaviest(
    graph: Graph, direction: Direction, depth: int, told: str
) -> None:
    found = await graph.memory.neighbours(graph.ids["a"], depth=depth, direction=direction)
    # b and e are equally heavy; the order of equals is that of their ids.
    equals = sorted(["b", "e"], key=lambda name: graph.ids[name])
    expected = told.replace("b1 e1", " ".join(f"{name}1" for name in equals))
    assert graph.told(found) == expected


async def test_the_nearest_in_both_directions_come_unless_asked_otherwise(graph: Graph) -> None:
    found = await graph.memory.neighbours(graph.ids["a"])
    assert {one.depth for one in found} == {1}
    assert len(found) == 4
    assert found == await graph.memory.neighbours(graph.ids["a"], depth=1, types=None, direction="both", limit=100)


@pytest.mark.parametrize(
    ("types", "told"),
    [
        (["led_to"], "c1 b1 d2"),
        (("led_to", "refines"), "c1 b1 d2 e3"),
        ({"refines"}, ""),
        (["relates_to"], ""),
        (["unknown"], ""),
    ],
)
async def test_only_the_types_asked_for_are_followed(graph: Graph, types: list[str], told: str) -> None:
    found = await graph.memory.neighbours(graph.ids["a"], depth=8, types=types, direction="out")
    assert graph.told(found) == told


@pytest.mark.parametrize(("limit", "told"), [(1, "c1"), (2, "c1 b1"), (3, "c1 b1 d2"), (1000, "c1 b1 d2 e3")])
async def test_a_limit_keeps_the_first(graph: Graph, limit: int, told: str) -> None:
    assert graph.told(await graph.memory.neighbours(graph.ids["a"], depth=8, direction="out", limit=limit)) == told


async def test_a_neighbour_tells_by_which_relationship_it_was_reached(graph: Graph) -> None:
    (_, _, far) = await graph.memory.neighbours(graph.ids["a"], depth=2, direction="out")
    assert far.node.content == {"name": "d"}
    assert (far.relationship.source_id, far.relationship.target_id) == (graph.ids["b"], graph.ids["d"])
    assert (far.relationship.relationship_type, far.relationship.weight, far.depth) == ("led_to", 1.0, 2)


async def test_of_several_relationships_the_heaviest_leads_there(ann: UserMemory) -> None:
    graph = Graph(ann)
    await graph.draw("a b led_to 1", "a b refines 7", "b a answers 3")
    (only,) = await ann.neighbours(graph.ids["a"])
    assert (only.relationship.relationship_type, only.relationship.weight) == ("refines", 7.0)
    (back,) = await ann.neighbours(graph.ids["a"], direction="in")
    assert back.relationship.relationship_type == "answers"


async def test_a_node_is_no_neighbour_of_its_own(ann: UserMemory) -> None:
    graph = Graph(ann)
    await graph.draw("a a led_to 1", "a b led_to 1", "b a led_to 1")
    assert graph.told(await ann.neighbours(graph.ids["a"], depth=8)) == "b1"


async def test_a_node_reached_by_two_ways_counts_by_the_shorter(ann: UserMemory) -> None:
    graph = Graph(ann)
    await graph.draw("a b led_to 1", "b c led_to 9", "a c led_to 1")
    assert {one.depth for one in await ann.neighbours(graph.ids["a"], depth=3, direction="out")} == {1}


async def test_no_way_leads_over_what_is_deleted_or_expired(ann: UserMemory, clock: HandClock) -> None:
    graph = Graph(ann)
    await graph.draw("a b led_to 1", "b c led_to 1", "a d led_to 1", "d e led_to 1")
    short = await ann.store({"name": "b"}, context_type=FACT, node_id=graph.ids["b"], ttl=timedelta(seconds=1))
    assert graph.told(await ann.neighbours(graph.ids["a"], depth=2, types=["led_to"])).count("2") == 2
    await ann.delete(graph.ids["d"])
    clock.advance(timedelta(seconds=1))
    assert await ann.get(short.node_id) is None
    assert await ann.neighbours(graph.ids["a"], depth=8) == []
    assert await ann.neighbours(graph.ids["d"], depth=8) == []


async def test_a_node_that_is_not_there_has_no_neighbours(ann: UserMemory) -> None:
    assert await ann.neighbours(ABSENT) == []
    await Graph(ann).draw("a b led_to 1")
    assert await ann.neighbours(ABSENT) == []


async def test_a_relationship_follows_its_node_back_only_when_it_is_made_again(ann: UserMemory) -> None:
    graph = Graph(ann)
    await graph.draw("a b led_to 1")
    await ann.delete(graph.ids["b"])
    await ann.store({"name": "b"}, context_type=FACT, node_id=graph.ids["b"])
    assert await ann.neighbours(graph.ids["a"]) == []
    await graph.draw("a b led_to 4")
    assert graph.told(await ann.neighbours(graph.ids["a"])) == "b1"


@pytest.mark.parametrize("depth", [0, -1, 9, 2**63, True, 1.0, "1", None])
async def test_a_depth_lies_between_1_and_8(graph: Graph, depth: int) -> None:
    with pytest.raises(InvalidInput, match="depth"):
        await graph.memory.neighbours(graph.ids["a"], depth=depth)
