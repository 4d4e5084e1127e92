"""A running manager, asked by the command line over a socket in its data directory."""

from __future__ import annotations

from hybrid_memory.control.answers import Answer, Failure
from hybrid_memory.control.client import ask
from hybrid_memory.control.desk import LONGEST_WAIT_SECONDS, MOST_ROWS, Desk
from hybrid_memory.control.server import ControlServer

__all__ = ["LONGEST_WAIT_SECONDS", "MOST_ROWS", "Answer", "ControlServer", "Desk", "Failure", "ask"]
