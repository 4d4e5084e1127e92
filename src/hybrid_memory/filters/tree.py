"""The tree that a filter is parsed into, and the limits it keeps.

It holds two-valued tests only: what the language says of absence has become `EXISTS`, `All`, `AnyOf` and `Not`. A
compiler for a database has to make each single condition false, not NULL, where there is no value, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

MAX_CONDITIONS: Final = 256
MAX_NESTING: Final = 16
"""How deep `and`, `or` and `not` may stand in one another."""
MAX_OPERANDS: Final = 1000
MAX_OPERAND_BYTES: Final = 1 << 16
MAX_KEY_BYTES: Final = 1 << 10

Scalar: TypeAlias = bool | int | float | str


class Column(StrEnum):
    """What a filter may name beside the content; nothing else reaches a database as a name."""

    NAMESPACE = "namespace"
    KEY = "key"
    CONTEXT_TYPE = "context_type"
    SUMMARY = "summary"
    TAGS = "tags"
    IMPORTANCE = "importance"
    ENTITY_SYSTEM = "entity_system"
    ENTITY_ID = "entity_id"
    ENTITY_TYPE = "entity_type"
    SESSION_ID = "session_id"
    SOURCE_AGENT = "source_agent"
    CREATED_AT = "created_at"
    UPDATED_AT = "updated_at"
    EXPIRES_AT = "expires_at"
    TEXT_CONTENT = "text_content"


class Op(StrEnum):
    """The tests that are left after parsing; each is false of what is absent."""

    IN = "in"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    CONTAINS = "contains"
    PREFIX = "prefix"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonPath:
    """The value under these keys of the content, one inside the other."""

    keys: tuple[str, ...]


Target: TypeAlias = Column | JsonPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One test: `IN` has one operand or more of any kinds, `EXISTS` none, the others one. Times are microseconds."""

    target: Target
    op: Op
    operands: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class All:
    """True when every part is; without parts, true of everything."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOf:
    """True when at least one part is."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """True when the part is false."""

    part: Predicate


Predicate: TypeAlias = Condition | All | AnyOf | Not
