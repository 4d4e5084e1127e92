"""A short run of the campaign that damages the local file at random."""

from __future__ import annotations

import asyncio

import pytest

from tests.campaigns import file_damage


@pytest.mark.parametrize("seed", [5, 6])
async def test_a_randomly_damaged_file_loses_no_write_unnamed(seed: int) -> None:
    tallies = await asyncio.to_thread(file_damage.run, seconds=2.0, seed=seed)
    assert sum(tally.injected for tally in tallies) > 0
    assert sum(tally.lost for tally in tallies) == 0, tallies
