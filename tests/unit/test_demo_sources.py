from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory import validation
from hybrid_memory.cli.demo.git_lesson import MAX_FILES_PER_COMMIT, GitLesson
from hybrid_memory.cli.demo.git_log import Change, Commit, LogReader, Repository
from hybrid_memory.cli.demo.memories import Entity, Episode, Fact, Lesson, SearchQuestion, WalkQuestion, identity
from hybrid_memory.cli.demo.story import Plan
from hybrid_memory.cli.demo.transcript import parse_conversations, read_conversations
from hybrid_memory.cli.demo.transcript_lesson import TranscriptLesson
from hybrid_memory.errors import InvalidInput, NotFound
from hybrid_memory.graph import JsonValue
from tests.support.histories import History


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History.begun(tmp_path / "project")


async def commits_of(history: History, *, limit: int = 100) -> list[Commit]:
    repository = await Repository.open(history.folder)
    async with aclosing(repository.history(limit=limit)) as commits:
        return [commit async for commit in commits]


async def episodes_of(lesson: Lesson) -> list[Episode]:
    async with aclosing(lesson.episodes()) as episodes:
        return [episode async for episode in episodes]


async def test_a_history_is_read_oldest_first_with_what_each_commit_touched(history: History) -> None:
    first = history.commit("Begin\n\nWith a body.", "a.txt", "docs/b c.txt")
    second = history.commit("Go on", "a.txt", author="Grace Hopper <grace@example.org>")
    one, two = await commits_of(history)
    assert (one.commit_hash, one.parents, one.author, one.email) == (first, (), "Ada Lovelace", "ada@example.org")
    assert (one.subject, one.message) == ("Begin", "Begin\n\nWith a body.")
    assert one.changes == (Change(path="a.txt", status="A"), Change(path="docs/b c.txt", status="A"))
    assert (two.commit_hash, two.parents, two.author) == (second, (first,), "Grace Hopper")
    assert two.changes == (Change(path="a.txt", status="M"),)


