"""Run a module again and leave no trace.

A training step run once more changes running statistics, metric states, a queue of negatives, counters in plain
attributes, what was logged, the random streams, `.grad`. A user's training has to come out bit for bit as without us,
so all of that is put back, and what cannot be put back is detected and refused.

What decides how:
- A copy of the module would be simpler and wrong: hooks, closures, tied parameters and a module's references to itself
  or to its trainer point to the original. So the module itself runs, and its state is remembered (`Snapshot`).
- Tensors are not saved and written back: a write raises their version, and the backward of a graph that the user still
  holds would refuse them. Clones stand in their place instead, and the originals return untouched.
- Parameters are the exception. An optimizer and the graph know them by identity, so they stay; their versions tell
  whether something wrote to them, and `guard` keeps values to put back.
"""

from __future__ import annotations

import enum
import io
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_cx._torch import backward_hooks, drop_backward_hooks, preserve_version_counter, version
from lightning_cx.probe.reach import Found, what_moves

LOG_LENGTH = 10_000  # a longer list is a log: only its last elements are looked into, the others are shared

READERS = ("__getitem__", "__getitems__", "__len__", "__iter__")  # of a data set or a sampler
STEPS = ("training_step", "forward")

FEW_OBJECTS, FEW_ITEMS = 10_000, 100  # how far a data set is searched for generators; long lists are its data

_ATOMS = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, slice})
_OPAQUE = (type, ModuleType, FunctionType, MethodType, MappingProxyType, enum.Enum, BaseException)
# Objects of these packages run threads, hold files, data sets or whole trainers: none of our business.
_FOREIGN = frozenset(
    {"aim", "asyncio", "clearml", "comet_ml", "concurrent", "lightning", "lightning_fabric", "logging", "mlflow"}
    | {"multiprocessing", "neptune", "pytorch_lightning", "queue", "socket", "tensorboard", "tensorboardX"}
    | {"tensorflow", "threading", "torch", "wandb", "weakref", "datasets", "h5py", "pandas", "polars", "pyarrow"}
)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Keep the random streams of torch (all devices), numpy and python as they are, whatever happens inside.

    Args:
        seed: If given, all streams start from it inside the block, so that what is drawn there is reproducible.

    Example:
        >>> import torch
        >>> before = torch.get_rng_state()
        >>> with isolated_rng(seed=0):
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    torch_state, put_back = torch.get_rng_state(), _device_streams(seed)
    try:
        if seed is not None:
            # Not torch.manual_seed: it also seeds devices that are not in use yet, for the day they will be.
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy stream is the one that user code draws from
            random.seed(seed)
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        for undo in put_back:
            undo()


@contextmanager
def isolated_streams(holder: object) -> Iterator[None]:
    """Keep a data set as it is while examples are read: its generators, wherever they hang, files, counters, caches."""
    snapshot = Snapshot()
    snapshot.take_reader(holder)
    try:
        yield
    finally:
        snapshot.restore()


def used_up(holder: object, methods: tuple[str, ...]) -> Found | None:
    """Return an iterator that a method of an object uses, so that to run it again would change what comes next."""
    return next((found for found in what_moves(holder, methods) if found.is_iterator), None)


def _device_streams(seed: int | None) -> list[Callable[[], None]]:
    """Seed the accelerators that are in use; returns what puts their streams back."""
    undo: list[Callable[[], None]] = []
    for device in (torch.cuda, torch.xpu):
        if device.is_available() and device.is_initialized():
            states = device.get_rng_state_all()
            undo.append(lambda set_all=device.set_rng_state_all, states=states: set_all(states))
            if seed is not None:
                device.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        state = torch.mps.get_rng_state()
        undo.append(lambda: torch.mps.set_rng_state(state))
        if seed is not None:
            torch.mps.manual_seed(seed)
    return undo


