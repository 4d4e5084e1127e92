"""The table of faults says what is so: every test it names exists, and every fault has its row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FAULTS = 55
ROWS = [line for line in (TESTS / "faults" / "README.md").read_text().splitlines() if re.match(r"\| \d+ \|", line)]
NAMED = sorted({(file, name) for row in ROWS for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", row)})


def test_every_fault_has_one_row_that_names_a_test_or_says_that_it_is_open() -> None:
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, FAULTS + 1))
    silent = [row for row in ROWS if "::test_" not in row and not re.search(r"\bopen\b|\bthe same test", row)]
    assert silent == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_the_table_names_exists(file: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE)
