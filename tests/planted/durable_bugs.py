"""Bugs of the road to Postgres: marks, fences, commits, refusals, connections."""

from __future__ import annotations

from typing import Final

from tests.planted.bug import SEEDS, Bug, Edit

_APPLY: Final = "schemas/postgres/0002_apply.sql"
_POSTGRES: Final = "src/hybrid_memory/postgres"
_REPLIES: Final = "faults/test_lost_replies.py"

DURABLE: Final = (
    Bug(
        number="4",
        what="the mark is not looked at before a batch is applied",
        edits=(
            Edit(
                file=_APPLY,
                find="    where a.user_id = p_user and a.client_id = p_client and a.last_seq < p_first_seq\n",
                put="    where a.user_id = p_user and a.client_id = p_client\n",
            ),
            Edit(
                file=_APPLY,
                find="            where a.last_seq < excluded.first_seq\n              and (a.open_number",
                put="            where (a.open_number",
            ),
            Edit(
                file=f"{_POSTGRES}/durable_tier.py",
                find="        fresh = [operation for operation in operations if operation.seq > done]\n",
                put="        fresh = [operation for operation in operations if operation.seq > done - done]\n",
            ),
        ),
        caught_by=(
            # A node's write that is done again changes nothing; a deletion would be counted twice.
            "contract/test_durable_tier.py::test_a_batch_sent_again_is_disputed_and_changes_nothing",
            f"{_REPLIES}::test_relationships_and_deletes_survive_cuts_between_them",
        ),
    ),
    Bug(
        number="5",
        what="the mark is moved by a transaction of its own",
        edits=(
            Edit(
                file=_APPLY,
                find="    set first_seq = p_first_seq, last_seq = p_last_seq, open_number = p_open_number,",
                put="    set first_seq = p_first_seq, open_number = p_open_number,",
            ),
            Edit(
                file=_APPLY,
                find="        values (p_user, p_client, p_first_seq, p_last_seq, p_open_number, p_open_token)\n",
                put="        values (p_user, p_client, p_first_seq, p_first_seq - 1, p_open_number, p_open_token)\n",
            ),
            Edit(
                file=_APPLY,
                find="-- Gives a user a head, so that",
                put="create function memory.mark_done(p_client uuid, p_user text, p_last_seq bigint) returns void\n"
                "language plpgsql set search_path = pg_catalog, pg_temp as $$\n"
                "begin\n"
                "    perform set_config('memory.user_id', p_user, true);\n"
                "    update memory.applied a set last_seq = p_last_seq\n"
                "    where a.user_id = p_user and a.client_id = p_client;\n"
                "end\n"
                "$$;\n\n"
                "-- Gives a user a head, so that",
            ),
            Edit(
                file=f"{_POSTGRES}/durable_tier.py",
                find="            rev, epoch = _only(await connection.ask(self._APPLY_ONE, *arguments))[0]\n",
                put="            rev, epoch = _only(await connection.ask(self._APPLY_ONE, *arguments))[0]\n"
                "            user = changes[0]\n"
                '            marking = "select memory.mark_done($1, $2, $3)"\n'
                "            await connection.ask(marking, opening.client_id, user.user_id, user.last_seq)\n",
            ),
        ),
        caught_by=(
            f"{_REPLIES}::test_a_store_cut_off_in_its_commit_is_applied_once",
            f"{_REPLIES}::test_updates_of_one_node_keep_their_order_through_cuts",
            f"{_REPLIES}::test_a_conflict_cut_off_in_its_commit_is_decided_once",
        ),
    ),
    Bug(
        number="7",
        what="the fence between openings of a file is not looked at",
        edits=(
            Edit(
                file=_APPLY,
                find=" and a.last_seq < p_first_seq\n"
                "      and (a.open_number < p_open_number or (a.open_number = p_open_number and a.open_token ="
                " p_open_token));\n",
                put=" and a.last_seq < p_first_seq;\n",
            ),
            Edit(
                file=f"{_POSTGRES}/durable_tier.py",
                find="        if number is not None and (\n",
                put="        if number is not None and number < 0 and (\n",
            ),
        ),
        caught_by=(
            "faults/test_copies.py",
            "contract/test_durable_tier.py::test_a_later_opening_fences_the_earlier_one_off",
        ),
    ),
    Bug(
        number="8",
        what="the server's answer to COMMIT is not compared",
        edits=(
            Edit(
                file=f"{_POSTGRES}/database.py",
                find='    if await connection.execute("commit") != "COMMIT":\n',
                put='    if not await connection.execute("commit"):\n',
            ),
        ),
        caught_by=("integration/test_postgres_link.py::test_a_swallowed_error_is_not_taken_for_a_commit",),
    ),
    Bug(
        number="13",
        what="the tenant is set for the session: set_config(..., false)",
        edits=(
            Edit(
                file=_APPLY,
                find="begin\n    perform set_config('memory.user_id', p_user, true);\n\n    update memory.heads h\n",
                put="begin\n    perform set_config('memory.user_id', p_user, false);\n\n    update memory.heads h\n",
            ),
            Edit(
                file=_APPLY,
                find="perform pg_catalog.set_config('memory.user_id', p_user, true);",
                put="perform pg_catalog.set_config('memory.user_id', p_user, false);",
            ),
        ),
        caught_by=("security/test_tenants.py::test_the_tenant_is_forgotten_when_a_call_has_ended",),
    ),
    Bug(
        number="18",
        what="a poison operation stops the whole queue",
        edits=(
            Edit(
                file="src/hybrid_memory/carrying.py",
                find="            await self._bury(operations[0], poison)\n            return\n",
                put="            raise poison\n",
            ),
        ),
        caught_by=("faults/test_queue.py::test_poison_alone_is_buried_wherever_it_stands",),
        seeds=SEEDS,
    ),
    Bug(
        number="19",
        what="a missing table (42P01) is taken for the operation's fault",
        edits=(
            Edit(
                file=f"{_POSTGRES}/failures.py",
                find='_POISON_CLASSES: Final = frozenset({"22", "23", "21", "54"})',
                put='_POISON_CLASSES: Final = frozenset({"22", "23", "21", "54", "42"})',
            ),
        ),
        caught_by=("faults/test_outages.py::test_a_missing_table_buries_nothing_and_is_waited_for",),
    ),
    Bug(
        number="26",
        what="a connection is waited for without a deadline",
        instead="there is no pool to acquire from: each link opens a connection of its own, here without a deadline",
        edits=(
            Edit(
                file=f"{_POSTGRES}/database.py",
                find="    limit = settings.connect_deadline.total_seconds()\n",
                put="    limit = 86_400.0\n",
            ),
        ),
        caught_by=("integration/test_postgres_link.py::test_a_silent_server_is_given_up_at_the_deadline",),
    ),
    Bug(
        number="32",
        what="what the server says of a failure, DETAIL and all, stays in the error that is logged",
        edits=(
            Edit(
                file=f"{_POSTGRES}/failures.py",
                find="    _scrub(failure)\n",
                put="",
            ),
        ),
        caught_by=("contract/test_durable_tier.py::test_an_error_tells_nothing_of_the_value_that_was_refused",),
    ),
    Bug(
        number="34",
        what="a listener that never probes its connection, and polling switched off",
        edits=(
            Edit(
                file=f"{_POSTGRES}/change_feed.py",
                find="        while not await _happened(lost, within=_PULSE):\n",
                put="        while not await _happened(lost, within=timedelta(days=1)):\n",
            ),
            Edit(
                file="src/hybrid_memory/feed.py",
                find="        return pause - rest\n",
                put="        return None\n",
            ),
        ),
        caught_by=("faults/test_two_managers.py::test_polling_alone_brings_every_change_where_no_hint_can_come",),
    ),
)
