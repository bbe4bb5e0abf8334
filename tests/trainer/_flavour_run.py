"""Fits by the Trainer of pytorch_lightning; `test_flavours_of_lightning.py` starts it.

Each case runs in a process of its own, forked from one that has imported what has nothing to do with Lightning.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import sys
import warnings
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # which Lightning imports
import torch.utils.tensorboard
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_cx.figures
import lightning_cx.instruments
import lightning_cx.metrics  # noqa: F401 - like the others, knows nothing of Lightning


class NotInstalled(MetaPathFinder):
    """Lets a package be looked for in vain."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


MISSING = {"pytorch_lightning alone": ["lightning"], "neither": ["lightning", "pytorch_lightning", "lightning_fabric"]}
IMPORTED = {
    "both, pytorch_lightning imported": ["pytorch_lightning", "lightning_cx.callbacks"],
    "both imported": ["pytorch_lightning", "lightning.pytorch", "lightning_cx.callbacks"],
    "both, lightning_cx imported first": ["lightning_cx.callbacks", "pytorch_lightning"],
}
CASES = [*MISSING, *IMPORTED]


def main(case: str, folder: str) -> dict[str, Any]:
    assert not any("lightning" in name and "lightning_" not in name for name in sys.modules)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.meta_path.insert(0, NotInstalled(*MISSING.get(case, [])))
    for name in IMPORTED.get(case, []):
        importlib.import_module(name)
    from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, SpectralRisk

    pl = importlib.import_module("pytorch_lightning")
    from lightning_cx.metrics import MedianComplexity

    class Regression(pl.LightningModule):
        """Logs metrics of torchmetrics and of ours."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
            self.error, self.median = torchmetrics.MeanSquaredError(), MedianComplexity()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            found = self.net(x)
            self.error(found, y)
            self.median.update(x, y - found.detach())
            self.logger.log_metrics({"by_hand": 1.0}, step=self.global_step)
            self.log("error", self.error, on_step=True, on_epoch=True)
            self.log("median", self.median, on_step=False, on_epoch=True)
            return nn.functional.mse_loss(found, y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=2e-2)

    draw = np.random.default_rng(1)
    x = draw.uniform(-1, 1, (256, 5))
    y = np.sin(2 * x[:, :1]) + x[:, 1:2] + 0.5 * draw.normal(size=(256, 1))
    data = TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))

    def fit(callbacks: Any, steps: int, name: str) -> tuple[str, Any]:
        pl.seed_everything(7)
        module, logger = Regression(), pl.loggers.TensorBoardLogger(folder, name=name, version="")
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=logger,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            log_every_n_steps=1,
        )
        trainer.fit(module, DataLoader(data, 32, shuffle=True))
        state = [module.error.metric_state, trainer.optimizers[0].state_dict(), torch.get_rng_state()]
        own = {tag: float(value) for tag, value in trainer.callback_metrics.items() if "/" not in tag}
        seen = repr((state, [p.tolist() for p in module.parameters()], own))
        return hashlib.sha256(seen.encode()).hexdigest(), trainer

    stopping = ComplexityEarlyStopping(SpectralRisk(patience=2, z=0.5, doubling=False), every_n_steps=10, strict=True)
    _, first = fit([ComplexityMonitor(every_n_steps=10, strict=True), stopping], 500, "run")
    ours = [ComplexityMonitor(every_n_steps=4), ComplexityEarlyStopping(every_n_steps=4, restore_best=False)]
    with_both, _ = fit(ours, 24, "with")
    single = "lightning_cx imported first" not in case and fit(ComplexityMonitor(every_n_steps=4), 4, "one")
    return {
        "loaded": sorted({name.partition(".")[0] for name in sys.modules if "lightning" in name}),
        "stopped_step": stopping.stopped_step,
        "undisturbed": with_both == fit([], 24, "without")[0],
        "one callback": single and single[1].callback_metrics["gradient/norm"].item() > 0,
        "own": sorted(tag for tag in first.callback_metrics if "/" not in tag),
    }


def answer(case: str, folder: str) -> None:
    try:
        result = main(case, folder)
    except (ImportError, ValueError) as error:
        result = {"refusal": str(error)}
    Path(folder, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    for case in CASES:
        folder = Path(sys.argv[1], case)
        folder.mkdir()
        child = multiprocessing.get_context("fork").Process(target=answer, args=(case, str(folder)))
        child.start()
        child.join()
        assert child.exitcode == 0, case
