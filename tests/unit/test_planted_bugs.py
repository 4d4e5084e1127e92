"""Every bug of the list can still be planted, and the tests that are to catch it exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.planted.bug import Bug
from tests.planted.catalogue import BUGS

REPOSITORY = Path(__file__).resolve().parents[2]
LISTED = 34


def test_every_bug_of_the_list_is_there_once() -> None:
    numbers = [bug.number for bug in BUGS]
    assert len(set(numbers)) == len(numbers)
    assert {int(re.sub(r"\D", "", number)) for number in numbers} == set(range(1, LISTED + 1))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.number)
def test_a_bug_is_planted_where_its_text_stands_once(bug: Bug, tmp_path: Path) -> None:
    assert bug.edits
    for file in {edit.file for edit in bug.edits}:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / file)
    for edit in bug.edits:
        edit.apply(tmp_path)
    for file in {edit.file for edit in bug.edits if edit.file.endswith(".py")}:
        compile((tmp_path / file).read_text(encoding="utf-8"), file, "exec")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.number)
def test_the_tests_that_are_to_catch_a_bug_exist(bug: Bug) -> None:
    assert bug.caught_by or bug.seeds
    for one in bug.caught_by:
        file, _, name = one.partition("::")
        text = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(async )?def {name}\(", text, re.MULTILINE)
