"""What every torchmetrics.Metric can do, these can."""

import pickle

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from _metric_data import examples, gradients, gram
from torch import nn
from torchmetrics import ClasswiseWrapper, Metric, MetricCollection

from lightning_cx.metrics import GradientNoiseScale, MedianComplexity, ResidualSpectrum, TailIndex

EACH = pytest.mark.parametrize("kind", [MedianComplexity, ResidualSpectrum, GradientNoiseScale, TailIndex])


def inputs(kind: type[Metric], part: int = 0) -> tuple[torch.Tensor, ...]:
    if kind is TailIndex:
        return (gradients(seed=part),)
    return (gram(seed=part),) if kind is GradientNoiseScale else examples(60, seed=10 * part)


def updated(kind: type[Metric], *parts: int) -> Metric:
    metric = kind()
    for part in parts:
        metric.update(*inputs(kind, part))
    return metric


def states_are_double(metric: Metric) -> bool:
    states = [t for state in metric.metric_state.values() for t in (state if isinstance(state, list) else [state])]
    return {t.dtype for t in states if t.is_floating_point()} == {torch.float64}


@EACH
def test_reset_forgets(kind):
    metric = updated(kind, 0)
    metric.reset()
    metric.update(*inputs(kind, 1))
    assert torch.equal(metric.compute(), updated(kind, 1).compute())


@EACH
def test_a_metric_survives_pickling_and_cloning(kind):
    metric = updated(kind, 0)
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        copy.update(*inputs(kind, 1))
        assert torch.equal(copy.compute(), updated(kind, 0, 1).compute())
    assert torch.equal(metric.compute(), updated(kind, 0).compute())


@EACH
def test_states_are_saved_when_asked_for(kind):
    metric = updated(kind, 0)
    assert metric.state_dict() == {}
    metric.persistent(True)
    restored = kind()
    restored.persistent(True)
    restored.load_state_dict(metric.state_dict())
    restored.update(*inputs(kind, 1))
    assert torch.equal(restored.compute(), updated(kind, 0, 1).compute())


@EACH
@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.float(),
        lambda module: module.bfloat16(),
        lambda module: module.to(torch.bfloat16),  # what Trainer(precision="bf16-true") calls
        lambda module: module.to("cpu", torch.float16),
        lambda module: [metric.set_dtype(torch.float16) for metric in module],
    ],
    ids=["half", "float", "bfloat16", "to bfloat16", "to device and float16", "set_dtype"],
)
def test_states_stay_double_whatever_the_module_is_cast_to(kind, cast):
    metric = updated(kind, 0)
    cast(nn.ModuleList([metric]))
    assert states_are_double(metric)
    metric.update(*inputs(kind, 1))
    assert torch.equal(metric.compute(), updated(kind, 0, 1).compute())
    metric.reset()
    metric.update(*inputs(kind, 2))
    assert states_are_double(metric)
    assert torch.equal(metric.compute(), updated(kind, 2).compute())


@EACH
def test_a_metric_moves_to_another_device(kind):
    metric = updated(kind, 0).to("meta")
    assert metric.device == torch.device("meta")
    assert all(
        t.is_meta for state in metric.metric_state.values() for t in (state if isinstance(state, list) else [state])
    )


@EACH
def test_compute_on_cpu_changes_nothing(kind):
    metric = kind(compute_on_cpu=True)
    for part in range(3):
        metric.update(*inputs(kind, part))
    assert torch.equal(metric.compute(), updated(kind, 0, 1, 2).compute())


@EACH
def test_nothing_keeps_the_graph_of_the_inputs_alive(kind):
    metric = kind()
    result = metric(*(x.requires_grad_() for x in inputs(kind)))
    assert not result.requires_grad
    states = [t for state in metric.metric_state.values() for t in (state if isinstance(state, list) else [state])]
    assert not any(t.requires_grad for t in states)


@EACH
def test_the_flags_say_what_torchmetrics_wants_to_know(kind):
    assert kind.is_differentiable is False
    assert kind.higher_is_better is None
    assert kind.full_state_update is False


