"""Transfers of nodes in which some axes act on each other: an axis of examples is none of these."""

from __future__ import annotations

from math import prod

from lightning_cx.gradients.places import SHARED, stride_at
from lightning_cx.gradients.transfer import Inputs, Passage, signed, transfer


def _first_only(passage: Passage, index: int = 0) -> Inputs:
    """The examples lie in one input; the others are weights."""
    places = passage.everywhere(SHARED)
    places[index] = passage.at(index, passage.axis)
    return places


@transfer("SoftmaxBackward0", "LogSoftmaxBackward0", "CumsumBackward0", "CumprodBackward0", "LogcumsumexpBackward0")
@transfer("GluBackward0", "SortBackward0", "TopkBackward0", "CummaxBackward0", "CumminBackward0", "UnfoldBackward0")
@transfer("ScatterBackward0", "ScatterAddBackward0", "IndexAddBackward0", "IndexCopyBackward0", "RenormBackward0")
def _along_one_axis(passage: Passage) -> Inputs:
    name = "_saved_dimension" if passage.name == "UnfoldBackward0" else "_saved_dim"
    rank = len(passage.inputs[0] or passage.shape)
    if passage.axis == passage.saved_axis(name, rank):
        raise passage.refuse("runs along it")
    return [passage.at(i, passage.axis) if shape else SHARED for i, shape in enumerate(passage.inputs)]


@transfer("FlipBackward0", "RollBackward0", "IndexSelectBackward0", "GatherBackward0", "MaskedSelectBackward0")
@transfer("TakeBackward0", "IndexPutBackward0")
def _reorder(passage: Passage) -> Inputs:
    node, rank = passage.node, len(passage.shape)
    moved = getattr(node, "_saved_dims", getattr(node, "_saved_dim", None))
    moved = moved if isinstance(moved, tuple) else () if moved is None else (moved,)
    if not moved or passage.axis in {signed(axis) % rank for axis in moved}:
        return passage.everywhere(f"{passage.name} picks or reorders rows")
    return [passage.at(i, passage.axis) for i in range(len(passage.inputs))]


@transfer("IndexBackward0")
def _index(passage: Passage) -> Inputs:
    """`x[i]` with tensors: axes without one stay, and an axis indexed by 0 .. N-1 in order stays too."""
    shape, indices, n = passage.inputs[0], passage.node._saved_indices, passage.n
    if shape is None or passage.axis < 0:
        return [SHARED if shape is None else f"{passage.name} follows after the examples were spread"]
    used = [axis for axis, index in enumerate(indices) if index is not None]
    adjacent = used == list(range(used[0], used[-1] + 1)) if used else True
    wide = max((indices[axis].dim() for axis in used), default=0)
    first = used[0] if adjacent and used else 0
    masks = any(indices[axis].dim() != wide or indices[axis].dtype.itemsize == 1 for axis in used)
    if masks or (passage.inner != 1 and first <= passage.axis < first + wide):
        return [f"{passage.name} picks or reorders rows"]
    if first <= passage.axis < first + wide:
        for axis in used:
            index = indices[axis]
            in_order = index.dim() == 1 and len(index) == n and index.tolist() == list(range(n))
            if in_order and shape[axis] == n:
                return [passage.at(0, axis)]
        return [f"{passage.name} picks or reorders rows"]
    kept = [axis for axis in range(len(shape)) if axis not in used]
    return [passage.at(0, kept[passage.axis - (wide if passage.axis >= first + wide else 0)])]


@transfer("NativeLayerNormBackward0", "FusedRmsNormBackward0")
def _layer_norm(passage: Passage) -> Inputs:
    if passage.axis >= len(passage.shape) - len(passage.node._saved_normalized_shape):
        raise passage.refuse("normalises over it")
    return _first_only(passage)


@transfer("NativeGroupNormBackward0", "ConvolutionBackward0", "ConvolutionOverrideableBackward0")
@transfer("MkldnnConvolutionBackward0", "PreluKernelBackward0")
def _examples_lead(passage: Passage) -> Inputs:
    if passage.axis != 0 and passage.name != "PreluKernelBackward0":
        raise passage.refuse("mixes every axis but the first")
    return _first_only(passage)


