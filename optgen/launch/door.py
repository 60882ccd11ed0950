"""Checks of every tensor before its address enters a kernel's table: the one door for pointers.

In: each parameter's part in a step, and what the compiled layout assumes of its states. Out: nothing, or an
error that names the parameter and the tensor, what it is and what is needed, raised before anything is
launched or changed. A state with only another dtype or device is replaced by a converted copy.

A kernel trusts its tables: a wrong entry would read or write memory that is not ours. This checks tensor by
tensor when a step is recorded; `guards` compares in bulk when it is replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from optgen.ir.extent import Extent
from optgen.ir.program import State
from optgen.launch.guards import Spans, Survey, extent_of
from optgen.launch.overlap import overlapping
from optgen.launch.strides import geometry, slice_shape
from optgen.launch.work import CODEC_OF, SUPPORTED, Work

Groups = Sequence[Mapping[str, Any]]
AddressRanges = tuple[np.ndarray, np.ndarray]  # addresses and bytes, int64
Offsets = tuple[list[int], list[int]]  # see `offsets_of`


class Move(NamedTuple):
    """A state's tensor, and the converted one that replaces its data when the step is made."""

    old: Tensor
    new: Tensor


def check_all(
    work: Sequence[Work],
    states: Sequence[Mapping[str, State]],
    groups: Groups,
    survey: Survey | None,
    class_ids: Sequence[int],
) -> bool:
    """Check every tensor of a step, and copy gradients and inputs that overlap with what it writes.

    Args:
        work: the step.
        states: declarations of each part's states.
        groups: for names.
        survey: of all tensors, if there is one.
        class_ids: equal for parts of the same program whose tensors have the same shapes.

    Returns:
        Whether something was copied.

    Raises:
        RuntimeError: a tensor is not what a kernel takes.
        ValueError: elements of a parameter share memory, or two tensors that the step writes overlap.
    """
    if survey is None:
        for w, declared in zip(work, states, strict=True):
            check(w, declared, groups)
        return resolve_overlaps(work, states, groups, _spans(fixed_of(work)), _spans(free_of(work)))
    fixed_offsets, free_offsets = offsets_of(work)
    plain, border = survey.plain().tolist(), free_offsets[0]
    fits_by_class: dict[int, bool] = {}
    ranges = zip(pairwise([*fixed_offsets, border]), pairwise([*free_offsets, len(plain)]), strict=True)
    for w, declared, class_id, ((a, b), (c, d)) in zip(work, states, class_ids, ranges, strict=True):
        fits = fits_by_class.get(class_id)
        if fits is None:
            fits = fits_by_class[class_id] = _shapes_fit(w, declared)
        # `check` says what is wrong; a part that it accepts is only unusual, such as a strided one.
        if not (fits and all(plain[a:b]) and all(plain[c:d])):
            check(w, declared, groups)
    starts, spans = survey.starts, survey.spans
    fixed, free = (starts[:border], spans[:border]), (starts[border:], spans[border:])
    return resolve_overlaps(work, states, groups, fixed, free)


def fixed_of(work: Sequence[Work]) -> list[Tensor]:
    """Tensors that a step writes, in order: each part's parameter, states and step counter."""
    tensors: list[Tensor] = []
    for w in work:
        tensors += [w.param, *w.states.values()] if w.launched else []
        tensors += [] if w.counter is None else [w.counter]
    return tensors


def free_of(work: Sequence[Work]) -> list[Tensor]:
    """Tensors that a step only reads, in order: each part's gradient and inputs."""
    tensors: list[Tensor] = []
    for w in work:
        if w.launched:
            tensors += [*([] if w.grad is None else [w.grad]), *w.inputs.values()]
    return tensors


def offsets_of(work: Sequence[Work]) -> Offsets:
    """Each part's first index among all tensors: in `fixed_of`, and in `free_of`, which come after those."""
    fixed = [(1 + len(w.states)) * w.launched + (w.counter is not None) for w in work]
    free = [((w.grad is not None) + len(w.inputs)) * w.launched for w in work]
    *fixed_offsets, end = accumulate(fixed, initial=0)
    *free_offsets, _ = accumulate(free, initial=end)
    return fixed_offsets, free_offsets


def _shapes_fit(w: Work, states: Mapping[str, State]) -> bool:
    """Whether a part's gradient, inputs and states have the shapes that they must have."""
    shape = w.param.shape
    for name, tensor in w.states.items():
        extent = states[name].extent
        if tensor.shape != (shape if extent is Extent.ELEMENT else _coarse_shape(w.param, extent)):
            return False
    return (w.grad is None or w.grad.shape == shape) and all(x.shape == shape for x in w.inputs.values())


def _coarse_shape(param: Tensor, extent: Extent) -> tuple[int, ...]:
    """The shape of a state that is not elementwise."""
    return slice_shape(param, extent) if extent.sliced else ()


