"""What per-example gradients mean on models that people train: exact ones are held to the naive loop in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _architectures import BATCH, Training, flat, one_by_one
from _model_runs import BIG, MODELS, Run, batches, module_of
from _models import relative_error
from torch import Tensor, nn
from torch.nn import functional as F

OWN_LOSS = "each row is the derivative of the example's own loss"
SHARE = "each row is N times the example's share of the batch gradient"
REPLAYED = "sampled steps replay the batch one example at a time instead, which is slow"

# What is not exact, and the words that say so.
CONTRIBUTIONS = {
    "a causal language model with padded labels": "examples count unequally: longer sequences",
    "a ResNet with BatchNorm": "BatchNorm in training mode couples the examples",
    "experts with a load-balancing loss": "examples interact outside of BatchNorm",
    "a contrastive loss": "examples interact outside of BatchNorm",
}
REPLAYS = {
    "an LSTM over packed sequences": "IndexSelectBackward0 picks or reorders rows",
    "experts that tokens are scattered to": "no multiple of the batch size",
}
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
EXACT = [name for name in MODELS if name not in (*CONTRIBUTIONS, *REPLAYS, *BIG)]


@pytest.mark.parametrize("name", EXACT)
def test_model_rows_are_those_of_the_naive_loop(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = module_of(name, watched=True)
    run = Run(module, batches(name), tmp_path, caplog)
    assert run.says("per-example gradients: exact, read from the training's own backward")
    assert run.says(OWN_LOSS)
    assert [text for text in run.warnings if "gradients" in text or "unsupported" in text] == []
    assert len(run.samples) == len(module.truth) == 8
    for sample, truth in zip(run.samples, module.truth, strict=True):
        assert sample.status == "exact"
        assert relative_error(sample.gram, truth) < 2e-6


@pytest.mark.parametrize("name", REPLAYS)
def test_model_that_picks_rows_is_replayed_and_says_so(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = module_of(name, watched=True)
    run = Run(module, batches(name), tmp_path, caplog)
    assert run.says(REPLAYS[name])
    assert run.says(REPLAYED)
    status = "unverified" if "packed" in name else "exact"  # of a batch the mean is over the tokens of all
    assert run.says(f"{status}, {BATCH} examples replayed one at a time")
    assert len(run.samples) == 7  # the first step found it out
    for sample, truth in zip(run.samples, module.truth[1:], strict=True):
        assert sample.status == status
        assert relative_error(sample.gram, truth) < 2e-6
    # Of one sequence alone the mean is over its own tokens, of a batch over all of them.
    assert run.says("the batch gradient is not their mean") == (name == "an LSTM over packed sequences")


class Summed(Training):
    """Also keeps the batch gradient of every step."""

    def on_train_start(self) -> None:
        self.norms: list[Tensor] = []

    def on_after_backward(self) -> None:
        parts = [flat(p.grad, p) for p in self.network.parameters() if p.requires_grad]
        self.norms.append(torch.cat(parts).double().square().sum())


@pytest.mark.parametrize("name", CONTRIBUTIONS)
def test_model_that_couples_its_examples_gives_shares_and_names_them(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = module_of(name)
    module = Summed(module.network, watched=False)
    run = Run(module, batches(name), tmp_path, caplog)
    assert run.says("per-example gradients: contribution, read from the training's own backward")
    assert run.says(SHARE)
    assert run.says(f"rows are contributions, since {CONTRIBUTIONS[name]}")
    assert len(run.samples) == 8
    for sample, norm in zip(run.samples, module.norms, strict=True):
        assert sample.status == "contribution"
        assert float(sample.gram.mean()) == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("name", BIG)
def test_model_of_one_big_graph_has_no_rows_and_is_refused_by_name(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(module_of(name), batches(name), tmp_path, caplog)
    assert run.samples == []
    assert run.says(
        "per-example gradients are off: unsupported: the batch cannot be split into examples (4 of its examples"
    )
    assert len([text for text in run.warnings if "gradients" in text]) == 1
    assert run.trainer.state.finished


def shares(module: Training, batch: object, weights: Tensor) -> Tensor:
    """Gram matrix of own losses that count by weight."""
    rows = one_by_one(module.network, batch, BATCH) * weights.double()[:, None]
    return rows @ rows.T


def test_model_with_padded_labels_counts_each_example_by_its_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "a causal language model with padded labels"
    module = module_of(name)
    first = next(iter(batches(name)))
    tokens = (first["labels"][:, 1:] != -100).sum(1)
    truth = shares(module, first, BATCH * tokens / tokens.sum())
    run = Run(module, batches(name), tmp_path, caplog)
    assert relative_error(run.samples[0].gram, truth) < 2e-6


def test_model_with_a_contrastive_loss_shows_what_each_pair_of_views_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The share of an example: its own views move, those of all others are held."""

    class Sharing(Training):
        def on_before_backward(self, loss: Tensor) -> None:
            x, network = self.batch_now[0][0], self.network
            views = [x + 0.1 * noise for noise in network.draws.kept]
            rows = []
            for i in range(len(x)):
                own = torch.arange(len(x))[:, None] == i
                z = torch.cat([torch.where(own, network(view), network(view).detach()) for view in views])
                scores = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
                share = len(x) * F.cross_entropy(scores, torch.arange(len(z)).roll(len(x)))
                found = torch.autograd.grad(share, list(network.parameters()))
                rows.append(torch.cat([g.flatten() for g in found]).double())
            self.truth.append(torch.stack(rows) @ torch.stack(rows).T)

    name = "a contrastive loss"
    module = Sharing(module_of(name).network)
    run = Run(module, batches(name), tmp_path, caplog)
    assert len(run.samples) == 8
    for sample, truth in zip(run.samples, module.truth, strict=True):
        assert relative_error(sample.gram, truth) < 1e-5


def test_model_parameters_that_are_frozen_are_no_part_of_the_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "low-rank adapters of a frozen base"
    run = Run(module_of(name), batches(name), tmp_path, caplog)
    assert {layer.rsplit(".", 1)[1] for layer in run.samples[0].layers} == {"a", "b"}


def test_model_with_two_names_for_one_tower_counts_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "a Siamese tower"
    module = module_of(name)
    assert isinstance(module.network.right[0], nn.Linear)
    run = Run(module, batches(name), tmp_path, caplog)
    assert set(run.samples[0].layers) == {f"network.left.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}


def test_model_page_says_of_each_model_what_is_tried_here() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    said = {cell[0]: cell[1].strip("`") for cell in cells if cell[0] in MODELS}
    wanted = dict.fromkeys(EXACT, "exact") | dict.fromkeys(CONTRIBUTIONS, "contribution")
    assert said == wanted | dict.fromkeys(REPLAYS, "replay") | dict.fromkeys(BIG, "off")
    for name, words in (CONTRIBUTIONS | REPLAYS).items():
        assert any(name in line and words in line for line in lines), name
