"""The functions between phases: sums completed, values of slices and of all tensors, coarse states."""

from __future__ import annotations

from collections.abc import Sequence

from optgen.backends import Layout
from optgen.backends.cpu.spelling import (
    accumulate,
    neutral,
    reading,
    slice_at,
    speller,
    states_at,
    table_cell,
)
from optgen.backends.emit import (
    Names,
    finishes,
    indent,
    leaves,
    write,
)
from optgen.ir import Extent, Node, Op
from optgen.plan import Reduction, Round


def round_sources(layout: Layout, k: int, found: Round, names: Names) -> list[str]:
    """The functions that complete the reductions of a round, tensor by tensor, in a fixed order."""
    plan, parts = layout.plan, []
    ops = {r.slot: r.op for phase in plan.phases for r in phase.reductions}
    if found.sweeps:
        body = []
        for slot in found.sweeps:
            body += (_lines if plan.extents[slot].sliced else _parts)(layout, slot, ops[slot])
        parts.append(_function(layout, f"combine{k}", _each_tensor(body)))
    for r in found.small:
        parts.append(_function(layout, f"small{r.slot}", _each_tensor(_small(layout, r, names))))
    if found.over:
        parts.append(_function(layout, f"over{k}", _over(layout, found.over, names)))
    return parts


def _function(layout: Layout, name: str, lines: Sequence[str]) -> str:
    return f"@compiled\ndef {name}({', '.join(layout.arguments)}):\n" + indent(lines, 1)


def _each_tensor(lines: Sequence[str]) -> list[str]:
    return ["for tensor in range(len(tensors)):", *("    " + line for line in lines)]


def _over(layout: Layout, found: Sequence[Reduction], names: Names) -> list[str]:
    """What reductions over all tensors find in those of this launch."""
    plan, body = layout.plan, []
    for r in found:
        texts, (result,) = write([r.operand], plan.names, names, speller(plan.real), names.taken)
        body += [*reading(layout, names, leaves([r.operand], ())), *texts]
        body.append(f"sum{r.slot} = {accumulate(r.op, f'sum{r.slot}', f'f64({result})')}")
    numbers = [f"numbers[{plan.numbers[f'@slot{r.slot}']}] = sum{r.slot}" for r in found]
    return [*(f"sum{r.slot} = {neutral(r.op)}" for r in found), *_each_tensor(body), *numbers]


def _parts(layout: Layout, slot: int, op: Op) -> list[str]:
    """A tensor's sum, from those of its chunks."""
    return [
        f"first = {table_cell(layout, '@first')}",
        f"total = {neutral(op)}",
        f"for c in range(first, first + {table_cell(layout, '@count')}):",
        f"    total = {accumulate(op, 'total', f'partials[c, {layout.partial.index(slot)}]')}",
        f"slots[tensor, {slot}] = total",
    ]


def _lines(layout: Layout, slot: int, op: Op) -> list[str]:
    """The sums of a tensor's slices, from those of its tiles."""
    count = table_cell(layout, f"@count_{layout.plan.extents[slot]}")
    return [
        f"part, at = {table_cell(layout, f'@parts{slot}')}, {table_cell(layout, f'@slot{slot}')}",
        f"count, turns = {count}, {table_cell(layout, f'@turns{slot}')}",
        "for which in range(count):",
        f"    total = {neutral(op)}",
        "    for turn in range(turns):",
        f"        total = {accumulate(op, 'total', 'lines[part + turn*count + which]')}",
        "    lines[at + which] = total",
    ]


def _at_slice(layout: Layout, kind: Extent, found: Sequence[Node], names: Names) -> list[str]:
    """Lines that read what slice `at` of a kind has, of its own or of its matrix."""
    lines = []
    for n in found:
        if n.extent.sliced:
            at = "at"
            if n.extent is not kind:
                at = f"at // (count // {table_cell(layout, f'@count_{n.extent}')})"
            lines.append(f"{names.leaf(n)} = {slice_at(layout, n, at)}")
    return lines


def _small(layout: Layout, r: Reduction, names: Names) -> list[str]:
    """A reduction of slices: to one value, or to one for each matrix."""
    plan, kind = layout.plan, r.operand.extent
    found = leaves([r.operand], ())
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
        *reading(layout, names, found),
        "for which in range(groups):",
        f"    total = {neutral(r.op)}",
        "    for at in range(which*each, (which + 1)*each):",
        *("        " + line for line in (*_at_slice(layout, kind, found, names), *texts)),
        f"        total = {accumulate(r.op, 'total', f'f64({result})')}",
        f"    {target} = total",
    ]


def finish_source(layout: Layout, names: Names) -> str:
    """The new states of tensors and slices, the finest first."""
    plan = layout.plan
    lines = []
    for kind, states in finishes(plan).items():
        roots = [plan.finish[s] for s in states]
        found = leaves(roots, ())
        body, results = write(roots, plan.names, names, speller(plan.real), names.taken)
        at = "at" if kind.sliced else "0"
        body = [*_at_slice(layout, kind, found, names), *body]
        for s, result in zip(states, results, strict=True):
            body.append(f"{states_at(layout, s, at, '1')}[0] = {result}")
        lines += reading(layout, names, found)
        if kind.sliced:
            lines += [f"count = {table_cell(layout, f'@count_{kind}')}", "for at in range(count):"]
            body = ["    " + line for line in body]
        lines += body
    return _function(layout, "finish", _each_tensor(lines))
