"""The model's output is found in the training steps that people write, and what is no output is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.probe import ProbeReading, ProbeSet

Step = Callable[[nn.Module, Any], Tensor]

torch.manual_seed(0)
X, Y, Z = torch.randn(130, 6), torch.arange(130) % 4, torch.randn(130, 4)


def read(module: nn.Module, step: Step, batch: Any = (X, Y), n: int = 128) -> ProbeReading:
    module.double()
    probe = ProbeSet(128)
    double = [t.double() if t.is_floating_point() else t for t in batch]
    for start, stop in ((0, 50), (50, 100), (100, n)):
        probe.keep([t[start:stop] for t in double], stop - start)
    return probe.read(module, lambda held: step(module, held))


def net(width: int = 4) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, width))


class Model(nn.Module):
    """A module that holds a net and whatever else a test gives it."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.net = net()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def onehot_minus_softmax(scores: Tensor, y: Tensor = Y[:128]) -> Tensor:
    return F.one_hot(y, scores.shape[-1]) - scores.softmax(-1)


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


CRITERIA: dict[str, tuple[dict[str, Any], Step]] = {
    "self(x)": ({}, lambda m, b: F.cross_entropy(m(b[0]), b[1])),
    "self.net(x)": ({}, lambda m, b: F.cross_entropy(m.net(b[0]), b[1])),
    "criterion": ({"loss": nn.CrossEntropyLoss()}, lambda m, b: m.loss(m.net(b[0]), b[1])),
    "none, then mean": (
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        lambda m, b: m.loss(m(b[0]), b[1]).mean(),
    ),
    "sum": ({"loss": nn.CrossEntropyLoss(reduction="sum")}, lambda m, b: m.loss(m(b[0]), b[1])),
    "penalty": ({}, lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 0.1 * sum(p.square().sum() for p in m.parameters())),
    "penalty of all parameters in one": (
        {},
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) + torch.cat([p.flatten() for p in m.parameters()]).norm(),
    ),
    "distance from where it began": (
        {},
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) + F.mse_loss(m.net[0].weight, torch.ones(8, 6).double()),
    ),
    "frozen backbone": (
        {},
        lambda m, b: F.cross_entropy(m.net[2](m.net[0].requires_grad_(False)(b[0]).tanh()), b[1]),
    ),
    "one loss for each example": ({}, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")),
    "loss of shape [1]": ({}, lambda m, b: F.cross_entropy(m(b[0]), b[1]).view(1)),
}


@pytest.mark.parametrize("kind", CRITERIA)
def test_residual_is_onehot_minus_softmax_of_the_net(kind: str) -> None:
    parts, step = CRITERIA[kind]
    module = Model(**parts)
    reading = read(module, step)
    scores = module.net(X[:128].double()).detach()
    same(reading.outputs, scores)
    same(reading.residuals, onehot_minus_softmax(scores))
    assert not reading.coupled


def test_half_squared_error_leaves_target_minus_output_also_squeezed() -> None:
    module = Model(net=net(1))
    reading = read(module, lambda m, b: 0.5 * F.mse_loss(m(b[0]).squeeze(-1), b[1]), (X, Z[:, 0]))
    same(reading.residuals, Z[:128, :1].double() - reading.outputs)

    class Squeezed(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).squeeze()

    module = Squeezed(net=net(1))
    reading = read(module, lambda m, b: 0.5 * F.mse_loss(m(b[0]), b[1]), (X, Z[:, 0]))
    same(reading.residuals, Z[:128, :1].double() - module(X[:128].double()).detach()[:, None])


def test_absolute_error_of_targets_all_on_one_side_is_no_per_example_loss() -> None:
    reading = read(Model(), lambda m, b: (m(b[0]) - b[1]).abs().sum(1).mean(), (X, Z + 100))
    assert torch.equal(reading.residuals, torch.ones(128, 4).double())


class Hugging(nn.Module):
    """Returns loss and logits in one, as the transformers library does."""

    def __init__(self, kind: Callable[..., Any], reduction: str = "mean") -> None:
        super().__init__()
        self.first, self.head, self.kind, self.reduction = nn.Linear(6, 8), nn.Linear(8, 4), kind, reduction

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        hidden = self.first(x).tanh()
        logits = self.head(hidden) * 2
        loss = F.cross_entropy(logits, labels, reduction=self.reduction)
        return self.kind(loss=loss, logits=logits, hidden=hidden)


