"""Functions between sweeps: finish partial sums, reduce slices and tensors, write states of slices."""

from __future__ import annotations

from collections.abc import Sequence

from optgen.backends.cpu.printer import (
    accumulate,
    neutral,
    read_tensor_values,
    slice_at,
    speller,
    states_at,
    table_cell,
)
from optgen.backends.emit import (
    Names,
    indent,
    leaves,
    states_by_extent,
    write,
)
from optgen.backends.layout import Layout
from optgen.ir.extent import Extent
from optgen.ir.node import Node
from optgen.plan.plan import Reduction, Step


def between_source(layout: Layout, step: Step, names: Names) -> str:
    """Print the function of a step that is no sweep: a loop over tensors, in a fixed order."""
    body = []
    if step.kind == "global_reduce":
        return _function(layout, step.name, _global_reduce(layout, step.reductions, names))
    if step.kind == "finish":
        body = _finish(layout, step, names)
    for r in step.reductions:
        if step.kind == "slice_reduce":
            body += _slice_reduce(layout, r, names)
        else:
            body += (_combine_tiles if r.extent.sliced else _combine_chunks)(layout, r)
    return _function(layout, step.name, _each_tensor(body))


def _function(layout: Layout, name: str, lines: Sequence[str]) -> str:
    """Print a function that takes all tables."""
    return f"@compiled\ndef {name}({', '.join(layout.arguments)}):\n" + indent(lines, 1)


def _each_tensor(lines: Sequence[str]) -> list[str]:
    """Wrap lines in a loop over tensors."""
    return ["for tensor in range(len(tensors)):", *("    " + line for line in lines)]


def _global_reduce(layout: Layout, reductions: Sequence[Reduction], names: Names) -> list[str]:
    """Print reductions over all tensors of a launch."""
    plan, body = layout.plan, []
    for r in reductions:
        texts, (result,) = write([r.operand], plan.names, names, speller(plan.real), names.taken)
        body += [*read_tensor_values(layout, names, leaves([r.operand], ())), *texts]
        body.append(f"sum{r.slot} = {accumulate(r.op, f'sum{r.slot}', f'f64({result})')}")
    numbers = [f"numbers[{plan.numbers[f'@slot{r.slot}']}] = sum{r.slot}" for r in reductions]
    return [*(f"sum{r.slot} = {neutral(r.op)}" for r in reductions), *_each_tensor(body), *numbers]


def _combine_chunks(layout: Layout, r: Reduction) -> list[str]:
    """Print the sum of a tensor's partial results, one per chunk."""
    return [
        f"first = {table_cell(layout, '@first')}",
        f"total = {neutral(r.op)}",
        f"for c in range(first, first + {table_cell(layout, '@count')}):",
        f"    total = {accumulate(r.op, 'total', f'partials[c, {layout.partial.index(r.slot)}]')}",
        f"slots[tensor, {r.slot}] = total",
    ]


def _combine_tiles(layout: Layout, r: Reduction) -> list[str]:
    """Print the sum of each slice's partial results, one per tile (`turns` of them)."""
    count = table_cell(layout, f"@count_{r.extent}")
    return [
        f"part, at = {table_cell(layout, f'@parts{r.slot}')}, {table_cell(layout, f'@slot{r.slot}')}",
        f"count, turns = {count}, {table_cell(layout, f'@turns{r.slot}')}",
        "for which in range(count):",
        f"    total = {neutral(r.op)}",
        "    for turn in range(turns):",
        f"        total = {accumulate(r.op, 'total', 'lines[part + turn*count + which]')}",
        "    lines[at + which] = total",
    ]


def _at_slice(layout: Layout, kind: Extent, leaf_nodes: Sequence[Node], names: Names) -> list[str]:
    """Print loads of what slice `at` of a kind has, or its matrix."""
    lines = []
    for n in leaf_nodes:
        if n.extent.sliced:
            at = "at"
            if n.extent is not kind:
                at = f"at // (count // {table_cell(layout, f'@count_{n.extent}')})"
            lines.append(f"{names.leaf(n)} = {slice_at(layout, n, at)}")
    return lines


def _slice_reduce(layout: Layout, r: Reduction, names: Names) -> list[str]:
    """Print a reduction over slices: to one value per tensor, or one per matrix."""
    plan, kind = layout.plan, r.operand.extent
    leaf_nodes = leaves([r.operand], ())
    texts, (result,) = write([r.operand], plan.names, names, speller(plan.real), names.taken)
    groups = table_cell(layout, f"@count_{r.extent}") if r.extent.sliced else "1"
    target = (
        f"lines[{table_cell(layout, f'@slot{r.slot}')} + which]"
        if r.extent.sliced
        else f"slots[tensor, {r.slot}]"
    )
    return [
        f"count, groups = {table_cell(layout, f'@count_{kind}')}, {groups}",
        "each = count // groups",
        *read_tensor_values(layout, names, leaf_nodes),
        "for which in range(groups):",
        f"    total = {neutral(r.op)}",
        "    for at in range(which*each, (which + 1)*each):",
        *("        " + line for line in (*_at_slice(layout, kind, leaf_nodes, names), *texts)),
        f"        total = {accumulate(r.op, 'total', f'f64({result})')}",
        f"    {target} = total",
    ]


def _finish(layout: Layout, step: Step, names: Names) -> list[str]:
    """Print the new states of tensors and slices, finest first."""
    plan = layout.plan
    lines = []
    for kind, states in states_by_extent(plan, step).items():
        roots = [step.values[s] for s in states]
        leaf_nodes = leaves(roots, ())
        body, results = write(roots, plan.names, names, speller(plan.real), names.taken)
        at = "at" if kind.sliced else "0"
        body = [*_at_slice(layout, kind, leaf_nodes, names), *body]
        for s, result in zip(states, results, strict=True):
            body.append(f"{states_at(layout, s, at, '1')}[0] = {result}")
        lines += read_tensor_values(layout, names, leaf_nodes)
        if kind.sliced:
            lines += [f"count = {table_cell(layout, f'@count_{kind}')}", "for at in range(count):"]
            body = ["    " + line for line in body]
        lines += body
    return lines
