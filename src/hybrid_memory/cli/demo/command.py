"""`hybrid-memory demo`: its arguments, where its databases stand, and what it returns."""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import structlog
from rich.console import Console
from rich.text import Text

from hybrid_memory.cli.demo import report
from hybrid_memory.cli.demo.git_lesson import GitLesson
from hybrid_memory.cli.demo.git_log import Repository
from hybrid_memory.cli.demo.memories import Lesson
from hybrid_memory.cli.demo.own_server import ForeignServer, OwnServer, Server
from hybrid_memory.cli.demo.steps import Steps
from hybrid_memory.cli.demo.story import Outcome, Story
from hybrid_memory.cli.demo.transcript import read_conversations
from hybrid_memory.cli.demo.transcript_lesson import TranscriptLesson
from hybrid_memory.errors import InvalidInput, StorageFailed
from hybrid_memory.graph import JsonValue

DEFAULT_LIMIT: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The arguments, typed."""

    repo: Path
    transcript: Path | None
    limit: int
    data_dir: Path | None
    dsn: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's arguments."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--repo", type=Path, metavar="PATH", help="learn this git repository (default: the one you stand in)"
    )
    source.add_argument(
        "--transcript", type=Path, metavar="FILE", help="learn conversations: messages as JSON or JSONL, or LoCoMo"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help="learn the newest N commits (default: %(default)s)",
    )
    # Absent unless given, so that a parser around this one may know the same options.
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="keep SQLite files and Postgres there (default: throw them away)",
    )
    parser.add_argument(
        "--dsn",
        default=argparse.SUPPRESS,
        help="use this migrated Postgres, which is then not killed (default: an embedded one of its own)",
    )


async def run(arguments: argparse.Namespace, console: Console) -> dict[str, JsonValue]:
    """Run the demo, show it on the console, and return its data; `ok` is whether every promise was kept."""
    wishes = _wishes(arguments)
    lesson = await _lesson(wishes)
    console.print(Text.assemble("Learning ", (lesson.title, "bold")))
    with _quiet_logs(), Steps(console) as steps:
        async with _data_dir(wishes) as data_dir, AsyncExitStack() as stack:
            server: Server
            if wishes.dsn is not None:
                server = ForeignServer(dsn=wishes.dsn)
            else:
                with steps.step("start a Postgres"):
                    server = await stack.enter_async_context(OwnServer.started(data_dir))
            outcome = await Story(lesson, steps, server, data_dir).tell()
    notes = [*lesson.notes, *([] if wishes.data_dir is None else [f"kept in {wishes.data_dir}"])]
    report.show(console, outcome, steps.taken, notes)
    return _data(outcome, steps, lesson, notes)


def _wishes(arguments: argparse.Namespace) -> Wishes:
    given = cast("dict[str, object]", vars(arguments))
    repo, transcript, data_dir = (given.get(name) for name in ("repo", "transcript", "data_dir"))
    limit, dsn = given.get("limit", DEFAULT_LIMIT), given.get("dsn")
    if not isinstance(limit, int) or limit < 1:
        raise InvalidInput("limit", "must be a positive whole number")
    return Wishes(
        repo=repo if isinstance(repo, Path) else Path(),
        transcript=transcript if isinstance(transcript, Path) else None,
        limit=limit,
        data_dir=data_dir if isinstance(data_dir, Path) else None,
        dsn=dsn if isinstance(dsn, str) else None,
    )


async def _lesson(wishes: Wishes) -> Lesson:
    if wishes.transcript is not None:
        conversations = await asyncio.to_thread(read_conversations, wishes.transcript)
        return TranscriptLesson(conversations, name=wishes.transcript.stem)
    return GitLesson(await Repository.open(wishes.repo), limit=wishes.limit)


@asynccontextmanager
async def _data_dir(wishes: Wishes) -> AsyncGenerator[Path]:
    """The directory wished for, or one for this run alone."""
    if wishes.data_dir is not None:
        await asyncio.to_thread(_make_private, wishes.data_dir)
        yield wishes.data_dir
        return
    with tempfile.TemporaryDirectory(prefix="hybrid-memory-demo-") as folder:
        try:
            yield Path(folder)
        finally:
            if wishes.dsn is None:
                await OwnServer.erase(Path(folder))


def _make_private(folder: Path) -> None:
    """Make the folder if needed and close it to others, as the manager would do once Postgres has found its place."""
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise StorageFailed(
            f"cannot use the data directory: {error.strerror}", fix="name a folder of your own with --data-dir"
        ) from None


@contextmanager
def _quiet_logs() -> Generator[None]:
    """Say only what nobody expected: that Postgres is away is the point of this."""
    configured, former = structlog.is_configured(), structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        if configured:
            structlog.configure(**former)
        else:
            structlog.reset_defaults()


def _data(outcome: Outcome, steps: Steps, lesson: Lesson, notes: list[str]) -> dict[str, JsonValue]:
    answers = outcome.answers
    scored = [answer for answer in answers.answers if answer.scored]
    recall = sum(answer.recall for answer in scored) / len(scored) if scored else None
    return {
        "ok": outcome.ok,
        "stored": outcome.stored,
        "found": answers.found,
        "questions": len(answers.answers),
        "written_in_outage": outcome.written_in_outage,
        "present_after": answers.present_after,
        "digests": {
            "hot": outcome.hot,
            "durable": outcome.durable,
            "second_process": answers.digest,
            "equal": outcome.equal,
        },
        "steps": [{"name": step.name, "count": step.count, "ms": step.ms} for step in steps.taken],
        "source": lesson.title,
        "user_id": lesson.user_id,
        "outage": "killed" if outcome.outage else "skipped",
        "relationships": outcome.relationships,
        "acknowledged": outcome.acknowledged,
        "pending_in_outage": outcome.pending_in_outage,
        "durable_after": outcome.durable_after,
        "without_words": answers.wordless,
        "with_evidence": len(scored),
        "evidence_in_first_10": sum(answer.right for answer in scored),
        "recall_at_10": None if recall is None else round(recall, 4),
        "read_p50_us": dict(outcome.read_us),
        "missing": list(answers.missing),
        "notes": list(notes),
    }
