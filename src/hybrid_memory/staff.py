"""The background services of one manager, and who wakes whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hybrid_memory.barrier import Barrier
from hybrid_memory.carrying import Carrier
from hybrid_memory.caution import Caution
from hybrid_memory.changes import Operation
from hybrid_memory.clock import Clock
from hybrid_memory.connect import PostgresMode, Tiers
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.events import Sink
from hybrid_memory.feed import Feed, Hinter, Listener
from hybrid_memory.graph import Verdict
from hybrid_memory.keeper import Keeper
from hybrid_memory.messages import Applied, BatchApplied
from hybrid_memory.preload import Preload, continues
from hybrid_memory.relay import Relay
from hybrid_memory.retry import Backoff, Breaker
from hybrid_memory.service import Service
from hybrid_memory.settings import Settings
from hybrid_memory.sweeper import Sweeper


class Staff:
    """Relay, feed, listener, hinter, keeper and sweeper. Without a Postgres only the sweeper works."""

    def __init__(
        self,
        *,
        tiers: Tiers,
        settings: Settings,
        clock: Clock,
        uniform: Callable[[], float],
        events: Sink,
        is_persistent: Callable[[str], bool],
        open_users: Callable[[], Sequence[str]],
        on_decided: Callable[[BatchApplied], None],
        on_rest: Callable[[], None],
    ) -> None:
        file, durable = tiers.file, tiers.durable
        self._on_decided = on_decided
        self.deliveries = Deliveries()
        self.preload = Preload(hot=file.hot, replica=file.replica, feed=durable.feed, clock=clock, events=events)
        self.barrier = self._make_barrier(tiers)
        self.relay = make_relay(
            tiers=tiers,
            deliveries=self.deliveries,
            batch_size=settings.batch_size,
            clock=clock,
            uniform=uniform,
            events=events,
            is_persistent=is_persistent,
            on_decided=self._decided,
            on_rest=on_rest,
        )
        self.feed = Feed(
            hot=file.hot,
            feed=durable.feed,
            open_users=open_users,
            absorb=self.preload.absorb_difference,
            load=self.preload.bring_up_to_date,
            confirm=self.preload.confirm,
            continues=continues,
            poll_seconds=settings.poll_interval.total_seconds(),
            monotonic=clock.monotonic,
            uniform=uniform,
        )
        self._hinter = Hinter(durable.feed, uniform)
        self.relay_service = Service(self.relay, events)
        self.feed_service = Service(self.feed, events)
        self._hinter_service = Service(self._hinter, events)
        self.services = self._hire(tiers, settings, clock, events, uniform)
        file.on_accepted = self.carry
        file.on_rejected = self._rejected

    def _make_barrier(self, tiers: Tiers) -> Barrier:
        file = tiers.file
        return Barrier(
            hot=file.hot,
            feed=tiers.durable.feed,
            client_id=file.opening.client_id,
            last_accepted_of=file.outbox.last_accepted_of,
            bring_up_to_date=self.preload.bring_up_to_date,
        )

    def _hire(
        self, tiers: Tiers, settings: Settings, clock: Clock, events: Sink, uniform: Callable[[], float]
    ) -> list[Service]:
        file, durable = tiers.file, tiers.durable
        sweeper = Sweeper(
            scratch=file.scratch,
            replica=file.replica,
            clock=clock,
            idle=settings.stale_thread_after,
            receipts_kept=settings.receipts_kept,
            interval=settings.sweep_interval,
        )
        services = [Service(sweeper, events)]
        if durable.mode is PostgresMode.OFF:
            return services
        services += [self.relay_service, self.feed_service, self._hinter_service]
        if settings.pooler == "none":
            services.append(Service(Listener(durable.feed, self.feed_service.wake, uniform), events))
        if durable.mode is PostgresMode.EMBEDDED:
            services.append(Service(Keeper(durable.keep_up), events))
        return services

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

    def _decided(self, batch: BatchApplied) -> None:
        self._hinter.note()
        self._hinter_service.wake()
        otherwise = {applied.verdict for applied in batch.operations} != {Verdict.APPLIED}
        if otherwise or not all(user.as_sent for user in batch.users):
            # The row that stands differs from ours: fetch it now rather than at the next poll.
            self.feed_service.wake()
        self._on_decided(batch)


def make_relay(
    *,
    tiers: Tiers,
    deliveries: Deliveries,
    batch_size: int,
    clock: Clock,
    uniform: Callable[[], float],
    events: Sink,
    is_persistent: Callable[[str], bool],
    on_decided: Callable[[BatchApplied], None],
    on_rest: Callable[[], None],
) -> Relay:
    """What carries a file's queue to Postgres; `batch_size` is the most operations in one transaction."""
    file, durable = tiers.file, tiers.durable
    caution = Caution(batch_size, uniform)
    carrier = Carrier(
        outbox=file.outbox,
        durable=durable.tier,
        opening=file.opening,
        deliveries=deliveries,
        caution=caution,
        events=events,
        erased_rev=file.hot.erased_rev,
        on_decided=on_decided,
        monotonic=clock.monotonic,
        uniform=uniform,
    )
    return Relay(
        outbox=file.outbox,
        durable=durable.tier,
        opening=file.opening,
        carrier=carrier,
        caution=caution,
        deliveries=deliveries,
        breaker=Breaker(Backoff(), uniform),
        events=events,
        is_persistent=is_persistent,
        on_rest=on_rest,
        monotonic=clock.monotonic,
    )