async def test_an_empty_repository_and_no_repository_say_what_to_do(history: History, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no commit yet") as empty:
        await Repository.open(history.folder)
    assert "--repo" in empty.value.fix
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(NotFound, match="not in a git repository"):
        await Repository.open(tmp_path / "plain")
    with pytest.raises(NotFound, match="is not a folder"):
        await Repository.open(tmp_path / "nowhere")


async def test_a_machine_without_git_is_told_of_transcripts(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="git is not installed") as refused:
        await Repository.open(history.folder)
    assert "--transcript" in refused.value.fix


async def test_another_users_clone_is_read(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    history.commit("Begin", "a.txt")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert [commit.subject for commit in await commits_of(history)] == ["Begin"]


async def test_a_merge_has_both_parents_and_comes_after_them(history: History) -> None:
    root = history.commit("Begin", "a.txt")
    history.git("checkout", "--quiet", "-b", "side")
    side = history.commit("Aside", "b.txt")
    history.git("checkout", "--quiet", "main")
    main = history.commit("Main", "a.txt")
    history.git("merge", "--quiet", "--no-ff", "side", "-m", "Join")
    commits = await commits_of(history)
    assert commits[0].commit_hash == root
    assert commits[-1].parents == (main, side)
    assert commits[-1].changes == ()


async def test_names_and_messages_that_are_no_utf8_are_kept_apart(history: History) -> None:
    history.commit(b"caf\xe9", b"\xff.txt", b"\xfe.txt", "line\nbreak.txt", text=b"\0\1\2")
    (commit,) = await commits_of(history)
    assert commit.subject.startswith("caf")
    paths = [change.path for change in commit.changes]
    assert len(set(paths)) == 3
    assert "line\nbreak.txt" in paths


async def test_a_shallow_clone_begins_where_it_was_cut(history: History, tmp_path: Path) -> None:
    history.commit("Begin", "a.txt")
    history.commit("Go on", "b.txt")
    history.git("clone", "--quiet", "--depth=1", f"file://{history.folder}", str(tmp_path / "clone"))
    clone = await Repository.open(tmp_path / "clone")
    assert (clone.shallow, clone.commits) == (True, 1)
    lesson = GitLesson(clone, limit=10)
    _, episode = await episodes_of(lesson)
    assert {link.kind for link in episode.links} == {"produces", "belongs_to", "relates_to"}
    assert any("shallow" in note for note in lesson.notes)


async def test_a_bare_repository_is_read_too(history: History, tmp_path: Path) -> None:
    history.commit("Begin", "a.txt")
    history.git("clone", "--quiet", "--bare", str(history.folder), str(tmp_path / "bare.git"))
    assert (await Repository.open(tmp_path / "bare.git")).name == "bare"


async def test_only_the_newest_commits_are_learned_and_that_is_said(history: History) -> None:
    for number in range(5):
        history.commit(f"Number {number}", "a.txt")
    lesson = GitLesson(await Repository.open(history.folder), limit=2)
    episodes = await episodes_of(lesson)
    assert lesson.total == len(episodes) == 3
    subjects = [fact.content["subject"] for e in episodes for fact in e.memories if isinstance(fact, Fact)]
    assert subjects == ["Number 3", "Number 4"]
    assert "the newest 2 of 5 commits; --limit takes more" in lesson.notes


async def test_a_reader_may_leave_in_the_middle_of_a_long_history(history: History) -> None:
    history.commit("Begin", "a.txt")
    history.commit("Import", *(f"{number}{'x' * 200}.txt" for number in range(2_000)))  # more than pipes hold
    repository = await Repository.open(history.folder)
    async with aclosing(repository.history(limit=100)) as commits:
        assert (await anext(commits)).subject == "Begin"


async def test_a_history_becomes_a_graph_of_who_did_what(history: History) -> None:
    history.commit("Begin", "a.txt")
    history.commit("Go on", "a.txt", "b.txt", author="Grace Hopper <grace@example.org>")
    lesson = GitLesson(await Repository.open(history.folder), limit=10)
    _, one, two = await episodes_of(lesson)
    assert {(link.source, link.kind, link.target) for link in two.links} == {
        ("author:grace@example.org", "produces", two.main),
        (two.main, "belongs_to", "repository"),
        (two.main, "relates_to", "file:a.txt"),
        (two.main, "relates_to", "file:b.txt"),
        (one.main, "led_to", two.main),
    }
    assert [memory.ref for memory in two.memories if isinstance(memory, Entity)] == [
        "author:grace@example.org",
        "file:b.txt",
    ]
    questions = lesson.questions()
    assert {question.text for question in questions if isinstance(question, SearchQuestion)} == {"Begin", "Go on"}
    touched = next(question for question in questions if question.text == "Who touched a.txt?")
    assert isinstance(touched, WalkQuestion)
    assert set(touched.expected) == {"author:ada@example.org", "author:grace@example.org"}


async def test_a_commit_of_very_many_files_is_cut_and_that_is_said(history: History) -> None:
    history.commit("Import", *(f"f{number}.txt" for number in range(MAX_FILES_PER_COMMIT + 3)))
    lesson = GitLesson(await Repository.open(history.folder), limit=10)
    _, episode = await episodes_of(lesson)
    assert sum(link.kind == "relates_to" for link in episode.links) == MAX_FILES_PER_COMMIT
    assert any("3 were left out" in note for note in lesson.notes)


LOG = (
    b"commit:" + b"a" * 40 + b"\0\0A\0a@b\0t1\0t2\0one\n\0\nA\0x\0M\0commit:y\0"
    b"commit:" + b"b" * 40 + b"\0" + b"a" * 40 + b"\0A\0a@b\0t1\0t2\0commit:" + b"c" * 40 + b"\n\0"
    b"commit:" + b"d" * 40 + b"\0" + b"b" * 40 + b"\0\0\0\0\0\0"
)


@pytest.mark.parametrize("size", [1, 2, 7, len(LOG)])
def test_a_log_is_read_alike_however_it_is_cut_up(size: int) -> None:
    reader = LogReader()
    read = [commit for at in range(0, len(LOG), size) for commit in reader.feed(LOG[at : at + size])]
    read += reader.end()
    assert [commit.commit_hash for commit in read] == ["a" * 40, "b" * 40, "d" * 40]
    assert read[0].changes == (Change(path="x", status="A"), Change(path="commit:y", status="M"))
    assert read[1].message == f"commit:{'c' * 40}"
    assert (read[2].message, read[2].author, read[2].changes) == ("", "", ())


@given(st.text())
def test_any_name_becomes_an_identifier(name: str) -> None:
    assert validation.identifier("name", identity(name)) == identity(name)


def test_names_that_must_be_changed_stay_apart() -> None:
    assert len({identity(name) for name in ("", " ", "a\n", "a\t", "a", "x" * 600, "x" * 601)}) == 7


@given(st.integers(min_value=2, max_value=100_000))
def test_however_little_there_is_some_of_it_falls_into_the_outage(total: int) -> None:
    plan = Plan.of(total, outage=True)
    assert plan.outage >= 1
    assert plan.crossing >= 1
    assert plan.before >= 0
    assert plan.before + plan.crossing + plan.outage <= total


MESSAGES: list[dict[str, JsonValue]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "look", "arguments": '{"at": 1}'}}],
    },
    {"role": "tool", "name": "look", "content": "a cat"},
]
SAID = [("system", "Be kind."), ("user", "Look:"), ("assistant", 'look({"at": 1})'), ("look", "a cat")]


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(MESSAGES),
        json.dumps({"messages": MESSAGES}),
        json.dumps([{"messages": MESSAGES}]),
        "\n".join(json.dumps(message) for message in MESSAGES),
        "\n\n" + json.dumps({"messages": MESSAGES}) + "\n",
        "\ufeff" + json.dumps(MESSAGES, indent=1),
    ],
    ids=["list", "object", "list of objects", "lines", "lines of objects", "byte order mark"],
)
def test_messages_are_understood_in_all_their_wrappings(written: str) -> None:
    (conversation,) = parse_conversations(written.encode(), name="chat")
    assert conversation.conversation_id == "chat"
    assert [(turn.speaker, turn.text) for turn in conversation.turns] == SAID
    assert [turn.turn_id for turn in conversation.turns] == ["D1:1", "D1:2", "D1:3", "D1:4"]


