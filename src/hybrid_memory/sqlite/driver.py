"""The SQLite library in use: chosen once, its settings, and what its errors mean to us."""

from __future__ import annotations

import importlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Protocol, cast

from hybrid_memory.errors import DataDirBusy, HybridMemoryError, StorageCorrupt, StorageFailed, StorageFull
from hybrid_memory.sqlite.failures import refused

# The JSON functions are part of every library from here on; the hot tier's statements need them and strict tables.
OLDEST_USABLE: Final = (3, 38, 0)

# How long a statement waits for a lock of another process before it fails; in this process the writer never competes.
BUSY_TIMEOUT_MS: Final = 5_000
# At this size the log is moved into the file, and to this it is cut back then; what one busy second writes fits. With
# SQLite's usual 4 MiB the pages that many users' writes share are moved, and fsynced, four times as often.
LOG_SIZE_LIMIT: Final = 16 * 1024 * 1024
_PAGE_BYTES: Final = 4096

# By URI, because only a connection opened by one understands URIs in `attach`, which tell it to open read-only.
_MEMORY: Final = "file::memory:"

# Result codes (https://www.sqlite.org/rescode.html). The low byte of an extended code is its primary code: the standard
# library reports extended codes, pysqlite3 0.6.1 primary ones.
_PRIMARY_CODE: Final = 0xFF
_DISK_FAILED: Final = frozenset({10, 11, 26})  # IOERR, CORRUPT, NOTADB
_LOCKED_BY_OTHERS: Final = frozenset({5, 15})  # BUSY, PROTOCOL
_NO_ROOM: Final = 13  # FULL
_DAMAGED: Final = frozenset({11, 26})  # CORRUPT, NOTADB


class SqliteModule(Protocol):
    """What is used of a module shaped like the standard library's sqlite3."""

    @property
    def __name__(self) -> str: ...

    @property
    def sqlite_version_info(self) -> tuple[int, int, int]:
        """The version of SQLite."""
        ...

    @property
    def Error(self) -> type[Exception]:  # noqa: N802 - the name is the module's
        """The root of the errors it raises."""
        ...

    def connect(
        self, database: str, *, isolation_level: None, check_same_thread: bool, uri: bool
    ) -> sqlite3.Connection:
        """Open a database."""
        ...

    def register_adapter(self, kind: type[None], adapter: Callable[[None], None], /) -> None:
        """Say how values of a type are bound."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """One SQLite library, the only one this process may load on its data files.

    A second library on the same file would cancel the first one's POSIX locks and lose committed rows. Connections
    are typed as the standard library's, whose methods pysqlite3's share; errors are not: catch `errors`, never
    `sqlite3.Error`.
    """

    name: str
    version_info: tuple[int, int, int]
    loads_extensions: bool
    errors: tuple[type[Exception], ...]
    module: SqliteModule = field(repr=False)

    @property
    def version(self) -> str:
        """The version of SQLite, as in `3.53.4`."""
        return ".".join(map(str, self.version_info))

    @property
    def has_wal_reset_bug(self) -> bool:
        """Whether a file may be damaged when two connections write and checkpoint at once."""
        return has_wal_reset_bug(self.version_info)

    def connect(
        self,
        path: Path,
        *,
        read_only: bool = False,
        still: bool = False,
        create: bool = False,
        check_same_thread: bool = True,
    ) -> sqlite3.Connection:
        """Open a file, in autocommit mode: transactions are begun by statements.

        `create` makes an absent file first, readable by its owner alone. Without it an absent file is an error.
        `still` promises of a file that is only read that nobody writes it meanwhile and that it has no log: then it is
        read without locks, and no files appear beside it.
        """
        if create:
            create_private(path)
        mode = "ro" if read_only else "rw"
        if still:
            mode = "ro&immutable=1"
        return _open(self.module, f"{file_uri(path)}?mode={mode}", check_same_thread=check_same_thread)

    def connect_memory(self) -> sqlite3.Connection:
        """Open a database of its own in memory, usable from any thread, but by one at a time."""
        return _open(self.module, _MEMORY, check_same_thread=False)

    def disk_failed(self, error: BaseException) -> bool:
        """Whether one of `errors` says that the disk failed or the file is damaged.

        What was done last is then unknown, and the connection not to be used again: an fsync that is tried again says
        that all is well, though what the first one could not write is gone.
        """
        code: int | None = getattr(error, "sqlite_errorcode", None)
        return _is_unreadable(error) or (code is not None and code & _PRIMARY_CODE in _DISK_FAILED)

    def translate(self, error: BaseException) -> HybridMemoryError:
        """Our error for one of `errors`, by its result code, never by its message; raise it `from` the failure."""
        # Absent where Python refused before SQLite was asked (a closed connection, a wrong number of values).
        code: int | None = getattr(error, "sqlite_errorcode", None)
        name: str = getattr(error, "sqlite_errorname", type(error).__name__)
        primary = None if code is None else code & _PRIMARY_CODE
        if primary in _DAMAGED or _is_unreadable(error):
            return StorageCorrupt(
                f"the local file is damaged or not a database ({name})", fix="run `hybrid-memory doctor`"
            )
        if primary == _NO_ROOM:
            return StorageFull(f"the local file cannot grow ({name})", fix="free disk space or raise the quota")
        if primary in _LOCKED_BY_OTHERS:
            return DataDirBusy(f"the local file is locked by another process ({name})", fix="stop that process")
        return StorageFailed(f"the local file failed ({name})", fix="check the disk and the data directory")


def _is_unreadable(error: BaseException) -> bool:
    """Whether the words of an error quote a damaged file, so that Python could not read them."""
    return isinstance(error, UnicodeDecodeError)


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite has the WAL-reset bug: 3.7.0 to 3.51.2, mended in 3.51.3, 3.50.7 and 3.44.6."""
    if version < (3, 7, 0) or version >= (3, 51, 3):
        return False
    return not ((3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0))


