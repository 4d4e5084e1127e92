"""`demo`: the demo as a command."""

from __future__ import annotations

import argparse

from hybrid_memory.cli import demo
from hybrid_memory.cli.outcome import Outcome
from hybrid_memory.cli.places import Place
from hybrid_memory.control import Failure


async def demonstrate(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Run the demo; it tells itself what it does."""
    data = await demo.run(arguments, place.talk)
    failure = None
    if data.get("ok") is not True:
        failure = Failure(code="demo_failed", message="the tiers do not agree, or something is missing")
    return Outcome(data={name: value for name, value in data.items() if name != "ok"}, failure=failure)
