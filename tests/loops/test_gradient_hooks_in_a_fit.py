"""Hooks of the user's own on parameters, modules and activations keep firing, and what they change is not hidden."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from _lightning import Classifier, images
from _loops import Truth, in_order, undisturbed
from _models import Convnet, cross_entropy, relative_error
from torch import Tensor, nn

EXACT = 1e-5  # relative; float32 against float64


class Hooked(Classifier):
    """Counts what its hooks see.

    Args:
        hang: Hangs a hook on the net, given a function that counts.
    """

    def __init__(self, hang: Callable[[Convnet, Callable[..., None]], Any]) -> None:
        super().__init__()
        hang(self.net[2], self.look)

    def look(self, *_: Any) -> None:
        self.calls += 100


def of_activations(net: Convnet, look: Callable[..., None]) -> None:
    net[3].register_forward_hook(lambda module, inputs, output: output.register_hook(look) and None)


LOOKING: dict[str, Callable[[Convnet, Callable[..., None]], Any]] = {
    "a hook on a parameter": lambda net, look: net[3].weight.register_hook(look),
    "a hook after accumulation": lambda net, look: net[3].weight.register_post_accumulate_grad_hook(look),
    "a full backward hook": lambda net, look: net[3].register_full_backward_hook(look),
    "a full backward hook before": lambda net, look: net[3].register_full_backward_pre_hook(look),
    "a hook on activations": of_activations,
}


@pytest.mark.parametrize("kind", LOOKING)
def test_hooks_that_only_look_change_nothing_and_fire_once_for_each_step(kind: str, tmp_path: Path) -> None:
    truth = Truth()
    seen = undisturbed(partial(Hooked, LOOKING[kind]), tmp_path, front=lambda: [truth], data=in_order(), max_epochs=1)
    del truth.grams[:5]
    fired = seen.trainer.lightning_module.calls // 100
    assert fired == 5 or kind == "a hook on activations"
    assert max(seen.errors(truth)) < EXACT
    assert seen.stopping.watch.begun
    assert seen.told == []


def test_a_hook_that_changes_the_gradient_of_a_parameter_is_told_and_replayed(tmp_path: Path) -> None:
    class Halved(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net[2][3].weight.register_hook(lambda gradient: gradient / 2)

    seen = undisturbed(Halved, tmp_path, data=in_order(), max_epochs=1, strict=False)
    seen_of = "net.2.3.weight has a use that the graph does not show: the sum check reads 4, not 1 (a hook on it may"
    assert len(seen.told) == 2
    assert all(seen_of in words for words in seen.told)
    assert any("sampled steps replay the batch one example at a time instead" in words for words in seen.told)
    assert any("gradients on the probe are off" in words for words in seen.told)
    assert len(seen.samples) == 4  # of five, the first refused
    assert seen.stopping.watch.begun


def test_a_hook_that_changes_a_slope_on_its_way_is_in_what_is_measured(tmp_path: Path) -> None:
    class Damped(Classifier):
        """The body learns at half the speed of the head."""

        def __init__(self) -> None:
            super().__init__()
            self.net[2][6].register_forward_hook(self.damp)

        def damp(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient / 2)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    seen = undisturbed(Damped, tmp_path, data=in_order(), max_epochs=1)
    module = seen.trainer.lightning_module
    parameters, (x, y) = list(module.net.parameters()), images(160)[:32]
    losses = [cross_entropy(module.net, x[i : i + 1], y[i : i + 1]) for i in range(32)]
    rows = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(one, parameters)]) for one in losses])
    assert relative_error(seen.samples[0].gram, (rows @ rows.T).double()) < EXACT
    assert seen.told == []


def test_an_optimizer_inside_the_backward_is_measured_at_the_weights_it_met(tmp_path: Path) -> None:
    class Inside(Classifier):
        """Steps each parameter as soon as its gradient is there, and lets the gradient go."""

        def __init__(self) -> None:
            super().__init__()
            for parameter in self.parameters():
                parameter.register_post_accumulate_grad_hook(self.step)

        @torch.no_grad()
        def step(self, parameter: Tensor) -> None:
            parameter.sub_(0.05 * parameter.grad)
            parameter.grad = None

        def configure_optimizers(self) -> None:
            return None

    truth = Truth()
    seen = undisturbed(Inside, tmp_path, front=lambda: [truth], data=in_order(), max_epochs=1)
    del truth.grams[:5]
    assert max(seen.errors(truth)) < EXACT
    assert seen.told == []
