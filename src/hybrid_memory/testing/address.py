"""Where a DSN leads, and the same DSN leading elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

_DEFAULT_PORT = 5432


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens; `host` is a name, an address, or the directory of a unix socket."""

    host: str
    port: int

    @property
    def is_socket(self) -> bool:
        """Whether it is a unix socket."""
        return self.host.startswith("/")

    @property
    def socket(self) -> Path:
        """The path of the unix socket."""
        return Path(self.host) / f".s.PGSQL.{self.port}"


def address_of(dsn: str) -> Address:
    """Where a DSN that names one host leads."""
    parts = urlsplit(dsn)
    asked = dict(parse_qsl(parts.query))
    host = asked.get("host") or parts.hostname or "localhost"
    return Address(host=unquote(host), port=int(asked.get("port") or parts.port or _DEFAULT_PORT))


def through(dsn: str, address: Address) -> str:
    """The DSN with another address; user, password, database and all else as they were."""
    parts = urlsplit(dsn)
    asked = {name: value for name, value in parse_qsl(parts.query) if name not in {"host", "port"}}
    asked |= {"host": address.host, "port": str(address.port)}
    secret = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{secret}{parts.path}?{urlencode(asked)}"