def test_a_collection_gathers_examples_once_for_both_metrics():
    collection = MetricCollection([MedianComplexity(max_examples=64), ResidualSpectrum(max_examples=64)])
    alone = {name: type(metric)(max_examples=64) for name, metric in collection.items()}
    for part in range(6):
        collection.update(*inputs(MedianComplexity, part))
        for metric in alone.values():
            metric.update(*inputs(MedianComplexity, part))
    assert len(collection.compute_groups) == 1
    result = collection.compute()
    assert all(torch.equal(result[name], metric.compute()) for name, metric in alone.items())
    collection.reset()
    first = collection(*inputs(MedianComplexity, 1))
    assert torch.equal(first["MedianComplexity"], updated(MedianComplexity, 1).compute())


def test_a_classwise_wrapper_makes_a_scalar_of_each_band():
    wrapper = ClasswiseWrapper(ResidualSpectrum())
    wrapper.update(*inputs(ResidualSpectrum))
    scalars = wrapper.compute()
    assert list(scalars)[:2] == ["residualspectrum_0", "residualspectrum_1"]
    assert torch.equal(torch.stack(list(scalars.values())), updated(ResidualSpectrum, 0).compute())


@EACH
def test_merging_equals_having_seen_both(kind):
    metric, other = updated(kind, 0), updated(kind, 1, 2)
    metric.compute()  # must not be returned again
    metric.merge_state(other)
    torch.testing.assert_close(metric.compute(), updated(kind, 0, 1, 2).compute(), rtol=1e-12, atol=0)
    torch.testing.assert_close(other.compute(), updated(kind, 1, 2).compute(), rtol=0, atol=0)


@EACH
def test_a_fresh_metric_can_gather_others(kind):
    total = kind()
    for part in (0, 1):
        total.merge_state(updated(kind, part))
    torch.testing.assert_close(total.compute(), updated(kind, 0, 1).compute(), rtol=1e-12, atol=0)


def test_merging_keeps_the_sample_small():
    total, whole = MedianComplexity(max_examples=32), MedianComplexity(max_examples=32)
    for part in range(5):
        single = MedianComplexity(max_examples=32)
        single.update(*inputs(MedianComplexity, part))
        whole.update(*inputs(MedianComplexity, part))
        total.merge_state(single)
    assert int(total.examples) <= 64
    assert torch.equal(total.compute(), whole.compute())


@EACH
@pytest.mark.parametrize("what", ["computed", "given", "several"])
def test_plot_draws_on_new_axes_or_on_those_given(kind, what):
    metric = updated(kind, 0)
    value = {"computed": None, "given": metric.compute(), "several": [metric.compute()] * 3}[what]
    figure, axes = metric.plot(value)
    figure.canvas.draw()
    assert axes.get_xaxis().get_visible() == (what == "several" or kind is ResidualSpectrum)
    plt.close(figure)
    mine, my_axes = plt.subplots()
    none, same = metric.plot(value, ax=my_axes)
    assert none is None
    assert same is my_axes
    assert my_axes.lines
    mine.canvas.draw()
    plt.close(mine)


def test_the_spectrum_is_drawn_on_a_logarithmic_axis_with_all_bands_in_sight():
    metric = updated(ResidualSpectrum, 0)
    bands = metric.compute()
    figure, axes = metric.plot()
    figure.canvas.draw()
    assert axes.get_yscale() == "log"
    assert [float(line.get_ydata()[0]) for line in axes.lines] == bands.tolist()
    low, high = axes.get_ylim()
    assert 0 < low < float(bands.min()) <= float(bands.max()) < high
    plt.close(figure)


def test_batches_of_different_sizes_are_drawn_with_the_bands_they_have():
    metric = ResidualSpectrum()
    spectra = [metric(*examples(n)) for n in (60, 60, 20)]
    assert len(spectra[2]) < len(spectra[0])
    figure, axes = metric.plot(spectra)
    figure.canvas.draw()
    assert len(axes.lines) == len(spectra[0])
    plt.close(figure)


@pytest.mark.parametrize(
    "bands", [torch.zeros(5), torch.full((5,), torch.nan), torch.tensor(2.0), torch.tensor([0.0, 1.0])]
)
def test_a_spectrum_with_nothing_to_see_is_drawn_without_complaint(bands):
    figure, axes = ResidualSpectrum().plot(bands)
    figure.canvas.draw()
    assert axes.get_yscale() == ("log" if bool((bands > 0).any()) else "linear")
    plt.close(figure)


@pytest.mark.parametrize("kind", [MedianComplexity, GradientNoiseScale, TailIndex])
def test_nan_is_drawn_without_complaint(kind):
    figure, _ = kind().plot(torch.tensor(torch.nan))
    figure.canvas.draw()
    plt.close(figure)
