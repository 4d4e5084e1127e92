"""What a search in a user's text index finds, and that it is the user's own, complete and current."""

from __future__ import annotations

import math
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from hybrid_memory.migrations import load
from hybrid_memory.sqlite.driver import SqliteModule, choose_driver
from hybrid_memory.sqlite.search_index import SearchIndexes, UserSearchIndex
from tests.integration.search_support import NODES_AS_THE_INDEX_READS_THEM, ROW_BLOCK_BITS, HotFile, Searcher, during

ANN, BEA = 1, 2
WORDS = ("lake", "coffee", "museum", "violin", "garden", "winter", "bicycle", "letter", "harbour", "candle", "forest")


@pytest.fixture(params=["chosen", "standard"])
def hot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HotFile]:
    """On the SQLite this platform gets, and on the one where there is no other (it keeps the text in the index)."""
    library = choose_driver().module if request.param == "chosen" else cast("SqliteModule", sqlite3)
    with closing(HotFile(library, tmp_path / "hot.db", NODES_AS_THE_INDEX_READS_THEM)) as hot:
        yield hot


@pytest.fixture
def indexes(hot: HotFile) -> Iterator[SearchIndexes]:
    with closing(SearchIndexes(hot.driver, hot.path)) as indexes:
        yield indexes


@pytest.fixture
def searcher(hot: HotFile, indexes: SearchIndexes) -> Searcher:
    return Searcher(hot, indexes)


def sentences(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, weights=range(1, 12), k=chance.randint(3, 20))) for _ in range(count)]


def test_the_better_match_comes_first(hot: HotFile, searcher: Searcher) -> None:
    matching = ["coffee with milk and much else besides", "violin lesson", "coffee coffee", "violin coffee"]
    hot.put_many(ANN, [*matching, *["nothing of it"] * 20])
    assert searcher.numbers(ANN, "violin coffee") == [3, 2, 1, 0]


