"""Add up, parameter by parameter, what one backward shows, and check that it adds up to the batch gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_cx._torch import backward_hooks
from lightning_cx.gradients.errors import UnsupportedGradientError
from lightning_cx.gradients.factors.products import (
    CACHE_BYTES,
    DEFAULT_BYTES,
    Affine,
    Products,
    Rows,
    Use,
    Workspace,
    add_up,
    buffers_of,
    working,
)
from lightning_cx.gradients.factors.reparametrised import Reparametrised
from lightning_cx.gradients.graph.nodes import record_of
from lightning_cx.gradients.graph.weights import Operand, Source
from lightning_cx.gradients.projections import Directions, Entries, spread
from lightning_cx.gradients.sample import GradientSample, LayerGradients

# The batch gradient is summed in the training's precision and the Gram matrix in ours: they agree to rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.1}
# Gradients that cancel exactly, as those of a key's bias in attention, leave rounding of other layers' size.
ROUNDING = 64  # machine epsilons


@dataclass
class SumCheck:
    """Compares 1^T K 1 with |batch gradient|^2, parameter by parameter: both count every use of it.

    Attributes:
        sums: For each parameter, or for each few that were contracted together, the sums of the Gram matrix and of
            its diagonal.
        batch: For each parameter, the norm of its batch gradient.
    """

    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    batch: dict[str, Tensor] = field(default_factory=dict)

    def see_batch(self, name: str, gradient: Tensor) -> None:
        """Take the batch gradient of one parameter."""
        values = gradient.detach().coalesce().values() if gradient.is_sparse else gradient.detach()
        self.batch[name] = torch.linalg.vector_norm(working(values))

    def coverage(
        self,
        dtypes: Iterable[torch.dtype],
        parameters: Mapping[str, Tensor],
        members: Mapping[str, tuple[str, ...]],
        nodes: Mapping[str, list[str]],
    ) -> float:
        """1^T K 1 / |batch gradient|^2 over all parameters that both sides have seen, nan for none or zero.

        Raises:
            UnsupportedGradientError: If the sides disagree on a parameter beyond what rounding explains.
        """
        used = set(dtypes)
        names = [name for name in self.sums if all(member in self.batch for member in members[name])]
        if used & {torch.float16, torch.bfloat16}:  # normalisation layers may add up their own gradients in 16 bits
            names = [name for name in names if not any("Norm" in node for node in nodes[name])]
        if not names:
            return float("nan")
        rows = [number for name in names for number in self.sums[name]]
        parts = [self.batch[member] for name in names for member in members[name]]
        numbers = torch.stack([number.to(rows[0]) for number in (*rows, *parts)]).tolist()  # one synchronisation
        squares = iter([norm**2 for norm in numbers[len(rows) :]])
        batches = [sum(next(squares) for _ in members[name]) for name in names]
        seen = list(zip(numbers[: len(rows) : 2], numbers[1 : len(rows) : 2], batches, strict=True))
        summed, size, batch = (sum(column) for column in zip(*seen, strict=True))
        tolerance = max(TOLERANCE.get(dtype, 0.2) for dtype in used)
        rounding = max(ROUNDING * torch.finfo(dtype).eps for dtype in used) ** 2
        for name, (of_rows, own_size, of_batch) in zip(names, seen, strict=True):
            # Examples that cancel leave a small sum of large terms, known no better than the terms are.
            if abs(of_rows - of_batch) > tolerance * (of_batch + own_size) + rounding * size:
                read = of_rows / of_batch if of_batch else float("inf")
                raise UnsupportedGradientError(
                    f"{name} has a use that the graph does not show: the sum check reads {read:.3g}, not 1",
                    "a hook on it may change its gradient"
                    if any(backward_hooks(parameters[m]) for m in members[name])
                    else "",
                )
        return summed / batch if batch > 0 else float("nan")


@dataclass(frozen=True)
class Request:
    """What a tap was asked for."""

    gram: bool
    norms: bool
    projections: int
    per_layer: bool
    seed: int
    rows: bool = False
    max_buffer_bytes: int = DEFAULT_BYTES
    coordinates: int = 0
    sums: bool = False

    @property
    def entries(self) -> bool:
        """Whether it matters which entry of a gradient is which, beyond inner products."""
        return self.rows or self.projections > 0 or self.coordinates > 0

    @property
    def joint(self) -> bool:
        """Whether parameters may be contracted together."""
        return not (self.per_layer or self.entries)

    @property
    def checked(self) -> bool:
        """Whether the sum check can be made."""
        return self.gram or self.rows


@dataclass
class Accumulator:
    """Running totals over parameters, in float64, before any scale.

    A parameter is contracted as soon as the last of its uses has come by, and its factors are let go.
    """

    request: Request
    parameters: Mapping[str, Tensor]
    pending: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, list[str]] = field(default_factory=dict)
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    layers: dict[str, LayerGradients] = field(default_factory=dict)
    dtypes: set[torch.dtype] = field(default_factory=set)
    check: SumCheck = field(default_factory=SumCheck)
    gram: Tensor | None = None
    squared_norms: Tensor | None = None
    projections: Tensor | None = None
    coordinates: dict[str, Tensor] = field(default_factory=dict)
    _waiting: list[tuple[Operand, Use, torch.dtype]] = field(default_factory=list)
    _waiting_bytes: int = 0
    _workspace: Workspace = field(default_factory=dict)
    _arrived: dict[Source, list[Use]] = field(default_factory=dict)
    _left: dict[Source, int] = field(default_factory=dict)
    _uses: dict[str, list[Use]] = field(default_factory=dict)
    _entries: dict[str, Entries] = field(init=False)

    def __post_init__(self) -> None:
        self._entries = spread(self.parameters, self.request.coordinates, self.request.seed)

    def expect(self, name: str, node: str, members: tuple[str, ...] = ()) -> None:
        """Announce one use of a parameter, or of several (`members`) that are contracted together."""
        self.pending[name] = self.pending.get(name, 0) + 1
        self.members[name] = members or (name,)
        self.nodes.setdefault(name, []).append(node)

    def take(self, operand: Operand, use: Use | None, gradient: Tensor | None) -> None:
        """Take what arrived for one announced use; None means zero.

        What is small waits for `settle`: between the products of a backward our code is cold, and costs several times
        what it costs in one go.
        """
        source = operand.source
        if (
            use is not None
            and gradient is not None
            and source.plain
            and not (source.transposed and not isinstance(use, (Affine, Products)))
        ):
            size = sum(part.nbytes for part in vars(use).values() if isinstance(part, Tensor))
            if size <= CACHE_BYTES and self._waiting_bytes + size <= self.request.max_buffer_bytes:
                self._waiting_bytes += size
                self._waiting.append((operand, use, gradient.dtype))
                return
        with buffers_of(self.request.max_buffer_bytes, self._workspace):
            self._see(operand, use, None if gradient is None else gradient.dtype)

    def settle(self) -> None:
        """Contract what waits."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        with buffers_of(self.request.max_buffer_bytes, self._workspace):
            for operand, use, dtype in waiting:
                self._see(operand, use, dtype)

    @property
    def any_tensor(self) -> Tensor:
        return next(iter(self.parameters.values()))

    def _see(self, operand: Operand, use: Use | None, dtype: torch.dtype | None) -> None:
        name, source = operand.name, operand.source
        if self.pending[name] == 0:
            raise RuntimeError("the backward ran a second time before finish()")
        self.pending[name] -= 1
        self._left[source] = self._left.get(source, source.uses) - 1
        if use is not None and dtype is not None:
            self.dtypes.add(dtype)
            self._arrived.setdefault(source, []).append(use)
        done = self.pending[name] == 0
        # The backward frees the nodes behind a source once its last consumer has run.
        for ready in [other for other in self._arrived if other.name == name and (done or self._left[other] == 0)]:
            use = add_up(self._arrived.pop(ready))
            alone = done and name not in self._uses and all(other.name != name for other in self._arrived)
            self._uses.setdefault(name, []).append(self._on_parameter(ready, use, alone))
        if done and name in self._uses:
            self._contract(name, add_up(_alike(self._uses.pop(name))))

    def fill(self, n: int) -> None:
        """Put zeros where no gradient came by at all."""
        request, like = self.request, self.any_tensor

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=like.device)

        if request.gram and self.gram is None:
            self.gram = zeros(n, n)
        if request.norms and self.squared_norms is None:
            self.squared_norms = zeros(n) if self.gram is None else self.gram.diagonal().clone()
        if request.projections and self.projections is None:
            self.projections = zeros(n, request.projections)
        for entries in self._entries.values():
            self.coordinates.setdefault(entries.name, zeros(n, entries.count))

    def sample(self, n: int, scale: float, status: str, notes: tuple[str, ...]) -> GradientSample:
        """Everything that was asked for, of gradients that are `scale` times what came by."""

        def scaled(value: Tensor | None, power: int = 1) -> Tensor | None:
            return value if value is None or scale == 1 else value * scale**power

        layers = {
            name: LayerGradients(
                layer.node,
                scaled(layer.gram, 2),
                scaled(layer.squared_norms, 2),
                scaled(layer.rows),
                scaled(layer.projections),
            )
            for name, layer in self.layers.items()
        }
        in_order = [self.coordinates[name] for name in self._entries]
        return GradientSample(
            batch_size=n,
            status=status,
            gram=scaled(self.gram, 2),
            squared_norms=scaled(self.squared_norms, 2),
            projections=scaled(self.projections),
            coordinates=scaled(torch.cat(in_order, 1)) if in_order else None,
            layers=layers,
            coverage=self.check.coverage(self.dtypes, self.parameters, self.members, self.nodes),
            notes=notes,
        )

    def _on_parameter(self, source: Source, use: Use, alone: bool) -> Use:
        """Bring the use of a tensor made of a parameter back to the parameter, where that makes a difference."""
        if not source.nodes or isinstance(use, Affine):
            return use
        scaled_use = None if source.scale is None else use.times(source.scale)
        if scaled_use is not None:
            if source.plain and not source.transposed:
                return scaled_use
            if source.plain and isinstance(scaled_use, Products):
                return scaled_use.transposed
            if alone and not self.request.entries:
                return scaled_use
        shortcut = record_of(source.nodes[-1]).shortcut
        direct = None if shortcut is None else shortcut(source, use)
        if direct is not None:
            return direct
        sent_on = Reparametrised(use, source)
        return sent_on if alone else Rows(sent_on.rows())

    def _contract(self, name: str, use: Use) -> None:
        request = self.request
        gram = norms = None
        if request.gram:
            gram = use.gram()
            self.check.sums[name] = (gram.sum(dtype=torch.float64), gram.diagonal().sum(dtype=torch.float64))
        elif request.norms:
            norms = use.squared_norms()
        parameter = self.parameters[name] if request.entries else None
        rows = projections = None
        if request.projections and parameter is not None:
            shape = tuple(parameter.shape)
            directions = Directions.draw(name, shape, request.projections, request.seed, parameter)
            projections = use.project(directions)
        if name in self._entries:
            self.coordinates[name] = self._entries[name].of_use(use).double()
        if request.rows:
            rows = use.rows().reshape(use.shape[0], *self.parameters[name].shape)
            flat = rows.reshape(len(rows), -1)
            sums = flat.sum(0).square().sum(dtype=torch.float64), flat.square().sum(dtype=torch.float64)
            self.check.sums.setdefault(name, sums)
        for member in self.members[name]:
            self.layers[member] = self._layer(name, gram, norms, rows, projections)
        self.projections = _plus(self.projections, projections)
        self.gram = _plus(self.gram, gram)
        self.squared_norms = _plus(self.squared_norms, norms)

    def _layer(
        self, name: str, gram: Tensor | None, norms: Tensor | None, rows: Tensor | None, projections: Tensor | None
    ) -> LayerGradients:
        nodes = "+".join(self.nodes[name])
        if not self.request.per_layer:
            return LayerGradients(nodes, rows=rows)

        def double(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.double()

        gram = double(gram)
        if gram is not None and self.request.norms:
            norms = gram.diagonal()
        return LayerGradients(nodes, gram, double(norms), rows, double(projections))


def _alike(uses: list[Use]) -> list[Use]:
    """Bring uses that see one parameter in different shapes, such as a stack of one matrix, to the same."""
    shapes = {use.shape for use in uses}
    return uses if len(shapes) == 1 else [Rows(use.rows().flatten(1)) for use in uses]


def _plus(total: Tensor | None, value: Tensor | None) -> Tensor | None:
    """Add to a total in float64, in place."""
    if value is None:
        return total
    return value.to(torch.float64, copy=True) if total is None else total.add_(value)
