"""What each preset of `ComplexityMonitor` costs inside a Lightning fit, over a fit without it.

    python benchmarks/presets.py

The convnet of `examples/quickstart.py` is fitted to digits. First at a fixed period, one step in fifty: the time of the
fit over that of a fit without a monitor. Then by the default budget of 2% of the wall time: the share that it really
took, and how often each kind of work was done. Prints a Markdown table. Measure on an idle machine.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_cx import ComplexityMonitor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quickstart import DigitClassifier, noisy_digits  # type: ignore[import-not-found]

PRESETS = ("default", "noise", "theory", "all")
EVERY = 50


def fitted(monitor: ComplexityMonitor | None, steps: int) -> float:
    """Seconds of a fit."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=[] if monitor is None else [monitor],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    module, data = DigitClassifier(), DataLoader(noisy_digits(), batch_size=64, shuffle=True)
    start = perf_counter()
    trainer.fit(module, data)
    return perf_counter() - start


def counts(monitor: ComplexityMonitor) -> str:
    """How often each kind of work was done."""
    assert monitor._session is not None
    accounts: dict[str, Any] = monitor._session.ledger.accounts
    return ", ".join(f"{name} {account.count}" for name, account in accounts.items() if name != "pictures")


def main(steps: int, budget_steps: int) -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    fitted(None, 50)  # what is loaded for the first time
    plain = fitted(None, steps)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; plain fit of {steps} steps: {plain:.1f} s\n")
    print(f"| preset | fit at one sample in {EVERY} steps, over plain | share taken of a 2% budget | done within it |")
    print("|---|---|---|---|")
    for name in PRESETS:
        longer = fitted(ComplexityMonitor(name, every_n_steps=EVERY), steps) / plain
        monitor = ComplexityMonitor(name)
        fitted(monitor, budget_steps)
        print(f'| `"{name}"` | {longer:.2f} | {monitor.overhead:.1%} | {counts(monitor)} |', flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--budget-steps", type=int, default=3000)
    arguments = parser.parse_args()
    main(arguments.steps, arguments.budget_steps)
