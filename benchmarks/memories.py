"""Made-up memories of a realistic size, the same for the same seed: about 450 bytes of JSON each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from random import Random
from typing import TypeAlias

from hybrid_memory.changes import searchable_text
from hybrid_memory.clock import from_us
from hybrid_memory.graph import JsonInput
from hybrid_memory.jsontext import decode, encode

FlatRow: TypeAlias = "tuple[str | int | float | None, ...]"

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ki", "lo", "mu", "ne", "pa", "ri", "so", "tu", "ve", "za")
_BEGINNING_US = 1_750_000_000_000_000
# Contents repeat after so many: generating a million of them would take longer than loading them.
_DISTINCT = 4_096


class Memories:
    """A source of contents and rows."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._words = ["".join(random.choices(_SYLLABLES, k=random.randint(1, 4))) for _ in range(2_000)]
        self._pool: list[tuple[str, str, str]] = []

    def content(self) -> dict[str, JsonInput]:
        """A new content, as a caller would give it."""
        words = self._random.choices(self._words, k=52)
        return {
            "text": " ".join(words),
            "speaker": words[0],
            "confidence": round(self._random.random(), 4),
            "turn": self._random.randrange(10_000),
            "source": {"channel": "chat", "message": f"{self._random.getrandbits(64):016x}"},
        }

    def node_id(self, place: int) -> str:
        """A version 7 id; ids sort by `place`."""
        bits = self._random.getrandbits(74)
        text = f"{(_BEGINNING_US // 1000 + place):012x}7{bits >> 62:03x}{2 << 62 | bits & 0x3FFFFFFFFFFFFFFF:016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def nodes(self, count: int) -> Iterator[FlatRow]:
        """Nodes of one user, revisions from 1, in the order of `NodeRow`'s members."""
        if not self._pool:
            self._pool = [self._stored() for _ in range(_DISTINCT)]
        for place in range(count):
            content, text, row_hash = self._random.choice(self._pool)
            at = _BEGINNING_US + place * 1_000
            yield (
                self.node_id(place),
                "default",
                None,
                "conversation_fact",
                content,
                row_hash,
                text,
                None,
                '["benchmark"]',
                0.5,
                None,
                None,
                None,
                None,
                None,
                at,
                at,
                None,
                None,
                at << 12,
                place + 1,
            )

    def _stored(self) -> tuple[str, str, str]:
        content = encode(self.content())
        return content, searchable_text(decode(content)), f"{self._random.getrandbits(256):064x}"

    def relationships(self, node_ids: Sequence[str], first_rev: int) -> Iterator[FlatRow]:
        """As many relationships as nodes, in the order of `RelationshipRow`'s members."""
        for place, source in enumerate(node_ids):
            target = node_ids[self._random.randrange(len(node_ids))]
            at = _BEGINNING_US + place * 1_000
            yield (
                self.node_id(place),
                source,
                target,
                "relates_to",
                1.0,
                "{}",
                f"{self._random.getrandbits(256):064x}",
                None,
                None,
                at,
                at,
                None,
                at << 12,
                first_rev + place,
            )


def moment(value: str | float | None) -> datetime | None:
    """A flat row's time as Postgres drivers take it."""
    return None if value is None else from_us(int(value))
