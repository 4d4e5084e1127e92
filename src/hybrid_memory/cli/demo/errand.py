"""What the first session tells the second process, and what it hears back: JSON over a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hybrid_memory.graph import Direction


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WrittenMemory(_Told):
    """A memory that was acknowledged. With `words` it must also be found by them, in the scope of `where`."""

    node_id: str
    fingerprint: str
    entity: bool
    counted: bool
    in_outage: bool
    words: str
    where: dict[str, str]


class WrittenLink(_Told):
    """A relationship that was acknowledged; it is looked for among the neighbours of `main`, one of its ends."""

    source_id: str
    kind: str
    target_id: str
    main_id: str
    in_outage: bool


class Search(_Told):
    """A question for search."""

    form: Literal["search"] = "search"
    text: str
    where: dict[str, str]
    expected: list[str]
    scored: bool


class Walk(_Told):
    """A question for the graph."""

    form: Literal["walk"] = "walk"
    text: str
    start_id: str
    kinds: list[str]
    direction: Direction
    depth: int
    answers: Literal["nearest", "farthest"]
    expected: list[str]


class Errand(_Told):
    """Open a session of your own, find all this, and answer."""

    dsn: str
    data_dir: Path
    user_id: str
    memories: list[WrittenMemory]
    links: list[WrittenLink]
    questions: list[Search | Walk]


class Timed(_Told):
    """A step, how many things it did, and how long it took."""

    name: str
    count: int
    ms: float


class Answer(_Told):
    """What came of a question; `recall` is the share of what was expected that was found."""

    question: str
    answer: str
    right: bool
    scored: bool
    recall: float
    ms: float


class Answers(_Told):
    """What the second process found in its own copy."""

    found: int
    wordless: int
    """Counted memories that hold nothing to search for: found by their id alone."""
    present_after: int
    missing: list[str]
    """The ids of the first few that were not found."""
    digest: str
    answers: list[Answer]
    steps: list[Timed]


class Trouble(_Told):
    """Why the second process could not do it."""

    code: str
    message: str
    fix: str
    retryable: bool


class Reply(_Told):
    """One of the two."""

    answers: Answers | None = None
    trouble: Trouble | None = None
