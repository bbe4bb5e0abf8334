"""Find out what a batch is: how many examples, which of its tensors are inputs and which are targets.

A batch does not say. What is found here is what its structure and its names show, so it is stated in one line for the
user to read, and can be said outright by a `BatchSpec`. Where the model can be run, `lightning_cx.probe` asks it what
its output depends on, and `Anatomy.after_asking` takes the answer up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cx.batch.graphs import graphs_in
from lightning_cx.batch.parts import Part, Path, children_of, is_graph_batch, names_of, parts_of
from lightning_cx.batch.spec import BatchSpec, BatchSpecError, Key
from lightning_cx.batch.take import per_example

TARGET_NAMES = ("label", "labels", "target", "targets", "y")
"""Keys and fields under which batches carry their targets, lower case, the surest first."""

PAST = ("past", "encoder", "history", "historic", "insample", "context", "observed", "input")
"""What the name of a target that is an input begins with: the past of a series whose future is asked for."""

MASKS = ("mask", "padding", "is_pad", "observed_values")
WEIGHTS = frozenset({"w", "weight", "weights", "sample_weight", "sample_weights", "example_weight", "obs_weight"})
POSITIONS = frozenset({"position_ids", "positions", "position", "pos_ids", "time_idx", "token_type_ids", "ptr"})
NUMBERS = frozenset({"idx", "index", "indices", "id", "row", "row_id", "example_id", "sample_id", "uid"})

BESIDE = "it comes beside the targets"
UNUSED = "nothing in the loss depends on it"
LOSS_ALONE = "the loss depends on it, the output does not"


@dataclass(frozen=True)
class Anatomy:
    """What a batch is.

    Attributes:
        examples: Number of examples N.
        inputs: Paths of the tensors that are inputs.
        targets: Paths of those that are to be predicted.
        left_out: Paths of the others that have one entry for each example, and why they are neither.
        shapes: Name and shape of each, for the reader.
        counted: Paths of what has one entry for each example, by which later batches are counted.
        asked: Whether the model was asked what its output depends on.
        said: Which of size, inputs and targets the user said outright.
    """

    examples: int
    inputs: tuple[Path, ...] = ()
    targets: tuple[Path, ...] = ()
    left_out: tuple[tuple[Path, str], ...] = ()
    shapes: tuple[tuple[Path, str], ...] = ()
    counted: tuple[Path, ...] = ()
    asked: bool = False
    said: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return one line: "64 examples; inputs x [64, 3]; targets y [64, 1]"."""
        shapes = dict(self.shapes)

        def listed(paths: Sequence[Path], what: str, by_function: str) -> str:
            if by_function in self.said and not paths:
                return f"{what} by your function"
            return f"{what} {', '.join(shapes[path] for path in paths)}" if paths else f"no {what} found"

        words = [f"{self.examples} example{'s' * (self.examples != 1)}"]
        words += [listed(self.inputs, "inputs", "inputs"), listed(self.targets, "targets", "targets")]
        if self.left_out:
            words.append("left out: " + ", ".join(f"{shapes[path]} ({why})" for path, why in self.left_out))
        return "; ".join(words)

    def after_asking(self, output: Mapping[Path, bool], loss: Mapping[Path, bool]) -> Anatomy:
        """Return what the batch is once it is known what the output and the loss of the model depend on.

        Args:
            output: Whether the output changes where the rows of a tensor change places among the examples.
            loss: Whether the loss does.
        """
        inputs = self.inputs if "inputs" in self.said else tuple(p for p in self.inputs if output.get(p, True))
        targets, dropped = self.targets, [p for p in self.inputs if p not in inputs]
        only_loss = [p for p in dropped if loss.get(p, False)]
        if not targets and "targets" not in self.said and only_loss:
            targets = (only_loss[0],)
        elif "targets" not in self.said:
            targets = tuple(p for p in targets if loss.get(p, True) or output.get(p, False))
            dropped += [p for p in self.targets if p not in targets]
        if (
            not inputs and self.inputs
        ):  # an output of no input is no answer: a loss without a module, or rows that do not count
            return replace(self, asked=True)
        why = [(p, LOSS_ALONE if loss.get(p, False) else UNUSED) for p in dropped if p not in targets]
        return replace(self, inputs=inputs, targets=targets, left_out=(*self.left_out, *why), asked=True)

    def count(self, batch: Any) -> int:
        """Return the number of examples in another batch of this make, as most of what has one entry each tells.

        Raises:
            ValueError: If nothing that had one entry for each example is there.
        """
        lengths: dict[int, int] = defaultdict(int)
        own = set(self.counted)
        for path, length in _lengths(batch):
            if path in own:
                lengths[length] += 1
        if not lengths:
            raise ValueError(f"the number of examples in a batch of type {type(batch).__name__} is not clear")
        return max(lengths, key=lambda length: lengths[length])


