"""What the command line may ask of a manager, and the answers: the same in process and over the socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from typing import Annotated, Final, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hybrid_memory.changes import Operation
from hybrid_memory.clock import from_us
from hybrid_memory.errors import InvalidInput
from hybrid_memory.graph import JsonValue
from hybrid_memory.health import Health
from hybrid_memory.messages import DeadLetter, QueueState
from hybrid_memory.ports import DeadLetters, HotTier, Outbox

LONGEST_WAIT_SECONDS: Final = 5.0
"""How long one call may wait; who wants to wait longer calls again, and sees how far it has come."""
MOST_ROWS: Final = 1_000
"""How many rows one answer holds at most."""

Data = dict[str, JsonValue]


class Asked(Protocol):
    """The manager as the desk sees it."""

    @property
    def dead_letters(self) -> DeadLetters:
        """What Postgres would never take."""
        ...

    async def health(self) -> Health:
        """How the manager is."""
        ...

    def queue(self) -> QueueState:
        """The durable queue."""
        ...

    async def drain(self, within: timedelta) -> int:
        """Wake the relay and wait; returns how many operations are left."""
        ...

    async def forget(self, user_id: str) -> Mapping[str, int]:
        """Erase a user; returns how many rows were removed from which table."""
        ...


class _Arguments(BaseModel):
    """The arguments of all calls; each takes those it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user_id: str | None = None
    op_ids: list[str] | None = None
    after_seq: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=MOST_ROWS)] = 100
    within: Annotated[float, Field(ge=0, le=LONGEST_WAIT_SECONDS)] = 0.0


class Desk:
    """Answers calls. Nothing it says holds memory text."""

    def __init__(self, manager: Asked, *, hot: HotTier, outbox: Outbox) -> None:
        self._manager = manager
        self._hot = hot
        self._outbox = outbox
        self._calls: Mapping[str, Callable[[_Arguments], Awaitable[Data]]] = {
            "status": self._status,
            "users": self._users,
            "outbox_list": self._outbox_list,
            "outbox_retry": self._outbox_retry,
            "outbox_drain": self._outbox_drain,
            "dead_letters_list": self._dead_letters_list,
            "dead_letters_retry": self._dead_letters_retry,
            "dead_letters_discard": self._dead_letters_discard,
            "forget": self._forget,
            "queued": self._queued,
        }

    async def answer(self, call: str, arguments: Mapping[str, JsonValue]) -> Data:
        """Do what is asked and tell the outcome.

        Raises `InvalidInput` for a call or an argument that is not known, and what the manager raises.
        """
        known = self._calls.get(call)
        if known is None:
            raise InvalidInput("call", "is not one that this process knows")
        try:
            checked = _Arguments.model_validate(dict(arguments))
        except ValidationError as refused:
            first = refused.errors(include_input=False)[0]
            raise InvalidInput(".".join(map(str, first["loc"])) or "arguments", first["msg"]) from None
        return await known(checked)

    async def _status(self, _: _Arguments) -> Data:
        return {"pid": os.getpid(), "health": _health(await self._manager.health())}

    async def _users(self, _: _Arguments) -> Data:
        return {"users": [cursor.user_id for cursor in self._hot.cursors()]}

    async def _outbox_list(self, arguments: _Arguments) -> Data:
        operations = self._outbox.claim(after_seq=arguments.after_seq, limit=arguments.limit, user_id=arguments.user_id)
        queue = self._manager.queue()
        return {"queued": queue.entries, "operations": [_operation(operation) for operation in operations]}

    async def _outbox_retry(self, _: _Arguments) -> Data:
        return {"queued": await self._manager.drain(timedelta()), "relay": _relay_in(await self._manager.health())}

    async def _outbox_drain(self, arguments: _Arguments) -> Data:
        left = await self._manager.drain(timedelta(seconds=arguments.within))
        health = await self._manager.health()
        return {"queued": left, "relay": _relay_in(health), "drain_seconds": health.drain_seconds}

    async def _dead_letters_list(self, arguments: _Arguments) -> Data:
        letters = await self._manager.dead_letters.list()
        return {"dead_letters": len(letters), "letters": [_letter(letter) for letter in letters[: arguments.limit]]}

    async def _dead_letters_retry(self, arguments: _Arguments) -> Data:
        count = await self._manager.dead_letters.retry(arguments.op_ids)
        # Waiting for nothing wakes the relay.
        return {"count": count, "queued": await self._manager.drain(timedelta())}

    async def _dead_letters_discard(self, arguments: _Arguments) -> Data:
        return {"count": await self._manager.dead_letters.discard(arguments.op_ids)}

    async def _forget(self, arguments: _Arguments) -> Data:
        removed = await self._manager.forget(_named(arguments))
        return {"removed": dict(removed)}

    async def _queued(self, arguments: _Arguments) -> Data:
        return {"queued": self._hot.queued_of(_named(arguments)), "relay": _relay_in(await self._manager.health())}


def _relay_in(health: Health) -> str:
    """How the relay is: `ok`, `off` without a Postgres, else why nothing is carried."""
    return health.services.get("relay", "off")


def _named(arguments: _Arguments) -> str:
    if arguments.user_id is None:
        raise InvalidInput("user_id", "is needed")
    return arguments.user_id


def _health(health: Health) -> Data:
    return {field.name: _plain(getattr(health, field.name)) for field in fields(health)}


def _plain(value: object) -> JsonValue:
    """A member of a health as JSON: words that are enums become plain strings, tuples lists."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    return cast("JsonValue", value)


def _operation(operation: Operation) -> Data:
    return {
        "seq": operation.seq,
        "op_id": operation.op_id,
        "user_id": operation.user_id,
        "kind": str(operation.kind),
        "entity_id": operation.entity_id,
        "accepted_at": from_us(operation.accepted_at).isoformat(),
        "bytes": len(operation.payload.encode()),
    }


def _letter(letter: DeadLetter) -> Data:
    return {
        **_operation(letter.operation),
        "died_at": from_us(letter.died_at).isoformat(),
        "sqlstate": letter.sqlstate,
        "reason": letter.reason,
    }