def test_conversations_and_turns_of_the_same_name_are_kept_apart() -> None:
    twice = [{"id": "m", "role": "user", "content": "a"}, {"id": "m", "role": "user", "content": "b"}]
    written = "\n".join(json.dumps({"id": "c", "messages": twice}) for _ in range(2))
    conversations = parse_conversations(written.encode(), name="chat")
    assert [conversation.conversation_id for conversation in conversations] == ["c", "c#2"]
    assert [turn.turn_id for turn in conversations[0].turns] == ["m", "m#2"]


LOCOMO: JsonValue = [
    {
        "sample_id": "conv-1",
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_10_date_time": "later",
            "session_10": [{"speaker": "Ann", "dia_id": "D10:1", "text": "Bye", "blip_caption": "a door"}],
            "session_2": [{"speaker": "Bob", "dia_id": "D2:1", "text": "I moved to Oslo"}],
            "session_2_date_time": "1 pm on 8 May, 2023",
        },
        "qa": [
            {"question": "Where does Bob live?", "evidence": ["D2:1; D10:1", "D:11:26"], "category": 4},
            {"question": "Who is Carl?", "evidence": ["D2:1"], "category": 5},
            {"question": "", "evidence": []},
        ],
    }
]


def test_locomo_sessions_come_in_their_order_with_their_questions() -> None:
    (conversation,) = parse_conversations(json.dumps(LOCOMO).encode(), name="x")
    assert conversation.conversation_id == "conv-1"
    assert [(turn.session, turn.time, turn.text, turn.caption) for turn in conversation.turns] == [
        ("session_2", "1 pm on 8 May, 2023", "I moved to Oslo", None),
        ("session_10", "later", "Bye", "a door"),
    ]
    live, carl = conversation.asked
    assert (live.evidence, live.answerable) == (("D2:1", "D10:1"), True)
    assert not carl.answerable


async def test_a_conversation_becomes_a_graph_of_who_said_what() -> None:
    lesson = TranscriptLesson(parse_conversations(json.dumps(LOCOMO).encode(), name="x"), name="x")
    _, one, two = await episodes_of(lesson)
    assert [link.kind for link in one.links] == ["produces", "belongs_to"]
    assert [(link.source, link.target) for link in two.links if link.kind == "led_to"] == [(one.main, two.main)]
    fact = one.memories[0]
    assert isinstance(fact, Fact)
    assert (fact.namespace, fact.key, fact.context_type) == ("conv-1", "D2:1", "conversation_fact")
    assert fact.where == {"namespace": "conv-1", "content.session": "session_2"}
    asked = lesson.questions()
    assert [isinstance(q, SearchQuestion) and q.scored for q in asked] == [True, False]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (b"", "holds no turn"),
        (b"[]", "holds no turn"),
        (b"42", "the document is not a JSON object"),
        (b"[1]", r"\[0\] is not a JSON object"),
        (b'{"role": "user", "content": "a"}\nnonsense', "line 2 is not a JSON object"),
        (b'[{"text": "a"}]', "message 1 has neither role nor content"),
        (b'{"messages": 3}', r"messages is not a list"),
        (b'[{"conversation": []}]', "conversation is not a JSON object"),
        (b"\xff\xfe\x00", "line 1 is not a JSON object"),
    ],
)
def test_what_is_no_transcript_is_refused_by_its_place(written: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        parse_conversations(written, name="x")
    assert "LoCoMo" in refused.value.fix


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be read"):
        read_conversations(tmp_path / "none.json")
