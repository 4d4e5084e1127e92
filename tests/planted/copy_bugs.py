"""Bugs of what is shown and followed: revisions, feed, erasure, clocks, filters, values."""

from __future__ import annotations

from typing import Final

from tests.planted.bug import SEEDS, Bug, Edit

_DECIDED: Final = "faults/test_decided_against.py"
_FILTERS: Final = "integration/test_filters_on_sqlite.py"
_SERVERS: Final = "faults/test_servers.py"
_APPLY: Final = "schemas/postgres/0002_apply.sql"
_REPLICA: Final = "src/hybrid_memory/sqlite/replica.py"
# What an observer of transactions would take for settled: rows of transactions older than the oldest that is open.
_SETTLED: Final = "xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_SETTLED_REV: Final = (
    f"case when h.{_SETTLED} then h.rev else (select coalesce(max(n.rev), 0) from memory.nodes n"
    f" where n.user_id = h.user_id and n.{_SETTLED}) end"
)

COPIES: Final = (
    Bug(
        number="9",
        what="revisions come from a sequence instead of the head row",
        edits=(
            Edit(
                file=_APPLY,
                find="-- One user's batch; returns",
                put="create sequence memory.revisions;\n"
                "grant usage on sequence memory.revisions to public;\n\n"
                "-- One user's batch; returns",
            ),
            Edit(
                file=_APPLY,
                find="    update memory.heads h\n    set rev = h.rev + p_takes, nodes",
                put="    v_rev = (select max(nextval('memory.revisions'))"
                " from generate_series(1, greatest(1, p_takes)));\n"
                "    update memory.heads h\n    set rev = v_rev, nodes",
            ),
            Edit(
                file=_APPLY,
                find="        select p_user, p_takes, p_erased_rev, p_node_count, p_relationship_count"
                " where p_erased_rev = 0\n"
                "        on conflict (user_id) do update\n"
                "            set rev = h.rev + excluded.rev,",
                put="        select p_user, v_rev, p_erased_rev, p_node_count, p_relationship_count"
                " where p_erased_rev = 0\n"
                "        on conflict (user_id) do update\n"
                "            set rev = excluded.rev,",
            ),
        ),
        caught_by=(
            "faults/test_two_managers.py::test_two_that_write_the_same_things_at_once_agree_in_the_end",
            "faults/test_lost_replies.py::test_updates_of_one_node_keep_their_order_through_cuts",
        ),
    ),
    Bug(
        number="10",
        what="the feed goes by the oldest open transaction",
        edits=(
            Edit(
                file=_APPLY,
                find="        select h.user_id, h.epoch::text, h.rev, h.erased_rev,\n",
                put=f"        select h.user_id, h.epoch::text, {_SETTLED_REV}, h.erased_rev,\n",
            ),
            Edit(
                file=_APPLY,
                find="    return (select array[h.epoch::text, h.rev::text, h.erased_rev::text,\n",
                put=f"    return (select array[h.epoch::text, ({_SETTLED_REV})::text, h.erased_rev::text,\n",
            ),
        ),
        caught_by=(f"{_SERVERS}::test_a_long_transaction_elsewhere_and_one_prepared_and_forgotten_hold_no_feed_up",),
    ),
    Bug(
        number="11",
        what="head and rows are read in different snapshots",
        edits=(
            Edit(
                file="src/hybrid_memory/postgres/change_feed.py",
                find='        await connection.begin("begin isolation level repeatable read read only")\n'
                "        records = await connection.fetch(self._HEADS, [user_id])\n"
                "        if not records:\n",
                put='        await connection.begin("begin isolation level read committed read only")\n'
                "        records = await connection.fetch(self._HEADS, [user_id])\n"
                "        if not records:\n",
            ),
        ),
        caught_by=("contract/test_change_feed.py::test_a_snapshot_does_not_see_what_comes_while_it_is_read",),
    ),
    Bug(
        number="11b",
        what="the cursor is saved outside the rows' transaction",
        edits=(
            Edit(
                file=_REPLICA,
                find="        shown = await self._database.write(partial(self._absorb, head, nodes, relationships),"
                " after=self._on_shown)\n",
                put='        move = "update users set rev = max(rev, ?) where user_id = ? and complete = 1"\n'
                "        await self._database.write(lambda c: c.execute(move, (head.rev, head.user_id)) and None)\n"
                "        shown = await self._database.write(partial(self._absorb, head, nodes, relationships),"
                " after=self._on_shown)\n",
            ),
        ),
        caught_by=("contract/test_replica.py::test_the_rows_of_a_difference_and_its_cursor_come_with_one_commit",),
        seeds=SEEDS,
    ),
    Bug(
        number="12",
        what="a failover is looked for without the timeline",
        edits=(
            Edit(
                file="src/hybrid_memory/postgres/database.py",
                find=" || ':' || left(pg_walfile_name(pg_current_wal_lsn()), 8) || ':' || c.oid::text end",
                put=" || ':' || c.oid::text end",
            ),
            Edit(
                file="src/hybrid_memory/preload.py",
                find="        and cursor.timeline in (0, head.timeline)\n",
                put="",
            ),
        ),
        caught_by=("faults/test_lost_tail.py::test_what_a_failover_lost_comes_back_from_the_copy_of_an_open_user",),
    ),
    Bug(
        number="14",
        what="a filter's unknown key is ignored",
        edits=(
            Edit(
                file="src/hybrid_memory/filters/parsing.py",
                find="        return _all([self._entry(place, name, value, depth)"
                " for name, value in entries.items()])\n",
                put='        known = {*_COLUMNS, "content", "and", "or", "not"}\n'
                '        taken = {name: value for name, value in entries.items() if str(name).split(".")[0] in known}\n'
                "        return _all([self._entry(place, name, value, depth) for name, value in taken.items()])\n",
            ),
        ),
        caught_by=("unit/test_filters.py::test_a_doubtful_filter_is_refused_and_the_place_named",),
    ),
    Bug(
        number="15",
        what="only filters of a single test are right",
        edits=(
            Edit(
                file="src/hybrid_memory/filters/sqlite.py",
                find='" and ".join([_sql(part, binds) for part in parts])',
                put='" and ".join([_sql(part, binds) for part in parts[:1]])',
            ),
        ),
        caught_by=(f"{_FILTERS}::test_random_filters_give_the_same_rows_in_memory_and_on_sqlite",),
    ),
    Bug(
        number="23",
        what="an erasure is not held against the batch on its way",
        edits=(
            Edit(
                file="src/hybrid_memory/carrying.py",
                find="        erased_rev = self._erased[operations[0].user_id]\n",
                put="        erased_rev = self._erased_rev(operations[0].user_id)\n",
            ),
            Edit(
                file="src/hybrid_memory/carrying.py",
                find="max(0, self._erased[user_id])",
                put="max(0, self._erased_rev(user_id))",
            ),
        ),
        caught_by=(f"{_DECIDED}::test_an_operation_on_its_way_is_sent_with_the_erasures_known_when_it_was_claimed",),
        seeds=SEEDS,
    ),
    Bug(
        number="28",
        what="stamps are the raw wall clock",
        edits=(
            Edit(
                file="src/hybrid_memory/clock.py",
                find="        self._last = max(self._last + 1, self._clock.now_us() << _LOGICAL_BITS)\n",
                put="        self._last = self._clock.now_us() << _LOGICAL_BITS\n",
            ),
        ),
        caught_by=("unit/test_clock.py", "faults/test_clock_jumps.py"),
        seeds=SEEDS,
    ),
    Bug(
        number="30",
        what="a row of the feed is put over a queued change of ours",
        edits=(
            Edit(
                file=_REPLICA,
                find="        for queued in queued_operations(connection, head.user_id, row.node_id,"
                " after_seq=head.done_seq):\n"
                "            lay_over(connection, self._ledger, user_no, queued)\n",
                put="",
            ),
        ),
        caught_by=("contract/test_replica.py::test_a_queued_change_stays_visible_over_an_older_one_that_arrives",),
        seeds=SEEDS,
    ),
    Bug(
        number="31",
        what="NaN is accepted",
        instead="vectors cannot be stored yet; NaN is let through as a number instead",
        edits=(
            Edit(
                file="src/hybrid_memory/validation.py",
                find="    if type(value) is float and isfinite(value):\n",
                put="    if type(value) is float and (isfinite(value) or value != value):\n",
            ),
        ),
        caught_by=(
            "unit/test_validation.py::test_importance_beyond_is_refused",
            "unit/test_validation.py::test_a_weight_that_no_database_holds_is_refused",
        ),
    ),
)
