"""Stopping early disturbs nothing, survives interruptions, shares the probe, shows what it does, and fails softly."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _noisy import ByHand, Fit, Weights, batches, blobs, regression, same, trainer
from _tensorboard import read_events, serve
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet, SpectralRisk
from lightning_cx.functional.stopping import Decision
from lightning_cx.instruments import SpectralBias
from lightning_cx.rules import StoppingRule
from lightning_cx.rules.base import Curve


def soon() -> SpectralRisk:
    """Stops after few steps, where it is of no account how well."""
    return SpectralRisk(patience=2, z=0.5, doubling=False)


def test_a_run_that_is_stopped_is_the_beginning_of_one_that_is_not(tmp_path: Path) -> None:
    with_us, without, stopping = Weights(), Weights(), ComplexityEarlyStopping(soon(), strict=True)
    trainer([with_us, stopping], tmp_path).fit(Fit(dropout=0.1), batches(regression()))
    trainer([without], tmp_path, max_steps=stopping.stopped_step).fit(Fit(dropout=0.1), batches(regression()))
    assert with_us.after.keys() == without.after.keys()
    assert all(same(with_us.after[step], without.after[step]) for step in without.after)


@pytest.mark.parametrize("where", ["before the best step", "after the best step"])
def test_an_interrupted_and_resumed_run_stops_at_the_same_step_with_the_same_weights(
    where: str, tmp_path: Path
) -> None:
    def loader() -> DataLoader:
        # One batch: where older Lightning resumes at the end of an epoch, it passes a batch more than it would have.
        return batches(regression(), batch_size=256, shuffle=False)

    whole, module = ComplexityEarlyStopping(soon(), strict=True), Fit()
    trainer([whole], tmp_path).fit(module, loader())
    assert whole.stopped_step is not None
    assert whole.best_step is not None
    cut = whole.best_step // 2 if where == "before the best step" else (whole.best_step + whole.stopped_step) // 2
    saving = ModelCheckpoint(tmp_path / where, every_n_train_steps=cut, save_top_k=1)
    interrupted = ComplexityEarlyStopping(soon(), strict=True)
    trainer([interrupted, saving], tmp_path, enable_checkpointing=True, max_steps=cut).fit(Fit(), loader())
    resumed, again = ComplexityEarlyStopping(soon(), strict=True), Fit()
    same_kind = ModelCheckpoint(tmp_path / where, every_n_train_steps=cut, save_top_k=1)
    trainer([resumed, same_kind], tmp_path, enable_checkpointing=True).fit(
        again, loader(), ckpt_path=saving.best_model_path
    )
    assert (resumed.stopped_step, resumed.best_step) == (whole.stopped_step, whole.best_step)
    assert resumed.reason == whole.reason
    assert same(dict(again.state_dict()), dict(module.state_dict()))


def test_large_weights_go_into_a_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    stopping, weights, module = ComplexityEarlyStopping(SpectralRisk(), strict=True), Weights(), Fit()
    stopping.kept.limit = 1000  # bytes

    class Look(pl.Callback):
        def __init__(self) -> None:
            self.files: list[Path] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.files = list(tmp_path.glob("best_weights_*"))

    look = Look()
    saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=100, save_top_k=-1)
    trainer([weights, stopping, look, saving], tmp_path, enable_checkpointing=True).fit(module, batches(regression()))
    assert stopping.kept.on_disk
    assert len(look.files) == 1
    assert stopping.best_step is not None
    assert same(dict(module.state_dict()), weights.after[stopping.best_step])
    state = torch.load(sorted((tmp_path / "checkpoints").glob("*step=200.ckpt"))[0], weights_only=False)
    kept = state["callbacks"][stopping.state_key]["kept"]
    assert same(kept["weights"], weights.after[kept["step"]])
    stopping.kept.forget()
    assert not look.files[0].exists()


@pytest.mark.parametrize("first", ["monitor", "stopping"])
def test_beside_a_monitor_the_probe_is_passed_once(first: str, tmp_path: Path) -> None:
    module = Fit()

    def passes(callbacks: list[Any]) -> int:
        fresh = Fit()
        trainer(callbacks, tmp_path, max_steps=8).fit(fresh, batches(regression()))
        return fresh.calls - 8

    monitor = ComplexityMonitor([SpectralBias()], every_n_steps=1, strict=True)
    stopping = ComplexityEarlyStopping(every_n_steps=1, strict=True)
    alone = passes([ComplexityEarlyStopping(every_n_steps=1, strict=True)])
    pair = [monitor, stopping] if first == "monitor" else [stopping, monitor]
    assert passes(pair) == alone
    assert stopping.probe is monitor.probe
    assert not module.calls


def test_a_probe_of_its_own_is_kept_beside_a_monitor(tmp_path: Path) -> None:
    probe = ProbeSet(size=128, seed=5)
    stopping = ComplexityEarlyStopping(SpectralRisk(), every_n_steps=1, probe=probe, strict=True)
    trainer([ComplexityMonitor(every_n_steps=1), stopping], tmp_path, max_steps=2).fit(Fit(), batches(regression()))
    assert stopping.probe is probe
    assert stopping.watch.state_dict()["initial"].shape == (128, 1)


def test_risk_noise_and_picture_reach_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    stopping = ComplexityEarlyStopping(SpectralRisk(), strict=True)
    monitor = ComplexityMonitor([SpectralBias()], every_n_steps=20, strict=True)
    fitted = trainer([monitor, stopping], tmp_path, logger=logger)
    fitted.fit(Fit(), batches(regression()))
    logger.finalize("success")
    events = read_events(logger.log_dir)
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("stopping/")}
    assert tags == {
        "stopping/risk",
        "stopping/risk_low",
        "stopping/risk_high",
        "stopping/noise_floor",
        "stopping/fitted_high",
        "stopping/high_dominance",
    }
    risk, low, high = (events.Scalars(f"stopping/{name}") for name in ("risk", "risk_low", "risk_high"))
    assert [r.step for r in risk][:4] == [0, 4, 8, 12]
    assert risk[-1].step == stopping.stopped_step
    assert all(a.value <= r.value <= b.value for a, r, b in zip(low, risk, high, strict=True))
    assert min(risk, key=lambda r: r.value).step <= (stopping.best_step or 0)
    floor = events.Scalars("stopping/noise_floor")
    assert all(f.value == pytest.approx(0.25, rel=0.4) for f in floor)
    fitted_high = events.Scalars("stopping/fitted_high")
    assert fitted_high[0].value == 0
    assert 0.05 < fitted_high[-1].value <= 1
    assert len(events.Images("stopping/curve")) >= 1
    with serve(tmp_path) as get:
        layout = get("data/plugin/custom_scalars/layout")
    categories = {category["title"]: category for category in layout["category"]}
    assert {"What is being learned", "When to stop"} <= categories.keys()


def test_what_it_logs_is_in_the_metrics_of_callbacks(tmp_path: Path) -> None:
    fitted = trainer([ComplexityEarlyStopping(SpectralRisk(), every_n_steps=1, strict=True)], tmp_path, max_steps=7)
    fitted.fit(Fit(), batches(regression()))
    assert {"stopping/risk", "stopping/noise_floor", "stopping/high_dominance"} <= fitted.callback_metrics.keys()


class Flat(Fit):
    """A loss whose slope holds nothing of a target."""

    def loss(self, batch: Any) -> torch.Tensor:
        return self.net(batch[0]).mean()


def shuffled(data: TensorDataset) -> TensorDataset:
    x, y = data.tensors
    return TensorDataset(x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))])


class Mixup(Fit):
    """Mixes examples with each other, in training and elsewhere."""

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        other = torch.arange(len(x)).roll(1)
        return F.mse_loss(self.net(0.6 * x + 0.4 * x[other]), 0.6 * y + 0.4 * y[other])


class Absolute(Fit):
    """A slope that says which way, and not how far."""

    def loss(self, batch: Any) -> torch.Tensor:
        return F.l1_loss(self.net(batch[0]), batch[1])


class Likelihood(Fit):
    """Learns how sure it is, so that slopes grow as errors shrink."""

    def __init__(self) -> None:
        super().__init__(outputs=2)

    def loss(self, batch: Any) -> torch.Tensor:
        mean, spread = self.net(batch[0]).unbind(1)
        return F.gaussian_nll_loss(mean, batch[1][:, 0], F.softplus(spread) + 1e-4)


REFUSALS: dict[str, tuple[Any, Any, str]] = {
    "too few examples": (Fit, lambda: regression(100), "at least 128 examples"),
    "features that do not order the target": (Fit, lambda: shuffled(regression()), "do not order the target"),
    "manual optimisation without a loss": (ByHand, regression, r"pass ProbeSet\(loss_fn=...\)"),
    "a loss that mixes examples": (Mixup, regression, "mixes examples"),
    "a loss without a residual": (Flat, regression, "carries the whole loss"),
    "targets that are not finite": (
        Fit,
        lambda: TensorDataset(torch.randn(200, 5), torch.full((200, 1), torch.inf)),
        "not finite",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_rule_without_ground_says_why_and_training_goes_on(case: str, tmp_path: Path) -> None:
    module, data, words = REFUSALS[case]
    stopping, weights, kind = ComplexityEarlyStopping(SpectralRisk()), Weights(), module()
    fitted = trainer([weights, stopping], tmp_path, max_steps=40)
    with pytest.warns(UserWarning, match=words) as caught:
        fitted.fit(kind, batches(data()))
    ours = [str(w.message) for w in caught if "lightning_cx" in str(w.message)]
    assert len(ours) == 1
    assert stopping.reason in ours[0]
    assert fitted.global_step == 40
    assert stopping.stopped_step is None
    assert same(dict(kind.state_dict()), weights.after[40]) or case == "targets that are not finite"
    with pytest.raises(ValueError, match=words):
        trainer([ComplexityEarlyStopping(SpectralRisk(), strict=True)], tmp_path, max_steps=4).fit(
            module(), batches(data())
        )


@pytest.mark.parametrize("kind", [Absolute, Likelihood])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_slope_that_is_no_residual_costs_no_weights(kind: type, noise: float, tmp_path: Path) -> None:
    stopping, weights, module = ComplexityEarlyStopping(), Weights(), kind()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([weights, stopping], tmp_path, max_steps=500).fit(module, batches(regression(noise=noise)))
    refused = [w for w in caught if "is disabled" in str(w.message)]
    if noise == 0.0:
        assert refused
        assert "squared errors" in stopping.reason
    assert stopping.stopped_step is None
    if not stopping.best_step or noise == 0.0:  # untrained weights are none to go back to
        assert same(dict(module.state_dict()), weights.after[500])


def test_with_squared_errors_on_the_probe_a_robust_loss_is_stopped_in_time(tmp_path: Path) -> None:
    def squared(module: Any, batch: Any) -> torch.Tensor:
        return F.mse_loss(module.net(batch[0]), batch[1], reduction="none").sum(1)

    stopping = ComplexityEarlyStopping(probe=ProbeSet(loss_fn=squared), strict=True)
    trainer([stopping], tmp_path, max_steps=3000).fit(Absolute(), batches(regression()))
    assert stopping.stopped_step is not None
    assert stopping.best_step


def test_a_refusal_is_said_again_after_a_checkpoint(tmp_path: Path) -> None:
    first, again, strict = (
        ComplexityEarlyStopping(SpectralRisk()),
        ComplexityEarlyStopping(SpectralRisk()),
        ComplexityEarlyStopping(SpectralRisk(), strict=True),
    )
    white = batches(shuffled(regression()))
    with pytest.warns(UserWarning, match="do not order the target"):
        trainer([first], tmp_path, max_steps=2).fit(Fit(), white)
    again.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="as before the checkpoint: the features do not order"):
        trainer([again], tmp_path, max_steps=2).fit(Fit(), white)
    strict.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="as before the checkpoint"):
        trainer([strict], tmp_path, max_steps=2).fit(Fit(), white)


def test_a_refusal_on_one_data_set_is_none_on_the_next(tmp_path: Path) -> None:
    stopping, module = ComplexityEarlyStopping(SpectralRisk()), Fit()
    with pytest.warns(UserWarning, match="do not order the target"):
        trainer([stopping], tmp_path, max_steps=2).fit(module, batches(shuffled(regression())))
    trainer([stopping], tmp_path, max_steps=4).fit(module, batches(regression()))  # warnings are errors
    assert stopping.watch.begun


def test_a_larger_data_set_gets_a_probe_of_its_own(tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(strict=True)
    for count, expected in ((200, 200), (1000, 512)):
        trainer([stopping], tmp_path, max_steps=2).fit(Fit(), batches(regression(count)))
        assert stopping.probe.examples == expected
    assert max(stopping.probe.indices or []) > 800


def test_batches_chosen_by_the_user_do_not_cut_the_probe(tmp_path: Path) -> None:
    data = regression(900)
    chosen = [list(range(start, 900, 90)) for start in range(90)]
    loader = DataLoader(data, batch_sampler=chosen)
    stopping = ComplexityEarlyStopping(strict=True)
    trainer([stopping], tmp_path, max_steps=2).fit(Fit(), loader)
    assert stopping.probe.examples == 512
    assert stopping.probe.chunk_size > 1


def test_a_network_that_learns_complex_functions_first_is_refused(tmp_path: Path) -> None:
    class Waves(Fit):
        """Linear in high frequencies that carry almost all of the gradient."""

        def __init__(self) -> None:
            super().__init__(inputs=1)
            frequencies = torch.arange(1.0, 65.0)
            self.register_buffer("frequencies", frequencies)
            self.register_buffer("size", frequencies**2 / 64**2)
            self.net = nn.Linear(64, 1)

        def loss(self, batch: Any) -> torch.Tensor:
            x, y = batch
            return F.mse_loss(self.net(torch.cos(torch.pi * self.frequencies * x) * self.size), y)

    x = torch.linspace(0, 1, 256)[:, None]
    data = TensorDataset(x, torch.cos(3 * x) + 0.3 * torch.randn(256, 1, generator=torch.Generator().manual_seed(0)))
    stopping = ComplexityEarlyStopping(SpectralRisk())
    with pytest.warns(UserWarning, match="does not learn simple functions first"):
        trainer([stopping], tmp_path, max_steps=10).fit(Waves(), batches(data))
    assert stopping.stopped_step is None


class Failing(StoppingRule):
    """Breaks down from a check on."""

    def __init__(self, after: int, times: int) -> None:
        self.after, self.times, self.checks = after, times, 0

    def check(self, coefficients: torch.Tensor, step: int) -> Decision:
        self.checks += 1
        if self.after < self.checks <= self.after + self.times:
            raise RuntimeError("out of order")
        return Decision(False, self.checks - 1, "fine", 0.0, 0.0)

    def reset(self) -> None:
        self.checks = 0

    @property
    def curve(self) -> Curve:
        return Curve("stopping/mine", "mine", "Mine", "Read it.")


def test_a_rule_that_fails_is_switched_off_after_three_times_and_training_goes_on(tmp_path: Path) -> None:
    rule = Failing(after=2, times=10**6)
    fitted = trainer([ComplexityEarlyStopping(rule, every_n_steps=1)], tmp_path, max_steps=20)
    with pytest.warns(UserWarning, match="out of order|disabled") as caught:
        fitted.fit(Fit(), batches(regression()))
    assert fitted.global_step == 20
    assert rule.checks == 5
    assert [str(w.message) for w in caught if "disabled after 3 failures" in str(w.message)]


def test_a_rule_that_fails_twice_is_given_another_chance(tmp_path: Path) -> None:
    rule = Failing(after=2, times=2)
    with pytest.warns(UserWarning, match="out of order"):
        trainer([ComplexityEarlyStopping(rule, every_n_steps=1)], tmp_path, max_steps=20).fit(
            Fit(), batches(regression())
        )
    assert rule.checks == 21


def test_strict_lets_a_failure_out_and_leaves_nothing_behind(tmp_path: Path) -> None:
    module = Fit()
    with pytest.raises(RuntimeError, match="out of order"):
        trainer([ComplexityEarlyStopping(Failing(2, 1), every_n_steps=1, strict=True)], tmp_path).fit(
            module, batches(regression())
        )
    assert all(not m._forward_hooks and not m._backward_hooks for m in module.modules())
    assert all(m.training for m in module.modules())


def test_two_of_them_in_one_trainer_keep_their_states_apart(tmp_path: Path) -> None:
    pair = [ComplexityEarlyStopping(every_n_steps=n) for n in (2, 3)]
    assert len({stopping.state_key for stopping in pair}) == 2
    saving = ModelCheckpoint(tmp_path / "both", every_n_train_steps=8)
    trainer([*pair, saving], tmp_path, enable_checkpointing=True, max_steps=8).fit(Fit(), batches(regression()))
    state = torch.load(saving.best_model_path, weights_only=False)["callbacks"]
    assert {stopping.state_key for stopping in pair} <= state.keys()


def test_a_run_that_diverges_goes_back_to_its_best_weights(tmp_path: Path) -> None:
    class Diverging(Fit):
        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch) * (torch.inf if self.global_step >= 60 else 1.0)

    stopping, weights, module = (
        ComplexityEarlyStopping(SpectralRisk(), every_n_steps=4, strict=True),
        Weights(),
        Diverging(),
    )
    trainer([weights, stopping], tmp_path, max_steps=80).fit(module, batches(regression()))
    assert not all(tensor.isfinite().all() for tensor in weights.after[80].values())
    assert stopping.best_step is not None
    assert stopping.best_step <= 60
    assert same(dict(module.state_dict()), weights.after[stopping.best_step])


def test_the_same_model_on_other_data_is_shown_the_other_data(tmp_path: Path) -> None:
    stopping, module = ComplexityEarlyStopping(strict=True), Fit()
    for seed in (1, 2):
        data = regression(seed=seed)
        trainer([stopping], tmp_path, max_steps=3).fit(module, batches(data))
        assert sorted(stopping.probe.feature_matrix()[:, 0].tolist()) == pytest.approx(
            sorted(
                (
                    (data.tensors[0][:, 0] - data.tensors[0][:, 0].mean()) / data.tensors[0][:, 0].std(correction=0)
                ).tolist()
            ),
            rel=1e-2,
            abs=1e-2,
        )


def test_a_checkpoint_of_other_examples_is_not_taken_for_these(tmp_path: Path) -> None:
    first, other = (
        ComplexityEarlyStopping(SpectralRisk(), strict=True),
        ComplexityEarlyStopping(SpectralRisk(), strict=True),
    )
    trainer([first], tmp_path, max_steps=12).fit(Fit(), batches(regression(seed=1)))
    other.load_state_dict(first.state_dict())
    trainer([other], tmp_path, max_steps=16).fit(Fit(), batches(regression(seed=2)))
    alone = ComplexityEarlyStopping(SpectralRisk(), strict=True)
    trainer([alone], tmp_path, max_steps=1).fit(Fit(), batches(regression(seed=2)))
    one, two = (stopping.watch.state_dict()["initial"] for stopping in (other, alone))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("when", ["before", "after"])
def test_other_processes_can_be_started_with_it(when: str, tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(every_n_steps=2, strict=True)
    if when == "after":
        trainer([stopping], tmp_path, max_steps=4).fit(Fit(), batches(regression()))
    again = pickle.loads(pickle.dumps(stopping))
    assert (again.every_n_steps, again.best_step, again.state_key) == (2, stopping.best_step, stopping.state_key)
    trainer([again], tmp_path, max_steps=4).fit(Fit(), batches(regression()))


def test_a_few_gradients_do_not_refuse_a_rule(tmp_path: Path) -> None:
    for seed in range(3):
        stopping = ComplexityEarlyStopping(strict=True)
        trainer([stopping], tmp_path, max_steps=2).fit(Fit(), batches(regression(seed=seed), batch_size=1))


def test_class_weights_are_no_reason_to_refuse(tmp_path: Path) -> None:
    class Weighted(Fit):
        def loss(self, batch: Any) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1], weight=torch.tensor([1.0, 3.0, 0.5]))

    stopping = ComplexityEarlyStopping(strict=True)
    trainer([stopping], tmp_path).fit(Weighted(inputs=4, outputs=3), batches(blobs()))
    assert stopping.stopped_step is not None


def test_random_augmentation_is_warned_of(tmp_path: Path) -> None:
    class Shaken(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.data = regression()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> Any:
            x, y = self.data[index]
            return x + 0.05 * torch.randn(5), y

    with pytest.warns(UserWarning, match="augmented at random"):
        trainer([ComplexityEarlyStopping(SpectralRisk(), strict=True)], tmp_path, max_steps=8).fit(
            Fit(), batches(Shaken())
        )


def test_the_picture_shows_no_kept_step_where_the_last_weights_stay(tmp_path: Path) -> None:
    for data, stays in ((regression(noise=0.0), True), (regression(), False)):
        stopping = ComplexityEarlyStopping(strict=True)
        trainer([stopping], tmp_path, max_steps=300 if stays else 1500).fit(Fit(), batches(data))
        picture = stopping.watch.reading().pictures["stopping/curve"]
        assert picture.kept in ((None, 300) if stays else (stopping.best_step,))  # type: ignore[union-attr]


def test_averaged_weights_that_would_replace_the_best_are_named(tmp_path: Path) -> None:
    class MyWeightAveraging(pl.Callback):
        pass

    behind = [ComplexityEarlyStopping(strict=True), MyWeightAveraging()]
    with pytest.warns(UserWarning, match="MyWeightAveraging comes after"):
        trainer(behind, tmp_path, max_steps=1).fit(Fit(), batches(regression()))
    with pytest.warns(UserWarning, match="MyWeightAveraging comes before .* replace its average"):
        trainer(behind[::-1], tmp_path, max_steps=1).fit(Fit(), batches(regression()))


def test_a_whole_fit_of_a_classifier_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*(num_workers|log_every_n_steps|isinstance\\(treespec).*")
        stopping = ComplexityEarlyStopping()
        trainer([stopping], tmp_path).fit(Fit(inputs=4, outputs=3), batches(blobs()))
    assert stopping.stopped_step is not None
