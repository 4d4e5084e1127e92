"""The durable tier: operations become rows, exactly once, in the order of each user's queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Final, LiteralString, TypeAlias, TypeVar, cast

import asyncpg
import orjson

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.errors import Contended, Fenced, NumbersReused
from hybrid_memory.messages import (
    Applied,
    AppliedUser,
    BatchApplied,
    Disputed,
    Opening,
)
from hybrid_memory.payloads import erasure_told, related_nodes
from hybrid_memory.postgres import batches
from hybrid_memory.postgres.batches import UserChanges
from hybrid_memory.postgres.database import Connection, Link, Meet, PostgresSettings, Purpose, transaction
from hybrid_memory.postgres.deciding import Decided, Met, decide, told_again
from hybrid_memory.postgres.lock_waits import LockWaits
from hybrid_memory.postgres.losers import remember, unless_beaten
from hybrid_memory.postgres.openings import mark_met, note_openings
from hybrid_memory.postgres.roles import Capabilities, check_server
from hybrid_memory.postgres.standings import meet

T = TypeVar("T")

# The server gives up first, so that what came of a slow statement is known.
_HEAD_START: Final = timedelta(seconds=1)

# Each user's revision and epoch, in the order of the batch.
_Heads: TypeAlias = "tuple[Sequence[int], Sequence[str]]"


class PostgresDurableTier:
    """`DurableTier` on one connection: the relay has one batch on its way at a time."""

    def __init__(self, settings: PostgresSettings, meet: Meet | None = None) -> None:
        self._settings = settings
        purpose = Purpose(
            name="relay",
            deadline=settings.relay_deadline + _HEAD_START,
            statement_timeout=settings.relay_deadline,
        )
        self._link = Link(settings, purpose, meet=meet)
        self._locks = LockWaits(settings, purpose.lock_timeout)
        self._capabilities = Capabilities(server_version=0, pgvector=None)

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do, as the last handshake found it."""
        return self._capabilities

    async def handshake(self, opening: Opening) -> None:
        """Check the server, the schema and the role, and try whether a foreign row can be seen.

        Raises `RoleRefused`, `SchemaMismatch`, `Misconfigured`, `ReadOnly`, `Unreachable`; and `Fenced` is left to
        the first batch, as marks are per user.
        """
        self._capabilities = await self._link.run(check_server)
        await self._link.run(partial(note_openings, opening=opening))

    _APPLY_ONE: Final[LiteralString] = """
        select memory.apply_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    """
    _APPLY: Final[LiteralString] = """
        select revs, epochs::text[] as epochs
        from memory.apply(
            $1, $2, $3, $4, $5::text::bigint[], $6::text::bigint[], $7::text::bigint[], $8::text::bigint[],
            $9::text::bigint[], $10::text::bigint[], $11, $12, $13, $14)
    """

    async def apply(self, opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]) -> BatchApplied:
        """Apply many users' operations in one transaction and one round trip, all or nothing.

        Raises `Disputed`, then nothing was done; `OutcomeUnknown` when the answer was lost: sent again, the users'
        marks tell.
        """
        users = batches.by_user(operations)
        changes = batches.as_sent(users, erased)

        async def work(connection: Connection) -> _Heads:
            try:
                # Not in a transaction block: the statement is one, and carries its own mark.
                return await self._send(connection, opening, changes)
            except asyncpg.UniqueViolationError:
                raise Disputed(frozenset()) from None
            except asyncpg.PostgresError as refused:
                if refused.sqlstate in {"HM001", "HM002", "HM003"}:
                    raise Disputed(_concerned(refused.detail)) from None
                raise

        revs, epochs = await self._write(work, [user.user_id for user in changes])
        return batches.outcome(users, changes, revs, epochs)

    async def _send(self, connection: Connection, opening: Opening, changes: Sequence[UserChanges]) -> _Heads:
        if len(changes) == 1:
            arguments = batches.arguments_of_one(opening, changes[0])
            rev, epoch = _only(await connection.ask(self._APPLY_ONE, *arguments))[0]
            return [int(rev)], [epoch]
        head = _only(await connection.ask(self._APPLY, *batches.arguments(opening, changes)))
        return head["revs"], head["epochs"]

    async def decide(self, opening: Opening, operations: Sequence[Operation], erased_rev: int) -> BatchApplied:
        """Apply one user's operations, deciding conflicts by the merge rules; those already applied are only told.

        Raises `Fenced` when a later opening of the file, or of a copy of it, has sent something; `NumbersReused` when
        the mark is for other operations of the same numbers, which the file has lost.
        """

        async def work(connection: Connection) -> BatchApplied:
            async with transaction(connection):
                return await self._decide(connection, opening, operations, erased_rev)

        return await self._write(work, [operations[0].user_id])

    async def _decide(
        self, connection: Connection, opening: Opening, operations: Sequence[Operation], erased_rev: int
    ) -> BatchApplied:
        user_id = operations[0].user_id
        opened = await self._open_user(connection, opening, user_id)
        done = await _done(connection, opening, opened, operations)
        met = await meet(connection, user_id, operations)
        fresh = [operation for operation in operations if operation.seq > done]
        erased = {one.seq for one in operations if _before_erasure(one, opened, erased_rev)}
        if erased_rev < 0 and opened["erased_at"] is not None:
            erased |= _without_ends([one for one in fresh if one.seq not in erased], met)
        again = [
            told_again(one, met.standing(one), opening.client_id, erased=one.seq in erased)
            for one in operations
            if one.seq <= done
        ]
        told = await unless_beaten(connection, opening.client_id, user_id, again)
        decided = decide(fresh, met, opening.client_id, erased)
        revs: dict[int, int] = {}
        head_rev: int = opened["head_rev"]
        if decided:
            changes = UserChanges(
                user_id=user_id,
                first_seq=fresh[0].seq,
                last_seq=fresh[-1].seq,
                erased_rev=opened["erased_rev"],
                rows=tuple(one.change for one in decided if one.change is not None),
            )
            (head_rev,), _ = await self._send(connection, opening, [changes])
            changing = [one.operation.seq for one in decided if one.change is not None]
            revs = dict(zip(changing, range(opened["head_rev"] + 1, head_rev + 1), strict=True))
            await remember(connection, opening.client_id, user_id, decided)
        told += [Applied(one.operation, one.verdict, revs.get(one.operation.seq)) for one in decided]
        as_sent = len(decided) == len(operations) and all(map(_untouched, decided))
        return BatchApplied(
            operations=tuple(told),
            users=(AppliedUser(user_id, opened["epoch"], opened["head_rev"], head_rev, as_sent),),
        )

    _OPEN_USER: Final[LiteralString] = """
        select head_rev, epoch::text as epoch, erased_rev, erased_at, last_seq, open_number,
               open_token::text as open_token, own_erase_seq, own_erased_over, own_erased_rev
        from memory.open_user($1, $2)
    """

    async def _open_user(self, connection: Connection, opening: Opening, user_id: str) -> asyncpg.Record:
        """Lock the user's head and our mark on it. Raises `Fenced`."""
        opened = _only(await connection.fetch(self._OPEN_USER, opening.client_id, user_id))
        number: int | None = opened["open_number"]
        if number is not None and (
            number > opening.number or (number == opening.number and opened["open_token"] != opening.token)
        ):
            raise Fenced(
                f"opening {opening.number} of this file was followed by opening {number}",
                fix="let the later process go on; a copied data directory needs a client id of its own",
            )
        return opened

    _LIMIT: Final[LiteralString] = "select set_config('statement_timeout', $1, true)"
    _ERASE: Final[LiteralString] = "select erased_rev from memory.erase($1, $2, $3, $4, $5)"

    async def erase(self, opening: Opening, operation: Operation) -> int:
        """Erase a user; see `erasure_told` for what is returned. Raises `Fenced`, `NumbersReused`."""

        async def work(connection: Connection) -> int:
            async with transaction(connection):
                limit = self._settings.erase_deadline // timedelta(milliseconds=1)
                await connection.execute(self._LIMIT, str(limit))
                opened = await self._open_user(connection, opening, operation.user_id)
                if await _done(connection, opening, opened, [operation]) >= operation.seq:
                    return _erasure_told_again(operation, opened)
                arguments = (opening.client_id, opening.number, opening.token, operation.seq, operation.user_id)
                erased_rev = cast("int", _only(await connection.fetch(self._ERASE, *arguments))["erased_rev"])
                return erasure_told(operation.payload, _erased_before(opened), erased_rev)

        return await self._write(work, [operation.user_id], self._settings.erase_deadline + _HEAD_START)

    async def _write(
        self, work: Callable[[Connection], Awaitable[T]], users: Sequence[str], deadline: timedelta | None = None
    ) -> T:
        """Do work that changes something. A lock that is waited for in vain again is raised with who holds it."""
        try:
            result = await self._link.run(self._locks.watched(work, users), writes=True, deadline=deadline)
        except Contended as refusal:
            raise self._locks.told(refusal, users) from refusal
        self._locks.had(users)
        return result

    async def close(self) -> None:
        """Let go of the server."""
        await self._link.close()