def check(w: Work, states: Mapping[str, State], groups: Groups) -> None:
    """Check every tensor of a part, except dtype and device of states that are not elementwise.

    Raises:
        RuntimeError: one is not what a kernel takes.
        ValueError: elements of the parameter share memory.
    """
    if w.counter is not None:
        _check_plain(w, groups, "state 'step'", w.counter)
    if not w.launched:
        return
    _check_plain(w, groups, "", w.param)
    if w.grad is not None:
        _check_like(w, groups, "gradient", w.grad)
    for name, value in w.inputs.items():
        _check_like(w, groups, f"input '{name}'", value)
    for name, tensor in w.states.items():
        state = states[name]
        what = f"state '{state.key}'"
        if not isinstance(tensor, Tensor):
            refuse(w, groups, what, f"is {type(tensor).__name__}", "a tensor")
        if tensor.is_nested:
            refuse(w, groups, what, "is nested", "a dense tensor")
        if state.extent is Extent.ELEMENT:
            shape = tuple(w.param.shape)
            if tensor.dtype not in CODEC_OF:
                refuse(w, groups, what, f"is {tensor.dtype}", SUPPORTED)
        else:
            shape = _coarse_shape(w.param, state.extent)
            if not tensor.is_floating_point():
                refuse(w, groups, what, f"is {tensor.dtype}", "floating-point numbers")
        if tuple(tensor.shape) != shape:
            _refuse_shape(w, groups, what, tensor, shape)
        _check_plain(w, groups, what, tensor)
        if state.extent.sliced and not tensor.is_contiguous():
            refuse(w, groups, what, f"has the strides {tensor.stride()}", "contiguous memory")


def convert_states(w: Work, states: Mapping[str, State], real: str) -> list[Move]:
    """Copy states to the dtype and device that the kernel needs; the work refers to the copies then.

    Args:
        w: a part whose states have passed `check`.
        states: their declarations.
        real: the working precision, fp32 or fp64.

    Raises:
        RuntimeError: a state of a distributed parameter has another dtype, which only its owner can change.
    """
    moves, converted = [], dict(w.states)
    for name, tensor in w.states.items():
        kind, home = tensor.dtype, w.param.device
        match states[name].extent:
            case Extent.STEP:
                kind, home = (
                    torch.float64,
                    w.counter.device if w.counted and w.counter is not None else tensor.device,
                )
            case extent if extent is not Extent.ELEMENT:
                kind = torch.float64 if real == "fp64" else torch.float32
        if (tensor.dtype, tensor.device) != (kind, home):
            if tensor.dtype != kind and w.owner is not None:
                need = f"{kind}: replace it in the optimizer's state"
                refuse(w, (), f"state '{states[name].key}'", f"is {tensor.dtype}", need)
            converted[name] = tensor.to(home, kind)
            moves.append(Move(tensor, converted[name]))
    w.states = converted
    return moves


def resolve_overlaps(
    work: Sequence[Work],
    states: Sequence[Mapping[str, State]],
    groups: Groups,
    fixed: AddressRanges,
    free: AddressRanges,
) -> bool:
    """Refuse tensors to be written that overlap, and copy gradients and inputs that overlap with those.

    Args:
        work: the step.
        states: declarations of each part's states.
        groups: for names.
        fixed: addresses and sizes in bytes of what is written.
        free: those of what is only read.

    Returns:
        Whether something was copied.

    Raises:
        ValueError: two tensors that it writes, step counts too, overlap, or are one; the message names them.
    """
    owners = [id(w.param if w.owner is None else w.owner) for w in work]
    if len({*owners}) < len(owners):
        twice = next(i for i, owner in enumerate(owners) if owner in owners[:i])
        raise ValueError(f"{describe_param(work[twice], groups)} is there twice: take it out of one place")
    # Spans may intersect although no element is shared: `overlapping` decides.
    spans = Spans(*fixed)
    written = [] if spans.disjoint() else fixed_of(work)
    if written and (found := overlapping(written)) is not None:
        names: list[tuple[Work, str]] = []
        for w, declared in zip(work, states, strict=True):
            mine = ["", *(f"state '{declared[name].key}'" for name in w.states)] if w.launched else []
            names += [(w, what) for what in (*mine, *([] if w.counter is None else ["state 'step'"]))]
        (a, what), (b, other) = (names[i] for i in found)
        shapes = " and ".join(str(tuple(written[i].shape)) for i in found)
        raise ValueError(
            f"{_describe(a, groups, what)} and {_describe(b, groups, other)}, of shapes {shapes}, overlap in "
            "memory, so a step of one would change the other: give one of them its own, tensor.clone()"
        )
    if spans.clear_of(*free):
        return False
    for w in work:
        if w.launched and w.grad is not None and not spans.clear_of(*_spans([w.grad])):
            w.grad = w.grad.clone()
        w.inputs = {n: x if spans.clear_of(*_spans([x])) else x.clone() for n, x in w.inputs.items()}
    return True


def _spans(tensors: Sequence[Tensor]) -> AddressRanges:
    """Addresses of tensors, and how many bytes each spans."""
    starts = np.array([t.data_ptr() for t in tensors], np.int64)
    return starts, np.array([extent_of(t) for t in tensors], np.int64)


