"""Where a DSN says that its database is, without asking it and without its secrets."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

_PORT = "5432"


def place_of(dsn: str) -> str:
    """Hosts with their ports, and the database, as the DSN names them: `db.example:5432/memory`.

    The same place may have several names, so equal places are one database (or one that took its name), while unequal
    ones may be one too.
    """
    parts = urlsplit(dsn)
    asked = parse_qs(parts.query)
    said = parts.netloc.rpartition("@")[2] or ",".join(asked.get("host", [""]))
    ports = ",".join(asked.get("port", [_PORT])).split(",")
    hosts = [unquote(host) for host in said.split(",")]
    named = [_with_port(host, ports[min(at, len(ports) - 1)]) for at, host in enumerate(hosts)]
    user = unquote(parts.username or "")
    database = unquote(parts.path.removeprefix("/")) or asked.get("dbname", asked.get("database", [user]))[0]
    return f"{','.join(named)}/{database}"


def _with_port(host: str, port: str) -> str:
    if host.startswith("/"):  # the directory of a socket
        return f"{host}:{port}"
    after_address = host.rpartition("]")[2]
    return host.lower() if ":" in after_address else f"{host.lower()}:{port}"
