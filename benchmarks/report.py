"""The report of a run: the JSON document others read, and the table for people."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure
from hybrid_memory.sqlite.driver import choose_driver

SCHEMA = 1

# Characters from nothing to the limit, and to where everything further is drawn.
_LIMIT_AT = 60
_PLOT_WIDTH = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All figures of one run, and what is needed to run it again."""

    seed: int
    rounds: int
    machine: str
    commit: str
    figures: Sequence[Figure]

    @property
    def kept(self) -> bool:
        """Whether every limit is kept."""
        return all(figure.kept for figure in self.figures)

    def document(self) -> dict[str, object]:
        """The report as JSON has it."""
        return {
            "schema": SCHEMA,
            "commit": self.commit,
            "machine": self.machine,
            "seed": self.seed,
            "rounds": self.rounds,
            "figures": [figure.document() for figure in self.figures],
        }

    def show(self, console: Console) -> None:
        """Print the table."""
        table = Table(title=f"{self.machine}\ncommit {self.commit}, seed {self.seed}, {self.rounds} rounds")
        table.add_column("figure", no_wrap=True)
        for column in ("value", "p50", "p99", "max", "reference", "ratio", "limit"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("compared with", ratio=1)
        for figure in self.figures:
            table.add_row(*_cells(figure))
        console.print(table)
        for line in self.plot():
            console.print(line, highlight=False, markup=False, no_wrap=True)

    def plot(self) -> list[str]:
        """How near each figure is to its limit, round by round: a line each, with the limit at the same place."""
        limited = [figure for figure in self.figures if figure.shares]
        if not limited:
            return []
        heading = "each round and its limit"
        width = max(map(len, (heading, *(figure.name for figure in limited))))
        title = f"{heading:{width}} {'0':<{_LIMIT_AT}}| missed"
        return [title, *(f"{figure.name:{width}} {_dots(figure.shares)}" for figure in limited)]


def _dots(shares: Sequence[float]) -> str:
    line = [" "] * (_PLOT_WIDTH + 1)
    line[_LIMIT_AT] = "|"
    for share in shares:
        line[min(_PLOT_WIDTH, round(share * _LIMIT_AT))] = "o"
    return "".join(line).rstrip()


def _cells(figure: Figure) -> list[str]:
    verdict = "" if figure.limit is None else "[green]kept[/]" if figure.kept else "[bold red]MISSED[/]"
    sign = "≤" if figure.better == "lower" else "≥"
    limit = "" if figure.limit is None else f"{sign} {figure.limit:g}{'x' if figure.limit_on == 'ratio' else ''}"
    return [
        figure.name,
        f"{_shown(figure.value)} {figure.unit}",
        _shown(figure.percentile(0.5)),
        _shown(figure.percentile(0.99)),
        _shown(figure.percentile(1)),
        _shown(figure.reference_value),
        "" if figure.ratio is None else f"{figure.ratio:.2f}x",
        limit,
        verdict,
        figure.reference,
    ]


def _shown(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def machine(postgres_version: str | None) -> str:
    """The machine's class and the versions that matter; nothing that tells whose it is."""
    driver = choose_driver()
    parts = [
        f"{os.cpu_count()} x {_processor()}",
        f"{platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}",
        f"SQLite {driver.version} ({driver.name})",
    ]
    if postgres_version is not None:
        parts.append(f"PostgreSQL {postgres_version}")
    return ", ".join(parts)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown processor"


def commit() -> str:
    """The commit that is measured, with `+` behind it when files differ from it; empty outside a repository."""
    head = _git("rev-parse", "HEAD")
    return f"{head}+" if head and _git("status", "--porcelain") else head


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        asked = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""
