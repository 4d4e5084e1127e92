"""Showing an outcome: one JSON document for programs, tables on a terminal, tab-separated lines in a pipe."""

from __future__ import annotations

from typing import Final, assert_never, cast

import orjson
from rich import box
from rich.console import Console
from rich.json import JSON
from rich.table import Table as RichTable
from rich.text import Text

from hybrid_memory.cli.outcome import Cell, Column, Document, Line, Outcome, Section, Table, Tone, Toned
from hybrid_memory.cli.wording import printable, without_passwords
from hybrid_memory.control import Failure
from hybrid_memory.graph import JsonValue

_STYLES: Final[dict[Tone, str]] = {
    "plain": "",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "dim": "dim",
    "strong": "bold",
}


def show_json(command: str, outcome: Outcome, out: Console) -> None:
    """Print the one document."""
    failure = outcome.failure
    document: dict[str, JsonValue] = {
        "ok": failure is None,
        "command": command,
        "data": outcome.data,
        "error": None if failure is None else _shareable(failure).as_json(),
    }
    out.file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE).decode())
    out.file.flush()


def show(outcome: Outcome, out: Console, err: Console) -> None:
    """Print the sections for people, then the error."""
    for place, section in enumerate(outcome.sections):
        if out.is_terminal:
            out.print(_rich(section))
            continue
        if place and not isinstance(section, Line):
            out.file.write("\n")
        out.file.write(_plain(section) + "\n")
    out.file.flush()
    if outcome.failure is not None:
        failure = _shareable(outcome.failure)
        err.print(Text.assemble(("error: ", _STYLES["bad"]), printable(failure.message)), soft_wrap=True)
        if failure.fix:
            err.print(Text.assemble(("  fix: ", _STYLES["warn"]), printable(failure.fix)), soft_wrap=True)


def _shareable(failure: Failure) -> Failure:
    return Failure(
        code=failure.code,
        message=without_passwords(failure.message),
        retryable=failure.retryable,
        fix=without_passwords(failure.fix),
    )


def _rich(section: Section) -> RichTable | Text | JSON:
    match section:
        case Line(text=text, tone=tone):
            return Text(printable(text), style=_STYLES[tone])
        case Document():
            return JSON(_document(section))
        case Table(rows=()):
            return Text(section.empty, style=_STYLES["dim"])
        case Table():
            return _rich_table(section)
    assert_never(section)


def _rich_table(section: Table) -> RichTable:
    table = RichTable(
        title=Text(printable(section.title), style="bold") if section.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="cyan",
        pad_edge=False,
        show_edge=False,
    )
    for place, column in enumerate(section.columns):
        if column.below:
            continue
        numbers = all(isinstance(row[place], int) for row in section.rows)
        table.add_column(
            column.name,
            style=_STYLES[column.tone],
            justify="right" if numbers else "left",
            no_wrap=not column.folds,
            overflow="fold" if column.folds else "ellipsis",
        )
    for row in section.rows:
        table.add_row(*_rich_cells(section.columns, row))
    return table


def _rich_cells(columns: tuple[Column, ...], row: tuple[Cell, ...]) -> list[Text]:
    cells: list[Text] = []
    for column, cell in zip(columns, row, strict=True):
        shown = _rich_cell(cell)
        if column.below:
            shown.stylize(_STYLES[column.tone])
            cells[-1].append("\n").append_text(shown)
        else:
            cells.append(shown)
    return cells


def _rich_cell(cell: Cell) -> Text:
    if isinstance(cell, Toned):
        return Text(printable(cell.text), style=_STYLES[cell.tone])
    return Text(f"{cell:,}" if isinstance(cell, int) else printable(cell))


def _plain(section: Section) -> str:
    match section:
        case Line(text=text):
            return printable(text)
        case Document():
            return _document(section)
        case Table(columns=columns, rows=rows):
            lines = [[column.name for column in columns], *[[_plain_cell(cell) for cell in row] for row in rows]]
            return "\n".join("\t".join(line) for line in lines)
    assert_never(section)


def _plain_cell(cell: Cell) -> str:
    text = cell.text if isinstance(cell, Toned) else str(cell)
    return printable(text.replace("\n", " "))


def _document(section: Document) -> str:
    # The codes that `printable` writes are JSON's own escapes.
    text = orjson.dumps(cast("object", section.value), option=orjson.OPT_INDENT_2).decode()
    return printable(text)