@contextmanager
def isolated(module: nn.Module, training: bool = False, seed: int = 0, guard: bool = False) -> Iterator[None]:
    """Let a module run inside the block as if it had never run.

    Whatever can be reached from the module through attributes and containers (buffers, torchmetrics states, lists,
    dictionaries, arrays, plain objects, generators, hooks, modes) is put back afterwards, and no tensor is written
    to: inside the block, clones stand in the place of all tensors that are not parameters. `log` and `log_dict` are
    mute, `.grad` is None inside and back afterwards, random streams too.

    Random generators and files are found in closures and globals that `training_step` names as well. Out of reach:
    iterators (`used_up` finds them), other globals, the trainer, what a library of loggers or threads holds, and
    in-place changes of elements that lie ten thousand places before the end of a list.

    Args:
        module: The module, for example a LightningModule.
        training: Mode inside the block; eval by default. A module that is in training mode already keeps the modes
            of its submodules, so that a frozen part stays in eval mode.
        seed: Seed of the random streams inside the block.
        guard: Keep a copy of the parameters as well and put them back should the block change them in place. This
            also sees changes through `.data`, which leave no other sign.

    Raises:
        RuntimeError: If the block changed parameters in place; with `guard` they are put back first.
    """
    snapshot = Snapshot()
    kept: list[_Kept] = []
    with isolated_rng(seed):
        try:
            snapshot.take(module)
            snapshot.take_streams(module)
            for parameter in snapshot.parameters:  # one by one: memory may run out half way
                kept.append(_Kept(parameter, guard))  # noqa: PERF401
            for part in module.modules():
                if hasattr(type(part), "log") and hasattr(type(part), "log_dict"):
                    part.__dict__["log"] = part.__dict__["log_dict"] = _mute
            if not (training and module.training):
                module.train(training)
            yield
        finally:
            snapshot.restore()
            changed = [one.parameter for one in kept if one.put_back()]
    if changed:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        raise RuntimeError(
            "running training_step again changed parameters in place "
            f"({len(changed)} of them, {names.get(id(changed[0]), 'one outside named_parameters')} first), so it "
            "cannot be replayed without disturbing training: give the probe an explicit loss_fn(module, batch) instead"
        )


def _mute(*args: object, **kwargs: object) -> None:
    del args, kwargs


class _Kept:
    """One parameter as it was: its version, gradient and hooks, and with `guard` its values."""

    def __init__(self, parameter: nn.Parameter, guard: bool) -> None:
        self.parameter = parameter
        self._trainable, self._gradient = parameter.requires_grad, parameter.grad
        self._hooks: dict[int, Any] | None = backward_hooks(parameter)
        self._hooks_inside = dict(self._hooks or {})
        # Exists to hide a change from autograd; here there is nothing to hide once the values are back, and without it
        # the version that putting them back leaves would make the backward of the user's own graph fail.
        self._version = preserve_version_counter(parameter)
        self._seen, self._storage = version(parameter), parameter.data
        self._values = parameter.detach().clone() if guard else None
        parameter.grad = None

    def put_back(self) -> bool:
        """Put everything back; returns whether the values had changed."""
        parameter, values = self.parameter, self._values
        moved = parameter.shape != self._storage.shape or parameter.data_ptr() != self._storage.data_ptr()
        if moved:
            parameter.data = self._storage
        changed = version(parameter) != self._seen or (values is not None and not _same_bits(parameter, values))
        if changed and values is not None:
            parameter.data.copy_(values)
            self._version.__exit__(None, None, None)
        if parameter.requires_grad != self._trainable:
            parameter.requires_grad_(self._trainable)
        if parameter.grad is not self._gradient:
            parameter.grad = self._gradient
        if self._hooks is None and backward_hooks(parameter) is not None:
            drop_backward_hooks(parameter)
        elif self._hooks is not None and self._hooks != self._hooks_inside:
            self._hooks.clear()
            self._hooks.update(self._hooks_inside)
        return changed or moved


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    # Equal values suffice nearly always; only NaN, which is unlike itself, needs the bits.
    one = one.detach()
    if torch.equal(one, other):
        return True
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(one.element_size())
    return integers is not None and torch.equal(one.contiguous().view(integers), other.contiguous().view(integers))


@contextmanager
def watched_pass(module: nn.Module, training: bool, seed: int) -> Iterator[list[str]]:
    """Run a module again and leave no trace, parameters included, but the names of the streams that it drew from.

    Args:
        module: The module.
        training: Whether in training mode, if it is in it.
        seed: Of the random streams inside.
    """
    with isolated(module, training=training and module.training, seed=seed, guard=True), drawing() as drawn:
        yield drawn


