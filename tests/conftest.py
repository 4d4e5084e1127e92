"""What every test shares."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from hypothesis import HealthCheck, settings

# How fast examples are made is the machine's affair, which is shared by several tests at a time.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

pytest_plugins = ["tests.plugins.hot_file", "tests.plugins.postgres"]

EXIT_THREADS_LEFT = 1


@pytest.fixture
def one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the DSNs say, there is one database: the server that is away and the one that answers are the same."""

    def place_of(_dsn: str) -> str:
        return "db:5432/memory"

    monkeypatch.setattr("hybrid_memory.connect.place_of", place_of)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End a run that left threads behind, and say so: a connection nobody closed would keep the process for ever."""
    del config
    left = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if left:
        sys.stderr.write(f"error: threads are left after the last test: {', '.join(left)}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(EXIT_THREADS_LEFT)
