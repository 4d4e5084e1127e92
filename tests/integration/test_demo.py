from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import structlog
from rich.console import Console

from hybrid_memory.cli.demo import add_arguments, run
from hybrid_memory.cli.demo.errand import Errand, Reply, Search, Timed, Walk, WrittenLink, WrittenMemory
from hybrid_memory.cli.demo.memories import fingerprint
from hybrid_memory.cli.demo.second_session import SecondSession, main
from hybrid_memory.graph import JsonValue
from hybrid_memory.manager import HybridMemoryManager
from tests.integration.embedded_support import erase
from tests.plugins.postgres import Database
from tests.support.histories import History
from tests.unit.test_demo_sources import LOCOMO, MESSAGES

pytestmark = pytest.mark.direct("an administrator's commands go directly")


@pytest.fixture
def as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def arguments(*given: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(one) for one in given])


async def told(*given: str | Path, terminal: bool = False) -> tuple[dict[str, JsonValue], str]:
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    data = await run(arguments(*given), console)
    return data, cast("io.StringIO", console.file).getvalue()


async def test_a_git_history_survives_the_death_of_postgres_and_is_found_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History.begun(tmp_path / "project")
    for number in range(12):
        history.commit(f"Teach it trick {number}", f"trick{number % 3}.txt", author=f"A{number % 2} <a{number % 2}@b>")
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))

    data, shown = await told("--repo", history.folder, terminal=True)

    assert data["ok"] is True
    assert data["stored"] == data["found"] == 1 + 12 + 2 + 3
    assert cast("int", data["written_in_outage"]) > 0
    assert data["written_in_outage"] == data["present_after"] == data["pending_in_outage"] == data["durable_after"]
    assert cast("dict[str, JsonValue]", data["digests"])["equal"] is True
    assert cast("int", data["questions"]) > 3
    assert data["questions"] == data["evidence_in_first_10"]
    steps = cast("list[dict[str, JsonValue]]", data["steps"])
    assert {"kill Postgres (-9) while writing", "second process: find by id"} <= {str(step["name"]) for step in steps}
    assert "everything acknowledged is there" in shown
    assert list((tmp_path / "t").iterdir()) == []
    assert json.loads(json.dumps(data)) == data


async def test_a_history_of_one_commit_has_an_outage_too(tmp_path: Path) -> None:
    history = History.begun(tmp_path / "project")
    history.commit("Begin", "a.txt")
    data, _ = await told("--repo", history.folder)
    assert data["ok"] is True
    assert data["stored"] == data["found"] == 4
    assert data["present_after"] == data["written_in_outage"] == 6


async def test_a_conversation_learned_twice_is_still_there_once(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(json.dumps(LOCOMO))
    place = tmp_path / "kept"
    try:
        for _ in range(2):
            data, shown = await told("--transcript", tmp_path / "talk.json", "--data-dir", place)
            assert data["ok"] is True
            assert data["stored"] == data["found"] == 2
            assert (data["questions"], data["with_evidence"], data["evidence_in_first_10"]) == (2, 1, 1)
            assert f"kept in {place}" in shown.replace("\n", "")
        assert {path.name for path in place.glob("slot-*.db")} == {"slot-00.db", "slot-01.db"}
    finally:
        await erase(place / "postgres")


async def test_a_server_of_others_is_not_killed(tmp_path: Path, postgres: Database) -> None:
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(message) for message in MESSAGES))
    data, shown = await told("--transcript", tmp_path / "chat.jsonl", "--dsn", postgres.app_dsn)
    assert data["ok"] is True
    assert data["outage"] == "skipped"
    assert data["written_in_outage"] == 0
    assert data["stored"] == data["found"] == len(MESSAGES)
    assert "was not killed" in shown


async def test_what_is_missing_or_altered_is_not_counted_as_found(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(data_dir=tmp_path / "d", postgres="off") as manager:
        user = manager.user("ann")
        kept = await user.store({"text": "tea", "session": "s"}, context_type="conversation_fact")
        altered = await user.store({"text": "milk", "session": "s"}, context_type="conversation_fact")
        mute = await user.store({"text": "!", "session": "s"}, context_type="conversation_fact")
        await user.relate(kept.node_id, altered.node_id, "led_to")
        where = {"content.session": "s"}

        def memory(node_id: str, text: str, words: str) -> WrittenMemory:
            content = fingerprint({"text": text, "session": "s"}, entity=False)
            return WrittenMemory(
                node_id=node_id,
                fingerprint=content,
                entity=False,
                counted=True,
                in_outage=True,
                words=words,
                where=where,
            )

        def link(source: str, target: str) -> WrittenLink:
            return WrittenLink(source_id=source, kind="led_to", target_id=target, main_id=kept.node_id, in_outage=True)

        gone = "00000000-0000-4000-8000-000000000000"
        errand = Errand(
            dsn="",
            data_dir=tmp_path,
            user_id="ann",
            memories=[
                memory(kept.node_id, "tea", "tea"),
                memory(kept.node_id, "tea", "coffee"),  # there, but no search for it finds it
                memory(altered.node_id, "cream", "cream"),
                memory(mute.node_id, "!", "!"),
                memory(gone, "tea", "tea"),
            ],
            links=[link(kept.node_id, altered.node_id), link(kept.node_id, mute.node_id)],
            questions=[
                Search(text="tea", where={}, expected=[gone], scored=True),
                Walk(
                    text="then?",
                    start_id=kept.node_id,
                    kinds=["led_to"],
                    direction="out",
                    depth=1,
                    answers="nearest",
                    expected=[altered.node_id],
                ),
            ],
        )
        answers = await SecondSession(user, errand).answer(Timed(name="load", count=0, ms=0))
    assert (answers.found, answers.wordless) == (2, 1)
    assert answers.present_after == 3 + 1
    assert set(answers.missing) == {kept.node_id, altered.node_id, gone, f"{kept.node_id} led_to {mute.node_id}"}
    assert [answer.right for answer in answers.answers] == [False, True]


@pytest.mark.usefixtures("as_before")
def test_the_second_process_tells_its_trouble_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errand = Errand(dsn="x", data_dir=tmp_path / ("no" * 200), user_id="ann", memories=[], links=[], questions=[])
    stdin = io.TextIOWrapper(io.BytesIO(errand.model_dump_json().encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main() == 1
    reply = Reply.model_validate_json(capsys.readouterr().out)
    assert reply.answers is None
    assert reply.trouble is not None
    assert reply.trouble.code == "storage_failed"
