"""The SQLite library in use: which one, with what settings, and what its errors become."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from hybrid_memory.errors import DataDirBusy, HybridMemoryError, StorageCorrupt, StorageFailed, StorageFull
from hybrid_memory.sqlite.driver import (
    Driver,
    SqliteModule,
    choose_driver,
    configure_index,
    configure_reader,
    configure_writer,
    create_private,
    describe,
    has_wal_reset_bug,
    pick,
)


@pytest.fixture(params=["chosen", "standard"])
def driver(request: pytest.FixtureRequest) -> Driver:
    """The one this platform gets, and the one where there is no other."""
    return choose_driver() if request.param == "chosen" else describe(cast("SqliteModule", sqlite3))


@pytest.fixture
def writer(driver: Driver, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(driver.connect(tmp_path / "hot.db", create=True)) as connection:
        configure_writer(connection)
        connection.execute("create table notes (note text)")
        yield connection


def a_driver(name: str, version: tuple[int, int, int], *, loads_extensions: bool) -> Driver:
    return Driver(
        name=name,
        version_info=version,
        loads_extensions=loads_extensions,
        errors=(sqlite3.Error,),
        module=cast("SqliteModule", sqlite3),
    )


def setting(connection: sqlite3.Connection, name: str) -> object:
    return cast("tuple[object]", connection.execute(f"pragma {name}").fetchone())[0]


def translated(driver: Driver, connection: sqlite3.Connection, statement: str) -> HybridMemoryError:
    with pytest.raises(driver.errors) as caught:
        connection.execute(statement)
    return driver.translate(caught.value)


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 4), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_the_versions_with_the_wal_reset_bug_are_known(version: tuple[int, int, int], has_bug: bool) -> None:
    assert has_wal_reset_bug(version) is has_bug
    assert a_driver("any", version, loads_extensions=True).has_wal_reset_bug is has_bug


@pytest.mark.parametrize(
    ("standard", "other", "chosen"),
    [
        (((3, 53, 0), True), ((3, 53, 4), True), "standard"),
        (((3, 53, 0), False), ((3, 53, 4), True), "other"),
        (((3, 40, 1), True), ((3, 53, 4), True), "other"),
        (((3, 40, 1), False), None, "standard"),
        (((3, 31, 0), True), ((3, 53, 4), True), "other"),
        (((3, 50, 7), True), ((3, 31, 0), True), "standard"),
    ],
)
def test_the_standard_library_is_used_unless_another_is_better(
    standard: tuple[tuple[int, int, int], bool], other: tuple[tuple[int, int, int], bool] | None, chosen: str
) -> None:
    drivers = [a_driver("standard", standard[0], loads_extensions=standard[1])]
    if other is not None:
        drivers.append(a_driver("other", other[0], loads_extensions=other[1]))
    assert pick(drivers).name == chosen


def test_a_library_that_is_too_old_is_refused_with_a_remedy() -> None:
    with pytest.raises(StorageFailed) as caught:
        pick([a_driver("standard", (3, 31, 0), loads_extensions=True)])
    assert caught.value.fix


def test_the_driver_says_what_it_is(driver: Driver) -> None:
    with closing(driver.connect_memory()) as connection:
        assert driver.version == cast("tuple[str]", connection.execute("select sqlite_version()").fetchone())[0]


def test_a_new_file_and_its_log_are_the_owners_alone(writer: sqlite3.Connection, tmp_path: Path) -> None:
    writer.execute("insert into notes values ('x')")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"hot.db": 0o600, "hot.db-wal": 0o600, "hot.db-shm": 0o600}


def test_creating_a_file_leaves_alone_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "hot.db"
    assert create_private(path) is True
    path.write_bytes(b"something")
    assert create_private(path) is False
    assert path.read_bytes() == b"something"


def test_creating_a_file_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "hot.db").symlink_to(tmp_path / "elsewhere.db")
    assert create_private(tmp_path / "hot.db") is False
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_file_that_cannot_be_created_is_a_storage_failure(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        create_private(tmp_path / "absent" / "hot.db")


def test_an_absent_file_is_not_made_unless_asked_for(driver: Driver, tmp_path: Path) -> None:
    for read_only in (True, False):
        with pytest.raises(driver.errors) as caught:
            driver.connect(tmp_path / "absent.db", read_only=read_only)
        assert type(driver.translate(caught.value)) is StorageFailed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b.db", "what?.db", "100%.db", "a#b.db", "é&mode=rwc.db"])
def test_a_path_is_a_path_whatever_its_characters(driver: Driver, tmp_path: Path, name: str) -> None:
    with closing(driver.connect(tmp_path / name, create=True)) as connection:
        connection.execute("create table notes (note text)")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_writer_fsyncs_each_commit_and_overwrites_what_it_deletes(writer: sqlite3.Connection) -> None:
    assert setting(writer, "journal_mode") == "wal"
    assert setting(writer, "synchronous") == 2
    assert setting(writer, "secure_delete") == 1
    assert setting(writer, "journal_size_limit") == 16 * 1024 * 1024


def test_a_reader_can_neither_write_nor_checkpoint(driver: Driver, writer: sqlite3.Connection, tmp_path: Path) -> None:
    writer.execute("insert into notes values ('x')")
    with closing(driver.connect(tmp_path / "hot.db", read_only=True)) as reader:
        configure_reader(reader, cache_kib=65_536)
        assert setting(reader, "query_only") == 1
        assert setting(reader, "wal_autocheckpoint") == 0
        assert setting(reader, "cache_size") == -65_536
        assert type(translated(driver, reader, "insert into notes values ('y')")) is StorageFailed
        assert reader.execute("select note from notes").fetchall() == [("x",)]


@pytest.mark.parametrize("configure", [configure_writer, configure_reader, configure_index])
def test_every_connection_is_set_up_against_accidents(driver: Driver, tmp_path: Path, configure: object) -> None:
    with closing(driver.connect(tmp_path / "hot.db", create=True)) as connection:
        assert callable(configure)
        configure(connection)
        expected = {
            "busy_timeout": 5_000,
            "foreign_keys": 1,
            "temp_store": 2,
            "trusted_schema": 0,
            "cell_size_check": 1,
            "mmap_size": 0,
        }
        assert {name: setting(connection, name) for name in expected} == expected


def test_no_write_ahead_log_is_refused(driver: Driver) -> None:
    with closing(driver.connect_memory()) as connection, pytest.raises(StorageFailed):
        configure_writer(connection)


def test_a_transaction_begins_only_when_told_to(writer: sqlite3.Connection) -> None:
    writer.execute("insert into notes values ('x')")
    assert not writer.in_transaction


def test_a_full_file_is_storage_full(driver: Driver, writer: sqlite3.Connection) -> None:
    writer.execute("pragma max_page_count = 4")
    assert type(translated(driver, writer, "insert into notes values (zeroblob(100000))")) is StorageFull


def test_a_file_that_is_no_database_is_corrupt(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "hot.db"
    path.write_bytes(b"not a database at all" * 500)
    with closing(driver.connect(path)) as connection:
        assert type(translated(driver, connection, "select * from notes")) is StorageCorrupt


def test_a_damaged_file_is_corrupt(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "hot.db"
    with closing(driver.connect(path, create=True)) as connection:
        connection.execute("create table notes (note text)")
        connection.execute("begin")
        connection.executemany("insert into notes values (?)", [("x" * 500,)] * 200)
        connection.execute("commit")
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))
    with closing(driver.connect(path)) as connection:
        assert type(translated(driver, connection, "select * from notes")) is StorageCorrupt


def test_a_damaged_file_is_corrupt_though_the_words_of_its_error_cannot_be_read(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "hot.db"
    with closing(driver.connect(path, create=True)) as connection:
        connection.execute("create table notes (note text)")
    # SQLite names the table whose definition it cannot parse, and this name is no text.
    whole, torn = b"tablenotesnotes\x02CREATE", b"table\xff\xfe\xff\xfe\xffnotes\x02CREATX"
    content = path.read_bytes()
    assert whole in content
    path.write_bytes(content.replace(whole, torn))
    with closing(driver.connect(path)) as connection:
        with pytest.raises(driver.errors) as caught:
            connection.execute("select * from notes")
        assert type(driver.translate(caught.value)) is StorageCorrupt
        assert driver.disk_failed(caught.value)


def test_a_file_locked_by_another_is_busy(driver: Driver, writer: sqlite3.Connection, tmp_path: Path) -> None:
    writer.execute("begin immediate")
    with closing(driver.connect(tmp_path / "hot.db")) as other:
        other.execute("pragma busy_timeout = 0")
        failure = translated(driver, other, "begin immediate")
    assert type(failure) is DataDirBusy
    assert failure.retryable


def test_a_misuse_is_a_storage_failure(driver: Driver, tmp_path: Path) -> None:
    connection = driver.connect(tmp_path / "hot.db", create=True)
    connection.close()
    assert type(translated(driver, connection, "select 1")) is StorageFailed


def test_no_failure_repeats_what_was_stored(driver: Driver, writer: sqlite3.Connection) -> None:
    writer.execute("create table kept (name text check (name <> 's3cret'))")
    failure = translated(driver, writer, "insert into kept values ('s3cret')")
    assert "s3cret" not in f"{failure} {failure.fix}"


def test_a_database_in_memory_can_read_a_file_but_not_write_it(
    driver: Driver, writer: sqlite3.Connection, tmp_path: Path
) -> None:
    writer.execute("insert into notes values ('x')")
    with closing(driver.connect_memory()) as memory:
        memory.execute("attach ? as hot", (f"{(tmp_path / 'hot.db').as_uri()}?mode=ro",))
        assert memory.execute("select note from hot.notes").fetchall() == [("x",)]
        assert type(translated(driver, memory, "insert into hot.notes values ('y')")) is StorageFailed
