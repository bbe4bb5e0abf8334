"""Batches, losses and data sets that are not like ours: what is said of them is true, and training goes on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from test_monitor import Watch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate, get_worker_info

from lightning_cx import BatchSpec, ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.instruments import GradientNoise, SpectralBias

pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale")
X = torch.randn(256, 5, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True) + 0.3 * torch.randn(256, 1, generator=torch.Generator().manual_seed(1))


class Step(pl.LightningModule):
    """Any step of any network, `how(module, batch) -> loss`."""

    def __init__(self, how: Callable[[Any, Any], Tensor], net: nn.Module | None = None, **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1)) if net is None else net
        self.how = how
        for name, part in parts.items():
            setattr(self, name, part)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.how(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def run(module: pl.LightningModule, data: DataLoader, callbacks: list[Any], steps: int = 6) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return trainer


def told(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    words = [str(w.message) for w in caught if str(w.message).startswith("lightning_cx")]
    return result, [w for w in words if "noise_scale" not in w]


def monitored(
    how: Callable[[Any, Any], Tensor], data: DataLoader, **options: Any
) -> tuple[pl.Trainer, Watch, list[str]]:
    watch = Watch()
    parts = {key: options.pop(key) for key in ("net",) if key in options}
    monitor = ComplexityMonitor([watch, GradientNoise(), SpectralBias()], every_n_steps=1, **options)
    trainer, words = told(lambda: run(Step(how, **parts), data, [monitor]))
    return trainer, watch, words


def statuses(watch: Watch) -> set[str]:
    return {seen.gradients.status for seen in watch.seen if seen.gradients is not None}


def test_what_the_model_does_not_read_is_no_input(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = [
        {"cat": torch.randint(0, 4, (3, 1)), "empty": torch.zeros(0), "cont": x, "y": y}
        for x, y in zip(X, Y, strict=True)
    ]
    trainer, _, words = monitored(lambda m, b: F.mse_loss(m.net(b["cont"]), b["y"]), DataLoader(data, 32))
    assert words == []
    line = next(
        r.getMessage() for r in caplog.records if "examples; inputs" in r.getMessage() and "depends" in r.getMessage()
    )
    assert "32 examples; inputs cont [32, 5]; targets y [32, 1]" in line
    assert "cat [32, 3, 1] (nothing in the loss depends on it)" in line
    assert "empty [32, 0] (empty)" in line
    assert float(trainer.callback_metrics["complexity/residual_median"]) < 0.2


def test_an_unnamed_target_is_what_the_loss_depends_on_and_the_output_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    data = TensorDataset(X, torch.randn(256, 2), Y)  # inputs, what nobody uses, targets
    monitored(lambda m, b: F.mse_loss(m.net(b[0]), b[2]), DataLoader(data, 32))
    assert "32 examples; inputs batch[0] [32, 5]; targets batch[2] [32, 1]" in caplog.text


def test_positions_are_not_counted_for_examples() -> None:
    ids = torch.randint(0, 50, (256, 24), generator=torch.Generator().manual_seed(0))

    def collate(items: list[Tensor]) -> dict[str, Tensor]:
        return {"position_ids": torch.arange(24), "input_ids": torch.stack(items)}

    def loss(m: Any, b: Any) -> Tensor:
        return F.cross_entropy(m.net(b["input_ids"])[:, :-1].transpose(1, 2), b["input_ids"][:, 1:])

    net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))
    _, watch, _ = monitored(loss, DataLoader(ids, 16, collate_fn=collate), net=net)
    samples = [seen.gradients for seen in watch.seen if seen.gradients is not None]
    assert {sample.batch_size for sample in samples} == {16}
    assert statuses(watch) == {"exact"}
    assert float(samples[0].gram.min() / samples[0].gram.max()) < 0.9


def test_a_specification_says_it_outright() -> None:
    data = [{"a": x, "b": y, "c": x} for x, y in zip(X, Y, strict=True)]
    spec = BatchSpec(inputs=["a"], targets="b", size="a")
    monitor = ComplexityMonitor([SpectralBias()], every_n_steps=1, batch=spec)
    run(Step(lambda m, b: F.mse_loss(m.net(b["a"] + b["c"]), b["b"])), DataLoader(data, 32), [monitor])
    assert monitor.probe.anatomy is not None
    assert [path[-1] for path in monitor.probe.anatomy.inputs] == ["a"]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (BatchSpec(inputs="nothing"), r"BatchSpec\(inputs='nothing'\): the batch has no such tensor; it holds x \["),
        (BatchSpec(size=31), r"BatchSpec\(size=31\): nothing in the batch has 31 entries"),
        (BatchSpec(targets="table"), r"table \[7\] has not one row for each of"),
    ],
)
def test_a_specification_that_does_not_fit_is_refused_with_what_was_found(spec: BatchSpec, why: str) -> None:
    def collate(items: list[Any]) -> dict[str, Tensor]:
        x, y = default_collate(items)
        return {"x": x, "y": y, "table": torch.arange(7.0)}

    data = DataLoader(TensorDataset(X, Y), 32, collate_fn=collate)
    module = Step(lambda m, b: F.mse_loss(m.net(b["x"]), b["y"]))
    with pytest.warns(UserWarning, match=why):
        trainer = run(module, data, [ComplexityMonitor(every_n_steps=1, batch=spec)])
    assert trainer.global_step == 6
    with pytest.raises(ValueError, match=why):
        run(module, data, [ComplexityMonitor(every_n_steps=1, batch=spec, strict=True)])


@pytest.mark.parametrize("wrong", ["x", {"size": 3}, 5])
def test_something_else_than_a_specification_is_refused_where_it_is_given(wrong: Any) -> None:
    with pytest.raises(TypeError, match="batch must be a BatchSpec"):
        ComplexityMonitor(batch=wrong)
    with pytest.raises(TypeError, match="batch must be a BatchSpec"):
        ComplexityEarlyStopping(batch=wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"size": 0}, ValueError),
        ({"size": True}, TypeError),
        ({"inputs": []}, ValueError),
        ({"targets": [1.5]}, TypeError),
    ],
)
def test_a_specification_of_nonsense_is_refused_where_it_is_made(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"BatchSpec\({next(iter(wrong))}="):
        BatchSpec(**wrong)


def test_that_one_example_alone_has_no_loss_is_no_evidence_against_it() -> None:
    labels = (X.sum(1, keepdim=True) > 0).long()
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    stop = ComplexityEarlyStopping(every_n_steps=2)
    data = DataLoader(TensorDataset(X, labels), 32)
    _, watch, words = monitored(lambda m, b: F.cross_entropy(m.net(b[0]), b[1].squeeze()), data, net=net)
    assert statuses(watch) == {"exact"}
    assert words == []
    _, words = told(lambda: run(Step(lambda m, b: F.cross_entropy(m.net(b[0]), b[1].squeeze()), net), data, [stop]))
    assert stop.reason.startswith("the estimated risk")
    assert words == []


def test_a_variational_autoencoder_with_batch_norm_is_told_its_one_true_reason() -> None:
    def elbo(m: Any, b: Any) -> Tensor:
        mean, log = m.net(b[0]).chunk(2, 1)
        code = mean + log.exp() * torch.randn_like(mean)
        prior = (0.5 * (mean**2 + (2 * log).exp()) - log).sum(1)
        return (((m.decoder(code) - b[0]) ** 2).sum(1) + prior).mean()

    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    watch = Watch()
    module = Step(elbo, net, decoder=nn.Linear(2, 5))
    data = DataLoader(TensorDataset(X), 32)
    _, words = told(lambda: run(module, data, [ComplexityMonitor([watch, GradientNoise()], every_n_steps=1)]))
    assert statuses(watch) == {"contribution"}
    reasons = [text for text in words if "contributions" in text]
    assert len(reasons) == 1
    assert "BatchNorm in training mode couples the examples" in reasons[0]


def test_a_learned_noise_of_each_output_is_held_fixed() -> None:
    targets = X @ torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    module = Step(
        lambda m, b: (m.log_sigma + 0.5 * ((b[1] - m.net(b[0])) / m.log_sigma.exp()) ** 2).mean(),
        nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)),
        log_sigma=nn.Parameter(torch.zeros(3)),
    )
    stop = ComplexityEarlyStopping(every_n_steps=2)
    run(module, DataLoader(TensorDataset(X, targets), 32), [stop])
    assert stop.reason.startswith("the estimated risk")


def test_a_likelihood_with_a_learned_variance_has_no_residual_for_monitor_and_stopping_alike() -> None:
    def nll(m: Any, b: Any) -> Tensor:
        mean, log_sigma = m.net(b[0]).chunk(2, 1)
        return (log_sigma + 0.5 * ((b[1] - mean) / log_sigma.exp()) ** 2).mean()

    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
    monitor, stop = ComplexityMonitor([SpectralBias()], every_n_steps=2), ComplexityEarlyStopping(every_n_steps=2)
    trainer, words = told(lambda: run(Step(nll, net), DataLoader(TensorDataset(X, Y), 32), [monitor, stop]))
    assert math.isnan(trainer.callback_metrics["complexity/residual_energy"])
    assert len(words) == 2
    assert all("the loss is not convex in the output of net" in text for text in words)
    assert "the loss is not convex in the output of net" in stop.reason


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_counts_are_not_judged_by_how_far_a_loss_without_a_zero_has_fallen(offset: float) -> None:
    draw = torch.Generator().manual_seed(3)
    counts = torch.poisson(torch.exp(0.5 * X[:, :1] + 1.5), generator=draw)
    stop = ComplexityEarlyStopping(every_n_steps=4)
    module = Step(lambda m, b: F.poisson_nll_loss(m.net(b[0]), b[1]) + offset)
    run(module, DataLoader(TensorDataset(X, counts), 32, shuffle=True), [stop], steps=60)
    assert stop.reason.startswith("the estimated risk")


@pytest.mark.parametrize("outputs", [1, 12])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_noise_and_risk_are_in_the_unit_of_the_targets(outputs: int, reduction: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(512, 2, generator=draw) * 4 - 2
    truth = torch.sin(x[:, :1] + torch.arange(outputs) / 4) * x[:, 1:]
    y = truth + 0.3 * torch.randn(truth.shape, generator=draw)
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, outputs))
    stop = ComplexityEarlyStopping(every_n_steps=10)
    module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1], reduction=reduction), net)
    trainer = run(module, DataLoader(TensorDataset(x, y), 64), [stop], steps=40)
    assert float(trainer.callback_metrics["stopping/noise_floor"]) == pytest.approx(outputs * 0.09, rel=0.35)


def test_the_norm_of_the_gradient_is_that_of_grad_also_where_the_loss_is_a_sum() -> None:
    norms: list[float] = []

    class Norm(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            norms.append(
                float(torch.cat([p.grad.reshape(-1) for p in pl_module.parameters() if p.grad is not None]).norm())
            )

    monitor = ComplexityMonitor([GradientNoise()], every_n_steps=1)
    module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1], reduction="sum"))
    trainer = run(module, DataLoader(TensorDataset(X, Y), 32), [Norm(), monitor], steps=1)
    assert float(trainer.callback_metrics["gradient/norm"]) == pytest.approx(norms[0], rel=1e-5)


def test_sequences_of_unequal_length_are_cut_out_with_their_own_length() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 25, (192,), generator=draw)
    data = [(torch.randn(int(n), 3, generator=draw), int(n)) for n in lengths]

    def collate(items: list[Any]) -> dict[str, Tensor]:
        x = nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True)
        return {"x": x, "lengths": torch.tensor([n for _, n in items])}

    def loss(m: Any, b: Any) -> Tensor:
        packed = pack_padded_sequence(b["x"], b["lengths"], True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(m.net(packed)[0], batch_first=True)
        mask = torch.arange(b["x"].shape[1]) < b["lengths"][:, None]
        wrong = (m.out(hidden)[..., 0] - b["x"].sum(-1)[:, : hidden.shape[1]]) ** 2
        return (wrong * mask).sum(1).div(b["lengths"]).mean()

    watch = Watch()
    module = Step(loss, nn.LSTM(3, 8, batch_first=True), out=nn.Linear(8, 1))
    monitor = ComplexityMonitor([watch, GradientNoise(), SpectralBias()], every_n_steps=1)
    trainer, words = told(lambda: run(module, DataLoader(data, 32, collate_fn=collate), [monitor]))
    assert statuses(watch) == {"exact"}
    assert not any("failed" in text or "is off" in text for text in words)
    assert math.isfinite(trainer.callback_metrics["complexity/residual_median"])


def test_what_the_loss_averages_is_named_where_it_is_not_the_examples() -> None:
    series = torch.randn(256, 40, generator=torch.Generator().manual_seed(0)).cumsum(1) / 5

    def windows(m: Any, b: Any) -> Tensor:
        every = b[0].unfold(1, 6, 1).reshape(-1, 6)
        some = every[torch.randint(len(every), (100,))]
        return F.mse_loss(m.net(some[:, :5]), some[:, 5:])

    watch = Watch()
    monitor = ComplexityMonitor([watch, GradientNoise()], every_n_steps=1)
    _, words = told(lambda: run(Step(windows), DataLoader(TensorDataset(series), 32), [monitor]))
    assert "the loss averages 100 rows, the batch has 32 examples: gradients are those of the rows" in " ".join(words)
    assert {s.gradients.batch_size for s in watch.seen if s.gradients is not None} == {100}
    assert statuses(watch) == {"unverified"}


class InWorkersOnly(Dataset):
    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        number = int(index.split("_")[1]) if isinstance(index, str) else index[0] if isinstance(index, tuple) else index
        return self.read(number)

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        if get_worker_info() is None:
            raise RuntimeError("the file is opened in worker_init_fn")
        return X[number], Y[number]


class ByKey(InWorkersOnly):
    def read(self, number: int) -> tuple[Tensor, Tensor]:
        return X[number], Y[number]


class WrongLength(ByKey):
    def __len__(self) -> int:
        raise OSError("nobody knows")


def pairs_only(items: list[Any]) -> Any:
    assert len(items) % 2 == 0, "batch size should be even"
    return default_collate(items)


TAKES_BATCHES: dict[str, Callable[[], DataLoader]] = {
    "readable in workers only": lambda: DataLoader(InWorkersOnly(), 32, num_workers=1),
    "collate wants an even batch": lambda: DataLoader(TensorDataset(X, Y), 32, collate_fn=pairs_only),
    "an iterator for a sampler": lambda: DataLoader(ByKey(), 32, sampler=iter(range(256))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", TAKES_BATCHES)
def test_where_examples_cannot_be_fetched_by_index_those_that_come_by_are_taken(kind: str) -> None:
    monitor, stop = ComplexityMonitor([SpectralBias()], every_n_steps=1), ComplexityEarlyStopping(every_n_steps=1)
    module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1]))
    trainer, words = told(lambda: run(module, TAKES_BATCHES[kind](), [monitor, stop], steps=8))
    assert trainer.global_step == 8
    assert sum("the probe takes the first batches that come by" in text for text in words) == 1
    if kind != "an iterator for a sampler":
        assert monitor.probe.complete
        assert math.isfinite(trainer.callback_metrics["complexity/residual_median"])


def test_a_data_set_is_read_by_the_keys_of_its_sampler() -> None:
    keys = [f"img_{number}" for number in range(200)]
    monitor = ComplexityMonitor([SpectralBias()], every_n_steps=1)
    module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1]))
    _, words = told(lambda: run(module, DataLoader(ByKey(), 32, sampler=keys), [monitor]))  # type: ignore[arg-type]
    assert words == []
    assert monitor.probe.examples == 200


class Traced(Dataset):
    """Each reading moves something on."""

    def __init__(self, noise: Callable[[], float]) -> None:
        self.noise, self.reads, self.log = noise, 0, []

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        self.log.append(index)
        return X[index] + self.noise() + 1e-3 * self.reads + 1e-3 * len(self.log), Y[index]


STREAM = np.random.default_rng(0)


def from_closure() -> Callable[[], float]:
    rng = np.random.default_rng(0)
    return lambda: float(rng.normal())


@pytest.mark.parametrize("noise", [from_closure, lambda: lambda: float(STREAM.normal())], ids=["a closure", "a global"])
@pytest.mark.parametrize("workers", [0, 1])
def test_reading_examples_leaves_a_data_set_as_it_was(noise: Callable[[], Callable[[], float]], workers: int) -> None:
    def weights(callbacks: list[Any]) -> Tensor:
        STREAM.bit_generator.state = np.random.default_rng(0).bit_generator.state
        module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1]))
        run(module, DataLoader(Traced(noise()), 32, num_workers=workers), callbacks)
        return torch.cat([p.detach().reshape(-1) for p in module.parameters()])

    plain = weights([])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(
            weights([ComplexityMonitor(every_n_steps=2), ComplexityEarlyStopping(every_n_steps=2)]), plain
        )


def test_an_iterator_that_a_step_uses_is_not_used_up_and_is_named() -> None:
    seen: list[list[int]] = []

    def semi(m: Any, b: Any) -> Tensor:
        (unlabelled,) = next(m.unlabelled)
        seen[-1].append(int(unlabelled[0, 0]))
        return F.mse_loss(m.net(b[0]), b[1]) + m.net(unlabelled[:, :5] / 256).pow(2).mean()

    other = torch.arange(256.0)[:, None].expand(-1, 5).contiguous()
    for callbacks in ([], [ComplexityMonitor(every_n_steps=1), ComplexityEarlyStopping(every_n_steps=1)]):
        seen.append([])
        module = Step(semi, unlabelled=iter(DataLoader(TensorDataset(other), 32)))
        _, words = told(lambda m=module, c=callbacks: run(m, DataLoader(TensorDataset(X, Y), 32), c))
    assert seen[0] == seen[1]
    assert any("training_step uses self.unlabelled (a SingleProcessDataLoaderIter)" in text for text in words)


def test_slow_data_is_not_read_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProbeSet, "reading_seconds", lambda *_: 16.0)
    monitor = ComplexityMonitor([SpectralBias()], every_n_steps=1)
    module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1]))
    _, words = told(lambda: run(module, DataLoader(TensorDataset(X, Y), 32), [monitor], steps=8))
    assert "would take 16 s" in words[0]
    assert monitor.probe.examples == 256  # as many as eight batches have


@pytest.mark.parametrize(("instruments", "most"), [(None, 5), ("all", 8)])
def test_an_ordinary_fit_is_told_of_in_few_lines(
    instruments: Any, most: int, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1]))
    callbacks = [ComplexityMonitor(instruments, every_n_steps=4), ComplexityEarlyStopping()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(module, DataLoader(TensorDataset(X, Y), 32), callbacks, steps=40)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("lightning_cx")]
    assert 2 <= len(lines) <= most, lines
    assert any(line.startswith("lightning_cx: measured: gradients 10 times") for line in lines)


def test_a_quiet_monitor_says_nothing_but_warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1]))
    monitor = ComplexityMonitor([SpectralBias()], every_n_steps=1, verbose=False)
    run(module, DataLoader(TensorDataset(X, Y), 32), [monitor])
    assert "lightning_cx" not in caplog.text


def test_refusals_survive_a_filter_of_warnings(caplog: pytest.LogCaptureFixture) -> None:
    module = Step(lambda m, b: F.mse_loss(m.net(b[0]), b[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(
            module,
            DataLoader(TensorDataset(X[:64], Y[:64]), 32),
            [ComplexityMonitor([SpectralBias()], every_n_steps=1)],
            2,
        )
    assert any(record.levelname == "WARNING" and "the probe is off" in record.getMessage() for record in caplog.records)
