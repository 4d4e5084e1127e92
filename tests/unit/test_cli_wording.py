"""How the command line words what it shows: safe at a terminal, without secrets, readable."""

from __future__ import annotations

import pytest

from hybrid_memory.cli.wording import clipped, counted, printable, room, span, without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://app:s3cret@host:5432/db", "postgresql://app:***@host:5432/db"),
        (
            "postgresql://app:p:s3cret@host/db and postgres://b:s3cret@h",
            "postgresql://app:***@host/db and postgres://b:***@h",
        ),
        ("postgresql://host/db?user=app&password=s3cret&port=1", "postgresql://host/db?user=app&password=***&port=1"),
        ("postgresql://app@host/db", "postgresql://app@host/db"),
        ("no DSN: a@b at 10:30", "no DSN: a@b at 10:30"),
    ],
)
def test_no_password_of_a_dsn_is_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, zoë, 日本語 and 🙂\n", "plain, zoë, 日本語 and 🙂\n"),
        ("\x1b[31mred", "\\u001b[31mred"),
        ("a\rb\x07\x9b", "a\\u000db\\u0007\\u009b"),
        ("\u202eevil\u2066\u200b", "\\u202eevil\\u2066\\u200b"),
    ],
)
def test_nothing_shown_can_steer_a_terminal_or_turn_the_reading_direction(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_texts_are_clipped_to_one_line() -> None:
    assert clipped("a\n  b\tc") == "a b c"
    assert clipped("x" * 500, length=10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "-"), (0.4, "0 s"), (59, "59 s"), (60, "1 min"), (7_200, "2 h"), (200_000, "2 d")]
)
def test_durations_are_told_in_their_largest_unit(seconds: float | None, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (2_048, "2 KiB"), (3 * 2**20, "3 MiB"), (2**31, "2.0 GiB")])
def test_sizes_are_told_in_binary_units(count: int, shown: str) -> None:
    assert room(count) == shown


def test_counts_agree_with_their_noun() -> None:
    assert [counted(1, "user"), counted(2_000, "user"), counted(2, "memory", "memories")] == [
        "1 user",
        "2,000 users",
        "2 memories",
    ]
