"""Read per-example gradients off the training's own backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from lightning_cx._torch import call_after_backward, post_accumulate_hooks
from lightning_cx.gradients.accumulate import Accumulator, Request
from lightning_cx.gradients.errors import UnsupportedGradientError
from lightning_cx.gradients.factors.products import DEFAULT_BYTES, working
from lightning_cx.gradients.graph.nodes import Joint, Node
from lightning_cx.gradients.plan import Plan, PlanCache, Work, make_plan
from lightning_cx.gradients.sample import EXACT, GradientSample


class GradientTap:
    """Per-example gradients of one batch, from one ordinary backward: what single examples want of the weights.

    Attached to a loss, the tap puts a hook on every autograd node that consumes a parameter. When the backward
    reaches the node, the gradient of its output and the input that autograd saved are contracted on the spot into
    what was asked for. The N x P matrix of gradients is never formed, no second pass is made, `.grad` is not
    touched, and a hook never raises into the backward.

    Args:
        named_parameters: Pairs as `module.named_parameters()` gives them; frozen ones are skipped.
        batch_size: Number of examples N in the batch.
        gram: Whether to form the Gram matrix of inner products.
        norms: Whether to form squared norms (free with `gram`).
        projections: Number of fixed random directions to project on.
        coordinates: Number of fixed entries of the gradient to keep, spread over the parameters by their size.
        sums: Whether to keep the sum of the examples' gradients of each parameter, as large as the model; processes
            that share a batch need it to know what their examples want together.
        rows: Whether to keep the gradients themselves: N times the memory of the model, so only where that is small.
        per_layer: Whether to keep Gram matrix, norms and projections of every parameter apart as well.
        loss_scale: The loss is this multiple of the mean over examples: 1 for a mean, N for a sum, 1/k with k
            accumulated batches, the scaler's factor under fp16. It is divided out.
        batch_first: Whether the examples lead in what the loss averages over, where the graph leaves two readings
            because nothing in it tells two axes apart. None refuses to guess.
        seed: Seed of the projection directions.
        max_buffer_bytes: About how large a work buffer of a contraction may become; results are not counted.

    Attributes:
        sample: The last `GradientSample`, or None.
        seconds: Host time spent in hooks since the last attach.

    Raises:
        ValueError: If no parameter is trainable, the batch is empty or nothing is asked for.

    Example:
        >>> import torch
        >>> from lightning_cx.gradients import GradientTap
        >>> _ = torch.manual_seed(0)
        >>> net, x, y = torch.nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5, 1)
        >>> tap = GradientTap(net.named_parameters(), batch_size=5)
        >>> loss = torch.nn.functional.mse_loss(net(x), y)
        >>> with tap(loss):
        ...     loss.backward()
        >>> tap.sample.gram.shape, tap.sample.status
        (torch.Size([5, 5]), 'exact')
        >>> batch_gradient = sum(p.grad.double().square().sum() for p in net.parameters())
        >>> torch.allclose(tap.sample.gram.mean(), batch_gradient)
        True
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        batch_size: int,
        gram: bool = True,
        norms: bool = True,
        projections: int = 0,
        per_layer: bool = False,
        loss_scale: float = 1.0,
        batch_first: bool | None = None,
        seed: int = 0,
        rows: bool = False,
        max_buffer_bytes: int = DEFAULT_BYTES,
        coordinates: int = 0,
        sums: bool = False,
    ) -> None:
        self._parameters = {name: p for name, p in named_parameters if p.requires_grad}
        if not self._parameters:
            raise ValueError("GradientTap got no trainable parameter: there is no gradient to read.")
        if batch_size < 1:
            raise ValueError(f"GradientTap needs a batch of at least one example, got batch_size={batch_size}.")
        if not (gram or norms or projections or rows or coordinates):
            raise ValueError("GradientTap was asked for nothing: pass gram=True, norms=True or projections=k.")
        if max_buffer_bytes < 1:
            raise ValueError(f"max_buffer_bytes must be positive, got {max_buffer_bytes}.")
        if not loss_scale > 0:
            raise ValueError(f"loss_scale must be positive, got {loss_scale}.")
        self.batch_size = batch_size
        self.loss_scale = loss_scale
        self.sample: GradientSample | None = None
        self.seconds = 0.0
        self._request = Request(gram, norms, projections, per_layer, seed, rows, max_buffer_bytes, coordinates, sums)
        self._batch_first = batch_first
        self._plans = PlanCache()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._forget()

    def _forget(self) -> None:
        self._totals = Accumulator(self._request, self._parameters)
        self._failure: str | None = None
        self._duties: list[Callable[..., None]] = []
        self._hidden: list[Node] = []
        self._unchecked: frozenset[str] = frozenset()
        self._compared_late: dict[str, Node] = {}
        self._batch_gradients: dict[str, Tensor] = {}
        self._begun = self._used = False
        self._status, self._notes = EXACT, ()

    @contextmanager
    def __call__(self, loss: Tensor) -> Iterator[GradientTap]:
        """Attach for the length of a `with` block and finish at its end."""
        self.attach(loss)
        try:
            yield self
        except BaseException:
            self.detach()
            raise
        self.finish()

    def attach(self, loss: Tensor) -> None:
        """Put hooks on the graph of `loss`.

        Raises:
            UnsupportedGradientError: If a parameter is consumed in a way that no rule reads; nothing is changed.
            ValueError: If the loss has no graph.
        """
        if self._used:
            self.detach()
        if loss.grad_fn is None:
            raise ValueError("the loss has no autograd graph: it does not depend on a trainable parameter.")
        make = partial(make_plan, loss, self._parameters, self._request, self.batch_size, self._batch_first)
        made = self._plans.plan_for(loss.grad_fn, make)
        for expected in made.expected:
            self._totals.expect(*expected)
        self._unchecked, self._status, self._notes = made.penalised, made.status, made.notes
        self.seconds, self._used = 0.0, True
        try:
            self._hook(made)
        except BaseException:
            self.detach()
            raise

    def _hook(self, made: Plan) -> None:
        for node, work in made.work.items():
            names = ", ".join(operand.name for operand, _ in work)
            self._watch(node, f"{node.name()} of {names}", partial(self._see, node, work))
        for name, parameter in self._parameters.items():
            if name in made.leaves:
                if self._request.checked or self._request.sums:
                    self._compared_late[name] = made.leaves[name]
            elif parameter.is_leaf and parameter.requires_grad:
                self._hidden.append(get_gradient_edge(parameter).node)
                self._watch(self._hidden[-1], f"the gradient of {name}", partial(self._surprise, name))

    def _watch(self, node: Node, what: str, duty: Callable[..., None]) -> None:
        """Call `duty` with the gradients that arrive at a node, one for each of its outputs."""
        tap, number = ref(self), len(self._duties)  # a graph that kept the tap, which keeps the graph, would never go
        self._duties.append(duty)

        def hook(gradients: tuple[Tensor | None, ...]) -> None:
            here = tap()
            if here is None or here._failure is not None:
                return
            start = perf_counter()
            try:
                here._duties[number](*gradients)
            except Exception as error:  # an observer must not break the user's backward; `finish` reports it
                here._failure = f"{what} failed with {type(error).__name__}: {error}"
            here.seconds += perf_counter() - start

        self._handles.append(node.register_prehook(hook))

    def detach(self) -> None:
        """Remove every hook and forget what was read."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._plans.let_go()
        self._forget()

    def finish(self) -> GradientSample:
        """Remove the hooks and return what the backward showed.

        Raises:
            UnsupportedGradientError: If a contraction failed, the backward did not reach every use of every
                parameter, or the sum check shows that a use was missed.
        """
        self._settle()  # something waits only if the backward ran twice
        start = perf_counter()
        try:
            if self._failure is not None:
                raise UnsupportedGradientError(self._failure)
            self.sample = self._read()
        finally:
            self.detach()
            self.seconds += perf_counter() - start
        return self.sample

    # During the backward: nothing raises.

    def _see(self, node: Node, work: Work, *gradients: Tensor | None) -> None:
        if not self._begun:
            self._begin()
        arrived = next((gradient for gradient in gradients if gradient is not None), None)
        prepared: dict[Callable[..., Any], Any] = {}  # as short-lived as this call: it may be large
        with quiet(arrived):
            for operand, capture in work:
                use = None
                if arrived is not None and isinstance(capture, Joint):
                    if capture.prepare not in prepared:
                        prepared[capture.prepare] = capture.prepare(node, gradients)
                    use = capture.use(prepared[capture.prepare])
                elif gradients[0] is not None and not isinstance(capture, Joint):
                    use = capture(gradients[0])
                self._totals.take(operand, use, arrived)

    def _begin(self) -> None:
        """At the first hook of a backward: have its end announced, and see where `.grad` will be this backward's alone.

        Gradients of other parameters are watched one by one, which costs more than to look at `.grad` at the end.
        """
        self._begun = True
        tap = ref(self)

        def at_the_end() -> None:
            here = tap()
            if here is not None:
                here._settle()

        call_after_backward(at_the_end)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        for name, leaf in list(self._compared_late.items()):
            parameter = self._parameters[name]
            used_up = post_accumulate_hooks(parameter)  # an optimizer inside
            if distributed or used_up or parameter.grad is not None or self._request.sums:
                del self._compared_late[name]
                self._watch(leaf, f"the gradient of {name}", partial(self.compare_with, name))

    def _settle(self) -> None:
        """Contract what was small enough to wait and look at `.grad`, while nobody has changed either yet."""
        start = perf_counter()
        if self._failure is None:
            try:
                with quiet(self._totals.any_tensor):
                    self._totals.settle()
                    self._compare()
            except Exception as error:  # still inside the user's backward
                self._failure = f"a contraction failed with {type(error).__name__}: {error}"
        self.seconds += perf_counter() - start

    def _compare(self) -> None:
        late, self._compared_late = self._compared_late, {}
        for name in late:
            self.compare_with(name, self._parameters[name].grad)

    def compare_with(self, name: str, gradient: Tensor | None) -> None:
        """Put one parameter's batch gradient on the other side of the sum check."""
        if gradient is None or name in self._unchecked:
            return
        if self._request.checked:
            self._totals.check.see_batch(name, gradient)
        if self._request.sums:
            self._batch_gradients[name] = gradient.detach().clone()  # DDP will write the mean over processes here

    def _surprise(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None:
            self._failure = f"a gradient of {name} came from outside the graph of the loss"

    def _read(self) -> GradientSample:
        totals, scale = self._totals, self.batch_size / self.loss_scale
        missed = sorted(name for name, left in totals.pending.items() if left)
        if missed:
            raise UnsupportedGradientError(f"the backward never reached {', '.join(missed)}")
        totals.fill(self.batch_size)
        sample = totals.sample(self.batch_size, scale, self._status, self._notes)
        if self._request.sums and not self._unchecked:
            held = self._batch_gradients
            sums = {name: working(held.pop(name)) * scale for name in list(held)}  # one copy of the model at a time
            sample = replace(sample, sums=sums)
        return sample


def quiet(tensor: Tensor | None) -> AbstractContextManager[object]:
    """No graph and no autocast for what we compute, whatever the user's backward runs under."""
    device = "cpu" if tensor is None else tensor.device.type
    return _silence(device) if torch.is_grad_enabled() or torch.is_autocast_enabled(device) else _NOTHING


@contextmanager
def _silence(device: str) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device, enabled=False):
        yield


_NOTHING = nullcontext()
