"""The keeper: a small process that runs one Postgres server and ends it when its owner is gone.

Postgres must not outlive the Python process that started it, also when that process is killed with -9 and can clean
up nothing. Linux's parent-death signal alone does not do: it follows the *thread* that forked, and no other system
has it. So the owner starts this script, which holds the read end of a pipe whose write end only the owner has. When
the owner closes it or dies, from whatever thread it started us, on Linux and macOS alike, the pipe ends and the
keeper asks Postgres for a fast shutdown. Two things stand behind that: the keeper looks at its parent's pid once a
second (a forked child of the owner may still hold the pipe), and on Linux Postgres gets the parent-death signal for
the case that the keeper itself is killed (the keeper has one thread, so there the signal is right).

The keeper and every process of the server inherit the descriptor of the `flock`ed lock file. That lock is therefore
held exactly as long as anything of this server lives, backends that outlive a killed postmaster included, and a free
lock proves that nothing does.

It is run as a plain script, isolated and without site-packages, to be up in some 30 ms: it imports the standard
library alone, nothing of this package, and leaves out what is slow to import (dataclasses).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

EXIT_BUSY: Final = 75
"""A live Postgres of this cluster holds a lock file although the `flock` was free: somebody started it by hand."""

KILL_COMMAND: Final = b"k"
"""Written to the pipe by the owner: kill the server with -9."""

_TICK_MS: Final = 1_000
_PR_SET_PDEATHSIG: Final = 1
# Fast shutdown at once; a server that hangs (frozen, or a disk that does not answer) is given 20 s for it, then 5 s
# for the immediate one. Both are guesses well above what a 128 MB cache takes to write.
_END_SERVER: Final = ((0.0, signal.SIGINT), (20.0, signal.SIGQUIT), (25.0, signal.SIGKILL))
# initdb ignores an interrupt while it tries out settings, and has nothing to lose.
_END_INITDB: Final = ((0.0, signal.SIGTERM), (5.0, signal.SIGKILL))
# Nothing of the caller's environment may reach the server (PGPORT, PGDATA, TZ, LC_* change what it does), and a set
# time zone spares initdb the search through all of them.
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class Task(NamedTuple):
    """What the keeper is told. `uid` and `gid` are -1 where the server runs under our own account."""

    owner: int
    uid: int
    gid: int
    lock: int
    cluster: str
    password_file: str
    socket_lock: str
    initdb: list[str]
    postgres: list[str]


class Keeper:
    """Makes the cluster if there is none, runs the server, and ends it when dismissed."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._dismissed = False
        self._wake, wake_writer = os.pipe()
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        signal.signal(signal.SIGTERM, self._on_term)
        for ignored in (signal.SIGINT, signal.SIGHUP):  # a terminal's signals are the owner's business
            signal.signal(ignored, signal.SIG_IGN)
        self._poller = select.poll()
        self._poller.register(0, select.POLLIN)
        self._poller.register(self._wake, select.POLLIN)

    def run(self) -> int:
        """Serve until dismissed or until the server ends; answers the exit code for the owner."""
        task = self._task
        cluster = Path(task.cluster)
        if not (cluster / "PG_VERSION").exists():
            failed = self._make_cluster(cluster)
            if failed:
                return failed
        for lock_file in (cluster / "postmaster.pid", Path(task.socket_lock)):
            if not clear_stale(lock_file, cluster):
                sys.stderr.write(f"{lock_file} names a live server of this cluster\n")
                return EXIT_BUSY
        return self._attend(task.postgres, _END_SERVER)

    def _make_cluster(self, cluster: Path) -> int:
        """Run initdb beside the cluster's place and rename when complete, so an interrupted one leaves no cluster."""
        making = cluster.with_name(f"{cluster.name}.making")
        # Ours to remove: an initdb of an earlier attempt would hold the lock that we hold.
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        self._give(making)
        password_file = Path(self._task.password_file)
        self._write_password(password_file)
        failed = self._attend([*self._task.initdb, "-D", str(making), f"--pwfile={password_file}"], _END_INITDB)
        if not failed:
            making.rename(cluster)
            _sync_directory(cluster.parent)
        return failed

    def _write_password(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, os.urandom(24).hex().encode())
            os.fsync(file)
        finally:
            os.close(file)
        self._give(path)

    def _give(self, path: Path) -> None:
        if self._task.uid >= 0:
            os.chown(path, self._task.uid, self._task.gid)

    def _attend(self, arguments: Sequence[str], endings: Sequence[tuple[float, signal.Signals]]) -> int:
        """Run one program to its end; once dismissed, signal it with growing insistence."""
        child = self._spawn(arguments)
        to_come = list(endings)
        dismissed_at: float | None = None
        while child.poll() is None:
            if dismissed_at is None and self._dismissed:
                dismissed_at = time.monotonic()
            while dismissed_at is not None and to_come and time.monotonic() - dismissed_at >= to_come[0][0]:
                child.send_signal(to_come.pop(0)[1])
                child.send_signal(signal.SIGCONT)  # a stopped process would not see the other one
            self._listen(child)
        code: int = child.returncode
        return abs(code)

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        """Wait for a command, the owner's end, a signal, or a second."""
        ready = dict(self._poller.poll(_TICK_MS))
        if self._wake in ready:
            os.read(self._wake, 512)
        if 0 in ready:
            command = os.read(0, 16)
            if KILL_COMMAND in command:
                child.kill()
            if not command:
                self._poller.unregister(0)
                self._dismissed = True
        if os.getppid() != self._task.owner:
            self._dismissed = True

    def _on_term(self, _signal: int, _frame: object) -> None:
        self._dismissed = True

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        task = self._task
        switch = task.uid >= 0
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            cwd="/",
            env=_ENVIRONMENT,
            pass_fds=(task.lock,),
            user=task.uid if switch else None,
            group=task.gid if switch else None,
            extra_groups=[] if switch else None,
            preexec_fn=_child_set_up(),  # noqa: PLW1509  this process has one thread
        )


