"""Reads the history of a git repository, whoever owns it and whatever is in it."""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from hybrid_memory.cli.demo.child import dismiss
from hybrid_memory.errors import NotFound

# The clone may be another user's. Git refuses that by default because a repository's own settings can name programs to
# run; the ways to run one while reading a log are closed here and in `_LOG`: no pager, no signature check, no external
# diff, no text conversion, and no fetching of what a partial clone lacks.
_GIT: Final = (
    "git",
    "--no-pager",
    "-c",
    "safe.directory=*",
    "-c",
    "protocol.allow=never",
    "-c",
    "core.fsmonitor=false",
)
# Statuses need trees alone: no content is read, so a huge history is quick and a partial clone is enough.
_LOG: Final = (
    "log",
    "-z",
    "--reverse",
    "--date-order",
    "--name-status",
    "--no-renames",
    "--no-show-signature",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--encoding=UTF-8",
    "--format=tformat:commit:%H%x00%P%x00%aN%x00%aE%x00%aI%x00%cI%x00%B",
)
_HEAD: Final = re.compile(rb"commit:([0-9a-f]{40,64})")
_STATUS: Final = re.compile(rb"[A-Z][0-9]*")
_FIELDS: Final = 6
_READ_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A file that a commit touched; `status` is git's letter (A added, M modified, D deleted, T changed type)."""

    path: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One commit. Times are ISO 8601 as git writes them; texts are decoded with replacement."""

    commit_hash: str
    parents: tuple[str, ...]
    author: str
    email: str
    authored_at: str
    committed_at: str
    message: str
    changes: tuple[Change, ...]

    @property
    def subject(self) -> str:
        """The first line of the message."""
        return self.message.partition("\n")[0].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository with at least one commit, as it was when it was opened."""

    folder: Path
    name: str
    head: str
    branch: str
    commits: int
    """How many are reachable from `head`."""
    shallow: bool

    @classmethod
    async def open(cls, folder: Path) -> Repository:
        """The repository that `folder` stands in. Raises `NotFound` where there is none, or no commit in it."""
        if not await asyncio.to_thread(folder.is_dir):
            raise NotFound(f"{folder} is not a folder", fix="name a git repository with --repo PATH")
        try:
            root = Path(await _root(folder))
            shallow = await _ask(folder, "rev-parse", "--is-shallow-repository")
        except _Refused as refused:
            raise NotFound(
                f"{folder} is not in a git repository that can be read ({refused})",
                fix="name one with --repo PATH, or a conversation with --transcript FILE",
            ) from None
        try:
            head = await _ask(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
            counted = await _ask(folder, "rev-list", "--count", head)
            branch = await _ask(folder, "rev-parse", "--abbrev-ref", "HEAD")
        except _Refused:
            raise NotFound("the repository has no commit yet", fix="name another with --repo PATH") from None
        named = root.parent if root.name == ".git" else root
        return cls(
            folder=folder,
            name=named.name.removesuffix(".git") or "repository",
            head=head,
            branch=branch,
            commits=int(counted),
            shallow=shallow == "true",
        )

    async def history(self, *, limit: int) -> AsyncGenerator[Commit]:
        """The newest `limit` commits, oldest first, each after its parents. Raises `NotFound` when git fails midway."""
        with tempfile.TemporaryFile() as complaints:
            process = await _start(self.folder, [*_LOG, f"--max-count={limit}", self.head, "--"], stderr=complaints)
            reader = LogReader()
            try:
                stream = process.stdout
                while stream is not None and (part := await stream.read(_READ_BYTES)):
                    for commit in reader.feed(part):
                        yield commit
                if await process.wait() != 0:
                    raise NotFound(f"git cannot read the history: {_first_line(complaints)}", fix="try git fsck there")
                for commit in reader.end():
                    yield commit
            finally:
                await dismiss(process)


@dataclass(slots=True)
class LogReader:
    """Turns the bytes of the log into commits, however they are cut into parts: no I/O."""

    _rest: bytes = b""
    _head: bytes | None = None
    _fields: list[bytes] = field(default_factory=list[bytes])
    _changes: list[Change] = field(default_factory=list[Change])
    _status: str | None = None

    def feed(self, part: bytes) -> Iterator[Commit]:
        """The commits that are complete now."""
        *tokens, self._rest = (self._rest + part).split(b"\0")
        for token in tokens:
            commit = self._take(token)
            if commit is not None:
                yield commit

    def end(self) -> Iterator[Commit]:
        """The last commit, if there was one."""
        if self._rest:
            yield from self.feed(b"\0")
        if self._head is not None and len(self._fields) == _FIELDS:
            yield self._commit(self._head)

    def _take(self, token: bytes) -> Commit | None:
        # Fields and paths are taken by their place, so nothing written in them can be mistaken for the next head.
        if self._head is not None and len(self._fields) < _FIELDS:
            self._fields.append(token)
            return None
        if self._status is not None:
            self._changes.append(Change(path=path_text(token), status=self._status))
            self._status = None
            return None
        token = token.strip(b"\n")
        if (head := _HEAD.fullmatch(token)) is not None:
            former = None if self._head is None else self._commit(self._head)
            self._head, self._fields, self._changes = head[1], [], []
            return former
        if _STATUS.fullmatch(token) is not None:
            self._status = token[:1].decode("ascii")
        return None

    def _commit(self, head: bytes) -> Commit:
        parents, author, email, authored_at, committed_at, message = (
            token.decode("utf-8", "replace") for token in self._fields
        )
        return Commit(
            commit_hash=head.decode("ascii"),
            parents=tuple(parents.split()),
            author=author.strip(),
            email=email.strip(),
            authored_at=authored_at,
            committed_at=committed_at,
            message=message.strip(),
            changes=tuple(self._changes),
        )


def path_text(path: bytes) -> str:
    """A path as text; one that is not UTF-8 keeps apart from its like by a fingerprint."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return f"{path.decode('utf-8', 'replace')}~{hashlib.sha256(path).hexdigest()[:8]}"


class _Refused(Exception):
    """Git ended with an error; the text is its first line."""


async def _root(folder: Path) -> str:
    """The top of the working tree, or the repository itself where there is none (bare)."""
    try:
        return await _ask(folder, "rev-parse", "--show-toplevel")
    except _Refused:
        return await _ask(folder, "rev-parse", "--absolute-git-dir")


async def _ask(folder: Path, *arguments: str) -> str:
    with tempfile.TemporaryFile() as complaints:
        process = await _start(folder, arguments, stderr=complaints)
        answer, _ = await process.communicate()
        if process.returncode != 0:
            raise _Refused(_first_line(complaints))
        return answer.decode("utf-8", "replace").removesuffix("\n")


async def _start(folder: Path, arguments: Sequence[str], *, stderr: IO[bytes]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *_GIT, *arguments, cwd=folder, stdin=DEVNULL, stdout=PIPE, stderr=stderr
        )
    except FileNotFoundError:
        raise NotFound("git is not installed", fix="install git, or learn a conversation: --transcript FILE") from None
    except PermissionError:
        raise NotFound(f"{folder} may not be entered", fix="name a repository you may read with --repo PATH") from None


def _first_line(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    return complaints.readline(500).decode("utf-8", "replace").strip() or "no reason given"
