"""By what a callback is known in a checkpoint and beside others of its kind."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_cx.callbacks._trainer import Callback, Trainer, callbacks_being_validated

ADVICE = 'pass name="..." to one of them, which distinguishes their tags and their states in checkpoints'


def checked_name(name: str) -> str:
    """Return a name that tags can end in.

    Raises:
        ValueError: If it holds anything but letters, digits, - and _.
    """
    if not re.fullmatch(r"[\w-]*", name, re.ASCII):
        raise ValueError(f"the name of a callback may hold letters, digits, - and _, got name={name!r}.")
    return name


def key_of(callback: Callback, released: Mapping[str, Any], told_apart_by: Mapping[str, Any]) -> str:
    """Return the key of a callback's state in checkpoints.

    What the key of released versions does not hold joins it only where it is not the default, so that their checkpoints
    still find their callback.

    Args:
        callback: Whose state it is.
        released: What the key holds in released versions.
        told_apart_by: What else tells callbacks of its kind apart; falsy where it is the default.
    """
    return callback._generate_state_key(**released, **{name: value for name, value in told_apart_by.items() if value})


def distinct(callback: Callback, key: str) -> str:
    """Return the key, for `state_key`, unless Lightning is about to refuse it.

    Lightning wants the keys of a trainer's callbacks to differ; its message does not say how to make them.

    Raises:
        ValueError: While Lightning compares the callbacks of a trainer, if another one has the same key.
    """
    _refuse_twins(callback, key, callbacks_being_validated())
    return key


def keys_of_others(trainer: Trainer, callback: Callback, key: str) -> frozenset[str]:
    """Return the keys of the trainer's other callbacks of a kind, however they came in; refuse one of the same key.

    Raises:
        ValueError: If another one has the same key.
    """
    return _refuse_twins(callback, key, trainer.callbacks)  # type: ignore[attr-defined]


def _refuse_twins(callback: Callback, key: str, callbacks: Sequence[Callback]) -> frozenset[str]:
    alike: list[Any] = [other for other in callbacks if type(other) is type(callback) and other is not callback]
    others = frozenset(other._key for other in alike)
    if key in others:
        raise ValueError(f"two {type(callback).__name__} with the same settings cannot be told apart: {ADVICE}.")
    return others


def settings(thing: Any, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """Return the arguments that an object was made with, where they are not the defaults.

    They are read off attributes of the same name, and are the same text in every process and every run: no addresses.

    Args:
        thing: Any object.
        leave_out: Arguments that do not count.

    Example:
        >>> from lightning_cx.instruments import Interference
        >>> settings(Interference()), settings(Interference(on="probe"))
        ({}, {'on': "'probe'"})
    """
    try:
        parameters = inspect.signature(type(thing).__init__).parameters
    except (TypeError, ValueError):
        return {}
    held = vars(thing) if hasattr(thing, "__dict__") else {}
    values = {
        name: held.get(name, held.get(f"_{name}", p.default)) for name, p in parameters.items() if name not in leave_out
    }
    return {name: text for name, v in values.items() if (text := _words(v)) != _words(parameters[name].default)}


def _words(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_words(key)}: {_words(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_words, value)) + ")"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_words, value))) + "}"
    if hasattr(value, "__qualname__"):  # a function or a class
        return f"{value.__module__}.{value.__qualname__}"
    return type(value).__qualname__
