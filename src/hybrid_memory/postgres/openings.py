"""Which opening of a file came after which: what tells the marks of a copied file from one's own."""

from __future__ import annotations

from typing import Final, LiteralString

from hybrid_memory.messages import UNMARKED, Mark, Opening
from hybrid_memory.postgres.database import Connection

_NOTE: Final[LiteralString] = "select memory.note_openings($1, $2, $3)"
_DESCENT: Final[LiteralString] = "select open_token, first_seq from memory.descent($1, $2, $3)"


async def note_openings(connection: Connection, opening: Opening) -> None:
    """Make known which openings this one came after; to be done before it sends anything."""
    tokens = [one.token for one in opening.starts]
    if tokens:
        await connection.fetch(_NOTE, opening.client_id, tokens, [one.first for one in opening.starts])


async def mark_met(
    connection: Connection, opening: Opening, last_seq: int | None, open_number: int | None, open_token: str | None
) -> Mark:
    """A mark of our client with what it takes to say which of our queue numbers it speaks of (`Opening.covered`)."""
    if last_seq is None or open_number is None or open_token is None:
        return UNMARKED
    known = [one.token for one in opening.starts]
    if not known or open_token in known:
        return Mark(last_seq, open_number, open_token)
    line = await connection.fetch(_DESCENT, opening.client_id, open_token, known)
    return Mark(last_seq, open_number, open_token, tuple((one["open_token"], one["first_seq"]) for one in line))