def structure_of(batch: Any) -> tuple[Any, ...]:
    """Return what two batches of one make have in common: paths, numbers of axes and dtypes, hashable."""
    return tuple((p.path, getattr(p.value, "ndim", 0), str(getattr(p.value, "dtype", ""))) for p in parts_of(batch))


def anatomy_of(batch: Any, spec: BatchSpec | None = None, expected: int | None = None) -> Anatomy:
    """Find out what a batch is.

    Args:
        batch: Any nesting of mappings, lists, tuples, dataclasses and objects with tensors.
        spec: What the user says of it.
        expected: Batch size of the loader, where it is known.

    Raises:
        ValueError: If the number of examples is not to be found, or the specification does not fit; says what was
            found.

    Example:
        >>> x, y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 1, 0])
        >>> print(anatomy_of({"positions": torch.arange(3), "x": x, "labels": y}))
        4 examples; inputs x [4, 3]; targets labels [4]
    """
    spec = spec or BatchSpec()
    parts = list(parts_of(batch))
    names = names_of(parts)
    shapes = tuple((part.path, f"{names[part.path]} {part.sizes}") for part in parts)
    examples = _count(batch, parts, spec, expected)
    held = [part for part in parts if part.length == examples] + list(_node_parts(batch, examples))
    said = frozenset(name for name in ("size", "inputs", "targets") if getattr(spec, name) is not None)
    targets = _said(parts, spec.targets, "targets", examples)
    targets = _targets(batch, held) if targets is None else targets
    inputs = _said(parts, spec.inputs, "inputs", examples)
    left_out: list[tuple[Path, str]] = []
    if inputs is None:
        inputs = []
        for part in held:
            if part.path in targets:
                continue
            why = _why_no_input(part, targets, parts)
            if why:
                left_out.append((part.path, why))
            else:
                inputs.append(part.path)
    counted = tuple(path for path, length in _lengths(batch) if length == examples)
    return Anatomy(examples, tuple(inputs), tuple(targets), tuple(left_out), shapes, counted, said=said)


def _lengths(batch: Any) -> list[tuple[Path, int]]:
    """The way to everything that may have one entry for each example, and how many entries it has."""
    found = [(part.path, part.length) for part in parts_of(batch) if part.length is not None]
    return found + _other_lengths(batch, ())


def _other_lengths(batch: Any, path: Path) -> list[tuple[Path, int]]:
    """Numbers of graphs and of texts, which no tensor's length tells."""
    found: list[tuple[Path, int]] = []
    if is_graph_batch(batch):
        return [((*path, "num_graphs"), int(batch.num_graphs))]
    if path and isinstance(batch, list | tuple) and len(batch) > 1 and per_example(batch, len(batch)):
        found.append((path, len(batch)))  # texts
    if not isinstance(batch, list | tuple | Tensor | np.ndarray) and (graphs := graphs_in(batch)) is not None:
        found.append(((*path, "number of graphs"), graphs.count))
    for key, value in children_of(batch):
        if not isinstance(value, Tensor | np.ndarray):
            found += _other_lengths(value, (*path, key))
    return found


def _count(batch: Any, parts: Sequence[Part], spec: BatchSpec, expected: int | None) -> int:
    lengths = _lengths(batch)
    seen = ", ".join(f"{name}" for name in (f"{names_of(list(parts))[p.path]} {p.sizes}" for p in parts)) or "no tensor"
    if spec.size is not None:
        return _said_size(batch, parts, lengths, spec.size, seen)
    if not lengths:
        if isinstance(batch, list | tuple) and len(batch) > 1:
            return len(batch)  # of texts
        raise ValueError(
            f"the number of examples in a batch of type {type(batch).__name__} is not clear, which holds {seen}: pass "
            "BatchSpec(size=...), a number, a key of the batch, or a function of it"
        )
    graphs = [n for path, n in lengths if path[-1:] in (("num_graphs",), ("number of graphs",))]
    if graphs:
        return graphs[0]
    limits = [p for p in parts if p.key == "ptr" and p.tensor.ndim == 1 and p.length]
    if limits:
        return len(limits[0].tensor) - 1
    if expected is not None and any(n == expected for _, n in lengths):
        return expected
    votes: dict[int, tuple[float, int]] = {}
    by_path = {part.path: part for part in parts}
    for path, length in lengths:
        part = by_path.get(path)
        weight, size = votes.get(length, (0.0, 0))
        weight += 1.0 if part is None else _weight_of_vote(part, parts)
        votes[length] = weight, size + (0 if part is None else part.numbers)
    return max(votes, key=lambda n: votes[n])


