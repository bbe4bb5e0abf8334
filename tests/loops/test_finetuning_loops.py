"""Parts that are frozen, and parts that become trainable in mid-run, are measured as what they are at the moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from _lightning import Classifier
from _loops import Truth, in_order, last_layer, undisturbed
from _models import cross_entropy
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch import Tensor, nn
from torch.nn import functional as F

EXACT = 1e-5  # relative; float32 against float64


class OfTrainable(Truth):
    """Notes the Gram matrix over the parameters that are trainable at the moment."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        parameters = [p for p in pl_module.net.parameters() if p.requires_grad]
        rows = []
        for x, y in zip(*(part.split(1) for part in batch), strict=True):
            gradients = torch.autograd.grad(cross_entropy(pl_module.net, x, y), parameters)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
        stacked = torch.stack(rows)
        self.grams.append(stacked @ stacked.T)


class Trainable(Classifier):
    """Gives its optimizer what is trainable at the start."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=3e-3)


class Frozen(Trainable):
    """The first convolution and its norm stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        for part in list(self.net[2])[:2]:
            part.requires_grad_(False)


class Later(BaseFinetuning):
    """Lets a part of the net be trained from the second epoch on."""

    def __init__(self, part: Callable[[Any], list[nn.Module]]) -> None:
        super().__init__()
        self.part = part

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(self.part(pl_module))

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(self.part(pl_module), optimizer)


class WithBackbone(Classifier):
    """As Lightning's own callback wants it: a backbone, and a head on top."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), *[nn.BatchNorm2d(1)] * batch_norm)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=3e-3)


def test_frozen_parts_are_left_out(tmp_path: Path) -> None:
    truth = OfTrainable()
    seen = undisturbed(Frozen, tmp_path, front=lambda: [truth], data=in_order())
    del truth.grams[:10]
    assert max(seen.errors(truth)) < EXACT
    assert {len(sample.layers) for sample in seen.samples} == {5}
    assert [reading.source for reading in seen.readings] == ["output of net"] * 10
    assert seen.stopping.watch.begun
    assert seen.told == []


@pytest.mark.parametrize(
    ("part", "before"), [(lambda module: list(module.net[2])[:5], 2), (lambda module: [last_layer(module)], 7)]
)
def test_parts_that_become_trainable_are_measured_from_that_epoch_on(
    part: Callable[[Any], list[nn.Module]], before: int, tmp_path: Path
) -> None:
    truth = OfTrainable()
    seen = undisturbed(Trainable, tmp_path, front=lambda: [Later(part), truth], data=in_order(), max_epochs=3)
    del truth.grams[:15]
    assert max(seen.errors(truth)) < EXACT
    assert [len(sample.layers) for sample in seen.samples] == [before] * 5 + [9] * 10
    assert [reading.source for reading in seen.readings] == ["output of net"] * 15
    assert seen.stopping.watch.begun
    assert seen.told == []


@pytest.mark.parametrize("batch_norm", [False, True])
def test_backbone_finetuning_goes_on_beside_us(batch_norm: bool, tmp_path: Path) -> None:
    seen = undisturbed(
        partial(WithBackbone, batch_norm),
        tmp_path,
        front=lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False)],
        max_epochs=3,
        strict=False,
    )
    counts = [len(sample.layers) for sample in seen.samples]
    assert counts[0] < counts[-1] == 11 + 2 * batch_norm
    assert counts == [counts[0]] * 10 + [counts[-1]] * 5
    assert [reading.source for reading in seen.readings] == ["output of net"] * 15
    assert seen.stopping.watch.begun
    # Lightning trains the BatchNorm of a frozen backbone.
    assert {sample.status for sample in seen.samples} == {"contribution" if batch_norm else "exact"}
