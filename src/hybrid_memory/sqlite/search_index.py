"""The text index of each user: in memory, apart from every other user's, made from the file and thrown away at will."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from hybrid_memory.sqlite.driver import Driver, configure_index, file_uri

# From this version on FTS5 can delete from a table that does not keep the text.
_FORGETS_WITHOUT_TEXT: Final = (3, 43, 0)

# FTS5 goes on counting deleted rows when it weighs how rare a word is (seen in 3.53.4, without the text it cannot do
# otherwise). At this share of deletions an index is made anew; until then a word's rarity is at most ln(1.25) too high.
_WORN_AT: Final = 0.25

# How many pages of an index one taking-in of changes merges at most.
_MERGED_PAGES: Final = 64

# What an index takes beside its pages: measured 0.1 MB for an empty one, 0.4 MB at 1,000 rows, 0.9 MB at 10,000.
_FIXED_BYTES: Final = 256 * 1024
_BYTES_PER_PAGE_BYTE: Final = 1.25

DEFAULT_BUDGET_BYTES: Final = 512 * 1024 * 1024


class UserSearchIndex:
    """One user's words, found by bm25. Reads that user's rows in the file, no others.

    To be used by one thread at a time. Once a method has raised, it may only be closed: it is rebuilt, not mended.
    """

    def __init__(self, driver: Driver, path: Path, user_no: int) -> None:
        self._uri = f"{file_uri(path)}?mode=ro"
        self._user_no = user_no
        self._extended_to = 0
        self._row_count = 0
        self._deleted = 0
        self._forgets = driver.version_info >= _FORGETS_WITHOUT_TEXT
        self._memory = driver.connect_memory()
        configure_index(self._memory)
        # One for everything: a connection keeps a weak reference to each cursor it ever made, up to some hundred, and
        # with an index for each of a thousand users the garbage collector would have all of them to look through.
        self._cursor = self._memory.cursor()
        # Neither form is detail=column: bm25 needs the places of a word, and is 0 for every row without them.
        if self._forgets:
            self._cursor.execute(
                "create virtual table words using fts5 (text, summary, tags, names,"
                " content = '', contentless_delete = 1, tokenize = 'porter unicode61')"
            )
        else:
            self._cursor.execute(
                "create virtual table words using fts5 (text, summary, tags, names, tokenize = 'porter unicode61')"
            )
        # A load of 100,000 rows of 450 bytes becomes one piece: a third less work than writing small ones and merging.
        self._tune("hashsize", 32 * 1024 * 1024)
        # Left alone, FTS5 merges all pieces at the sixteenth change: 1 s for 100,000 rows, in the way of a search. So
        # it may not by itself; `apply` merges a bounded number of pages each time (at most 30 ms, on average 1 ms).
        self._tune("automerge", 0)
        self._tune("crisismerge", 1_000)
        self._tune("usermerge", 16)

    def _tune(self, setting: str, value: int) -> None:
        self._cursor.execute("insert into words (words, rank) values (?, ?)", (setting, value))

    def extend(self) -> None:
        """Take in the rows that were added to the file since the last call; new rows are numbered upwards.

        Rows go from the file to the index inside SQLite, with no Python in between: other threads run meanwhile. The
        file's snapshot is held for this call only.
        """
        self._cursor.execute("attach ? as hot", (self._uri,))
        self._cursor.execute("begin")
        # In the order of their numbers, as FTS5 writes a piece whenever a number is smaller than the one before; the
        # limit keeps SQLite from leaving the order out. Sorted are the numbers alone, not the texts.
        self._row_count += self._cursor.execute(
            "insert into words (rowid, text, summary, tags, names)"
            " select n.row_id, n.text_content, n.summary, n.tags, n.entity_id from"
            " (select row_id from hot.nodes where user_no = ? and row_id > ? order by row_id limit -1) as k"
            " cross join hot.nodes as n on n.row_id = k.row_id where n.deleted_at is null",
            (self._user_no, self._extended_to),
        ).rowcount
        (last,) = cast(
            "tuple[int | None]",
            self._cursor.execute("select max(row_id) from hot.nodes where user_no = ?", (self._user_no,)).fetchone(),
        )
        self._cursor.execute("commit")
        self._cursor.execute("detach hot")
        if last is not None:
            self._extended_to = last

    def apply(self, source: sqlite3.Connection, row_ids: Iterable[int]) -> None:
        """Take in what became of these rows, as `source` sees it now: changed, added, deleted or gone."""
        # The user is asked for too, should a row of someone else be named.
        encoded = f"[{','.join(map(str, row_ids))}]"
        rows = source.execute(
            "select row_id, text_content, summary, tags, entity_id from nodes"
            " where row_id in (select value from json_each(?)) and +user_no = ? and deleted_at is null",
            (encoded, self._user_no),
        ).fetchall()
        self._cursor.execute("begin")
        deleted = self._cursor.execute(
            "delete from words where rowid in (select value from json_each(?))", (encoded,)
        ).rowcount
        self._cursor.executemany("insert into words (rowid, text, summary, tags, names) values (?, ?, ?, ?, ?)", rows)
        self._cursor.execute("commit")
        self._tune("merge", _MERGED_PAGES)
        self._row_count += len(rows) - deleted
        self._deleted += deleted

    def search(self, match: str, limit: int) -> list[tuple[int, float]]:
        """The best rows as (row_id, score), best first; scores are bm25, above 0, open upwards."""
        # The weights of the columns are judgement, to be settled by the recall benchmark: a word in a name or a tag
        # was chosen to describe the memory. Ordering by this expression and not by the column `rank` halves the time:
        # only the best `limit` rows are kept while sorting.
        rows = self._cursor.execute(
            "select rowid, -bm25(words, 1.0, 1.5, 2.0, 3.0) as score from words where words match ?"
            " order by score desc, rowid desc limit ?",
            (match, limit),
        ).fetchall()
        return cast("list[tuple[int, float]]", rows)

    @property
    def row_count(self) -> int:
        """How many rows are indexed."""
        return self._row_count

    @property
    def is_worn(self) -> bool:
        """Whether so much was deleted or changed since it was made that its scores drift: make it anew."""
        return self._forgets and self._deleted > self._row_count * _WORN_AT

    def size_bytes(self) -> int:
        """The memory it takes, estimated from its pages."""
        (pages,) = cast(
            "tuple[int]",
            self._cursor.execute(
                "select page_count * page_size from pragma_page_count(), pragma_page_size()"
            ).fetchone(),
        )
        return _FIXED_BYTES + round(pages * _BYTES_PER_PAGE_BYTE)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    index: UserSearchIndex
    # Held while SQLite works on the index.
    lock: threading.Lock = field(default_factory=threading.Lock)
    pending: set[int] = field(default_factory=set[int])
    complete: bool = False
    retired: bool = False
    size_bytes: int = 0


class SearchIndexes:
    """The text indexes of the users that are searched, the least recently used dropped when memory runs short.

    Commits are told by `mark_changed` on the event loop's thread, before their writers are answered; whatever needs
    SQLite happens on reader threads, where different users do not wait for one another. So a search sees every change
    that its caller knows of. An index that failed is dropped, and built anew at the next search.
    """

    def __init__(self, driver: Driver, path: Path, *, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self._driver = driver
        self._path = path
        self._budget_bytes = budget_bytes
        # Guards the fields below and those of entries; held for moments only, never while SQLite works, so that the
        # event loop's thread may take it. Entries lie in the order of their last use.
        self._state = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        # Of those entries together: to add them up at every search takes longer than the search where users are many.
        self._size_bytes = 0
        self._retired: list[_Entry] = []

    def mark_changed(self, user_no: int, row_ids: Iterable[int]) -> None:
        """Note that a commit changed, added or deleted these rows of a user. Cheap; where no index is, nothing."""
        # No change is lost between this and a build: an entry is there before its build takes its snapshot, so a
        # commit whose mark finds no entry is older than the snapshot, and a mark that finds one is applied later,
        # harmlessly twice if the snapshot had it.
        if user_no not in self._entries:
            return
        with self._state:
            entry = self._entries.get(user_no)
            if entry is not None:
                entry.pending.update(row_ids)

    def feed(self, user_no: int) -> None:
        """Index what has been committed so far of a load that is still streaming, so that less is left for later."""
        with self._held(user_no) as entry:
            if not entry.complete:
                entry.index.extend()
                self._measure(entry)

    def prepare(self, user_no: int, source: sqlite3.Connection) -> None:
        """Make the user's index ready while there is room, so that no search has to wait for it.

        `source` reads the file. Beyond the budget nothing is made ahead: it would push out what is searched for what
        may never be.
        """
        if not self._has_room_for(user_no):
            return
        with self._held(user_no) as entry:
            self._make_ready(user_no, entry, source)

    def search(self, user_no: int, source: sqlite3.Connection, match: str, limit: int) -> list[tuple[int, float]]:
        """The user's best rows as (row_id, score), best first. Builds the index or takes in changes where needed.

        `source` reads the file. A row may have expired, or been deleted since: look at it before it is shown.
        """
        with self._held(user_no) as entry:
            self._make_ready(user_no, entry, source)
            return entry.index.search(match, limit)

    def drop(self, user_no: int) -> None:
        """Forget a user's index, from any thread, without waiting: one in use is closed when its use has ended."""
        with self._state:
            entry = self._entries.get(user_no)
            if entry is not None:
                self._retire(user_no, entry)
        self._close_retired()

    def close(self) -> None:
        """Drop all; no use may be under way. It can be used again."""
        with self._state:
            for user_no, entry in list(self._entries.items()):
                self._retire(user_no, entry)
        self._close_retired()

    def size_bytes(self) -> int:
        """The memory that all indexes take, estimated."""
        with self._state:
            return self._size_bytes

    def user_nos(self) -> tuple[int, ...]:
        """Whose indexes are held, the least recently used first."""
        with self._state:
            return tuple(self._entries)

    def _has_room_for(self, user_no: int) -> bool:
        with self._state:
            return user_no in self._entries or self._size_bytes < self._budget_bytes

    @contextmanager
    def _held(self, user_no: int) -> Generator[_Entry]:
        entry = self._acquire(user_no)
        try:
            yield entry
        except BaseException:
            with self._state:
                self._retire(user_no, entry)
            raise
        finally:
            entry.lock.release()
            self._make_room()

    def _acquire(self, user_no: int) -> _Entry:
        while True:
            entry = self._touch(user_no)
            entry.lock.acquire()
            with self._state:
                if not entry.retired:
                    return entry
            # It was dropped while we waited for it.
            entry.lock.release()

    def _touch(self, user_no: int) -> _Entry:
        """The user's entry, made if absent, put last in the order of use."""
        with self._state:
            known = self._entries.pop(user_no, None)
            if known is not None:
                self._entries[user_no] = known
                return known
        fresh = _Entry(index=UserSearchIndex(self._driver, self._path, user_no))
        with self._state:
            entry = self._entries.setdefault(user_no, fresh)
        if entry is not fresh:
            fresh.index.close()
        return entry

    def _make_ready(self, user_no: int, entry: _Entry, source: sqlite3.Connection) -> None:
        if entry.index.is_worn:
            entry.index.close()
            entry.index = UserSearchIndex(self._driver, self._path, user_no)
            entry.complete = False
        if not entry.complete:
            entry.index.extend()
            entry.complete = True
            self._measure(entry)
        with self._state:
            changed, entry.pending = entry.pending, set()
        if changed:
            entry.index.apply(source, changed)
            self._measure(entry)

    def _measure(self, entry: _Entry) -> None:
        size_bytes = entry.index.size_bytes()
        with self._state:
            if not entry.retired:
                self._size_bytes += size_bytes - entry.size_bytes
            entry.size_bytes = size_bytes

    def _make_room(self) -> None:
        """Drop the least recently used beyond the budget, but never the one used last."""
        with self._state:
            while self._size_bytes > self._budget_bytes and len(self._entries) > 1:
                user_no, entry = next(iter(self._entries.items()))
                self._retire(user_no, entry)
        self._close_retired()

    def _retire(self, user_no: int, entry: _Entry) -> None:
        """Take an entry out; `_state` is held by the caller."""
        if not entry.retired:
            entry.retired = True
            self._size_bytes -= entry.size_bytes
            del self._entries[user_no]
            self._retired.append(entry)

    def _close_retired(self) -> None:
        with self._state:
            # One in use stays in the list: its user comes by here after letting go of it.
            idle = [entry for entry in self._retired if entry.lock.acquire(blocking=False)]
            self._retired = [entry for entry in self._retired if entry not in idle]
        for entry in idle:
            entry.index.close()
            entry.lock.release()
