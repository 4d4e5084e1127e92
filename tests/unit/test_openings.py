"""Which of a client's queue numbers a mark in Postgres speaks of."""

from __future__ import annotations

import pytest

from hybrid_memory.messages import Mark, Opening, Start

FILE = (Start(3, 10, "c"), Start(4, 20, "d"), Start(7, 30, "g"))
"""Openings of one file; those between gave out nothing."""


@pytest.mark.parametrize(
    ("mark", "covered"),
    [
        # One's own, the last or an earlier one: all it has sent, and nothing that was accepted later.
        (Mark(35, 7, "g"), 35),
        (Mark(25, 4, "d"), 25),
        (Mark(25, 3, "c"), 19),
        (Mark(12, 2, "b"), 9),
        # One's own that gave out nothing, and so is not among those of the file any more.
        (Mark(25, 5, "e", (("e", 30), ("d", 20))), 25),
        # A copy's: what was accepted before they parted, by the one that parted first.
        (Mark(25, 6, "F", (("F", 22), ("D", 15), ("c", 10))), 14),
        (Mark(25, 6, "F", (("F", 25), ("c", 10))), 19),
        (Mark(40, 6, "F", (("F", 30), ("d", 20))), 29),
        # They parted before all that this file knows of.
        (Mark(25, 6, "F", (("F", 22), ("B", 5))), 9),
        (Mark(8, 6, "F", (("F", 6),)), 8),
        # Nothing is known of it: all below the openings that came after it.
        (Mark(25, 4, "X"), 19),
        (Mark(5, 1, "A", (("A", 1),)), 5),
    ],
)
def test_a_mark_speaks_of_what_was_accepted_before_its_opening_and_this_one_parted(mark: Mark, covered: int) -> None:
    opening = Opening(client_id="client", number=7, token="g", starts=FILE)
    assert opening.covered(mark) == covered
