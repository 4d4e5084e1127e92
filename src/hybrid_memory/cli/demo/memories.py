"""What a demo learns, before it has ids: facts, entities and links, an episode at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from hybrid_memory import validation
from hybrid_memory.errors import InvalidInput
from hybrid_memory.graph import Direction, JsonInput
from hybrid_memory.jsontext import encode

# A commit message or a pasted document longer than this says nothing more to a demo; contents may have 1 MiB.
MAX_TEXT_CHARACTERS: Final = 64 * 1024
# What is left of a name that is no identifier, before its fingerprint; normalising it to NFC may triple it.
_KEPT_BYTES: Final = 128
_ENTITY_NAMES: Final = frozenset({"entity_system", "entity_id", "entity_type", "entity_name"})
_WORD: Final = re.compile(r"[^\W_]")

Ref: TypeAlias = str
"""The name of a memory within one run of the demo, until storing it has given it an id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something said or done. `words` is what the second session searches it by, in the scope of `where`."""

    ref: Ref
    context_type: str
    content: Mapping[str, JsonInput]
    namespace: str
    key: str
    tags: tuple[str, ...] = ()
    words: str = ""
    where: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """Somebody or something that facts are about."""

    ref: Ref
    system: str
    entity_id: str
    entity_type: str
    name: str
    data: Mapping[str, JsonInput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A relationship; one of its ends is the main memory of its episode."""

    source: Ref
    kind: str
    target: Ref
    properties: Mapping[str, JsonInput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What is learned at once: a memory, those it needs that were not there yet, and how they hang together."""

    main: Ref
    memories: tuple[Fact | Entity, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuestion:
    """A question answered by search: right when one of `expected` is among the first ten."""

    text: str
    where: Mapping[str, str]
    expected: tuple[Ref, ...]
    scored: bool = True
    """Whether it counts for recall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkQuestion:
    """A question answered by walking the graph: right when all of `expected` are reached."""

    text: str
    start: Ref
    kinds: tuple[str, ...]
    direction: Direction
    depth: int
    answers: Literal["nearest", "farthest"]
    """Which of the nodes reached are the answer."""
    expected: tuple[Ref, ...]


Question: TypeAlias = SearchQuestion | WalkQuestion


class Lesson(Protocol):
    """A source to learn from. Its first episode opens it, and at least one more follows."""

    @property
    def user_id(self) -> str:
        """Whose memory it becomes."""
        ...

    @property
    def title(self) -> str:
        """What is learned, for people."""
        ...

    @property
    def total(self) -> int:
        """How many episodes there are."""
        ...

    @property
    def counts_entities(self) -> bool:
        """Whether entities count as stored memories, or facts alone."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What was left out, and how to have it; complete once all episodes are out."""
        ...

    def episodes(self) -> AsyncGenerator[Episode]:
        """All of it, in the order in which it happened."""
        ...

    def questions(self) -> Sequence[Question]:
        """What to ask somebody who learned it; complete once all episodes are out."""
        ...


def identity(name: str) -> str:
    """The name as an identifier: itself where it may be one, else what is printable of it and a fingerprint."""
    try:
        return validation.identifier("name", name)
    except InvalidInput:
        fingerprint = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
        printable = "".join(character for character in name if character.isprintable())
        kept = printable.encode()[:_KEPT_BYTES].decode(errors="ignore").strip()
        return validation.identifier("name", f"{kept}~{fingerprint}")


def shortened(text: str) -> str:
    """The text as it is stored: without NUL, and cut where it is huge."""
    return text[:MAX_TEXT_CHARACTERS].replace("\0", "\ufffd")


def has_words(text: str) -> bool:
    """Whether there is anything in a text that a search could find it by."""
    return _WORD.search(text) is not None


def fingerprint(content: Mapping[str, JsonInput], *, entity: bool) -> str:
    """What shows that a memory is the one that was learned: all of a fact, and whom or what an entity stands for.

    The data of an entity may have been merged with what an earlier run knew.
    """
    told = {name: value for name, value in content.items() if not entity or name in _ENTITY_NAMES}
    return hashlib.sha256(encode(told).encode()).hexdigest()[:32]
