"""LightningCLI: callbacks, their rule, probe and instruments from a YAML file and from the command line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_examples import EXAMPLES, main_of

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.instruments import GradientNoise, SpectralBias, quantities

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

YAML = EXAMPLES / "command_line.yaml"


# Lightning's command line calls what jsonargparse deprecates, some of it already when it is imported.
pytestmark = pytest.mark.filterwarnings(r"ignore:(?s)\s.*deprecat")


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch) -> None:
    """Lightning warns of arguments that stand on pytest's own."""
    monkeypatch.setattr(sys, "argv", ["command_line.py"])


def parsed(*arguments: str) -> LightningCLI:
    """What the command line of the example makes of these, without a run."""
    from lightning.pytorch.cli import LightningCLI

    example = sys.modules[main_of("command_line").__module__]
    return LightningCLI(example.Classifier, example.Digits, args=list(arguments), run=False)


def flat(batch: list[torch.Tensor]) -> torch.Tensor:
    """Features of a user's own."""
    return batch[0].flatten(1)


def settings(cli: LightningCLI) -> list[str]:
    return [_settings(callback) for callback in cli.trainer.callbacks if "lightning_cx" in type(callback).__module__]


def _settings(thing: Any) -> str:
    """Every argument of a constructor, as the object holds it."""
    names = inspect.signature(type(thing)).parameters
    values = {name: getattr(thing, name, None) for name in names}
    inside = {
        name: _settings(value) if isinstance(value, ProbeSet | SpectralBias) else value
        for name, value in values.items()
    }
    inside["instruments"] = [_settings(one) for one in values.get("instruments") or []]
    return f"{type(thing).__name__} {inside}"


@pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")
def test_the_yaml_of_the_example_runs_is_stopped_and_saves_a_config_that_makes_the_same_run(tmp_path: Path) -> None:
    folder = f"--trainer.logger.init_args.save_dir={tmp_path}"
    trained = main_of("command_line")(["fit", "--config", str(YAML), folder, "--trainer.max_epochs=40"])
    monitor, stopping = (c for c in trained.trainer.callbacks if "lightning_cx" in type(c).__module__)
    assert monitor.every_n_steps == 50
    assert [type(one) for one in monitor.instruments] == [GradientNoise, SpectralBias]
    assert monitor.instruments[1].per_band
    assert monitor.probe.size == 256
    assert stopping.probe is monitor.probe
    assert repr(stopping.rule) == "SpectralRisk(patience=5, z=1.645, doubling=True, sigma2=None)"
    assert trained.model.lr == 0.001
    assert 0 < stopping.best_step < stopping.stopped_step < 40 * 29
    assert quantities.shuffled(quantities.RESIDUAL_MEDIAN) in trained.trainer.callback_metrics
    saved = Path(trained.trainer.log_dir, "config.yaml")
    again = main_of("command_line")(["fit", "--config", str(saved), "--trainer.max_epochs=1"])
    assert settings(again) == settings(trained)


def test_a_callback_is_added_on_the_command_line_by_its_short_name() -> None:
    logger = ["--trainer.logger=false", "--trainer.accelerator=cpu"]
    alone = parsed(*logger, "--trainer.callbacks+=ComplexityMonitor", "--trainer.callbacks.every_n_steps=7")
    assert [one.every_n_steps for one in alone.trainer.callbacks if isinstance(one, ComplexityMonitor)] == [7]
    stopping = "--trainer.callbacks+=ComplexityEarlyStopping"
    rule = ["--trainer.callbacks.rule=ResidualWhiteness", "--trainer.callbacks.rule.patience=4"]
    beside = parsed("--config", str(YAML), *logger, stopping, *rule)
    ours = [one for one in beside.trainer.callbacks if isinstance(one, ComplexityMonitor | ComplexityEarlyStopping)]
    assert [type(one).__name__ for one in ours] == ["ComplexityMonitor", *2 * ["ComplexityEarlyStopping"]]
    assert repr(ours[-1].rule) == "ResidualWhiteness(patience=4)"


def test_functions_of_a_probe_are_given_by_their_import_path() -> None:
    probe = '{"class_path": "lightning_cx.ProbeSet", "init_args": {"features": "test_command_line.flat"}}'
    callback = ["--trainer.callbacks+=ComplexityMonitor", f"--trainer.callbacks.probe={probe}"]
    cli = parsed("--trainer.logger=false", "--trainer.accelerator=cpu", *callback)
    monitor = next(one for one in cli.trainer.callbacks if isinstance(one, ComplexityMonitor))
    assert monitor.probe.features is flat


@pytest.mark.parametrize("callback", [ComplexityMonitor, ComplexityEarlyStopping])
def test_help_says_what_each_argument_of_a_callback_is_for(callback: type, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a line for each argument
    with pytest.raises(SystemExit, match="0"):
        parsed(f"--trainer.callbacks.help={callback.__name__}")
    arguments = {part.split()[0]: part for part in capsys.readouterr().out.split("\n  --")[1:]}
    documented = inspect.getdoc(callback)
    assert documented is not None
    for name in inspect.signature(callback).parameters:
        said = documented.split(f"    {name}: ", 1)[1].splitlines()[0]
        assert said in arguments[f"trainer.callbacks.{name}"]


def test_an_argument_that_does_not_exist_is_refused_by_name(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed("--trainer.callbacks+=ComplexityEarlyStopping", "--trainer.callbacks.patience=5")
    assert "patience" in capsys.readouterr().err


def test_the_command_line_of_pytorch_lightning_takes_the_callbacks_too(tmp_path: Path) -> None:
    code = """
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringModel
arguments = ["--trainer.accelerator=cpu", "--trainer.callbacks+=lightning_cx.ComplexityMonitor"]
cli = LightningCLI(BoringModel, args=[*arguments, "--trainer.callbacks.every_n_steps=7"], run=False)
print("found", *[one.every_n_steps for one in cli.trainer.callbacks if type(one).__name__ == "ComplexityMonitor"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert "found 7" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["default", "noise", "theory", "all"])
def test_a_set_of_instruments_can_be_named(name: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    monitor = f"{{class_path: lightning_cx.ComplexityMonitor, init_args: {{instruments: {name}}}}}"
    config.write_text(f"trainer:\n  callbacks:\n    - {monitor}\n")
    (made,) = (c for c in parsed("--config", str(config)).trainer.callbacks if isinstance(c, ComplexityMonitor))
    assert [type(i) for i in made.instruments] == [type(i) for i in ComplexityMonitor(name).instruments]