@contextmanager
def drawing() -> Iterator[list[str]]:
    """Collect the names of the random streams that are drawn from inside the block."""
    drawn: list[str] = []
    before = _streams()
    yield drawn
    after = _streams()
    drawn += [name for name, state in before.items() if state != after.get(name)]


def _streams() -> dict[str, Any]:
    of_numpy: Any = np.random.get_state()  # noqa: NPY002 - the legacy stream is the one that user code draws from
    streams: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (of_numpy[1].tobytes(), *of_numpy[2:]),
        "python": random.getstate(),
    }
    for name, device in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if device.is_available() and device.is_initialized():
            streams[name] = device.get_rng_state().numpy().tobytes()
    return streams


class Snapshot:
    """The state of all that can be reached from a module through attributes and containers.

    Containers and objects stay the same objects and get their contents back, so it does not matter from where they
    are reached. Tensors are never written to, since a graph of the user may hold them: until `restore`, clones
    stand in their place, one for each tensor however often it is reached.

    Attributes:
        parameters: Every Parameter that was met; these stay in place.
    """

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self._undo: list[Callable[[], object]] = []
        self._stand_ins: dict[int, tuple[Any, Any]] = {}  # by id; holds the originals so that ids stay theirs
        self._waiting: list[Any] = []

    def take(self, value: Any) -> None:
        """Remember the state of `value` and of all that it holds, and put clones in the place of tensors."""
        self._stand_in(value)
        while self._waiting:
            self._remember(self._waiting.pop())

    def take_streams(self, module: nn.Module) -> None:
        """Remember where random generators stand that its training step names but that do not hang on the module."""
        for found in what_moves(module, STEPS):
            self._stream(found.thing)

    def take_reader(self, value: Any) -> None:
        """Remember what reading may change in a data set: generators, files, attributes; its data is left alone."""
        for found in what_moves(value, READERS):
            self._stream(found.thing)
        waiting, seen = [value], {id(value): value}
        while waiting and len(seen) < FEW_OBJECTS:
            one = waiting.pop()
            self._stream(one)
            held = one if isinstance(one, list | tuple | dict) else getattr(one, "__dict__", ())
            self._shallow(one)
            if held is not one and isinstance(held, dict):
                self._shallow(held)
            held = held.values() if isinstance(held, dict) else held
            for item in held if len(held) <= FEW_ITEMS else ():
                if id(item) not in seen and type(item) not in _ATOMS and not isinstance(item, _OPAQUE):
                    seen[id(item)] = item
                    waiting.append(item)

    def _shallow(self, value: Any) -> None:
        """Remember a container or a small array itself, and nothing of what it holds."""
        if isinstance(value, dict) and len(value) <= LOG_LENGTH:
            self._put_back(value)
        elif isinstance(value, list) and len(value) <= FEW_ITEMS:
            self._sequence(value, inside=False)
        elif isinstance(value, list):
            length = len(value)
            self._undo.append(lambda: value.__delitem__(slice(length, None)))  # a log grows at its end
        elif isinstance(value, np.ndarray) and value.size <= LOG_LENGTH:
            self._array(value)
        elif isinstance(value, Tensor) and value.numel() <= LOG_LENGTH and not value.requires_grad and value.is_cpu:
            seen, saved = version(value), value.clone()
            self._undo.append(lambda: version(value) == seen or value.copy_(saved))

    def restore(self) -> None:
        """Put everything back as it was when it was taken."""
        for undo in self._undo:
            undo()

    def _stand_in(self, value: Any) -> Any:
        if type(value) in _ATOMS:
            return value
        known = self._stand_ins.get(id(value))
        if known is not None:
            return known[1]
        result = value
        if isinstance(value, nn.Parameter):
            self.parameters.append(value)
        elif isinstance(value, Tensor):
            result = _clone(value)
        elif isinstance(value, tuple):
            result = self._tuple(value)
        elif not isinstance(value, _OPAQUE):
            self._waiting.append(value)
        self._stand_ins[id(value)] = (value, result)
        return result

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = [self._stand_in(item) for item in value]
        if all(map(_is, items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)

    def _remember(self, value: Any) -> None:
        if isinstance(value, dict):
            self._dictionary(value)
        elif isinstance(value, list | deque):
            self._sequence(value)
        elif isinstance(value, set):
            saved = value.copy()
            self._undo.append(lambda: value == saved or (value.clear(), value.update(saved)))
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, nn.Module) or not _is_foreign(type(value)):
            self._object(value)
        else:
            self._stream(value)

    def _dictionary(self, value: dict[Any, Any]) -> None:
        saved, base = self._put_back(value)
        if not _ATOMS.issuperset(map(type, saved.values())):
            for key, item in saved.items():
                stand_in = self._stand_in(item)
                if stand_in is not item:
                    base.__setitem__(value, key, stand_in)

    def _put_back(self, value: dict[Any, Any]) -> tuple[dict[Any, Any], Any]:
        """Remember what a dictionary holds; return that, and what writes to it."""
        saved = dict(value)
        # The base class writes: a user's own __setitem__ may do more than set.
        base: Any = OrderedDict if isinstance(value, OrderedDict) else dict

        def undo() -> None:
            if (
                len(value) == len(saved)
                and all(map(_is, value, saved))
                and all(map(_is, value.values(), saved.values()))
            ):
                return
            base.clear(value)
            for key, item in saved.items():
                base.__setitem__(value, key, item)

        self._undo.append(undo)
        return saved, base

    def _sequence(self, value: list[Any] | deque[Any], inside: bool = True) -> None:
        saved = list(value)

        def undo() -> None:
            if len(value) != len(saved) or not all(map(_is, value, saved)):
                value.clear()
                value.extend(saved)

        self._undo.append(undo)
        if inside and not _ATOMS.issuperset(map(type, saved)):
            for index in range(max(0, len(saved) - LOG_LENGTH), len(saved)):
                item = saved[index]
                stand_in = self._stand_in(item)
                if stand_in is not item:
                    value[index] = stand_in

    def _array(self, value: np.ndarray) -> None:
        if not value.flags.writeable or isinstance(value, np.memmap):
            return
        saved = value.copy()
        self._undo.append(lambda: np.copyto(value, saved))

    def _object(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            appended = getattr(value, "_defaults", None)
            if isinstance(value, nn.Module) and isinstance(appended, dict):
                # The list states of a torchmetrics.Metric can hold an epoch; update only ever appends to them.
                for state in map(attributes.get, appended):
                    if isinstance(state, list) and id(state) not in self._stand_ins:
                        self._stand_ins[id(state)] = (state, state)
                        self._sequence(state, inside=False)
            self._stand_in(attributes)
        for name in (n for kind in type(value).__mro__ for n in _slots(kind)):
            self._slot(value, name)
        self._stream(value)

    def _slot(self, value: Any, name: str) -> None:
        if not hasattr(value, name):
            self._undo.append(lambda: hasattr(value, name) and object.__delattr__(value, name))
            return
        saved = getattr(value, name)
        self._undo.append(lambda: object.__setattr__(value, name, saved))
        stand_in = self._stand_in(saved)
        if stand_in is not saved:
            object.__setattr__(value, name, stand_in)

    def _stream(self, value: Any) -> None:
        """Remember where a random stream of the user's own stands."""
        if isinstance(value, torch.Generator):
            self._rewind(value.set_state, value.get_state())
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._rewind(lambda state: setattr(bits, "state", state), bits.state)
        elif isinstance(value, np.random.RandomState):
            self._rewind(value.set_state, value.get_state())
        elif isinstance(value, random.Random):
            self._rewind(value.setstate, value.getstate())
        elif isinstance(value, io.IOBase) and not value.closed and value.seekable():
            self._rewind(value.seek, value.tell())

    def _rewind(self, set_state: Callable[[Any], object], state: Any) -> None:
        self._undo.append(lambda: set_state(state))


def _is(one: object, other: object) -> bool:
    return one is other


def _clone(value: Tensor) -> Tensor:
    if not value.is_leaf:
        with torch.enable_grad():  # what hangs on the user's graph still does
            return value.clone()
    return value.detach().clone().requires_grad_(value.requires_grad)


def _slots(kind: type) -> list[str]:
    names = kind.__dict__.get("__slots__", ())
    names = (names,) if isinstance(names, str) else names
    return [name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


_foreign: dict[type, bool] = {}


def _is_foreign(kind: type) -> bool:
    if kind not in _foreign:
        roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
        _foreign[kind] = not roots.isdisjoint(_FOREIGN)
    return _foreign[kind]
