"""A copy of the source to plant bugs in, and tests run there against that copy and no other."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
COPIED: Final = ("src", "tests", "schemas", "benchmarks", "pyproject.toml")
# One test may hang for a bug; the longest run of all takes a minute where two cores are shared by four.
TEST_SECONDS: Final = 45
RUN_SECONDS: Final = 400
PASSED: Final = 0
FAILED: Final = 1
SIMULATION: Final = "simulation, seed"

_WHENCE: Final = """
import hybrid_memory, hybrid_memory.schemas, importlib.resources, pathlib, sys, tests
root = pathlib.Path(sys.argv[1])
for package in (hybrid_memory, hybrid_memory.schemas, tests):
    place = pathlib.Path(str(importlib.resources.files(package))).resolve()
    if root not in place.parents:
        sys.exit(f"{package.__name__} comes from {place}")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a run of tests ended: `told` are the tests or seeds that failed, each with its reason."""

    code: int
    told: Sequence[tuple[str, str]]
    seconds: float
    output: str


@contextmanager
def copied() -> Generator[Path]:
    """A tree of its own for the length of the block. Raises `RuntimeError` where its tests would import another."""
    with tempfile.TemporaryDirectory(prefix="planted-", ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve()
        # Programs of the server's own account are started from it.
        root.chmod(0o755)
        for name in COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy(source, root / name)
        # An editable installation finds this package at the top of the repository it was made from; found inside the
        # package, the copy's is taken before.
        (root / "src" / "hybrid_memory" / "schemas").symlink_to(root / "schemas", target_is_directory=True)
        asked = _run(root, ("-c", _WHENCE, str(root)))
        if asked.code != PASSED:
            raise RuntimeError(f"the copy is not what its tests would import: {asked.output.strip()}")
        yield root


def run_tests(root: Path, ids: Sequence[str]) -> Run:
    """Run tests, named below `tests/`, up to the first that fails."""
    # In their own order: one that is picked by chance need not be the same the next time.
    chosen = ("-p", "no:randomly", "-p", "no:cacheprovider", "--timeout", str(TEST_SECONDS))
    return _run(root, ("-m", "pytest", "-q", "-x", "--tb=line", "-rfE", *chosen, *(f"tests/{one}" for one in ids)))


def run_seeds(root: Path, seeds: str) -> Run:
    """Run schedules of the simulation, up to the first that breaks a rule."""
    return _run(root, ("-m", "tests.simulation", "--seeds", seeds, "--first", "--lines", "1"))


def _run(root: Path, arguments: Sequence[str]) -> Run:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        # The width is for the reasons that stand behind the names of what failed.
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "COLUMNS": "400"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        output = "it took too long"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Run(code=process.returncode, told=_told(output), seconds=time.monotonic() - began, output=output)


def _told(output: str) -> list[tuple[str, str]]:
    # Not what pytest calls an error: a schema that cannot be made, say, proves nothing of the test.
    failed = re.findall(r"^FAILED tests/(.+?)(?: - (.*))?$", output, re.MULTILINE)
    seeds = re.findall(r"^seed (\d+): .*\n(?:(?!seed |BROKEN ).*\n)*BROKEN (.*)$", output, re.MULTILINE)
    return failed + [(f"{SIMULATION} {seed}", finding) for seed, finding in seeds]
