"""`PathLeaveOneOut` in real fits: what it keeps, what it refuses, and when it only recommends."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _noisy import Fit, Stream, Weights, batches, blobs, regression, same, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_cx import ComplexityEarlyStopping, PathLeaveOneOut, ProbeSet
from lightning_cx.callbacks.early_stopping import FREE_SECONDS
from lightning_cx.functional.stopping import GradientSketch
from lightning_cx.probe import fill


def soon() -> PathLeaveOneOut:
    return PathLeaveOneOut(patience=2, wait=1.5)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "lightning_cx:" in record.getMessage()]


@pytest.mark.parametrize("problem", ["regression", "classes"])
def test_noise_is_not_memorised(problem: str, tmp_path: Path) -> None:
    data = regression(256, noise=0.7) if problem == "regression" else blobs(256, flipped=0.4)
    module = Fit() if problem == "regression" else Fit(4, 3)
    fresh = regression(1000, noise=0.0, seed=9) if problem == "regression" else blobs(1000, flipped=0.0, seed=9)
    stopping, weights = ComplexityEarlyStopping(PathLeaveOneOut(), strict=True), Weights()
    trainer([stopping, weights], tmp_path, max_steps=800).fit(module, batches(data))

    def error(state: dict[str, torch.Tensor]) -> float:
        other = Fit() if problem == "regression" else Fit(4, 3)
        other.load_state_dict(state)
        return float(other.eval().loss(fresh.tensors).detach())

    whole = Fit() if problem == "regression" else Fit(4, 3)
    trainer([], tmp_path, max_steps=800).fit(whole, batches(data))
    kept = dict(module.state_dict())
    assert stopping.stopped_step is not None
    assert stopping.best_step is not None
    assert same(kept, weights.after[stopping.best_step])
    assert error(kept) < 0.6 * error(dict(whole.state_dict()))
    assert error(kept) < 1.5 * min(error(weights.after[step]) for step in range(8, stopping.stopped_step, 8))


def test_stop_false_recommends_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopping, module = ComplexityEarlyStopping(soon(), stop=False, strict=True), Fit()
    with caplog.at_level(logging.INFO):
        fitted = trainer([stopping], tmp_path, max_steps=400).fit(module, batches(regression(noise=0.7)))
    assert fitted is None
    assert stopping.stopped_step is None
    assert stopping.best_step is not None
    assert stopping.best_step < 400
    assert any("this would stop the run (stop=False)" in words for words in said(caplog))
    assert any(f"the weights after {stopping.best_step} optimizer steps" in words for words in said(caplog))


class Doubled(torch.autograd.Function):
    """A node that the tap has no record of."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient


class Own(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, Doubled.apply(self.weight), self.bias)


@pytest.mark.parametrize(
    ("kind", "words"), [("a stream", "is a stream"), ("a layer of one's own", "DoubledBackward of net.5.weight")]
)
def test_examples_that_cannot_be_followed_are_refused_by_name(kind: str, words: str, tmp_path: Path) -> None:
    module = Fit()
    if kind != "a stream":
        module.net[5] = Own(64, 1)
    data = Stream(regression()) if kind == "a stream" else regression()
    stopping = ComplexityEarlyStopping(PathLeaveOneOut())
    with pytest.warns(UserWarning, match=f"ComplexityEarlyStopping is disabled: .*{words}"):
        trainer([stopping], tmp_path, max_steps=20).fit(module, batches(data, shuffle=kind != "a stream"))
    assert stopping.stopped_step is None


def test_a_learning_rate_that_has_to_fall_holds_the_stop(tmp_path: Path) -> None:
    class Steps(Fit):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100_000)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    stopping = ComplexityEarlyStopping(soon(), strict=True)
    trainer([stopping], tmp_path, max_steps=400).fit(Steps(), batches(regression(noise=0.7)))
    assert stopping.stopped_step is None
    assert "the learning rate still has to fall (StepLR" in stopping.reason
    assert stopping.watch.reading().scalars["stopping/acts"] == 0