@dataclasses.dataclass
class Output:
    loss: Tensor
    logits: Tensor
    hidden: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, name)


class Attributes(dict):
    """Like OrderedDict, but a Mapping of its own."""


@pytest.mark.parametrize("kind", [dict, Attributes, Output])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_and_logits_returned_together(kind: Callable[..., Any], reduction: str) -> None:
    module = nn.ModuleDict({"model": Hugging(kind, reduction)})
    reading = read(module, lambda m, b: m["model"](b[0], labels=b[1])["loss"].mean())
    with torch.no_grad():
        logits = module["model"](X[:128].double(), Y[:128])["logits"]
    same(reading.outputs, logits)
    same(reading.residuals, onehot_minus_softmax(logits))
    assert reading.source == "output of model"


class PerExample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.inner(x), y, reduction="none")


def test_a_module_that_returns_one_loss_for_each_example_is_not_taken_for_its_output() -> None:
    module = nn.ModuleDict({"model": PerExample()})
    reading = read(module, lambda m, b: m["model"](b[0], b[1]).mean())
    same(reading.residuals, onehot_minus_softmax(module["model"].inner(X[:128].double()).detach()))
    assert reading.source == "output of model.inner"


def test_a_bare_score_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"linear in the output of the module itself, .* pass ProbeSet\(loss_fn"):
        read(Model(net=nn.Linear(6, 1)), lambda m, b: -m(b[0]).mean())


@pytest.mark.parametrize("activation", [nn.Softmax(-1), nn.Tanh()])
def test_a_final_activation_belongs_to_the_output(activation: nn.Module) -> None:
    module = Model(net=nn.Sequential(*net(), activation))
    reading = read(module, lambda m, b: 0.5 * F.mse_loss(m(b[0]), b[1], reduction="none").sum(1).mean(), (X, Z))
    same(reading.outputs, module.net(X[:128].double()).detach())
    same(reading.residuals, Z[:128].double() - reading.outputs)


def test_a_skip_around_the_last_layer_belongs_to_the_output() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x).tanh()
            return z + self.last(z)

    module = Model(net=Skip())
    reading = read(module, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]))
    same(reading.outputs, module.net(X[:128].double()).detach())
    same(reading.residuals, onehot_minus_softmax(reading.outputs))


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mu + torch.randn_like(mu) * (0.5 * logvar).exp()).tanh(), mu, logvar


@pytest.mark.parametrize("together", [True, False])
def test_a_vae_leaves_the_error_of_each_output_with_the_others_held_fixed(together: bool) -> None:
    def step(m: Vae, b: Any) -> Tensor:
        if together:
            recon, mu, logvar = m(b[0])
        else:
            mu, logvar = m.encoder(b[0]).chunk(2, dim=1)
            recon = m.decoder(mu + torch.randn_like(mu) * (0.5 * logvar).exp()).tanh()
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()
        return 0.5 * (recon - b[0]).square().sum(1).mean() + kl

    module = Vae()
    torch.manual_seed(0)
    reading = read(module, step)
    with torch.no_grad():
        code = module.encoder(X[:128].double())
    of_code = torch.cat([-code[:, :2], 0.5 - 0.5 * code[:, 2:].exp()], 1)
    if together:
        same(reading.residuals[:, :6], X[:128].double() - reading.outputs[:, :6])
        same(reading.residuals[:, 6:], of_code)
    else:
        linear = module.decoder.weight.detach()
        assert reading.source == "output of encoder and decoder, at one draw of its random numbers"
        same(reading.residuals[:, :4], of_code)
        decoded = reading.outputs[:, 4:]
        same(reading.residuals[:, 4:], (X[:128].double() - decoded.tanh()) * (1 - decoded.tanh() ** 2))
        assert linear.shape == (6, 2)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.classes, self.values = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        z = self.trunk(x).relu()
        return {"class": self.classes(z), "deep": [self.values(z)]}