def test_scores_are_above_zero_and_tell_matches_apart(hot: HotFile, searcher: Searcher) -> None:
    hot.put_many(ANN, ["coffee", "coffee and a long walk by the lake in winter", *sentences(1, 50)])
    scores = [score for _, score in searcher.scores(ANN, "coffee lake walk")]
    assert all(score > 0 for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 2


def test_at_most_the_limit_is_returned_and_it_is_the_best(hot: HotFile, searcher: Searcher) -> None:
    hot.put_many(ANN, sentences(2, 200))
    assert searcher.scores(ANN, "lake violin", 7) == searcher.scores(ANN, "lake violin")[:7]


def test_summary_tags_and_entity_are_searched_and_a_name_outweighs_text(hot: HotFile, searcher: Searcher) -> None:
    hot.put(ANN, 1, "we talked about acme and others")
    hot.put(ANN, 2, "nothing", entity_id="acme")
    hot.put(ANN, 3, "nothing", tags=["acme", "x"])
    hot.put(ANN, 4, "nothing", summary="a call with acme today")
    for number in range(5, 20):
        hot.put(ANN, number, "unrelated words about something else")
    found = searcher.numbers(ANN, "acme")
    assert found[0] == 2
    assert set(found) == {1, 2, 3, 4}


def test_deleted_rows_are_not_found(hot: HotFile, searcher: Searcher) -> None:
    hot.put_many(ANN, ["coffee", "coffee"])
    hot.bury(ANN << ROW_BLOCK_BITS)
    assert searcher.numbers(ANN, "coffee") == [1]


def test_no_row_of_another_user_is_found(hot: HotFile, searcher: Searcher) -> None:
    hot.put(ANN, 0, "coffee")
    for other in (ANN - 1, ANN + 1):
        hot.put(other, 0, "coffee")
        hot.put(other, 2**32 - 1, "coffee")
    assert searcher.numbers(ANN, "coffee") == [0]
    assert searcher.numbers(3, "coffee") == []


def test_a_row_marked_for_the_wrong_user_stays_out(hot: HotFile, indexes: SearchIndexes, searcher: Searcher) -> None:
    hot.put(ANN, 0, "violin")
    searcher.numbers(ANN, "violin")
    indexes.mark_changed(ANN, [hot.put(BEA, 0, "coffee"), hot.put(0, 5, "coffee")])
    assert searcher.numbers(ANN, "coffee") == []


def test_another_users_words_do_not_change_a_ranking(hot: HotFile, indexes: SearchIndexes, searcher: Searcher) -> None:
    hot.put_many(ANN, sentences(3, 100))
    before = searcher.scores(ANN, "lake coffee candle")
    hot.put_many(BEA, ["lake coffee"] * 500)
    searcher.numbers(BEA, "lake")
    indexes.drop(ANN)
    assert searcher.scores(ANN, "lake coffee candle") == before


def test_a_search_sees_the_changes_marked_before_it(hot: HotFile, indexes: SearchIndexes, searcher: Searcher) -> None:
    hot.put_many(ANN, ["coffee", "violin", "garden"])
    assert searcher.numbers(ANN, "coffee") == [0]
    changed = hot.put(ANN, 1, "coffee garden")
    added = hot.put(ANN, 3, "violin")
    hot.bury(ANN << ROW_BLOCK_BITS)
    indexes.mark_changed(ANN, [ANN << ROW_BLOCK_BITS, changed, added])
    assert searcher.numbers(ANN, "coffee") == [1]
    assert searcher.numbers(ANN, "violin") == [3]
    assert set(searcher.numbers(ANN, "garden")) == {1, 2}


def test_a_revived_row_is_found_again(hot: HotFile, indexes: SearchIndexes, searcher: Searcher) -> None:
    row_id = hot.put(ANN, 0, "coffee")
    for _ in range(2):
        hot.bury(row_id)
        indexes.mark_changed(ANN, [row_id])
        assert searcher.numbers(ANN, "coffee") == []
        hot.put(ANN, 0, "coffee")
        indexes.mark_changed(ANN, [row_id])
        assert searcher.numbers(ANN, "coffee") == [0]


def test_a_much_changed_index_answers_as_a_new_one(hot: HotFile, indexes: SearchIndexes, searcher: Searcher) -> None:
    chance = random.Random(4)
    hot.put_many(ANN, sentences(5, 300))
    searcher.numbers(ANN, "lake")
    for text in sentences(6, 400):
        row_id = hot.put(ANN, chance.randrange(330), text)
        if chance.random() < 0.3:
            hot.bury(row_id)
        indexes.mark_changed(ANN, [row_id])
        searcher.numbers(ANN, "lake")
    with closing(UserSearchIndex(hot.driver, hot.path, ANN)) as fresh:
        fresh.extend()
        assert fresh.row_count == len({row_id for word in WORDS for row_id, _ in searcher.scores(ANN, word)})
        for word in WORDS:
            expected = dict(fresh.search(f'"{word}"', 1_000))
            drift = math.log(1.25) * 3
            assert dict(searcher.scores(ANN, word)) == pytest.approx(expected, abs=drift)


def test_scores_are_exact_again_once_a_quarter_of_the_rows_has_changed(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    hot.put_many(ANN, sentences(10, 100))
    searcher.numbers(ANN, "lake")
    first = hot.latest_index()
    for number, text in enumerate(sentences(11, 26)):
        indexes.mark_changed(ANN, [hot.put(ANN, number, text)])
        searcher.numbers(ANN, "lake")
    scores = dict(searcher.scores(ANN, "lake candle"))
    if hot.driver.version_info >= (3, 43, 0):
        assert hot.latest_index() is not first
    with closing(UserSearchIndex(hot.driver, hot.path, ANN)) as fresh:
        fresh.extend()
        assert scores == pytest.approx(dict(fresh.search('"lake" OR "candle"', 1_000)))


def test_a_change_committed_and_marked_during_the_build_is_not_lost(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    indexes.feed(ANN)
    hot.put_many(ANN, ["coffee"] * 50)

    def change() -> Iterator[None]:
        indexes.mark_changed(ANN, [hot.put(ANN, 7, "violin"), hot.put(ANN, 50, "violin")])
        yield

    during(hot.latest_index(), change())
    assert searcher.numbers(ANN, "violin") == [50, 7]
    assert 7 not in searcher.numbers(ANN, "coffee")


def test_what_was_committed_before_the_first_search_needs_no_mark(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    indexes.mark_changed(ANN, [hot.put(ANN, 0, "coffee")])
    assert indexes.user_nos() == ()
    assert searcher.numbers(ANN, "coffee") == [0]


def test_every_search_sees_all_that_was_marked_while_another_thread_writes(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    marked = threading.Semaphore(0)

    def write() -> None:
        for number in range(150):
            indexes.mark_changed(ANN, [hot.put(ANN, number, f"word{number}")])
            marked.release()

    thread = threading.Thread(target=write)
    thread.start()
    for number in range(150):
        marked.acquire()
        if number % 40 == 0:
            indexes.drop(ANN)
        assert searcher.numbers(ANN, f"word{number}") == [number]
    thread.join()


def test_a_streamed_load_is_found_as_if_it_had_been_there(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    texts = sentences(7, 500)
    for start in range(0, 500, 100):
        for number in range(start, start + 100):
            hot.put(ANN, number, texts[number])
        indexes.feed(ANN)
    hot.put_many(BEA, texts)
    indexes.prepare(ANN, hot.reader)
    indexes.feed(ANN)
    streamed = searcher.scores(ANN, "lake coffee violin")
    at_once = searcher.scores(BEA, "lake coffee violin")
    shift = (BEA - ANN) << ROW_BLOCK_BITS
    assert {row_id + shift: score for row_id, score in streamed} == pytest.approx(dict(at_once))


def test_rows_changed_after_they_were_fed_are_found_as_they_are(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    hot.put_many(ANN, ["coffee", "coffee"])
    indexes.feed(ANN)
    hot.bury(ANN << ROW_BLOCK_BITS)
    indexes.mark_changed(ANN, [ANN << ROW_BLOCK_BITS, hot.put(ANN, 2, "coffee")])
    assert searcher.numbers(ANN, "coffee") == [2, 1]


def test_no_search_keeps_the_log_from_being_cut(hot: HotFile, indexes: SearchIndexes, searcher: Searcher) -> None:
    hot.put_many(ANN, sentences(8, 200))
    searcher.numbers(ANN, "lake")
    indexes.mark_changed(ANN, [hot.put(ANN, 0, "coffee")])
    searcher.numbers(ANN, "coffee")
    assert hot.writer.execute("pragma wal_checkpoint(truncate)").fetchone() == (0, 0, 0)


def test_one_users_build_does_not_keep_anothers_search_waiting(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    hot.put_many(BEA, ["violin"])
    found: list[int] = []

    def search_meanwhile() -> Iterator[None]:
        found.extend(searcher.numbers(BEA, "violin"))
        yield

    indexes.feed(ANN)
    hot.put_many(ANN, ["coffee"] * 50)
    during(hot.latest_index(), search_meanwhile())
    assert len(searcher.numbers(ANN, "coffee")) == 50
    assert found == [0]


def test_an_index_dropped_during_its_use_is_finished_with_first(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    hot.put_many(ANN, ["coffee"] * 50)
    searcher.numbers(ANN, "coffee")
    memory = hot.latest_index()

    def drop() -> Iterator[None]:
        indexes.drop(ANN)
        yield

    during(memory, drop())
    assert len(searcher.numbers(ANN, "coffee")) == 50
    assert indexes.user_nos() == ()
    with pytest.raises(hot.driver.errors):
        memory.execute("select 1")
    assert len(searcher.numbers(ANN, "coffee")) == 50


def test_a_search_that_waited_for_a_dropped_index_gets_a_new_one(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    hot.put_many(ANN, ["coffee"] * 50)
    hot.put_many(BEA, ["violin"])
    searcher.numbers(ANN, "coffee")
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.extend(searcher.numbers(ANN, "coffee")))

    def drop_it_while_another_waits() -> Iterator[None]:
        searcher.numbers(BEA, "violin")
        waiting.start()
        while indexes.user_nos() != (BEA, ANN):
            waiting.join(0.001)
        indexes.drop(ANN)
        yield

    during(hot.latest_index(), drop_it_while_another_waits())
    assert len(searcher.numbers(ANN, "coffee")) == 50
    waiting.join()
    assert len(found) == 50
    assert indexes.user_nos() == (BEA, ANN)


def test_the_least_recently_searched_index_gives_way_to_the_budget(hot: HotFile) -> None:
    users = [1, 2, 3, 4]
    for user_no in users:
        hot.put_many(user_no, sentences(user_no, 100))
    with closing(SearchIndexes(hot.driver, hot.path)) as measured:
        measured.prepare(1, hot.reader)
        one = measured.size_bytes()
    with closing(SearchIndexes(hot.driver, hot.path, budget_bytes=one * 7 // 2)) as indexes:
        searcher = Searcher(hot, indexes)
        for user_no in [1, 2, 3, 1, 4]:
            assert searcher.numbers(user_no, "lake")
        assert indexes.user_nos() == (3, 1, 4)
        assert indexes.size_bytes() <= one * 7 // 2
        assert searcher.numbers(2, "lake")
        assert indexes.user_nos() == (1, 4, 2)


def test_an_index_beyond_the_budget_still_answers(hot: HotFile) -> None:
    hot.put_many(ANN, ["coffee"])
    hot.put_many(BEA, ["violin"])
    with closing(SearchIndexes(hot.driver, hot.path, budget_bytes=0)) as indexes:
        searcher = Searcher(hot, indexes)
        for _ in range(2):
            assert searcher.numbers(ANN, "coffee") == [0]
            assert searcher.numbers(BEA, "violin") == [0]
            assert indexes.user_nos() == (BEA,)


def test_no_index_is_made_ahead_at_the_cost_of_one_that_is_searched(hot: HotFile) -> None:
    hot.put_many(ANN, ["coffee"])
    hot.put_many(BEA, ["violin"])
    with closing(SearchIndexes(hot.driver, hot.path, budget_bytes=1)) as indexes:
        assert Searcher(hot, indexes).numbers(ANN, "coffee") == [0]
        indexes.prepare(BEA, hot.reader)
        assert indexes.user_nos() == (ANN,)


def test_the_size_told_grows_with_the_rows(hot: HotFile, indexes: SearchIndexes) -> None:
    hot.put_many(ANN, sentences(9, 50))
    hot.put_many(BEA, sentences(9, 2_000))
    indexes.prepare(ANN, hot.reader)
    small = indexes.size_bytes()
    indexes.prepare(BEA, hot.reader)
    assert indexes.size_bytes() - small > small


def test_an_index_that_failed_is_dropped_and_made_anew(
    hot: HotFile, indexes: SearchIndexes, searcher: Searcher
) -> None:
    hot.put_many(ANN, ["coffee"])
    hot.writer.execute("alter table nodes rename to moved")
    with pytest.raises(hot.driver.errors):
        searcher.numbers(ANN, "coffee")
    assert indexes.user_nos() == ()
    hot.writer.execute("alter table moved rename to nodes")
    assert searcher.numbers(ANN, "coffee") == [0]


def test_a_change_whose_taking_in_failed_is_not_lost(hot: HotFile, indexes: SearchIndexes, searcher: Searcher) -> None:
    hot.put_many(ANN, ["coffee"])
    searcher.numbers(ANN, "coffee")
    indexes.mark_changed(ANN, [hot.put(ANN, 1, "coffee")])
    hot.writer.execute("alter table nodes rename to moved")
    with pytest.raises(hot.driver.errors):
        searcher.numbers(ANN, "coffee")
    hot.writer.execute("alter table moved rename to nodes")
    assert searcher.numbers(ANN, "coffee") == [1, 0]


def test_closing_gives_all_indexes_back(hot: HotFile, indexes: SearchIndexes, searcher: Searcher) -> None:
    hot.put_many(ANN, ["coffee"])
    searcher.numbers(ANN, "coffee")
    memory = hot.latest_index()
    indexes.close()
    assert indexes.size_bytes() == 0
    with pytest.raises(hot.driver.errors):
        memory.execute("select 1")


def test_dropping_a_user_without_an_index_does_nothing(indexes: SearchIndexes) -> None:
    indexes.drop(ANN)
    assert indexes.user_nos() == ()


def test_the_shipped_schema_has_what_the_index_reads(tmp_path: Path) -> None:
    shipped = "".join(migration.sql for migration in load("sqlite"))
    with (
        closing(HotFile(choose_driver().module, tmp_path / "hot.db", shipped)) as hot,
        closing(SearchIndexes(hot.driver, hot.path)) as indexes,
    ):
        searcher = Searcher(hot, indexes)
        assert searcher.numbers(ANN, "coffee") == []
        indexes.mark_changed(ANN, [ANN << ROW_BLOCK_BITS])
        assert searcher.numbers(ANN, "coffee") == []
