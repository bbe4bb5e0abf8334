"""On models that people train: residuals of the probe, stopping in time, and training that goes on as it would have."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from _architectures import Training
from _lightning import _bytes
from _model_runs import BIG, MODELS, Run, batches, module_of
from torch.nn import functional as F

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.instruments import SpectralBias

NO_INPUTS = "no output of a submodule with the examples along its first axis carries the whole loss"
MIXES = "the loss mixes examples (mixup, in-batch negatives), so nothing says what the output of one should become"
DRAWS = "the loss draws random numbers in eval mode, too (times, noise, a code), so part of what is left over is chance"
REFUSED = {
    "one big graph with labels for nodes": NO_INPUTS,
    "one big graph with labels for graphs": NO_INPUTS,
    "a contrastive loss": MIXES,
    "a variational autoencoder": DRAWS,
    "a diffusion model": DRAWS,
}
DRAWN = ("a variational autoencoder", "a diffusion model", "a contrastive loss")
COUPLED = (
    "a causal language model with padded labels",
    "an LSTM over packed sequences",
    "a contrastive loss",
)
OUTPUT = {"experts with a load-balancing loss": "network.h.0.mlp.router and network"}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in BIG])
def test_model_residuals_are_those_of_its_output(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = ComplexityMonitor([SpectralBias()], every_n_steps=1, probe=ProbeSet(size=128), strict=True)
    run = Run(module_of(name), batches(name), tmp_path, caplog, [monitor])
    assert math.isfinite(run.trainer.callback_metrics["complexity/residual_median"])
    assert monitor.probe.latest is not None
    reading = monitor.probe.latest[1]
    draw = ", at one draw of its random numbers" * (name in DRAWN)
    assert reading.source == f"output of {OUTPUT.get(name, 'network')}{draw}"
    assert reading.coupled == (name in COUPLED)
    assert len(reading.residuals) == 128


@pytest.mark.parametrize("name", BIG)
def test_model_of_one_big_graph_has_no_probe_and_says_so_once(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = ComplexityMonitor([SpectralBias()], every_n_steps=1, probe=ProbeSet(size=128))
    run = Run(module_of(name), batches(name), tmp_path, caplog, [monitor])
    assert [text for text in run.warnings if NO_INPUTS in text] == run.warnings
    assert len(run.warnings) == 1


@pytest.mark.parametrize("name", MODELS)
def test_model_is_watched_by_early_stopping_or_refused_by_name(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = ComplexityEarlyStopping(every_n_steps=2, probe=ProbeSet(size=128))
    run = Run(module_of(name), batches(name), tmp_path, caplog, [stopping])
    assert run.trainer.state.finished
    if name in REFUSED:
        assert run.says(f"ComplexityEarlyStopping is disabled: {REFUSED[name]}")
        assert REFUSED[name] in stopping.reason
    else:
        assert not run.says("is disabled")
        assert stopping.reason.startswith("the estimated risk")
        assert stopping.watch.begun


@pytest.mark.parametrize("name", MODELS)
def test_model_trains_bit_for_bit_as_without_us(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def trained(callbacks: list) -> tuple[bytes, ...]:
        module = module_of(name)
        run = Run(module, batches(name), tmp_path, caplog, callbacks)
        states = [optimizer.state_dict() for optimizer in run.trainer.optimizers]
        gradients = [None if p.grad is None else p.grad.to_dense() for p in module.parameters()]
        parts = module.state_dict(), states, gradients, torch.get_rng_state(), module.seen
        modes = [part.training for part in module.modules()]
        return *map(_bytes, parts), _bytes(modes), _bytes(module.network.draws.kept)

    probe = ProbeSet(size=128)
    ours = [
        ComplexityMonitor(every_n_steps=1, probe=probe),
        ComplexityEarlyStopping(every_n_steps=3, restore_best=False),
    ]
    assert trained(ours) == trained([])


def test_model_residuals_of_tokens_are_onehot_minus_softmax(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "a causal language model with tied embeddings"
    module, monitor = module_of(name), ComplexityMonitor(every_n_steps=1, probe=ProbeSet(size=128), strict=True)
    Run(module, batches(name), tmp_path, caplog, [monitor])
    data, chosen = (
        MODELS[name][1](),
        torch.randperm(160, generator=torch.Generator().manual_seed(0))[:128].sort().values,
    )
    rows = {key: column[chosen] for key, column in data.columns.items()}
    with torch.no_grad():
        scores = module.network.eval()(**rows)["logits"]
    wanted = F.one_hot(rows["labels"][:, 1:], 11) - scores[:, :-1].softmax(-1)
    assert monitor.probe.latest is not None
    found = monitor.probe.latest[1].residuals.view(128, 7, 11)
    torch.testing.assert_close(found[:, :-1], wanted.double() / 6, rtol=1e-4, atol=1e-6)  # a mean over six tokens
    assert not found[:, -1].any()


def test_model_that_draws_is_watched_with_a_loss_that_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the message recommends: the code of the autoencoder at its mean."""

    def losses(module: Training, batch: list[torch.Tensor]) -> torch.Tensor:
        network, x = module.network, batch[0]
        mean = network.encoder(x).chunk(2, 1)[0]
        return (network.decoder(mean) - x).pow(2).sum(1)

    stopping = ComplexityEarlyStopping(every_n_steps=2, probe=ProbeSet(size=128, loss_fn=losses))
    name = "a variational autoencoder"
    run = Run(module_of(name), batches(name), tmp_path, caplog, [stopping])
    assert not run.says("random numbers")
    assert run.trainer.state.finished
