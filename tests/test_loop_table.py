"""Pages and tests of loops and models hold together: tests that exist, all of them, and messages that are real."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch
import pytest

ROOT = Path(__file__).parents[1]
LOOPS, MODELS = (ROOT / "docs" / name for name in ("loops.md", "models.md"))
TESTS = ["tests/loops/test_*.py", "tests/distributed/test_*.py", "tests/trainer/test_two_optimizers.py"]
SOURCES = {"lightning_cx": ROOT / "lightning_cx", "Lightning": Path(lightning.pytorch.__file__).parent}
HOLE = "…"  # what varies in a message
FEWEST_WORDS = 3  # of a message: fewer stand everywhere


class Named(NamedTuple):
    """A test as a page names it, with a parameter or without."""

    file: str
    name: str
    parameter: str


def named(page: Path) -> set[Named]:
    found = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)(?:\[([^`]+)\])?`", page.read_text())
    return {Named(*parts) for parts in found}


def rows(page: Path) -> list[list[str]]:
    """Cells of all tables, without heads."""
    lines = page.read_text().splitlines()
    inside = [line for line, before in zip(lines[1:], lines, strict=False) if before.startswith("|")]
    inside = [line for line in inside if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in inside]


def functions(file: Path) -> set[str]:
    body = ast.parse(file.read_text()).body
    return {part.name for part in body if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")}


def parameters(collected: list[str]) -> dict[tuple[str, str], list[str]]:
    """Parameters that pytest finds of the tests that the pages name with one."""
    files = {test.file for page in (LOOPS, MODELS) for test in named(page) if test.parameter}
    if not files <= {test.partition("::")[0] for test in collected}:  # not all of this run
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(files)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        collected = done.stdout.splitlines()
    found: dict[tuple[str, str], list[str]] = {}
    for file, name, parameter in re.findall(r"^([^:\n]+)::(\w+)\[(.*)\]$", "\n".join(collected), re.MULTILINE):
        found.setdefault((file, name), []).append(parameter)
    return found


@functools.cache
def messages(source: str) -> list[str]:
    """All strings of a package except docstrings, with holes where values go."""
    return [text for file in SOURCES[source].rglob("*.py") for text in _strings(ast.parse(file.read_text()))]


def _strings(tree: ast.Module) -> Iterator[str]:
    inner: set[int] = set()  # docstrings, and the parts of strings that have holes
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            inner.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inner.update(map(id, node.values))
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def quoted(page: Path) -> set[tuple[str, str]]:
    """Messages on a page, each with the package whose words it is."""
    cells = [cell for row in rows(page) for cell in row[1:]]
    assert [cell for cell in cells if cell.count('"') % 2] == []
    found = [parts for cell in cells for parts in re.findall(r'(Lightning says )?"([^"]+)"', cell)]
    return {("Lightning" if theirs else "lightning_cx", message) for theirs, message in found}


@pytest.mark.parametrize("page", [LOOPS, MODELS], ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    files = {test.file for test in named(page)}
    assert len(files) >= 2
    assert {file for file in files if not (ROOT / file).exists()} == set()
    known = {(file, name) for file in files for name in functions(ROOT / file)}
    assert {test for test in named(page) if (test.file, test.name) not in known} == set()


def test_every_parameter_that_a_page_names_is_one_of_the_test(collected: list[str]) -> None:
    wanted = {test for page in (LOOPS, MODELS) for test in named(page) if test.parameter}
    assert len(wanted) > 10
    known = parameters(collected)
    for test in sorted(wanted):
        ids = known.get((test.file, test.name), [])
        # A test of several parameters is named by one of them.
        assert any(f"-{test.parameter}-" in f"-{found}-" for found in ids), f"{test} among {ids}"


@pytest.mark.parametrize("pattern", TESTS)
def test_every_test_of_a_loop_is_named_on_a_page(pattern: str) -> None:
    files = sorted(ROOT.glob(pattern))
    assert files
    written = {(file.relative_to(ROOT).as_posix(), name) for file in files for name in functions(file)}
    assert written - {(test.file, test.name) for page in (LOOPS, MODELS) for test in named(page)} == set()


@pytest.mark.parametrize("page", [LOOPS, MODELS], ids=lambda page: page.name)
def test_every_message_that_a_page_quotes_stands_in_the_source(page: Path) -> None:
    found = quoted(page)
    assert len(found) > 10
    assert {message for _, message in found if len(message.split()) < FEWEST_WORDS} == set()
    unknown = {(source, message) for source, message in found if not any(message in text for text in messages(source))}
    assert unknown == set()


def test_every_row_of_the_loops_says_whether_it_is_supported_and_names_a_test() -> None:
    table = rows(LOOPS)
    assert len(table) > 100
    assert [row for row in table if len(row) != 3 or not row[1] or "`tests/" not in row[2]] == []
