"""What a running manager promises to whoever asks it over its socket, and to itself while they do."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager
from hybrid_memory.control import ControlServer, ask
from hybrid_memory.control.server import MOST_CLIENTS, MOST_REQUEST_BYTES
from hybrid_memory.errors import InvalidInput
from hybrid_memory.events import EventLog
from hybrid_memory.graph import JsonValue
from tests.integration.cli_support import manager_on, store


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[HybridMemoryManager]:
    async with manager_on(tmp_path, None) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot-00.sock"


@pytest.fixture
async def impatient(manager: HybridMemoryManager, tmp_path: Path) -> AsyncIterator[Path]:
    """A second socket of the manager, which waits for nobody for longer than a moment."""
    place = tmp_path / "impatient.sock"
    server = ControlServer(manager.desk, place, EventLog(), silence_seconds=0.05)
    await server.start()
    yield place
    await server.stop()


async def test_a_manager_tells_its_health_over_a_private_socket(manager: HybridMemoryManager, path: Path) -> None:
    seen = path.lstat()
    assert stat.S_ISSOCK(seen.st_mode)
    assert stat.S_IMODE(seen.st_mode) == 0o600
    answer = await ask(path, "status", {})
    assert answer.failure is None
    assert answer.data["pid"] == os.getpid()
    health = answer.data["health"]
    assert isinstance(health, dict)
    assert health["condition"] == (await manager.health()).condition
    assert isinstance(health["services"], dict)
    assert health["services"]["control"] == "ok"


async def test_a_closed_manager_leaves_no_socket_and_answers_nobody(tmp_path: Path, path: Path) -> None:
    async with manager_on(tmp_path, None):
        assert path.exists()
    assert not path.exists()
    answer = await ask(path, "status", {})
    assert answer.failure is not None
    assert answer.failure.code == "data_dir_busy"
    assert answer.failure.retryable


async def test_a_socket_of_a_dead_owner_is_replaced(tmp_path: Path, path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(path))
    dead.close()
    async with manager_on(tmp_path, None):
        assert (await ask(path, "status", {})).failure is None


async def test_a_directory_with_a_path_too_long_for_a_socket_is_served_too(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    async with manager_on(deep, None):
        assert (await ask(deep / "slot-00.sock", "status", {})).failure is None
        assert stat.S_IMODE((deep / "slot-00.sock").lstat().st_mode) == 0o600
    assert not (deep / "slot-00.sock").exists()


async def test_a_long_path_is_reached_by_a_link_where_open_files_have_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid_memory.control.address._OPEN_FILES", tmp_path / "nothing")
    deep = tmp_path / ("d" * 120)
    async with manager_on(deep, None):
        assert (await ask(deep / "slot-00.sock", "status", {})).failure is None


async def test_a_manager_works_where_no_socket_can_be_made_and_says_so(tmp_path: Path, path: Path) -> None:
    path.mkdir(parents=True)
    async with manager_on(tmp_path, None) as manager:
        assert "no socket" in (await manager.health()).services["control"]
        await store(manager, "alice")
    assert path.is_dir()


@pytest.mark.parametrize(
    ("call", "arguments", "field"),
    [
        ("nonsense", {}, "call"),
        ("status", {"nonsense": 1}, "nonsense"),
        ("outbox_list", {"limit": 0}, "limit"),
        ("outbox_list", {"limit": "many"}, "limit"),
        ("outbox_drain", {"within": 3_600.0}, "within"),
        ("dead_letters_retry", {"op_ids": [1]}, "op_ids.0"),
        ("forget", {}, "user_id"),
        ("forget", {"user_id": ""}, "user_id"),
    ],
)
async def test_a_call_that_is_not_understood_is_refused_by_name(
    manager: HybridMemoryManager, path: Path, call: str, arguments: dict[str, JsonValue], field: str
) -> None:
    answer = await ask(path, call, arguments)
    assert answer.failure is not None
    assert answer.failure.code == "invalid_input"
    assert answer.failure.message.startswith(f"{field}: ")
    with pytest.raises(InvalidInput, match=field):
        await manager.desk.answer(call, arguments)


async def test_one_connection_may_ask_again_and_again(manager: HybridMemoryManager, path: Path) -> None:
    await store(manager, "alice", 2)
    reader, writer = await asyncio.open_unix_connection(path)
    for _ in range(3):
        writer.write(b'{"call": "queued", "arguments": {"user_id": "alice"}}\n')
        assert b'"queued":2' in await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\n", b"\n", b"[]\n", b'{"call": 1}\n', b'{"call": "status", "arguments": 7}\n', b"\xff\xfe\n"],
)
async def test_garbage_is_answered_with_an_error_and_the_end(path: Path, garbage: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(garbage)
    assert b'"ok":false' in await reader.readline()
    assert await reader.read() == b""
    writer.close()
    assert (await ask(path, "status", {})).failure is None


@pytest.mark.usefixtures("manager")
async def test_a_request_without_an_end_is_not_read_for_ever(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"x" * (2 * MOST_REQUEST_BYTES))
    assert b"too long" in await reader.readline()
    writer.close()
    assert (await ask(path, "status", {})).failure is None


async def test_a_client_that_says_nothing_is_let_go(impatient: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(impatient)
    assert await reader.read() == b""
    writer.close()


async def test_a_client_that_never_listens_is_let_go(impatient: Path) -> None:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, str(impatient))
    # More than all buffers between us hold; cut off in the middle, as the system likes to say it.
    with pytest.raises(OSError):  # noqa: PT011
        await loop.sock_sendall(client, b'{"call": "status"}\n' * 1_000_000)
    client.close()
    assert (await ask(impatient, "status", {})).failure is None


@pytest.mark.usefixtures("manager")
async def test_a_crowd_is_sent_away_and_those_inside_are_served(path: Path) -> None:
    crowd = [await asyncio.open_unix_connection(path) for _ in range(MOST_CLIENTS + 3)]
    refused = [reader for reader, _ in crowd[MOST_CLIENTS:]]
    assert [await reader.read() for reader in refused] == [b"", b"", b""]
    reader, writer = crowd[0]
    writer.write(b'{"call": "users"}\n')
    assert await reader.readline() == b'{"ok":true,"data":{"users":[]}}\n'
    for _, one in crowd:
        one.close()


async def test_a_manager_closes_while_clients_hang_on(tmp_path: Path, path: Path) -> None:
    async with manager_on(tmp_path, None):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"call": "users"}\n')
        await reader.readline()
    assert await reader.read() == b""
    writer.close()


async def test_forgetting_over_the_socket_erases_and_queues_the_erasure(
    manager: HybridMemoryManager, path: Path
) -> None:
    (node_id,) = await store(manager, "alice")
    answer = await ask(path, "forget", {"user_id": "alice"})
    assert answer.failure is None
    assert isinstance(answer.data["removed"], dict)
    assert answer.data["removed"]["nodes"] == 1
    assert await manager.user("alice").get(node_id) is None
    listed = await ask(path, "outbox_list", {})
    assert isinstance(listed.data["operations"], list)
    assert [entry["kind"] for entry in listed.data["operations"] if isinstance(entry, dict)] == ["erase"]


async def test_no_answer_holds_memory_text(manager: HybridMemoryManager, path: Path) -> None:
    await store(manager, "alice", text="the canary sings")
    for call in ("status", "users", "outbox_list", "dead_letters_list", "outbox_drain"):
        answer = await ask(path, call, {})
        assert answer.failure is None
        assert "canary" not in str(answer.data)
