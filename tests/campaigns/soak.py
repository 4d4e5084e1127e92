"""Many open sessions in one process under steady load, with a fault every ten seconds: what the process feels like.

The promises of every other campaign are held against Postgres at the end; besides, the limits below are kept.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from hybrid_memory import HybridMemoryManager, Settings
from tests.campaigns.tally import Tally
from tests.plugins.postgres import connected
from tests.support.fault_giver import FAULTS, FaultGiver
from tests.support.gauges import Callbacks, Latencies, Sample, frozen_heap, sample, slope, tick
from tests.support.managers import FACT, both_tiers_agree
from tests.support.steady_load import Load, Transcript, fill, open_sessions
from tests.support.witness import Verdict, numbers_given_out

SOAK: Final = "soak"
FAULT_EVERY_SECONDS: Final = 10.0
NODES_EACH: Final = 200
# A tenth of them are scans, so that there are four reads by id for each write.
READS_PER_WRITE: Final = 4.5
DRAIN: Final = timedelta(seconds=120)
CONVERGED_SECONDS: Final = 30.0
RECOVERED_SECONDS: Final = 60.0
# What is told of the first part of a run is the filling of caches.
WARM_SHARE: Final = 1 / 3

READ_P99_MS: Final = 1.0
LAG_P99_MS: Final = 50.0
CALLBACK_CPU_MS: Final = 50.0
# The load adds some 3,600 nodes a minute, and the caches their share of them; 2.5 was measured over ten minutes.
GROWTH_MIB_PER_MINUTE: Final = 4.0
_HARM: Final = ("lost", "doubled", "reordered", "diverged")
MORE_FDS: Final = 40
"""What loads and reconnects may have open at a moment above what was open at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large a soak is."""

    seconds: float
    seed: int
    users: int = 1_000
    writes_per_second: int = 500
    nodes_each: int = NODES_EACH
    fault_every_seconds: float = FAULT_EVERY_SECONDS

    @property
    def user_ids(self) -> list[str]:
        return [f"user-{number:04d}" for number in range(self.users)]


@dataclass(slots=True, kw_only=True)
class Report:
    """What a soak came to."""

    plan: Plan
    open_seconds: float = 0.0
    load: Load
    acknowledged: int = 0
    lag: Latencies = field(default_factory=Latencies)
    callbacks: Callbacks = field(default_factory=Callbacks)
    samples: list[Sample] = field(default_factory=list[Sample])
    faults: dict[str, Tally] = field(default_factory=lambda: {fault: Tally(fault=fault) for fault in FAULTS})
    drained_seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def growth(self) -> float:
        """MiB a minute that the memory grew by after the warm-up."""
        warm = [one for one in self.samples if one.seconds >= self.plan.seconds * WARM_SHARE]
        return slope([(one.seconds / 60, one.rss_mib) for one in warm])

    def missed(self) -> list[str]:
        """The limits that were not kept."""
        first, longest = self.samples[0], next(iter(self.callbacks.longest), None)
        read, lag = self.load.get.quantile(0.99) * 1e3, self.lag.quantile(0.99) * 1e3
        fds, threads = max(one.fds for one in self.samples), max(one.threads for one in self.samples)
        checks = (
            (read >= READ_P99_MS, f"p99 of local reads is {read:.2f} ms, not under {READ_P99_MS} ms"),
            (lag >= LAG_P99_MS, f"p99 of the event loop's lag is {lag:.1f} ms, not under {LAG_P99_MS} ms"),
            (
                longest is not None and longest.cpu_ms > CALLBACK_CPU_MS,
                f"a callback took more than {CALLBACK_CPU_MS} ms of CPU: {longest}",
            ),
            (
                self.growth > GROWTH_MIB_PER_MINUTE,
                f"memory grew by {self.growth:.1f} MiB a minute, more than {GROWTH_MIB_PER_MINUTE}",
            ),
            (fds > first.fds + MORE_FDS, f"{fds} file descriptors were open, {first.fds} at first"),
            (threads > first.threads + 2, f"{threads} threads, {first.threads} at first"),
            (self.load.held_back > 0, f"{self.load.held_back} operations were held back"),
        )
        return [told for is_missed, told in checks if is_missed]

    def complaints(self) -> list[str]:
        """The promises that were not kept."""
        verdict = self.verdict
        named = (("lost", verdict.lost), ("doubled", verdict.doubled), ("reordered", verdict.reordered))
        told = [f"{name}: {one}" for name, found in (*named, ("diverged", verdict.diverged)) for one in found]
        return told + [f"wrong: {one}" for one in self.load.wrong]

    def tallies(self) -> list[Tally]:
        """A line for all that was written, and one for each kind of fault; what was lost is nobody's in particular."""
        verdict = self.verdict
        whole = Tally(
            fault=SOAK,
            injected=sum(tally.injected for tally in self.faults.values()),
            acked=self.acknowledged,
            lost=len(verdict.lost) + len(self.load.wrong),
            doubled=len(verdict.doubled),
            reordered=len(verdict.reordered),
            diverged=len(verdict.diverged),
            slowest_recovery_s=max(tally.slowest_recovery_s for tally in self.faults.values()),
        )
        return [whole, *(tally for tally in self.faults.values() if tally.injected)]

    def figures(self) -> dict[str, object]:
        """Everything, as JSON takes it."""
        load, samples = self.load, self.samples
        return {
            "plan": asdict(self.plan),
            "open_seconds": round(self.open_seconds, 2),
            "get": load.get.figures(),
            **{kind: latencies.figures() for kind, latencies in load.scans.items()},
            "store_accepted": load.accepted.figures(),
            "store_waited": load.waited.figures(),
            "lag": self.lag.figures(),
            "callbacks": {
                "over_ms": self.callbacks.over,
                "longest": [asdict(one) for one in self.callbacks.longest],
                "garbage": self.callbacks.collections.figures(),
            },
            "rss_mib": {"first": samples[0].rss_mib, "last": samples[-1].rss_mib, "a_minute": round(self.growth, 2)},
            "most": {
                "rss_mib": max(one.rss_mib for one in samples),
                "fds": max(one.fds for one in samples),
                "threads": max(one.threads for one in samples),
                "queued": max(one.queued for one in samples),
            },
            "samples": [asdict(one) for one in samples],
            "held_back": load.held_back,
            "acknowledged": self.acknowledged,
            "drained_seconds": round(self.drained_seconds, 2),
            "tallies": [asdict(tally) for tally in self.tallies()],
            "complaints": self.complaints()[:50],
            "missed": self.missed(),
        }


