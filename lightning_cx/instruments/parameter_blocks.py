"""Which parameters belong together: the repeated blocks of a network, as far as names show them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

Blocks: TypeAlias = Literal["auto", "off"] | int | Mapping[str, str | Sequence[str]]

REST = "rest"
"""Block of the parameters that are in no other: stem, head, embeddings."""

ALIKE = 0.5
"""Share of their parameters that two blocks must have in common: the block that changes the width in a ResNet has 9
where the next has 6, the same 6."""

NO_BLOCKS = (
    "no residual blocks: this model has no two numbered submodules, built alike, that hold layers of their own; pass "
    "blocks=2 to share out by the first 2 parts of the parameters' names, a mapping from a name for each block to how "
    'its parameters\' names begin, or blocks="off"'
)


def checked_blocks(blocks: Blocks) -> Blocks:
    """Refuse a setting that names no blocks.

    Raises:
        ValueError: If it is neither "auto", "off", a depth of 1 or more, nor a mapping of beginnings of names.
    """
    if isinstance(blocks, Mapping):
        good = bool(blocks) and all(_beginnings(value) and all(_beginnings(value)) for value in blocks.values())
    else:
        good = blocks in ("auto", "off") or (isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 1)
    if not good:
        known = '"auto", "off", a depth of 1 or more, or a mapping such as {"early": "net.0", "late": "net.1"}'
        raise ValueError(f"blocks must be {known}, got {blocks!r}.")
    return blocks


def parameter_blocks(names: Iterable[str], blocks: Blocks = "auto") -> dict[str, tuple[str, ...]]:
    """Sort parameters into blocks by their names.

    Args:
        names: Of the parameters, as `named_parameters` gives them.
        blocks: "auto" finds submodules that are numbered (``layers.3``, ``layer1.0``, ``encoder_layer_0``), hold layers
            of their own, and are built like another one of the same place: the outermost such, unless that does nothing
            but hold smaller ones. Whether they have a skip connection, names do not tell. A depth takes that many
            parts of each name; a mapping says how the names of each block's parameters begin.

    Returns:
        Names of the parameters of each block, blocks and names in alphabetical order with numbers as numbers (a mapping
        keeps its own order), and of the others as ``"rest"``, last, if there are any.

    Raises:
        ValueError: If there are fewer than two blocks, or one of those that were given has no parameters.

    Example:
        >>> names = ["stem.weight", "blocks.0.a.weight", "blocks.0.b.weight", "blocks.1.a.weight", "blocks.1.b.weight"]
        >>> {block: len(members) for block, members in parameter_blocks(names).items()}
        {'blocks.0': 2, 'blocks.1': 2, 'rest': 1}
    """
    names = sorted(names, key=_in_order)  # a tap meets them from the loss backwards
    found: dict[str, list[str]] = {}
    block_of = _finder(names, blocks)
    for name in names:
        found.setdefault(block_of(name) or REST, []).append(name)
    rest = found.pop(REST, [])
    if isinstance(blocks, Mapping):
        empty = [block for block in blocks if block not in found]
        if empty:
            raise ValueError(f"no parameter that is trained is named as those of the blocks {empty} should be")
        found = {block: found[block] for block in blocks}
    if len(found) < 2:
        raise ValueError(NO_BLOCKS if blocks == "auto" else f"blocks={blocks!r} makes fewer than two blocks")
    return {block: tuple(members) for block, members in found.items()} | ({REST: tuple(rest)} if rest else {})


def _in_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _finder(names: list[str], blocks: Blocks) -> Callable[[str], str | None]:
    if isinstance(blocks, Mapping):
        places = [(block, beginning) for block, given in blocks.items() for beginning in _beginnings(given)]
        return lambda name: next((b for b, start in places if name == start or name.startswith(f"{start}.")), None)
    if isinstance(blocks, int):
        return lambda name: ".".join(name.split(".")[:blocks])
    repeated = _repeated(names)
    stages = {prefix for prefix, inside in repeated.items() if _only_holds(prefix, inside, repeated)}
    return lambda name: next((p for p, _ in _numbered(name) if p in repeated and p not in stages), None)


def _beginnings(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _numbered(name: str) -> list[tuple[str, str]]:
    """Beginnings of a name that end in a number of their own, outermost first, each with what comes after."""
    parts = name.split(".")
    ends = [end for end in range(1, len(parts)) if re.search(r"(^|_)\d+$", parts[end - 1])]
    return [(".".join(parts[:end]), ".".join(parts[end:])) for end in ends]


def _repeated(names: list[str]) -> dict[str, set[str]]:
    """Numbered submodules with layers of their own that are like another, with what is inside."""
    families: dict[str, dict[str, set[str]]] = {}
    for name in names:
        for prefix, inner in _numbered(name):
            families.setdefault(re.sub(r"\d+", "#", prefix), {}).setdefault(prefix, set()).add(inner)
    found = {}
    for family in families.values():
        members = {prefix: inside for prefix, inside in family.items() if any("." in inner for inner in inside)}
        for prefix, inside in members.items():
            others = (theirs for other, theirs in members.items() if other != prefix)
            if any(len(inside & theirs) >= ALIKE * len(inside | theirs) for theirs in others):
                found[prefix] = inside
    return found


def _only_holds(prefix: str, inside: set[str], repeated: Mapping[str, set[str]]) -> bool:
    """Whether a submodule is a sequence of blocks, and so a stage and not a block."""
    return all(f"{prefix}.{inner.split('.')[0]}" in repeated for inner in inside)
