"""A git history as a memory graph: who did what when, to which files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from hybrid_memory.cli.demo.git_log import Commit, Repository
from hybrid_memory.cli.demo.memories import (
    Entity,
    Episode,
    Fact,
    Link,
    Question,
    Ref,
    SearchQuestion,
    WalkQuestion,
    has_words,
    identity,
    shortened,
)

SYSTEM: Final = "git"
# The first commit of an import or of a shallow clone touches every file there is; a few say enough.
MAX_FILES_PER_COMMIT: Final = 200
# A walk of the graph gives up to 1,000 nodes; a file's commits and their authors have to fit.
_MAX_TOUCHES: Final = 400
_REPOSITORY: Final = "repository"


class GitLesson:
    """Commits as completed actions, authors, files and the repository as entities.

    An author `produces` a commit, a commit `led_to` those made on it, `relates_to` the files it touched and
    `belongs_to` the repository.
    """

    counts_entities = True

    def __init__(self, repository: Repository, *, limit: int) -> None:
        self._repository = repository
        self._limit = limit
        self._learned: set[Ref] = set()
        self._subjects: dict[str, list[Ref]] = defaultdict(list)
        self._touches: Counter[Ref] = Counter()
        self._touched_by: dict[Ref, dict[Ref, None]] = defaultdict(dict)
        self._followed_by: dict[Ref, list[Ref]] = defaultdict(list)
        self._names: dict[Ref, str] = {}
        self._files_left_out = 0

    @property
    def user_id(self) -> str:
        """One user for each name of a repository."""
        return identity(f"git:{self._repository.name}")

    @property
    def title(self) -> str:
        """What is learned, for people."""
        repository = self._repository
        return (
            f"the history of {repository.name} ({repository.branch}, {min(repository.commits, self._limit):,} commits)"
        )

    @property
    def total(self) -> int:
        """The repository itself, then a commit each."""
        return 1 + min(self._repository.commits, self._limit)

    @property
    def notes(self) -> Sequence[str]:
        """What was left out."""
        notes: list[str] = []
        if self._repository.commits > self._limit:
            notes.append(f"the newest {self._limit:,} of {self._repository.commits:,} commits; --limit takes more")
        if self._repository.shallow:
            notes.append("the clone is shallow: its history begins where it was cut")
        if self._files_left_out:
            notes.append(f"at most {MAX_FILES_PER_COMMIT} files of a commit; {self._files_left_out:,} were left out")
        return notes

    async def episodes(self) -> AsyncGenerator[Episode]:
        """The repository, then its commits, oldest first."""
        repository = self._repository
        entity = Entity(
            ref=_REPOSITORY,
            system=SYSTEM,
            entity_id=identity(f"repository:{repository.name}"),
            entity_type="repository",
            name=identity(repository.name),
            data={"branch": identity(repository.branch), "head": repository.head, "commits": repository.commits},
        )
        yield Episode(main=_REPOSITORY, memories=(entity,), links=())
        async with aclosing(repository.history(limit=self._limit)) as commits:
            async for commit in commits:
                yield self._episode(commit)

    def _episode(self, commit: Commit) -> Episode:
        ref = f"commit:{commit.commit_hash}"
        author = self._author(commit)
        files: dict[Ref, str] = {}
        news: list[Fact | Entity] = [] if author.ref in self._learned else [author]
        for change in commit.changes[:MAX_FILES_PER_COMMIT]:
            file = _file(change.path)
            files[file.ref] = change.status
            if file.ref not in self._learned:
                self._learned.add(file.ref)
                self._names[file.ref] = file.name
                news.append(file)
        parents = [f"commit:{parent}" for parent in commit.parents]
        links = [
            Link(source=author.ref, kind="produces", target=ref, properties={}),
            Link(source=ref, kind="belongs_to", target=_REPOSITORY, properties={}),
            *(Link(source=ref, kind="relates_to", target=file, properties={"status": files[file]}) for file in files),
            *(
                Link(source=parent, kind="led_to", target=ref, properties={})
                for parent in dict.fromkeys(parents)
                if parent in self._learned
            ),
        ]
        self._note(commit, ref, author, list(files), parents)
        return Episode(main=ref, memories=(self._fact(ref, commit), *news), links=tuple(links))

    def _fact(self, ref: Ref, commit: Commit) -> Fact:
        return Fact(
            ref=ref,
            context_type="completed_action",
            namespace=identity(self._repository.name),
            key=commit.commit_hash,
            tags=("merge",) if len(commit.parents) > 1 else (),
            content={
                "commit": commit.commit_hash,
                "subject": shortened(commit.subject),
                "message": shortened(commit.message),
                "author": shortened(commit.author),
                "authored_at": commit.authored_at,
                "committed_at": commit.committed_at,
                "files": len(commit.changes),
            },
            where={},
        )

    @staticmethod
    def _author(commit: Commit) -> Entity:
        address = identity(commit.email or commit.author or "nobody")
        name = identity(commit.author or address)
        return Entity(
            ref=f"author:{address}",
            system=SYSTEM,
            entity_id=identity(f"author:{address}"),
            entity_type="author",
            name=name,
            data={"email": address},
        )

    def _note(self, commit: Commit, ref: Ref, author: Entity, files: list[Ref], parents: list[Ref]) -> None:
        self._learned |= {ref, author.ref}
        self._files_left_out += max(0, len(commit.changes) - MAX_FILES_PER_COMMIT)
        self._names[ref] = commit.commit_hash[:10]
        if has_words(commit.subject):
            self._subjects[commit.subject].append(ref)
        for file in files:
            self._touches[file] += 1
            self._touched_by[file][author.ref] = None
        for parent in parents:
            if parent in self._learned:
                self._followed_by[parent].append(ref)

    def questions(self) -> Sequence[Question]:
        """Searches for the oldest, a middle and the newest subject, who touched the busiest files, what came next."""
        subjects = list(self._subjects)
        asked: list[Question] = [
            SearchQuestion(
                text=subject, where={"context_type": "completed_action"}, expected=tuple(self._subjects[subject])
            )
            for subject in dict.fromkeys(subjects[place] for place in (0, len(subjects) // 2, -1) if subjects)
        ]
        busiest = [file for file, touches in self._touches.most_common() if touches <= _MAX_TOUCHES][:3]
        asked += [
            WalkQuestion(
                text=f"Who touched {self._names[file]}?",
                start=file,
                kinds=("relates_to", "produces"),
                direction="in",
                depth=2,
                answers="farthest",
                expected=tuple(self._touched_by[file]),
            )
            for file in busiest
        ]
        asked += [
            WalkQuestion(
                text=f"What did {self._names[commit]} lead to?",
                start=commit,
                kinds=("led_to",),
                direction="out",
                depth=1,
                answers="nearest",
                expected=tuple(self._followed_by[commit]),
            )
            for commit in list(self._followed_by)[:1]
        ]
        return asked


def _file(path: str) -> Entity:
    name = identity(path)
    return Entity(
        ref=f"file:{name}",
        system=SYSTEM,
        entity_id=identity(f"file:{name}"),
        entity_type="file",
        name=name,
        data={"path": shortened(path)},
    )
