"""The demo: what really happened somewhere (a git history, a conversation) goes through both tiers and an outage."""

from __future__ import annotations

from hybrid_memory.cli.demo.command import add_arguments, run

__all__ = ["add_arguments", "run"]
