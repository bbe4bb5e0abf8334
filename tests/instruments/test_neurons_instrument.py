"""Shares of neurons over the hidden layers, single layers on request, and the way to a teacher."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _views import seen
from torch import Tensor, nn

from lightning_cx.functional import neuron_report
from lightning_cx.functional.neurons import teacher_alignment
from lightning_cx.instruments import Neurons, Reading, quantities
from lightning_cx.instruments.neurons import SHARES, TEACHER

X = (torch.arange(64 * 10).float() * 0.7).sin().view(64, 10)
Y = torch.zeros(64, 2)


def network(activation: type[nn.Module] = nn.Tanh, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 8), activation(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


def shallow(width: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 2))


def read(net: nn.Module, **options: Any) -> Reading:
    return Neurons(**options).on_model(*seen(net, X, Y))


def explained(reading: Reading) -> bool:
    """Whether every nan has its reason, and nothing else has."""
    return {tag for tag, value in reading.scalars.items() if math.isnan(value)} == set(reading.refusals)


def test_planted_copies_dead_and_silent_neurons_are_counted_over_all_layers() -> None:
    net = network()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = -net[0].weight[1], -net[0].bias[1]  # tanh is odd: a copy
        net[2].weight[:, 5] = 0  # nobody listens to neuron 5 of the first layer
        net[2].bias[2] = -100  # ReLU never fires
    reading = read(net, per_layer=True)
    assert reading.scalars[quantities.NEURONS_DUPLICATES] == pytest.approx(1 / 14)
    assert reading.scalars[quantities.NEURONS_DEAD] == pytest.approx(1 / 14)
    assert reading.scalars[quantities.NEURONS_SILENT] == pytest.approx(1 / 14)
    assert reading.scalars["neurons/duplicates_layers/0"] == pytest.approx(1 / 8)
    assert reading.scalars["neurons/dead_layers/2"] == pytest.approx(1 / 6)
    assert reading.scalars["neurons/silent_layers/0"] == pytest.approx(1 / 8)
    assert reading.scalars["neurons/silent_layers/2"] == 0
    assert explained(reading)
    assert "- `0`, read by `2` from `1`: 8 neurons: 12% are copies" in reading.texts[quantities.NEURONS_CARD]


def test_opposite_neurons_are_copies_for_odd_activations_alone() -> None:
    for activation, share in ((nn.Tanh, 1 / 14), (nn.ReLU, 0.0)):
        net = network(activation)
        with torch.no_grad():
            net[0].weight[3], net[0].bias[3] = -net[0].weight[1], -net[0].bias[1]
        assert read(net).scalars[quantities.NEURONS_DUPLICATES] == pytest.approx(share)


def test_ranks_are_those_of_the_outputs_after_the_activation() -> None:
    net = network()
    scalars = read(net).scalars
    hidden = [net[:2](X).detach(), net[:4](X).detach()]
    ranks = [torch.linalg.matrix_rank(h.double(), rtol=1e-4) for h in hidden]
    assert scalars[quantities.NEURONS_RANK] == pytest.approx(float(sum(ranks)) / 14)
    weights = net[0].weight.detach(), net[2].weight.detach()
    effective = [neuron_report(w, activations=h).effective_rank or 0.0 for w, h in zip(weights, hidden, strict=True)]
    assert scalars[quantities.NEURONS_EFFECTIVE_RANK] == pytest.approx(sum(effective) / 14, rel=1e-6)


def test_layers_can_be_chosen_and_what_cannot_be_told_is_refused_by_name() -> None:
    net = network()
    with torch.no_grad():
        net[2].bias[2] = -100
    assert read(net, layers=["0"]).scalars[quantities.NEURONS_DEAD] == 0
    reading = read(net, layers=["0", "4", "nope"])
    assert "no layer was found that reads '4' neuron by neuron" in reading.refusals["neurons/duplicates_layers/4"]
    assert reading.refusals["neurons/duplicates_layers/nope"].endswith("of the model; it has 0, 2, 4")
    assert math.isfinite(reading.scalars[quantities.NEURONS_DEAD])
    assert explained(reading)
    nothing = read(net, layers=["4"], teacher=net)
    assert set(nothing.scalars) == {*SHARES, *TEACHER}
    assert explained(nothing)


def test_a_model_without_hidden_layers_is_refused() -> None:
    reading = read(nn.Linear(10, 2))
    assert set(reading.refusals.values()) == {
        "the model has no hidden linear or convolution layer that can be identified"
    }
    assert explained(reading)


def test_with_too_few_inputs_copies_are_not_counted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 2))
    reading = Neurons().on_model(*seen(net, X[:, :1], Y))
    assert math.isnan(reading.scalars[quantities.NEURONS_DUPLICATES])
    assert reading.refusals[quantities.NEURONS_DUPLICATES].startswith("100% of random neurons would look like copies")
    assert explained(reading)
    assert math.isfinite(reading.scalars[quantities.NEURONS_DEAD])


def test_few_examples_leave_dead_neurons_open() -> None:
    reading = Neurons().on_model(*seen(network(), X[:20], Y[:20]))
    assert math.isnan(reading.scalars[quantities.NEURONS_DEAD])
    assert math.isfinite(reading.scalars[quantities.NEURONS_RANK])
    assert explained(reading)


def test_weights_that_are_not_finite_are_refused() -> None:
    net = shallow()
    teacher = copy.deepcopy(net)
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    reading = read(net, teacher=teacher)
    assert math.isnan(reading.scalars[quantities.NEURONS_DUPLICATES])
    assert math.isnan(reading.scalars[quantities.NEURONS_ALIGNMENT])
    assert explained(reading)


# Teacher ----------------------------------------------------------------------------------------------------


def renamed(net: nn.Sequential) -> nn.Sequential:
    """The same function with its neurons in another order, two of them turned."""
    other, order = copy.deepcopy(net), torch.tensor([2, 0, 3, 1])
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight[order] * sign[:, None])
        other[0].bias.copy_(net[0].bias[order] * sign)
        other[2].weight.copy_(net[2].weight[:, order] * sign)
    return other


def test_a_student_that_is_the_teacher_under_other_names_is_recovered() -> None:
    teacher = shallow()
    reading = read(renamed(teacher), teacher=teacher)
    assert reading.scalars[quantities.NEURONS_ALIGNMENT] == pytest.approx(1)
    assert reading.scalars[quantities.NEURONS_TEACHER_DISTANCE] == pytest.approx(0, abs=1e-6)
    assert reading.scalars[quantities.NEURONS_ALIGNMENT_CHANCE] < 0.6
    assert explained(reading)
    assert "alignment with the teacher's neurons 1.000" in reading.texts[quantities.NEURONS_CARD]


def test_a_stranger_is_aligned_as_by_chance() -> None:
    student, teacher = shallow(6, seed=1), shallow(4, seed=2)
    reading = read(student, teacher=teacher)
    mine, theirs = (torch.cat([n[0].weight, n[0].bias[:, None]], 1).detach() for n in (student, teacher))
    assert reading.scalars[quantities.NEURONS_ALIGNMENT] == pytest.approx(teacher_alignment(mine, theirs).value)
    assert (
        abs(reading.scalars[quantities.NEURONS_ALIGNMENT] - reading.scalars[quantities.NEURONS_ALIGNMENT_CHANCE]) < 0.2
    )
    assert "the same shape" in reading.refusals[quantities.NEURONS_TEACHER_DISTANCE]
    assert explained(reading)


def test_a_teacher_may_be_a_module_a_state_dict_or_a_checkpoint_with_other_prefixes(tmp_path: Path) -> None:
    teacher = shallow()
    prefixed = {f"net.{name}": value for name, value in teacher.state_dict().items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, tmp_path / "lightning.ckpt")
    torch.save(teacher.state_dict(), tmp_path / "plain.pt")
    student = renamed(teacher)
    kinds: list[Any] = [
        teacher,
        teacher.state_dict(),
        prefixed,
        tmp_path / "lightning.ckpt",
        str(tmp_path / "plain.pt"),
    ]
    for kind in kinds:
        assert read(student, teacher=kind).scalars[quantities.NEURONS_ALIGNMENT] == pytest.approx(1)


def test_a_teacher_that_cannot_be_compared_is_refused_by_name() -> None:
    reading = read(shallow(), teacher={"encoder.weight": torch.ones(3, 10)})
    assert (
        reading.refusals[quantities.NEURONS_ALIGNMENT] == "the teacher has 0 layers that could be '0'; it has encoder"
    )
    assert explained(reading)
    wide = read(shallow(), teacher={"0.weight": torch.ones(3, 11)})
    assert "weights [m, d] of the same inputs" in wide.refusals[quantities.NEURONS_ALIGNMENT]
    deep = read(network(), teacher=network(seed=1))
    assert math.isfinite(deep.scalars[quantities.NEURONS_ALIGNMENT])
    assert "defined for one hidden layer" in deep.refusals[quantities.NEURONS_TEACHER_DISTANCE]
    assert explained(deep)


def test_a_bias_that_one_of_them_lacks_counts_as_zero() -> None:
    student = shallow()
    with torch.no_grad():
        student[0].bias.zero_()
    teacher = {name: value for name, value in student.state_dict().items() if name != "0.bias"}
    assert read(student, teacher=teacher).scalars[quantities.NEURONS_TEACHER_DISTANCE] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"examples": 0}, "examples=0"),
        ({"every_n_steps": 0}, "every_n_steps is at least 1"),
        ({"teacher": "nowhere.ckpt"}, "there is no file 'nowhere.ckpt'"),
        ({"teacher": {}}, "the teacher has no weights"),
        ({"teacher": nn.ReLU()}, "the teacher has no weights"),
    ],
)
def test_wrong_arguments_raise(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Neurons(**wrong)


def test_nothing_is_remembered() -> None:
    instrument = Neurons(teacher=shallow())
    instrument.reset()
    assert instrument.state_dict() == {}


def test_half_of_a_model_in_bfloat16_is_read_too() -> None:
    net = network()

    def cast(f: Tensor, y: Tensor) -> Tensor:
        return (f.float() - y).square().mean()

    reading = Neurons().on_model(*seen(net.bfloat16(), X.bfloat16(), Y, cast))
    assert math.isfinite(reading.scalars[quantities.NEURONS_RANK])


def test_files_that_hold_more_than_weights_say_what_to_do(tmp_path: Path) -> None:
    rubbish, module = tmp_path / "rubbish", tmp_path / "module.pt"
    rubbish.write_text("rubbish")
    torch.save(shallow(), module)
    for path in (rubbish, module):
        with pytest.raises(ValueError, match=r"is not read as weights .*: load it yourself, and pass the module"):
            Neurons(teacher=path)


def test_a_teacher_whose_layer_of_that_name_is_a_norm_is_refused() -> None:
    reading = read(shallow(), teacher=nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 2)))
    assert explained(reading)
    assert reading.refusals[quantities.NEURONS_ALIGNMENT].startswith(
        "the teacher's layer '0' is no linear or convolution"
    )
