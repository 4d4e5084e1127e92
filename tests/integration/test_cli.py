"""What the command line promises to those who script against it: documents, exit codes, and who may see what."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager
from tests.integration.cli_support import (
    NOWHERE,
    Ran,
    manager_on,
    no_environment,
    run,
    run_at_terminal,
    store,
)
from tests.plugins.postgres import Database

READING = ("users", "recent", "counts", "search tea", "entities --system jira")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    no_environment(monkeypatch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    database: Database
    data_dir: Path
    fact: str
    ticket: str

    async def as_admin(self, *words: str) -> Ran:
        return await run("--json", "--data-dir", self.data_dir, *words, "--admin-dsn", self.database.admin_dsn)

    async def as_application(self, *words: str) -> Ran:
        return await run("--json", "--data-dir", self.data_dir, *words, "--dsn", self.database.app_dsn)


@pytest.fixture
async def kept(postgres: Database, tmp_path: Path) -> Kept:
    """Two users' memories, in Postgres."""
    async with manager_on(tmp_path, postgres) as manager:
        fact, ticket = await _remember(manager)
        await store(manager, "bob")
    return Kept(database=postgres, data_dir=tmp_path, fact=fact, ticket=ticket)


async def _remember(manager: HybridMemoryManager) -> tuple[str, str]:
    (fact,) = await store(manager, "alice", address={"city": "Bern", "floors": [1, 2]})
    memory = manager.user("alice")
    ticket = (await memory.store_entity("jira", "ABC-1", "ticket", {"open": True}, name="A leak", wait=5)).node_id
    await memory.relate(fact, ticket, "relates_to", wait=5)
    return fact, ticket


async def test_a_command_for_programs_prints_one_document(kept: Kept) -> None:
    for command in READING:
        words = command.split()
        ran = await kept.as_admin(*words)
        assert ran.code == 0
        assert ran.document["command"] == words[0]
        assert ran.err == ""


async def test_users_are_listed_with_what_they_have(kept: Kept) -> None:
    users = {line["user_id"]: line for line in (await kept.as_admin("users")).data["users"]}
    assert users.keys() == {"alice", "bob"}
    alice = users["alice"]
    assert (alice["nodes"], alice["relationships"], alice["entities"], alice["rev"]) == (2, 1, 1, 3)
    assert alice["erased"] is False


async def test_recent_shows_the_newest_first_and_no_more_than_asked(kept: Kept) -> None:
    nodes = (await kept.as_admin("recent", "--limit", "2")).data["nodes"]
    assert [node["user_id"] for node in nodes] == ["bob", "alice"]
    assert nodes[1]["node_id"] == kept.ticket
    assert nodes[0]["content"] == {"text": "bob likes green tea"}


async def test_counts_are_by_user_and_type(kept: Kept) -> None:
    data = (await kept.as_admin("counts")).data
    assert data["total"] == 3
    counted = {(line["user_id"], line["context_type"]): line["nodes"] for line in data["counts"]}
    assert counted == {
        ("alice", "conversation_fact"): 1,
        ("alice", "domain_entity"): 1,
        ("bob", "conversation_fact"): 1,
    }


async def test_show_tells_a_memory_with_its_relationships_and_past(kept: Kept) -> None:
    data = (await kept.as_admin("show", kept.fact)).data
    assert data["node"]["content"]["address"] == {"city": "Bern", "floors": [1, 2]}
    assert [(one["relationship_type"], one["target_id"]) for one in data["relationships"]] == [
        ("relates_to", kept.ticket)
    ]
    assert data["history"] == {"replaced": 0, "lost": 0}


async def test_a_memory_that_is_not_there_is_a_negative_result(kept: Kept) -> None:
    ran = await kept.as_admin("show", "00000000-0000-7000-8000-000000000000")
    assert (ran.code, ran.error["code"]) == (1, "not_found")
    ran = await kept.as_admin("show", "not-an-id")
    assert (ran.code, ran.error["code"]) == (2, "invalid_input")


async def test_searching_finds_words_phrases_and_values(kept: Kept) -> None:
    for words, found in (
        (("search", '"green tea"'), 2),
        (("search", '"tea green"'), 0),
        (("search", "teas -bob"), 1),
        (("search", "--path", "content.address.city", "--equals", "Bern"), 1),
        (("search", "--path", "content.address.city", "--equals", '"Bern"'), 1),
        (("search", "--path", "content.address.floors.1", "--equals", "2.0"), 1),
        (("search", "--path", "content.address.floors"), 1),
        (("search", "--path", "content.nothing"), 0),
        (("search", "leak", "--path", "content.entity_data.open", "--equals", "true"), 1),
        (("entities", "--system", "jira"), 1),
        (("entities", "--system", "github"), 0),
    ):
        data = (await kept.as_admin(*words)).data
        assert len(data["entities" if words[0] == "entities" else "nodes"]) == found, words


async def test_an_application_may_not_see_everybody(kept: Kept) -> None:
    for command in READING:
        ran = await kept.as_application(*command.split())
        assert (ran.code, ran.error["code"]) == (4, "refused")
        assert "--admin-dsn" in ran.error["fix"]


async def test_an_application_sees_the_user_it_names_and_no_other(kept: Kept) -> None:
    for command, rows in {
        "recent": "nodes",
        "counts": "counts",
        "search tea": "nodes",
        "entities --system jira": "entities",
    }.items():
        data = (await kept.as_application(*command.split(), "--user", "alice")).data
        assert {row["user_id"] for row in data[rows]} == {"alice"}


