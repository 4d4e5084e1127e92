"""Bugs of the local file: its writer, its queue, and what a disk, a kill or a fork does to them."""

from __future__ import annotations

from typing import Final

from tests.planted.bug import SEEDS, Bug, Edit

_SQLITE: Final = "src/hybrid_memory/sqlite"
_CANCELLATION: Final = "faults/test_cancellation.py"
_DISK: Final = "faults/test_disk_errors.py"
_ERASURE: Final = "faults/test_erasure.py"
_NUMBERS: Final = "faults/test_lost_numbers.py"
_OUTAGES: Final = "faults/test_outages.py"
_POWER: Final = "faults/test_power_cuts.py"

LOCAL: Final = (
    Bug(
        number="1",
        what="receipt before the SQLite commit",
        edits=(
            Edit(
                file=f"{_SQLITE}/writer.py",
                find='            self._hooks.before_commit(connection)\n            connection.execute("commit")\n',
                put="            self._hooks.before_commit(connection)\n"
                "            self._loop.call_soon_threadsafe(self._tell, list(group), outcomes)\n"
                '            connection.execute("commit")\n',
            ),
            Edit(
                file=f"{_SQLITE}/writer.py",
                find="                if not isinstance(outcome, BaseException):\n"
                "                    request.answer(outcome, request.future)\n"
                "                elif",
                put="                if not isinstance(outcome, BaseException):\n"
                "                    if not request.future.done():\n"
                "                        request.answer(outcome, request.future)\n"
                "                elif",
            ),
            Edit(
                file=f"{_SQLITE}/writer.py",
                find="    def _fail(self, error: BaseException) -> None:\n",
                put="    def _tell(self, group, outcomes):\n"
                "        for request, outcome in zip(group, outcomes):\n"
                "            if not isinstance(outcome, BaseException):\n"
                "                request.answer(outcome, request.future)\n"
                "\n"
                "    def _fail(self, error: BaseException) -> None:\n",
            ),
        ),
        caught_by=(f"{_POWER}::test_no_cut_loses_tears_or_brings_back_what_the_file_alone_has_acknowledged",),
    ),
    Bug(
        number="2",
        what="synchronous = normal for what is acknowledged as pending",
        edits=(
            Edit(
                file=f"{_SQLITE}/driver.py",
                find='connection.execute("pragma synchronous = full")',
                put='connection.execute("pragma synchronous = normal")',
            ),
        ),
        caught_by=(f"{_POWER}::test_no_cut_loses_tears_or_brings_back_what_the_file_alone_has_acknowledged",),
    ),
    Bug(
        number="3",
        what="row and queue entry in two transactions",
        edits=(
            Edit(
                file=f"{_SQLITE}/staging.py",
                find="            _execute(connection, _NODES, nodes)\n",
                put="            _execute(connection, _NODES, nodes)\n"
                '            connection.execute("commit")\n'
                '            connection.execute("begin immediate")\n',
            ),
        ),
        caught_by=(f"{_POWER}::test_no_cut_loses_tears_or_brings_back_what_the_file_alone_has_acknowledged",),
        seeds=SEEDS,
    ),
    Bug(
        number="6",
        what="queue entry removed before the remote commit",
        edits=(
            Edit(
                file="src/hybrid_memory/carrying.py",
                find="        try:\n            self._decided(await self._patiently(apply))\n",
                put="        await self._outbox._database.write(\n"
                "            lambda connection: connection.executemany(\n"
                '                "delete from outbox where seq = ?", [(one.seq,) for one in operations]\n'
                "            )\n            and None\n        )\n"
                "        try:\n            self._decided(await self._patiently(apply))\n",
            ),
        ),
        caught_by=(
            f"{_OUTAGES}::test_killed_in_the_middle_of_writes_postgres_has_all_of_them_in_order_once_it_is_back",
            f"{_OUTAGES}::test_a_read_only_primary_is_waited_for",
        ),
        seeds=SEEDS,
    ),
    Bug(
        number="16",
        what="the dead letters drop their oldest entry",
        edits=(
            Edit(
                file=f"{_SQLITE}/outbox.py",
                find="            keep_verdicts(connection, [one.seq], [(one.seq, None, Verdict.DEAD)], now_us)\n",
                put="            keep_verdicts(connection, [one.seq], [(one.seq, None, Verdict.DEAD)], now_us)\n"
                "            connection.execute(\n"
                '                "delete from dead_letters where op_id not in"\n'
                '                " (select op_id from dead_letters order by seq desc limit 2)"\n'
                "            )\n",
            ),
        ),
        caught_by=("faults/test_queue.py::test_a_queue_of_nothing_but_poison_is_buried_and_rests",),
        seeds=SEEDS,
    ),
    Bug(
        number="17",
        what="what follows a dead operation and depends on it overtakes it",
        edits=(
            Edit(
                file=f"{_SQLITE}/outbox.py",
                find="        buried = [dead, *_dependents(connection, dead)]\n",
                put="        buried = [dead]\n",
            ),
        ),
        caught_by=("faults/test_queue.py::test_what_depends_on_a_buried_operation_is_buried_with_it_and_nothing_else",),
        seeds=SEEDS,
    ),
    Bug(
        number="20",
        what="a SQLite transaction of several awaits in the caller's task",
        edits=(
            Edit(
                file=f"{_SQLITE}/outbox.py",
                find="        return self._database.submit(work, partial(self._stored, hold), stages=stages)\n",
                put="        return asyncio.ensure_future(self._by_steps(work, hold))\n"
                "\n"
                "    async def _by_steps(self, work, hold):\n"
                "        writer = self._database._writer\n"
                "        perform, hooks = writer._connection.perform, writer._hooks\n"
                '        await perform(lambda connection: connection.execute("begin immediate") and None)\n'
                "        stored = await perform(work)\n"
                "        await perform(hooks.before_commit)\n"
                '        await perform(lambda connection: connection.execute("commit") and None)\n'
                "        hooks.after_commit()()\n"
                "        answered = asyncio.get_running_loop().create_future()\n"
                "        self._stored(hold, stored, answered)\n"
                "        return await answered\n",
            ),
        ),
        caught_by=(
            f"{_CANCELLATION}::test_a_store_cancelled_anywhere_is_in_the_file_with_its_queue_entry_or_not_at_all",
        ),
        seeds=SEEDS,
    ),
    Bug(
        number="21",
        what="work goes on, and is synced again, on a connection whose fsync has failed",
        edits=(
            Edit(
                file=f"{_SQLITE}/driver.py",
                find="_DISK_FAILED: Final = frozenset({10, 11, 26})",
                put="_DISK_FAILED: Final = frozenset({11, 26})",
            ),
        ),
        caught_by=(
            f"{_DISK}::test_after_an_fsync_that_failed_nothing_is_acknowledged_or_synced_again_until_a_restart",
        ),
    ),
    Bug(
        number="22",
        what="a statement after SQLITE_FULL without looking whether a transaction is open",
        edits=(
            Edit(
                file=f"{_SQLITE}/writer.py",
                find='            if connection.in_transaction:\n                connection.execute("rollback")\n',
                put='            connection.execute("rollback")\n',
            ),
        ),
        caught_by=(f"{_DISK}::test_on_a_full_disk_stores_are_refused_reads_go_on_and_room_that_returns_is_used",),
    ),
    Bug(
        number="24",
        what="secure_delete left out",
        instead="full-text indexes are in memory, where FTS5's option has nothing to do; the file's own is left out",
        edits=(
            Edit(
                file=f"{_SQLITE}/driver.py",
                find='connection.execute("pragma secure_delete = on")',
                put='connection.execute("pragma secure_delete = off")',
            ),
        ),
        caught_by=(f"{_ERASURE}::test_forgetting_leaves_no_byte_in_the_file_and_no_row_in_postgres",),
    ),
    Bug(
        number="25",
        what="files of who was erased are removed by a task that nobody waits for",
        edits=(
            Edit(
                file=f"{_SQLITE}/replica.py",
                find="        folders = await asyncio.to_thread(remove_finished, self._database.path.parent)\n",
                put="        folder, folders = self._database.path.parent, 0\n"
                "        asyncio.get_running_loop().run_in_executor(None, remove_finished, folder)\n",
            ),
        ),
        caught_by=(f"{_ERASURE}::test_an_erasure_is_acknowledged_only_when_what_was_set_aside_is_gone",),
    ),
    Bug(
        number="25b",
        what="the log is cut after an erasure by a task that nobody waits for",
        edits=(
            Edit(
                file=f"{_SQLITE}/replica.py",
                find="        await self._database.cut_log()\n",
                put="        self._cutting = asyncio.get_running_loop().create_task(self._database.cut_log())\n",
            ),
        ),
        caught_by=(f"{_POWER}::test_of_what_was_erased_no_byte_is_in_any_image_from_the_acknowledgement_on",),
    ),
    Bug(
        number="27",
        what="the live file's header is checked by opening the file",
        edits=(
            Edit(
                file=f"{_SQLITE}/whereabouts.py",
                find="        seen = path.stat(follow_symlinks=False)\n",
                put="        seen = path.stat(follow_symlinks=False)\n"
                '        if path.suffix == ".db" and not path.read_bytes().startswith(b"SQLite format 3"):\n'
                "            return None\n",
            ),
        ),
        caught_by=("faults/test_sqlite_locks.py",),
    ),
    Bug(
        number="29",
        what="queue numbers are used again after the log was shortened",
        edits=(
            Edit(
                file=f"{_SQLITE}/numbering.py",
                find="        if noted.last_seq > here:\n",
                put="        if noted.last_seq > here > noted.last_seq:\n",
            ),
            Edit(
                file="src/hybrid_memory/messages.py",
                find="        return min([mark.last_seq, *apart])",
                put="        return mark.last_seq or min([mark.last_seq, *apart])",
            ),
        ),
        caught_by=(f"{_NUMBERS}::test_what_is_stored_over_a_shortened_log_while_postgres_is_away_is_not_skipped",),
    ),
    Bug(
        number="33",
        what="an inherited connection is closed in a forked child",
        edits=(
            Edit(
                file=f"{_SQLITE}/hot_file.py",
                find="            self.slot.abandon()\n",
                put="            self.slot.abandon()\n            self.database._opened.close()\n",
            ),
        ),
        caught_by=("faults/test_fork.py::test_a_child_is_refused_and_its_end_does_the_parent_no_harm",),
    ),
)
