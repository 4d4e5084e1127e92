"""The background services of one manager, and who wakes whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hybrid_memory.adopter import ADOPT_INTERVAL_SECONDS, Adopter
from hybrid_memory.barrier import Barrier
from hybrid_memory.carrying import Carrier
from hybrid_memory.caution import Caution
from hybrid_memory.changes import Operation
from hybrid_memory.clock import Clock
from hybrid_memory.connect import PostgresMode, Tiers
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.events import Draining, Sink
from hybrid_memory.feed import Feed, Hinter, Listener
from hybrid_memory.files import OpenFile
from hybrid_memory.graph import Verdict
from hybrid_memory.keeper import Keeper
from hybrid_memory.messages import Applied, BatchApplied
from hybrid_memory.ports import DurableTier
from hybrid_memory.preload import Preload, continues, is_current
from hybrid_memory.recency import Recency
from hybrid_memory.relay import Relay
from hybrid_memory.restorer import Restorer
from hybrid_memory.retry import Backoff, Breaker
from hybrid_memory.sentinel import Sentinel
from hybrid_memory.service import Service
from hybrid_memory.settings import Settings
from hybrid_memory.sweeper import Sweeper
from hybrid_memory.verifier import VERIFY_INTERVAL_SECONDS, Verifier


class Staff:
    """Relay, feed, listener, hinter, keeper, adopter, restorer, verifier; without Postgres sweeper and sentinel."""

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
        self._open_users = open_users
        self._outbox, self._events = file.outbox, events
        self._on_decided = on_decided
        self.deliveries = Deliveries()
        self.preload = Preload(
            hot=file.hot, replica=file.replica, past=file.past, feed=durable.feed, clock=clock, events=events
        )
        self.barrier = self._make_barrier(tiers)
        self.recency = self._make_recency(clock)
        self._relay_of = partial(
            make_relay,
            durable=durable.tier,
            batch_size=settings.batch_size,
            clock=clock,
            uniform=uniform,
            events=events,
            is_persistent=is_persistent,
        )
        self.relay = self._relay_of(file=file, deliveries=self.deliveries, on_decided=self._decided, on_rest=on_rest)
        self.feed = self._make_feed(tiers, settings, clock, uniform)
        self._hinter = Hinter(durable.feed, uniform)
        self.relay_service = Service(self.relay, events)
        self.feed_service = Service(self.feed, events)
        self._hinter_service = Service(self._hinter, events)
        self.restorer = self._make_restorer(tiers, is_persistent, uniform)
        self._restorer_service = Service(self.restorer, events)
        self.services = self._hire(tiers, settings, clock, events, uniform)
        if durable.mode is not PostgresMode.OFF and not tiers.insists:
            self.services.append(Service(self._adopter(tiers, is_persistent, events, uniform), events))
        file.on_accepted = self.carry
        file.on_rejected = self._rejected
        file.on_rewound = self._rewound

    def _make_barrier(self, tiers: Tiers) -> Barrier:
        file = tiers.file
        return Barrier(
            hot=file.hot,
            feed=tiers.durable.feed,
            client_id=file.opening.client_id,
            cursor_seen=file.hot.cursor_seen,
            last_accepted_of=file.outbox.last_accepted_of,
            bring_up_to_date=self.preload.bring_up_to_date,
        )

    def _make_recency(self, clock: Clock) -> Recency:
        return Recency(
            confirmed_at=self.preload.confirmed_at,
            bring_up_to_date=self.preload.bring_up_to_date,
            monotonic=clock.monotonic,
        )

    def _make_feed(self, tiers: Tiers, settings: Settings, clock: Clock, uniform: Callable[[], float]) -> Feed:
        return Feed(
            hot=tiers.file.hot,
            feed=tiers.durable.feed,
            open_users=self._open_users,
            absorb=self.preload.absorb_difference,
            load=self.preload.bring_up_to_date,
            obey_erasure=self.preload.obey_erasure,
            confirm=self.preload.confirm,
            continues=continues,
            poll_seconds=settings.poll_interval.total_seconds(),
            monotonic=clock.monotonic,
            uniform=uniform,
        )

    def _make_restorer(
        self, tiers: Tiers, is_persistent: Callable[[str], bool], uniform: Callable[[], float]
    ) -> Restorer:
        return Restorer(
            past=tiers.file.past,
            dead_letters=tiers.file.dead_letters,
            feed=tiers.durable.feed,
            bring_up_to_date=self.preload.bring_up_to_date,
            is_persistent=is_persistent,
            uniform=uniform,
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
        services = [Service(sweeper, events), Service(Sentinel(file, events), events)]
        if durable.mode is PostgresMode.OFF:
            return services
        services += [self.relay_service, self.feed_service, self._restorer_service]
        services.append(Service(self._verifier(tiers, events, uniform), events))
        if settings.hints:
            listener = Listener(durable.feed, self.feed_service.wake, uniform)
            # Behind a pooler without a direct way beside it the listener only sleeps, and hints still go out.
            services += [self._hinter_service, Service(listener, events)]
        if durable.mode is PostgresMode.EMBEDDED:
            services.append(Service(Keeper(durable.keep_up), events))
        return services

    def _verifier(self, tiers: Tiers, events: Sink, uniform: Callable[[], float]) -> Verifier:
        return Verifier(
            hot=tiers.file.hot,
            feed=tiers.durable.feed,
            past=tiers.file.past,
            is_current=is_current,
            bring_up_to_date=self.preload.bring_up_to_date,
            open_users=self._open_users,
            events=events,
            interval_seconds=VERIFY_INTERVAL_SECONDS,
            uniform=uniform,
        )

    def _adopter(
        self, tiers: Tiers, is_persistent: Callable[[str], bool], events: Sink, uniform: Callable[[], float]
    ) -> Adopter:
        def carrier(file: OpenFile, count: Callable[[BatchApplied], None]) -> Relay:
            def decided(batch: BatchApplied) -> None:
                self._adopted(batch)
                count(batch)

            return self._relay_of(file=file, deliveries=Deliveries(), on_decided=decided, on_rest=_nobody_waits)

        return Adopter(
            orphans=tiers.orphans,
            reach=partial(tiers.durable.tier.handshake, tiers.file.opening),
            carrier=carrier,
            is_persistent=is_persistent,
            events=events,
            interval_seconds=ADOPT_INTERVAL_SECONDS,
            uniform=uniform,
        )

    def _rewound(self) -> None:
        self.restorer.rewound()
        self._restorer_service.wake()

    def start(self) -> None:
        """Begin all work."""
        for service in self.services:
            service.start()

    def carry(self) -> None:
        """Something is queued: have the relay look."""
        self.relay.look_again()
        self.relay_service.wake()

    def tell_of_drain(self) -> None:
        """Somebody waits for the queue to run out."""
        if queued := self._outbox.state().entries:
            self._events.emit(Draining(operations=queued, seconds=self.relay.seconds_for(queued)))

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


def make_relay(
    *,
    file: OpenFile,
    durable: DurableTier,
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
    caution = Caution(batch_size, uniform)
    carrier = Carrier(
        outbox=file.outbox,
        durable=durable,
        opening=file.opening,
        deliveries=deliveries,
        caution=caution,
        events=events,
        erased_rev=file.erased_rev,
        on_decided=on_decided,
        monotonic=clock.monotonic,
        uniform=uniform,
    )
    return Relay(
        outbox=file.outbox,
        durable=durable,
        opening=file.opening,
        carrier=carrier,
        caution=caution,
        deliveries=deliveries,
        breaker=Breaker(Backoff(), uniform),
        events=events,
        is_persistent=is_persistent,
        renumber=file.renumber,
        on_rest=on_rest,
        monotonic=clock.monotonic,
    )


def _nobody_waits() -> None:
    """Whoever stored what a dead owner left is gone."""
