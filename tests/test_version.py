"""The package knows its version wherever it is imported from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import lightning_cx

PACKAGE = Path(lightning_cx.__file__).parent


def test_the_installed_distribution_has_the_version_of_the_package() -> None:
    assert version("lightning_cx") == lightning_cx.__version__


def test_a_source_checkout_that_was_never_installed_can_be_imported(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "lightning_cx", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import importlib.metadata as metadata\n"
        "def unknown(name):\n"
        "    raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = metadata.distribution = unknown\n"
        "import lightning_cx\n"
        "print(lightning_cx.__file__, lightning_cx.__version__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    file, found = run.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert found == lightning_cx.__version__