def run(*, seconds: float, seed: int) -> list[Tally]:
    """Soak for so long, at the full size. What was found wrong, and the limits missed, are told on stderr."""
    report = asyncio.run(soak(Plan(seconds=seconds, seed=seed)))
    sys.stderr.writelines(f"{one}\n" for one in [*report.complaints(), *report.missed()][:50])
    return report.tallies()


async def soak(plan: Plan) -> Report:
    """`run` for who has an event loop, and at any size."""
    with tempfile.TemporaryDirectory(prefix="hm-soak-") as name:
        folder = Path(name)
        async with FaultGiver.running(seed=plan.seed) as giver:
            async with connected(giver.admin_dsn) as admin:
                revisions = await fill(admin, plan.user_ids, plan.nodes_each)
            report = await _soak(plan, giver, folder)
            witness = Transcript.heard(folder / "transcript")
            async with connected(giver.admin_dsn) as admin:
                operations = revisions + numbers_given_out(folder / "data")
                judged = await witness.judge(admin, operations=operations)
    verdict = report.verdict
    verdict.lost += judged.lost
    verdict.doubled += judged.doubled
    verdict.reordered += judged.reordered
    return report


async def _soak(plan: Plan, giver: FaultGiver, folder: Path) -> Report:
    settings = Settings(drain_on_close=timedelta(0))
    with (folder / "transcript").open("wb") as file:
        transcript = Transcript(file)
        async with HybridMemoryManager.open(dsn=giver.dsn, data_dir=folder / "data", settings=settings) as manager:
            began = time.monotonic()
            load = await open_sessions(manager, plan.user_ids, transcript, Random(f"{plan.seed} load"))
            report = Report(plan=plan, load=load, open_seconds=time.monotonic() - began)
            with frozen_heap(), report.callbacks.timed():
                async with _beside(manager, report, giver):
                    writes = plan.writes_per_second
                    await load.run(plan.seconds, writes=writes, reads=int(writes * READS_PER_WRITE))
            report.acknowledged = transcript.acknowledged
            await _run_out(manager, report)
    return report


@asynccontextmanager
async def _beside(manager: HybridMemoryManager, report: Report, giver: FaultGiver) -> AsyncGenerator[None]:
    """Measure and make sick for the length of the block; the last fault is over when it ends."""
    measuring = (asyncio.create_task(tick(report.lag)), asyncio.create_task(_sample(manager, report)))
    enough = asyncio.Event()
    making_sick = asyncio.create_task(_make_sick(manager, report, giver, enough))
    try:
        yield
        enough.set()
        await making_sick
    finally:
        for task in (*measuring, making_sick):
            task.cancel()
        await asyncio.gather(*measuring, making_sick, return_exceptions=True)