def _weight_of_vote(part: Part, parts: Sequence[Part]) -> float:
    """How much the length of a tensor says of the number of examples: little where it is the length of sequences."""
    if part.key in POSITIONS or "index" in part.key:
        return 0.25
    flat = getattr(part.value, "ndim", 2) == 1
    inner = any(part.length in tuple(getattr(p.value, "shape", ()))[1:] for p in parts if p is not part)
    return 0.5 if flat and inner else 1.0


def _said_size(
    batch: Any,
    parts: Sequence[Part],
    lengths: Sequence[tuple[Path, int]],
    size: int | str | Callable[[Any], int],
    seen: str,
) -> int:
    if isinstance(size, str):
        part = next((p for p in parts if p.path and p.path[-1] == size), None) or _only(parts, size)
        if part is not None and part.length is not None:
            return part.length
        value = part.tensor.item() if part is not None else dict(_scalars(batch)).get(size)
        if value is None:
            raise BatchSpecError(f"BatchSpec(size={size!r}): the batch has no such key; it holds {seen}")
        return _positive(int(value), f"BatchSpec(size={size!r})")
    if callable(size):
        value = size(batch)
        if isinstance(value, Tensor):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int):
            raise BatchSpecError(f"BatchSpec(size=...) must return a whole number, and returned {value!r}")
        return _positive(value, "BatchSpec(size=...)")
    if not any(length == size for _, length in lengths):
        raise BatchSpecError(
            f"BatchSpec(size={size}): nothing in the batch has {size} entries along its first axis; it holds {seen}"
        )
    return size


def _positive(value: int, what: str) -> int:
    if value < 1:
        raise BatchSpecError(f"{what} gives {value} examples: a batch has at least one")
    return value


def _scalars(batch: Any) -> list[tuple[str, Any]]:
    whole = [(str(key), value) for key, value in children_of(batch) if isinstance(value, int)]
    return [(key, value) for key, value in whole if not isinstance(value, bool)]


def _only(parts: Sequence[Part], key: Key) -> Part | None:
    """The part that a key or position names: by its innermost key, its position, or the dotted way to it."""
    wanted = str(key)
    for part in parts:
        if part.path and ((part.path[0] == key and len(part.path) == 1) or ".".join(map(str, part.path)) == wanted):
            return part
    named = [part for part in parts if (part.path and part.path[-1] == key) or part.key == wanted.lower()]
    inside = [part for part in parts if part.path and part.path[0] == key]
    return (named or inside or [None])[0]


def _said(parts: Sequence[Part], wanted: Any, what: str, examples: int) -> list[Path] | None:
    """The paths that the user named; none if a function makes them, None if nothing was said."""
    if wanted is None:
        return None
    if callable(wanted):
        return []
    found = []
    names = names_of(list(parts))
    for key in [wanted] if isinstance(wanted, str | int) else wanted:
        part = _only(parts, key)
        seen = ", ".join(f"{names[p.path]} {p.sizes}" for p in parts) or "no tensor"
        if part is None:
            raise BatchSpecError(f"BatchSpec({what}={key!r}): the batch has no such tensor; it holds {seen}")
        if part.length != examples:
            raise BatchSpecError(
                f"BatchSpec({what}={key!r}): {names[part.path]} {part.sizes} has not one row for each of {examples} "
                f"examples; the batch holds {seen}"
            )
        found.append(part.path)
    return found


def _node_parts(batch: Any, examples: int, path: Path = ()) -> list[Part]:
    """Tensors with one row for each node of graphs, which are inputs of the graphs."""
    found: list[Part] = []
    graphs = graphs_in(batch)
    for key, value in children_of(batch):
        if graphs is not None and isinstance(value, Tensor) and graphs.kind(key, value, examples) == "nodes":
            if len(value) != examples:
                found.append(Part((*path, key), value))
        elif not isinstance(value, Tensor | np.ndarray):
            found += _node_parts(value, examples, (*path, key))
    return found


