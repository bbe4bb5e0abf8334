"""Activation checkpointing hides what the tap reads: sampled steps replay the batch example by example."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, fingerprint, fit, images
from _models import Convnet, cross_entropy, naive_rows, relative_error
from test_monitor import Watch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint
from torch.utils.data import DataLoader

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.gradients import replay_gradients

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")


class Checkpointed(nn.Module):
    """A convnet whose middle is run again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.drop, self.reentrant = nn.Sequential(*Convnet()), nn.Dropout(0.2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.net[:2](x)
        x = checkpoint(lambda z: self.drop(self.net[2:6](z)), x, use_reentrant=self.reentrant)
        return self.net[6:](x)


def run(reentrant: bool, callbacks: list[pl.Callback], folder: Path, **options: object) -> pl.Trainer:
    pl.seed_everything(3)
    return fit(Classifier(Checkpointed(reentrant)), callbacks, folder, **options)


@pytest.mark.parametrize("reentrant", [True, False])
def test_training_is_bitwise_identical_and_the_refusal_is_told_once(reentrant: bool, tmp_path: Path) -> None:
    without = fingerprint(run(reentrant, [], tmp_path))
    watch = Watch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = run(reentrant, [ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(128))], tmp_path)
    assert fingerprint(trainer) == without
    ours = [str(w.message) for w in caught if str(w.message).startswith("lightning_cx")]
    assert len(ours) == 1, ours
    assert "heckpoint" in ours[0]
    assert "sampled steps replay the batch one example at a time instead" in ours[0]
    seen = [o.gradients for o in watch.seen if o.gradients is not None]
    assert [sample.status for sample in seen] == ["exact"] * 9  # of ten steps, the first refused
    assert seen[0].notes == ("read by replaying 32 examples one at a time",)
    assert [o.probe.source for o in watch.seen if o.probe is not None][-1] == "output of net"


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_replayed_gram_matrix_is_that_of_the_loop(reentrant: bool, tmp_path: Path) -> None:
    module = Classifier(Checkpointed(reentrant))
    module.net[2].drop.p = 0.0
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    truth = naive_rows(module.net[2].net, cross_entropy, *images(160)[32:64])
    watch = Watch()
    with pytest.warns(UserWarning, match=r"[Cc]heckpoint.*replay the batch"):
        fit(
            module,
            [ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(128), strict=True)],
            tmp_path,
            data=DataLoader(images(160), batch_size=32),
            max_steps=2,
        )
    (sample,) = [o.gradients for o in watch.seen if o.gradients is not None]
    assert relative_error(sample.gram, truth @ truth.T) < 1e-5


def test_replay_leaves_checkpointing_as_it_was() -> None:
    x, y = images(4)[:]
    module = Checkpointed(True)

    def failing(i: int) -> Tensor:
        module(x[i : i + 1])
        raise ZeroDivisionError("on purpose")

    inherited = CheckpointFunction.apply
    replay_gradients(lambda i: cross_entropy(module, x[i : i + 1], y[i : i + 1]), module.named_parameters(), 4)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        replay_gradients(failing, module.named_parameters(), 4)
    assert CheckpointFunction.apply == inherited
    assert "apply" not in vars(CheckpointFunction)
    loss = cross_entropy(module, x, y)
    loss.backward()
    assert all(p.grad is not None for p in module.net.parameters())
