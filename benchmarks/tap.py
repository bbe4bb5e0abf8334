"""What a tapped step costs: forward + backward with the Gram matrix over the same without, in the same run.

`python benchmarks/tap.py` prints ratios to the plain step, for the tap, for the tap with norms alone, and for the
usual way, `vmap(grad)`, as a reference. Medians over interleaved repetitions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_cx.gradients import GradientTap

Loss = Callable[[Tensor, Tensor], Tensor]


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers), (784,)


def convnet() -> tuple[nn.Module, tuple[int, ...]]:
    def stage(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]

    layers = [*stage(3, 32), *stage(32, 64), *stage(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers), (3, 32, 32)


class Encoder(nn.Module):
    """A small transformer over vectors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Mean over positions, then ten scores."""
        return self.head(self.layers(x).mean(1))


def transformer() -> tuple[nn.Module, tuple[int, ...]]:
    return Encoder(), (32, 128)


def main(repetitions: int = 15) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; a plain step is 1")
    print(f"{'workload':<16}{'N':>5}{'plain ms':>10}{'gram':>8}{'norms':>8}{'vmap(grad) gram':>17}")
    for name, build in {"MLP": mlp, "convnet": convnet, "transformer": transformer}.items():
        for n in (64, 256):
            torch.manual_seed(0)
            net, shape = build()
            ways = steps(net, torch.randn(n, *shape), torch.randint(10, (n,)))
            times: dict[str, list[float]] = {way: [] for way in ways}
            for repetition in range(repetitions + 2):
                for way, step in ways.items():
                    start = perf_counter()
                    step()
                    if repetition >= 2:
                        times[way].append(perf_counter() - start)
            plain = median(times["plain"])
            gram, norms, reference = (median(times[way]) / plain for way in ("gram", "norms", "vmap"))
            print(f"{name:<16}{n:>5}{plain * 1e3:>10.2f}{gram:>8.2f}{norms:>8.2f}{reference:>17.2f}")


def steps(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """The same step in each way."""
    parameters = dict(net.named_parameters())
    gram, norms = (GradientTap(parameters.items(), len(x), gram=g) for g in (True, False))

    def plain() -> None:
        net.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()

    def tapped(tap: GradientTap) -> None:
        net.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        with tap(loss):
            loss.backward()

    def loss_of_one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(net, weights, (x[None],)), y[None])

    def by_vmap() -> Tensor:
        plain()  # the training step itself still has to be made
        rows = vmap(grad(loss_of_one), (None, 0, 0))(parameters, x, y)
        flat = torch.cat([row.flatten(1) for row in rows.values()], 1)
        return flat @ flat.T

    return {"plain": plain, "gram": lambda: tapped(gram), "norms": lambda: tapped(norms), "vmap": by_vmap}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    main(parser.parse_args().repetitions)
