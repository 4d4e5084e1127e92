"""Search finds what was just written, ranks by one's own words alone, and takes any text for what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory import Hit, HybridMemoryManager, InvalidInput, UserMemory, field
from tests.support.clocks import HandClock

FACT = "conversation_fact"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def manager(tmp_path: Path, clock: HandClock) -> AsyncIterator[HybridMemoryManager]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        yield manager


@pytest.fixture
async def ann(manager: HybridMemoryManager) -> UserMemory:
    return await manager.ensure_user_memories("ann")


async def _store(memory: UserMemory, *texts: str) -> list[str]:
    return [(await memory.store({"text": text}, context_type=FACT)).node_id for text in texts]


def _ids(hits: list[Hit]) -> list[str]:
    return [hit.node.node_id for hit in hits]


async def test_what_was_just_stored_is_found(ann: UserMemory) -> None:
    for number in range(20):
        (stored,) = await _store(ann, f"topic{number} of the day")
        assert _ids(await ann.search(f"topic{number}")) == [stored]


async def test_a_change_is_found_by_its_new_words_and_no_longer_by_its_old(ann: UserMemory) -> None:
    receipt = await ann.store({"text": "owns a canoe"}, context_type=FACT, key="boat")
    assert _ids(await ann.search("canoe")) == [receipt.node_id]
    await ann.store({"text": "owns a dinghy"}, context_type=FACT, key="boat")
    assert await ann.search("canoe") == []
    assert _ids(await ann.search("dinghy")) == [receipt.node_id]
    await ann.delete(receipt.node_id)
    assert await ann.search("dinghy") == []
    await ann.store({"text": "owns a canoe"}, context_type=FACT, key="boat")
    assert _ids(await ann.search("canoe")) == [receipt.node_id]


async def test_a_search_among_writes_sees_those_that_were_answered(ann: UserMemory) -> None:
    stored: list[str] = []

    async def write() -> None:
        for number in range(30):
            stored.extend(await _store(ann, f"comet number {number}"))

    async def look() -> None:
        while len(stored) < 30:
            await asyncio.sleep(0)
            known = set(stored)
            assert known <= set(_ids(await ann.search("comet", limit=100)))

    await asyncio.gather(write(), look(), look())


async def test_summary_tags_and_the_names_of_entities_are_found_too(ann: UserMemory) -> None:
    tagged = await ann.store({}, context_type=FACT, tags=["holiday"], summary="a trip to Lisbon")
    entity = await ann.store_entity("crm", "cust-77", "customer", {"city": "Oslo"}, name="Nordlicht AS")
    assert _ids(await ann.search("holiday")) == [tagged.node_id]
    assert _ids(await ann.search("lisbon")) == [tagged.node_id]
    assert _ids(await ann.search("cust-77")) == [entity.node_id]
    assert _ids(await ann.search("nordlicht")) == [entity.node_id]
    assert _ids(await ann.search("oslo")) == [entity.node_id]


@pytest.mark.parametrize("query", ["run", "runs", "RUNNING", "Run", "running?", "the run", "\u201crunning\u201d"])
async def test_words_are_found_in_other_forms_and_cases(ann: UserMemory, query: str) -> None:
    (stored,) = await _store(ann, "She was running home")
    assert _ids(await ann.search(query)) == [stored]


@pytest.mark.parametrize("query", ["cafe", "caf\u00e9", "cafe\u0301", "CAF\u00c9"])
async def test_a_letter_is_found_with_and_without_its_accent(ann: UserMemory, query: str) -> None:
    (stored,) = await _store(ann, "met at the caf\u00e9")
    assert _ids(await ann.search(query)) == [stored]


async def test_the_best_comes_first_and_scores_lie_between_0_and_1(ann: UserMemory) -> None:
    await _store(ann, *(f"filler about something else {n}" for n in range(20)))
    both, one = await _store(ann, "red bicycle", "red house")
    hits = await ann.search("red bicycle")
    assert _ids(hits) == [both, one]
    assert 1.0 > hits[0].score > hits[1].score > 0.0


async def test_a_limit_keeps_the_best(ann: UserMemory) -> None:
    await _store(ann, *(f"tea {'tea ' * (n % 7)}{n}" for n in range(60)))
    everything = await ann.search("tea", limit=1000)
    assert len(everything) == 60
    assert [hit.score for hit in everything] == sorted((hit.score for hit in everything), reverse=True)
    assert await ann.search("tea", limit=7) == everything[:7]
    assert len(await ann.search("tea")) == 10


# Others


async def test_the_words_of_others_change_neither_what_is_found_nor_its_score(
    manager: HybridMemoryManager, ann: UserMemory
) -> None:
    await _store(ann, "red bicycle", "red house", "a bicycle shop", "green tea", "green bicycle")
    queries = ["red bicycle", "green", "bicycle tea house"]
    before = [await ann.search(query) for query in queries]
    bea = await manager.ensure_user_memories("bea")
    await _store(bea, *(f"red red bicycle tea {n}" for n in range(40)))
    await bea.search("bicycle")
    assert [await ann.search(query) for query in queries] == before


# Stop words and junk


async def test_words_that_say_little_do_not_find_everything(ann: UserMemory) -> None:
    tea, _ = await _store(ann, "what is it about tea", "what is it about the other thing")
    assert _ids(await ann.search("what is it about tea")) == [tea]


async def test_where_there_is_nothing_else_words_that_say_little_count(ann: UserMemory) -> None:
    stored, _ = await _store(ann, "to be or not to be", "tea")
    assert _ids(await ann.search("to be or not")) == [stored]


_LITERAL = [
    '"',
    '""',
    '"unclosed tea',
    'tea"',
    "c++ tea",
    "foo@bar.com tea",
    "C# tea",
    "50% tea",
    "a-b tea",
    "-tea",
    "+tea",
    "a:b tea",
    "text:tea",
    "words:tea",
    "tea AND",
    "NOT tea",
    "tea OR OR",
    "NEAR(tea",
    "NEAR(tea cup, 2)",
    "tea*",
    "^tea",
    "{body}:tea",
    "{text tags} : tea",
    "tea'); drop table nodes; --",
    "\\tea",
    "tea\\",
    "tea ] [",
    "tea \ufeff\u200b\u202e",
    "\U0001f375tea\U0001f375",
    "(" * 300 + "tea",
    "tea " * 5_000,
    " ".join(["tea", *(f"term{n}" for n in range(5_000))]),
    "tea " + "x" * 100_000,
]


@pytest.mark.parametrize("query", _LITERAL, ids=lambda query: query[:20])
async def test_whatever_is_typed_is_taken_literally(ann: UserMemory, query: str) -> None:
    (stored,) = await _store(ann, "tea in a cup")
    found = _ids(await ann.search(query))
    assert found == ([stored] if "tea" in query else [])


@pytest.mark.parametrize("query", ["", " ", "\t\n", "?!.", "''", "---", "***", "()", "\u2026", "\U0001f600", "_"])
async def test_without_a_word_nothing_is_found(ann: UserMemory, query: str) -> None:
    await _store(ann, "tea in a cup", "_ \U0001f600 ... ?!")
    assert await ann.search(query) == []


@pytest.mark.parametrize("query", ["c++", "foo@bar.com", "C#", "50%", "a-b", "a:b", "NOT", "AND"])
async def test_a_text_with_signs_is_found_by_itself(ann: UserMemory, query: str) -> None:
    (stored,) = await _store(ann, f"about {query} only")
    await _store(ann, "something different")
    assert _ids(await ann.search(query)) == [stored]


async def test_hidden_columns_cannot_be_asked_for(ann: UserMemory) -> None:
    await ann.store({"text": "nothing"}, context_type=FACT, tags=["secretive"])
    assert await ann.search("tags:absent") == []
    assert len(await ann.search("text:secretive")) == 1


@pytest.mark.parametrize("query", ["tea\0", "tea\ud800", "x" * (2**20 + 1), None, 5, b"tea", ["tea"]])
async def test_what_is_no_text_is_refused(ann: UserMemory, query: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await ann.search(query)
    assert caught.value.field == "text"


# Filters and time


async def test_only_what_passes_the_filter_is_found_however_far_down_it_ranks(ann: UserMemory) -> None:
    await _store(ann, *(f"tea tea tea {n}" for n in range(50)))
    low = await ann.store({"text": "tea among many other words that are not about it at all"}, context_type="rare")
    assert _ids(await ann.search("tea", where={"context_type": "rare"}, limit=1)) == [low.node_id]
    assert _ids(await ann.search("tea", where=field("context_type").eq("rare"))) == [low.node_id]
    assert await ann.search("tea", where={"context_type": "absent"}) == []


async def test_what_has_expired_is_never_found(ann: UserMemory, clock: HandClock) -> None:
    short = await ann.store({"text": "tea for now"}, context_type=FACT, ttl=timedelta(seconds=10))
    (kept,) = await _store(ann, "tea for ever")
    assert set(_ids(await ann.search("tea"))) == {short.node_id, kept}
    clock.advance(timedelta(seconds=10))
    assert _ids(await ann.search("tea", limit=1)) == [kept]


async def test_a_search_of_a_user_without_memories_finds_nothing(ann: UserMemory) -> None:
    assert await ann.search("tea") == []


# By the manager


async def test_relevant_memories_are_retrieved_by_type_and_score(manager: HybridMemoryManager, ann: UserMemory) -> None:
    await _store(ann, *(f"filler {n}" for n in range(20)))
    fact = await ann.store({"text": "red bicycle"}, context_type=FACT)
    result = await ann.store({"text": "red house"}, context_type="search_result")
    found = await manager.retrieve_relevant("red bicycle", user_id="ann")
    assert _ids(found) == [fact.node_id, result.node_id]
    assert found == await ann.search("red bicycle")
    one = await manager.retrieve_relevant("red", user_id="ann", context_types=["search_result", "other"])
    assert _ids(one) == [result.node_id]
    best = await manager.retrieve_relevant("red bicycle", user_id="ann", min_relevance=found[0].score)
    assert _ids(best) == [fact.node_id]
    assert await manager.retrieve_relevant("red", user_id="ann", min_relevance=1.0) == []
    assert len(await manager.retrieve_relevant("red", user_id="ann", limit=1)) == 1
    assert await manager.retrieve_relevant("red", user_id="bea") == []
