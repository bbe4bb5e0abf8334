"""Losses that look like a mean of the examples' own losses until one looks twice: none of them may be called exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _architectures import BATCH, CLASSES, COUNT, Network, Training, vectors
from _model_runs import Run
from _models import relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

MET = "the other examples of a batch change an example's gradient (in-batch terms, batch statistics, mixup)"
COUNTED = "rows are contributions, since examples count unequally: longer sequences"

Loss = Callable[["Perceptron", Tensor, Tensor], Tensor]


class Perceptron(Network):
    """Any loss of a small network, `how(network, x, y)`."""

    def __init__(self, how: Loss) -> None:
        super().__init__()
        self.net, self.how = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, CLASSES)), how
        self.register_buffer("queue", torch.ones(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        return self.how(self, *batch)


def alike_first(batch_size: int = BATCH) -> DataLoader:
    """The first four examples of every batch have a last feature that is large: their masks are full."""
    x, y = vectors().tensors
    x = x.clone()
    x[:, 5] = torch.linspace(0.2, 2.9, COUNT)[torch.arange(COUNT) * 7 % COUNT]
    for start in range(0, COUNT, batch_size):
        x[start : start + 4, 5] = 4
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def three_each(m: Perceptron, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Three losses for each example and the mask of those that count: 1 to 3 of them."""
    losses = F.cross_entropy(m(x)[:, :, None].expand(-1, -1, 3), y[:, None].expand(-1, 3), reduction="none")
    return losses, torch.arange(3) < x[:, 5:].long().clamp(1, 3)


def mixup(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    if not m.training:
        return F.cross_entropy(m(x), y)
    share, other = 0.7, m.draws(torch.randperm, len(x))
    scores = m(share * x + (1 - share) * x[other])
    return share * F.cross_entropy(scores, y) + (1 - share) * F.cross_entropy(scores, y[other])


def centred(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    hidden = m.net[0](x)
    return F.cross_entropy(m.net[2](hidden - hidden.detach().mean(0) * m.training), y)


def standardised(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    hidden = m.net[0](x)
    return F.cross_entropy(m.net[2](hidden / hidden.detach().std(0) if m.training else hidden), y)


def weighed_by_difficulty(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(m(x), y, reduction="none")
    weights = losses.detach() / losses.detach().mean() if m.training else 1.0
    return (weights * losses).mean()


def masked(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    losses, mask = three_each(m, x, y)
    return (losses * mask.float()).sum() / mask.float().sum()


def by_positives(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m(x), y, reduction="sum") / max(1, int((x[:, 5] > 2).sum()))


def hardest(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(m(x), y, reduction="none")
    return losses.topk(max(1, len(x) // 2)).values.mean() if m.training else losses.mean()


LIES: dict[str, tuple[Loss, str]] = {
    "mixup in training mode only": (mixup, MET),
    "features centred by the batch in training mode only": (centred, MET),
    "features standardised by the batch in training mode only": (standardised, MET),
    "weights that the losses of the batch decide": (weighed_by_difficulty, COUNTED),
    "a mask that leaves the first examples whole": (masked, COUNTED),
    "a loss divided by the number of positives": (by_positives, COUNTED),
    "the hardest half of the batch": (hardest, "rows are contributions, since examples interact outside of BatchNorm"),
}


@pytest.mark.parametrize("case", LIES)
def test_model_whose_loss_mixes_examples_is_never_called_exact(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loss, words = LIES[case]
    torch.manual_seed(0)
    run = Run(Training(Perceptron(loss), watched=False), alike_first(), tmp_path, caplog)
    assert {sample.status for sample in run.samples} == {"contribution"}
    assert run.says(words)


def test_model_whose_mask_is_uneven_in_one_batch_only_is_named_in_that_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first batch, on which the rows were compared, is whole."""
    x, y = alike_first().dataset.tensors
    x = x.clone()
    x[:, 5] = 4
    x[3 * BATCH : 3 * BATCH + 10, 5] = 1  # 10 of 20 examples have one of three: 40 terms, a multiple of N
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(x, y), batch_size=BATCH)
    module = Training(Perceptron(masked))
    run = Run(module, data, tmp_path, caplog)
    assert [s.status for s in run.samples] == ["exact"] * 3 + ["contribution"] + ["exact"] * 4
    for i, (sample, truth) in enumerate(zip(run.samples, module.truth, strict=True)):
        error = relative_error(sample.gram, truth)
        assert error > 0.1 if i == 3 else error < 2e-6


def noisy(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m(x + 0.5 * m.draws(torch.randn_like, x)), y)


def noisy_sum(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    return len(x) * noisy(m, x, y)


def sum_in_training(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m(x), y, reduction="sum" if m.training else "mean")


def without_eval(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    if not m.training:
        raise RuntimeError("no targets in eval mode")
    return F.cross_entropy(m(x), y)


def against_a_queue(m: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    z, old = m(x), m.queue
    m.queue = torch.cat([z.detach(), old])[: len(old)].to(old.dtype)
    return (z @ old.T).logsumexp(1).mean()


HONEST: dict[str, Loss] = {
    "noise that is drawn in the loss": noisy,
    "a sum with noise that is drawn in the loss": noisy_sum,
    "a sum in training mode, a mean in eval mode": sum_in_training,
    "no loss in eval mode": without_eval,
    "half a loss": lambda m, x, y: F.cross_entropy(m(x), y) / 2,
    "half a sum": lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum") / 2,
    "a sum divided by the examples": lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum") / len(x),
}


@pytest.mark.parametrize("case", HONEST)
def test_model_whose_examples_do_not_meet_is_exact_however_its_loss_is_written(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    module = Training(Perceptron(HONEST[case]))
    run = Run(module, alike_first(), tmp_path, caplog)
    assert len(run.samples) == 8
    for sample, truth in zip(run.samples, module.truth, strict=True):
        assert sample.status == "exact"
        assert relative_error(sample.gram, truth) < 2e-6
    assert not run.says("contribution")


def test_model_with_a_queue_of_negatives_is_compared_with_the_same_queue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    run = Run(Training(Perceptron(against_a_queue), watched=False), alike_first(), tmp_path, caplog)
    assert {sample.status for sample in run.samples} == {"exact"}
