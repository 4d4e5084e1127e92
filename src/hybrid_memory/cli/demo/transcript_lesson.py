"""Conversations as a memory graph: who said what when, and what was said next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final

from hybrid_memory.cli.demo.memories import (
    Entity,
    Episode,
    Fact,
    Link,
    Question,
    Ref,
    SearchQuestion,
    has_words,
    identity,
    shortened,
)
from hybrid_memory.cli.demo.transcript import Conversation, Turn
from hybrid_memory.graph import JsonInput

SYSTEM: Final = "transcript"
_TRANSCRIPT: Final = "transcript"
# Where a transcript brings no questions of its own, so many of its turns are asked for.
_MADE_UP: Final = 5


class TranscriptLesson:
    """Turns as conversation facts in a namespace for each conversation; sessions, speakers and the file as entities.

    A speaker `produces` a turn, a turn `led_to` the next one and `belongs_to` its session.
    """

    counts_entities = False

    def __init__(self, conversations: Sequence[Conversation], *, name: str) -> None:
        self._conversations = conversations
        self._name = name
        self._turns = sum(len(conversation.turns) for conversation in conversations)

    @property
    def user_id(self) -> str:
        """One user for each name of a file."""
        return identity(f"transcript:{self._name}")

    @property
    def title(self) -> str:
        """What is learned, for people."""
        count = len(self._conversations)
        return f"{self._name} ({count} conversation{'s' if count != 1 else ''}, {self._turns:,} turns)"

    @property
    def total(self) -> int:
        """The file itself, then a turn each."""
        return 1 + self._turns

    @property
    def notes(self) -> Sequence[str]:
        """Nothing is left out."""
        return ()

    async def episodes(self) -> AsyncGenerator[Episode]:
        """The file, then the turns of one conversation after the other."""
        opening = Entity(
            ref=_TRANSCRIPT,
            system=SYSTEM,
            entity_id=identity(f"file:{self._name}"),
            entity_type="transcript",
            name=identity(self._name),
            data={"conversations": len(self._conversations), "turns": self._turns},
        )
        yield Episode(main=_TRANSCRIPT, memories=(opening,), links=())
        learned: set[Ref] = set()
        for conversation in self._conversations:
            former: Ref | None = None
            for turn in conversation.turns:
                episode = _episode(conversation.conversation_id, turn, former)
                fresh = tuple(memory for memory in episode.memories if memory.ref not in learned)
                learned |= {memory.ref for memory in fresh}
                yield Episode(main=episode.main, memories=fresh, links=episode.links)
                former = episode.main

    def questions(self) -> Sequence[Question]:
        """The questions that came along; where there are none, a few turns are asked for by their own words."""
        return [
            SearchQuestion(
                text=shortened(asked.text),
                where={"namespace": conversation.conversation_id, "context_type": "conversation_fact"},
                expected=tuple(_turn_ref(conversation.conversation_id, turn_id) for turn_id in asked.evidence),
                scored=asked.answerable and bool(asked.evidence),
            )
            for conversation in self._conversations
            for asked in conversation.asked
        ] or self._made_up()

    def _made_up(self) -> list[Question]:
        same: dict[str, list[Ref]] = {}
        for conversation in self._conversations:
            for turn in conversation.turns:
                if has_words(turn.text):
                    same.setdefault(shortened(turn.text), []).append(
                        _turn_ref(conversation.conversation_id, turn.turn_id)
                    )
        step = max(1, len(same) // _MADE_UP)
        return [
            SearchQuestion(text=text, where={"context_type": "conversation_fact"}, expected=tuple(refs))
            for text, refs in list(same.items())[::step][:_MADE_UP]
        ]


def _turn_ref(conversation_id: str, turn_id: str) -> Ref:
    return f"turn:{len(conversation_id)}:{conversation_id}:{turn_id}"


def _episode(conversation_id: str, turn: Turn, former: Ref | None) -> Episode:
    """A turn with its speaker and its session, known or not."""
    speaker = _entity(conversation_id, "speaker", turn.speaker, {})
    session = _entity(
        conversation_id, "session", turn.session, {"time": None if turn.time is None else shortened(turn.time)}
    )
    ref = _turn_ref(conversation_id, turn.turn_id)
    links = [
        Link(source=speaker.ref, kind="produces", target=ref, properties={}),
        Link(source=ref, kind="belongs_to", target=session.ref, properties={}),
    ]
    if former is not None:
        links.append(Link(source=former, kind="led_to", target=ref, properties={}))
    return Episode(main=ref, memories=(_fact(ref, conversation_id, turn), speaker, session), links=tuple(links))


def _fact(ref: Ref, namespace: str, turn: Turn) -> Fact:
    content: dict[str, JsonInput] = {
        "speaker": shortened(turn.speaker),
        "text": shortened(turn.text),
        "session": turn.session,
        "time": None if turn.time is None else shortened(turn.time),
        "dia_id": turn.turn_id,
    }
    if turn.caption is not None:
        content["caption"] = shortened(turn.caption)
    return Fact(
        ref=ref,
        context_type="conversation_fact",
        namespace=namespace,
        key=turn.turn_id,
        content=content,
        words=shortened(turn.text),
        where={"namespace": namespace, "content.session": turn.session},
    )


def _entity(namespace: str, kind: str, name: str, data: dict[str, JsonInput]) -> Entity:
    identifier = identity(f"{kind}:{len(namespace)}:{namespace}:{name}")
    return Entity(
        ref=identifier,
        system=SYSTEM,
        entity_id=identifier,
        entity_type=kind,
        name=identity(name),
        data={"conversation": namespace, **data},
    )
