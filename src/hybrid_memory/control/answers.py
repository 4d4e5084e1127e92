"""What is said for a call: data, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.graph import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as it is told to another process or program; it holds no memory text and no secret."""

    code: str
    message: str
    retryable: bool = False
    fix: str = ""

    @classmethod
    def of(cls, error: HybridMemoryError) -> Self:
        """The failure that an error is."""
        return cls(code=error.code, message=error.message, retryable=error.retryable, fix=error.fix)

    def as_json(self) -> dict[str, JsonValue]:
        """The error of a document."""
        return {"code": self.code, "message": self.message, "retryable": self.retryable, "fix": self.fix}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a call: `data` counts only where there is no failure."""

    data: dict[str, JsonValue]
    failure: Failure | None = None
