"""Whatever steps the weights: the Gram matrix is that of the batch at the weights that it met."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _lightning import Classifier
from _loops import ByHand, ByLbfgs, Truth, in_order, single_losses, undisturbed
from _models import relative_error
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.nn import functional as F

EXACT = 1e-5  # relative; float32 against float64


class ClippingItself(Classifier):
    """Clips in a way of its own."""

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, **_: Any) -> None:
        for parameter in self.parameters():
            parameter.grad.mul_(0.1)


class SteppingItself(Classifier):
    """Overrides all three of the hooks that Lightning offers around a step."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if batch_idx == 0:  # a warm-up, as the documentation of Lightning shows it
            optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


class SteppingRarely(Classifier):
    """Leaves out every second step, but not its backward."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if batch_idx % 2:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


class Functional(Classifier):
    """Writes gradients without `.backward()`, so that there is nothing to check sums against."""

    def backward(self, loss: Tensor) -> None:
        parameters = list(self.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient


class Retaining(ByHand):
    """Goes back through one graph several times."""

    def go_back_through(self, loss: Tensor) -> None:
        for last in (False, False, True):
            self.manual_backward(loss, retain_graph=not last)


LOOPS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "automatic optimisation": (Classifier, {}),
    "manual optimisation": (ByHand, {"loss_fn": single_losses}),
    "LBFGS": (ByLbfgs, {}),
    "clipping by norm": (Classifier, {"gradient_clip_val": 1e-2}),
    "clipping by value": (Classifier, {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}),
    "clipping of one's own": (ClippingItself, {}),
    "backward, optimizer_step and optimizer_zero_grad overridden": (SteppingItself, {}),
    "an optimizer_step that leaves out steps": (SteppingRarely, {}),
    "a backward that takes autograd.grad": (Functional, {}),
    "several backward passes of one loss": (Retaining, {"loss_fn": single_losses}),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_the_gram_matrix_is_that_of_the_batch_at_the_weights_it_met(loop: str, tmp_path: Path) -> None:
    make, options = LOOPS[loop]
    truth = Truth()
    seen = undisturbed(make, tmp_path, front=lambda: [truth], data=in_order(), max_epochs=1, **options)
    del truth.grams[:5]  # of the run without us
    assert max(seen.errors(truth)) < EXACT
    # Where a step cannot be run again, nobody compared.
    assert {sample.status for sample in seen.samples} == {"unverified" if "loss_fn" in options else "exact"}
    assert [reading.source for reading in seen.readings] == ["output of net"] * 5
    assert seen.stopping.watch.begun
    assert seen.told == []


def test_accumulation_that_changes_in_mid_run_is_divided_out_of_every_sample(tmp_path: Path) -> None:
    truth = Truth()
    seen = undisturbed(
        Classifier,
        tmp_path,
        front=lambda: [truth, GradientAccumulationScheduler({0: 1, 1: 2, 2: 5})],
        data=in_order(),
        max_epochs=3,
    )
    del truth.grams[:15]
    # The first batch of every optimizer step: five of one batch, then two of two and one of the rest, then one of five.
    first = [0, 1, 2, 3, 4, 5, 7, 9, 10]
    assert max(seen.errors(truth, first)) < EXACT
    assert seen.stopping.watch.begun
    assert seen.trainer.global_step == len(first)


def test_what_backward_multiplies_the_loss_by_stays_in_the_gradients(tmp_path: Path) -> None:
    class Threefold(Classifier):
        def backward(self, loss: Tensor) -> None:
            (3 * loss).backward()

    truth = Truth()
    seen = undisturbed(Threefold, tmp_path, front=lambda: [truth], data=in_order(), max_epochs=1)
    assert relative_error(seen.samples[0].gram, 9 * truth.grams[5]) < EXACT
    assert seen.told == []


def test_a_backward_that_goes_through_no_graph_is_replayed_and_says_so(tmp_path: Path) -> None:
    class Guessing(Classifier):
        def backward(self, loss: Tensor) -> None:
            for parameter in self.parameters():
                parameter.grad = torch.sign(parameter.detach())

    truth = Truth()
    seen = undisturbed(Guessing, tmp_path, front=lambda: [truth], data=in_order(), max_epochs=1)
    del truth.grams[:5]
    assert max(seen.errors(truth, [1, 2, 3, 4])) < EXACT
    (told,) = seen.told
    assert "the backward never reached net.2.0.bias" in told
    assert "sampled steps replay the batch one example at a time instead" in told


def test_manual_optimisation_without_losses_of_single_examples_says_what_to_pass(tmp_path: Path) -> None:
    seen = undisturbed(ByHand, tmp_path, strict=False)
    assert len(seen.samples) == 10
    assert len(seen.told) == 2
    assert all("cannot be run again, under manual optimisation" in words for words in seen.told)
    assert all("pass ProbeSet(loss_fn=...)" in words for words in seen.told)
    assert "ComplexityEarlyStopping is disabled" in "".join(seen.told)
    assert not seen.stopping.watch.begun


def test_parts_of_a_batch_under_manual_optimisation_are_what_is_measured_and_this_is_said(tmp_path: Path) -> None:
    class InParts(ByHand):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            for x, y in zip(batch[0].chunk(4), batch[1].chunk(4), strict=True):
                self.manual_backward(F.cross_entropy(self.net(x), y) / 4)
            optimizer.step()

    seen = undisturbed(InParts, tmp_path, loss_fn=single_losses, strict=False, data=in_order())
    assert {(sample.batch_size, sample.status) for sample in seen.samples} == {(8, "unverified")}
    (told,) = seen.told
    assert "the loss averages 8 rows, the batch has 32 examples: gradients are those of the rows" in told
    assert seen.stopping.watch.begun