def test_an_optimizer_that_is_not_known_is_only_recommended_for(tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(soon(), strict=True)
    module = Fit(optimizer="Rprop", lr=1e-3)
    trainer([stopping], tmp_path, max_steps=200).fit(module, batches(regression(noise=0.7), batch_size=256))
    assert stopping.stopped_step is None
    assert "Rprop is not known" in stopping.watch.held  # type: ignore[union-attr]


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    def rule() -> ComplexityEarlyStopping:
        return ComplexityEarlyStopping(soon(), every_n_steps=10, strict=True)

    whole, module = rule(), Fit()
    trainer([whole], tmp_path, max_steps=400).fit(module, batches(regression(noise=0.7), shuffle=False))

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 44:
                trainer.save_checkpoint(tmp_path / "part.ckpt")

    trainer([rule(), Save()], tmp_path, max_steps=50).fit(Fit(), batches(regression(noise=0.7), shuffle=False))
    second, rest = rule(), Fit()
    trainer([second], tmp_path, max_steps=400).fit(
        rest, batches(regression(noise=0.7), shuffle=False), ckpt_path=tmp_path / "part.ckpt", weights_only=False
    )
    assert second.stopped_step == whole.stopped_step is not None
    assert second.best_step == whole.best_step
    assert same(dict(rest.state_dict()), dict(module.state_dict()))


def test_a_state_of_another_version_starts_afresh_with_one_warning() -> None:
    stopping = ComplexityEarlyStopping()
    with pytest.warns(UserWarning, match="of another version"):
        stopping.load_state_dict({"watch": {"checks": 3}, "kept": {}, "probe": {}})
    assert stopping.best_step is None
    assert not stopping.watch.begun


def test_checks_become_rarer_where_they_cost_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_cx.callbacks.early_stopping.FREE_SECONDS", 0.0)
    rare = ComplexityEarlyStopping(PathLeaveOneOut(patience=1000), overhead_budget=0.01)
    trainer([rare], tmp_path, max_steps=300).fit(Fit(), batches(regression()))
    monkeypatch.setattr("lightning_cx.callbacks.early_stopping.FREE_SECONDS", 1000 * FREE_SECONDS)
    often = ComplexityEarlyStopping(PathLeaveOneOut(patience=1000))
    trainer([often], tmp_path, max_steps=300).fit(Fit(), batches(regression()))
    counts = [len(s.watch.reading().pictures["stopping/curve"].steps) for s in (rare, often)]  # type: ignore[union-attr]
    assert counts[0] < 12 < 20 < counts[1]


@pytest.mark.parametrize("wrong", [0.0, 1.0, -1.0])
def test_a_budget_is_a_share(wrong: float) -> None:
    with pytest.raises(ValueError, match="overhead_budget"):
        ComplexityEarlyStopping(overhead_budget=wrong)


LOSSES = {
    "classes1": (F.cross_entropy, lambda n: torch.randint(0, 4, (n,))),
    "binary": (F.binary_cross_entropy_with_logits, lambda n: torch.randint(0, 2, (n, 4)).float()),
    "values": (F.mse_loss, lambda n: torch.randn(n, 4)),
    "slopes": (F.poisson_nll_loss, lambda n: torch.poisson(torch.full((n, 4), 2.0))),
}


@pytest.mark.parametrize("kind", list(LOSSES))
def test_gradients_along_residuals_agree_with_a_loop(kind: str) -> None:
    torch.manual_seed(0)
    loss, draw = LOSSES[kind]
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)).double()
    data = TensorDataset(torch.randn(160, 5).double(), draw(160) if kind == "classes1" else draw(160).double())
    probe = fill(ProbeSet(size=160), data)
    sketch = GradientSketch({name: p.numel() for name, p in net.named_parameters()}, width=10_000)
    found = probe.passes(net, lambda batch: loss(net(batch[0]), batch[1])).residual_gradients(sketch)
    assert found.kind == kind
    net.eval()
    for i, index in enumerate(probe.indices or []):
        if i % 40:
            continue
        x, y = (t[index : index + 1] for t in data.tensors)
        f = net(x).detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(f, y), f)
        bent = torch.autograd.functional.hessian(lambda out, y=y: loss(out, y), f.detach()).reshape(4, 4)
        u = -slope / slope.norm()
        rows = torch.autograd.grad((net(x) * u).sum(), list(net.parameters()))
        row = sketch({name: g[None] for (name, _), g in zip(net.named_parameters(), rows, strict=True)})[0]
        torch.testing.assert_close(found.gradients[i], row, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.residuals[i], -slope[0], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.curvature[i], (u[0] @ bent @ u[0]), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.bend[i], bent.diagonal().sum(), rtol=1e-7, atol=1e-9)
