"""What the Gram matrix must cost: multiplications counted, not measured.

A weight that maps a numbers to b at T places gets the cheaper of two routes. Materialising writes down every
example's gradient and multiplies them with each other, 2 N T a b + N (N + 1) a b; the ghost route multiplies inputs
with inputs and output gradients with output gradients, N T (N T + 1) (a + b) (Goodfellow 2015; Li et al. 2022). A
multiplication with its addition is two flops, and one half of what is symmetric is counted, N (N + 1) / 2 pairs. Sums
over places (biases, scales) are left out, as torch's counter leaves them out of the step.

Each parameter is counted for itself. An algorithm can go lower: the bias of a linear layer has a Gram matrix that the
ghost route of its weight forms on the way.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from _workloads import Workload
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Use:
    """One use of a parameter in a forward pass, for one example.

    Attributes:
        places: Number T of places that share the parameter.
        inputs: Numbers a that are multiplied at each; 0 where the gradient is a sum over places.
        outputs: Numbers b that come out.
        groups: How many such products stand side by side (grouped convolutions).
        sparse: Inputs are ones at a single index each (tokens) and cost no multiplication.
        extra: Flops of each example before the contraction, whatever its route.
    """

    places: int
    inputs: int
    outputs: int
    groups: int = 1
    sparse: bool = False
    extra: int = 0

    @property
    def size(self) -> int:
        return max(self.inputs, 1) * self.outputs * self.groups

    def materialise(self) -> int:
        return 2 * self.places * self.size if self.inputs and not self.sparse else 0

    def ghost(self, examples: int) -> int:
        pairs, width = examples * self.places, self.outputs + (0 if self.sparse else self.inputs)
        return pairs * (pairs + 1) * width * self.groups


@dataclass(frozen=True)
class Floor:
    """Flops of the plain step, of the Gram matrix on top, and of the squared norms instead."""

    plain: int
    gram: int
    norms: int

    def ratio(self, norms: bool = False) -> float:
        return 1 + (self.norms if norms else self.gram) / self.plain


def count_floor(workload: Workload) -> Floor:
    costs = [cheapest(workload.examples, uses) for uses in read_uses(workload).values()]
    return Floor(count_plain(workload), sum(gram for gram, _ in costs), sum(norms for _, norms in costs))


def cheapest(n: int, uses: list[Use]) -> tuple[int, int]:
    """Gram and norms of one parameter; one that is used several times is materialised before it is squared."""
    extra, materialised = n * sum(use.extra for use in uses), n * sum(use.materialise() for use in uses)
    gram, norms = (materialised + squares * uses[0].size for squares in (n * (n + 1), 2 * n))
    if len(uses) == 1:
        gram, norms = min(gram, uses[0].ghost(n)), min(norms, n * uses[0].ghost(1))
    return gram + extra, norms + extra


def count_plain(workload: Workload) -> int:
    """Forward and backward."""
    network, x, y = workload.build(torch.device("cpu"))
    with unfused(), FlopCounterMode(display=False) as counter:
        workload.losses(network(x), y).mean().backward()
    return counter.get_total_flops()


@contextmanager
def unfused() -> Iterator[None]:
    """The counter knows the products that attention and LSTM consist of, not their fused kernels for the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # said whenever the flag below is touched
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield


def read_uses(workload: Workload) -> dict[nn.Parameter, list[Use]]:
    """From one forward pass of one example."""
    network, x, _ = workload.build(torch.device("cpu"))
    uses: dict[nn.Parameter, list[Use]] = defaultdict(list)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for parameter, use in uses_in(module, inputs[0], output):
            uses[parameter].append(use)

    for module in network.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(hook)
    with torch.no_grad():
        network(x[:1])
    return uses


def uses_in(module: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[nn.Parameter, Use]]:
    """What one layer does with its parameters."""
    bias: nn.Parameter | None = getattr(module, "bias", None)
    if isinstance(module, nn.Linear):
        places = y.numel() // module.out_features
        yield module.weight, Use(places, module.in_features, module.out_features)
    elif isinstance(module, nn.Conv2d):
        places, inputs = y.shape[2] * y.shape[3], module.weight[0].numel()
        yield module.weight, Use(places, inputs, module.out_channels // module.groups, module.groups)
    elif isinstance(module, nn.Embedding):
        yield module.weight, Use(x.numel(), module.num_embeddings, module.embedding_dim, sparse=True)
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
        places = y.numel() // module.weight.numel()
        yield module.weight, Use(places, 0, module.weight.numel())
    elif isinstance(module, nn.LSTM):
        yield from uses_in_lstm(module, x.shape[1])
    else:
        raise TypeError(f"no flops are known for {type(module).__name__}: add them to uses_in.")
    if bias is not None and not isinstance(module, nn.LSTM):
        yield bias, Use(places, 0, bias.numel())


def uses_in_lstm(lstm: nn.LSTM, places: int) -> Iterator[tuple[nn.Parameter, Use]]:
    """One layer, one direction: the gradients of its gates stay inside autograd's node.

    They are derived anew, the gates from inputs and states, a + h, and back through time, h.
    """
    a, h, gates = lstm.input_size, lstm.hidden_size, 4 * lstm.hidden_size
    yield lstm.weight_ih_l0, Use(places, a, gates, extra=2 * places * gates * (a + 2 * h))
    yield lstm.weight_hh_l0, Use(places, h, gates)
    yield lstm.bias_ih_l0, Use(places, 0, gates)
    yield lstm.bias_hh_l0, Use(places, 0, gates)
