"""Measure the house: files, lines, doors, and how many files one sampled step enters.

    python benchmarks/house.py                       # this checkout
    python benchmarks/house.py --against ../before   # beside another checkout of the project

The sampled step is one of `ComplexityMonitor()` with its default instruments on a two-layer MLP, gradients and probe
both measured, after a first one that calibrates.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "lightning_cx"

SAMPLED_STEP = """
import logging, sys, warnings
import lightning, torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
import lightning_cx
from lightning_cx import ComplexityMonitor

ROOT = lightning_cx.__path__[0]
SAMPLED, PERIOD = 20, 10
entered = set()

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    def training_step(self, batch, _):
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

def enter(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.startswith(ROOT):
        entered.add(frame.f_code.co_filename)

class First(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if index == SAMPLED:
            sys.setprofile(enter)

class Last(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        sys.setprofile(None)

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.manual_seed(0)
data = DataLoader(TensorDataset(torch.randn(2048, 8), torch.randn(2048, 1)), 32)
Trainer(
    max_steps=SAMPLED + 2, callbacks=[First(), ComplexityMonitor(every_n_steps=PERIOD), Last()], logger=False,
    accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
).fit(Model(), data)
print("ENTERED", *sorted(file[len(ROOT) + 1:] for file in entered))
"""


def measure(root: Path) -> dict[str, int]:
    """Everything that is counted about the package below a checkout."""
    sources = {path: ast.parse(path.read_text()) for path in sorted((root / PACKAGE).rglob("*.py"))}
    texts = [path.read_text().splitlines() for path in sources]
    found = {
        "source files": len(sources),
        "lines": sum(map(len, texts)),
        "lines of code": sum(map(_lines_of_code, sources.values())),
        "files that a sampled step enters": len(files_entered(root)),
        "modules imported by exactly one other": _imported_once(root, sources),
        "imports across packages": len(list(_across(root, sources))),
        "  of these below a door": sum(module.count(".") > 1 for module in _across(root, sources)),
    }
    for door in sorted((root / PACKAGE).glob("*/__init__.py")):
        names = _all_of(sources[door])
        if names:
            found[f"names at the door of {door.parent.name}"] = len(names)
    return found


def files_entered(root: Path) -> list[str]:
    """Files of the package that run during one sampled step, by the interpreter's own profile."""
    environment = {**os.environ, "PYTHONPATH": str(root.resolve()), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SAMPLED_STEP], capture_output=True, text=True, check=True, env=environment, cwd=root
    )
    line = next(line for line in run.stdout.splitlines() if line.startswith("ENTERED"))
    return line.split()[1:]


def _lines_of_code(tree: ast.Module) -> int:
    """Lines that hold a token of code: no blank line, comment or docstring."""
    lines = set()
    docstrings = {id(node.body[0]) for node in ast.walk(tree) if _has_docstring(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and id(node) in docstrings:
            continue
        if isinstance(node, ast.stmt):
            inner = [child.lineno for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            last = node.end_lineno or node.lineno
            lines.update(range(node.lineno, (min(inner) if inner else last + 1)))
    return len(lines)


def _has_docstring(node: ast.AST) -> bool:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None


def _package_of(root: Path, path: Path) -> str:
    parts = path.relative_to(root / PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                yield node.module, alias.name


def _across(root: Path, sources: dict[Path, ast.Module]) -> Iterator[str]:
    """Module of each import statement from one package of ours to another, once for each importing file."""
    for path, tree in sources.items():
        own = _package_of(root, path)
        modules = {module for module, _ in _imports(tree)}
        yield from (m for m in sorted(modules) if own and m.count(".") and m.split(".")[1] not in (own, "_torch"))


def _imported_once(root: Path, sources: dict[Path, ast.Module]) -> int:
    names = {".".join(path.relative_to(root).with_suffix("").parts): path for path in sources}
    importers: Counter[str] = Counter()
    for path, tree in sources.items():
        asked = {module for module, _ in _imports(tree)} | {f"{module}.{name}" for module, name in _imports(tree)}
        importers.update(name for name in names if name in asked and names[name] != path)
    return sum(count == 1 for count in importers.values())


def _all_of(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return ast.literal_eval(node.value)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, for a column beside this one's")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    arguments = parser.parse_args()
    here = measure(Path(__file__).resolve().parent.parent)
    before = measure(arguments.against) if arguments.against else {}
    if arguments.json:
        print(json.dumps({"before": before, "now": here}))
        return
    for name in [*here, *(n for n in before if n not in here)]:
        columns = ([before.get(name, "-")] if before else []) + [here.get(name, "-")]
        print(f"{name:<44}" + "".join(f"{value:>10}" for value in columns))


if __name__ == "__main__":
    main()
