"""A hot-tier file of each test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hybrid_memory.sqlite.hot_file import HotFile
from tests.support.hot_files import hot_file


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[HotFile]:
    async with hot_file(tmp_path) as opened:
        yield opened
