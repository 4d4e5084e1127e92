"""What lies beneath a manager's public surface: where faults are injected and promises of the file are looked up."""

from __future__ import annotations

from contextlib import ExitStack
from typing import cast

from hybrid_memory import HybridMemoryManager
from hybrid_memory.connect import Tiers
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.search_index import SearchIndexes
from hybrid_memory.staff import Staff


def tiers(manager: HybridMemoryManager) -> Tiers:
    """Both sides, open."""
    return cast("Tiers", vars(manager)["_tiers"])


def staff(manager: HybridMemoryManager) -> Staff:
    """The background services."""
    return cast("Staff", vars(manager)["_staff"])


def let_readers_go(file: HotFile) -> None:
    """Close the connections that only read, as the end of their process would."""
    cast("ExitStack", vars(file.database)["_opened"]).close()
    cast("SearchIndexes", vars(file)["_indexes"]).close()
