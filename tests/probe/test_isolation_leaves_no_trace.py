"""`isolated` is attacked with everything that user code keeps between steps; nothing may be left behind."""

from __future__ import annotations

import collections
import dataclasses
import random
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from lightning_cx.probe import isolated, isolated_rng


def picture(value: Any, seen: dict[int, int] | None = None) -> Any:
    """All that can be seen of a value, with the identity of everything mutable in it."""
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return "tensor", id(value), value._version, bits, value.requires_grad, value.is_leaf and id(value.grad)
    if isinstance(value, np.ndarray):
        return "array", id(value), value.tobytes()
    if isinstance(value, torch.Generator):
        return "generator", picture(value.get_state())[3]
    if isinstance(value, np.random.Generator):
        return "generator", repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return "generator", value.getstate()
    if id(value) in seen:
        return "again", seen[id(value)]
    if isinstance(value, dict):
        seen[id(value)] = len(seen)
        return "dict", id(value), [(repr(k), picture(v, seen)) for k, v in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        seen[id(value)] = len(seen)
        return type(value), id(value), [picture(v, seen) for v in value]
    if isinstance(value, types.FunctionType | types.MethodType | type) or value is None:
        return "code", repr(value)
    if hasattr(value, "__dict__"):
        seen[id(value)] = len(seen)
        return type(value), id(value), picture(vars(value), seen)
    if hasattr(type(value), "__slots__"):
        return type(value), [(n, picture(getattr(value, n, None), seen)) for n in type(value).__slots__]
    return type(value), repr(value)


def leaves_no_trace(module: nn.Module, use: Callable[[], Any], training: bool = False, guard: bool = True) -> Any:
    before = picture(module)
    with isolated(module, training=training, guard=guard):
        result = use()
    assert picture(module) == before
    with pytest.raises(ArithmeticError), isolated(module, training=training, guard=guard):
        use()
        raise ArithmeticError
    assert picture(module) == before
    return result


def net(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), *layers)


X = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True])
def test_batchnorm_and_dropout_have_not_run(training: bool) -> None:
    module = net(nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = torch.get_rng_state()
    leaves_no_trace(module, lambda: module(X), training)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "norm", [spectral_norm, parametrizations.spectral_norm, parametrizations.weight_norm, parametrizations.orthogonal]
)
def test_reparametrised_weights_have_not_run(norm: Callable[[nn.Module], nn.Module], training: bool) -> None:
    module = net(norm(nn.Linear(4, 4)))
    module(X).sum().backward()
    leaves_no_trace(module, lambda: module(X), training)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_what_is_registered_inside_is_gone() -> None:
    module = net()
    weight = module[0].weight
    with isolated(module):
        module.extra = nn.Linear(2, 2)
        module[0].lazily = torch.zeros(3)
        module.register_buffer("late", torch.zeros(2))
        module.register_forward_hook(lambda *_: None)
        module.register_parameter("more", nn.Parameter(torch.zeros(2)))
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias"]
    assert not hasattr(module[0], "lazily")
    assert not hasattr(module, "late")
    assert not module._forward_hooks
    assert module[0].weight is weight


def test_a_parametrized_module_with_cache_and_ties_keeps_its_values() -> None:
    module = net(nn.Linear(4, 4), nn.Linear(4, 4))
    parametrize.register_parametrization(module[0], "weight", Doubled())
    module[2].weight = module[1].weight
    module[0].free = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))])

    def use() -> None:
        with parametrize.cached():
            module(X)
        module[0].free[0] = nn.Parameter(torch.zeros(2))

    leaves_no_trace(module, use)


class Stats(NamedTuple):
    mean: Tensor
    history: list


@dataclasses.dataclass
class Meter:
    total: float = 0.0
    values: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Slotted:
    count: int
    average: Tensor


class Ema:
    """A plain class of the user's, as for averages of weights."""

    def __init__(self, module: nn.Module) -> None:
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.steps = 0

    def update(self, module: nn.Module) -> None:
        self.steps += 1
        for name, p in module.named_parameters():
            self.shadow[name].mul_(0.9).add_(p.detach(), alpha=0.1)