@cache
def choose_driver() -> Driver:
    """The standard library's SQLite if it loads extensions and is sound, else pysqlite3's, else the standard one.

    Always the same one in a process. Raises `StorageFailed` where none is new enough.
    """
    modules = [cast("SqliteModule", sqlite3)]
    # Where there is no wheel of it, the standard library does everything but, perhaps, load extensions.
    with suppress(ImportError):
        pysqlite3 = cast("SqliteModule", importlib.import_module("pysqlite3"))
        # Without an adapter it looks for one at every null it binds, in vain: a row of 23 columns with nine nulls
        # took 31 microseconds to insert, and takes 7 so.
        pysqlite3.register_adapter(type(None), _as_it_is)
        modules.append(pysqlite3)
    return pick([describe(module) for module in modules])


def _as_it_is(nothing: None) -> None:
    return nothing


def pick(drivers: Sequence[Driver]) -> Driver:
    """The driver to use: the first, which is the standard library's, if nothing is wrong with it, else the last."""
    usable = [driver for driver in drivers if driver.version_info >= OLDEST_USABLE]
    if not usable:
        oldest = ".".join(map(str, OLDEST_USABLE))
        raise StorageFailed(f"SQLite {oldest} or newer is needed", fix="install pysqlite3 or a newer Python")
    first = usable[0]
    return first if first.loads_extensions and not first.has_wal_reset_bug else usable[-1]


def describe(module: SqliteModule) -> Driver:
    """What a module can do, found by asking it."""
    return Driver(
        name=module.__name__,
        version_info=module.sqlite_version_info,
        loads_extensions=_loads_extensions(module),
        # The second where the words of an error cannot be read.
        errors=(module.Error, UnicodeDecodeError),
        module=module,
    )


def _loads_extensions(module: SqliteModule) -> bool:
    connection = _open(module, _MEMORY, check_same_thread=True)
    try:
        # Built without it, the method is absent; linked against a library without it, it raises.
        connection.enable_load_extension(True)  # noqa: FBT003 - sqlite3's own signature
        connection.enable_load_extension(False)  # noqa: FBT003 - sqlite3's own signature
    except (AttributeError, module.Error):
        return False
    finally:
        connection.close()
    return True


def _open(module: SqliteModule, uri: str, *, check_same_thread: bool) -> sqlite3.Connection:
    return module.connect(uri, isolation_level=None, check_same_thread=check_same_thread, uri=True)


def file_uri(path: Path) -> str:
    """The path as SQLite reads it in a URI; what is special in one is escaped."""
    return path.absolute().as_uri()


def create_private(path: Path) -> bool:
    """Create an empty file that its owner alone may read and write; False, and nothing done, if something is there.

    SQLite gives the log files beside it the same permissions. Must come before the first connection: opening a file
    that SQLite has open, and closing it, would cancel SQLite's locks. Raises `StorageFull` or `StorageFailed`.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    except OSError as error:
        raise refused(error, "the local file") from None
    return True


def configure_writer(connection: sqlite3.Connection) -> None:
    """Settings of the one connection that writes and checkpoints: what is committed is fsynced.

    Raises `StorageFailed` where the file system cannot carry a write-ahead log.
    """
    _configure(connection)
    (journal,) = cast("tuple[str]", connection.execute("pragma journal_mode = wal").fetchone())
    if journal != "wal":
        raise StorageFailed("no write-ahead log on this file system", fix="use a local disk for the data directory")
    # Full, not normal: a write acknowledged as pending must survive a power cut.
    connection.execute("pragma synchronous = full")
    connection.execute("pragma secure_delete = on")
    # A pragma takes no bound value; what stands here are whole numbers of ours.
    connection.execute(f"pragma journal_size_limit = {LOG_SIZE_LIMIT}")
    connection.execute(f"pragma wal_autocheckpoint = {LOG_SIZE_LIMIT // _PAGE_BYTES}")


def configure_reader(connection: sqlite3.Connection, *, cache_kib: int | None = None) -> None:
    """Settings of a connection that only reads; it never checkpoints. `cache_kib` is for pages of the file.

    Left at SQLite's 2 MiB unless it is said: to be told, SQLite reads the schema, which so waits for the first read.
    """
    _configure(connection)
    connection.execute("pragma wal_autocheckpoint = 0")
    if cache_kib is not None:
        connection.execute(f"pragma cache_size = {-cache_kib}")
    connection.execute("pragma query_only = on")


def configure_index(connection: sqlite3.Connection) -> None:
    """Settings of a database in memory that reads the file when it is attached."""
    _configure(connection)
    connection.execute("pragma wal_autocheckpoint = 0")


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("pragma foreign_keys = on")
    # Temporary files would hold users' text outside the data directory.
    connection.execute("pragma temp_store = memory")
    connection.execute("pragma trusted_schema = off")
    connection.execute("pragma cell_size_check = on")
    # A fault in the log must not reach the file by way of a mapping.
    connection.execute("pragma mmap_size = 0")
