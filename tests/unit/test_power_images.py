"""What an image of a power cut may hold: what was synced always, the rest by kind of survival, names by directory."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from hybrid_memory.testing.disk import Call
from hybrid_memory.testing.power import SECTOR_BYTES, Cut, Line, Survival, power_cut_images, random_cuts, read_log

FILE, DIRECTORY = 1, 2
PATH = b"/disk/a"
KINDS = list(Survival)


def line(call: Call, data: bytes = b"", *, handle: int = FILE, flags: int = 0, at: int = 0, error: int = 0) -> Line:
    return Line(call, flags, handle, at, error, data)


def made(path: bytes = PATH, handle: int = FILE) -> Line:
    return line(Call.OPEN, path, handle=handle, flags=1)


MARK = Line(None, 0, 0, 0, 0, b"ok")
DIRECTORY_OPENED = line(Call.OPEN, b"/disk", handle=DIRECTORY, flags=2)
DIRECTORY_SYNCED = line(Call.SYNC, handle=DIRECTORY, flags=2)
SYNCED = line(Call.SYNC)
NAMED = [made(), DIRECTORY_OPENED, DIRECTORY_SYNCED]


def images(lines: list[Line], survival: Survival, *, count: int = 40) -> set[bytes | None]:
    """What the file may hold at the end; None: it is not there."""
    cut = Cut(len(lines), survival)
    return {
        image.files.get(PATH.decode()) for seed in range(count) for image in power_cut_images(lines, [cut], seed=seed)
    }


@pytest.mark.parametrize("survival", KINDS)
def test_what_was_synced_under_a_synced_name_is_there(survival: Survival) -> None:
    assert images([*NAMED, line(Call.WRITE, b"tea"), SYNCED], survival) == {b"tea"}


def test_what_was_not_synced_is_there_by_luck() -> None:
    lines = [*NAMED, line(Call.WRITE, b"tea"), SYNCED, line(Call.WRITE, b"milk", at=3), line(Call.WRITE, b"T")]
    assert images(lines, Survival.NONE) == {b"tea"}
    assert images(lines, Survival.ALL) == {b"Teamilk"}
    assert images(lines, Survival.SUBSET) == {b"tea", b"Tea", b"teamilk", b"Teamilk"}


def test_a_write_may_be_torn_between_sectors_and_nowhere_else() -> None:
    lines = [*NAMED, line(Call.WRITE, b"x" * 3 * SECTOR_BYTES, at=100)]
    for content in images(lines, Survival.TORN):
        assert content is not None
        padded = content.ljust(4 * SECTOR_BYTES, b"\0")
        sectors = [set(padded[at : at + SECTOR_BYTES]) for at in range(0, len(padded), SECTOR_BYTES)]
        assert all(len(sector - {0}) <= 1 for sector in sectors)
    assert len(images(lines, Survival.TORN)) > 4


def test_what_was_waiting_when_a_sync_failed_is_never_sure_again() -> None:
    lines = [*NAMED, line(Call.WRITE, b"tea"), line(Call.SYNC, error=errno.EIO), line(Call.WRITE, b"!", at=3), SYNCED]
    assert images(lines, Survival.NONE) == {b"\0\0\0!"}
    again = [*lines, line(Call.WRITE, b"tea"), SYNCED]
    assert images(again, Survival.NONE) == {b"tea!"}, "written once more, it is"


def test_a_file_whose_directory_was_not_synced_may_have_no_name() -> None:
    lines = [made(), line(Call.WRITE, b"tea"), SYNCED]
    assert images(lines, Survival.NONE) == {None}
    assert images(lines, Survival.SUBSET) == {None, b"tea"}
    assert images([*lines, DIRECTORY_OPENED, DIRECTORY_SYNCED], Survival.NONE) == {b"tea"}


def test_a_file_removed_may_be_there_again_until_the_directory_is_synced() -> None:
    lines = [*NAMED, line(Call.WRITE, b"tea"), SYNCED, line(Call.UNLINK, PATH)]
    assert images(lines, Survival.NONE) == {b"tea"}
    assert images(lines, Survival.ALL) == {None}
    assert images([*lines, DIRECTORY_SYNCED], Survival.NONE) == {None}


def test_a_renamed_file_has_one_of_its_names() -> None:
    lines = [*NAMED, line(Call.WRITE, b"tea"), SYNCED, line(Call.RENAME, PATH + b"\0/disk/b")]
    found = [
        image.files for survival in KINDS for image in power_cut_images(lines, [Cut(len(lines), survival)], seed=1)
    ]
    assert {tuple(files.items()) for files in found} == {(("/disk/a", b"tea"),), (("/disk/b", b"tea"),)}


def test_a_directory_without_a_name_takes_along_what_is_below_it() -> None:
    lines = [line(Call.MKDIR, b"/disk/in"), made(b"/disk/in/a"), line(Call.WRITE, b"tea"), SYNCED]
    below = [line(Call.OPEN, b"/disk/in", handle=3, flags=2), line(Call.SYNC, handle=3, flags=2)]
    (image,) = power_cut_images(lines + below, [Cut(6, Survival.NONE)], seed=1)
    assert image.files == {}
    lines = [*lines, *below, DIRECTORY_OPENED, DIRECTORY_SYNCED]
    (image,) = power_cut_images(lines, [Cut(8, Survival.NONE)], seed=1)
    assert image.files == {"/disk/in/a": b"tea"}


def test_an_image_says_what_had_been_acknowledged_before_the_cut() -> None:
    lines = [*NAMED, MARK, line(Call.WRITE, b"tea"), MARK]
    cuts = [Cut(at, Survival.ALL) for at in range(len(lines) + 1)]
    assert [len(image.marks) for image in power_cut_images(lines, cuts, seed=1)] == [0, 0, 0, 0, 1, 1, 2]


def test_what_was_there_before_the_log_began_must_be_given() -> None:
    lines = [line(Call.OPEN, PATH), line(Call.WRITE, b"T")]
    with pytest.raises(ValueError, match="existing"):
        list(power_cut_images(lines, [Cut(2, Survival.ALL)], seed=1))
    (image,) = power_cut_images(lines, [Cut(2, Survival.ALL)], seed=1, existing={"/disk/a": b"tea"})
    assert image.files == {"/disk/a": b"Tea"}


def test_the_same_seed_gives_the_same_cuts_and_images() -> None:
    lines = [*NAMED, *(line(Call.WRITE, b"x" * 2000, at=at * 700) for at in range(9))]
    cuts = random_cuts(lines, 30, seed=1)
    assert cuts == random_cuts(lines, 30, seed=1)
    assert {cut.survival for cut in cuts} == set(Survival)
    first, second = (list(power_cut_images(lines, cuts, seed=2)) for _ in range(2))
    assert first == second


def test_a_line_that_its_process_died_over_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    whole = struct.pack("=IIQqII", Call.WRITE, 0, 7, 40, 0, 3) + b"tea"
    log.write_bytes(whole + whole[:-1])
    assert read_log(log) == [Line(Call.WRITE, 0, 7, 40, 0, b"tea")]
