"""What Postgres holds, as a model: heads, rows, marks, history; each method is one transaction, all or nothing."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import orjson

from hybrid_memory.changes import Kind, NodeRow, Operation, RelationshipRow
from hybrid_memory.errors import Fenced
from hybrid_memory.graph import Digest, Verdict
from hybrid_memory.messages import Applied, AppliedUser, BatchApplied, Disputed, FlatRow, Head, Opening
from hybrid_memory.payloads import carried_node, carried_relationship, erasure_told
from hybrid_memory.postgres import batches
from hybrid_memory.postgres.batches import RowChange, UserChanges
from hybrid_memory.postgres.deciding import Lost, Met, Standing, decide
from hybrid_memory.testing.history import Entry


class Mark(NamedTuple):
    """The last operation applied of one client for one user, and the opening that sent it."""

    seq: int
    number: int
    token: str


@dataclass(slots=True)
class Account:
    """What Postgres holds of one user."""

    epoch: str
    rev: int = 0
    erased_rev: int = 0
    erased_at: int | None = None
    rows: dict[str, Standing] = field(default_factory=dict[str, Standing])
    marks: dict[str, Mark] = field(default_factory=dict[str, Mark])
    history: tuple[Lost, ...] = ()
    # Each client's last erasure: its number, the one that stood before, and its revision.
    erasures: dict[str, tuple[int, int, int]] = field(default_factory=dict[str, tuple[int, int, int]])

    def draft(self) -> Account:
        """A copy to work on: it takes the place of this one when the transaction commits."""
        return replace(self, rows=self.rows.copy(), marks=self.marks.copy(), erasures=self.erasures.copy())


class Image(NamedTuple):
    """One user as of one snapshot."""

    head: Head
    nodes: list[FlatRow]
    relationships: list[FlatRow]


class Postgres:
    """The tables, and what `memory.apply`, `open_user`, `erase` and the feed's queries do with them.

    Time is the server's own. The ledger is what a test build would append: every operation decided, in commit order.
    """

    def __init__(self, chance: random.Random, now_us: Callable[[], int]) -> None:
        self._chance = chance
        self._now_us = now_us
        self.accounts: dict[str, Account] = {}
        self.ledger: list[Entry] = []
        # Every operation that was ever decided.
        self.operations: dict[str, Operation] = {}
        # What was decided and then taken by a failover, and the whole ledger as it stood before each.
        self.rewound: list[Entry] = []
        self.pasts: list[list[Entry]] = []
        self.timeline = 1

    def _account(self, user_id: str) -> Account:
        known = self.accounts.get(user_id)
        if known is None:
            return Account(epoch=str(uuid.UUID(int=self._chance.getrandbits(128), version=4)))
        return known.draft()

    def apply(self, opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]) -> BatchApplied:
        """`memory.apply`. Raises `Disputed`, and then nothing was done."""
        users = batches.by_user(operations)
        changes = batches.as_sent(users, erased)
        drafts: dict[str, Account] = {}
        for change in changes:
            drafts[change.user_id] = self._account(change.user_id)
        _refuse(change.user_id for change in changes if drafts[change.user_id].erased_rev != change.erased_rev)
        _refuse(
            change.user_id
            for change in changes
            if not _may_mark(drafts[change.user_id].marks.get(opening.client_id), opening, change)
        )
        entries: list[Entry] = []
        revs: list[int] = []
        for change in changes:
            draft = drafts[change.user_id]
            rev = draft.rev
            for operation in users[change.user_id]:
                rev += 1
                entries.append(_entry(opening, operation, Verdict.APPLIED, rev))
                self.operations[operation.op_id] = operation
            revs.append(self._put(draft, opening, change, entries))
        self.accounts |= drafts
        self.ledger += entries
        return batches.outcome(users, changes, revs, [drafts[change.user_id].epoch for change in changes])

    def _put(self, draft: Account, opening: Opening, change: UserChanges, entries: list[Entry]) -> int:
        """One user's rows, their revisions and the mark; the revision of the last of them."""
        before = draft.rev
        # Nodes are written before relationships, each with the revision of its place.
        for rev, row in sorted(enumerate(change.rows, before + 1), key=lambda placed: placed[1].kind is not Kind.NODE):
            _write(draft, opening.client_id, row, rev)
        draft.rev += len(change.rows)
        draft.marks[opening.client_id] = Mark(change.last_seq, opening.number, opening.token)
        last = draft.rev
        if any(map(batches.buries_node, change.rows)):
            self._bury_relationships(draft, opening, change.user_id, before, entries)
        return last

    def _bury_relationships(
        self, draft: Account, opening: Opening, user_id: str, after_rev: int, entries: list[Entry]
    ) -> None:
        buried = {one.row[0] for one in draft.rows.values() if one.row.rev > after_rev and _is_buried_node(one)}
        now_us = self._now_us()
        for edge_id in sorted(draft.rows):
            row = draft.rows[edge_id].row
            if isinstance(row, RelationshipRow) and row.deleted_at is None and {row.source_id, row.target_id} & buried:
                draft.rev += 1
                gone = row._replace(deleted_at=now_us, updated_at=now_us, rev=draft.rev)
                draft.rows[edge_id] = Standing(row=gone, writer=opening.client_id, writer_seq=0)
                entries.append(Entry(user_id=user_id, key=edge_id, rev=draft.rev))

    def decide(self, opening: Opening, operations: Sequence[Operation], erased_rev: int) -> BatchApplied:
        """What the adapter does in one transaction with one user's operations. Raises `Fenced`."""
        user_id = operations[0].user_id
        account, done = self._open_user(opening, user_id)
        before = account.rev
        fresh = [one for one in operations if one.seq > done]
        erased = {one.seq for one in fresh if _before_erasure(one, account, erased_rev)}
        decided = decide(fresh, _met(account, fresh), opening.client_id, erased)
        entries: list[Entry] = []
        revs: dict[int, int] = {}
        if decided:
            rows = tuple(one.change for one in decided if one.change is not None)
            changing = [one.operation.seq for one in decided if one.change is not None]
            revs = dict(zip(changing, range(before + 1, before + 1 + len(rows)), strict=True))
            entries = [
                _entry(opening, one.operation, one.verdict, revs.get(one.operation.seq), lost=one.lost is not None)
                for one in decided
            ]
            change = UserChanges(user_id, fresh[0].seq, fresh[-1].seq, account.erased_rev, rows)
            head_rev = self._put(account, opening, change, entries)
            account.history += tuple(one.lost for one in decided if one.lost is not None)
        else:
            head_rev = before
        standings = self.accounts[user_id].rows if user_id in self.accounts else {}
        self.accounts[user_id] = account
        self.ledger += entries
        self.operations |= {one.op_id: one for one in fresh}
        verdicts = {one.operation.seq: one.verdict for one in decided}
        as_sent = len(decided) == len(operations) and all(
            one.as_sent and one.change is not None and not batches.buries_node(one.change) for one in decided
        )
        return BatchApplied(
            operations=tuple(
                Applied(one, verdicts[one.seq], revs.get(one.seq))
                if one.seq in verdicts
                else _already(one, standings.get(one.entity_id), opening)
                for one in operations
            ),
            users=(AppliedUser(user_id, account.epoch, before, head_rev, as_sent),),
        )

    def _open_user(self, opening: Opening, user_id: str) -> tuple[Account, int]:
        account = self._account(user_id)
        mark = account.marks.get(opening.client_id)
        if mark is None:
            return account, 0
        if (mark.number, mark.token) != (opening.number, opening.token) and mark.number >= opening.number:
            raise Fenced("a later opening has sent something")
        return account, mark.seq

    def erase(self, opening: Opening, operation: Operation) -> int:
        """`memory.erase`; done again, it only says what it said. Raises `Fenced`."""
        account, done = self._open_user(opening, operation.user_id)
        if done >= operation.seq:
            own_seq, over, erased_rev = account.erasures.get(opening.client_id, (0, 0, 0))
            if own_seq != operation.seq:
                over = erased_rev = account.erased_rev
            return erasure_told(operation.payload, over, erased_rev)
        _, over, own_rev = account.erasures.get(opening.client_id, (0, 0, 0))
        before = over if own_rev == account.erased_rev else account.erased_rev
        account.rev += 1
        account.erased_rev, account.erased_at = account.rev, self._now_us()
        account.rows, account.history = {}, ()
        account.marks[opening.client_id] = Mark(operation.seq, opening.number, opening.token)
        self.accounts[operation.user_id] = account
        self.ledger.append(_entry(opening, operation, Verdict.APPLIED, account.rev))
        account.erasures[opening.client_id] = (operation.seq, before, account.erased_rev)
        return erasure_told(operation.payload, before, account.erased_rev)

    def head(self, user_id: str, client_id: str | None = None) -> Head | None:
        """A user's head, if it has one; with a client's mark, if it is that of a client."""
        account = self.accounts.get(user_id)
        if account is None:
            return None
        mark = None if client_id is None else account.marks.get(client_id)
        return Head(
            user_id=user_id,
            epoch=account.epoch,
            rev=account.rev,
            erased_rev=account.erased_rev,
            timeline=self.timeline,
            done_seq=mark.seq if mark else 0,
        )

    def ensured_head(self, user_id: str, client_id: str) -> Head:
        """A user's head, made if need be, with a client's mark."""
        if user_id not in self.accounts:
            self.accounts[user_id] = self._account(user_id)
        head = self.head(user_id, client_id)
        assert head is not None
        return head

    def image(self, user_id: str, client_id: str, after_rev: int | None, now_us: int) -> Image:
        """What a snapshot reads: the live graph as of the client's clock, or all rows newer than a revision."""
        head = self.ensured_head(user_id, client_id)
        rows = [one.row for one in self.accounts[user_id].rows.values()]
        chosen = [row for row in rows if (_is_live(row, now_us) if after_rev is None else row.rev > after_rev)]
        return Image(
            head,
            [row for row in chosen if isinstance(row, NodeRow)],
            [row for row in chosen if isinstance(row, RelationshipRow)],
        )

    def digest(self, user_id: str, now_us: int) -> Digest:
        """`memory.digest`."""
        account = self.accounts.get(user_id)
        live = [one.row for one in account.rows.values() if _is_live(one.row, now_us)] if account else []
        value = 0
        for row in live:
            text = f"{row[0]}{row.rev}{row.row_hash}"
            value ^= int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
        nodes = sum(isinstance(row, NodeRow) for row in live)
        return Digest(value=value, nodes=nodes, relationships=len(live) - nodes)

    def without_end(self) -> list[str]:
        """The live relationships of a node that is a tombstone."""
        return [
            row.relationship_id
            for account in self.accounts.values()
            for row in (one.row for one in account.rows.values())
            if isinstance(row, RelationshipRow)
            and row.deleted_at is None
            and not _deleted_nodes(account).isdisjoint({row.source_id, row.target_id})
        ]

    def saved(self) -> tuple[dict[str, Account], int]:
        """The state as a lagging standby has it."""
        return {user_id: account.draft() for user_id, account in self.accounts.items()}, len(self.ledger)

    def rewind(self, saved: tuple[dict[str, Account], int]) -> None:
        """Go on from there under a new timeline: what came after it never was."""
        self.accounts, entries = {user: account.draft() for user, account in saved[0].items()}, saved[1]
        self.rewound += self.ledger[entries:]
        self.pasts.append(self.ledger.copy())
        del self.ledger[entries:]
        self.timeline += 1


