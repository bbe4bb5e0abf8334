"""Whatever happens in a sampled step, compiled code is compiled code again after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _compiled import BATCHES, EVERY, Counting, Plain, entropy, fresh_compiler, loss, monitor
from _lightning import fit
from test_monitor import Watch
from torch import Tensor

from lightning_cx.callbacks.sampling import GradientSampler
from lightning_cx.gradients import Calibration, GradientTap

__all__ = ["fresh_compiler"]

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # the compiler looks at it
]


def runs_compiled() -> bool:
    """Whether a freshly compiled function really runs compiled."""
    backend = Counting()
    torch.compile(entropy, backend=backend)(torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0]))
    return backend.ran == 1


class Interrupted(Plain):
    """Fails in the middle of a sampled step."""

    def __init__(self, error: BaseException | None, where: str) -> None:
        super().__init__()
        self.error, self.where = error, where
        self.criterion = torch.compile(entropy, backend="aot_eager")

    def _fail(self, here: str) -> None:
        if here == self.where and self.error is not None and self.trainer.global_step == EVERY:
            raise self.error

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self._fail("batch start")
        return -1 if self.where == "skip" and self.trainer.global_step == EVERY else None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self._fail("training step")
        return super().training_step(batch, batch_idx)

    def on_before_backward(self, loss: Tensor) -> None:
        self._fail("backward")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._fail("optimizer step")


@pytest.mark.parametrize("where", ["batch start", "training step", "backward", "optimizer step"])
@pytest.mark.parametrize(
    ("error", "seen"), [(RuntimeError("on purpose"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_the_stance_is_put_back_after_an_exception(
    error: BaseException, seen: type[BaseException], where: str, tmp_path: Path
) -> None:
    with pytest.raises(seen):
        fit(Interrupted(error, where), [monitor()], tmp_path)
    assert runs_compiled()


def test_the_stance_is_put_back_after_a_batch_that_is_skipped_and_at_the_end(tmp_path: Path) -> None:
    trainer = fit(Interrupted(None, "skip"), [monitor()], tmp_path, max_epochs=1)
    assert trainer.global_step == EVERY
    assert runs_compiled()
    fit(Interrupted(None, ""), [monitor(every_n_steps=1)], tmp_path, max_epochs=1)
    assert runs_compiled()


def test_a_failing_sample_leaves_the_step_eager_and_the_next_one_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: GradientTap, loss: Tensor) -> None:
        if loss.grad_fn is not None and self.batch_size == 32:
            raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(GradientTap, "attach", explode)
    monkeypatch.setattr("lightning_cx.callbacks.rerun.calibrate_in_training", lambda *_: pytest.fail("unexpected"))
    not_compared = Calibration(note="not in this test")
    monkeypatch.setattr(GradientSampler, "_calibrate", lambda self, _: setattr(self, "_calibration", not_compared))
    backend = Counting()
    with pytest.warns(UserWarning, match="gradients failed, training continues: ZeroDivisionError: on purpose"):
        fit(loss(backend), [monitor(Watch(), strict=False)], tmp_path, max_epochs=1)
    assert backend.ran == BATCHES // 2 - 2  # of five batches two are sampled
    assert runs_compiled()


def test_a_stance_of_the_users_own_is_kept(tmp_path: Path) -> None:
    with torch.compiler.set_stance("force_eager"):
        fit(loss("aot_eager"), [monitor()], tmp_path, max_epochs=1)
        assert not runs_compiled()
    assert runs_compiled()