@pytest.mark.parametrize("one_module", [True, False])
def test_two_heads_with_two_losses(one_module: bool) -> None:
    def step(m: Any, b: Any) -> Tensor:
        if one_module:
            out = m["both"](b[0])
            scores, values = out["class"], out["deep"][0]
        else:
            z = m["both"].trunk(b[0]).relu()
            scores, values = m["both"].classes(z), m["both"].values(z)
        return F.cross_entropy(scores, b[1]) + 0.5 * F.mse_loss(values[:, 0], b[2])

    reading = read(nn.ModuleDict({"both": TwoHeads()}), step, (X, Y, Z[:, 0]))
    same(reading.residuals[:, :4], onehot_minus_softmax(reading.outputs[:, :4]))
    same(reading.residuals[:, 4], Z[:128, 0].double() - reading.outputs[:, 4])
    assert reading.source == ("output of both" if one_module else "output of both.classes and both.values")


def test_sequences_with_flattened_cross_entropy() -> None:
    ids = torch.randint(9, (130, 7))
    module = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 9))

    def step(m: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(m(b[0])[:, :-1].reshape(-1, 9), b[0][:, 1:].reshape(-1))

    reading = read(module, step, (ids,))
    scores = reading.outputs.view(128, 7, 9)
    residuals = reading.residuals.view(128, 7, 9)
    same(residuals[:, :-1] * 6, onehot_minus_softmax(scores[:, :-1], ids[:128, 1:]))
    assert not residuals[:, -1].any()


def test_a_temperature_belongs_to_the_loss() -> None:
    module = Model(temperature=nn.Parameter(torch.tensor(0.5)))
    reading = read(module, lambda m, b: F.cross_entropy(m(b[0]) * m.temperature.exp(), b[1]))
    scale = module.temperature.exp().item()
    same(reading.residuals, onehot_minus_softmax(scale * reading.outputs))


def test_a_frozen_network_inside_the_loss_is_not_the_output() -> None:
    module = Model(net=net(6), perceptual=nn.Linear(6, 3).requires_grad_(False))
    reading = read(module, lambda m, b: (m.perceptual(m(b[0])) - m.perceptual(b[0])).square().sum(1).mean())
    same(reading.outputs, module.net(X[:128].double()).detach())


def test_an_output_changed_in_place_is_what_the_loss_sees() -> None:
    module = Model()
    reading = read(module, lambda m, b: F.cross_entropy(m(b[0]).mul_(2), b[1]))
    same(reading.outputs, 2 * module.net(X[:128].double()).detach())
    same(reading.residuals, onehot_minus_softmax(reading.outputs))


REFUSED: dict[str, tuple[dict[str, Any], Step]] = {
    "criterion with weights": (
        {"bilinear": nn.Bilinear(4, 4, 1)},
        lambda m, b: F.cross_entropy(m(b[0]) @ m.bilinear.weight[0], b[1]),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_that_act_beside_every_output_are_refused(kind: str) -> None:
    parts, step = REFUSED[kind]
    with pytest.raises(ValueError, match=r"no output of a submodule .* carries the whole loss.*ProbeSet\(loss_fn"):
        read(Model(**parts), step)


def test_weights_that_meet_the_output_entry_by_entry_are_held_fixed_where_each_entry_has_its_own_error() -> None:
    squared = lambda m, b: ((m(b[0]) - b[0][:, :4]) / m.noise).square().mean()  # noqa: E731
    reading = read(Model(noise=nn.Parameter(torch.tensor([1.0, 2, 3, 4]))), squared)
    same(reading.residuals, X[:128, :4].double() - reading.outputs)
    beside = lambda m, b: F.cross_entropy(m(b[0]) + b[0] @ m.direct, b[1])  # noqa: E731
    refused = read(Model(direct=nn.Parameter(torch.randn(6, 4))), beside)
    assert "the parameter direct acts on the loss beside the output of" in refused.no_residual


@pytest.mark.parametrize("part", ["net", "whole"])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_net_is_read_and_compiled_code_stays_valid(part: str) -> None:
    module = Model().double()
    compiled = torch.compile(module.net if part == "net" else module, backend="aot_eager")
    whole = nn.ModuleDict({"c": compiled})
    loss = F.cross_entropy(compiled(X[:50].double()), Y[:50])
    loss.backward()
    gradient = module.net[0].weight.grad.clone()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    reading = read(whole, lambda m, b: F.cross_entropy(m["c"](b[0]), b[1]))
    same(reading.residuals, onehot_minus_softmax(module.net(X[:128].double()).detach()))
    assert reading.source == "output of c"
    whole.zero_grad()
    F.cross_entropy(compiled(X[:50].double()), Y[:50]).backward()
    assert torch.equal(module.net[0].weight.grad, gradient)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # nothing had to be compiled again