def _targets(batch: Any, held: Sequence[Part]) -> list[Path]:
    """What is named as targets are; else the second of several things that a batch is made of, or its first tensor."""
    for wanted in TARGET_NAMES:
        named = [part.path for part in held if part.key == wanted and _ends_in_key(part)]
        if named:
            return named[:1]
    named = [part.path for part in held if _is_target_name(part.key) and _ends_in_key(part)]
    if not isinstance(batch, list | tuple) or hasattr(batch, "_fields") or len(batch) < 2:
        return named[:1]
    codes = [part.path for part in held if part.path[0] != 0 and _holds_codes(part)]
    second = [part.path for part in held if part.path[0] == 1 and part.path[-1] not in WEIGHTS]
    if len(batch) > 2:  # two images and whether they are alike; a picture, its number and its label
        return codes[-1:] or named[:1]
    return second[:1] or named[:1]


def _holds_codes(part: Part) -> bool:
    """Whether a tensor holds one whole number for each example, as classes are."""
    tensor = part.tensor
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    return whole and tensor.ndim == 1 and len(tensor.unique()) < max(3, len(tensor))


def _ends_in_key(part: Part) -> bool:
    """Whether the key is the tensor's own: in {"target": (y, weight)} it is that of the first."""
    return bool(part.path) and (isinstance(part.path[-1], str) or part.path[-1] == 0)


def _is_target_name(key: str) -> bool:
    if key.startswith(PAST):
        return False
    return any(key.endswith(f"_{name}") or key.startswith(f"{name}_") for name in TARGET_NAMES if len(name) > 1)


def _why_no_input(part: Part, targets: Sequence[Path], parts: Sequence[Part]) -> str:
    """Why a tensor with one row for each example is no input, in words; empty where it may be one."""
    value = part.tensor if not (isinstance(part.value, Tensor) and part.value.is_nested) else part.value
    if value.numel() == 0:
        return "empty"
    key = part.key
    if key in TARGET_NAMES or _is_target_name(key):
        return "named as targets are"
    if any(path[:1] == part.path[:1] and len(path) > 1 for path in targets if isinstance(path[0], int)):
        return BESIDE
    if any(word in key for word in MASKS):
        return "a mask"
    if key in WEIGHTS or key.endswith(("_weight", "_weights")):
        return "weights"
    if key in POSITIONS or key.endswith(("position_ids", "_positions")):
        return "positions"
    if key in NUMBERS or key.endswith(("_idx", "_index")):
        return "numbers of examples or of their places"
    if key in ("length", "lengths") or key.endswith(("_length", "_lengths", "_len", "_lens", "seq_len")):
        return "lengths"
    if value.is_nested:
        return ""
    if value.dtype == torch.bool and value.ndim > 1 and any(_is_beside(part, other) for other in parts):
        return "a mask"
    if len(value) > 1 and bool((value == value[:1]).all()):
        return "the same in every example"
    whole = not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool
    if whole and value[0].numel() == 1 and len(value) > 2 and len(value.unique()) == len(value):
        return "another whole number in each example, as names of examples are"
    return ""


def _is_beside(mask: Part, other: Part) -> bool:
    """Whether a tensor begins with the axes of a mask, of which more than the examples."""
    shape, axes = tuple(getattr(other.value, "shape", ())), mask.tensor.shape
    return other is not mask and shape[: len(axes)] == tuple(axes)


class Anatomies:
    """The anatomies of the batches of one fit: found once for each make of batch, then looked up.

    Args:
        spec: What the user says of a batch.

    Attributes:
        spec: The same.
    """

    def __init__(self, spec: BatchSpec | None = None) -> None:
        self.spec = spec or BatchSpec()
        self._known: dict[tuple[Any, ...], Anatomy] = {}

    @property
    def known(self) -> int:
        """How much is known: another number each time that something was found out."""
        return sum(1 + anatomy.asked for anatomy in self._known.values())

    def of(self, batch: Any, expected: int | None = None) -> Anatomy:
        """Return the anatomy of a batch.

        Args:
            batch: As it is handed to the model, or as it comes from the loader.
            expected: How many examples it should have, where that is known.

        Raises:
            ValueError: As `anatomy_of`.
        """
        structure = structure_of(batch)
        known = self._known.get(structure)
        if known is None:
            known = self._known[structure] = anatomy_of(batch, self.spec, expected)
            return known
        if callable(self.spec.size):
            return replace(known, examples=_count(batch, [], self.spec, None))
        return replace(known, examples=known.count(batch))

    def learn(self, batch: Any, output: Mapping[Path, bool], loss: Mapping[Path, bool]) -> Anatomy:
        """Take up what the output and the loss of a model depend on, for all batches of one make.

        Args:
            batch: One of them, of which the anatomy is known.
            output: As in `Anatomy.after_asking`.
            loss: As there.
        """
        structure = structure_of(batch)
        self._known[structure] = self._known[structure].after_asking(output, loss)
        return self._known[structure]
