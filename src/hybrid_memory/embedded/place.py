"""Where a server's files are: decided once per data directory, written down there, found again by every process."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import orjson

from hybrid_memory.errors import Misconfigured

_RECORD: Final = "place.json"
_WHOSE: Final = "data-directory"
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_LONGEST_SOCKET: Final = 100  # bytes; sockaddr_un holds 104 on macOS, 108 on Linux


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The system account the server runs under; `switched` if it is not our own (Postgres refuses to be root)."""

    uid: int
    gid: int
    switched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the parts of one server are. `home` is the directory asked for; the others may lie elsewhere.

    `made` says that the cluster once was complete: should it be missing later, it is not silently begun anew.
    """

    home: Path
    cluster: Path
    sockets: Path
    made: bool

    @property
    def lock_file(self) -> Path:
        """The file whose `flock` is held as long as anything of the server lives."""
        return lock_file(self.home)

    @property
    def log_file(self) -> Path:
        """What the server says; bounded anew at each start."""
        return self.home / "postgres.log"

    @property
    def password_file(self) -> Path:
        """The superuser's password for TCP, readable by us and the server's account."""
        return self.cluster.parent / "password"


def lock_file(home: Path) -> Path:
    """The lock file of a data directory, known before its place is."""
    return home / "lock"


def server_account() -> Account:
    """Our own account, or `nobody` for root."""
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid(), switched=False)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as missing:
        raise Misconfigured(
            "Postgres refuses to run as root and this system has no account `nobody` to run it under",
            fix="run as an ordinary user, or add the account",
        ) from missing
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid, switched=True)


def prepare_home(data_dir: Path) -> Path:
    """The data directory itself, made if missing, resolved; ours and writable by nobody else."""
    home = data_dir.resolve()
    home.parent.mkdir(parents=True, exist_ok=True)
    # Root's server runs under another account, which must pass through, but never list.
    home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
    seen = home.stat()
    if seen.st_uid != os.geteuid():
        raise _not_ours(home)
    if seen.st_mode & _WRITABLE_BY_OTHERS:
        home.chmod(stat.S_IMODE(seen.st_mode) & ~_WRITABLE_BY_OTHERS)
    return home


def read_place(home: Path) -> Place | None:
    """What an earlier start wrote down, None if there was none."""
    try:
        record = orjson.loads((home / _RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except orjson.JSONDecodeError as broken:
        raise Misconfigured(
            f"{home / _RECORD} is damaged", fix="restore it from a backup; it names where the cluster is"
        ) from broken
    return Place(home=home, cluster=Path(record["cluster"]), sockets=Path(record["sockets"]), made=bool(record["made"]))


def settle_place(home: Path, account: Account) -> Place:
    """Decide or find again where things are, and make the directories. Call it only while holding the lock.

    The record is on disk before the cluster is made, so a cluster is never lost sight of.
    """
    place = read_place(home)
    if place is None:
        place = _decide(home, account)
        _write(place)
    cluster_made = (place.cluster / "PG_VERSION").exists()
    if place.made and not cluster_made:
        raise Misconfigured(
            f"the cluster of {home} is missing: it was at {place.cluster}",
            fix=f"put it back, or remove {home / _RECORD} to begin with an empty one",
        )
    if cluster_made and place.cluster.stat().st_uid != account.uid:
        raise Misconfigured(
            f"the cluster at {place.cluster} belongs to another account", fix="run as the user who made it"
        )
    if place.cluster.parent != home:
        _require(place.cluster.parent.parent)
        _require(place.cluster.parent)
        # For who finds it there and wonders whose it is; nothing reads it.
        (place.cluster.parent / _WHOSE).write_text(f"{home}\n", encoding="utf-8", errors="surrogateescape")
    if place.sockets.parent not in {home, place.cluster.parent}:
        _require(place.sockets.parent)
    _make_socket_directory(place.sockets, account)
    return place


def mark_made(place: Place) -> Place:
    """Write down that the cluster is complete."""
    if place.made:
        return place
    made = replace(place, made=True)
    _write(made)
    return made


def remove_place(place: Place) -> None:
    """Delete the cluster and all that belongs to it, wherever it is. Call it only while holding the lock."""
    base = place.cluster.parent
    for folder in (place.cluster, base / f"{place.cluster.name}.making", place.sockets):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (place.password_file, place.log_file, old_log(place.log_file), place.home / _RECORD):
        file.unlink(missing_ok=True)
    if base != place.home:
        (base / _WHOSE).unlink(missing_ok=True)
        base.rmdir()


def old_log(log: Path) -> Path:
    """Where the log goes when it has grown too large."""
    return log.with_suffix(".log.1")


def reachable(path: Path, account: Account, *, need: int) -> bool:
    """Whether `account` may pass through all parents of `path` and has the rights `need` (others' bits) on it."""
    passable = all(_allows(parent, account, stat.S_IXOTH) for parent in path.parents)
    return passable and _allows(path, account, need)


def private_roots() -> Iterator[Path]:
    """Directories of our own that every account can pass through, best first.

    /var/lib before /var/tmp, because what lies untouched in temporary directories is swept away after some weeks:
    the files of a quiet cluster would be.
    """
    parents = [Path("/var/lib")] if os.geteuid() == 0 else [Path(tempfile.gettempdir())]
    parents += [Path("/var/tmp"), Path(tempfile.gettempdir())]  # noqa: S108  the directory made in it is verified
    for parent in parents:
        yield parent.resolve() / f"hybrid-memory-{os.geteuid()}"


def make_own_directory(path: Path, *, mode: int) -> bool:
    """Make `path` or take it as it is; False unless it is a directory of ours that nobody else can write to."""
    try:
        path.mkdir(mode=mode)
        path.chmod(mode)  # whatever the umask
    except FileExistsError:
        pass
    except OSError:
        return False
    seen = path.lstat()  # not stat: another user may have planted a link under a name that can be guessed
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid() and not seen.st_mode & _WRITABLE_BY_OTHERS


def _decide(home: Path, account: Account) -> Place:
    base = home
    if account.switched and not reachable(home, account, need=stat.S_IXOTH):
        root = _private_root(account)
        base = root / secrets.token_hex(6)
    sockets = base / "run"
    if _socket_too_long(sockets):
        sockets = _private_root(account) / f"run-{secrets.token_hex(6)}"
    return Place(home=home, cluster=base / "cluster", sockets=sockets, made=False)


def _private_root(account: Account) -> Path:
    for root in private_roots():
        if _socket_too_long(root / "run-0123456789ab"):
            continue
        if make_own_directory(root, mode=0o755) and reachable(root, account, need=stat.S_IXOTH):
            return root
    raise Misconfigured(
        "the data directory's path is too long for a socket, or closed to the account the server runs under, and no "
        "other place was found",
        fix="choose a data directory with a short path that every account can pass through",
    )


def _socket_too_long(sockets: Path) -> bool:
    return len(os.fsencode(sockets / ".s.PGSQL.65535")) > _LONGEST_SOCKET


def _make_socket_directory(sockets: Path, account: Account) -> None:
    """Closed to every account but the server's (and root): the server trusts who can open its socket."""
    try:
        sockets.mkdir(mode=0o700)
        if account.switched:
            os.chown(sockets, account.uid, account.gid)
    except FileExistsError:
        pass
    seen = sockets.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != account.uid or seen.st_mode & 0o077:
        raise Misconfigured(
            f"the socket directory {sockets} is open to others or not ours", fix="remove it and start again"
        )


def _require(directory: Path) -> None:
    """Make a directory that was recorded but may have been swept away, such as one in /tmp after a reboot."""
    if not make_own_directory(directory, mode=0o755):
        raise _not_ours(directory)


def _not_ours(directory: Path) -> Misconfigured:
    return Misconfigured(
        f"{directory} is not a directory of this account alone", fix="remove it or choose another data directory"
    )


def _allows(path: Path, account: Account, need: int) -> bool:
    try:
        seen = path.stat()
    except OSError:
        return False
    shift = 6 if seen.st_uid == account.uid else 3 if seen.st_gid == account.gid else 0
    return (seen.st_mode >> shift) & need == need


def _write(place: Place) -> None:
    record = {"cluster": str(place.cluster), "sockets": str(place.sockets), "made": place.made}
    making = place.home / f"{_RECORD}.making"
    with making.open("wb") as file:
        file.write(orjson.dumps(record, option=orjson.OPT_INDENT_2))
        file.flush()
        os.fsync(file.fileno())
    making.replace(place.home / _RECORD)
    directory = os.open(place.home, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
