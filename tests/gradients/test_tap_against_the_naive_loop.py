"""The tap reads, from one backward, what a loop over examples computes in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from _models import BagOfWords, Block, Convnet, Mlp, TinyGpt, Vit, cross_entropy, naive_rows, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import GradientTap, per_example_gradients, per_example_gram, per_example_norms
from lightning_cx.gradients.projections import spread

Case = tuple[nn.Module, Tensor, Tensor, Callable[..., Tensor]]


def next_token(module: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(module(ids).flatten(0, 1), targets.flatten())


def squared_error(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (module(x) - y).pow(2).flatten(1).mean(1).mean()


class FirstAxisIsTime(nn.Module):
    """Works on [T, N, d] inside, as recurrent code does; the caller sees [N, T, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.shift = nn.Linear(16, 16), nn.LayerNorm(16), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        z = x.transpose(0, 1).contiguous()
        return (self.norm(self.inner(z).tanh()) - self.shift).transpose(0, 1)


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(20, 20), nn.Parameter(torch.rand(20))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.layer(torch.tanh(self.layer(x) * self.scale)) * self.scale + x @ self.layer.weight


class CrossAttention(nn.Module):
    """Queries from one place, keys and values from another: the packed projection is split in three."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        q = self.queries.unsqueeze(0).expand(len(x), -1, -1)
        return self.attention(q, x, x)[0].mean(1)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: (Mlp(), torch.randn(13, 20), torch.randint(5, (13,)), cross_entropy),
    "convnet with GroupNorm": lambda: (Convnet(), torch.randn(9, 1, 10, 10), torch.randint(5, (9,)), cross_entropy),
    "large images": lambda: (Convnet(), torch.randn(5, 1, 33, 31), torch.randint(5, (5,)), cross_entropy),
    "transformer block": lambda: (Block(), torch.randn(6, 7, 16), torch.randn(6, 7, 16), squared_error),
    "long sequences": lambda: (Block(), torch.randn(4, 65, 16), torch.randn(4, 65, 16), squared_error),
    "encoder layer, batch first": lambda: (Vit(), torch.randn(6, 1, 12, 12), torch.randint(5, (6,)), cross_entropy),
    "encoder layer, time first": lambda: (
        Vit(batch_first=False),
        torch.randn(6, 1, 12, 12),
        torch.randint(5, (6,)),
        cross_entropy,
    ),
    "tied language model": lambda: (TinyGpt(), torch.randint(11, (5, 8)), torch.randint(11, (5, 8)), next_token),
    "untied language model": lambda: (
        TinyGpt(tied=False),
        torch.randint(11, (5, 8)),
        torch.randint(11, (5, 8)),
        next_token,
    ),
    "bag of words": lambda: (BagOfWords(), torch.randint(30, (9, 6)), torch.randint(5, (9,)), cross_entropy),
    "bag of many words": lambda: (BagOfWords(), torch.randint(30, (3, 300)), torch.randint(5, (3,)), cross_entropy),
    "time first inside": lambda: (FirstAxisIsTime(), torch.randn(6, 7, 16), torch.randn(6, 7, 16), squared_error),
    "layer used twice": lambda: (UsedTwice(), torch.randn(8, 20), torch.randn(8, 20), squared_error),
    "cross attention": lambda: (CrossAttention(), torch.randn(6, 7, 16), torch.randn(6, 16), squared_error),
    "Conv1d": lambda: (
        nn.Sequential(nn.Conv1d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv1d(4, 5, 2, dilation=2), nn.Flatten()),
        torch.randn(6, 3, 15),
        torch.randn(6, 30),
        squared_error,
    ),
    "depthwise Conv2d": lambda: (
        nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Conv2d(8, 6, (1, 3), groups=2, dilation=(1, 2))),
        torch.randn(6, 4, 9, 9),
        torch.randn(6, 6, 7, 3),
        squared_error,
    ),
    "BatchNorm in eval mode": lambda: (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6)).eval(),
        torch.randn(7, 1, 6, 6),
        torch.randn(7, 6),
        squared_error,
    ),
    "LayerNorm over two axes": lambda: (
        nn.LayerNorm([3, 4]),
        torch.randn(6, 5, 3, 4),
        torch.randn(6, 5, 3, 4),
        squared_error,
    ),
    "RMSNorm": lambda: (nn.RMSNorm(8), torch.randn(6, 5, 8), torch.randn(6, 5, 8), squared_error),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(len(request.param))
    return CASES[request.param]()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_gram_and_norms_equal_those_of_the_naive_loop(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    module, x, y, loss_of = case
    truth = naive_rows(module, loss_of, x, y)
    module = module.to(dtype)
    x, y = (t.to(dtype) if t.is_floating_point() else t for t in (x, y))
    tap = GradientTap(module.named_parameters(), len(x))
    loss = loss_of(module, x, y)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert tap.sample.gram is not None
    assert tap.sample.gram.dtype == torch.float64
    assert relative_error(tap.sample.gram, truth @ truth.T) < tolerance
    assert relative_error(tap.sample.squared_norms, truth.square().sum(1)) < tolerance
    assert tap.sample.status == "exact"
    assert tap.sample.coverage == pytest.approx(1, abs=1e-3)
    only_norms = per_example_norms(module, loss_of(module, x, y), batch_size=len(x))
    assert relative_error(only_norms, truth.norm(dim=1)) < tolerance


def test_the_gradients_themselves_are_those_of_the_naive_loop(case: Case) -> None:
    module, x, y, loss_of = case
    truth = naive_rows(module, loss_of, x, y)
    gradients = per_example_gradients(module, loss_of(module, x, y), batch_size=len(x))
    assert list(gradients) == [name for name, _ in module.named_parameters()]
    assert all(gradients[name].shape == (len(x), *p.shape) for name, p in module.named_parameters())
    rows = torch.cat([gradient.reshape(len(x), -1) for gradient in gradients.values()], 1)
    assert rows.dtype == torch.float32
    assert relative_error(rows, truth) < 1e-5


def test_gradients_of_what_is_not_used_are_zero() -> None:
    module = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(2, 2)}).double()
    module["used"].bias.requires_grad_(False)
    gradients = per_example_gradients(module, module["used"](torch.randn(4, 3).double()).square().sum(1))
    assert list(gradients) == ["used.weight", "idle.weight", "idle.bias"]
    assert torch.equal(gradients["idle.weight"], torch.zeros(4, 2, 2, dtype=torch.float64))
    assert gradients["used.weight"].abs().sum() > 0


@pytest.mark.parametrize("max_buffer_bytes", [1, 3000])
def test_small_work_buffers_change_no_result(case: Case, max_buffer_bytes: int) -> None:
    module, x, y, loss_of = case
    module, x, y = module.double(), *(t.double() if t.is_floating_point() else t for t in (x, y))
    samples = []
    for limit in (16 << 20, max_buffer_bytes):
        for gram in (True, False):
            tap = GradientTap(module.named_parameters(), len(x), gram=gram, projections=3, max_buffer_bytes=limit)
            loss = loss_of(module, x, y)
            with tap(loss):
                loss.backward()
            samples.append(tap.sample)
    large, norms, small, small_norms = samples
    assert large is not None
    assert norms is not None
    assert small is not None
    assert small_norms is not None
    torch.testing.assert_close(small.gram, large.gram, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(small_norms.squared_norms, norms.squared_norms, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(small.projections, large.projections, rtol=1e-9, atol=1e-11)


def test_projections_are_inner_products_with_the_same_directions_every_time(case: Case) -> None:
    module, x, y, loss_of = case
    module = module.double()
    x, y = (t.double() if t.is_floating_point() else t for t in (x, y))

    def project(some: slice) -> Tensor:
        tap = GradientTap(module.named_parameters(), len(x[some]), gram=False, norms=False, projections=7, seed=3)
        loss = loss_of(module, x[some], y[some])
        with tap(loss):
            loss.backward()
        assert tap.sample is not None
        assert tap.sample.projections is not None
        return tap.sample.projections

    whole, part = project(slice(None)), project(slice(0, 2))
    assert whole.shape == (len(x), 7)
    torch.testing.assert_close(whole[:2], part, rtol=1e-9, atol=1e-12)  # a direction depends on no batch
    # Linear in the gradient: the batch of all has the mean of the projections of its parts.
    torch.testing.assert_close(part.mean(0), torch.stack([project(slice(0, 1)), project(slice(1, 2))]).mean(0)[0])


def test_coordinates_are_fixed_entries_of_every_gradient(case: Case) -> None:
    module, x, y, loss_of = case
    module = module.double()
    x, y = (t.double() if t.is_floating_point() else t for t in (x, y))
    truth = naive_rows(module, loss_of, x, y)

    def coordinates(some: slice) -> Tensor:
        tap = GradientTap(module.named_parameters(), len(x[some]), gram=False, norms=False, coordinates=60, seed=3)
        loss = loss_of(module, x[some], y[some])
        with tap(loss):
            loss.backward()
        assert tap.sample is not None
        assert tap.sample.coordinates is not None
        return tap.sample.coordinates

    whole = coordinates(slice(None))
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    chosen = spread(parameters, 60, seed=3)
    offset, columns = 0, []
    for name, parameter in parameters.items():
        rows = truth[:, offset : offset + parameter.numel()]
        columns.append(chosen[name].of_rows(rows))
        offset += parameter.numel()
    assert whole.shape[1] == sum(entries.count for entries in chosen.values())
    assert relative_error(whole, torch.cat(columns, 1)) < 1e-9
    torch.testing.assert_close(coordinates(slice(0, 2)), whole[:2], rtol=1e-9, atol=1e-12)


def test_no_coordinate_is_chosen_twice_and_small_parameters_give_one() -> None:
    parameters = {
        "large": torch.zeros(50, 40),
        "bias": torch.zeros(50),
        "scalar": torch.zeros(()),
        "none": torch.zeros(0),
    }
    chosen = spread(parameters, 500, seed=0)
    assert {name: entries.count for name, entries in chosen.items()} == {"large": 488, "bias": 12, "scalar": 1}
    index = torch.arange(2000.0).view(1, 50, 40)
    assert len(chosen["large"].of_rows(index).unique()) == 488
    assert chosen["large"].stop - chosen["large"].start == 13  # 13 rows of 40 hold 488 entries
    again, other = spread(parameters, 500, seed=0), spread(parameters, 500, seed=1)
    assert torch.equal(again["large"].positions, chosen["large"].positions)
    assert not torch.equal(other["large"].positions, chosen["large"].positions)


def test_projections_of_the_layers_add_up_to_the_whole(case: Case) -> None:
    module, x, y, loss_of = case
    tap = GradientTap(module.named_parameters(), len(x), projections=5, per_layer=True)
    loss = loss_of(module, x, y)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert tap.sample.projections is not None
    parts = [layer.projections for layer in tap.sample.layers.values()]
    assert all(part is not None and part.shape == (len(x), 5) for part in parts)
    torch.testing.assert_close(sum(parts), tap.sample.projections)


def test_projections_keep_squared_norms_on_average() -> None:
    torch.manual_seed(0)
    module, x, y = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 3)), torch.randn(6, 40), torch.randn(6, 3)
    truth = naive_rows(module, squared_error, x, y)
    total = torch.zeros(6, 6, dtype=torch.float64)
    for seed in range(40):
        tap = GradientTap(module.named_parameters(), 6, gram=False, norms=False, projections=16, seed=seed)
        loss = squared_error(module, x, y)
        with tap(loss):
            loss.backward()
        assert tap.sample is not None
        assert tap.sample.projections is not None
        total += tap.sample.projections @ tap.sample.projections.T / (16 * 40)
    assert relative_error(total, truth @ truth.T) < 0.1  # 640 directions: 1/sqrt(640) = .04


def test_one_call_reads_the_batch_size_off_the_loss_and_leaves_the_graph_usable(case: Case) -> None:
    module, x, y, loss_of = case
    truth = naive_rows(module, loss_of, x, y)
    loss = loss_of(module, x, y)
    gram = per_example_gram(module, loss)
    assert relative_error(gram, truth @ truth.T) < 1e-5
    assert all(p.grad is None for p in module.parameters())
    loss.backward()
    assert any(p.grad is not None for p in module.parameters())


def test_gram_follows_a_permutation_of_the_examples(case: Case) -> None:
    module, x, y, loss_of = case
    order = torch.randperm(len(x))
    gram = per_example_gram(module, loss_of(module, x, y))
    permuted = per_example_gram(module, loss_of(module, x[order], y[order]))
    torch.testing.assert_close(permuted, gram[order][:, order], rtol=1e-3, atol=1e-5 * gram.abs().max().item())


def test_per_layer_blocks_add_up_to_the_whole(case: Case) -> None:
    module, x, y, loss_of = case
    tap = GradientTap(module.named_parameters(), len(x), per_layer=True)
    loss = loss_of(module, x, y)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert set(tap.sample.layers) == {name for name, _ in module.named_parameters()}
    grams = [layer.gram for layer in tap.sample.layers.values() if layer.gram is not None]
    torch.testing.assert_close(torch.stack(grams).sum(0), tap.sample.gram)


@pytest.mark.parametrize("scale", [1.0, 0.25, 4096.0, "sum"])
def test_the_scale_of_the_loss_is_divided_out(scale: float | str) -> None:
    torch.manual_seed(1)
    module, x, y = Mlp(), torch.randn(6, 20), torch.randint(5, (6,))
    truth = naive_rows(module, cross_entropy, x, y)
    factor = 6.0 if scale == "sum" else float(scale)
    tap = GradientTap(module.named_parameters(), 6, loss_scale=factor)
    loss = cross_entropy(module, x, y) * factor
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, truth @ truth.T) < 1e-5


def test_bfloat16_autocast_agrees_with_float32_to_its_precision() -> None:
    torch.manual_seed(0)
    module, x, y = Mlp(), torch.randn(12, 20), torch.randint(5, (12,))
    truth = naive_rows(module, cross_entropy, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(module, x, y)
        gram = per_example_gram(module, loss)  # a contraction must not be rounded because the caller autocasts
    assert relative_error(gram, truth @ truth.T) < 0.03


def test_sparse_embedding_gradients_are_read_too() -> None:
    torch.manual_seed(0)
    module = BagOfWords(padding_idx=None)
    module.table.sparse = True
    x, y = torch.randint(30, (6, 4)), torch.randint(5, (6,))
    truth = naive_rows(module, cross_entropy, x, y)
    tap = GradientTap(module.named_parameters(), 6)
    loss = cross_entropy(module, x, y)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, truth @ truth.T) < 1e-5


def test_batchnorm_in_training_mode_gives_contributions_that_add_up_to_the_batch_gradient() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
    x, y = torch.randn(8, 1, 6, 6), torch.randint(5, (8,))
    tap = GradientTap(module.named_parameters(), 8)
    loss = cross_entropy(module, x, y)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert tap.sample.status == "contribution"
    assert any("BatchNorm" in note for note in tap.sample.notes)
    assert tap.sample.coverage == pytest.approx(1, abs=1e-4)


def test_the_backward_is_bitwise_the_same_with_a_tap() -> None:
    torch.manual_seed(0)
    module, x, y = Vit(), torch.randn(6, 1, 12, 12), torch.randint(5, (6,))
    twin = copy.deepcopy(module)
    cross_entropy(twin, x, y).backward()
    state = torch.get_rng_state()
    loss = cross_entropy(module, x, y)
    with GradientTap(module.named_parameters(), 6, projections=16)(loss):
        loss.backward()
    assert torch.equal(state, torch.get_rng_state())
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("how", ["class weights", "an ignored example"])
def test_a_cross_entropy_that_does_not_divide_by_the_number_of_examples_gives_contributions(how: str) -> None:
    torch.manual_seed(0)
    module, x, y = Mlp(), torch.randn(8, 20), torch.randint(5, (8,))
    if how == "class weights":
        loss = F.cross_entropy(module(x), y, weight=torch.tensor([1.0, 2, 3, 4, 5]))
    else:
        loss = F.cross_entropy(module(x), y.index_fill(0, torch.tensor([3]), -100))
    tap = GradientTap(module.named_parameters(), 8)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert tap.sample.status == "contribution"
    assert any("examples count unequally" in note for note in tap.sample.notes)
