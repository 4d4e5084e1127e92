"""Receipts: what is said for an accepted write, now and when Postgres has decided."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from hybrid_memory.changes import Operation
from hybrid_memory.clock import Clock
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.graph import NodeId, Receipt, Status, Verdict
from hybrid_memory.messages import Accepted, Hold
from hybrid_memory.ports import Outbox


class ReceiptDesk:
    """Issues receipts for writes that are fsynced locally."""

    def __init__(self, *, outbox: Outbox, deliveries: Deliveries, is_away: Callable[[], bool], clock: Clock) -> None:
        self._outbox = outbox
        self._deliveries = deliveries
        self._is_away = is_away
        self._clock = clock

    def hold(self, wait_seconds: float) -> Hold | None:
        """What keeps an accepted operation's caller until Postgres has decided, at most so long; None: nothing does."""
        return partial(self._hold, wait_seconds) if wait_seconds > 0 else None

    def _hold(self, wait_seconds: float, operation: Operation, future: Future[Accepted]) -> None:
        if self._is_away():
            future.set_result(Accepted.of(operation))
        else:
            self._deliveries.tell(operation, future, wait_seconds)

    def issue(self, accepted: Accepted, node_id: NodeId) -> Receipt:
        """The receipt by what is known."""
        applied = accepted.applied
        if applied is not None and applied.verdict is not Verdict.DEAD:
            return Receipt(
                op_id=accepted.op_id,
                node_id=node_id,
                status=Status.DURABLE,
                rev=applied.rev,
                verdict=applied.verdict,
            )
        receipt = Receipt(
            op_id=accepted.op_id,
            node_id=node_id,
            status=Status.PENDING,
            verdict=None if applied is None else applied.verdict,
            outcome=lambda timeout: self._outcome(accepted, receipt, timeout),
        )
        return receipt

    async def _outcome(self, accepted: Accepted, receipt: Receipt, timeout: timedelta | None) -> Receipt:
        deadline = None if timeout is None else self._clock.monotonic() + timeout.total_seconds()
        while True:
            self._deliveries.check_open()
            known = self._outbox.verdict(accepted)
            if known is not None:
                verdict, rev = known
                return receipt.decided(rev=rev, verdict=verdict)
            left = None if deadline is None else deadline - self._clock.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("the operation is still queued")
            applied = await self._deliveries.wait(accepted, left)
            if applied is not None and applied.verdict is not Verdict.DEAD:
                return receipt.decided(rev=applied.rev, verdict=applied.verdict)
