"""A Postgres server that comes with the package (extra `embedded`) and lives exactly as long as its owner."""

from __future__ import annotations

from hybrid_memory.embedded.binaries import available
from hybrid_memory.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "available"]
