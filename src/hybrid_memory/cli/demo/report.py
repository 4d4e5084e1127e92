"""What the demo shows at the end, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hybrid_memory.cli.demo.errand import Answer, Timed
from hybrid_memory.cli.demo.story import Outcome

_QUESTIONS_SHOWN: Final = 8
_LONGEST: Final = 70


def show(console: Console, outcome: Outcome, steps: Sequence[Timed], notes: Sequence[str]) -> None:
    """Print the steps, some answers, and the comparison."""
    console.print(_steps(steps))
    if outcome.answers.answers:
        console.print(_answers(outcome.answers.answers, room=max(20, (console.width - 22) // 2)))
        console.print()
    console.print(_comparison(outcome))
    for note in notes:
        console.print(Text(f"note: {note}", style="dim"))


def _steps(steps: Sequence[Timed]) -> Table:
    table = Table(title="What happened", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("step")
    table.add_column("count", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("each", justify="right", style="dim")
    for step in steps:
        table.add_row(step.name, f"{step.count:,}" if step.count else "", f"{step.ms:,.1f}", _each(step))
    return table


def _each(step: Timed) -> str:
    if step.count < 2:  # noqa: PLR2004 - a single thing took what the step took
        return ""
    microseconds = step.ms * 1000 / step.count
    return f"{microseconds:,.1f} µs" if microseconds < 1000 else f"{microseconds / 1000:,.1f} ms"  # noqa: PLR2004 - units


def _answers(answers: Sequence[Answer], *, room: int) -> Group:
    spread = answers[:: max(1, -(-len(answers) // _QUESTIONS_SHOWN))]
    table = Table(title="Asked of the second process", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("question", no_wrap=True)
    table.add_column("answer", no_wrap=True)
    table.add_column("", width=1)
    table.add_column("ms", justify="right")
    for answer in spread:
        mark = Text("✓", style="green") if answer.right else Text("·", style="dim")
        table.add_row(_cut(answer.question, room), _cut(answer.answer, room), mark, f"{answer.ms:.1f}")
    lines: list[Table | Text] = [table]
    scored = [answer for answer in answers if answer.scored]
    if len(spread) < len(answers) and scored:
        right = sum(answer.right for answer in scored)
        recall = sum(answer.recall for answer in scored) / len(scored)
        lines.append(
            Text(
                f"{len(answers):,} questions asked; {len(scored):,} of them can be answered from what was learned."
                f" {right:,} of these had evidence among their first 10 hits (recall {recall:.1%})."
            )
        )
    return Group(*lines)


def _cut(words: str, room: int) -> Text:
    text = Text(" ".join(words.split()))
    text.truncate(min(room, _LONGEST), overflow="ellipsis")
    return text


def _comparison(outcome: Outcome) -> Group:
    table = Table(title="What is there now", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("expected", justify="right")
    table.add_column("found", justify="right")
    table.add_column("", width=1)
    answers, wrote = outcome.answers, outcome.written_in_outage
    _row(table, "stored, found again", outcome.stored, answers.found)
    if outcome.outage:
        _row(table, "in the outage: PENDING then", wrote, outcome.pending_in_outage)
        _row(table, "in the outage: DURABLE now", wrote, outcome.durable_after)
        _row(table, "in the outage: found again", wrote, answers.present_after)
    _row(table, "digest: Postgres, first process", outcome.durable, outcome.hot)
    _row(table, "digest: Postgres, second process", outcome.durable, answers.digest)
    lines: list[Table | Text] = [table]
    if not outcome.outage:
        lines.append(Text("the server named with --dsn was not killed: there was no outage", style="yellow"))
    healthy, away = outcome.read_us.get("healthy"), outcome.read_us.get("outage")
    if healthy is not None and away is not None:
        lines.append(Text(f"median read: {healthy} µs with Postgres there, {away} µs while it was dead"))
    if answers.wordless:
        lines.append(Text(f"without a word to search for, found by id alone: {answers.wordless:,}"))
    lines.append(
        Text("everything acknowledged is there", style="bold green")
        if outcome.ok
        else Text(f"NOT everything is there: {', '.join(answers.missing) or 'see above'}", style="bold red")
    )
    return Group(*lines)


def _row(table: Table, name: str, expected: int | str, found: int | str) -> None:
    mark = Text("✓", style="green") if expected == found else Text("✗", style="bold red")
    table.add_row(name, _shown(expected), _shown(found), mark)


def _shown(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value
