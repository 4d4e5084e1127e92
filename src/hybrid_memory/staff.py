"""The background services of one manager, and who wakes whom."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from hybrid_memory.adopter import ADOPT_INTERVAL_SECONDS, Adopter
from hybrid_memory.changes import Operation
from hybrid_memory.clock import Clock
from hybrid_memory.connect import PostgresMode, Tiers
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.events import Sink
from hybrid_memory.feed import Feed, Hinter, Listener
from hybrid_memory.graph import Verdict
from hybrid_memory.keeper import Keeper
from hybrid_memory.messages import Applied, BatchApplied
from hybrid_memory.ports import OpenFile
from hybrid_memory.preload import Preload, continues
from hybrid_memory.relay import Relay
from hybrid_memory.retry import Backoff, Breaker
from hybrid_memory.service import Service
from hybrid_memory.settings import Settings
from hybrid_memory.sweeper import Sweeper


class Staff:
    """Relay, feed, listener, hinter, keeper, adopter and sweeper. Without a Postgres only the sweeper works."""

    def __init__(
        self,
        *,
        tiers: Tiers,
        settings: Settings,
        clock: Clock,
        events: Sink,
        is_persistent: Callable[[str], bool],
        open_users: Callable[[], Sequence[str]],
        on_decided: Callable[[BatchApplied], None],
        on_rest: Callable[[], None],
    ) -> None:
        file = tiers.file
        self._tiers = tiers
        self._settings = settings
        self._events = events
        self._is_persistent = is_persistent
        self._open_users = open_users
        self._on_decided = on_decided
        self._uniform = random.SystemRandom().random
        self.deliveries = Deliveries()
        self.preload = Preload(hot=file.hot, replica=file.replica, feed=tiers.durable.feed, clock=clock, events=events)
        self.relay = self._relay_of(file, self.deliveries, self._decided, on_rest)
        self._hinter = Hinter(tiers.durable.feed, self._uniform)
        self.relay_service = Service(self.relay, events)
        self.feed_service = Service(self._feed(), events)
        self._hinter_service = Service(self._hinter, events)
        sweeper = Sweeper(
            scratch=file.scratch,
            replica=file.replica,
            clock=clock,
            idle=settings.stale_thread_after,
            receipts_kept=settings.receipts_kept,
            interval=settings.sweep_interval,
        )
        self.services = [Service(sweeper, events)]
        if tiers.durable.mode is not PostgresMode.OFF:
            self.services += self._hire()
        file.on_accepted = self.carry
        file.on_rejected = self._rejected

    def _hire(self) -> list[Service]:
        durable, events = self._tiers.durable, self._events
        services = [self.relay_service, self.feed_service, self._hinter_service]
        if self._settings.pooler == "none":
            services.append(Service(Listener(durable.feed, self.feed_service.wake, self._uniform), events))
        if durable.mode is PostgresMode.EMBEDDED:
            services.append(Service(Keeper(durable.keep_up), events))
        if not self._tiers.insists:
            services.append(Service(self._adopter(), events))
        return services

    def _relay_of(
        self,
        file: OpenFile,
        deliveries: Deliveries,
        on_decided: Callable[[BatchApplied], None],
        on_rest: Callable[[], None],
    ) -> Relay:
        return Relay(
            outbox=file.outbox,
            durable=self._tiers.durable.tier,
            opening=file.opening,
            deliveries=deliveries,
            breaker=Breaker(Backoff(), self._uniform),
            events=self._events,
            erased_rev=file.erased_rev,
            is_persistent=self._is_persistent,
            on_decided=on_decided,
            on_rest=on_rest,
            batch_size=self._settings.batch_size,
        )

    def _feed(self) -> Feed:
        return Feed(
            hot=self._tiers.file.hot,
            feed=self._tiers.durable.feed,
            open_users=self._open_users,
            absorb=self.preload.absorb_difference,
            load=self.preload.bring_up_to_date,
            confirm=self.preload.confirm,
            continues=continues,
            poll_seconds=self._settings.poll_interval.total_seconds(),
            uniform=self._uniform,
        )

    def _adopter(self) -> Adopter:
        def carrier(file: OpenFile, count: Callable[[BatchApplied], None]) -> Relay:
            def decided(batch: BatchApplied) -> None:
                self._adopted(batch)
                count(batch)

            return self._relay_of(file, Deliveries(), decided, _nobody_waits)

        return Adopter(
            orphans=self._tiers.orphans,
            reach=partial(self._tiers.durable.tier.handshake, self._tiers.file.opening),
            carrier=carrier,
            is_persistent=self._is_persistent,
            events=self._events,
            interval_seconds=ADOPT_INTERVAL_SECONDS,
            uniform=self._uniform,
        )

    def start(self) -> None:
        """Begin all work."""
        for service in self.services:
            service.start()

    def carry(self) -> None:
        """Something is queued: have the relay look."""
        self.relay.look_again()
        self.relay_service.wake()

    async def stop(self) -> None:
        """End all work; what is queued stays queued."""
        self.deliveries.close()
        for service in self.services:
            await service.stop()
        await self.preload.close()

    def _rejected(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            self.deliveries.resolve(Applied(operation=operation, verdict=Verdict.REJECTED, rev=None))

    def _adopted(self, batch: BatchApplied) -> None:
        self._hinter.note()
        self._hinter_service.wake()
        users = {applied.operation.user_id for applied in batch.operations}
        if not users.isdisjoint(self._open_users()):
            # To our own copy they are another's rows.
            self.feed_service.wake()

    def _decided(self, batch: BatchApplied) -> None:
        self._hinter.note()
        self._hinter_service.wake()
        otherwise = {applied.verdict for applied in batch.operations} != {Verdict.APPLIED}
        if otherwise or not all(user.as_sent for user in batch.users):
            # The row that stands differs from ours: fetch it now rather than at the next poll.
            self.feed_service.wake()
        self._on_decided(batch)


def _nobody_waits() -> None:
    """Whoever stored what a dead owner left is gone."""
