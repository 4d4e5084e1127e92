"""The grammar of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import NoReturn, Protocol, TypeAlias

from hybrid_memory.cli import demo
from hybrid_memory.cli.dead_letters import discard_dead_letters, list_dead_letters, retry_dead_letters
from hybrid_memory.cli.demonstration import demonstrate
from hybrid_memory.cli.doctor import doctor
from hybrid_memory.cli.forget import forget
from hybrid_memory.cli.memories import counts, entities, recent, search, show, users
from hybrid_memory.cli.migrate import migrate
from hybrid_memory.cli.outbox import drain_outbox, list_outbox, retry_outbox
from hybrid_memory.cli.outcome import Outcome, Usage
from hybrid_memory.cli.places import Place
from hybrid_memory.cli.status import status

Command: TypeAlias = Callable[[argparse.Namespace, Place], Awaitable[Outcome]]

_MOST = 1_000

_EPILOG = """\
Exit codes: 0 ok, 1 a negative result, 2 usage, 3 Postgres unreachable, 4 refused.
Environment: HYBRID_MEMORY_DSN (or POSTGRES_DB, _USER, _PASSWORD, _HOST, _PORT),
HYBRID_MEMORY_ADMIN_DSN, HYBRID_MEMORY_DATA_DIR. Without a DSN it is the data
directory's own Postgres (extra `embedded`).
"""


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise `Usage` with the usage of the command at hand as its fix."""
        raise Usage(message, fix=" ".join(self.format_usage().split()))


class _Commands(Protocol):
    """Where commands are added; argparse has no public name for it."""

    def add_parser(
        self,
        name: str,
        *,
        help: str,  # noqa: A002 - the name is argparse's
        description: str,
        allow_abbrev: bool,
        argument_default: str | None = None,
    ) -> argparse.ArgumentParser:
        """Add a command."""
        ...


def build_parser() -> argparse.ArgumentParser:
    """The parser. What it parses has `run`, the command, and `command`, its name, beside the options."""
    parser = _Parser(
        prog="hybrid-memory",
        description="Look after the memory of agent processes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hybrid-memory {metadata.version('hybrid-memory')}")
    _everywhere(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _care(commands)
    _memory(commands)
    _queues(commands)
    _erasure(commands)
    _demo(commands)
    return parser


def _everywhere(parser: argparse.ArgumentParser) -> None:
    """What may stand before or after the command; absent, it leaves what stood before."""
    group = parser.add_argument_group("options of every command")
    group.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    group.add_argument("--dsn", default=argparse.SUPPRESS, help="the application's Postgres")
    group.add_argument("--admin-dsn", default=argparse.SUPPRESS, help="the administrator's, to see all users")
    group.add_argument(
        "--data-dir", type=Path, default=argparse.SUPPRESS, metavar="DIR", help="where the local files are"
    )


def _demo(commands: _Commands) -> None:
    does = "put real input through both tiers and an outage"
    parser = commands.add_parser(
        "demo",
        help=does,
        description=f"{does.capitalize()}.",
        allow_abbrev=False,
        # It has --dsn and --data-dir of its own, with other meanings when absent; given before the command they count.
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    demo.add_arguments(parser)
    parser.set_defaults(run=demonstrate, command="demo")


def _command(commands: _Commands, name: str, run: Command, does: str, *, within: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.", allow_abbrev=False)
    _everywhere(parser)
    parser.set_defaults(run=run, command=f"{within} {name}".strip())
    return parser


def _group(commands: _Commands, name: str, does: str) -> _Commands:
    parser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.", allow_abbrev=False)
    _everywhere(parser)
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _care(commands: _Commands) -> None:
    migrating = _command(commands, "migrate", migrate, "bring Postgres to this version's schema")
    migrating.add_argument(
        "--adopt", action="store_true", help="rename a schema `memory` that is not ours to `memory_legacy`"
    )
    migrating.add_argument("--app-role", metavar="NAME", help="let this login role in (made if missing)")
    _slot(_command(commands, "status", status, "tell how the managers on this data directory are"))
    _command(commands, "doctor", doctor, "check what is installed, reachable and safe")


def _memory(commands: _Commands) -> None:
    _command(commands, "users", users, "list all users")
    _limit(_user(_command(commands, "recent", recent, "list what was stored last")))
    showing = _user(_command(commands, "show", show, "show one memory whole, with its relationships"))
    showing.add_argument("node", metavar="NODE", help="the memory's id")
    searching = _limit(_user(_command(commands, "search", search, "find memories by text, or by a value in them")))
    searching.add_argument("text", nargs="?", metavar="TEXT", help='words; "a phrase", or, -without')
    searching.add_argument("--path", help="a place in the content, as content.address.city")
    searching.add_argument("--equals", metavar="VALUE", help="what must stand there: JSON, else a string")
    listing = _limit(_user(_command(commands, "entities", entities, "list the entities of a system")))
    listing.add_argument("--system", required=True, help="the system, as jira")
    _user(_command(commands, "counts", counts, "count memories by user and type"))


def _queues(commands: _Commands) -> None:
    queue = _group(commands, "outbox", "look after what waits for Postgres")
    _limit(_slot(_user(_command(queue, "list", list_outbox, "list what is queued", within="outbox"))))
    _slot(_command(queue, "retry", retry_outbox, "try Postgres again now", within="outbox"))
    drain = _slot(_command(queue, "drain", drain_outbox, "carry all that is queued, and wait for it", within="outbox"))
    _within(drain)
    dead = _group(commands, "dead-letters", "look after what Postgres would never take")
    _limit(_slot(_command(dead, "list", list_dead_letters, "list them", within="dead-letters")))
    for name, run, does in (
        ("retry", retry_dead_letters, "queue some again"),
        ("discard", discard_dead_letters, "drop some for good"),
    ):
        parser = _slot(_command(dead, name, run, does, within="dead-letters"))
        parser.add_argument("op_ids", nargs="*", metavar="OP_ID")
        parser.add_argument("--all", action="store_true", help="all of them")


def _erasure(commands: _Commands) -> None:
    erasing = _within(_command(commands, "forget", forget, "erase a user everywhere, for good"))
    erasing.add_argument("user", nargs="?", metavar="USER")
    erasing.add_argument("--all", action="store_true", help="erase everybody")
    erasing.add_argument("--yes", action="store_true", help="do not ask")


def _user(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--user", metavar="USER", help="of this user alone; then the application's DSN will do")
    return parser


def _slot(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--slot", type=int, metavar="N", help="this file of the data directory alone")
    return parser


def _limit(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--limit", type=_few, default=20, metavar="N", help=f"at most so many, up to {_MOST} (20)")
    return parser


def _within(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--within", type=_seconds, default=30.0, metavar="SECONDS", help="wait at most so long (30)")
    return parser


def _few(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {_MOST}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:  # noqa: PLR2004 - a day
        raise argparse.ArgumentTypeError("must be a number of seconds, a day at most")
    return seconds
