"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.graph import JsonValue

State: TypeAlias = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at: `warn` works with less, `fail` does not work or is not safe; `fix` says what to do."""

    name: str
    state: State
    detail: str
    fix: str = ""

    def as_json(self) -> dict[str, JsonValue]:
        """The finding of a document."""
        return {"name": self.name, "state": self.state, "detail": self.detail, "fix": self.fix}


def ok(name: str, detail: str) -> Finding:
    """All is well."""
    return Finding(name=name, state="ok", detail=detail)


def warn(name: str, detail: str, fix: str) -> Finding:
    """It works, with less."""
    return Finding(name=name, state="warn", detail=detail, fix=fix)


def fail(name: str, detail: str, fix: str) -> Finding:
    """It does not work, or is not safe."""
    return Finding(name=name, state="fail", detail=detail, fix=fix)


def failed(name: str, error: HybridMemoryError) -> Finding:
    """What an error means for a check."""
    return fail(name, error.message, error.fix)
