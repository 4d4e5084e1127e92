"""Where damaged files of a data directory are set aside, and the steps of it that a crash may fall between.

A folder `quarantine/<utc time>-slot-NN` is made first and marks the slot as being mended. The damaged file, its log and
its index go there together; what can be read of them goes into a new file in the same folder; then the report is
written, and last the new file is moved to the slot. Whoever opens the slot after a crash in between goes on from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, cast

import orjson

from hybrid_memory.errors import StorageFailed
from hybrid_memory.sqlite.slots import prepare_directory

_FOLDER: Final = "quarantine"
_REPORT: Final = "report.json"
_MENDED: Final = "mended.db"
# The file itself last: as long as it lies in the slot, the slot's other parts are known to be its.
_PARTS: Final = ("-shm", "-wal", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was read of a damaged file; nothing of what was stored. `unaccounted` are runs of queue numbers."""

    operations: int
    dead_letters: int
    transient: int
    checkpoints: int
    unaccounted: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """One folder of one slot. A slot has at most one that is not finished."""

    folder: Path

    @property
    def damaged(self) -> Path:
        """The damaged file, with its log beside it."""
        return self.folder / "damaged.db"

    @property
    def mended(self) -> Path:
        """Where the new file is made."""
        return self.folder / _MENDED

    @property
    def report(self) -> Report | None:
        """What was read, once the new file is complete."""
        try:
            found = cast("dict[str, object]", orjson.loads((self.folder / _REPORT).read_bytes()))
        except FileNotFoundError:
            return None
        runs = cast("list[tuple[int, int]]", found.pop("unaccounted"))
        counts = cast("dict[str, int]", found)
        return Report(**counts, unaccounted=tuple((first, last) for first, last in runs))

    @property
    def is_finished(self) -> bool:
        """Whether the new file is in its place, so that nothing needs the folder any more."""
        return self.report is not None and not self.mended.exists()

    def take_in(self, path: Path) -> None:
        """Move a slot's file in here with all its parts; those that are here already stay."""
        for part in _PARTS:
            source = path.with_name(path.name + part)
            if source.exists():
                source.rename(self.damaged.with_name(self.damaged.name + part))
        sync_directory(path.parent)
        sync_directory(self.folder)

    def conclude(self, report: Report) -> None:
        """Write the report: from now on the new file counts."""
        draft = self.folder / f"{_REPORT}.draft"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(orjson.dumps(asdict(report)))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.folder / _REPORT)
        sync_directory(self.folder)

    def hand_over(self, path: Path) -> None:
        """Put the new file into the slot."""
        if self.mended.exists():
            self.mended.rename(path)
            sync_directory(path.parent)


def begin(data_dir: Path, slot: int, moment: datetime) -> Quarantine:
    """Make a folder for a slot."""
    above = prepare_directory(data_dir / _FOLDER)
    name = f"{moment:%Y%m%dT%H%M%S.%fZ}-slot-{slot:02d}"
    folder = prepare_directory(above / name)
    sync_directory(above)
    sync_directory(data_dir)
    return Quarantine(folder=folder)


def unfinished(data_dir: Path, slot: int) -> Quarantine | None:
    """The slot's folder whose mending was interrupted."""
    pending = [one for one in quarantines(data_dir, f"{slot:02d}") if not one.is_finished]
    return pending[-1] if pending else None


def quarantines(data_dir: Path, slot: str = "*") -> Sequence[Quarantine]:
    """The folders of one slot, or of all, oldest first."""
    folders = sorted((data_dir / _FOLDER).glob(f"*Z-slot-{slot}"))
    return [Quarantine(folder=folder) for folder in folders]


def remove_finished(data_dir: Path) -> int:
    """Delete the folders that nothing needs any more; how many.

    A damaged file may hold anybody's bytes where nobody can find them, so an erasure takes all of it. What could be
    read is in the slot's new file; the rest would only have been there to be looked at. Raises `StorageFailed`.
    """
    finished = [one for one in quarantines(data_dir) if one.is_finished]
    try:
        for one in finished:
            # The report goes last: until then the folder counts as finished.
            for path in one.folder.iterdir():
                if path.name != _REPORT:
                    path.unlink(missing_ok=True)
            shutil.rmtree(one.folder, ignore_errors=True)
    except OSError as error:
        raise StorageFailed(
            f"cannot remove a damaged file that was set aside: {error.strerror}", fix="remove the folder `quarantine`"
        ) from None
    with suppress(OSError):
        (data_dir / _FOLDER).rmdir()
    return len(finished)


def sync_directory(folder: Path) -> None:
    """Have what was made, renamed or removed in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