def _child_set_up() -> Callable[[], None]:
    """What a child runs before exec, after it has changed its account (which would clear the parent-death signal)."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def set_up() -> None:
        # An ignored signal stays ignored: one sent before the server has its handlers would be lost, and with it the
        # whole shutdown.
        for signal_number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(signal_number, signal.SIG_DFL)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGINT)

    return set_up


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def clear_stale(lock_file: Path, cluster: Path) -> bool:
    """Remove a lock file that Postgres left behind; False if the process it names may be a live server of `cluster`.

    Postgres does this itself for a pid that is gone, but refuses to start when the pid is a zombie (containers whose
    first process does not reap) or was given to another process.
    """
    try:
        first_line = lock_file.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except FileNotFoundError:
        return True
    # Unreadable or empty is what a crash while writing leaves; negative is a stand-alone backend.
    pid = abs(int(first_line)) if first_line.lstrip("-").isdigit() else 0
    if pid and may_serve(pid, cluster):
        return False
    lock_file.unlink()
    return True


def may_serve(pid: int, cluster: Path) -> bool:
    """Whether `pid` may be a Postgres of `cluster`: False only on proof that it is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # another account's process could not use our cluster, which is closed to all but its owner
    if Path("/proc/self/stat").exists():
        return linux_may_serve(Path("/proc", str(pid)), cluster)
    return ps_may_serve(pid, cluster)


def linux_may_serve(process: Path, cluster: Path) -> bool:
    """`may_serve` by what /proc tells of a process."""
    try:
        state = (process / "stat").read_bytes().rpartition(b")")[2].split()[0]
        words = (process / "cmdline").read_bytes().split(b"\0")
        if state in (b"Z", b"X") or b"postgres" not in words[0]:
            return False
        return os.fsencode(cluster) in words or (process / "cwd").readlink() == cluster  # it goes there first
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return True


def ps_may_serve(pid: int, cluster: Path) -> bool:
    """`may_serve` where there is no /proc."""
    asked = subprocess.run(
        ["/bin/ps", "-ww", "-o", "stat=,command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, command = asked.stdout.strip().partition(" ")
    return bool(state) and not state.startswith("Z") and "postgres" in command and str(cluster) in command


if __name__ == "__main__":
    sys.exit(Keeper(Task(**json.loads(sys.argv[1]))).run())