@transfer("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")
def _batch_norm(passage: Passage) -> Inputs:
    if passage.axis > 1:
        raise passage.refuse("normalises over it")
    return _first_only(passage)


@transfer("ScaledDotProductFlashAttentionForCpuBackward0", "ScaledDotProductFlashAttentionBackward0")
@transfer("ScaledDotProductEfficientAttentionBackward0", "ScaledDotProductCudnnAttentionBackward0")
@transfer("ScaledDotProductFusedAttentionOverrideableBackward0")
def _attention(passage: Passage) -> Inputs:
    if passage.axis >= len(passage.shape) - 2:
        raise passage.refuse("attends along it")
    places = [passage.at(i, passage.axis) for i in range(min(3, len(passage.inputs)))]
    masks = [
        passage.at(i, passage.axis) if shape and shape[passage.axis] > 1 else SHARED
        for i, shape in enumerate(passage.inputs)
    ]
    return places + masks[3:]


@transfer("MkldnnRnnLayerBackward0", "CudnnRnnBackward0", "MiopenRnnBackward0")
def _recurrent(passage: Passage) -> Inputs:
    """Time leads in the inputs and outputs of a fused layer, layers in its states."""
    if passage.axis != len(passage.shape) - 2:
        raise passage.refuse("runs along it")
    states = (5, 6) if passage.name.startswith("Mkldnn") else ()
    return [
        SHARED if shape is None else passage.at(i, len(shape) - 2) if i in states or len(shape) == 3 else SHARED
        for i, shape in enumerate(passage.inputs)
    ]


@transfer("NllLossBackward0", "NllLoss2DBackward0")
def _chosen_class(passage: Passage) -> Inputs:
    """Losses that were not reduced: the class axis is gone."""
    shape = passage.inputs[0]
    return [passage.at(0, passage.axis + (passage.axis > 0 and shape is not None))]


@transfer("CtcLossBackward0")
def _transcribed(passage: Passage) -> Inputs:
    """Time leads in the scores, unless there is one sequence without an axis for it."""
    return [SHARED if shape is None else passage.at(i, len(shape) - 2) for i, shape in enumerate(passage.inputs)]


@transfer("AsStridedBackward0")
def _any_order(passage: Passage) -> Inputs:
    """In-place work on a view leaves one behind that keeps the order of memory."""
    node, shape = passage.node, passage.inputs[0]
    size, strides = tuple(node._saved_size), tuple(node._saved_stride)
    row_major = all(stride == stride_at(size, axis) for axis, stride in enumerate(strides) if size[axis] > 1)
    if shape is not None and prod(shape) == prod(size) and row_major and not node._saved_storage_offset:
        return [passage.stride]
    return passage.everywhere("AsStridedBackward0 picks or reorders rows")


@transfer("ConstantPadNdBackward0")
def _padded(passage: Passage) -> Inputs:
    pads = passage.node._saved_pad
    from_the_end = 2 * (len(passage.shape) - 1 - passage.axis)
    if passage.axis < 0 or any(pads[from_the_end : from_the_end + 2]):
        return ["ConstantPadNdBackward0 picks or reorders rows"]
    return [passage.at(0, passage.axis)]


@transfer("TrilinearBackward0")
def _trilinear(passage: Passage) -> Inputs:
    """As `nn.Bilinear` calls it: two inputs, and the weight in between, which meets no axis but the last."""
    if passage.axis == len(passage.shape) - 1 and passage.axis > 0:
        raise passage.refuse("sums over it")
    return [SHARED if i == 1 else passage.at(i, passage.axis) for i in range(len(passage.inputs))]


@transfer("CdistBackward0", "EuclideanDistBackward0")
def _distances(passage: Passage) -> Inputs:
    rank = len(passage.shape)
    if passage.axis < rank - 2:
        return [passage.at(i, passage.axis) for i in range(2)]
    return [passage.at(0, passage.axis), SHARED] if passage.axis == rank - 2 else [SHARED, passage.at(1, rank - 2)]
