"""What a disk may hold after the power was cut: images made from the log of what a process had told the disk.

A file keeps what was written to it before its last successful sync, and anything between nothing and all of what was
written since: whole writes may be missing, and of a write some sectors of 512 bytes. What was waiting when a sync
failed is never sure again: Linux forgets that it was not written, and the next sync says nothing of it.

Names are kept apart from contents, as POSIX has it: a file that was made, renamed or removed is so after the cut only
if the directory was synced, or by luck. Linux's journaling file systems do better, in that syncing a new file keeps its
name as well; what survives these images does not rely on it. By luck names come in the order in which they were
changed, some first ones of them, which is how journals work; a directory whose own name is lost takes with it what is
below it.

Not modelled: directories renamed, writes that go elsewhere, sectors that are lost while they are written over with what
they held, disks that say they have synced and have not.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from hybrid_memory.testing.disk import Call

SECTOR_BYTES: Final = 512

# `struct line` of faultdisk.c.
_LINE: Final = struct.Struct("=IIQqII")
_MARK: Final = 15
_CREATED: Final = 1
_DIRECTORY: Final = 2
# A subset keeps each unsynced write by one of these chances: nearly none, most, or any.
_CHANCES: Final = (0.1, 0.5, 0.9)


class Survival(StrEnum):
    """How much of what was not synced is there after the cut."""

    NONE = "none"
    SUBSET = "subset"
    """Some of the writes, whole, and the first few changes of names."""
    TORN = "torn"
    """Some sectors of the writes, and the first few changes of names."""
    ALL = "all"


class Line(NamedTuple):
    """One entry of a log: a `Call` that changed the disk, or a mark (`call` None)."""

    call: Call | None
    flags: int
    handle: int
    at: int
    error: int
    data: bytes

    @property
    def is_mark(self) -> bool:
        """Whether the process itself said this."""
        return self.call is None

    @property
    def path(self) -> str:
        """The name concerned; of a renaming both, with a null between."""
        return self.data.decode(errors="surrogateescape")


class Cut(NamedTuple):
    """The power goes before the line of this index, and that much survives."""

    at: int
    survival: Survival


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the disk holds after a cut: files by their absolute path as the process named them.

    `marks` were given before the cut, in their order: what they say was acknowledged.
    """

    cut: Cut
    files: Mapping[str, bytes]
    marks: Sequence[bytes]

    def write_to(self, folder: Path, *, root: Path) -> None:
        """Write what lay below `root` into the folder."""
        for path, content in self.files.items():
            place = folder / Path(path).relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def read_log(path: Path) -> list[Line]:
    """The lines of a log; one that its process died over is left out."""
    raw = path.read_bytes()
    lines: list[Line] = []
    at = 0
    while at + _LINE.size <= len(raw):
        kind, flags, handle, offset, error, size = _LINE.unpack_from(raw, at)
        end = at + _LINE.size + size
        if end > len(raw):
            break
        lines.append(
            Line(None if kind == _MARK else Call(kind), flags, handle, offset, error, raw[at + _LINE.size : end])
        )
        at = end
    return lines


def random_cuts(lines: Sequence[Line], count: int, *, seed: int, after: int = 0) -> list[Cut]:
    """So many cuts anywhere in a log (from line `after` on), each kind of survival as often as the others."""
    chance = random.Random(seed)  # noqa: S311 - to be reproducible, not secret
    kinds = list(Survival)
    return [Cut(chance.randint(after, len(lines)), kinds[number % len(kinds)]) for number in range(count)]


def power_cut_images(
    lines: Sequence[Line], cuts: Iterable[Cut], *, seed: int, existing: Mapping[str, bytes] | None = None
) -> Iterator[Image]:
    """The image of each cut, in the order of the log. The same seed gives the same images.

    `existing` holds the files that were there, and safe, before the log began, by their absolute path.
    """
    disk = _Disk(existing or {})
    done = 0
    for cut in sorted(cuts):
        for line in lines[done : cut.at]:
            disk.take(line)
        done = max(done, cut.at)
        chance = random.Random(f"{seed} {cut.at} {cut.survival}")  # noqa: S311 - to be reproducible, not secret
        yield Image(cut=cut, files=disk.after_cut(cut.survival, chance), marks=tuple(disk.marks))