def _refuse(users: Iterable[str]) -> None:
    concerned = frozenset(users)
    if concerned:
        raise Disputed(concerned)


def _may_mark(mark: Mark | None, opening: Opening, change: UserChanges) -> bool:
    if mark is None:
        return True
    this_opening = mark.number == opening.number and mark.token == opening.token
    return mark.seq < change.first_seq and (mark.number < opening.number or this_opening)


def _write(draft: Account, client_id: str, change: RowChange | Operation, rev: int) -> None:
    row: NodeRow | RelationshipRow
    if change.kind is Kind.NODE:
        row = carried_node(change.payload).row._replace(rev=rev)
    else:
        row = carried_relationship(change.payload)[0]._replace(rev=rev)
        if row.deleted_at is None and not _deleted_nodes(draft).isdisjoint({row.source_id, row.target_id}):
            raise Disputed(frozenset())
    standing = draft.rows.get(row[0])
    if standing is not None:
        seen = change.base != 0 and (standing.row.rev == change.base or standing.made_by(client_id, -change.base))
        if not seen:
            raise Disputed(frozenset())
    draft.rows[row[0]] = Standing(row=row, writer=client_id, writer_seq=change.seq)


def _is_live(row: NodeRow | RelationshipRow, now_us: int) -> bool:
    if row.deleted_at is not None:
        return False
    return isinstance(row, RelationshipRow) or row.expires_at is None or row.expires_at > now_us


