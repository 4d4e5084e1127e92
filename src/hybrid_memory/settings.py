"""Settings, and the only place that reads the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from hybrid_memory.errors import InvalidInput

MAX_PORT = 65_535
# Far beyond what a Postgres takes.
MAX_POOL_SIZE = 10_000
# What an address in brackets or a name of a host may hold; anything else would mean something else inside a DSN.
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")

Positive = Annotated[int, Field(gt=0)]
Span = Annotated[timedelta, Field(gt=timedelta(0))]
Pooler = Literal["none", "transaction"]


class Settings(BaseModel):
    """How a manager behaves. Every default is meant to be good; durations are timedeltas, sizes are bytes.

    Raises pydantic's `ValidationError` when constructed with bad values: types are exact, nothing is coerced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    pool_size: Positive = 20
    """Connections to Postgres at most. A few serve all work; the rest is for loads running side by side."""
    ssl: bool = False
    """Require TLS to Postgres."""
    pooler: Pooler = "none"
    """`transaction` behind PgBouncer in transaction mode: nothing is kept in a session, and hints are not heard."""
    listen_dsn: str | None = Field(default=None, repr=False)
    """A direct way beside such a pooler, for the one connection that hears hints; without it polls find everything."""
    queue_entries: Positive = 1_000_000
    queue_bytes: Positive = 2**30
    batch_size: Annotated[int, Field(ge=1, le=1_000)] = 256
    """Operations carried to Postgres in one transaction at most."""
    poll_interval: Span = timedelta(seconds=1)
    """How often the feed asks for changes when no hint comes."""
    hints: bool = True
    """Tell other processes at once that something changed, and hear them. Without, polls find everything, later."""
    refresh_limit: Span = timedelta(seconds=60)
    """A copy not confirmed for longer is confirmed before a session starts."""
    stale_thread_after: Span = timedelta(hours=24)
    sweep_interval: Span = timedelta(seconds=30)
    receipts_kept: Span = timedelta(hours=24)
    drain_on_close: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(seconds=5)
    """How long `close` lets the queue run out. What is left is carried by the next opening."""
    index_bytes: Positive = 512 * 2**20
    """Memory for the users' search indexes."""
    content_bytes: Positive = 2**20
    """The largest content of a memory, as canonical JSON."""


