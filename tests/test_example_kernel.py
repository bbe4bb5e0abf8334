"""What docs/kernel.md says of true and random labels comes out in a short form of its example too."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from lightning_cx.instruments import quantities

PATH = Path(__file__).parent.parent / "examples" / "kernel.py"


def test_the_tangent_kernel_fits_true_labels_only_while_gradients_of_a_batch_align_with_any() -> None:
    spec = importlib.util.spec_from_file_location("example_kernel", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(steps=20, show=(0, 20))
    for rows in found.values():
        for row in rows:
            assert row[quantities.KERNEL_ALIGNMENT] > 0.8
            assert row[quantities.KERNEL_ALIGNMENT_CHANCE_HIGH] < 0.15
    true, random = found["true"][0], found["random"][0]
    assert true["alignment"] > 3 * true["alignment by chance"]
    assert true["area"] > 0.8
    assert random["alignment"] < random["alignment by chance"]
    assert random["area"] < random["area by chance"]
    shares = {tag: value for tag, value in true.items() if tag.startswith(f"{quantities.KERNEL_BLOCK_SHARE}/")}
    assert sum(shares.values()) == pytest.approx(1)
    assert f"{quantities.KERNEL_BLOCK_SHARE}/rest" in shares
    random_shares = [value for tag, value in random.items() if tag.startswith(f"{quantities.KERNEL_BLOCK_SHARE}/")]
    assert all(map(math.isnan, random_shares))
