"""A loop of one's own, without Lightning: the tap, two instruments and a stopping rule, on digits with wrong labels.

Expect a stop after 800 of the 2160 steps. The weights of step 270 are put back: they misread 6% of the test digits, the
last ones 10%, since by then the wrong labels are being learned. `examples/fabric.py` is the same loop in Fabric.
"""

from __future__ import annotations

import argparse
import copy
from contextlib import nullcontext
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard.writer import SummaryWriter

from lightning_cx import ProbeSet, SpectralRisk
from lightning_cx.gradients import GradientTap
from lightning_cx.instruments import GradientNoise, SpectralBias
from lightning_cx.loggers.tensorboard import write_reading
from lightning_cx.probe import fill
from lightning_cx.rules import ResidualStopper

BATCH, EVERY = 64, 10  # steps between two looks


def digits(share_wrong: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """1200 scans to train on, some under the name of another digit, and 597 with true labels to test."""
    pixels, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(seed)
    train, test = torch.randperm(len(labels), generator=generator).split([1200, 597])
    wrong = torch.rand(len(labels), generator=generator) < share_wrong
    given = torch.where(wrong, labels + torch.randint(1, 10, labels.shape, generator=generator), labels) % 10
    images = pixels.float() / 16
    return TensorDataset(images[train], given[train]), TensorDataset(images[test], labels[test])


def losses(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """One loss for each example, as the probe wants them; their mean is what is trained on."""
    return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


def error(net: nn.Module, data: TensorDataset) -> float:
    return (net(data.tensors[0]).argmax(1) != data.tensors[1]).float().mean().item()


def main(logdir: str = "runs/plain_pytorch", epochs: int = 120, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    train, test = digits(0.3, seed)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer, writer = torch.optim.Adam(net.parameters(), lr=1e-3), SummaryWriter(logdir)

    probe = fill(ProbeSet(loss_fn=losses), train)
    tap, stopper = GradientTap(net.named_parameters(), batch_size=BATCH), ResidualStopper(SpectralRisk())
    noise, bias, best, step, stop = GradientNoise(), SpectralBias(), net.state_dict(), 0, False

    loader = DataLoader(train, BATCH, shuffle=True, drop_last=True)
    for batch in (batch for _ in range(epochs) for batch in loader):
        due = step % EVERY == 0
        if due:  # residuals first: what these weights, before the step, have not learned yet
            reading = probe.read(net)
            stop = stopper.check(step, reading).stop
            if stopper.best_step == step:
                best = copy.deepcopy(net.state_dict())
            write_reading(writer, bias.on_probe(step, reading), step)
            write_reading(writer, stopper.reading(), step)
        if stop:
            stopper.mark_stop(step)
            break
        loss = losses(net, batch).mean()
        optimizer.zero_grad()
        with tap(loss) if due else nullcontext():
            loss.backward()
        if due and tap.sample is not None:
            write_reading(writer, noise.on_gradients(step, tap.sample), step)
        optimizer.step()
        step += 1
    found = {"steps": step, "best_step": stopper.best_step, "error of the last weights": error(net, test)}
    net.load_state_dict(best)
    write_reading(writer, stopper.reading(), step, pictures=True)
    writer.close()
    found["error of the best weights"] = error(net, test)
    print(*(f"{what:<28}{value:.4g}" for what, value in found.items()), sep="\n")
    print(f"{stopper.decision and stopper.decision.reason}\nlook:    .venv/bin/tensorboard --logdir {logdir}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", default="runs/plain_pytorch")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
