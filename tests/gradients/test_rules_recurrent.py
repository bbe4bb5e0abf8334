"""Recurrent layers of every kind, fused and spelled out, against the loop over examples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from _models import Computing, naive_rows, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_cx.gradients import GradientSample, GradientTap
from lightning_cx.gradients.projections import Directions
from lightning_cx.gradients.rules import recurrent

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
few = settings(max_examples=25, deadline=None, derandomize=True)

INPUTS, HIDDEN = 3, 4
READS = ("all outputs", "last output", "last state", "everything")


class Reader(nn.Module):
    """A recurrent layer on examples first, [N, T, inputs], and what a head makes of it."""

    def __init__(self, layer: nn.RNNBase, reads: str = "all outputs", start: str = "zero", head: bool = True) -> None:
        super().__init__()
        self.layer, self.reads, self.start = layer, reads, start
        ways = 2 if layer.bidirectional else 1
        width = layer.proj_size or layer.hidden_size
        self.head = nn.LazyLinear(2) if head else nn.Identity()
        self.sizes = [(layer.num_layers * ways, 1, width)]
        if isinstance(layer, nn.LSTM):
            self.sizes.append((layer.num_layers * ways, 1, layer.hidden_size))
        if start == "learned":
            self.states = nn.ParameterList([nn.Parameter(torch.randn(size)) for size in self.sizes])

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        started = self._initial(x)
        out, last = self.layer(x if self.layer.batch_first else x.transpose(0, 1), started)
        out = out if self.layer.batch_first else out.transpose(0, 1)
        ends = [end.transpose(0, 1).reshape(n, -1) for end in (last if isinstance(last, tuple) else (last,))]
        if self.reads == "all outputs":
            return self.head(out)
        if self.reads == "last output":
            return self.head(out[:, -1])
        if self.reads == "last state":
            return self.head(ends[-1])
        return self.head(torch.cat([out.flatten(1), *ends], 1))

    def _initial(self, x: Tensor) -> Any:
        if self.start == "zero":
            return None
        if self.start == "learned":
            states = [state.expand(-1, len(x), -1) for state in self.states]
        else:  # of the example
            states = [x.mean((1, 2)).view(1, -1, 1).expand(size[0], -1, size[2]) for size in self.sizes]
        return tuple(states) if len(states) > 1 else states[0]


def cubes(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Neither even nor linear, so that no gradient vanishes by symmetry."""
    out = module(x).flatten(1)
    return (out.pow(3) + out).mean(1).mean()


def tapped(module: nn.Module, x: Tensor, **options: Any) -> GradientSample:
    tap = GradientTap(module.named_parameters(), len(x), **options)
    loss = cubes(module, x, x)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    return tap.sample


def assert_tap_equals_loop(module: nn.Module, x: Tensor, **options: Any) -> None:
    """Gram matrix, norms, projections and layers in double and in single precision; the backward is left alone."""
    module(x)  # lazy layers
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        module, x = module.to(dtype), x.to(dtype)
        rows = naive_rows(module, cubes, x, torch.zeros(len(x)))
        module.zero_grad()
        cubes(module, x, x).backward()
        alone = [p.grad for p in module.parameters()]
        module.zero_grad()
        sample = tapped(module, x, projections=3, per_layer=True, **options)
        for p, gradient in zip(module.parameters(), alone, strict=True):
            assert (p.grad is None) == (gradient is None)
            assert p.grad is None or torch.equal(p.grad, gradient)
        norms = tapped(module, x, gram=False, **options)
        assert sample.gram is not None
        assert relative_error(sample.gram, rows @ rows.T) < tolerance
        assert relative_error(norms.squared_norms, rows.square().sum(1)) < tolerance
        projected = torch.zeros(len(x), 3, dtype=torch.float64)
        pieces = rows.split([p.numel() for p in module.parameters()], 1)
        for (name, p), piece in zip(module.named_parameters(), pieces, strict=True):
            double = p.double()
            directions = Directions.draw(name, tuple(p.shape), 3, 0, double)
            projected += directions.of_rows(piece.reshape(len(x), *p.shape))
            if name in sample.layers and piece.norm() > 1e-6 * rows.norm():
                assert relative_error(sample.layers[name].gram, piece @ piece.T) < tolerance, name
        assert float((sample.projections - projected).norm() / projected.norm()) < tolerance


