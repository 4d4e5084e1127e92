"""`doctor`: what is installed, reachable and safe, and what to do about the rest."""

from __future__ import annotations

import argparse

from hybrid_memory.cli.checks.directory import check_directory
from hybrid_memory.cli.checks.finding import Finding
from hybrid_memory.cli.checks.machine import check_machine
from hybrid_memory.cli.checks.server import check_postgres
from hybrid_memory.cli.outcome import Column, Line, Outcome, Table, Tone, Toned
from hybrid_memory.cli.places import Place
from hybrid_memory.cli.wording import counted
from hybrid_memory.control import Failure

_TONES: dict[str, Tone] = {"ok": "good", "warn": "warn", "fail": "bad"}


async def doctor(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Look at everything; one failed check makes the whole a negative result."""
    del arguments
    findings = [*check_machine(place), *await check_directory(place), *await check_postgres(place)]
    bad = sum(finding.state == "fail" for finding in findings)
    weak = sum(finding.state == "warn" for finding in findings)
    failure = None
    if bad:
        first = next(finding for finding in findings if finding.state == "fail")
        failure = Failure(code="unhealthy", message=f"{counted(bad, 'check')} failed: {first.detail}", fix=first.fix)
    return Outcome(
        data={
            "checks": [finding.as_json() for finding in findings],
            "ok": len(findings) - bad - weak,
            "warn": weak,
            "fail": bad,
        },
        sections=(_table(findings),) if bad else (_table(findings), _verdict(weak)),
        failure=failure,
    )


def _table(findings: list[Finding]) -> Table:
    return Table(
        title="",
        columns=(
            Column(name=""),
            Column(name="check"),
            Column(name="found", folds=True),
            Column(name="what to do", folds=True),
        ),
        rows=tuple((Toned(text=one.state, tone=_TONES[one.state]), one.name, one.detail, one.fix) for one in findings),
    )


def _verdict(weak: int) -> Line:
    if weak:
        return Line(text=f"Works; {counted(weak, 'thing')} could be better.", tone="warn")
    return Line(text="All is well.", tone="good")
