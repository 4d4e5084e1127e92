"""Settings, and the only place that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hybrid_memory.errors import InvalidInput

MAX_PORT = 65_535

Positive = Annotated[int, Field(gt=0)]


class Settings(BaseModel):
    """How a manager behaves. Every default is meant to be good; durations are timedeltas, sizes are bytes.

    Raises `InvalidInput` from `from_environment`, and pydantic's `ValidationError` when constructed with bad values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_size: Positive = 20
    """Connections to Postgres at most. A few serve all work; the rest is for loads running side by side."""
    ssl: bool = False
    """Require TLS to Postgres."""
    pooler: Literal["none", "transaction"] = "none"
    """`transaction` behind PgBouncer in transaction mode: no prepared statements kept, no LISTEN."""
    queue_entries: Positive = 1_000_000
    queue_bytes: Positive = 2**30
    batch_size: Annotated[int, Field(ge=1, le=1_000)] = 256
    """Operations carried to Postgres in one transaction at most."""
    poll_interval: timedelta = timedelta(seconds=1.5)
    """How often the feed asks for changes when no hint comes."""
    refresh_limit: timedelta = timedelta(seconds=60)
    """A copy not confirmed for longer is confirmed before a session starts."""
    stale_thread_after: timedelta = timedelta(hours=24)
    sweep_interval: timedelta = timedelta(seconds=30)
    receipts_kept: timedelta = timedelta(hours=24)
    drain_on_close: timedelta = timedelta(seconds=5)
    """How long `close` lets the queue run out. What is left is carried by the next opening."""
    index_bytes: Positive = 512 * 2**20
    """Memory for the users' search indexes."""
    content_bytes: Positive = 2**20
    """The largest content of a memory, as canonical JSON."""


class Environment(BaseModel):
    """What the environment says: where Postgres is, where data lies."""

    model_config = ConfigDict(frozen=True)

    dsn: str | None = None
    admin_dsn: str | None = None
    data_dir: Path
    named: bool = False
    """A Postgres was named, by a DSN or by any `POSTGRES_*`."""
    ssl: bool = False
    pool_size: int | None = None


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Read `HYBRID_MEMORY_*` and `POSTGRES_*`. Raises `InvalidInput` naming the variable that is wrong."""
    env = os.environ if environ is None else environ
    pool_size = env.get("POSTGRES_POOL_SIZE")
    if pool_size is not None and not (pool_size.isdecimal() and int(pool_size) > 0):
        raise InvalidInput("POSTGRES_POOL_SIZE", "must be a positive whole number")
    dsn = env.get("HYBRID_MEMORY_DSN") or _dsn_of_parts(env)
    return Environment(
        dsn=dsn,
        admin_dsn=env.get("HYBRID_MEMORY_ADMIN_DSN") or None,
        data_dir=Path(env.get("HYBRID_MEMORY_DATA_DIR") or _default_data_dir(env)),
        named=dsn is not None,
        ssl=_flag(env, "POSTGRES_SSL"),
        pool_size=None if pool_size is None else int(pool_size),
    )


def settings_of(environment: Environment, given: Settings | None) -> Settings:
    """The settings given, or the defaults with what the environment says."""
    if given is not None:
        return given
    try:
        if environment.pool_size is None:
            return Settings(ssl=environment.ssl)
        return Settings(ssl=environment.ssl, pool_size=environment.pool_size)
    except ValidationError:
        raise InvalidInput("POSTGRES_POOL_SIZE", "is out of range") from None


def _dsn_of_parts(env: Mapping[str, str]) -> str | None:
    parts = {
        name: env[f"POSTGRES_{name}"]
        for name in ("DB", "USER", "PASSWORD", "HOST", "PORT")
        if env.get(f"POSTGRES_{name}")
    }
    if not parts:
        return None
    port = parts.get("PORT", "5432")
    if not (port.isdecimal() and 0 < int(port) <= MAX_PORT):
        raise InvalidInput("POSTGRES_PORT", "must be a port number")
    user = quote(parts.get("USER", "postgres"), safe="")
    password = f":{quote(parts['PASSWORD'], safe='')}" if "PASSWORD" in parts else ""
    database = quote(parts.get("DB", parts.get("USER", "postgres")), safe="")
    host = parts.get("HOST", "localhost")
    if host.startswith("/"):
        return f"postgresql://{user}{password}@/{database}?host={quote(host, safe='')}&port={port}"
    return f"postgresql://{user}{password}@{host}:{port}/{database}"


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
