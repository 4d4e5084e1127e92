"""The second process: opens the user's session, and finds and answers from its own copy.

`python -m hybrid_memory.cli.demo.second_session` reads an errand on standard input and writes its reply on standard
output, one JSON document each.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import structlog

from hybrid_memory.cli.demo.errand import (
    Answer,
    Answers,
    Errand,
    Reply,
    Search,
    Timed,
    Trouble,
    Walk,
    WrittenLink,
    WrittenMemory,
)
from hybrid_memory.cli.demo.memories import fingerprint, has_words
from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.filters import Filter
from hybrid_memory.graph import Digest, MemoryNode, Progress
from hybrid_memory.manager import HybridMemoryManager
from hybrid_memory.user_memory import UserMemory

FIRST: Final = 10
# First a few hits, which hold nearly every turn searched by its own words; then as many as a search gives.
_HITS: Final = (1, 10, 1000)
_MOST: Final = 1000
_MISSING_SHOWN: Final = 10


class SecondSession:
    """Finds what an errand names, in one user's memory."""

    def __init__(self, user: UserMemory, errand: Errand) -> None:
        self._user = user
        self._errand = errand
        self._missing: list[str] = []
        self._wordless = 0

    async def answer(self, loaded: Timed) -> Answers:
        """Find all, then answer all."""
        began = time.perf_counter()
        present = [memory for memory in self._errand.memories if await self._is_present(memory)]
        counted = [memory for memory in present if memory.counted]
        looked = _timed("second process: find by id", len(self._errand.memories), began)
        began = time.perf_counter()
        searched = sum(has_words(memory.words) for memory in counted)
        found = [memory for memory in counted if await self._is_found(memory)]
        fetched = _timed("second process: find by words", searched, began)
        began = time.perf_counter()
        links = await self._links_present()
        walked = _timed("second process: find relationships", len(self._errand.links), began)
        began = time.perf_counter()
        answers = [await self._answered(question) for question in self._errand.questions]
        asked = _timed("second process: answer questions", len(answers), began)
        late = sum(memory.in_outage for memory in present) + sum(link.in_outage for link in links)
        return Answers(
            found=len(found),
            wordless=self._wordless,
            present_after=late,
            missing=self._missing[:_MISSING_SHOWN],
            digest=digest_text(await self._user.digest()),
            answers=answers,
            steps=[loaded, looked, *([fetched] if searched else []), walked, asked],
        )

    async def _is_present(self, memory: WrittenMemory) -> bool:
        node = await self._user.get(memory.node_id)
        present = node is not None and fingerprint(node.content, entity=memory.entity) == memory.fingerprint
        if not present:
            self._missing.append(memory.node_id)
        return present

    async def _is_found(self, memory: WrittenMemory) -> bool:
        """Whether a search for its words gives it, or another of the very same text."""
        if memory.entity or not memory.where:
            return True
        if not has_words(memory.words):
            self._wordless += 1
            return True
        for limit in _HITS:
            hits = await self._user.search(memory.words, where=memory.where, limit=limit)
            if any(hit.node.node_id == memory.node_id or hit.node.content.get("text") == memory.words for hit in hits):
                return True
        self._missing.append(memory.node_id)
        return False

    async def _links_present(self) -> list[WrittenLink]:
        by_main: dict[str, list[WrittenLink]] = defaultdict(list)
        for link in self._errand.links:
            by_main[link.main_id].append(link)
        present: list[WrittenLink] = []
        for main_id, links in by_main.items():
            relationships = {
                (one.relationship.source_id, one.relationship.relationship_type, one.relationship.target_id)
                for one in await self._user.neighbours(main_id, limit=_MOST)
            }
            for link in links:
                if (link.source_id, link.kind, link.target_id) in relationships:
                    present.append(link)
                else:
                    self._missing.append(f"{link.source_id} {link.kind} {link.target_id}")
        return present

    async def _answered(self, question: Search | Walk) -> Answer:
        began = time.perf_counter()
        if isinstance(question, Search):
            nodes = await self._searched(question)
            right = any(node.node_id in question.expected for node in nodes)
            shown, scored = _first_fitting(nodes, question.expected), question.scored
        else:
            nodes = await self._walked(question)
            right = set(question.expected) <= {node.node_id for node in nodes}
            shown, scored = ", ".join(dict.fromkeys(_label(node) for node in nodes)), True
        reached = {node.node_id for node in nodes}.intersection(question.expected)
        return Answer(
            question=question.text,
            answer=shown,
            right=right,
            scored=scored,
            recall=len(reached) / len(question.expected) if question.expected else 0.0,
            ms=_ms_since(began),
        )

    async def _searched(self, question: Search) -> list[MemoryNode]:
        where: Filter | None = question.where or None
        return [hit.node for hit in await self._user.search(question.text, where=where, limit=FIRST)]

    async def _walked(self, question: Walk) -> list[MemoryNode]:
        reached = await self._user.neighbours(
            question.start_id, depth=question.depth, types=question.kinds, direction=question.direction, limit=_MOST
        )
        depth = 1 if question.answers == "nearest" else question.depth
        return [neighbour.node for neighbour in reached if neighbour.depth == depth]


def digest_text(digest: Digest) -> str:
    """A digest as people compare it: 16 hexadecimal digits."""
    return f"{digest.value & 0xFFFFFFFFFFFFFFFF:016x}"


def _first_fitting(nodes: list[MemoryNode], expected: Iterable[str]) -> str:
    wanted = set(expected)
    best = next((node for node in nodes if node.node_id in wanted), nodes[0] if nodes else None)
    return "" if best is None else _label(best)


def _label(node: MemoryNode) -> str:
    match node.content:
        case {"entity_name": str(name)}:
            return name
        case {"commit": str(commit), "subject": str(subject), "author": str(author), "authored_at": str(moment)}:
            return f"{commit[:7]} {moment[:10]} {author}: {subject}"
        case {"speaker": str(speaker), "text": str(text)}:
            return f"{speaker}: {text}"
        case _:
            return node.node_id


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)


def _timed(name: str, count: int, began: float) -> Timed:
    return Timed(name=name, count=count, ms=_ms_since(began))


async def _run(errand: Errand) -> Answers:
    began = time.perf_counter()
    loaded = 0

    def note(progress: Progress) -> None:
        nonlocal loaded
        loaded = progress.loaded

    async with HybridMemoryManager.open(dsn=errand.dsn, data_dir=errand.data_dir) as manager:
        user = await manager.ensure_user_memories(errand.user_id, progress=note)
        preload = _timed("second process: open and preload", loaded, began)
        return await SecondSession(user, errand).answer(preload)


def main() -> int:
    """Run the errand on standard input. Exit 0 with answers, 1 with trouble."""
    # Standard output is for the reply.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    errand = Errand.model_validate_json(sys.stdin.buffer.read())
    try:
        reply = Reply(answers=asyncio.run(_run(errand)))
    except HybridMemoryError as error:
        reply = Reply(trouble=Trouble(code=error.code, message=error.message, fix=error.fix, retryable=error.retryable))
    sys.stdout.write(reply.model_dump_json())
    sys.stdout.flush()
    return 0 if reply.trouble is None else 1


if __name__ == "__main__":
    sys.exit(main())
