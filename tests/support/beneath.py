"""What lies beneath a manager's public surface: where faults are injected and promises of the file are looked up."""

from __future__ import annotations

from typing import cast

from hybrid_memory import HybridMemoryManager
from hybrid_memory.connect import Tiers
from hybrid_memory.staff import Staff


def tiers(manager: HybridMemoryManager) -> Tiers:
    """Both sides, open."""
    return cast("Tiers", vars(manager)["_tiers"])


def staff(manager: HybridMemoryManager) -> Staff:
    """The background services."""
    return cast("Staff", vars(manager)["_staff"])
