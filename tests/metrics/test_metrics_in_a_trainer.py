"""In a LightningModule the metrics are logged, reset and computed like torchmetrics' own."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from _metric_data import draw
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import ClasswiseWrapper, MetricCollection

from lightning_cx.gradients import per_example_gram
from lightning_cx.metrics import GradientNoiseScale, MedianComplexity, ResidualSpectrum

EXAMPLES, BATCH = 96, 40


def data() -> TensorDataset:
    x = torch.randn(EXAMPLES, 3, generator=draw(0))
    return TensorDataset(x, x[:, :1] + 0.1 * torch.randn(EXAMPLES, 1, generator=draw(1)))


class Regression(pl.LightningModule):
    """Logs each metric as the docs of torchmetrics show it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.noise = GradientNoiseScale()
        self.residual = MetricCollection({"median": MedianComplexity()})
        self.bands = ClasswiseWrapper(ResidualSpectrum())
        self.predictions = MedianComplexity()
        self.expected: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.noise.update(per_example_gram(self, loss))
        self.log("noise", self.noise, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        residual = y - self.net(x)
        self.residual.update(x, residual)
        self.bands.update(x, residual)
        self.predictions.update(x, self.net(x))
        self.log_dict(self.residual)
        self.log("predictions", self.predictions)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.bands.compute())
        self.bands.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_what_is_logged_is_the_metric_of_the_whole_epoch(precision, tmp_path):
    torch.manual_seed(0)
    module = Regression()
    loader = DataLoader(data(), batch_size=BATCH)  # 40, 40 and 16 examples
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, precision=precision, num_sanity_val_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    logged = trainer.callback_metrics

    kind = next(module.net.parameters()).dtype
    assert kind == (torch.float32 if precision == "32-true" else torch.bfloat16)
    x, y = (tensor.to(kind) for tensor in data().tensors)
    median, bands, predictions = MedianComplexity(), ResidualSpectrum(), MedianComplexity()
    with torch.no_grad():
        for part in torch.arange(EXAMPLES).split(BATCH):
            output = module.net(x[part])
            median.update(x[part], y[part] - output)
            bands.update(x[part], y[part] - output)
            predictions.update(x[part], output)
    assert float(logged["median"]) == pytest.approx(float(median.compute()), rel=1e-6)
    assert float(logged["predictions"]) == pytest.approx(float(predictions.compute()), rel=1e-6)
    for band, energy in enumerate(bands.compute().tolist()):
        assert float(logged[f"residualspectrum_{band}"]) == pytest.approx(energy, rel=1e-6)
    assert "noise" in logged


def test_the_noise_scale_of_an_epoch_is_that_of_its_batches(tmp_path):
    torch.manual_seed(0)
    module = Regression()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(), batch_size=BATCH))
    expected = GradientNoiseScale()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), before, strict=True):
            parameter.copy_(value)
    optimizer = module.configure_optimizers()
    for batch in DataLoader(data(), batch_size=BATCH):
        optimizer.zero_grad()
        loss = (module.net(batch[0]) - batch[1]).square().mean()
        expected.update(per_example_gram(module, loss))
        loss.backward()
        optimizer.step()
    assert float(trainer.callback_metrics["noise"]) == pytest.approx(float(expected.compute()), rel=1e-5)
    assert int(module.noise.batches) == 0  # Lightning has reset it