def _is_buried_node(standing: Standing) -> bool:
    return isinstance(standing.row, NodeRow) and standing.row.deleted_at is not None


def _deleted_nodes(account: Account) -> frozenset[str]:
    return frozenset(one.row[0] for one in account.rows.values() if _is_buried_node(one))


def _met(account: Account, operations: Sequence[Operation]) -> Met:
    """What the adapter reads of the rows that operations meet."""
    ids = {(one.kind, one.entity_id) for one in operations}
    standings = {(kind, row_id): account.rows[row_id] for kind, row_id in ids if row_id in account.rows}
    return Met(standings=standings, deleted_nodes=_deleted_nodes(account))


def _before_erasure(operation: Operation, account: Account, erased_rev: int) -> bool:
    if erased_rev < 0:
        return account.erased_at is not None and operation.accepted_at <= account.erased_at
    return account.erased_rev > erased_rev


def _already(operation: Operation, standing: Standing | None, opening: Opening) -> Applied:
    ours = standing is not None and standing.made_by(opening.client_id, operation.seq)
    return Applied(operation, Verdict.APPLIED, standing.row.rev if standing and ours else None)


def written_by(operation: Operation) -> str | None:
    """The value that a caller of the workload wrote by this operation."""
    if operation.kind is not Kind.NODE or operation.delta < 0:
        return None
    carried = carried_node(operation.payload)
    if carried.patch is None:
        return carried.row.summary
    # What is merged again after a failover may differ in nothing that a caller of the workload wrote.
    data = cast("dict[str, dict[str, str]]", orjson.loads(carried.patch)).get("entity_data", {})
    return next(iter(data.values()), None)


def _entry(opening: Opening, operation: Operation, verdict: Verdict, rev: int | None, *, lost: bool = False) -> Entry:
    return Entry(
        user_id=operation.user_id,
        key=operation.entity_id,
        rev=rev,
        operation=operation.op_id,
        client=opening.client_id,
        seq=operation.seq,
        verdict=verdict,
        value=written_by(operation),
        erases=operation.kind is Kind.ERASE,
        lost=lost,
    )
