"""What a network's kernel prefers, on true and on random labels, and which of its blocks still lowers the loss.

python examples/kernel.py        # about a minute on one core
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.functional import chance_alignment, cumulative_power, kernel_target_alignment
from lightning_cx.gradients import GradientTap, per_example_gram
from lightning_cx.instruments import BatchView, Kernel, quantities

BATCH, PROBE, CLASSES = 128, 100, 10


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)))


def network(width: int = 64, depth: int = 4) -> nn.Sequential:
    blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
    return nn.Sequential(nn.Linear(64, width), blocks, nn.ReLU(), nn.Linear(width, CLASSES))


def tangent_kernel(net: nn.Module, x: Tensor) -> Tensor:
    """Summed over the outputs, as `Kernel(on="probe")` has it."""
    return torch.stack([per_example_gram(net, net(x)[:, c]) for c in range(CLASSES)]).sum(0)


def run(x: Tensor, labels: Tensor, steps: int, show: list[int]) -> list[dict[str, float]]:
    torch.manual_seed(0)
    net, instrument, draw = network(), Kernel(), np.random.default_rng(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    rows = []
    for step in range(steps + 1):
        batch = torch.from_numpy(draw.integers(0, len(x), BATCH))
        loss = F.cross_entropy(net(x[batch]), labels[batch])
        optimizer.zero_grad()
        if step % 20:
            loss.backward()
        else:
            tap = GradientTap(net.named_parameters(), BATCH, per_layer=True)
            with tap(loss):
                loss.backward()
            assert tap.sample is not None
            targets = BatchView(targets=F.one_hot(labels[batch], CLASSES).double())
            found = instrument.on_gradients(step, tap.sample, targets).scalars
            if step in show:
                kernel, wanted = tangent_kernel(net, x[:PROBE]), F.one_hot(labels[:PROBE], CLASSES)
                rows.append({"step": step, "loss": loss.item(), **found, **fit_of(kernel, wanted)})
        optimizer.step()
    return rows


def fit_of(kernel: Tensor, wanted: Tensor) -> dict[str, float]:
    """How well the tangent kernel itself fits the labels."""
    chance, power = chance_alignment(kernel, wanted), cumulative_power(kernel, wanted)
    values = kernel_target_alignment(kernel, wanted), chance.high, power.area, power.chance_high
    return dict(zip(("alignment", "alignment by chance", "area", "area by chance"), map(float, values), strict=True))


def main(steps: int = 1200, show: tuple[int, ...] = (0, 20, 100, 300, 1200)) -> dict[str, list[dict[str, float]]]:
    pixels, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    x = pixels.float() / 16
    shuffled = labels[torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))]
    results = {name: run(x, y, steps, list(show)) for name, y in (("true", labels), ("random", shuffled))}
    for name, rows in results.items():
        print(f"\n{name} labels")
        for row in rows:
            batch = f"{row[quantities.KERNEL_ALIGNMENT]:.2f} ({row[quantities.KERNEL_ALIGNMENT_CHANCE_HIGH]:.2f})"
            own = f"{row['alignment']:.2f} ({row['alignment by chance']:.2f}), area {row['area']:.2f}"
            decay = f"{row[quantities.KERNEL_DECAY]:.2f} +- {row[quantities.KERNEL_DECAY_SPREAD]:.2f}"
            ratio, error = quantities.KERNEL_PARTICIPATION_RATIO, quantities.KERNEL_PARTICIPATION_RATIO_ERROR
            size = f"{row[ratio]:.1f} +- {row[error]:.1f}"
            shares = [value for tag, value in row.items() if tag.startswith(f"{quantities.KERNEL_BLOCK_SHARE}/")]
            print(
                f"{row['step']:5.0f} loss {row['loss']:.3f} decay {decay} directions {size}; alignment: batch {batch},"
            )
            print(f"      tangent kernel {own}; descent by block", " ".join(f"{share:.0%}" for share in shares))
    return results


if __name__ == "__main__":
    main()
