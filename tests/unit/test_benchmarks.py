"""The benchmarks' own promises: figures judged rightly, the report's shape, the exit codes, that they run at all."""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from statistics import median

import orjson
import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import feed, read_path, report
from benchmarks.figures import Better, Figure, LimitOn, rounded
from benchmarks.memories import Memories
from benchmarks.plan import TINY, Plan
from benchmarks.redis import connected
from hybrid_memory.changes import NodeRow, RelationshipRow
from hybrid_memory.jsontext import decode, encode

KEYS = {"name", "value", "unit", "reference", "reference_value", "ratio", "limit", "limit_on", "better", "pass"}


def figure(
    limit: float | None = None,
    *,
    better: Better = "lower",
    limit_on: LimitOn = "ratio",
    summary: Callable[[Sequence[float]], float] = median,
) -> Figure:
    return Figure(
        name="a.b",
        unit="ms",
        reference="something else",
        limit=limit,
        better=better,
        limit_on=limit_on,
        summary=summary,
    )


def plan() -> Plan:
    return Plan(rounds=1, seed=7, console=Console(file=StringIO()), sizes=TINY)


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_medians() -> None:
    judged = figure(limit=2.0)
    for ours, reference in ((10, 10), (30, 10), (100, 90)):
        judged.add(ours, reference)
    assert judged.value == 30
    assert judged.reference_value == 10
    assert judged.ratio == pytest.approx(100 / 90)
    assert judged.kept


@pytest.mark.parametrize(
    ("better", "limit_on", "limit", "kept"),
    [
        ("lower", "ratio", 2.0, True),
        ("lower", "ratio", 1.9, False),
        ("higher", "ratio", 2.0, True),
        ("higher", "ratio", 2.1, False),
        ("lower", "value", 20.0, True),
        ("lower", "value", 19.0, False),
        ("higher", "value", 20.0, True),
        ("lower", "ratio", None, True),
    ],
)
def test_a_limit_is_kept_up_to_and_including_itself(
    better: Better, limit_on: LimitOn, limit: float | None, *, kept: bool
) -> None:
    judged = figure(better=better, limit_on=limit_on, limit=limit)
    judged.add(20, 10)
    assert judged.kept is kept


def test_a_limit_on_a_ratio_without_a_reference_counts_as_missed() -> None:
    judged = figure(limit=2.0)
    judged.add(1)
    assert not judged.kept


def test_percentiles_are_of_single_calls_and_fall_back_on_rounds() -> None:
    judged = figure()
    judged.add(3, calls=range(101))
    assert [judged.percentile(share) for share in (0.5, 0.99, 1)] == [50, 99, 100]
    rounds_only = figure(summary=max)
    for value in (1, 5, 3):
        rounds_only.add(value)
    assert rounds_only.value == rounds_only.percentile(1) == 5


def test_the_report_has_the_shape_others_read() -> None:
    judged = figure(limit=2.0)
    judged.add(1.23456, 1)
    made = report.Report(seed=7, rounds=1, machine="a machine", commit="c0ffee", figures=[judged])
    document = made.document()
    assert (document["schema"], document["seed"], document["rounds"]) == (1, 7, 1)
    assert document["machine"] == "a machine"
    assert document["commit"] == "c0ffee"
    (told,) = orjson.loads(orjson.dumps(document))["figures"]
    assert told.keys() >= KEYS
    assert told["pass"] is True
    assert told["samples"] == [1.235]
    assert rounded(None) is None


def test_the_table_names_what_was_missed() -> None:
    judged = figure(limit=2.0)
    judged.add(3, 1)
    console = Console(file=StringIO(), width=200)
    report.Report(seed=1, rounds=1, machine="m", commit="", figures=[judged]).show(console)
    assert isinstance(console.file, StringIO)
    assert "MISSED" in console.file.getvalue()


def test_the_plot_draws_each_round_before_or_behind_the_limit() -> None:
    lower, higher, free = figure(limit=2.0), figure(better="higher", limit=2.0), figure()
    for value in (1, 3):
        lower.add(value, 1)
        higher.add(value, 1)
        free.add(value, 1)
    made = report.Report(seed=1, rounds=2, machine="m", commit="", figures=[lower, higher, free])
    title, first, second = made.plot()
    limit = title.index("|")
    assert [line.index("|") for line in (first, second)] == [limit, limit]
    # A half of the limit and one and a half of it; twice too little and half as much again as wanted.
    assert [(line[:limit].count("o"), line[limit:].count("o")) for line in (first, second)] == [(1, 1), (1, 1)]
    assert first.index("o") < second.index("o")
    assert report.Report(seed=1, rounds=2, machine="m", commit="", figures=[free]).plot() == []