def _only(records: Sequence[asyncpg.Record]) -> asyncpg.Record:
    (record,) = records
    return record


def _concerned(detail: str | None) -> frozenset[str]:
    return frozenset(cast("list[str]", orjson.loads(detail))) if detail else frozenset()


async def _done(
    connection: Connection, opening: Opening, opened: asyncpg.Record, operations: Sequence[Operation]
) -> int:
    """The last of one user's operations that the user's mark covers. Raises `NumbersReused`."""
    mark = await mark_met(connection, opening, opened["last_seq"], opened["open_number"], opened["open_token"])
    covered = opening.covered(mark)
    if any(covered < operation.seq <= mark.last_seq for operation in operations):
        raise NumbersReused(user_id=operations[0].user_id, last_seq=mark.last_seq, covered=covered)
    return covered


def _erased_before(opened: asyncpg.Record) -> int:
    """The erasure that the next one of the same client comes upon: those that are its own it need not hear of."""
    own = opened["own_erased_rev"] is not None and opened["own_erased_rev"] == opened["erased_rev"]
    return cast("int", opened["own_erased_over"] if own else opened["erased_rev"] or 0)


def _erasure_told_again(erasure: Operation, opened: asyncpg.Record) -> int:
    """What was told of an erasure whose answer was lost: somebody else may have erased the user since."""
    if opened["own_erase_seq"] == erasure.seq:
        return erasure_told(erasure.payload, opened["own_erased_over"], opened["own_erased_rev"])
    # A later one of ours has taken its place, and its own answer is to come.
    return erasure_told(erasure.payload, opened["erased_rev"], opened["erased_rev"])


def _before_erasure(operation: Operation, opened: asyncpg.Record, erased_rev: int) -> bool:
    if erased_rev < 0:
        # The sender never held the user, so it cannot say which erasure it knew of; the clocks must decide.
        return opened["erased_at"] is not None and operation.accepted_at <= opened["erased_at"]
    return bool(opened["erased_rev"] > erased_rev)


def _without_ends(operations: Sequence[Operation], met: Met) -> set[int]:
    """The numbers of relationships at nodes that are neither there nor among the operations.

    Whoever had not heard of an erasure may relate, after it by the clock, what it has taken away.
    """
    present = met.present_nodes | {operation.entity_id for operation in operations if operation.kind is Kind.NODE}
    return {
        operation.seq
        for operation in operations
        if operation.kind is Kind.RELATIONSHIP and not present.issuperset(related_nodes(operation.payload))
    }


def _untouched(decided: Decided) -> bool:
    return decided.as_sent and decided.change is not None and not batches.buries_node(decided.change)
