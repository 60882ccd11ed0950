"""Kernels between sweeps: finish partial sums, reduce slices and tensors, write states of slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optgen.backends.emit import (
    Names,
    Spell,
    leaves,
    states_by_extent,
    write,
)
from optgen.backends.layout import LOWEST, Layout
from optgen.backends.triton.printer import (
    TYPES,
    accumulate,
    entry_of,
    neutral,
    pointer_of,
    read_tensor_values,
    reduce_axis,
    shifted,
    speller,
    table_cell,
)
from optgen.backends.triton.specs import kernel_source, step_specs
from optgen.backends.triton.tiles import KEY, slice_values
from optgen.ir.extent import Extent
from optgen.ir.node import DType, Node, Op, toposort
from optgen.plan.plan import Reduction, Step, buffer_of


def between_sources(layout: Layout, step: Step, names: Names, spell: Spell) -> list[str]:
    """Print the kernels of a step that is no sweep, one per spec of `step_specs`."""
    bodies: list[list[str]] = []
    match step.kind:
        case "combine":
            if tensor := [r for r in step.reductions if not r.extent.sliced]:
                bodies.append(_combine_chunks(layout, tensor))
            bodies += [_combine_tiles(layout, r) for r in step.reductions if r.extent.sliced]
        case "slice_reduce":
            bodies += [_slice_reduce(layout, r, names, spell) for r in step.reductions]
        case "global_reduce":
            bodies.append(_global_reduce(layout, step.reductions, names, spell))
        case "global":
            bodies.append(_global(layout, step, names))
        case "finish":
            for kind, states in states_by_extent(layout.plan, step).items():
                bodies.append(_finish(layout, kind, {s: step.values[s] for s in states}, names, spell))
    kernels = zip(step_specs(layout, step), bodies, strict=True)
    return [kernel_source(spec, body) for spec, body in kernels]


def _combine_chunks(layout: Layout, reductions: Sequence[Reduction]) -> list[str]:
    """Print the sums of a tensor's partial results, one program per tensor: float64, in a fixed order."""
    columns, count, width = layout.columns, len(layout.plan.extents), len(layout.partial)
    lines = [
        "tensor = tl.program_id(0).to(tl.int64)",
        f"entry = tensors + tensor*{layout.width}",
        f"first = tl.load({shifted('entry', columns['@first'])})",
        f"count = tl.load({shifted('entry', columns['@count'])})",
        "lane = tl.arange(0, BLOCK)",
    ]
    for r in reductions:
        empty, column = neutral(r.op), layout.partial.index(r.slot)
        lines += [
            f"total = tl.full([BLOCK], {empty}, tl.float64)",
            "for done in range(0, count, BLOCK):",
            f"    at = {table_cell('partials', '(first + done + lane)', width, column)}",
            f"    part = tl.load(at, done + lane < count, {empty})",
            f"    total = {accumulate(r.op, 'total', 'part')}",
            f"tl.store({table_cell('slots', 'tensor', count, r.slot)}, {reduce_axis(r.op, 'total', 0)})",
        ]
    return lines


PIECE = (
    "piece = tl.program_id(0).to(tl.int64)",
    "tensor = tl.load(slices + piece*2)",
    "start = tl.load(slices + piece*2 + 1)",
)


def _combine_tiles(layout: Layout, r: Reduction) -> list[str]:
    """Print the sums of slices' partial results, one per tile; maxima were reduced in place."""
    kind = r.extent
    lines = [*PIECE, f"entry = tensors + tensor*{layout.width}"]
    lines += [
        f"part = lines + {entry_of(layout, f'@parts{r.slot}')}",
        f"count = {entry_of(layout, f'@count_{kind}')}",
    ]
    target = f"lines + {entry_of(layout, f'@slot{r.slot}')} + at"
    if r.op is Op.AMAX:
        return [
            *lines,
            "at = start + tl.arange(0, SLICES)",
            f"keys = part.to({KEY}) + at",
            # The keys are reset to minus infinity for the next step: sweeps take maxima in place.
            f"tl.store({target}, value_of(tl.load(keys, at < count, 0)), at < count)",
            f"tl.store(keys, tl.full([SLICES], {LOWEST}, tl.int64), at < count)",
        ]
    lines.append(f"turns = {entry_of(layout, f'@turns{r.slot}')}")
    lines += ["which = (start + tl.arange(0, SLICES))[None, :]", "deep = tl.arange(0, DEPTH)[:, None]"]
    place = "nth*count + which"
    if layout.spans_lines(kind):  # a place for each line of theirs
        lines += [f"inner = {entry_of(layout, f'@inner_{kind}')}", f"many = {entry_of(layout, '@lines')}"]
        lines.append("each = many // count")
        place = "nth // each*many + (nth % each // inner*count + which)*inner + nth % each % inner"
    return [
        *lines,
        f"total = tl.full([DEPTH, SLICES], {neutral(r.op)}, tl.float64)",
        "for done in range(0, turns, DEPTH):",
        "    nth = done + deep",
        f"    total += tl.load(part + {place}, (nth < turns) & (which < count), 0.0)",
        "at = start + tl.arange(0, SLICES)",
        f"tl.store({target}, {reduce_axis(r.op, 'total', 0)}, at < count)",
    ]


def _at_slice(layout: Layout, kind: Extent, leaf_nodes: Sequence[Node], names: Names) -> list[str]:
    """Print loads of what slices `at` of a kind have, or their matrices."""
    lines = []
    for n in leaf_nodes:
        if n.extent.sliced:
            at = "at"
            if n.extent is not kind:
                at = f"at // (count // {entry_of(layout, f'@count_{n.extent}')})"
            lines.append(f"{names.leaf(n)} = {slice_values(layout, n, at, 'live')}")
    return lines