def test_the_machine_is_told_by_its_class_and_not_by_its_name() -> None:
    told = report.machine("18.4")
    assert "PostgreSQL 18.4" in told
    assert "SQLite" in told
    assert platform.node() not in told


@pytest.mark.parametrize("arguments", [[], ["nothing_such"], ["read_path", "--rounds", "0"], ["read_path", "--what"]])
def test_wrong_usage_leaves_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "code"), [(2.0, 0), (0.5, 1)])
def test_the_exit_code_tells_whether_a_limit_was_missed(
    limit: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(_plan: Plan) -> list[Figure]:
        judged = figure(limit=limit)
        judged.add(1, 1)
        return [judged]

    monkeypatch.setitem(command.BENCHMARKS, "read_path", measured)
    file = tmp_path / "out.json"
    assert command.main(["read_path", "read_path", "--json", str(file), "--seed", "5", "--rounds", "2"]) == code
    document = orjson.loads(file.read_bytes())
    assert (document["seed"], document["rounds"], len(document["figures"])) == (5, 2, 1)


def test_a_document_on_standard_output_stands_there_alone(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(_plan: Plan) -> list[Figure]:
        sys.stdout.write("what a library says unasked")
        judged = figure()
        judged.add(1)
        return [judged]

    monkeypatch.setitem(command.BENCHMARKS, "outage", measured)
    assert command.main(["outage", "--json", "-"]) == 0
    assert orjson.loads(capsysbinary.readouterr().out)["figures"][0]["name"] == "a.b"


def test_made_up_memories_are_the_same_for_the_same_seed_and_of_the_size_promised() -> None:
    first, second = (list(Memories(plan().random("x")).nodes(50)) for _ in range(2))
    assert first == second
    sizes = [len(encode(Memories(plan().random(str(place))).content())) for place in range(20)]
    assert 350 < sum(sizes) / len(sizes) < 600


def test_made_up_rows_have_the_members_that_both_tiers_store() -> None:
    memories = Memories(plan().random("x"))
    (node,) = memories.nodes(1)
    (edge,) = memories.relationships([str(node[0])], 2)
    assert len(node) == len(_members(NodeRow))
    assert len(edge) == len(_members(RelationshipRow))
    named = dict(zip(_members(NodeRow), node, strict=True))
    assert isinstance(decode(str(named["content"])), dict)
    assert named["rev"] == 1


def _members(row: type) -> tuple[str, ...]:
    return tuple(name for name in row.__annotations__)


async def test_read_path_measures_every_figure_it_names() -> None:
    figures = {each.name: each for each in await read_path.run(plan())}
    assert figures.keys() >= {"read_path.get.c1", "read_path.get.c100", "read_path.get.n1m"}
    assert all(each.value > 0 and each.ratio for each in figures.values())


async def test_feed_measures_every_figure_it_names() -> None:
    figures = {each.name: each for each in await feed.run(plan())}
    assert figures.keys() == {"feed.lag_hint", "feed.lag_poll", "feed.write_cost"}
    assert all(each.value > 0 and each.ratio and each.limit for each in figures.values())


async def test_the_redis_reference_reads_what_it_stored(tmp_path: Path) -> None:
    stored: dict[bytes, bytes] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while count := await reader.readline():
            parts: list[bytes] = []
            for _ in range(int(count[1:])):
                size = int((await reader.readline())[1:])
                parts.append((await reader.readexactly(size + 2))[:-2])
            match parts:
                case [b"SET", key, value]:
                    stored[key] = value
                    writer.write(b"+OK\r\n")
                case [b"GET", key]:
                    writer.write(b"$%d\r\n%s\r\n" % (len(stored[key]), stored[key]))
                case _:
                    raise AssertionError(parts)
        writer.close()

    socket = tmp_path / "s"
    server = await asyncio.start_unix_server(serve, socket)
    async with server, connected(socket) as client:
        await client.set("key", b"a value\r\nof two lines")
        assert await client.get("key") == b"a value\r\nof two lines"
