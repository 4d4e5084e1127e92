"""The laws of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "hybrid_memory"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SQL = sorted((ROOT / "schemas").rglob("*.sql"))
TEXTS = sorted(
    path
    for folder in ("src", "schemas", "tests", "benchmarks", "scripts", ".ci", "typings")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".pyi", ".sql", ".sh", ".md", ".json", ""} and path.is_file()
) + [path for path in sorted(ROOT.iterdir()) if path.suffix in {".md", ".toml", ".lock", ".py"}]

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 50
MOST_METHODS_OF_A_PORT = 8
DRIVERS = {  # who may import which driver: its errors are mapped there, once
    "asyncpg": "postgres",
    "pgvector": "postgres",
    "aiosqlite": "sqlite",
    "pysqlite3": "sqlite",
    "sqlite3": "sqlite",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of its signature and body; a docstring may be as long as it needs to be."""
    first = function.body[0]
    docstring = 0
    if ast.get_docstring(function, clean=False) is not None:
        docstring = (first.end_lineno or first.lineno) - first.lineno + 1
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def test_modules_import_only_what_lies_below_them() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_short_enough_to_be_read_at_once(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES_OF_A_FILE


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_function_fits_a_screen(path: Path) -> None:
    long = {
        f.name: lines_of(f) for f in functions(ast.parse(path.read_text())) if lines_of(f) > MOST_LINES_OF_A_FUNCTION
    }
    assert not long


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_driver_is_met_in_one_folder_only(path: Path) -> None:
    drivers = {module.partition(".")[0] for module in imported(ast.parse(path.read_text()))} & DRIVERS.keys()
    folder = path.relative_to(PACKAGE).parts[0]
    assert {driver for driver in drivers if DRIVERS[driver] != folder} == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_say_what_a_thing_is(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "base", "models", "misc"}
    classes = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)}
    vague = re.compile(r"(Helper|Helpers|Util|Utils|Manager)$")
    assert {name for name in classes if vague.search(name)} <= {"HybridMemoryManager"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_checkers_are_never_silenced_about_types(path: Path) -> None:
    assert not re.search(r"#\s*(type:\s*ignore|pyright:|mypy:)", path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_settings_read_the_environment(path: Path) -> None:
    reads = re.compile(r"\bos\.(environ|getenv)\b|^from os import .*\b(environ|getenv)\b", re.MULTILINE)
    assert path.name == "settings.py" or not reads.search(path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_tables_are_made_in_schemas_only(path: Path) -> None:
    # Allowed: `create virtual table` (a search index in memory is no stored schema), and the ledger of migrations,
    # which must be there before the first of them.
    ddl = re.compile(r"(create|alter|drop)\s+(unlogged\s+)?(table|index|policy|function|role)\b", re.IGNORECASE)
    ledger = re.compile(r"create table if not exists (memory\.)?migrations\b", re.IGNORECASE)
    constants = (n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant))
    texts = [text.strip() for text in constants if isinstance(text, str)]
    assert not [text for text in texts if ddl.match(text) and not ledger.match(text)]


def test_only_the_service_loop_stops_every_error() -> None:
    # `except BaseException: undo; raise` stops nothing (and must see a cancellation), so it is allowed anywhere.
    broad = {"Exception", "BaseException"}
    found: list[str] = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else broad
                passed_on = isinstance(node.body[-1], ast.Raise) and "Exception" not in names
                found += [name_of(path)] if names & broad and not passed_on else []
    assert found in ([], ["src/hybrid_memory/service.py"])


def test_a_port_has_at_most_eight_methods() -> None:
    tree = ast.parse((PACKAGE / "ports.py").read_text())
    ports = {node.name: len(list(functions(node))) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert {name: count for name, count in ports.items() if count > MOST_METHODS_OF_A_PORT} == {}


@pytest.mark.parametrize("path", SQL, ids=name_of)
def test_migrations_are_named_for_their_order_and_effect(path: Path) -> None:
    assert re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", path.name)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_a_text_names_no_machine_and_leaves_nothing_to_do(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(?<![\w.~$})])/(home|root|work|Users|opt)/[a-z]", text)
    assert not re.search(r"\b(index-url|find-links|trusted-host)\s*[=:]?\s*\S*(https?|file)://", text)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))", text.replace("(TODO|FIXME|XXX)", ""))