async def _sample(manager: HybridMemoryManager, report: Report) -> None:
    began = time.monotonic()
    while True:
        report.samples.append(sample(time.monotonic() - began, manager.queue().entries))
        await asyncio.sleep(1)


async def _make_sick(manager: HybridMemoryManager, report: Report, giver: FaultGiver, enough: asyncio.Event) -> None:
    """Every kind of fault in turn, in an order by the seed, until there was enough."""
    plan = report.plan
    for number in count():
        kinds = Random(f"{plan.seed} lap {number // len(FAULTS)}").sample(FAULTS, len(FAULTS))
        fault = kinds[number % len(FAULTS)]
        with suppress(TimeoutError):
            async with asyncio.timeout(plan.fault_every_seconds):
                await enough.wait()
        if enough.is_set():
            return
        wrong = await giver.inject(fault, f"{plan.seed} fault {number}")
        report.load.wrong += [wrong] if wrong else []
        report.faults[fault].injected += 1
        report.faults[fault].recovered_in(await _recovered(manager, plan.user_ids[-1]))


async def _recovered(manager: HybridMemoryManager, user_id: str) -> float:
    """Seconds until a write made now is in Postgres."""
    began = time.monotonic()
    receipt = await manager.store_persistent_memory(user_id, {"probe": True}, FACT, wait=0)
    with suppress(TimeoutError):  # the time it took says so, and the judgement whether it is lost
        await receipt.durable(RECOVERED_SECONDS)
    return time.monotonic() - began


async def _run_out(manager: HybridMemoryManager, report: Report) -> None:
    """Let the queue run out and compare the tiers."""
    began = time.monotonic()
    left = await manager.drain(DRAIN)
    report.drained_seconds = time.monotonic() - began
    report.verdict.lost += [f"{left} operations are still queued"] if left else []
    report.verdict.lost += [f"dead: {letter.sqlstate}" for letter in await manager.dead_letters.list()]
    quiet_by = time.monotonic() + CONVERGED_SECONDS
    for user_id in report.plan.user_ids:
        memory = manager.user(user_id)
        try:
            await both_tiers_agree(manager, memory, seconds=max(0.2, quiet_by - time.monotonic()))
        except AssertionError:
            report.verdict.diverged.append(user_id)


def rows(report: Report) -> Sequence[tuple[str, str]]:
    """The table, line by line: what, and its figures."""
    load, callbacks, samples = report.load, report.callbacks, report.samples
    timed = {"get": load.get, **load.scans, "store, wait=0": load.accepted, "store, wait=0.25": load.waited}

    def told(latencies: Latencies) -> str:
        figures = latencies.figures()
        return "  ".join(f"{name.removesuffix('_ms')} {value:,.10g}" for name, value in figures.items())

    lines = [(f"{name} (ms)", told(latencies)) for name, latencies in timed.items()]
    lines.append(("event-loop lag (ms)", told(report.lag)))
    lines.append(("callbacks over 10/25/50 ms CPU", " / ".join(map(str, callbacks.over.values()))))
    lines += [
        ("  longest callback", f"{one.cpu_ms} ms ({one.garbage_ms} of it garbage): {one.what}")
        for one in callbacks.longest
    ]
    lines.append(("garbage collections (ms CPU)", told(callbacks.collections)))
    first, last = samples[0].rss_mib, samples[-1].rss_mib
    lines.append(("memory (MiB)", f"first {first}  last {last}  a minute after warm-up {report.growth:+.2f}"))
    for name in ("fds", "threads", "queued"):
        values = [int(getattr(one, name)) for one in samples]
        lines.append((name, f"first {values[0]}  last {values[-1]}  most {max(values)}"))
    lines.append(("sessions opened in (s)", f"{report.open_seconds:.1f}"))
    lines.append(("drained in (s)", f"{report.drained_seconds:.2f}"))
    lines += [
        (f"fault: {one.fault}", f"{one.injected}, slowest recovery {one.slowest_recovery_s:.2f} s")
        for one in report.tallies()[1:]
    ]
    whole = report.tallies()[0]
    lines.append((f"acknowledged writes {whole.acked:,}", ", ".join(f"{getattr(whole, one)} {one}" for one in _HARM)))
    lines += [("MISSED", one) for one in report.missed()]
    lines += [("WRONG", one) for one in report.complaints()[:20]]
    return lines