class Keeper(nn.Module):
    """Keeps everything that user code keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = net()
        self.numbers, self.queue = [1.0, 2.0], collections.deque([1, 2], maxlen=2)
        self.counter, self.groups = collections.Counter("ab"), collections.defaultdict(list)
        self.ordered = collections.OrderedDict(a=[1], b=[2])
        self.words, self.calls, self.config = {"a"}, 0, types.SimpleNamespace(step=0, inner={"deep": [0]})
        self.ema_list, self.ema_dict = [torch.zeros(4)], {"x": torch.zeros(4)}
        self.stats, self.meter, self.slotted = Stats(torch.zeros(4), []), Meter(), Slotted(0, torch.zeros(4))
        self.ema, self.array = Ema(self.layer), np.zeros(3)
        self.own = torch.Generator().manual_seed(4)
        self.rng, self.python = np.random.default_rng(4), random.Random(4)
        self.hidden = [nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))]  # a teacher, hidden from parameters()
        self.register_buffer("memory", torch.zeros(4))
        self._center = torch.zeros(4)
        self.again = self.numbers
        self.graph = self.layer(X).sum()

    @property
    def center(self) -> Tensor:
        return self._center

    @center.setter
    def center(self, value: Tensor) -> None:
        self._center = value

    def statements(self) -> Iterator[Callable[[], Any]]:
        yield lambda: self.numbers.append(3.0)
        yield lambda: self.numbers.__setitem__(0, 9.0)
        yield lambda: self.queue.append(3)
        yield lambda: self.counter.update("abc")
        yield lambda: self.groups["new"].append(1)
        yield lambda: self.ordered.move_to_end("a")
        yield lambda: self.ordered["b"].append(3)
        yield lambda: self.words.add("b")
        yield lambda: setattr(self, "calls", self.calls + 1)
        yield lambda: setattr(self.config, "step", 5)
        yield lambda: self.config.inner["deep"].append(1)
        yield lambda: self.ema_list[0].add_(1)
        yield lambda: self.ema_dict["x"].mul_(2).add_(1)
        yield lambda: self.stats.mean.add_(1)
        yield lambda: self.stats.history.append(1)
        yield lambda: setattr(self.meter, "total", 2.0)
        yield lambda: self.meter.values.append(2.0)
        yield lambda: setattr(self.slotted, "count", 2)
        yield lambda: self.slotted.average.add_(2)
        yield lambda: self.ema.update(self.layer)
        yield lambda: self.array.__iadd__(1)
        yield lambda: torch.rand(3, generator=self.own)
        yield lambda: (self.rng.random(), self.python.random())
        yield lambda: self.hidden[0](X)
        yield lambda: self.memory.copy_(torch.ones(4))
        yield lambda: setattr(self, "center", self.center + 1)
        yield lambda: self.center.add_(1)
        yield lambda: setattr(self, "lazily", [1])
        yield lambda: delattr(self, "calls")
        yield lambda: self.graph.mul_(2)
        yield lambda: self.layer.requires_grad_(False)
        yield lambda: self.layer[0].weight.register_hook(lambda g: g)
        yield lambda: self.layer.zero_grad(set_to_none=False)
        yield lambda: self.layer(X).sum().backward()
        yield lambda: setattr(self.layer, "0", nn.Identity())
        yield lambda: self.eval()


def statement_count() -> int:
    return len(list(Keeper().statements()))


@pytest.mark.parametrize("number", range(statement_count()))
def test_what_user_code_keeps_is_as_it_was(number: int) -> None:
    module = Keeper()
    module.layer(X).square().sum().backward()
    leaves_no_trace(module, list(module.statements())[number], training=True)


def do_all(module: Keeper) -> None:
    for number, statement in enumerate(module.statements()):
        if number != 30:  # freezing the layer forbids what follows
            statement()


def test_all_of_it_in_one_nested_block() -> None:
    module = Keeper()
    before = picture(module)
    with isolated(module):
        inside = picture(module)
        with isolated(module, training=True):
            do_all(module)
        assert picture(module) == inside
        do_all(module)
    assert picture(module) == before


def test_a_list_that_is_also_held_elsewhere_is_put_back_for_both() -> None:
    module = Keeper()
    elsewhere, alias = module.numbers, module.memory
    with isolated(module):
        elsewhere.append(7.0)
        module.layer.also = module.numbers
        assert module.again is module.numbers is elsewhere
    assert elsewhere == [1.0, 2.0]
    assert module.numbers is elsewhere
    assert module.memory is alias


def test_one_tensor_in_two_modules_is_one_tensor_inside() -> None:
    one, two = nn.Module(), nn.Module()
    one.state = two.state = torch.zeros(3)
    module = nn.ModuleList([one, two])
    with isolated(module):
        one.state.add_(1)
        assert torch.equal(two.state, torch.ones(3))
    assert torch.equal(two.state, torch.zeros(3))


def test_a_hook_handle_removed_inside_is_still_registered_afterwards() -> None:
    module = net()
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    with isolated(module):
        handle.remove()
        module(X)
    assert not calls
    module(X)
    assert calls == [1]


METRICS: dict[str, Callable[[], Any]] = {
    "sums": lambda: torchmetrics.Accuracy("multiclass", num_classes=4),
    "lists": lambda: torchmetrics.AUROC("multiclass", num_classes=4, thresholds=None),
    "concatenated": lambda: torchmetrics.CatMetric(),
    "running": lambda: torchmetrics.RunningMean(window=2),
    "collection": lambda: torchmetrics.MetricCollection(
        [torchmetrics.Precision("multiclass", num_classes=4), torchmetrics.Recall("multiclass", num_classes=4)]
    ),
}


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("registered", [True, False])
def test_metrics_have_seen_nothing(kind: str, registered: bool) -> None:
    module, y = net(), torch.arange(10) % 4
    metric = METRICS[kind]()
    module.metric, module.shared = (metric, metric) if registered else ([metric], {"the same": metric})
    arguments = (torch.rand(10),) if kind in ("concatenated", "running") else (torch.rand(10, 4), y)
    metric.update(*arguments)
    metric.compute()

    def use() -> None:
        metric(*arguments)
        metric.update(*arguments)
        metric.compute()
        metric.reset()
        metric.update(*arguments)

    leaves_no_trace(module, use)
    metric.update(*arguments)
    metric.compute()


def test_random_streams_of_torch_numpy_and_python_go_on_as_if_nothing_had_been_drawn() -> None:
    def draws() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = [draws(), draws()]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    assert draws() == expected[0]
    with pytest.raises(KeyboardInterrupt), isolated_rng(seed=-1):
        inside = draws()
        raise KeyboardInterrupt
    assert draws() == expected[1]
    with isolated_rng(seed=-1):
        assert draws() == inside


def test_a_frozen_submodule_stays_in_eval_mode_when_the_module_trains() -> None:
    module = net(nn.BatchNorm1d(4))
    module[1].eval()
    with isolated(module, training=True):
        assert not module[1].training
    module.eval()
    with isolated(module, training=True):
        assert module[1].training
    with isolated(module.train()):
        assert not module.training
    assert module.training


IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "no_grad": lambda p: torch.no_grad()(p.mul_)(0.5),
    "data": lambda p: p.data.clamp_(-0.01, 0.01),
    "data swapped": lambda p: setattr(p, "data", torch.zeros_like(p)),
    "nan": lambda p: p.data.fill_(torch.nan),
    "resized": lambda p: setattr(p, "data", torch.zeros(1)),
}


@pytest.mark.parametrize("way", IN_PLACE)
def test_parameters_changed_in_place_are_put_back_bitwise_and_it_is_said(way: str) -> None:
    module = net()
    module[0].bias.data[0] = torch.nan
    before, storage = picture(module), module[0].weight.data_ptr()
    text = r"parameters in place \(1 of them, 0.weight first\), so it cannot be replayed .* loss_fn\(module, batch\)"
    with pytest.raises(RuntimeError, match=text), isolated(module, guard=True):
        IN_PLACE[way](module[0].weight)
    assert picture(module) == before
    assert module[0].weight.data_ptr() == storage
    with pytest.raises(ArithmeticError), isolated(module, guard=True):  # what went wrong first is what is told
        IN_PLACE[way](module[0].weight)
        raise ArithmeticError
    assert picture(module) == before


def test_a_teacher_in_a_list_is_guarded_too() -> None:
    module = Keeper()
    before = picture(module)
    with pytest.raises(RuntimeError, match="one outside named_parameters first"), isolated(module, guard=True):
        module.hidden[0][0].weight.data.mul_(0.5)
    assert picture(module) == before


def test_nan_parameters_that_nobody_touched_are_no_change() -> None:
    module = net()
    module[0].weight.data[0, 0] = torch.nan
    leaves_no_trace(module, lambda: module(X))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_backward_that_began_before_the_block_ends_bitwise_the_same(in_place: bool) -> None:
    def gradients(block: bool) -> list[Tensor]:
        torch.manual_seed(1)
        module = nn.Sequential(spectral_norm(nn.Linear(6, 4)), nn.BatchNorm1d(4), nn.Linear(4, 3))
        module.state = torch.ones(3)
        loss = (module(X) * module.state).exp().mean()
        first = torch.autograd.grad(loss, module[2].bias, retain_graph=True)[0]
        if block:
            try:
                with isolated(module, training=True, guard=True):
                    again = (module(X) * module.state).exp().mean()
                    torch.autograd.grad(again, list(module.parameters()), allow_unused=True)
                    module.state.add_(1)
                    if in_place:
                        torch.no_grad()(module[2].weight.add_)(1)
            except RuntimeError:
                assert in_place
        loss.backward()
        return [first, *(p.grad for p in module.parameters() if p.grad is not None)]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(one, other)


def test_gradients_that_were_accumulated_are_the_same_tensors_afterwards() -> None:
    module = net()
    module(X).sum().backward()
    kept, values = module[0].weight.grad, module[0].weight.grad.clone()
    with isolated(module):
        assert module[0].weight.grad is None
        F.mse_loss(module(X), torch.zeros(10, 4)).backward()
    assert module[0].weight.grad is kept
    assert torch.equal(kept, values)


def test_a_long_log_is_not_copied_but_its_end_is_put_back() -> None:
    module = net()
    module.log_of_losses = [torch.zeros(()) for _ in range(10_001)]
    first, last = module.log_of_losses[0], module.log_of_losses[-1]
    with isolated(module):
        assert module.log_of_losses[0] is first
        module.log_of_losses[-1].add_(1)
        module.log_of_losses.append(torch.ones(()))
    assert len(module.log_of_losses) == 10_001
    assert module.log_of_losses[-1] is last
    assert last == 0


@pytest.mark.timing
def test_it_is_cheap() -> None:
    large, long = nn.Sequential(*[nn.Linear(8, 8) for _ in range(200)]), nn.Linear(2, 2)
    long.seen = [float(i) for i in range(50_000)]
    for module in (large, long):
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            with isolated(module, guard=True):
                pass
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.1  # 15 and 8 ms were measured on two cores
