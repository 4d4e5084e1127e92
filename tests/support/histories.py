"""Small git repositories, made as a user would make them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_SETTINGS = (
    *("-c", "user.name=Ada Lovelace", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"),
    *("-c", "commit.gpgSign=false", "-c", "core.hooksPath=/dev/null", "-c", "protocol.file.allow=always"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A repository and the git that works on it."""

    folder: Path

    @classmethod
    def begun(cls, folder: Path) -> History:
        folder.mkdir(parents=True)
        history = cls(folder=folder)
        history.git("init", "--quiet")
        return history

    def git(self, *arguments: str | bytes) -> str:
        done = subprocess.run(["git", *_SETTINGS, *arguments], cwd=self.folder, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def commit(self, message: str | bytes, *paths: str | bytes, author: str | None = None, text: bytes = b"") -> str:
        """Write `text`, or the message, into the paths and commit them; returns the hash."""
        wrote = text or (message if isinstance(message, bytes) else message.encode())
        for path in paths:
            name = path if isinstance(path, bytes) else path.encode()
            place = bytes(self.folder) + b"/" + name
            Path(place.rpartition(b"/")[0].decode()).mkdir(parents=True, exist_ok=True)
            with open(place, "ab") as file:  # noqa: PTH123 - a name that is not text has no Path
                file.write(wrote + b"\n")
        self.git("add", "--all")
        by = [] if author is None else [f"--author={author}"]
        self.git("commit", "--quiet", "--allow-empty", "--allow-empty-message", *by, "-m", message)
        return self.git("rev-parse", "HEAD")
