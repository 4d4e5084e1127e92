"""What the command line promises before the first memory is stored: `migrate`, `doctor`, and the embedded default."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hybrid_memory.sqlite.disks import file_system
from tests.integration.cli_support import (
    NOWHERE,
    Ran,
    leave_behind,
    manager_on,
    no_environment,
    run,
    run_at_terminal,
    store,
)
from tests.integration.embedded_support import erase
from tests.plugins.postgres import APP_ROLE, Database, connected

pytestmark = pytest.mark.direct("an administrator's commands go directly")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    no_environment(monkeypatch)


@pytest.fixture
async def own_dir() -> AsyncIterator[Path]:
    """A data directory that has no Postgres yet and whose own one is erased afterwards.

    It could be reached by every account if it were not closed, as managers close it.
    """
    folder = Path(tempfile.mkdtemp(prefix="hm-"))
    folder.chmod(0o755)
    yield folder / "data"
    if (folder / "data" / "postgres").exists():
        await erase(folder / "data" / "postgres")
    shutil.rmtree(folder)


def checks(ran: Ran) -> dict[str, dict[str, Any]]:
    found = {check["name"]: check for check in ran.data["checks"]}
    assert all(check["fix"] for check in found.values() if check["state"] != "ok")
    assert (ran.code == 1) == any(check["state"] == "fail" for check in found.values())
    return found


async def test_migrating_makes_the_schema_once_and_lets_the_application_in(
    empty_postgres: Database, tmp_path: Path
) -> None:
    words = ("migrate", "--json", "--data-dir", tmp_path, "--admin-dsn", empty_postgres.admin_dsn)
    first = await run(*words, "--dsn", empty_postgres.app_dsn)
    assert first.code == 0
    assert [one["version"] for one in first.data["applied"]] == list(range(1, first.data["version"] + 1))
    assert first.data["role"] == APP_ROLE
    again = await run(*words, "--app-role", "memory_second")
    assert (again.data["applied"], again.data["role"]) == ([], "memory_second")
    looked = await run("doctor", "--json", "--data-dir", tmp_path, "--dsn", empty_postgres.dsn_of("memory_second"))
    assert checks(looked)["role"]["state"] == "ok"


async def test_migrating_is_not_for_the_application(postgres: Database, tmp_path: Path) -> None:
    ran = await run("migrate", "--json", "--data-dir", tmp_path, "--dsn", postgres.app_dsn)
    assert (ran.code, ran.error["code"]) == (4, "refused")


async def test_a_foreign_schema_is_left_alone_until_it_is_adopted(empty_postgres: Database, tmp_path: Path) -> None:
    async with connected(empty_postgres.admin_dsn) as connection:
        await connection.execute("create schema memory; create table memory.nodes (id integer)")
    words = ("migrate", "--json", "--data-dir", tmp_path, "--admin-dsn", empty_postgres.admin_dsn)
    refused = await run(*words)
    assert (refused.code, refused.error["code"]) == (4, "schema_mismatch")
    assert "--adopt" in refused.error["fix"]
    adopted = await run(*words, "--adopt")
    assert (adopted.code, adopted.data["role"]) == (0, None)
    async with connected(empty_postgres.admin_dsn) as connection:
        assert await connection.fetchval("select to_regclass('memory_legacy.nodes') is not null")


async def test_the_doctor_finds_nothing_wrong_where_all_is_well(postgres: Database, tmp_path: Path) -> None:
    async with manager_on(tmp_path, postgres) as manager:
        await store(manager, "alice")
        ran = await run(
            "doctor", "--json", "--data-dir", tmp_path, "--dsn", postgres.app_dsn, "--admin-dsn", postgres.admin_dsn
        )
    found = checks(ran)
    assert {name: check["state"] for name, check in found.items() if check["state"] == "fail"} == {}
    assert found.keys() >= {
        "python",
        "sqlite",
        "wal_reset_bug",
        "sqlite_extensions",
        "fts5",
        "embedded_postgres",
        "data_dir",
        "file_system",
        "files",
        "slots",
        "left_behind",
        "dead_letters",
        "postgres",
        "schema",
        "role",
        "pgvector",
        "admin",
    }
    assert found["slots"]["detail"].startswith("1 held by running processes")


async def test_the_doctor_tells_what_waits_in_files_of_the_dead(postgres: Database, tmp_path: Path) -> None:
    await leave_behind(tmp_path, {"alice": 2})
    found = checks(await run("doctor", "--json", "--data-dir", tmp_path, "--dsn", postgres.app_dsn))
    assert (found["left_behind"]["state"], found["left_behind"]["fix"]) == ("warn", "hybrid-memory outbox drain")


async def test_the_doctor_fails_what_is_not_safe(postgres: Database, tmp_path: Path) -> None:
    await leave_behind(tmp_path, {"alice": 1})
    (tmp_path / "slot-00.db").chmod(0o644)
    ran = await run("doctor", "--json", "--data-dir", tmp_path, "--dsn", postgres.admin_dsn)
    assert (ran.code, ran.error["code"]) == (1, "unhealthy")
    found = checks(ran)
    assert found["files"]["state"] == "fail"
    assert found["role"]["state"] == "fail"
    tmp_path.chmod(0o755)
    found = checks(await run("doctor", "--json", "--data-dir", tmp_path, "--dsn", NOWHERE))
    assert (found["data_dir"]["state"], found["postgres"]["state"]) == ("fail", "fail")
    assert found["data_dir"]["fix"] == f"chmod 700 {tmp_path}"


async def test_the_doctor_fails_a_database_that_was_not_migrated(empty_postgres: Database, tmp_path: Path) -> None:
    async with connected(empty_postgres.admin_dsn) as connection:
        await connection.execute(
            "do $$ begin create role memory_app login; exception when duplicate_object then null; end $$"
        )
    found = checks(await run("doctor", "--json", "--data-dir", tmp_path, "--dsn", empty_postgres.app_dsn))
    assert found["postgres"]["state"] == "ok"
    assert (found["schema"]["state"], found["schema"]["fix"]) == ("fail", "hybrid-memory migrate")


async def test_the_doctor_is_readable_at_a_terminal(postgres: Database, tmp_path: Path) -> None:
    code, shown = await run_at_terminal("doctor", "--data-dir", tmp_path, "--dsn", postgres.app_dsn)
    assert code == 0
    assert "what to do" in shown
    assert "\x1b[" in shown


def test_a_file_system_is_told_by_its_kind() -> None:
    assert file_system(Path("/proc/self")) in {"proc", None}
    assert file_system(Path("/proc/self/no/such")) in {"proc", None}


async def test_without_any_dsn_the_data_directory_has_a_postgres_of_its_own(own_dir: Path) -> None:
    words = ("--json", "--data-dir", own_dir)
    nothing = await run("users", *words)
    assert (nothing.code, nothing.error["code"]) == (1, "not_found")
    fresh = checks(await run("doctor", *words))
    assert fresh["postgres"]["state"] == "ok"
    assert not (own_dir / "postgres").exists()
    assert (await run("forget", "alice", "--yes", *words)).data["users"] == []
    migrated = await run("migrate", *words)
    assert (migrated.code, migrated.data["embedded"], migrated.data["role"]) == (0, True, "hybrid_memory_login")
    await leave_behind(own_dir, {"alice": 2})
    assert (await run("outbox", "drain", *words)).data["carried"] == 2
    assert [line["user_id"] for line in (await run("users", *words)).data["users"]] == ["alice"]
    assert checks(await run("doctor", *words))["role"]["state"] == "ok"
    forgotten = await run("forget", "--all", "--yes", *words)
    assert (forgotten.code, forgotten.data["users"], forgotten.data["durable"]) == (0, ["alice"], True)
