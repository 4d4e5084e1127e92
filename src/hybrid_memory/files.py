"""What the services need of the files in a data directory: their own, and those of dead owners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hybrid_memory.errors import HybridMemoryError, NumbersReused
from hybrid_memory.events import QueueRenumbered
from hybrid_memory.messages import Head, LeftBehind, Opening
from hybrid_memory.ports import Outbox


class Past(Protocol):
    """What is known here of a past that the durable tier may have lost."""

    def users_in_doubt(self) -> list[str]:
        """Users whose copy has not been compared since the server's past was rewritten."""
        ...

    def erasures_in_doubt(self) -> Mapping[str, int]:
        """Erasures that the server may not know of any more, by user: the revision of each."""
        ...

    def queued(self) -> tuple[int, int] | None:
        """The first and the last number that is queued, None for nothing."""
        ...

    async def erase_again(self, user_id: str) -> None:
        """Queue the erasure of a user once more; what is here of the user was stored after it and stays."""
        ...

    async def erasure_stands(self, user_id: str) -> None:
        """The server knows of the erasure."""
        ...

    def has_dead_letters(self, user_id: str) -> bool:
        """Whether something of the user waits for a person: the copy shows it, and the durable tier never had it."""
        ...

    async def doubt_copy(self, user_id: str) -> None:
        """The user's copy is not what the server holds: the next load compares them."""
        ...

    async def copy_stands(self, head: Head) -> None:
        """The user's copy, complete and at that head's revision, is what the server holds."""
        ...


class OpenFile(Protocol):
    """An open file of the hot tier, as far as carrying its queue needs it."""

    @property
    def outbox(self) -> Outbox:
        """Its queue."""
        ...

    @property
    def opening(self) -> Opening:
        """As whom what is queued in it is sent."""
        ...

    def erased_rev(self, user_id: str) -> int:
        """The last erasure of a user that the file knows of."""
        ...

    async def renumber(self, reused: NumbersReused) -> QueueRenumbered:
        """Number a user's queue anew, above a mark that was set for operations which the file has lost."""
        ...

    async def close(self) -> None:
        """Close the file and give up the slot."""
        ...


class Orphans(Protocol):
    """The files of dead owners in the data directory."""

    def slots(self) -> list[int]:
        """The other slots that have a file, whether their owners live or not."""
        ...

    async def look(self, slot: int) -> LeftBehind | None:
        """What a dead owner left queued, None while the owner lives and where nothing is queued.

        Does not open the file as an owner. Raises `StorageFailed` and its kin, `SchemaMismatch`; of a file that is
        beyond use the same error again as long as the file stays as it is.
        """
        ...

    async def open(self, slot: int) -> OpenFile | None:
        """Take a dead owner's slot and open its file as its owner would, None when somebody else has it.

        Raises as `look` does.
        """
        ...


class OwnFile(Protocol):
    """The open file of the hot tier, as a watchman sees it."""

    def displaced(self) -> str | None:
        """The name of a part on the disk that is no longer the one that is open, None while all are."""
        ...

    def check_thread(self) -> None:
        """Refuse what waits to be written, if the thread that should do it has died."""
        ...

    def give_up(self, failure: HybridMemoryError) -> None:
        """Write nothing more, for this reason. What waits to be written is refused with it; reads go on."""
        ...