def _slice_reduce(layout: Layout, r: Reduction, names: Names, spell: Spell) -> list[str]:
    """Print a reduction over slices: to one value per tensor, or one per matrix."""
    plan, kind = layout.plan, r.operand.extent
    leaf_nodes = leaves([r.operand], ())
    texts, (result,) = write([r.operand], plan.names, names, spell, names.taken)
    shape = "[DEPTH, SLICES]" if r.extent.sliced else "[BLOCK]"
    lines = list(PIECE) if r.extent.sliced else ["tensor = tl.program_id(0).to(tl.int64)"]
    lines += [f"entry = tensors + tensor*{layout.width}", f"count = {entry_of(layout, f'@count_{kind}')}"]
    if r.extent.sliced:
        lines += [
            f"groups = {entry_of(layout, f'@count_{r.extent}')}",
            "each = count // groups",
            "which = (start + tl.arange(0, SLICES))[None, :]",
            "deep = tl.arange(0, DEPTH)[:, None]",
        ]
        index = ["at = which*each + done + deep", "live = (done + deep < each) & (which < groups)"]
    else:
        lines += ["each = count", "deep = tl.arange(0, BLOCK)"]
        index = ["at = done + deep", "live = at < count"]
    term = f"tl.where(live, tl.zeros({shape}, tl.float64) + ({result}), {neutral(r.op)})"
    lines += read_tensor_values(layout, names, leaf_nodes)
    lines += [
        f"total = tl.full({shape}, {neutral(r.op)}, tl.float64)",
        f"for done in range(0, each, {'DEPTH' if r.extent.sliced else 'BLOCK'}):",
        *("    " + line for line in (*index, *_at_slice(layout, kind, leaf_nodes, names), *texts)),
        f"    total = {accumulate(r.op, 'total', term)}",
    ]
    total = reduce_axis(r.op, "total", 0)
    if r.extent.sliced:
        lines.append("at = start + tl.arange(0, SLICES)")
        lines.append(f"tl.store(lines + {entry_of(layout, f'@slot{r.slot}')} + at, {total}, at < groups)")
    else:
        lines.append(f"tl.store({table_cell('slots', 'tensor', len(plan.extents), r.slot)}, {total})")
    return lines


def _global_reduce(layout: Layout, reductions: Sequence[Reduction], names: Names, spell: Spell) -> list[str]:
    """Print reductions over all tensors of a launch, in one program."""
    plan = layout.plan
    roots = [r.operand for r in reductions]
    texts, results = write(roots, plan.names, names, spell, names.taken)
    body = [
        "at = done + tl.arange(0, BLOCK)",
        "live = at < count",
        "tensor = tl.where(live, at, 0)",
        f"entry = tensors + tensor*{layout.width}",
        *read_tensor_values(layout, names, leaves(roots, ())),
        *texts,
    ]
    for r, result in zip(reductions, results, strict=True):
        term = f"tl.where(live, tl.zeros([BLOCK], tl.float64) + ({result}), {neutral(r.op)})"
        body.append(f"sum{r.slot} = {accumulate(r.op, f'sum{r.slot}', term)}")
    lines = ["count = tl.load(size)"]
    lines += [f"sum{r.slot} = tl.full([BLOCK], {neutral(r.op)}, tl.float64)" for r in reductions]
    lines += ["for done in range(0, count, BLOCK):", *("    " + line for line in body)]
    for r in reductions:
        place = shifted("numbers", plan.numbers[f"@slot{r.slot}"])
        lines.append(f"tl.store({place}, {reduce_axis(r.op, f'sum{r.slot}', 0)})")
    return lines


def _global(layout: Layout, step: Step, names: Names) -> list[str]:
    """Print values that are one for the whole optimizer, in one program and float64."""
    plan, roots = layout.plan, [*step.values.values()]
    lines = []
    for n in toposort(roots):
        if (name := buffer_of(n)) is not None:
            truth = " != 0" if n.dtype is DType.BOOL else ""
            lines.append(f"{names.leaf(n)} = tl.load({shifted('numbers', plan.numbers[name])}){truth}")
    texts, results = write(roots, plan.names, names, speller("fp64", "exact"), names.taken)
    lines += texts
    for (name, n), result in zip(step.values.items(), results, strict=True):
        value = f"tl.where({result}, 1.0, 0.0)" if n.dtype is DType.BOOL else result
        lines.append(f"tl.store({shifted('numbers', plan.numbers[name])}, {value})")
    return lines


def _finish(
    layout: Layout, kind: Extent, values: Mapping[str, Node], names: Names, spell: Spell
) -> list[str]:
    """Print new states of one extent: a program per tensor, or per `SLICES` of its slices."""
    plan = layout.plan
    roots = [*values.values()]
    leaf_nodes = leaves(roots, ())
    body, results = write(roots, plan.names, names, spell, names.taken)
    lines = list(PIECE) if kind.sliced else ["tensor = tl.program_id(0).to(tl.int64)"]
    lines.append(f"entry = tensors + tensor*{layout.width}")
    if kind.sliced:
        lines.append(f"count = {entry_of(layout, f'@count_{kind}')}")
        lines += ["at = start + tl.arange(0, SLICES)", "live = at < count"]
    lines += [
        *read_tensor_values(layout, names, leaf_nodes),
        *_at_slice(layout, kind, leaf_nodes, names),
        *body,
    ]
    for s, result in zip(values, results, strict=True):
        place = pointer_of(layout, s, TYPES[plan.real])
        lines.append(
            f"tl.store({place} + at, {result}, live)" if kind.sliced else f"tl.store({place}, {result})"
        )
    return lines
