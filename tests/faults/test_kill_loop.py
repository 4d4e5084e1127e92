"""A few rounds of `python -m tests.kill_loop`; the command in the README runs 200."""

from __future__ import annotations

from pathlib import Path

from tests.kill_loop import campaign
from tests.support.own_server import OwnServer


async def test_a_process_killed_again_and_again_loses_nothing_it_acknowledged(
    own_server: OwnServer, tmp_path: Path
) -> None:
    outcome = await campaign(rounds=8, seed=7, server=own_server, folder=tmp_path)
    assert outcome.complaints() == []
    assert outcome.campaign.witness.acks > 20
    assert outcome.campaign.kills_while_opening > 0
    assert outcome.campaign.rounds_without_postgres > 0
