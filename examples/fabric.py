"""A loop of one's own in Lightning Fabric: any device, precision and number of processes.

What `examples/plain_pytorch.py` does, with gradients accumulated over batches on request. Each process taps its own
batches; the probe is passed by all of them alike, so that all come to the same decision. Expect the same stop and the
same errors as there with one process and `32-true`, and nearly the same with `--precision bf16-mixed`.
"""

from __future__ import annotations

import argparse
import copy
from contextlib import nullcontext
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from plain_pytorch import BATCH, EVERY, digits, error
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cx import ProbeSet, SpectralRisk
from lightning_cx.gradients import GradientTap
from lightning_cx.instruments import GradientNoise, Reading, SpectralBias
from lightning_cx.loggers.tensorboard import write_reading
from lightning_cx.probe import fill
from lightning_cx.rules import ResidualStopper


def main(logdir: str = "runs/fabric", epochs: int = 120, seed: int = 0, accumulate: int = 1, **options: Any) -> dict:
    board = TensorBoardLogger(logdir)
    fabric = Fabric(accelerator="cpu", loggers=board, **options)
    fabric.launch()
    torch.manual_seed(seed)
    train, test = digits(0.3, seed)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=1e-3))

    def losses(module: nn.Module, batch: list[Tensor]) -> Tensor:
        with fabric.autocast():  # the probe passes `net` itself, outside the wrapper that knows the precision
            return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    def write(reading: Reading, pictures: bool = False) -> None:
        if fabric.is_global_zero:
            write_reading(board.experiment, reading, step, pictures)

    probe, stopper = fill(ProbeSet(loss_fn=losses), train), ResidualStopper(SpectralRisk())
    tap = GradientTap(net.named_parameters(), BATCH, loss_scale=1 / accumulate)
    noise, bias, best, step, stop = GradientNoise(), SpectralBias(), net.state_dict(), 0, False
    loader: Any = fabric.setup_dataloaders(DataLoader(train, BATCH, shuffle=True, drop_last=True))
    batches = (batch for _ in range(epochs * accumulate) for batch in loader)
    for number, batch in enumerate(batches, start=1):
        last = number % accumulate == 0  # of the batches of one step
        due = last and step % EVERY == 0
        if due:
            reading = probe.read(net, place=fabric.to_device)
            stop = fabric.broadcast(stopper.check(step, reading).stop)
            best = copy.deepcopy(net.state_dict()) if stopper.best_step == step else best
            write(bias.on_probe(step, reading))
            write(stopper.reading())
        if stop:
            stopper.mark_stop(step)
            break
        with fabric.no_backward_sync(model, enabled=not last):
            loss = losses(model, batch).mean() / accumulate
            with tap(loss) if due else nullcontext():
                fabric.backward(loss)
        if due and tap.sample is not None:
            write(noise.on_gradients(step, tap.sample))
        if last:
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    found = {"steps": step, "best_step": stopper.best_step, "error of the last weights": error(net, test)}
    net.load_state_dict(best)
    write(stopper.reading(), pictures=True)
    found["error of the best weights"] = error(net, test)
    fabric.print(*(f"{what:<28}{value:.4g}" for what, value in found.items()), f"look: {logdir}", sep="\n")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {
        "epochs": 120,
        "accumulate": 1,
        "devices": 1,
        "precision": "32-true",
        "strategy": "auto",
    }.items():
        parser.add_argument(f"--{name}", default=value, type=type(value))
    main(**vars(parser.parse_args()))
