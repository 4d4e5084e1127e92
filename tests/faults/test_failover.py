"""Another server takes over: what was acknowledged is there, and the managers go on without being told."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from hybrid_memory import Status, Verdict
from hybrid_memory.messages import Identity
from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose
from hybrid_memory.testing.failover import Pair
from tests.plugins.postgres import connected
from tests.support.managers import FACT, both_tiers_agree, contents, drained, head_rev, opened
from tests.support.waiting import until

SECONDS = 30.0


async def test_a_failover_that_loses_nothing_is_no_more_than_a_short_outage(failover: Pair, tmp_path: Path) -> None:
    await failover.lag()  # it catches up before it takes over
    async with opened(failover.dsn, tmp_path / "one") as manager, opened(failover.dsn, tmp_path / "other") as other:
        memory, seen = await manager.ensure_user_memories("ada"), await other.ensure_user_memories("ada")
        durable = [await memory.store({"n": n}, context_type=FACT, wait=SECONDS) for n in range(10)]
        assert {receipt.status for receipt in durable} == {Status.DURABLE}

        async def write() -> list[str]:
            receipts = [await memory.store({"n": n}, context_type=FACT, wait=0) for n in range(10, 40)]
            finals = [await receipt.durable(SECONDS) for receipt in receipts]
            assert {final.verdict for final in finals} == {Verdict.APPLIED}
            return [final.node_id for final in finals]

        writing = asyncio.create_task(write())
        await failover.promote(lose_tail=False)
        written = {receipt.node_id for receipt in durable} | set(await writing)
        await drained(manager)
        await both_tiers_agree(manager, memory)
        await until(lambda: seen.freshness().rev == 40, seconds=SECONDS)
        assert set(await contents(seen)) == written
        await both_tiers_agree(other, seen)
    async with connected(failover.admin_dsn) as admin:
        assert await head_rev(admin, "ada") == 40
        rows = await admin.fetch("select content->>'n' as n from memory.nodes order by rev")
        assert [int(row["n"]) for row in rows] == list(range(40))
        assert await admin.fetchval("select left(pg_walfile_name(pg_current_wal_lsn()), 8)") == "00000002"


async def test_a_standby_that_is_promoted_under_a_connection_is_met_as_the_server_that_it_is_now(
    failover: Pair,
) -> None:
    met: list[Identity] = []

    async def meet(identity: Identity) -> None:
        met.append(identity)

    async def is_standby(connection: Connection) -> bool:
        found: bool = await connection.fetchval("select pg_is_in_recovery()")
        return found

    standby = failover.standby
    assert standby is not None
    purpose = Purpose(name="test", deadline=timedelta(seconds=SECONDS), statement_timeout=timedelta(seconds=SECONDS))
    link = Link(PostgresSettings(dsn=standby.dsn(database="memory")), purpose, meet=meet)
    try:
        assert await link.run(is_standby)
        await failover.promote(lose_tail=False)
        (before,) = met
        assert before.lineage is None
        assert not await link.run(is_standby)
        assert not await link.run(is_standby)
        assert [(one.installation, one.lineage is None) for one in met] == [
            (before.installation, True),
            (before.installation, False),
        ]
    finally:
        await link.close()


async def test_a_tail_lost_and_a_backup_restored_are_really_gone(failover: Pair) -> None:
    async def there() -> int:
        return int(str(await failover.primary.execute("select count(*) from proof")))

    await failover.primary.execute("create table proof (n integer)")
    await failover.primary.execute("insert into proof values (1)")
    await failover.catch_up()
    await failover.lag()
    await failover.primary.execute("insert into proof values (2)")
    assert await there() == 2
    await failover.promote(lose_tail=True)
    assert await there() == 1

    backup = await failover.primary.backup()
    await failover.primary.execute("insert into proof values (3)")
    assert await there() == 2
    await failover.primary.restore(backup)
    assert await there() == 1