KINDS: dict[str, Any] = {
    "LSTM": lambda **options: nn.LSTM(INPUTS, HIDDEN, **options),
    "LSTM with projections": lambda **options: nn.LSTM(INPUTS, HIDDEN, proj_size=2, **options),
    "GRU": lambda **options: nn.GRU(INPUTS, HIDDEN, **options),
    "RNN of tanh": lambda **options: nn.RNN(INPUTS, HIDDEN, **options),
    "RNN of relu": lambda **options: nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", **options),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "both ways": {"bidirectional": True},
    "without bias": {"bias": False},
    "three layers": {"num_layers": 3, "batch_first": True},
    "two layers both ways": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_option(kind: str, variant: str) -> None:
    torch.manual_seed(0)
    assert_tap_equals_loop(Reader(KINDS[kind](**VARIANTS[variant])), torch.randn(5, 7, INPUTS))


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_read_of_it(kind: str, reads: str) -> None:
    torch.manual_seed(1)
    assert_tap_equals_loop(Reader(KINDS[kind](num_layers=2, bidirectional=True), reads), torch.randn(5, 3, INPUTS))


@pytest.mark.parametrize("start", ["learned", "of the example"])
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_states(kind: str, n: int, start: str) -> None:
    torch.manual_seed(2)
    layer = KINDS[kind](num_layers=2, batch_first=True)
    assert_tap_equals_loop(Reader(layer, "everything", start), torch.randn(n, 3, INPUTS))


def test_initial_states_of_one_example_that_are_parameters() -> None:
    torch.manual_seed(8)
    start = {name: nn.Parameter(torch.randn(2, 1, HIDDEN)) for name in ("hidden", "cell")}
    layer = nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True)
    module = Computing(lambda m, x: m.layer(x, (m.hidden, m.cell))[0], layer=layer, **start)
    x = torch.randn(1, 7, INPUTS)
    rows = naive_rows(module, cubes, x, x)
    assert relative_error(tapped(module, x).gram, rows @ rows.T) < 1e-4


@pytest.mark.parametrize("n", [1, 2, 5, 64])
@pytest.mark.parametrize("t", [1, 2, 7, 33])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_every_length_and_batch(kind: str, t: int, n: int) -> None:
    torch.manual_seed(t + n)
    assert_tap_equals_loop(Reader(KINDS[kind](), "last output"), torch.randn(n, t, INPUTS))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_steps_as_examples(kind: str, variant: str) -> None:
    torch.manual_seed(3)
    assert_tap_equals_loop(Reader(KINDS[kind](**VARIANTS[variant]), "last state"), torch.randn(5, 5, INPUTS))


@few
@given(
    kind=st.sampled_from(sorted(KINDS)),
    shape=st.tuples(st.sampled_from([1, 2, 5]), st.integers(1, 9), st.just(INPUTS)),
    options=st.fixed_dictionaries(
        {"num_layers": st.integers(1, 3), "bidirectional": st.booleans(), "bias": st.booleans()}
        | {"batch_first": st.booleans()}
    ),
    reads=st.sampled_from(READS),
    start=st.sampled_from(["zero", "learned", "of the example"]),
    head=st.booleans(),
)
def test_any_combination(
    kind: str, shape: tuple[int, int, int], options: dict[str, Any], reads: str, start: str, head: bool
) -> None:
    torch.manual_seed(sum(shape))
    assert_tap_equals_loop(Reader(KINDS[kind](**options), reads, start, head), torch.randn(shape))


