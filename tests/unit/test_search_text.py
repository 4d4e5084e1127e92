"""What is typed into a search becomes a query that is safe and means what was typed."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_memory.sqlite.driver import choose_driver
from hybrid_memory.sqlite.search_text import MAX_QUERY_BYTES, MAX_QUERY_WORDS, STOP_WORDS, match_expression

HOSTILE = [
    '"',
    '""" "',
    "c++",
    "foo@bar.com",
    "C#",
    "50%",
    "a-b",
    "-apple",
    "text:apple",
    "AND",
    "NOT apple",
    "apple OR",
    "NEAR(",
    "NEAR(apple pie, 3)",
    "*",
    "app*",
    "^apple",
    "{text}:apple",
    "- {names}: apple",
    "apple\x00pie",
    "(" * 300,
    "apple" + ")" * 300,
    "'; drop table words; --",
    "\ud800apple",
    "İstanbul ẞ ǅ",
    "cafe\u0301 naïve",
    "\u0301leading mark",
    "हिन्दी 中文 日本語 한국어 ไทย",
    "it🥰 🤔 👨\u200d👩\u200d👧",
    "x\u200by\u202ez",
    "①② ½ Ⅷ",
    "\u19b0a\u19c8 a\u1cf2b",
    "snake_case kebab-case dotted.name path/to/file.py",
    "word " * 20_000,
    "x" * 100_000,
]


def words_of(text: str) -> list[str]:
    expression = match_expression(text)
    return [] if expression is None else [word.strip('"') for word in expression.split(" OR ")]


def finds_itself(stored: str, typed: str) -> bool:
    driver = choose_driver()
    with closing(driver.connect_memory()) as connection:
        connection.execute("create virtual table words using fts5 (text, tokenize = 'porter unicode61')")
        connection.execute("insert into words (text) values (?)", (stored,))
        match = match_expression(typed)
        assert match is not None
        return connection.execute("select 1 from words where words match ?", (match,)).fetchone() is not None


@pytest.mark.parametrize("text", ["", " ", "\n\t", "...", '"', "*", "( ) { } : ^ -", "___", "\x00", "\ud800", "👍"])
def test_a_text_without_a_word_gives_no_query(text: str) -> None:
    assert match_expression(text) is None


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_typed_is_a_query_sqlite_understands(text: str) -> None:
    match = match_expression(text)
    with closing(choose_driver().connect_memory()) as connection:
        connection.execute("create virtual table words using fts5 (text, names, tokenize = 'porter unicode61')")
        connection.execute("insert into words (text) values ('nothing to be found')")
        if match is not None:
            assert connection.execute("select rowid from words where words match ?", (match,)).fetchall() == []


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_query_sqlite_understands(text: str) -> None:
    match = match_expression(text)
    with closing(choose_driver().connect_memory()) as connection:
        connection.execute("create virtual table words using fts5 (text, tokenize = 'porter unicode61')")
        if match is not None:
            connection.execute("select rowid from words where words match ?", (match,)).fetchall()


@given(st.text(st.characters(categories=["Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No"]), min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_stored_word_of_any_script_is_found_by_typing_it(word: str) -> None:
    assert finds_itself(f"before {word}, after", word)


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("I had a café au lait", "CAFE"),
        ("I had a cafe\u0301 au lait", "café"),
        ("I had a café au lait", "cafe\u0301"),
        ("flight to İstanbul", "istanbul"),
        ("flight to Istanbul", "İSTANBUL"),
        ("we were running late", "run"),
        ("mail foo@bar.com about C#", "foo@bar.com"),
        ("see src/hybrid_memory/clock.py", "clock.py"),
        ("so_called snake_case", "snake"),
        ("did you see it", "did you"),
        ("pizza🥰 tonight", "tonight🥰"),
    ],
)
def test_what_is_typed_finds_what_was_meant(stored: str, typed: str) -> None:
    assert finds_itself(stored, typed)


def test_the_word_limit_of_the_alphabet_is_that_of_the_index() -> None:
    """Every letter and digit Python knows is part of a word for the index too, bar a few that became letters later."""
    letters = [chr(code) for code in range(0x80, 0x110000) if chr(code).isalnum()]
    with closing(choose_driver().connect_memory()) as connection:
        connection.execute("create virtual table words using fts5 (text, tokenize = 'unicode61')")
        connection.execute("create virtual table terms using fts5vocab (words, instance)")
        connection.execute("begin")
        connection.executemany(
            "insert into words (rowid, text) values (?, ?)", [(ord(letter), f"q{letter}q") for letter in letters]
        )
        cut = connection.execute("select doc from terms group by doc having count(*) > 1").fetchall()
    assert {code for (code,) in cut} <= {*range(0x19B0, 0x19CA), 0x1CF2, 0x1CF3}


def test_stop_words_are_left_out() -> None:
    assert words_of("When did Caroline go to the museum?") == ["Caroline", "go", "museum"]


def test_stop_words_count_where_there_is_nothing_else() -> None:
    assert words_of("to be or not to be") == ["to", "be", "or", "not"]


def test_contractions_leave_no_crumbs() -> None:
    assert words_of("I don't think she's what you'd paint") == ["think", "paint"]


def test_a_word_counts_once_whatever_its_case() -> None:
    assert len(words_of("Apple apple APPLE pie")) == 2


def test_operators_are_words_like_others() -> None:
    assert words_of("apple NEAR pie* ^tart names:x") == ["apple", "NEAR", "pie", "tart", "names", "x"]


@pytest.mark.parametrize("count", [MAX_QUERY_WORDS, MAX_QUERY_WORDS + 1])
def test_at_most_so_many_words_are_looked_for(count: int) -> None:
    assert len(words_of(" ".join(f"w{number}" for number in range(count)))) == MAX_QUERY_WORDS


def test_the_words_are_the_first_that_say_something() -> None:
    text = " ".join([*sorted(STOP_WORDS)[:100], "museum"])
    assert words_of(text) == ["museum"]


@pytest.mark.parametrize(("length", "found"), [(MAX_QUERY_BYTES, 2), (MAX_QUERY_BYTES + 1, 1)])
def test_a_word_that_passes_the_byte_limit_is_not_cut_in_half(length: int, found: int) -> None:
    assert len(words_of("apple " + "é" * 500 + "x" * (length - 1_006))) == found


def test_a_character_cut_by_the_byte_limit_is_left_out() -> None:
    assert words_of("apple " + " " * (MAX_QUERY_BYTES - 7) + "é") == ["apple"]