class Environment(BaseModel):
    """What the environment says: where Postgres is, where data lies."""

    model_config = ConfigDict(frozen=True)

    # Passwords stand in them.
    dsn: str | None = Field(default=None, repr=False)
    admin_dsn: str | None = Field(default=None, repr=False)
    listen_dsn: str | None = Field(default=None, repr=False)
    data_dir: Path
    named: bool = False
    """A Postgres was named, by a DSN or by any `POSTGRES_*`."""
    ssl: bool = False
    pool_size: int | None = None
    pooler: Pooler | None = None


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Read `HYBRID_MEMORY_*` and `POSTGRES_*`. Raises `InvalidInput` naming the variable that is wrong."""
    env = os.environ if environ is None else environ
    pool_size = env.get("POSTGRES_POOL_SIZE") or None
    if pool_size is not None and not _is_number(pool_size, MAX_POOL_SIZE):
        raise InvalidInput("POSTGRES_POOL_SIZE", f"must be a whole number from 1 to {MAX_POOL_SIZE}")
    for name in ("HYBRID_MEMORY_DSN", "HYBRID_MEMORY_ADMIN_DSN", "HYBRID_MEMORY_LISTEN_DSN"):
        if env.get(name):
            _check_dsn(name, env[name])
    dsn = env.get("HYBRID_MEMORY_DSN") or _dsn_of_parts(env)
    return Environment(
        dsn=dsn,
        admin_dsn=env.get("HYBRID_MEMORY_ADMIN_DSN") or None,
        listen_dsn=env.get("HYBRID_MEMORY_LISTEN_DSN") or None,
        data_dir=Path(env.get("HYBRID_MEMORY_DATA_DIR") or _default_data_dir(env)),
        named=dsn is not None,
        ssl=_flag(env, "POSTGRES_SSL"),
        pool_size=None if pool_size is None else int(pool_size),
        pooler=_pooler(env),
    )


def settings_of(environment: Environment, given: Settings | None) -> Settings:
    """The settings given, where they are silent what the environment says, else the defaults."""
    names = ("pool_size", "pooler", "listen_dsn")
    said: dict[str, Any] = {name: value for name in names if (value := getattr(environment, name)) is not None}
    if environment.ssl:
        said["ssl"] = True
    if given is None:
        return Settings(**said)
    return given.model_copy(update={name: value for name, value in said.items() if name not in given.model_fields_set})


def check_opening(*, dsn: object, data_dir: object, postgres: object, choices: Sequence[str], settings: object) -> None:
    """Raise `InvalidInput` for what cannot be opened: nothing unknown or empty stands for a default."""
    if dsn is not None:
        _check_dsn("dsn", dsn)
    if data_dir is not None and (not isinstance(data_dir, Path) or "\0" in str(data_dir)):
        raise InvalidInput("data_dir", "must be a Path, or None")
    if type(postgres) is not str or postgres not in choices:
        raise InvalidInput("postgres", f"must be one of {', '.join(choices)}")
    if settings is not None and not isinstance(settings, Settings):
        raise InvalidInput("settings", "must be Settings, or None")
    if settings is not None and settings.listen_dsn is not None:
        _check_dsn("settings.listen_dsn", settings.listen_dsn)


def _check_dsn(field: str, dsn: object) -> None:
    """Raise `InvalidInput` for what no driver could read; what it makes of the rest shows in health."""
    if type(dsn) is not str or not dsn or "\0" in dsn:
        raise InvalidInput(field, "must be a DSN")
    try:
        parts = urlsplit(dsn)
        hosts = unquote(parts.netloc.rpartition("@")[2]).split(",")
        ports = [port for host in hosts for port in host.rpartition("]")[2].split(":")[1:]]
        ports += [port for text in parse_qs(parts.query).get("port", []) for port in text.split(",")]
    except ValueError:
        # Not chained: the parser's message repeats what it could not read.
        raise InvalidInput(field, "is not a well-formed DSN") from None
    if not all(_is_number(port, MAX_PORT) for port in ports if port):
        raise InvalidInput(field, "must have numbers as ports")


def _dsn_of_parts(env: Mapping[str, str]) -> str | None:
    parts = {
        name: env[f"POSTGRES_{name}"]
        for name in ("DB", "USER", "PASSWORD", "HOST", "PORT")
        if env.get(f"POSTGRES_{name}")
    }
    if not parts:
        return None
    port = parts.get("PORT", "5432")
    if not _is_number(port, MAX_PORT):
        raise InvalidInput("POSTGRES_PORT", "must be a port number")
    user = quote(parts.get("USER", "postgres"), safe="")
    password = f":{quote(parts['PASSWORD'], safe='')}" if "PASSWORD" in parts else ""
    database = quote(parts.get("DB", parts.get("USER", "postgres")), safe="")
    host = parts.get("HOST", "localhost")
    if host.startswith("/"):
        return f"postgresql://{user}{password}@/{database}?host={quote(host, safe='')}&port={port}"
    if _HOST.fullmatch(host) is None:
        raise InvalidInput("POSTGRES_HOST", "must be the name or address of one host, or the directory of a socket")
    return f"postgresql://{user}{password}@{f'[{host}]' if ':' in host else host}:{port}/{database}"


def _is_number(text: str, maximum: int) -> bool:
    # The length first: reading a number of thousands of digits is refused by Python in its own words.
    return len(text) <= len(str(maximum)) and text.isascii() and text.isdecimal() and 1 <= int(text) <= maximum


def _pooler(env: Mapping[str, str]) -> Pooler | None:
    match env.get("HYBRID_MEMORY_POOLER") or None:
        case None:
            return None
        case "none":
            return "none"
        case "transaction":
            return "transaction"
        case _:
            raise InvalidInput("HYBRID_MEMORY_POOLER", "must be none or transaction")


def _flag(env: Mapping[str, str], name: str) -> bool:
    match env.get(name, "false").strip().lower():
        case "true" | "1" | "yes" | "on" | "require":
            return True
        case "false" | "0" | "no" | "off" | "disable" | "":
            return False
        case _:
            raise InvalidInput(name, "must be true or false")


def _default_data_dir(env: Mapping[str, str]) -> str:
    home = env.get("XDG_DATA_HOME") or str(Path(env.get("HOME") or str(Path.home())) / ".local" / "share")
    return str(Path(home) / "hybrid_memory")