CELLS: dict[str, nn.Module] = {
    "LSTMCell": nn.LSTMCell(INPUTS, HIDDEN),
    "GRUCell": nn.GRUCell(INPUTS, HIDDEN),
    "RNNCell": nn.RNNCell(INPUTS, HIDDEN, nonlinearity="relu"),
    "GRUCell without bias": nn.GRUCell(INPUTS, HIDDEN, bias=False),
}


def walk(module: Any, x: Tensor) -> Tensor:
    """A cell in a loop, started from what a linear layer makes of the first step."""
    first = module.start(x[:, 0]).tanh()
    state = (first, first) if isinstance(module.cell, nn.LSTMCell) else first
    for step in x.unbind(1):
        state = module.cell(step, state)
    return module.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(("n", "t"), [(1, 3), (2, 7), (5, 1), (5, 5), (64, 7)])
@pytest.mark.parametrize("cell", CELLS)
def test_cells_in_a_loop(cell: str, n: int, t: int) -> None:
    torch.manual_seed(4)
    parts = {"cell": copy.deepcopy(CELLS[cell]), "start": nn.Linear(INPUTS, HIDDEN), "head": nn.Linear(HIDDEN, 2)}
    assert_tap_equals_loop(Computing(walk, **parts), torch.randn(n, t, INPUTS))


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_model_behind_an_embedding_and_under_another_layer(kind: str) -> None:
    torch.manual_seed(5)
    layer = KINDS[kind](batch_first=True, bidirectional=True)
    width = 2 * (layer.proj_size or HIDDEN)
    above = nn.LSTM(width, HIDDEN, batch_first=True)
    module = Computing(
        lambda m, x: m.head(m.above(m.norm(m.layer(m.below(x))[0]))[0][:, -1]),
        below=nn.Sequential(nn.Linear(6, INPUTS), nn.Tanh()),
        layer=layer,
        norm=nn.LayerNorm(width),
        above=above,
        head=nn.Linear(HIDDEN, 2),
    )
    assert_tap_equals_loop(module, torch.randn(5, 7, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_several_sequences_in_every_example(kind: str) -> None:
    torch.manual_seed(9)
    layer = KINDS[kind](batch_first=True)
    module = Computing(lambda m, x: m.layer(x.flatten(0, 1))[0][:, -1].view(len(x), -1), layer=layer)
    assert_tap_equals_loop(module, torch.randn(5, 3, 7, INPUTS))


def rows_of_the_same_graph(losses: Tensor, module: nn.Module) -> Tensor:
    parameters = list(module.parameters())
    return torch.stack(
        [
            torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in losses
        ]
    )


@pytest.mark.parametrize(("training", "precision"), [(True, "float32"), (False, "float32"), (True, "bfloat16")])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_and_autocast(kind: str, training: bool, precision: str) -> None:
    torch.manual_seed(6)
    module = Reader(KINDS[kind](num_layers=2, dropout=0.5), "everything").train(training)
    x = torch.randn(5, 7, INPUTS)
    module(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        losses = module(x).float().pow(3).mean(1)
    rows = rows_of_the_same_graph(losses, module)
    loss = losses.mean()
    tap = GradientTap(module.named_parameters(), len(x))
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    tolerance = 1e-2 if precision == "bfloat16" else 1e-4
    assert relative_error(tap.sample.gram, rows @ rows.T) < tolerance


def test_one_layer_walks_through_time_once_for_all_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    unroll = recurrent._back_through_time
    monkeypatch.setattr(recurrent, "_back_through_time", lambda *a: calls.append(1) or unroll(*a))
    tapped(Reader(nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True), head=False), torch.randn(5, 7, INPUTS))
    assert len(calls) == 4


def test_only_some_weights_are_trained() -> None:
    torch.manual_seed(7)
    module = Reader(nn.LSTM(INPUTS, HIDDEN), head=False)
    module.layer.weight_hh_l0.requires_grad_(False)
    module.layer.bias_ih_l0.requires_grad_(False)
    x = torch.randn(5, 7, INPUTS)
    rows = naive_rows(module, cubes, x, x)
    assert relative_error(tapped(module, x).gram, rows @ rows.T) < 1e-4