async def test_an_application_cannot_show_a_memory_of_another(kept: Kept) -> None:
    assert (await kept.as_application("show", kept.fact, "--user", "alice")).code == 0
    assert (await kept.as_application("show", kept.fact, "--user", "bob")).error["code"] == "not_found"


async def test_a_role_that_only_passes_for_an_administrator_is_refused(kept: Kept) -> None:
    ran = await run("users", "--json", "--data-dir", kept.data_dir, "--admin-dsn", kept.database.direct_dsn)
    assert (ran.code, ran.error["code"]) == (4, "role_refused")
    assert "BYPASSRLS" in ran.error["fix"]


async def test_an_unreachable_postgres_is_told_apart_and_no_password_is_shown(tmp_path: Path) -> None:
    words = ("users", "--data-dir", tmp_path, "--admin-dsn", NOWHERE)
    ran = await run(*words, "--json")
    assert (ran.code, ran.error["code"], ran.error["retryable"]) == (3, "unreachable", True)
    assert ran.err == ""
    spoken = await run(*words)
    assert (spoken.code, spoken.out) == (3, "")
    assert spoken.err.startswith("error: ")
    assert "s3cret" not in ran.out + spoken.err


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ((), ""),
        (("nonsense",), ""),
        (("outbox",), "outbox"),
        (("outbox", "nonsense"), "outbox"),
        (("users", "--nonsense"), "users"),
        (("users", "--admin-dsn"), "users"),
        (("recent", "--limit", "0"), "recent"),
        (("recent", "--limit", "many"), "recent"),
        (("show",), "show"),
        (("entities",), "entities"),
        (("search",), "search"),
        (("search", "--path", "address.city"), "search"),
        (("search", "--path", "content..city"), "search"),
        (("search", "tea", "--equals", "1"), "search"),
        (("dead-letters", "retry"), "dead-letters retry"),
        (("dead-letters", "discard", "x", "--all"), "dead-letters discard"),
        (("forget",), "forget"),
        (("forget", "alice", "--all"), "forget"),
        (("outbox", "drain", "--within", "nan"), "outbox drain"),
        (("demo", "--limit", "many"), "demo"),
    ],
)
async def test_wrong_usage_is_a_document_too(tmp_path: Path, words: tuple[str, ...], command: str) -> None:
    ran = await run("--json", "--data-dir", tmp_path, *words)
    assert (ran.code, ran.error["code"], ran.document["command"]) == (2, "usage", command)
    spoken = await run("--data-dir", tmp_path, *words)
    assert (spoken.code, spoken.out) == (2, "")
    assert "error: " in spoken.err


async def test_wrong_usage_does_not_repeat_a_password(tmp_path: Path) -> None:
    ran = await run("users", "--data-dir", tmp_path, "--dns", NOWHERE, "--json")
    assert ran.code == 2
    assert "s3cret" not in ran.out
    assert "app:***@" in ran.error["message"]


async def test_options_of_every_command_may_stand_before_or_after_it(kept: Kept) -> None:
    admin = kept.database.admin_dsn
    before = await run("--json", "--admin-dsn", admin, "--data-dir", kept.data_dir, "counts")
    after = await run("counts", "--data-dir", kept.data_dir, "--admin-dsn", admin, "--json")
    assert before.document == after.document


async def test_the_environment_names_what_the_words_do_not(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_MEMORY_ADMIN_DSN", kept.database.admin_dsn)
    monkeypatch.setenv("HYBRID_MEMORY_DATA_DIR", str(kept.data_dir))
    assert (await run("users", "--json")).code == 0
    monkeypatch.setenv("POSTGRES_PORT", "many")
    assert (await run("users", "--json")).error["code"] == "invalid_input"


async def test_lines_in_a_pipe_are_separated_by_tabs_and_whole(kept: Kept) -> None:
    ran = await run("counts", "--data-dir", kept.data_dir, "--admin-dsn", kept.database.admin_dsn)
    header, *lines = ran.out.splitlines()
    assert header.split("\t") == ["user", "type", "nodes", "latest (UTC)"]
    assert lines[0].split("\t")[:3] == ["alice", "conversation_fact", "1"]
    assert len(lines) == 3


async def test_memory_text_cannot_steer_a_terminal(postgres: Database, tmp_path: Path) -> None:
    async with manager_on(tmp_path, postgres) as manager:
        (node_id,) = await store(manager, "eve", text="\x1b]0;owned\x07 and \u202egnp.exe\nnext")
    words = ("--data-dir", tmp_path, "--admin-dsn", postgres.admin_dsn)
    for command in (("recent",), ("show", node_id), ("search", "owned")):
        ran = await run(*command, *words)
        assert ran.code == 0
        assert not {"\x1b", "\x07", "\u202e"} & set(ran.out)
        code, shown = await run_at_terminal(*command, *words)
        assert code == 0
        assert "]0;owned" in shown
        assert "\x1b]0" not in shown


async def test_a_terminal_is_shown_tables_that_fit(kept: Kept) -> None:
    words = ("--data-dir", kept.data_dir, "--admin-dsn", kept.database.admin_dsn)
    code, shown = await run_at_terminal("recent", *words, columns=90)
    assert code == 0
    assert "─" * 40 in shown
    assert kept.fact in shown
    assert "bob likes green tea" in shown


async def test_help_and_version_are_told_and_are_no_error() -> None:
    helped = await run("--help")
    assert helped.code == 0
    assert "dead-letters" in helped.out
    assert (await run("outbox", "drain", "--help")).code == 0
    assert (await run("--version")).out == f"hybrid-memory {metadata.version('hybrid-memory')}\n"
