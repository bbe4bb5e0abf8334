"""Strategies under which nothing can be read are refused at setup, before a step is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _batch_kinds import CALLBACKS, ours
from _lightning import Classifier, fit
from lightning.pytorch import strategies

WAY_OUT = {
    "FSDPStrategy": "use ModelParallelStrategy, whose fully_shard keeps them apart",
    "DeepSpeedStrategy": "use DDPStrategy, or ModelParallelStrategy with fully_shard",
    "XLAStrategy": "train on CPU or GPU",
    "SingleDeviceXLAStrategy": "train on CPU or GPU",
}


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("name", WAY_OUT)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_strategy_that_shows_no_gradients_is_refused_by_name_at_setup(
    callback: str, name: str, derived: bool, tmp_path: Path
) -> None:
    assert hasattr(strategies, name)  # the name is Lightning's own
    # The real one wants a GPU, a TPU or a package that is not here before a Trainer takes it.
    kind = type(name, (strategies.SingleDeviceStrategy,), {})
    kind = type("Own", (kind,), {}) if derived else kind
    module = Classifier()
    with pytest.raises(ValueError, match="does not work under") as refusal:
        fit(module, [ours(callback)], tmp_path, strategy=kind(torch.device("cpu")))
    assert str(refusal.value).startswith(f"{callback} does not work under {name}, which ")
    assert str(refusal.value).endswith(f": {WAY_OUT[name]}; or leave {callback} out.")
    assert module.calls == 0
