"""The typed way to write a filter. It only writes down what is meant; `parse` checks it like any dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, cast

Value: TypeAlias = str | float | bool | datetime


@dataclass(frozen=True, slots=True)
class Where:
    """A filter that can be joined to others: `a & b`, `a | b`, `~a`."""

    given: Mapping[str, object]
    """The same filter as a dict."""

    def __and__(self, other: Where) -> Where:
        return _joined("and", self, other)

    def __or__(self, other: Where) -> Where:
        return _joined("or", self, other)

    def __invert__(self) -> Where:
        return Where({"not": self})


Filter: TypeAlias = Mapping[str, object] | Where
"""What a caller may hand in as a filter."""


def _joined(word: str, *filters: Where) -> Where:
    # A chain of one operator stays one list, so that its length does not count as nesting.
    parts: list[object] = []
    for one in filters:
        same = one.given.get(word)
        parts.extend(cast("list[object]", same) if isinstance(same, list) else [one])
    return Where({word: parts})


@dataclass(frozen=True, slots=True)
class Field:
    """A column or a value inside the content, to be tested; each test gives a `Where`."""

    path: tuple[str, ...]

    def eq(self, value: Value | None) -> Where:
        """Equal; None asks for what is absent."""
        return self._where("eq", value)

    def ne(self, value: Value | None) -> Where:
        """The opposite of `eq`, absent values included."""
        return self._where("ne", value)

    def __gt__(self, value: Value) -> Where:
        return self._where("gt", value)

    def __ge__(self, value: Value) -> Where:
        return self._where("gte", value)

    def __lt__(self, value: Value) -> Where:
        return self._where("lt", value)

    def __le__(self, value: Value) -> Where:
        return self._where("lte", value)

    def is_in(self, values: Iterable[Value | None]) -> Where:
        """Equal to one of the values."""
        return self._where("in", list(values))

    def not_in(self, values: Iterable[Value | None]) -> Where:
        """The opposite of `is_in`."""
        return self._where("nin", list(values))

    def contains(self, value: Value) -> Where:
        """Has this tag, this list element or this part of a string."""
        return self._where("contains", value)

    def prefix(self, value: str) -> Where:
        """A string that begins so."""
        return self._where("prefix", value)

    def exists(self) -> Where:
        """Has a value; `~field(...).exists()` for the opposite."""
        return self._where("exists", True)  # noqa: FBT003 - the operand of the operator, not an option

    def _where(self, op: str, value: object) -> Where:
        return Where({"path": list(self.path), "op": op, "value": value})


def field(name: str, *keys: str) -> Field:
    """`field("importance")`, `field("content.status")`, or with literal keys `field("content", "a.b")`."""
    return Field((name, *keys) if keys else tuple(name.split(".")))
