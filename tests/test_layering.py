"""The rooms of the house know only what DESIGN lets them know."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_cx"

# Which rooms a room may import. `tensorboard.tags` is names only and open to the instruments.
ALLOWED = {
    "functional": {"functional"},
    "gradients": {"functional", "gradients"},
    "probe": {"functional", "gradients", "probe"},
    "metrics": {"functional", "metrics"},
    "instruments": {"functional", "gradients", "probe", "metrics", "instruments", "tensorboard.tags"},
    "rules": {"functional", "probe", "instruments.base", "tensorboard.tags", "rules"},
    "tensorboard": {"functional", "instruments.base", "tensorboard"},
    "callbacks": {"functional", "gradients", "probe", "metrics", "instruments", "rules", "tensorboard", "callbacks"},
}
OUTSIDE = {
    "functional": {"torch", "scipy", "numpy"},
    "gradients": {"torch"},
    "probe": {"torch", "numpy"},
    "metrics": {"torch", "torchmetrics", "matplotlib"},  # matplotlib for types only: torchmetrics does the drawing
    "instruments": {"torch"},
    "rules": {"torch"},
    "tensorboard": {"torch", "numpy", "matplotlib", "tensorboard"},  # the last one to read event files back
    "callbacks": {"torch"},
}
MATPLOTLIB_FOR_TYPES = {"matplotlib.axes.Axes", "matplotlib.figure.Figure"}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"}
KNOW_LIGHTNING = ("_trainer.py", "_flavour.py")  # what is inside a Trainer, and which Lightning it comes from
STANDARD = sys.stdlib_module_names

FILES = [path for room in ALLOWED for path in sorted((PACKAGE / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may_know(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        top = name.split(".")[0]
        if top == "lightning_cx":
            inside = name.removeprefix("lightning_cx.")
            assert any(inside == a or inside.startswith(a + ".") for a in ALLOWED[room]), f"{room} imports {name}"
        elif top in LIGHTNING - OUTSIDE[room]:
            assert path.name in KNOW_LIGHTNING, f"{path.name} imports {name}: only {KNOW_LIGHTNING} know Lightning"
        else:
            assert top in OUTSIDE[room] or top in STANDARD or top == "__future__", f"{room} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_attributes_of_a_trainer_are_touched_in_one_file_only(path: Path) -> None:
    if path.name == "_trainer.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and isinstance(node.value, ast.Name):
            assert node.value.id not in ("trainer", "pl_module"), f"{path.name}:{node.lineno} touches {node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_longer_than_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", sorted((PACKAGE / "metrics").rglob("*.py")), ids=lambda p: p.name)
def test_metrics_know_matplotlib_only_as_the_type_of_what_torchmetrics_draws(path: Path) -> None:
    assert {name for name in imports(path) if name.startswith("matplotlib")} <= MATPLOTLIB_FOR_TYPES
    run = {node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)}
    assert not any("matplotlib" in ast.unparse(node) for node in run)  # they stand under TYPE_CHECKING


def test_there_are_at_most_15_public_names() -> None:
    import lightning_cx

    assert set(lightning_cx.__all__) <= set(dir(lightning_cx))
    assert len(lightning_cx.__all__) <= 15


@pytest.mark.parametrize(
    ("rooms", "forbidden"),
    [
        ("lightning_cx.functional, lightning_cx.gradients, lightning_cx.probe", LIGHTNING),
        # Instruments pool in a torchmetrics.Metric, which brings lightning_utilities along.
        ("lightning_cx.metrics, lightning_cx.instruments", LIGHTNING - {"torchmetrics", "lightning_utilities"}),
    ],
)
def test_the_rooms_below_the_callbacks_do_not_import_lightning(rooms: str, forbidden: set[str]) -> None:
    code = f"import sys, {rooms}; print([m for m in sys.modules if m.split('.')[0] in {forbidden}])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"


def test_metrics_import_torchmetrics_but_not_lightning() -> None:
    code = "import sys, lightning_cx.metrics; print({m.split('.')[0] for m in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = ast.literal_eval(result.stdout)
    assert "torchmetrics" in loaded
    assert not loaded & (LIGHTNING - {"torchmetrics", "lightning_utilities"})  # the second comes with the first