@dataclass(slots=True)
class _Change:
    """A write, or with no data a truncation."""

    at: int
    data: bytes | None
    safe: bool = False
    doubtful: bool = False

    def apply(self, content: bytearray) -> None:
        _lengthen(content, self.at)
        if self.data is None:
            del content[self.at :]
        else:
            content[self.at : self.at + len(self.data)] = self.data

    def apply_torn(self, content: bytearray, chance: random.Random, share: float) -> None:
        if self.data is None:
            if chance.random() < share:
                self.apply(content)
            return
        begin, end = self.at, self.at + len(self.data)
        while begin < end:
            sector_end = min(end, (begin // SECTOR_BYTES + 1) * SECTOR_BYTES)
            if chance.random() < share:
                _lengthen(content, begin)
                content[begin:sector_end] = self.data[begin - self.at : sector_end - self.at]
            begin = sector_end


def _lengthen(content: bytearray, size: int) -> None:
    if size > len(content):
        content.extend(bytes(size - len(content)))


@dataclass(slots=True)
class _File:
    safe: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list[_Change])

    def sync(self, *, failed: bool) -> None:
        for change in self.changes:
            if failed:
                change.doubtful = change.doubtful or not change.safe
            elif not change.doubtful:
                change.safe = True
        # Behind a doubtful change none may be taken in: it would no longer lie over it.
        while self.changes and self.changes[0].safe:
            self.changes.pop(0).apply(self.safe)

    def after_cut(self, survival: Survival, chance: random.Random) -> bytes:
        content = bytearray(self.safe)
        share = chance.choice(_CHANCES)
        for change in self.changes:
            if change.safe or survival is Survival.ALL:
                change.apply(content)
            elif survival is Survival.TORN:
                change.apply_torn(content, chance, share)
            elif survival is Survival.SUBSET and chance.random() < share:
                change.apply(content)
        return bytes(content)


Names: TypeAlias = dict[str, "_File | None"]
"""What each name leads to; None is a directory."""


@dataclass(slots=True)
class _Naming:
    """A name that was made (`to`), removed (`gone`), or both at once: renamed. `file` None is a directory."""

    gone: str | None
    to: str | None
    file: _File | None
    safe: bool = False

    def apply(self, names: Names) -> None:
        if self.gone is not None:
            names.pop(self.gone, None)
        if self.to is not None:
            names[self.to] = self.file

    def lies_in(self, directory: str) -> bool:
        return any(name is not None and name.rpartition("/")[0] == directory for name in (self.gone, self.to))


class _Disk:
    """The state of the disk, and of what it was told and has not confirmed."""

    def __init__(self, existing: Mapping[str, bytes]) -> None:
        self.marks: list[bytes] = []
        self._safe_names: Names = {path: _File(safe=bytearray(content)) for path, content in existing.items()}
        self._names: Names = dict(self._safe_names)
        self._namings: list[_Naming] = []
        self._open: dict[int, _File] = {}
        self._directories: dict[int, str] = {}

    def take(self, line: Line) -> None:
        match line.call:
            case None:
                self.marks.append(line.data)
            case Call.OPEN:
                self._opened(line)
            case Call.WRITE:
                self._open[line.handle].changes.append(_Change(line.at, line.data))
            case Call.TRUNCATE:
                self._open[line.handle].changes.append(_Change(line.at, None))
            case Call.SYNC:
                self._synced(line)
            case Call.READ:
                raise ValueError("a log holds no reads")
            case _:
                self._named(line)

    def _named(self, line: Line) -> None:
        old, _, new = line.path.partition("\0")
        if line.call is Call.MKDIR:
            self._name(_Naming(gone=None, to=old, file=None))
        elif line.call is not Call.RENAME:
            self._name(_Naming(gone=old, to=None, file=None))
        elif (file := self._names.get(old)) is not None:
            self._name(_Naming(gone=old, to=new, file=file))
        else:
            raise ValueError(f"{old} is no file: a directory was renamed")

    def _opened(self, line: Line) -> None:
        path = line.path
        if line.flags & _DIRECTORY:
            self._directories[line.handle] = path
            return
        file = self._names.get(path)
        if file is None:
            if not line.flags & _CREATED:
                raise ValueError(f"{path} was there before the log began: give its content as `existing`")
            file = _File()
            self._name(_Naming(gone=None, to=path, file=file))
        self._open[line.handle] = file

    def _name(self, naming: _Naming) -> None:
        naming.apply(self._names)
        self._namings.append(naming)

    def _synced(self, line: Line) -> None:
        if line.flags & _DIRECTORY:
            if not line.error:
                self._synced_directory(self._directories[line.handle])
        else:
            self._open[line.handle].sync(failed=bool(line.error))

    def _synced_directory(self, directory: str) -> None:
        for naming in self._namings:
            naming.safe = naming.safe or naming.lies_in(directory)
        while self._namings and self._namings[0].safe:
            self._namings.pop(0).apply(self._safe_names)

    def after_cut(self, survival: Survival, chance: random.Random) -> dict[str, bytes]:
        unsure = sum(not naming.safe for naming in self._namings)
        kept = {Survival.NONE: 0, Survival.ALL: unsure}.get(survival, chance.randint(0, unsure))
        names = dict(self._safe_names)
        for naming in self._namings:
            if naming.safe or kept > 0:
                naming.apply(names)
            kept -= not naming.safe
        made = {naming.to for naming in self._namings if naming.file is None} - names.keys()
        return {
            path: file.after_cut(survival, chance)
            for path, file in names.items()
            if file is not None and not any(path.startswith(f"{lost}/") for lost in made if lost)
        }
