"""Plants the bugs of the list one at a time into a copy of the source, and runs the tests that have to catch each.

    python -m tests.planted [--only 4,7] [--jobs N] [--json FILE]

Before that the same tests are run on a copy without a bug. Exit 0 when they pass there and every bug is caught, else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.planted.bug import Bug
from tests.planted.catalogue import BUGS
from tests.planted.tree import FAILED, PASSED, SIMULATION, copied, run_seeds, run_tests


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one bug: the tests and seeds that caught it, each with its reason."""

    number: str
    bug: str
    caught_by: Sequence[tuple[str, str]]
    seconds: float
    instead: str
    trouble: str


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def try_out(bug: Bug) -> Outcome:
    """Plant one bug, and run its tests up to the first that fails, and its seeds up to the first that breaks a rule."""
    with copied() as root:
        for edit in bug.edits:
            edit.apply(root)
        runs = [run_tests(root, bug.caught_by)] if bug.caught_by else []
        runs += [run_seeds(root, bug.seeds)] if bug.seeds else []
    found = [run.told[0] for run in runs if run.code == FAILED and run.told]
    outcome = Outcome(
        number=bug.number,
        bug=bug.what,
        caught_by=found,
        seconds=round(sum(run.seconds for run in runs), 1),
        instead=bug.instead,
        trouble="".join(run.output[-2000:] for run in runs if not found),
    )
    for catcher, why in found or [("NOT CAUGHT", "")]:
        say(f"{bug.number:>4}  {outcome.seconds:6} s  {catcher}  {why[:200]}")
    return outcome


def files_of(ids: Iterable[str]) -> list[list[str]]:
    """Tests by their file, those of one file together: what they share is made once."""
    files: dict[str, set[str]] = {}
    for one in ids:
        files.setdefault(one.partition("::")[0], set()).add(one)
    return [[file] if file in named else sorted(named) for file, named in sorted(files.items())]


def without_bugs(bugs: Sequence[Bug], jobs: int) -> list[str]:
    """What fails of all those tests and seeds when nothing is planted."""
    files = files_of(one for bug in bugs for one in bug.caught_by)
    shares = [share for at in range(jobs) if (share := [one for file in files[at::jobs] for one in file])]
    failures: list[str] = []
    with copied() as root, ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(run_tests, root, share) for share in shares]
        runs += [pool.submit(run_seeds, root, seeds) for seeds in sorted({bug.seeds for bug in bugs} - {""})]
        for run in (one.result() for one in runs):
            if run.code != PASSED:
                failures += [f"{failed}  {why}" for failed, why in run.told] or [run.output[-2000:]]
    return failures


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each bug, as the README shows it."""
    lines = ["| # | Planted | Caught by | Seconds |", "|---|---|---|---|"]
    for one in outcomes:
        what = f"{one.bug}. Not as in the list: {one.instead}" if one.instead else one.bug
        catchers = ", ".join(f"`{catcher}`" for catcher, _ in one.caught_by) or "**not caught**"
        lines.append(f"| {one.number} | {what} | {catchers} | {one.seconds} |")
    return "\n".join(lines)


def chosen(only: str) -> list[Bug]:
    """The bugs named, or all."""
    wanted = {number.strip() for number in only.split(",")} - {""}
    return [bug for bug in BUGS if not wanted or bug.number in wanted]


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    options.add_argument("--only", default="", metavar="4,7", help="these numbers of the list")
    options.add_argument("--jobs", type=int, default=2, help="how many copies at once")
    options.add_argument("--json", type=Path, default=None)
    asked = options.parse_args(arguments)
    bugs = chosen(asked.only)
    failures = without_bugs(bugs, asked.jobs)
    for failure in failures:
        say(f"fails without a bug: {failure}")
    if failures:
        return 1
    say(f"without a bug all tests of {len(bugs)} bugs pass")
    with ThreadPoolExecutor(asked.jobs) as pool:
        outcomes = list(pool.map(try_out, bugs))
    say(table(outcomes))
    missed = [one for one in outcomes if not one.caught_by]
    for one in missed:
        say(f"not caught: {one.number} {one.bug} {one.trouble}")
    say(f"{len(outcomes) - len(missed)} of {len(outcomes)} caught")
    within_reach = sum(bool(bug.seeds) for bug in bugs)
    by_seed = sum(any(catcher.startswith(SIMULATION) for catcher, _ in one.caught_by) for one in outcomes)
    say(f"of these the simulation found {by_seed} of the {within_reach} within its reach")
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
