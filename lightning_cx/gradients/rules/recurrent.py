"""Fused recurrent layers.

A layer that autograd spells out step by step is a row of matrix products, read by the rules of `linear`. A fused
layer is one node for the whole sequence that keeps the gradients of its gates to itself. They are derived again
from what it saved: hidden states tell every gate, all steps in one matrix product; only the cell and the gradient
of the state have to walk through time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx._torch import output_shape, saved
from lightning_cx.gradients.factors.products import Products, Rows, working
from lightning_cx.gradients.graph.example_axis import SHARED, AxisMove, Strides
from lightning_cx.gradients.graph.nodes import Capture, Joint, Node, NodeRecord, Site, register_node

_LSTM = 2  # as ATen numbers the modes of recurrent layers
_INPUT, _WEIGHT_IH, _WEIGHT_HH, _BIAS_IH, _BIAS_HH, _STATE, _CELL = range(7)
_INPUT_GATE, _FORGET_GATE, _CANDIDATE, _OUTPUT_GATE = range(4)  # how the weights stack them


@dataclass(frozen=True)
class Unrolled:
    """One layer in one direction, on B sequences.

    Attributes:
        inputs: What entered at each step, [T, B, input size].
        states: The hidden state before each step, [T, B, H].
        gates: Gradients of the gates before their activation, [T, B, 4 H].
        first_state: Gradient of the initial hidden state, [B, H].
        first_cell: Gradient of the initial cell, [B, H].
    """

    inputs: Tensor
    states: Tensor
    gates: Tensor
    first_state: Tensor
    first_cell: Tensor


def _fused_lstm(site: Site) -> Joint:
    node, operand, shape = site.node, site.operand, output_shape(site.node)
    if saved(node, "mode") != _LSTM or saved(node, "batch_sizes"):
        site.refuse("of fused layers only an LSTM on sequences of one length is read")
    if site.batch_size > 1 and site.examples()[0] != 1:
        site.refuse(f"its steps follow the first axis of {shape}, where the {site.batch_size} examples lie")
    split, index = site.split(keep=1), operand.index
    if index in (_WEIGHT_IH, _WEIGHT_HH):
        factor = "inputs" if index == _WEIGHT_IH else "states"
        return Joint(_unroll_lstm, lambda layer: Products(split(layer.gates), split(getattr(layer, factor))))
    if index in (_BIAS_IH, _BIAS_HH):
        return Joint(_unroll_lstm, lambda layer: Rows(split(layer.gates).sum(1)))
    if index in (_STATE, _CELL) and site.batch_size == 1:  # with more examples it is expanded, and read there
        first = "first_state" if index == _STATE else "first_cell"
        return Joint(_unroll_lstm, lambda layer: Rows(getattr(layer, first).reshape(1, *operand.shape)))
    site.refuse("the parameter has an axis of its own for the examples")


def _whole_stack(site: Site) -> Capture:
    site.refuse("one kernel computes all its layers and does not expose their gates: use replay_gradients")


def _unroll_lstm(node: Node, gradients: Sequence[Tensor | None]) -> Unrolled:
    """Derive the gradients of all gates from what a fused LSTM layer saved and from those of its three outputs."""
    inputs, outputs = working(saved(node, "input")), working(saved(node, "result0"))
    steps, sequences, size = outputs.shape
    reverse = saved(node, "reverse")
    first_state = working(saved(node, "hx_")).reshape(1, sequences, size)
    first_cell = working(saved(node, "cx_")).reshape(1, sequences, size)
    states = torch.cat([outputs[1:], first_state] if reverse else [first_state, outputs[:-1]])
    recurrent = working(saved(node, "weight1"))

    gates = inputs.reshape(steps * sequences, -1) @ working(saved(node, "weight0")).T
    gates.addmm_(states.view(steps * sequences, size), recurrent.T)
    if saved(node, "has_biases"):
        gates += working(saved(node, "weight2")) + working(saved(node, "weight3"))
    gates = gates.view(steps, sequences, 4, size)
    gates[:, :, _INPUT_GATE : _FORGET_GATE + 1].sigmoid_()
    gates[:, :, _CANDIDATE].tanh_()
    gates[:, :, _OUTPUT_GATE].sigmoid_()

    forget = gates[:, :, _FORGET_GATE].clone()
    exposed = _into_slopes(gates, _cells(gates, first_cell, reverse), reverse)
    ends = _back_through_time(gates, exposed, forget, recurrent, gradients, reverse)
    return Unrolled(inputs, states, gates.flatten(2), *ends)


def _cells(gates: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """The cell before the first and after every step in order of time, [T + 1, B, H]."""
    written = gates[:, :, _INPUT_GATE] * gates[:, :, _CANDIDATE]
    cells = torch.cat([written, first] if reverse else [first, written])
    time = list(cells.unbind())
    forget = list(gates[:, :, _FORGET_GATE].unbind())
    if reverse:
        time.reverse()
        forget.reverse()
    for before, after, kept in zip(time, time[1:], forget, strict=False):
        after.addcmul_(kept, before)
    return cells


def _into_slopes(gates: Tensor, cells: Tensor, reverse: bool) -> Tensor:
    """Replace each gate by its slope: the derivative of the cell (last gate: of the state) by the gate's argument.

    Returns:
        The derivative of the state by the cell, [T, B, H].
    """
    before, after = (cells[1:], cells[:-1]) if reverse else (cells[:-1], cells[1:])
    input_gate, forget, candidate, output_gate = gates.unbind(2)
    squashed = after.tanh()
    exposed = torch.ops.aten.tanh_backward(output_gate, squashed)
    _sigmoid_slope(squashed, output_gate)
    _sigmoid_slope(before, forget)
    slope = torch.ops.aten.tanh_backward(input_gate, candidate)
    _sigmoid_slope(candidate, input_gate)
    candidate.copy_(slope)
    return exposed


def _sigmoid_slope(factor: Tensor, gate: Tensor) -> None:
    torch.ops.aten.sigmoid_backward.grad_input(factor, gate, grad_input=gate)


def _back_through_time(
    slopes: Tensor,
    exposed: Tensor,
    forget: Tensor,
    recurrent: Tensor,
    gradients: Sequence[Tensor | None],
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Turn slopes [T, B, 4, H] into gradients of the gates, in place.

    Returns:
        The gradients of the initial hidden state and of the initial cell, [B, H].
    """
    of_outputs, of_state, of_cell = gradients
    state, cell = (
        forget.new_zeros(forget.shape[1:]) if end is None else working(end).reshape(forget.shape[1:]).clone()
        for end in (of_state, of_cell)
    )
    arriving = [None] * len(slopes) if of_outputs is None else list(working(of_outputs).unbind())
    time = list(zip(slopes.unbind(), exposed.unbind(), forget.unbind(), arriving, strict=True))
    for slope, shown, kept, output in time if reverse else reversed(time):
        if output is not None:
            state += output
        cell.addcmul_(state, shown)
        slope[:, :_OUTPUT_GATE].mul_(cell.unsqueeze(1))
        slope[:, _OUTPUT_GATE].mul_(state)
        cell *= kept
        torch.mm(slope.flatten(1), recurrent, out=state)
    return state, cell


def _through_layers(move: AxisMove) -> Strides:
    """Time leads in the inputs and outputs of a fused layer, layers in its states."""
    if move.axis != len(move.shape) - 2:
        raise move.refuse("runs along it")
    states = (_STATE, _CELL) if move.name.startswith("Mkldnn") else ()
    return [
        SHARED if shape is None else move.at(i, len(shape) - 2) if i in states or len(shape) == 3 else SHARED
        for i, shape in enumerate(move.inputs)
    ]


register_node(
    NodeRecord(
        rule=_fused_lstm,
        moves=_through_layers,
        saves=(
            *("mode", "batch_sizes", "reverse", "has_biases", "input", "result0", "hx_", "cx_"),
            *("weight0", "weight1", "weight2", "weight3"),
        ),
    ),
    "MkldnnRnnLayerBackward0",
)
register_node(NodeRecord(rule=_whole_stack, moves=_through_layers), "CudnnRnnBackward0", "MiopenRnnBackward0")
