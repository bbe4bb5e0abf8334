"""The private names of torch that the package uses are there in the installed torch, and used in one place only."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lightning_cx
from lightning_cx import _torch
from lightning_cx.gradients.graph.nodes import _FAMILIES, RECORDS, NodeRecord

PACKAGE = Path(lightning_cx.__path__[0])
NATIVE = {name: record for name, record in RECORDS.items() if re.search(r"Backward\d$", name)}
YOUNG = {"FusedRmsNormBackward0"}  # node types that the oldest supported torch does not have
# Whatever of these forms is written, it is a private name of torch.
PRIVATE = re.compile(
    r"\._saved_|\._raw_saved|\._input_metadata|torch\._|_execution_engine|\._backward_hooks|_post_accumulate_grad_hooks"
    r"|_unsafe_preserve_version_counter|\b_BatchNorm\b|\b_InstanceNorm\b|\b_Holder\b"
    r"|(?<!lightning_cx)\._version\b|\._buffers\b"
    r"|_compiled_call_impl|_fsdp|_unsharded_param|_module_info"
)


def node_of(value: torch.Tensor) -> Any:
    assert value.grad_fn is not None
    return value.grad_fn


@pytest.mark.parametrize("name", NATIVE)
def test_each_recorded_node_saves_what_its_record_says(name: str) -> None:
    kind, record = getattr(_torch.NODE_TYPES, name, None), NATIVE[name]
    if kind is None:
        assert name in YOUNG
        return
    missing = {*record.saves, *(record.plan_key or ())} - {*_torch.saved_names(kind)}
    assert not missing


@pytest.mark.parametrize("beginning", _FAMILIES)
def test_each_family_of_nodes_has_members(beginning: str) -> None:
    assert any(name.startswith(beginning) for name in dir(_torch.NODE_TYPES))


def test_records_name_what_they_read_off_a_node() -> None:
    for path in (PACKAGE / "gradients" / "rules").glob("*.py"):
        text = path.read_text()
        records = [record for name, record in RECORDS.items() if f'"{name}"' in text]
        named = {name for record in records for name in (*record.saves, *(record.plan_key or ()))}
        read = set(re.findall(r'saved\([a-z.]*node, "(\w+)"\)', text))
        assert read <= named, path.name


def test_private_names_of_torch_stand_in_one_file() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if path.name != "_torch.py" and PRIVATE.search(line)
    }
    assert not {line for line in found if "lightning_cx._torch" not in line}


def test_what_a_node_tells() -> None:
    weight = torch.randn(2, 3, requires_grad=True)
    node = node_of(torch.nn.functional.linear(torch.randn(4, 3), weight, torch.zeros(2, requires_grad=True)))
    assert _torch.saved(node, "alpha") == 1
    assert _torch.has_saved(node, "mat1")
    assert not _torch.has_saved(node, "mat3")
    assert {"alpha", "beta", "mat1", "mat2"} <= {*_torch.saved_names(type(node))}
    assert _torch.output_shape(node) == (4, 2)
    assert _torch.output_metadata(node)[0].dtype == torch.float32


@pytest.mark.skipif(not _torch.SEES_CHECKPOINTS, reason="this torch does not tell what holds a saved tensor")
def test_a_checkpoint_that_holds_saved_tensors_is_seen() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    assert not _torch.is_checkpointed(node_of(layer(x)))
    held = checkpoint(layer, x, use_reentrant=False)
    assert _torch.is_checkpointed(node_of(held))  # type: ignore[arg-type]
    assert _torch.any_checkpoint_alive()


def test_the_end_of_a_backward_is_announced() -> None:
    x, calls = torch.ones(2, requires_grad=True), []
    value = (x * x).sum()
    node_of(value).register_prehook(lambda _: _torch.call_after_backward(lambda: calls.append(x.grad is not None)))
    value.backward()
    assert calls == [True]


def test_hooks_and_versions_of_a_tensor() -> None:
    x = torch.ones(2, requires_grad=True)
    assert _torch.backward_hooks(x) is None
    assert not _torch.post_accumulate_hooks(x)
    x.register_hook(lambda g: g)
    x.register_post_accumulate_grad_hook(lambda _: None)
    assert len(_torch.backward_hooks(x) or ()) == 1
    assert len(_torch.post_accumulate_hooks(x)) == 1
    _torch.drop_backward_hooks(x)
    assert _torch.backward_hooks(x) is None
    plain = torch.ones(2)
    before = _torch.version(plain)
    with _torch.preserve_version_counter(plain):
        plain.add_(1)
    assert _torch.version(plain) == before
    plain.add_(1)
    assert _torch.version(plain) == before + 1


def test_parts_of_a_module() -> None:
    norm = nn.BatchNorm1d(3)
    assert isinstance(norm, _torch.BatchNorm)
    assert isinstance(nn.InstanceNorm1d(3), _torch.InstanceNorm)
    assert _torch.buffers(norm)["running_mean"] is norm.running_mean
    assert not _torch.is_compiled_in_place(norm)
    norm.compile(backend="eager")
    assert _torch.is_compiled_in_place(norm)


def test_the_compiler_once_it_is_loaded() -> None:
    net = torch.compile(nn.Linear(2, 2), backend="eager")
    assert _torch.dynamo() is sys.modules["torch._dynamo"]
    assert _torch.is_compiled_wrapper(net)  # type: ignore[arg-type]
    assert not _torch.is_compiled_wrapper(nn.Linear(2, 2))
    assert _torch.anything_compiled() in (True, False)
    sys.modules["torch._dynamo.utils"].counters["frames"]["total"] += 0  # the counter that it reads


def test_a_record_says_nothing_unless_told() -> None:
    assert NodeRecord() == NodeRecord(rule=None, moves=None, saves=())
