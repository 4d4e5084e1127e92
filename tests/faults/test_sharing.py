"""Several processes write the same users' graphs, are cut off, stopped and come back late: they agree again."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.sharing import FAULTS, campaign_on
from tests.support.load import CONVERGED_SECONDS
from tests.support.own_server import OwnServer


async def test_processes_that_write_the_same_users_agree_within_ten_seconds_and_no_write_vanishes(
    own_server: OwnServer, socket_folder: Path
) -> None:
    cut_off, _, stopped = FAULTS
    # By this seed there are three processes in one turn and two in the other.
    tallies = await campaign_on(own_server, socket_folder, seconds=2.0, seed=12, only=[cut_off, stopped])
    assert [tally for tally in tallies if not tally.clean] == []
    assert all(tally.injected for tally in tallies)
    assert sum(tally.acked for tally in tallies) > 100
    assert max(tally.slowest_recovery_s for tally in tallies) < CONVERGED_SECONDS
