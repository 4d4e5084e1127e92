"""Reads conversations: OpenAI-style messages (JSON or JSONL) and the LoCoMo format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

from hybrid_memory.cli.demo.memories import identity
from hybrid_memory.errors import InvalidInput, NotFound
from hybrid_memory.graph import JsonValue
from hybrid_memory.jsontext import decode

JsonObject: TypeAlias = "dict[str, JsonValue]"

_SESSION: Final = re.compile(r"session_([0-9]+)")
_EVIDENCE: Final = re.compile(r"D[0-9]+:[0-9]+")
# LoCoMo's category 5 asks for what was never said; there is nothing to find.
_ADVERSARIAL: Final = 5
_TIMES: Final = ("time", "timestamp", "created_at", "create_time")
_FIX: Final = "give OpenAI-style messages as JSON or JSONL, or the LoCoMo format"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One utterance. `turn_id` is unique in its conversation; `caption` describes a picture that was sent along."""

    turn_id: str
    session: str
    time: str | None
    speaker: str
    text: str
    caption: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question that came with a conversation, and the turns that hold its answer."""

    text: str
    evidence: tuple[str, ...]
    answerable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation, in the order in which it was held."""

    conversation_id: str
    turns: tuple[Turn, ...]
    asked: tuple[Asked, ...] = ()


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations of a file. Raises `NotFound` and, where the file is not understood, `InvalidInput`."""
    try:
        written = path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}", fix="name a file with --transcript FILE") from None
    return parse_conversations(written, name=path.stem)


def parse_conversations(written: bytes, *, name: str) -> list[Conversation]:
    """The conversations in the bytes of a file; `name` is for those that have none of their own."""
    documents = _documents(written.removeprefix(b"\xef\xbb\xbf"))
    if all("conversation" in document for document in documents):
        read = [_locomo(place, document) for place, document in enumerate(documents)]
    elif all("messages" in document for document in documents):
        read = [_messages(place, document["messages"], document) for place, document in enumerate(documents)]
    else:
        read = [_messages(0, list(documents), {})]
    named = _named([conversation for conversation in read if conversation.turns], name)
    if not named:
        _refuse("holds no turn")
    return named


def _documents(written: bytes) -> list[JsonObject]:
    try:
        whole = decode(written)
    except InvalidInput:
        return [_line(number, line) for number, line in enumerate(written.splitlines(), 1) if line.strip()]
    if isinstance(whole, list):
        return [_object(f"[{place}]", item) for place, item in enumerate(whole)]
    return [_object("the document", whole)]


def _line(number: int, line: bytes) -> JsonObject:
    try:
        return _object(f"line {number}", decode(line))
    except InvalidInput:
        _refuse(f"line {number} is not a JSON object")


def _object(place: str, value: JsonValue) -> JsonObject:
    if not isinstance(value, dict):
        _refuse(f"{place} is not a JSON object")
    return value


def _list(place: str, value: JsonValue) -> Sequence[JsonValue]:
    if not isinstance(value, list):
        _refuse(f"{place} is not a list")
    return value


def _refuse(reason: str) -> NoReturn:
    refused = InvalidInput("transcript", reason)
    refused.fix = _FIX
    raise refused


def _messages(place: int, messages: JsonValue, document: JsonObject) -> Conversation:
    turns: list[Turn] = []
    for number, item in enumerate(_list(f"[{place}].messages", messages), 1):
        message = _object(f"message {number}", item)
        if "role" not in message and "content" not in message:
            _refuse(f"message {number} has neither role nor content")
        turns.append(
            Turn(
                turn_id=_text(message, "id") or f"D1:{number}",
                session=_text(message, "session") or "session_1",
                time=next((time for key in _TIMES if (time := _text(message, key))), None),
                speaker=_text(message, "name") or _text(message, "role") or "unknown",
                text=_said(message),
            )
        )
    identity = _text(document, "id") or _text(document, "conversation_id") or ""
    return Conversation(conversation_id=identity, turns=_apart(turns))


def _said(message: JsonObject) -> str:
    """The text of a message: its content, or its text parts, and the calls it makes of tools, a line each."""
    content = message.get("content")
    said = [content] if isinstance(content, str) else []
    if isinstance(content, list):
        said += [text for part in content if isinstance(part, dict) and (text := _text(part, "text"))]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            said.append(f"{_text(function, 'name')}({_text(function, 'arguments')})")
    return "\n".join(said)


def _locomo(place: int, document: JsonObject) -> Conversation:
    conversation = _object(f"[{place}].conversation", document["conversation"])
    numbers = sorted(int(found[1]) for key in conversation if (found := _SESSION.fullmatch(key)))
    turns: list[Turn] = []
    for number in numbers:
        session = f"session_{number}"
        for position, item in enumerate(_list(f"[{place}].{session}", conversation[session]), 1):
            turn = _object(f"[{place}].{session}[{position - 1}]", item)
            turns.append(
                Turn(
                    turn_id=_text(turn, "dia_id") or f"D{number}:{position}",
                    session=session,
                    time=_text(conversation, f"{session}_date_time"),
                    speaker=_text(turn, "speaker") or "unknown",
                    text=_text(turn, "text") or "",
                    caption=_text(turn, "blip_caption"),
                )
            )
    questions = document.get("qa")
    asked = [_asked(item) for item in questions if isinstance(item, dict)] if isinstance(questions, list) else []
    return Conversation(
        conversation_id=_text(document, "sample_id") or "",
        turns=_apart(turns),
        asked=tuple(question for question in asked if question.text),
    )


def _asked(item: JsonObject) -> Asked:
    evidence = item.get("evidence")
    written = " ".join(one for one in evidence if isinstance(one, str)) if isinstance(evidence, list) else ""
    # Some are malformed ("D8:6; D9:17"): whatever in them looks like the name of a turn counts.
    return Asked(
        text=_text(item, "question") or "",
        evidence=tuple(dict.fromkeys(_EVIDENCE.findall(written))),
        answerable=item.get("category") != _ADVERSARIAL,
    )


def _text(holder: JsonObject, key: str) -> str | None:
    """What stands under the key as text; None where there is nothing, or nothing that reads as text."""
    value = holder.get(key)
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _apart(turns: list[Turn]) -> tuple[Turn, ...]:
    """The turns, each named by an identifier of its own: a number follows a name that was there before."""
    seen: Counter[str] = Counter()
    apart: list[Turn] = []
    for turn in turns:
        name = identity(turn.turn_id)
        seen[name] += 1
        unique = name if seen[name] == 1 else identity(f"{name}#{seen[name]}")
        apart.append(replace(turn, turn_id=unique, session=identity(turn.session)))
    return tuple(apart)


def _named(conversations: list[Conversation], name: str) -> list[Conversation]:
    """The conversations, each named by an identifier of its own."""
    taken: set[str] = set()
    named: list[Conversation] = []
    for number, conversation in enumerate(conversations, 1):
        wished = conversation.conversation_id or (name if len(conversations) == 1 else f"{name}-{number}")
        unique = identity(wished) if identity(wished) not in taken else identity(f"{wished}#{number}")
        taken.add(unique)
        named.append(replace(conversation, conversation_id=unique))
    return named
