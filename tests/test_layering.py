"""Packages know only what the table at the top lets them know."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "lightning_cx"


class May(NamedTuple):
    """What a package may import.

    Args:
        inside: Of lightning_cx: packages, or single modules of them.
        outside: Of other distributions; the standard library is open to all.
        types: Names that may be imported for annotations only, under TYPE_CHECKING.
    """

    inside: set[str]
    outside: set[str]
    types: frozenset[str] = frozenset()


DRAWING = frozenset({"matplotlib.axes.Axes", "matplotlib.figure.Figure"})  # what torchmetrics draws on
BELOW_FIGURES = {"functional", "gradients", "batch", "metrics", "probe", "instruments", "rules"}
LAYERS = {
    "functional": May({"functional"}, {"torch", "scipy", "numpy"}),
    "gradients": May({"functional", "gradients", "_torch"}, {"torch"}),
    "batch": May({"functional", "batch", "_torch"}, {"torch", "numpy"}),
    "metrics": May({"functional", "metrics"}, {"torch", "torchmetrics"}, DRAWING),
    "probe": May({"functional", "gradients", "batch", "probe", "_torch"}, {"torch", "numpy"}),
    "instruments": May({"functional", "gradients", "batch", "metrics", "probe", "instruments"}, {"torch"}),
    "rules": May({"functional", "probe", "instruments", "rules"}, {"torch"}),
    "figures": May(BELOW_FIGURES | {"figures"}, {"torch", "numpy", "matplotlib"}),
    # `tensorboard` reads event files back.
    "loggers": May(BELOW_FIGURES | {"figures", "loggers"}, {"torch", "numpy", "matplotlib", "tensorboard"}),
    "callbacks": May(BELOW_FIGURES | {"figures", "loggers", "callbacks", "_torch"}, {"torch"}),
}
KNOW_LIGHTNING = {"callbacks/_trainer.py", "callbacks/_flavour.py"}  # what is inside a Trainer, which Lightning it is
KNOWS_TRAINERS_PRIVATELY = "callbacks/_trainer.py"

LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"}
# Packages that are imported one line after the other, and what must not be loaded after each line.
WITHOUT_LIGHTNING = {
    ("functional", "gradients", "batch", "probe"): LIGHTNING,
    # torchmetrics brings lightning_utilities along.
    ("metrics", "instruments"): LIGHTNING - {"torchmetrics", "lightning_utilities"},
}
MOST_PUBLIC_NAMES = 15


def files() -> Iterator[tuple[str, ast.Module]]:
    """Every file of every package in the table, by its path inside lightning_cx."""
    for package in LAYERS:
        found = sorted((PACKAGE / package).rglob("*.py"))
        assert found, f"no files in {package}"
        for path in found:
            yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, inside functions and under TYPE_CHECKING, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def at_run_time(tree: ast.Module) -> set[str]:
    """Names imported outside of `if TYPE_CHECKING:`."""
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    only = {id(node) for branch in typing for part in branch.body for node in ast.walk(part)}
    run = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in only]
    return {name for node in run for _, name in imports(node)}


def is_allowed(name: str, file: str, may: May, runs: bool) -> bool:
    top = name.partition(".")[0]
    if top == "lightning_cx":
        inside = name.removeprefix("lightning_cx.")
        return any(inside == known or inside.startswith(f"{known}.") for known in {"_torch", *may.inside})
    if top in LIGHTNING - may.outside:
        return file in KNOW_LIGHTNING
    return top in may.outside | sys.stdlib_module_names or (name in may.types and not runs)


def test_packages_import_only_what_the_table_allows() -> None:
    offenders = []
    for file, tree in files():
        run = at_run_time(tree)
        may = LAYERS[file.partition("/")[0]]
        offenders += [
            f"{file}:{line} imports {name}"
            for line, name in imports(tree)
            if not is_allowed(name, file, may, runs=name in run)
        ]
    assert not offenders, "\n".join(offenders)


def test_packages_import_from_each_other_at_the_door() -> None:
    """A name that another package needs is in the `__init__` of its own; what lies below may move."""
    offenders = [
        f"{file}:{node.lineno} imports from {node.module}"
        for file, tree in files()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lightning_cx.")
        if node.module.count(".") > 1 and node.module.split(".")[1] != file.partition("/")[0]
    ]
    assert not offenders, "\n".join(offenders)


def test_one_file_only_touches_private_attributes_of_a_trainer_or_a_module() -> None:
    offenders = [
        f"{file}:{node.lineno} touches {node.value.id}.{node.attr}"
        for file, tree in files()
        for node in ast.walk(tree)
        if file != KNOWS_TRAINERS_PRIVATELY
        and isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and isinstance(node.value, ast.Name)
        and node.value.id in ("trainer", "pl_module")
    ]
    assert not offenders, "\n".join(offenders)


def test_packages_below_the_callbacks_load_no_lightning() -> None:
    """In one fresh process, which imports them from the lowest upwards."""
    lines = ["import sys"]
    for packages in WITHOUT_LIGHTNING:
        lines += [f"import lightning_cx.{package}" for package in packages]
        lines += ["print(sorted({name.partition('.')[0] for name in sys.modules}))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = [set(ast.literal_eval(line)) for line in done.stdout.splitlines()]
    for (packages, forbidden), modules in zip(WITHOUT_LIGHTNING.items(), loaded, strict=True):
        assert not modules & forbidden, f"{packages} load {modules & forbidden}"
    assert "torchmetrics" in loaded[-1]  # the metrics are torchmetrics'


def test_there_are_at_most_15_public_names() -> None:
    import lightning_cx

    assert set(lightning_cx.__all__) <= set(dir(lightning_cx))
    assert len(lightning_cx.__all__) <= MOST_PUBLIC_NAMES
