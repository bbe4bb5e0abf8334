"""What the tap cannot read it refuses by name, before anything is changed; and it never breaks a backward."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch
from _models import BagOfWords, Mlp, TinyGpt, Unread, cross_entropy, naive_rows, relative_error
from _rule_checks import replace_rule, scaled_rule
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_cx.gradients import (
    GradientTap,
    UnsupportedGradientError,
    per_example_gram,
    per_example_norms,
)
from lightning_cx.gradients.graph.nodes import Capture, Site


def test_an_unknown_node_is_named_with_its_parameter() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Unread())
    loss = module(torch.randn(5, 4)).mean()
    with pytest.raises(UnsupportedGradientError, match=r"UnreadFunctionBackward of 1\.weight"):
        GradientTap(module.named_parameters(), 5).attach(loss)
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_batch_size_that_no_axis_has_is_named() -> None:
    module = Mlp()
    loss = module(torch.randn(6, 20)).mean()
    with pytest.raises(UnsupportedGradientError, match=r"known to hold the 5 examples|holds the 5 examples"):
        GradientTap(module.named_parameters(), 5).attach(loss)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_refused_and_training_goes_on(reentrant: bool) -> None:
    class Checkpointed(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self[1](x)
            return self[5](checkpoint(lambda z: self[4](self[3](self[2](z))), x, use_reentrant=reentrant))

    module = Checkpointed()
    loss = cross_entropy(module, torch.randn(6, 20), torch.randint(5, (6,)))
    with pytest.raises(UnsupportedGradientError, match=r"[Cc]heckpoint"):
        GradientTap(module.named_parameters(), 6).attach(loss)
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())


def test_scale_grad_by_freq_is_refused() -> None:
    module = BagOfWords()
    module.table.scale_grad_by_freq = True
    loss = cross_entropy(module, torch.randint(30, (6, 4)), torch.randint(5, (6,)))
    with pytest.raises(UnsupportedGradientError, match="counts over the whole batch"):
        GradientTap(module.named_parameters(), 6).attach(loss)


def test_a_penalty_on_parameters_is_named_and_left_out() -> None:
    torch.manual_seed(0)
    module, x, y = Mlp(), torch.randn(6, 20), torch.randint(5, (6,))
    penalty = 0.1 * module[1].weight.pow(2).sum() + 0.1 * torch.linalg.vector_norm(module[3].weight)
    loss = cross_entropy(module, x, y) + penalty
    tap = GradientTap(module.named_parameters(), 6)
    with tap(loss):
        loss.backward()
    truth = naive_rows(module, cross_entropy, x, y)
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, truth @ truth.T) < 1e-5
    assert "penalty on parameters alone, left out: 1.weight, 3.weight" in tap.sample.notes


def test_unused_and_frozen_parameters_are_named_or_skipped() -> None:
    module = Mlp()
    module.extra = nn.Linear(3, 3)
    module[1].weight.requires_grad_(False)
    x, y = torch.randn(6, 20), torch.randint(5, (6,))
    tap = GradientTap(module.named_parameters(), 6)
    loss = F.cross_entropy(nn.Sequential(*list(module)[:-1])(x), y)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert "not used by this loss: extra.weight, extra.bias" in tap.sample.notes
    assert "1.weight" not in tap.sample.layers


def test_a_failing_rule_leaves_the_backward_alone_and_says_so_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(site: Site) -> Capture:
        def capture(gradient: torch.Tensor) -> NoReturn:
            raise ZeroDivisionError("on purpose")

        return capture

    replace_rule(monkeypatch, "AddmmBackward0", explode)
    module = Mlp()
    loss = cross_entropy(module, torch.randn(6, 20), torch.randint(5, (6,)))
    tap = GradientTap(module.named_parameters(), 6)
    tap.attach(loss)
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    with pytest.raises(UnsupportedGradientError, match=r"5\.weight and 5\.bias failed with ZeroDivisionError: on"):
        tap.finish()
    assert tap.sample is None


def test_a_backward_that_misses_a_parameter_is_noticed() -> None:
    module = Mlp()
    loss = cross_entropy(module, torch.randn(6, 20), torch.randint(5, (6,)))
    tap = GradientTap(module.named_parameters(), 6)
    tap.attach(loss)
    loss.backward(inputs=[module[5].weight])
    with pytest.raises(UnsupportedGradientError, match=r"never reached .*1\.weight"):
        tap.finish()


def test_two_backwards_under_one_attachment_are_noticed() -> None:
    module = Mlp()
    loss = cross_entropy(module, torch.randn(6, 20), torch.randint(5, (6,)))
    tap = GradientTap(module.named_parameters(), 6)
    with pytest.raises(UnsupportedGradientError, match="second time"), tap(loss):
        loss.backward(retain_graph=True)
        loss.backward()


def test_the_sum_check_catches_a_rule_that_misses_part_of_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled_rule(monkeypatch, "AddmmBackward0", 0.5)
    module = Mlp()
    loss = cross_entropy(module, torch.randn(6, 20), torch.randint(5, (6,)))
    with pytest.raises(UnsupportedGradientError, match=r"sum check reads 0\.25"):
        per_example_gram(module, loss)


def test_hooks_are_gone_after_finish_and_after_an_exception_in_the_block() -> None:
    module = Mlp()
    x, y = torch.randn(6, 20), torch.randint(5, (6,))
    tap = GradientTap(module.named_parameters(), 6)
    loss = cross_entropy(module, x, y)
    with pytest.raises(KeyboardInterrupt), tap(loss):
        raise KeyboardInterrupt
    assert not tap._handles
    loss.backward()
    assert tap.sample is None
    loss = cross_entropy(module, x, y)
    with tap(loss):
        loss.backward()
    assert not tap._handles


def test_degenerate_batches_one_example_and_nan() -> None:
    torch.manual_seed(0)
    module = Mlp()
    one = per_example_gram(module, cross_entropy(module, torch.randn(1, 20), torch.tensor([2])))
    assert one.shape == (1, 1)
    assert one.item() > 0
    x = torch.randn(4, 20)
    x[2, 3] = float("nan")
    gram = per_example_gram(module, cross_entropy(module, x, torch.randint(5, (4,))))
    assert gram[2].isnan().all()
    zero = per_example_norms(module, module(torch.randn(3, 20)).sum(1).mean() * 0)
    assert torch.equal(zero, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"named_parameters": []}, "no trainable parameter"),
        ({"batch_size": 0}, "at least one example, got batch_size=0"),
        ({"gram": False, "norms": False}, "asked for nothing"),
        ({"loss_scale": 0.0}, "must be positive, got 0.0"),
        ({"max_buffer_bytes": 0}, "max_buffer_bytes must be positive, got 0"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientTap(**{"named_parameters": Mlp().named_parameters(), "batch_size": 3, **arguments})


def test_a_loss_without_a_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="no autograd graph"):
        GradientTap(Mlp().named_parameters(), 3).attach(torch.tensor(1.0))


def test_a_batch_size_that_cannot_be_read_off_the_loss_asks_for_it() -> None:
    module = Mlp()
    loss = module(torch.randn(6, 20)).mean() + module(torch.randn(7, 20)).mean()
    with pytest.raises(ValueError, match=r"candidates \[6, 7\]"):
        per_example_gram(module, loss)


def test_printing_a_sample_tells_what_it_holds() -> None:
    torch.manual_seed(0)
    module = TinyGpt()
    ids = torch.randint(11, (5, 8))
    tap = GradientTap(module.named_parameters(), 5)
    loss = F.cross_entropy(module(ids).flatten(0, 1), ids.flatten())
    with tap(loss):
        loss.backward()
    text = str(tap.sample)
    assert "5 examples over" in text
    assert "sum check 1.0000" in text