def describe_param(w: Work, groups: Groups) -> str:
    """A parameter's name, or its index."""
    mine = w.param if w.owner is None else w.owner
    params = groups[w.group].get("params", ()) if w.group < len(groups) else ()
    position = next((i for i, p in enumerate(params) if p is mine), None)
    return f"parameter {w.index}" if position is None else name_of(groups, w.group, position)


def name_of(groups: Groups, group: int, position: int) -> str:
    """A parameter's name if it has one, else its position and group."""
    names = groups[group].get("param_names", ())
    named = position < len(names)
    return f"parameter '{names[position]}'" if named else f"parameter {position} of group {group}"


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is dense and has data, even if it is lazily negated or zero."""
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.device.type == "meta":
        return False
    if tensor._is_zerotensor() or not tensor.numel():
        return True
    return has_room(tensor) and bool(tensor.data_ptr())


def has_room(tensor: Tensor) -> bool:
    """Whether all elements of a tensor lie within its storage."""
    try:
        return tensor.untyped_storage().nbytes() >= _needed(tensor)
    except (NotImplementedError, RuntimeError):  # of a subclass without memory, such as FakeTensor
        return False


def resolved(tensor: Tensor) -> Tensor:
    """A tensor that is only read, with lazy negation and zero tensors materialised.

    One whose storage is too small is returned as it is, for `check` to refuse.
    """
    if tensor._is_zerotensor():
        return tensor.clone()
    return tensor.resolve_neg() if tensor.is_neg() and has_numbers(tensor) else tensor


def _needed(tensor: Tensor) -> int:
    """Bytes that a tensor's storage must have, from its start to the end of the last element."""
    return int(tensor.storage_offset()) * tensor.element_size() + extent_of(tensor)


def _describe(w: Work, groups: Groups, what: str) -> str:
    """The words for a parameter, or for a tensor of it, in an error."""
    return f"the {what} of {describe_param(w, groups)}" if what else describe_param(w, groups)


def refuse(w: Work, groups: Groups, what: str, actual: str, needed: str) -> NoReturn:
    """Raise the error that says what a tensor is and what the step needs."""
    raise RuntimeError(
        f"{_describe(w, groups, what)} {actual}; the step needs {needed}. Nothing was changed."
    )


def _refuse_shape(w: Work, groups: Groups, what: str, tensor: Tensor, shape: tuple[int, ...]) -> NoReturn:
    """Raise the error for a wrong shape, with a remedy."""
    remedy = (
        "If the parameter was resized on purpose, zero_grad() it"
        if what == "gradient"
        else "If the parameter was resized on purpose, `del optimizer.state[param]` starts its state anew"
    )
    raise RuntimeError(
        f"{_describe(w, groups, what)} has the shape {tuple(tensor.shape)}, and for a parameter of "
        f"shape {tuple(w.param.shape)} the step needs {shape}. Nothing was changed. {remedy}."
    )


def _check_like(w: Work, groups: Groups, what: str, tensor: Tensor) -> None:
    """Check a tensor that is only read: shape and device of the parameter, and data at its address."""
    if tuple(tensor.shape) != tuple(w.param.shape):
        _refuse_shape(w, groups, what, tensor, tuple(w.param.shape))
    if tensor.device != w.param.device:
        refuse(w, groups, what, f"is on {tensor.device}", f"it on {w.param.device}, with the parameter")
    _check_plain(w, groups, what, tensor, written=False)


def _check_plain(w: Work, groups: Groups, what: str, tensor: Tensor, written: bool = True) -> None:
    """Check that a tensor is dense and has data; if `written`, that its elements do not overlap."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        layout = "nested" if tensor.is_nested else f"of the layout {tensor.layout}"
        refuse(w, groups, what, f"is {layout}", "a dense tensor")
    if not what and tensor.dtype not in CODEC_OF:
        refuse(w, groups, what, f"is {tensor.dtype}", SUPPORTED)
    if tensor._is_zerotensor():
        refuse(w, groups, what, "is a zero that torch keeps no memory for", "a tensor of its own, `clone()`")
    try:
        available = tensor.untyped_storage().nbytes()
        start = tensor.data_ptr()
    except (NotImplementedError, RuntimeError) as error:  # of a subclass without memory, such as FakeTensor
        refuse(w, groups, what, f"has no memory ({error})", "a tensor with data")
    if tensor.numel() and (available < _needed(tensor) or not start):
        actual = f"lies in a storage of {available} bytes, which was freed or resized"
        refuse(w, groups, what, actual, f"{_needed(tensor)} of them")
    if tensor.is_neg() or tensor.is_conj():
        how = "negated" if tensor.is_neg() else "conjugated"
        refuse(w, groups, what, f"is a lazily {how} view", "a tensor of its own, `tensor.resolve_neg()`")
    if not written or tensor.is_contiguous():
        return
    try:
        geometry([tensor])
    except ValueError as error:
        if not what:
            raise ValueError(f"{describe_param(w, groups)}: {error}") from None
        refuse(w, groups, what, f"has the strides {tensor.stride()}", f"another layout: {error}")
