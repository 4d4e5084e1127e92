"""PgBouncer in transaction mode before a test server: few connections to share, killed with -9 and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

START_SECONDS = 20.0
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
"""None where it is not installed."""
MISSING = "NOT RUN: PgBouncer is not installed (apt-get install pgbouncer)"

_PORT = 6432  # only part of the socket's name
_CONFIG = """
[databases]
* = host={server}
[pgbouncer]
unix_socket_dir = {folder}
unix_socket_mode = 0777
listen_port = {port}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
server_idle_timeout = 5
server_login_retry = 0.2
"""


class Pooler:
    """The process. It runs under the server's account, which alone can enter the directory of the server's socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, role: str, database: str) -> str:
        return f"postgresql://{role}@/{quote(database, safe='')}?host={quote(str(self.folder), safe='')}&port={_PORT}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        assert PROGRAM is not None
        user, group = ("nobody", "nogroup") if os.geteuid() == 0 else (None, None)
        groups: list[str] | None = [] if user else None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "-q", str(self.folder / "pgbouncer.ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=user,
                group=group,
                extra_groups=groups,
            )
        give_up = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"the pooler did not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill it with -9: every client's connection is gone, in the middle of what it was at."""
        self._end(signal.SIGKILL)

    def revive(self) -> None:
        """Start it if it is dead."""
        if self._process is None or self._process.poll() is not None:
            self.start()

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(timeout=START_SECONDS)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as knock:
            try:
                knock.connect(str(self.folder / f".s.PGSQL.{_PORT}"))
            except OSError:
                return False
            return True


@contextmanager
def pooler(folder: Path, *, server: Path, roles: tuple[str, ...], pool_size: int) -> Generator[Pooler]:
    """A pooler with its files in `folder`, before the server whose socket is in `server`, for these roles."""
    (folder / "users").write_text("".join(f'"{role}" ""\n' for role in roles))
    (folder / "pgbouncer.ini").write_text(_CONFIG.format(server=server, folder=folder, port=_PORT, pool_size=pool_size))
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
    made = Pooler(folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()
