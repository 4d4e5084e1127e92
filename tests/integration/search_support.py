"""A hot-tier file with rows put in by hand, for tests of the text index."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hybrid_memory.sqlite.driver import SqliteModule, configure_reader, configure_writer, describe
from hybrid_memory.sqlite.search_index import SearchIndexes
from hybrid_memory.sqlite.search_text import match_expression

# Row ids of these tests: the user, then a number of the user's own.
ROW_BLOCK_BITS = 32

# What the index reads of the hot tier's schema, and no more: it must work with every SQLite library in use.
NODES_AS_THE_INDEX_READS_THEM = """
    create table nodes (
        row_id integer primary key not null,
        user_no integer not null,
        text_content text not null,
        summary text,
        tags text not null,
        entity_id text,
        deleted_at integer
    ) strict;
"""


class WatchedLibrary:
    """A SQLite library that remembers the databases it opened in memory, so that a test can reach beneath an index."""

    def __init__(self, library: SqliteModule) -> None:
        self._library = library
        self.in_memory: list[sqlite3.Connection] = []

    @property
    def __name__(self) -> str:
        return self._library.__name__

    @property
    def sqlite_version_info(self) -> tuple[int, int, int]:
        return self._library.sqlite_version_info

    @property
    def Error(self) -> type[Exception]:  # noqa: N802 - the name is the library's
        return self._library.Error

    def connect(
        self, database: str, *, isolation_level: None, check_same_thread: bool, uri: bool
    ) -> sqlite3.Connection:
        connection = self._library.connect(
            database, isolation_level=isolation_level, check_same_thread=check_same_thread, uri=uri
        )
        if database == "file::memory:":
            self.in_memory.append(connection)
        return connection

    def register_adapter(self, kind: type[None], adapter: Callable[[None], None], /) -> None:
        self._library.register_adapter(kind, adapter)


class HotFile:
    """A hot-tier file with its writer and one reader, and rows put in by hand."""

    def __init__(self, library: SqliteModule, path: Path, schema: str) -> None:
        self.library = WatchedLibrary(library)
        self.driver = driver = describe(self.library)
        self.path = path
        self.writer = driver.connect(path, create=True, check_same_thread=False)
        configure_writer(self.writer)
        self.writer.executescript(schema)
        self.reader = driver.connect(path, read_only=True, check_same_thread=False)
        configure_reader(self.reader)

    def put(
        self,
        user_no: int,
        number: int,
        text: str,
        *,
        summary: str | None = None,
        tags: Iterable[str] = (),
        entity_id: str | None = None,
    ) -> int:
        row_id = user_no << ROW_BLOCK_BITS | number
        self.writer.execute(
            "insert or replace into nodes (row_id, user_no, text_content, summary, tags, entity_id)"
            " values (?, ?, ?, ?, ?, ?)",
            (row_id, user_no, text, summary, json.dumps(list(tags)), entity_id),
        )
        return row_id

    def put_many(self, user_no: int, texts: Iterable[str]) -> None:
        self.writer.execute("begin")
        for number, text in enumerate(texts):
            self.put(user_no, number, text)
        self.writer.execute("commit")

    def bury(self, row_id: int) -> None:
        self.writer.execute("update nodes set deleted_at = 1 where row_id = ?", (row_id,))

    def latest_index(self) -> sqlite3.Connection:
        return self.library.in_memory[-1]

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


class Searcher:
    """Searches as the reader thread does, by what a person types."""

    def __init__(self, hot: HotFile, indexes: SearchIndexes) -> None:
        self.hot = hot
        self.indexes = indexes

    def scores(self, user_no: int, text: str, limit: int = 1_000) -> list[tuple[int, float]]:
        match = match_expression(text)
        assert match is not None
        return self.indexes.search(user_no, self.hot.reader, match, limit)

    def numbers(self, user_no: int, text: str, limit: int = 1_000) -> list[int]:
        return [row_id - (user_no << ROW_BLOCK_BITS) for row_id, _ in self.scores(user_no, text, limit)]


def during(memory: sqlite3.Connection, event: Iterator[None]) -> None:
    """Let `event` happen, once, while the next statement runs on the connection."""

    def step() -> int:
        memory.set_progress_handler(None, 0)
        next(event, None)
        return 0

    memory.set_progress_handler(step, 1)
