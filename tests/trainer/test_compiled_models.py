"""With torch.compile, sampled steps run eagerly, all others as compiled, and nothing is compiled again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from _compiled import (
    BATCHES,
    KINDS,
    Counting,
    Net,
    Plain,
    entropy,
    fresh_compiler,
    monitor,
    samples,
    submodule,
)
from _lightning import fingerprint, fit, images
from _models import Unread, cross_entropy, naive_rows, relative_error
from test_monitor import Watch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_cx import ProbeSet
from lightning_cx.gradients import GradientTap, UnsupportedGradientError
from lightning_cx.probe.conditions import compiled_parts

__all__ = ["fresh_compiler"]

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # the compiler looks at it
]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bitwise_identical_and_nothing_is_compiled_again(kind: str, tmp_path: Path) -> None:
    def run(callbacks: list[pl.Callback]) -> tuple[dict[str, str], int, int]:
        torch._dynamo.reset()
        backend = Counting()
        pl.seed_everything(3)
        trainer = fit(KINDS[kind](backend, dropout=0.3), callbacks, tmp_path)
        return fingerprint(trainer), backend.compiled, backend.ran

    without, compiled, ran = run([])
    assert ran == BATCHES
    watch = Watch()
    with_monitor, compiled_again, ran_compiled = run([monitor(watch)])
    assert with_monitor == without
    assert compiled_again == compiled == 1
    assert [sample.status for sample in samples(watch)] == ["exact"] * 4
    assert ran_compiled == BATCHES - 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_matrix_is_that_of_the_batch(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = KINDS[kind]("aot_eager")
    plain = Plain()
    plain.load_state_dict({name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()})
    truth = naive_rows(plain.net, cross_entropy, *images(160)[:32])
    watch = Watch()
    fit(model, [monitor(watch)], tmp_path, data=DataLoader(images(160), batch_size=32), max_epochs=1)
    assert relative_error(samples(watch)[0].gram, truth @ truth.T) < 1e-5


def test_a_function_that_the_module_does_not_hold_is_found_out_by_the_first_sample(tmp_path: Path) -> None:
    backend = Counting()
    hidden = torch.compile(entropy, backend=backend)

    class Calling(Plain):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return hidden(self.net(batch[0]), batch[1])

    watch = Watch()
    fit(Calling(), [monitor(watch)], tmp_path)
    assert [sample.status for sample in samples(watch)] == ["exact"] * 3  # the first of four showed the compiled loss
    assert (backend.compiled, backend.ran) == (1, BATCHES - 3)


def test_a_closure_that_runs_several_times_stays_eager_to_the_end_of_its_step(tmp_path: Path) -> None:
    class Closures(Plain):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    backend = Counting()
    module = Closures()
    module.criterion = torch.compile(entropy, backend=backend)
    watch = Watch()
    fit(module, [monitor(watch, every_n_steps=1)], tmp_path, max_epochs=1)
    assert len(samples(watch)) == 5
    assert backend.ran == 0


@pytest.mark.filterwarnings("ignore:lightning_cx. unsupported", "ignore:.*should not be instantiated")
def test_steps_that_are_replayed_anyway_stay_compiled(tmp_path: Path) -> None:
    backend = Counting()
    module = Plain()
    module.net = torch.compile(nn.Sequential(module.net, Unread()), backend=backend)
    watch = Watch()
    fit(module, [monitor(watch)], tmp_path)
    assert [sample.notes for sample in samples(watch)] == [("read by replaying 32 examples one at a time",)] * 3
    assert backend.ran == BATCHES - 1  # in the first sampled step it is seen what the loss averages


def test_manual_optimisation_of_a_compiled_net_is_read(tmp_path: Path) -> None:
    class Manual(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            for _ in range(2):
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(entropy(self.net(batch[0]), batch[1]))
                optimizer.step()

    backend = Counting()
    module = Manual()
    module.net = torch.compile(module.net, backend=backend)
    watch = Watch()
    losses = ProbeSet(128, loss_fn=lambda m, b: F.cross_entropy(m.net(b[0]), b[1], reduction="none"))
    fit(module, [monitor(watch, probe=losses)], tmp_path)
    assert len(samples(watch)) == 4
    assert (backend.compiled, backend.ran) == (1, 2 * (BATCHES - 4))


# What is told, and what it costs.


def test_an_ordinary_fit_has_no_stance(tmp_path: Path) -> None:
    eager: list[bool] = []

    class Asking(Plain):
        def on_before_backward(self, loss: Tensor) -> None:
            eager.append(watcher._session.backwards.eager)

    watcher = monitor(every_n_steps=1)
    fit(Asking(), [watcher], tmp_path, max_epochs=1)
    assert eager == [False] * 5


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("a submodule", ["net.forward"]),
        ("a submodule in place", ["net.2"]),
        ("the whole module", ["forward"]),
        ("the loss", ["criterion"]),
    ],
)
def test_compiled_parts_are_named(kind: str, names: list[str]) -> None:
    assert compiled_parts(KINDS[kind]("aot_eager")) == names
    assert compiled_parts(Plain()) == []


def test_a_compiled_method_of_a_class_is_named_and_one_that_is_never_compiled_is_not() -> None:
    class Decorated(Plain):
        @torch.compile(backend="aot_eager")
        def scores(self, x: Tensor) -> Tensor:
            return self.net(x)

        @torch.compiler.disable
        def kept(self, x: Tensor) -> Tensor:
            return x

    assert compiled_parts(Decorated()) == ["scores"]


@pytest.mark.timing
def test_what_the_compiler_would_have_saved_is_booked(tmp_path: Path) -> None:
    pause = 0.05

    class Slow(Net):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                time.sleep(pause)
            return self.inner(x)

    module = Plain()
    module.net = torch.compile(Slow(), backend="aot_eager")
    watcher = monitor(Watch())
    fit(module, [watcher], tmp_path)
    account = watcher._session.ledger.accounts["gradients"]
    assert account.count == 4
    assert account.spent > 3 * pause  # the first has no plain step to compare with


def test_without_a_trainer_a_compiled_graph_is_refused_with_what_to_do() -> None:
    torch.manual_seed(0)
    net = Net()
    compiled = torch.compile(net, backend="aot_eager")
    x, y = images(8)[:]
    wrapped = torch.compile(lambda a, b: entropy(net(a), b), backend="aot_eager")
    for graph in (entropy(compiled(x), y), wrapped(x, y)):
        with pytest.raises(UnsupportedGradientError, match=r'CompiledFunction.*set_stance\("force_eager"\)'):
            GradientTap(net.named_parameters(), 8).attach(graph)
    tap = GradientTap(net.named_parameters(), 8)
    with torch.compiler.set_stance("force_eager"):
        graph = entropy(compiled(x), y)
    with tap(graph):
        graph.backward()
    truth = naive_rows(net, cross_entropy, x, y)
    assert relative_error(tap.sample.gram, truth @ truth.T) < 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Skipping serialization")  # inductor's own
def test_inductor_compiles_once_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no processes that import torch anew
    torch.manual_seed(0)
    module = submodule("inductor")
    truth = naive_rows(module.net._orig_mod, cross_entropy, *images(160)[:32])
    watch = Watch()
    fit(module, [monitor(watch)], tmp_path, data=DataLoader(images(160), batch_size=32))
    assert relative_error(samples(watch)[0].gram, truth @ truth.T) < 1e-5
    assert len(samples(watch)) == 4
    assert counters["stats"]["unique_graphs"] == 1
