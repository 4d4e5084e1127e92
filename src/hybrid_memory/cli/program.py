"""One call of the command line, from its words to its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager
from typing import cast

import structlog
from rich.console import Console

from hybrid_memory.cli.outcome import EXIT_OK, Outcome, Usage
from hybrid_memory.cli.parser import build_parser
from hybrid_memory.cli.places import Place
from hybrid_memory.cli.rendering import show, show_json
from hybrid_memory.control import Failure
from hybrid_memory.errors import HybridMemoryError


def run(argv: Sequence[str] | None = None) -> int:
    """Do what the words say, print the outcome, and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    wants_json = "--json" in words
    command, outcome = _outcome(words, wants_json=wants_json)
    if outcome is None:
        return EXIT_OK
    out = _console(to_stderr=False)
    try:
        if wants_json:
            show_json(command, outcome, out)
        else:
            show(outcome, out, _console(to_stderr=True))
    except BrokenPipeError:
        # Who read us has seen enough. What is left in the buffer goes nowhere, so that the interpreter's last flush
        # does not meet the broken pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return outcome.exit_code


def _outcome(words: list[str], *, wants_json: bool) -> tuple[str, Outcome | None]:
    """The command's name and its outcome; none where the parser has said all there is to say (`--help`)."""
    command = ""
    # The demo tells its story as it goes: to people on the standard output, beside a document on the other.
    tells = "demo" in words and not wants_json
    try:
        arguments, unknown = build_parser().parse_known_args(words)
        command = cast("str", arguments.command)
        if unknown:
            raise Usage(f"unrecognized arguments: {' '.join(unknown)}", fix=f"hybrid-memory {command} --help")
        place = Place.settle(
            data_dir=getattr(arguments, "data_dir", None),
            dsn=getattr(arguments, "dsn", None),
            admin_dsn=getattr(arguments, "admin_dsn", None),
            talk=_console(to_stderr=not tells),
        )
        with _logs_on_stderr():
            return command, asyncio.run(_awaited(arguments.run(arguments, place)))
    except HybridMemoryError as error:
        return command or _meant(words, error), Outcome(data=None, failure=Failure.of(error))
    except OSError as error:
        # What no adapter expected of the system: a name looked up, a file read.
        said = f"the system refused: {error.strerror or type(error).__name__}"
        return command, Outcome(data=None, failure=Failure(code="system", message=said))
    except KeyboardInterrupt:
        return command, Outcome(data=None, failure=Failure(code="interrupted", message="interrupted", retryable=True))
    except SystemExit:
        return command, None


async def _awaited(outcome: Awaitable[Outcome]) -> Outcome:
    return await outcome


def _meant(words: Sequence[str], error: HybridMemoryError) -> str:
    """The command that words which could not be parsed were about: told by the usage at hand."""
    if not isinstance(error, Usage):
        return ""
    named = error.fix.partition("usage: hybrid-memory ")[2].split(" ")
    return " ".join(word for word in named[:2] if word in words and not word.startswith("-"))


def _console(*, to_stderr: bool) -> Console:
    return Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)


class _Stderr:
    """The standard error of the moment: a progress bar puts itself in front of it."""

    def __call__(self, *_: object) -> structlog.PrintLogger:
        return structlog.PrintLogger(sys.stderr)


@contextmanager
def _logs_on_stderr() -> Generator[None]:
    """Send warnings and worse to the standard error, for the length of the block."""
    if structlog.is_configured():
        yield
        return
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=_Stderr(),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.reset_defaults()
