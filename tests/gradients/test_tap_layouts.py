"""Where the examples lie: read rightly, or refused by name; the sum check passes on a wrong axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _models import Computing, mean_square, naive_rows, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import (
    AmbiguousLayoutError,
    GradientSample,
    GradientTap,
    UnsupportedGradientError,
    find_layout,
    per_example_gram,
)

N = 6
Model = Callable[[], tuple[nn.Module, Tensor]]


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def tapped(module: nn.Module, x: Tensor, **options: Any) -> GradientSample:
    tap = GradientTap(module.named_parameters(), len(x), projections=2, **options)
    loss = mean_square(module, x, x)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    return tap.sample


def assert_reads_the_truth(module: nn.Module, x: Tensor, **options: Any) -> None:
    module, x = module.double(), x.double() if x.is_floating_point() else x
    truth = naive_rows(module, mean_square, x, torch.zeros(len(x)))
    sample = tapped(module, x, **options)
    assert relative_error(sample.gram, truth @ truth.T) < 1e-10
    assert sample.status == "exact"


def of_frames(layer: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: m.layer(x.flatten(0, 1)).tanh().unflatten(0, (len(x), x.shape[1]))


def last_of_each(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh()[torch.arange(len(x)), 1])


READ: dict[str, Model] = {
    "a Linear on [N, T, S, d]": lambda: (nn.Linear(5, 3), torch.randn(N, 2, 4, 5)),
    "a Linear on [T, N, S, d]": lambda: (
        Computing(lambda m, x: m.layer(x.transpose(0, 1).contiguous()).tanh().transpose(0, 1), layer=nn.Linear(5, 3)),
        torch.randn(N, 2, 4, 5),
    ),
    "a Linear on [T, S, N, d]": lambda: (
        Computing(
            lambda m, x: m.layer(x.permute(1, 2, 0, 3).contiguous()).permute(2, 0, 1, 3),
            layer=nn.Linear(5, 3, bias=False),
        ),
        torch.randn(N, 2, 4, 5),
    ),
    "frames stacked before a Linear and parted after it": lambda: (
        Computing(of_frames(layer := nn.Linear(5, 3)), layer=layer),
        torch.randn(N, 2, 4, 5),
    ),
    "frames of [N*T, d]": lambda: (Computing(of_frames(layer := nn.Linear(5, 3)), layer=layer), torch.randn(N, 4, 5)),
    "a LayerNorm on stacked frames": lambda: (
        Computing(of_frames(layer := nn.LayerNorm([4, 5])), layer=layer),
        torch.randn(N, 2, 4, 5),
    ),
    "sequence-first tokens": lambda: (
        Computing(lambda m, x: m.head(m.table(x.t()).tanh().mean(0)), table=nn.Embedding(9, 5), head=nn.Linear(5, 3)),
        torch.randint(9, (N, 4)),
    ),
    "sequence-first tokens, T a multiple of N": lambda: (
        Computing(lambda m, x: m.head(m.table(x.t()).tanh().mean(0)), table=nn.Embedding(9, 5), head=nn.Linear(5, 3)),
        torch.randint(9, (N, 12)),
    ),
    "sequence-first Linear, T a multiple of N": lambda: (
        Computing(lambda m, x: m.layer(x.transpose(0, 1)).tanh().transpose(0, 1), layer=nn.Linear(5, 3)),
        torch.randn(N, 12, 5),
    ),
    "tokens on [N, T, S]": lambda: (nn.Embedding(9, 5), torch.randint(9, (N, 3, 2))),
    "tokens on [N]": lambda: (nn.Embedding(9, 5), torch.randint(9, (N,))),
    "a scalar on [T, N]": lambda: (Computing(lambda m, x: (x.t() * m.p).t().tanh(), p=p()), torch.randn(N, 4)),
    "a scalar on [N, N]": lambda: (Computing(lambda m, x: (x * m.p).tanh(), p=p()), torch.randn(N, N)),
    "a table [T, d] on [N, T, d] with T = N": lambda: (
        Computing(lambda m, x: (x + m.p).tanh(), p=p(N, 5)),
        torch.randn(N, N, 5),
    ),
    "a table [T, 1, d] on [T, N, d] with T = N": lambda: (
        Computing(lambda m, x: (x.transpose(0, 1) * m.p).transpose(0, 1).tanh(), p=p(N, 1, 5)),
        torch.randn(N, N, 5),
    ),
    "one step of each sequence picked by an index": lambda: (
        Computing(last_of_each, a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
        torch.randn(N, 4, 5),
    ),
    "one long example without an axis of its own": lambda: (
        Computing(lambda m, x: m.b(m.a(x[0]).tanh())[None], a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
        torch.randn(1, 4, 5),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_the_axis_of_the_examples_is_found_in(case: str) -> None:
    torch.manual_seed(len(case))
    assert_reads_the_truth(*READ[case]())


AMBIGUOUS: dict[str, tuple[Model, bool]] = {  # and whether the examples lead
    "a Linear on [T, N, d] with T = N": (
        lambda: (
            Computing(lambda m, x: m.layer(x.transpose(0, 1)).tanh().transpose(0, 1), layer=nn.Linear(5, 3)),
            torch.randn(N, N, 5),
        ),
        False,
    ),
    "tokens on [T, N] with T = N": (
        lambda: (
            Computing(lambda m, x: m.table(x.t()).tanh().mean(0), table=nn.Embedding(9, 5)),
            torch.randint(9, (N, N)),
        ),
        False,
    ),
    "tokens on [N, T] with T = N": (lambda: (nn.Embedding(9, 5), torch.randint(9, (N, N))), True),
    "frames on [N*T, L, d] with L = N": (
        lambda: (
            Computing(of_frames(layer := nn.Linear(5, 3)), layer=layer),
            torch.randn(N, 2, N, 5),
        ),
        True,
    ),
    "LayerNorm on [N*T, L, d] with L = N": (
        lambda: (Computing(of_frames(layer := nn.LayerNorm(5)), layer=layer), torch.randn(N, 2, N, 5)),
        True,
    ),
    "two views of each example, one batch after the other": (
        lambda: (
            Computing(
                lambda m, x: torch.stack(m.layer(torch.cat([x[:, :5], x[:, 5:]])).tanh().chunk(2), 1).mean(1),
                layer=nn.Linear(5, 3),
            ),
            torch.randn(N, 10),
        ),
        False,
    ),
    "[T, S, N, d] with T = N": (
        lambda: (
            Computing(lambda m, x: m.layer(x.permute(1, 2, 0, 3)).permute(2, 0, 1, 3), layer=nn.Linear(5, 3)),
            torch.randn(N, N, 4, 5),
        ),
        False,
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_where_shapes_cannot_tell_the_tap_asks_and_an_answer_helps(case: str) -> None:
    torch.manual_seed(len(case))
    make, examples_lead = AMBIGUOUS[case]
    module, x = make()
    with pytest.raises(AmbiguousLayoutError, match="ambiguous: use a batch of another size"):
        tapped(module, x)
    # Name by name, since several of these swap their first two axes.
    answers = {name: examples_lead for name, _ in module.named_parameters()}
    assert_reads_the_truth(module, x, batch_first=answers)


def permuted(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh()[torch.tensor([3, 1, 0, 5, 2, 4])])


def some_tokens(m: Any, x: Tensor) -> Tensor:
    chosen = torch.zeros(N, 4, dtype=torch.bool)
    chosen[0], chosen[4:, 0] = True, True  # as many as there are examples, as happens to a masked language model
    return m.b(m.a(x).tanh()[chosen])


REFUSED: dict[str, tuple[Model, str]] = {
    "a weight scaled from a constant": (
        lambda: (Computing(lambda m, x: F.linear(x, m.c * m.p), c=torch.randn(N, 5), p=p(5)), torch.randn(N, 5)),
        r"MulBackward0 of p \(its output serves as a weight of MmBackward0",
    ),
    "a row repeated into a weight": (
        lambda: (Computing(lambda m, x: F.linear(x, m.p.expand(N, 5)), p=p(5)), torch.randn(N, 5)),
        r"ExpandBackward0 of p \(its output serves as a weight of MmBackward0",
    ),
    "a kernel scaled from a constant": (
        lambda: (
            Computing(lambda m, x: F.conv1d(x, m.c * m.p), c=torch.randn(N, 3, 2), p=p(2)),
            torch.randn(N, 3, 7),
        ),
        r"MulBackward0 of p \(its output serves as a weight of ConvolutionBackward0",
    ),
    "an embedding of all classes as a weight": (
        lambda: (
            Computing(lambda m, x: F.linear(x, m.table(torch.arange(N))), table=nn.Embedding(N, 5)),
            torch.randn(N, 5),
        ),
        r"EmbeddingBackward0 of table.weight \(its output serves as a weight",
    ),
    "positions through dropout": (
        lambda: (
            Computing(lambda m, x: x + m.table(torch.arange(N)) * m.c, table=nn.Embedding(N, 5), c=torch.rand(N, 5)),
            torch.randn(N, N, 5),
        ),
        "shared by all examples: AddBackward0 broadcasts it",
    ),
    "positions through a Linear": (
        lambda: (Computing(lambda m, x: x + m.a(m.c), c=torch.randn(N, 4), a=nn.Linear(4, 5)), torch.randn(N, N, 5)),
        "shared by all examples: AddBackward0 broadcasts it",
    ),
    "positions [1, T, d] through an MLP": (
        lambda: (
            Computing(
                lambda m, x: x * m.a(m.c),
                c=torch.randn(1, N, 4),
                a=nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 5)),
            ),
            torch.randn(N, N, 5),
        ),
        "shared by all examples: MulBackward0 broadcasts it",
    ),
    "a fixed table and a shift": (
        lambda: (Computing(lambda m, x: x + (m.c + m.p), c=torch.randn(1, N, 5), p=p(5)), torch.randn(N, N, 5)),
        "shared by all examples: AddBackward0 broadcasts it",
    ),
    "a scalar repeated for each class": (
        lambda: (Computing(lambda m, x: x * m.p.expand(N), p=p(1)), torch.randn(N, N)),
        "shared by all examples: MulBackward0 broadcasts it",
    ),
    "a batch in another order": (
        lambda: (Computing(permuted, a=nn.Linear(5, 4), b=nn.Linear(4, 3)), torch.randn(N, 5)),
        r"of b\.bias \(IndexBackward0 picks or reorders rows",
    ),
    "a batch rolled": (
        lambda: (
            Computing(lambda m, x: m.b(m.a(x).tanh().roll(1, 0)), a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
            torch.randn(N, 5),
        ),
        r"of b\.bias \(RollBackward0 picks or reorders rows",
    ),
    "a batch cut and put together": (
        lambda: (
            Computing(lambda m, x: m.b(torch.cat([m.a(x)[3:], m.a(x)[:3]])), a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
            torch.randn(N, 5),
        ),
        r"of b\.bias \(CatBackward0 picks or reorders rows",
    ),
    "as many masked tokens as examples": (
        lambda: (Computing(some_tokens, a=nn.Linear(5, 4), b=nn.Linear(4, 3)), torch.randn(N, 4, 5)),
        r"of b\.bias \(IndexBackward0 picks or reorders rows",
    ),
    "frames before a convolution": (
        lambda: (
            Computing(of_frames(layer := nn.Conv2d(1, 2, 3)), layer=layer),
            torch.randn(N, 2, 1, 5, 5),
        ),
        r"ConvolutionBackward0 of layer.weight|the first axis of \(12, 2, 3, 3\) is not the batch size 6",
    ),
    "a norm over the whole batch": (
        lambda: (Computing(lambda m, x: F.layer_norm(x, x.shape, m.p), p=p(N, 5)), torch.randn(N, 5)),
        r"spans every axis of \(6, 5\)",
    ),
    "a weight's size as a scale": (
        lambda: (Computing(lambda m, x: m.a(x) * m.a.weight.abs().mean(), a=nn.Linear(5, 3)), torch.randn(N, 5)),
        r"AbsBackward0 of a\.weight \(no rule reads this node",
    ),
    "a shift repeated along the outputs": (
        lambda: (Computing(lambda m, x: torch.addmm(m.p, x, m.w), p=p(1), w=p(5, 3)), torch.randn(N, 5)),
        "AddmmBackward0 of p",
    ),
    "complex parameters": (
        lambda: (
            Computing(lambda m, x: (x * m.p).abs(), p=nn.Parameter(torch.randn(5, dtype=torch.complex64))),
            torch.randn(N, 5),
        ),
        "p is complex",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_looks_like_an_axis_of_examples_is_refused(case: str) -> None:
    torch.manual_seed(len(case))
    make, message = REFUSED[case]
    module, x = make()
    with pytest.raises(UnsupportedGradientError, match=message):
        tapped(module, x, batch_first=True)
    mean_square(module, x, x).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_products_that_compare_examples_give_contributions_and_say_so() -> None:
    torch.manual_seed(0)
    image, text, x = nn.Linear(5, 4), nn.Linear(3, 4), torch.randn(N, 8)
    logits = image(x[:, :5]) @ F.normalize(text(x[:, 5:]), dim=1).T
    loss = F.cross_entropy(logits, torch.arange(N))
    tap = GradientTap([*image.named_parameters("image"), *text.named_parameters("text")], N)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert tap.sample.status == "contribution"
    assert any("a matrix product compares the examples" in note for note in tap.sample.notes)


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_that_couples_examples_is_seen_when_it_has_nothing_to_train(affine: bool) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=affine), nn.Tanh())
    module[1].requires_grad_(False)
    assert tapped(module, torch.randn(N, 5)).status == "contribution"
    module.eval()
    assert tapped(module, torch.randn(N, 5)).status == "exact"


def test_batchnorm_without_running_statistics_couples_examples_in_eval_mode_too() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()).eval()
    assert tapped(module, torch.randn(N, 5)).status == "contribution"
    assert (
        tapped(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None)).eval(), torch.randn(N, 5)).status
        == "exact"
    )


def test_a_loss_of_another_model_is_refused() -> None:
    loss = nn.Linear(5, 2)(torch.randn(N, 5)).mean()
    with pytest.raises(UnsupportedGradientError, match="the loss reaches none of the parameters"):
        GradientTap(nn.Linear(2, 2).named_parameters(), N).attach(loss)


def encoder_and_data() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    return layer, torch.randn(6, 6, 8).double(), torch.randn(6, 6, 8).double()


def test_one_answer_for_all_is_refused_where_attention_turns_time_first_and_find_layout_answers() -> None:
    layer, x, y = encoder_and_data()

    def loss_of(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (module(x) - y).pow(2).mean()

    for answer in (True, False):
        with pytest.raises(AmbiguousLayoutError, match="find_layout"):
            per_example_gram(layer, loss_of(layer, x, y), batch_size=6, batch_first=answer)
    layout = find_layout(dict(layer.named_parameters()), lambda i, j: loss_of(layer, x[i:j], y[i:j]), 6)
    truth = naive_rows(layer, loss_of, x, y)
    gram = per_example_gram(layer, loss_of(layer, x, y), batch_size=6, batch_first=layout)
    assert relative_error(gram, truth @ truth.T) < 1e-10


def test_a_batch_size_is_not_read_off_a_loss_in_which_time_leads() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(9, 4), nn.Linear(4, 9)
    ids = torch.randint(9, (10, 7))
    scores = head(table(ids).transpose(0, 1))  # [T, N, C]
    loss = nn.functional.cross_entropy(scores.reshape(-1, 9), ids.T.reshape(-1))
    both = nn.ModuleList([table, head])
    with pytest.raises(ValueError, match=r"candidates \[7, 10\]"):
        per_example_gram(both, loss)
    assert per_example_gram(both, loss, batch_size=10).shape == (10, 10)


def test_a_penalty_does_not_hide_the_batch_size() -> None:
    net, x = nn.Linear(5, 3), torch.randn(8, 5)
    loss = net(x).square().mean() + 0.1 * net.weight.square().sum()
    assert per_example_gram(net, loss).shape == (8, 8)
