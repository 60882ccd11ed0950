"""The function of a phase: a sweep over chunks of elements, or over tiles where slices have values."""

from __future__ import annotations

from collections.abc import Sequence

from optgen.backends import PLACE, Layout, across
from optgen.backends.cpu.spelling import (
    CHUNK,
    LANES,
    TILE,
    TYPES,
    accumulate,
    neutral,
    reading,
    slice_at,
    states_at,
    table_cell,
)
from optgen.backends.emit import (
    Names,
    indent,
    leaves,
)
from optgen.codecs import CODECS
from optgen.ir import DType, Extent, Node, Op
from optgen.plan import Phase, Reduction


def sweep_source(layout: Layout, k: int, phase: Phase, names: Names) -> str:
    """One phase over a range of chunks: addresses, and `update` for every element."""
    found = leaves(phase.roots(), phase.loads)
    touched = list(dict.fromkeys([*phase.loads, *phase.stores]))
    body = (_tile if layout.tiled else _chunk)(layout, k, phase, names, found, touched)
    head = f"@compiled\ndef sweep{k}(begin, end, {', '.join(layout.arguments)}):\n"
    return head + "    for c in range(begin, end):\n" + indent(body, 2)


def _arrays(layout: Layout, names: Names, touched: Sequence[str], start: str) -> list[str]:
    """An array on the elements of each store from some on; the whole of it where there are strides."""
    plan, lines = layout.plan, []
    for s in touched:
        codec = plan.codecs.get(s, plan.real)
        if layout.dims and s in plan.codecs:
            place, size = table_cell(layout, s), "1 << 62"
        else:
            place, size = f"{table_cell(layout, s)} + {start}*{CODECS[codec].bytes}", "count"
        lines.append(f"{names.stores[s]} = carray(pointer({place}), {size}, {TYPES[codec]})")
    return lines


def _strides(layout: Layout, names: Names, touched: Sequence[str]) -> list[str]:
    """Lines that read sizes and strides."""
    lines = []
    for d in range(layout.dims):
        lines.append(f"size{d} = {table_cell(layout, f'@size{d}')}")
        strided = [s for s in touched if s in layout.plan.codecs]
        lines += [f"{names.stores[s]}_stride{d} = {table_cell(layout, f'@stride_{s}{d}')}" for s in strided]
    return lines


def _places(layout: Layout) -> list[str]:
    """Lines that read where a part of a larger tensor lies in it."""
    return [f"{name} = {table_cell(layout, f'@{name}')}" for name in (PLACE if layout.sharded else ())]


def _loop(phase: Phase, one: Sequence[str]) -> list[str]:
    """The loop over `count` elements; whole rows of lanes first where something is reduced."""
    if any(not across(r.extent) for r in phase.reductions):
        return [
            f"whole = count // {LANES}*{LANES}",
            f"for first in range(0, whole, {LANES}):",
            f"    for lane in range({LANES}):",
            *("        " + line for line in ("i = first + lane", *one)),
            "for i in range(whole, count):",
            *("    " + line for line in ("lane = i - whole", *one)),
        ]
    return ["for i in range(count):", *("    " + line for line in one)]


def _whole(r: Reduction) -> str:
    """All lanes together; the largest carries a NaN through."""
    return f"sum{r.slot}.{'sum' if r.op is Op.SUM else 'max'}()"


def _chunk(
    layout: Layout, k: int, phase: Phase, names: Names, found: Sequence[Node], touched: Sequence[str]
) -> list[str]:
    """A chunk of one tensor, element by element."""
    return [
        "tensor, start = chunks[c, 0], chunks[c, 1]",
        f"count = min({CHUNK}, {table_cell(layout, '@numel')} - start)",
        *reading(layout, names, found),
        *_arrays(layout, names, touched, "start"),
        *_strides(layout, names, touched),
        *_places(layout),
        *(f"sum{r.slot} = np.full({LANES}, {neutral(r.op)})" for r in phase.reductions),
        *_loop(phase, _element(layout, k, phase, names, found, touched, "start")),
        *(f"partials[c, {r.slot}] = {_whole(r)}" for r in phase.reductions),
    ]


def _tile(
    layout: Layout, k: int, phase: Phase, names: Names, found: Sequence[Node], touched: Sequence[str]
) -> list[str]:
    """A tile of one tensor, line by line: what slices have is read once a line, or once a column."""
    plan = layout.plan
    block = any(e.name.startswith("BLOCK") for e in plan.slices)
    down = [n for n in found if n.extent.sliced and not across(n.extent)]
    over = [n for n in found if n.extent.sliced and across(n.extent)]
    by_line = [r for r in phase.reductions if r.extent.sliced and not across(r.extent)]
    by_column = [r for r in phase.reductions if across(r.extent)]
    by_tensor = [r for r in phase.reductions if not r.extent.sliced]
    lines = [
        "tensor, top, left = chunks[c, 0], chunks[c, 1], chunks[c, 2]",
        f"columns, rows = {table_cell(layout, '@columns')}, {table_cell(layout, '@rows')}",
        f"bottom = min(top + {TILE[0]}, (top // rows + 1)*rows)",
        f"right = min(left + {TILE[1]}, columns)",
        *reading(layout, names, found),
        *_strides(layout, names, touched),
        *_places(layout),
    ]
    for n in over:
        lines.append(f"at = top // {table_cell(layout, f'@inner_{n.extent}')}*columns + left")
        if n.op is Op.SLOT:
            offset = table_cell(layout, f"@slot{n.value}")
            array = f"lines[{offset} + at:{offset} + at + right - left]"
        else:
            array = states_at(layout, n.value or "", "at", "right - left")
        lines.append(f"{names.leaf(n)}_across = {array}")
    lines += [f"sum{r.slot} = np.full({LANES}, {neutral(r.op)})" for r in (*by_tensor, *by_line)]
    lines += [f"sum{r.slot} = np.full({TILE[1]}, {neutral(r.op)})" for r in by_column]
    body = ["base = line*columns + left", "count = right - left"]
    if block:
        body[1] = f"count = min(right - left, {table_cell(layout, '@numel')} - base)"
    body += _arrays(layout, names, touched, "base")
    for n in down:
        inner, count = (table_cell(layout, f"@{what}_{n.extent}") for what in ("inner", "count"))
        body += [f"at = line // {inner} % {count}", f"{names.leaf(n)} = {slice_at(layout, n, 'at')}"]
    body += [f"sum{r.slot}[:] = {neutral(r.op)}" for r in by_line]
    body += _loop(phase, _element(layout, k, phase, names, found, touched, "base"))
    ranks = {slot: i for columns in (False, True) for i, slot in enumerate(layout.parts(columns))}
    body += [f"line_parts[c, {ranks[r.slot]}, line - top] = {_whole(r)}" for r in by_line]
    lines += ["for line in range(top, bottom):", *("    " + line for line in body)]
    lines += [
        f"column_parts[c, {ranks[r.slot]}, :right - left] = sum{r.slot}[:right - left]" for r in by_column
    ]
    lines += [f"partials[c, {r.slot}] = {_whole(r)}" for r in by_tensor]
    return lines


def _element(
    layout: Layout,
    k: int,
    phase: Phase,
    names: Names,
    found: Sequence[Node],
    touched: Sequence[str],
    start: str,
) -> list[str]:
    """The body of the loop: addresses where there are strides, and the call of `update`."""
    lines = []
    cell = {s: f"{names.stores[s]}[i]" for s in touched}
    if layout.dims:
        strided = [s for s in touched if s in layout.plan.codecs]
        cell |= {s: f"{names.stores[s]}[{names.stores[s]}_at]" for s in strided}
        lines.append(f"rest = {start} + i")
        for d in reversed(range(layout.dims)):
            lines += [f"at = rest % size{d}", f"rest = rest // size{d}"] if d else ["at = rest"]
            for s in strided:
                sign = "=" if d == layout.dims - 1 else "+="
                lines.append(f"{names.stores[s]}_at {sign} at*{names.stores[s]}_stride{d}")
    arguments, place = [], f"({start} + i)"
    if layout.sharded:
        lines += [f"place = {start} + i", "place += place // every0*skip0"]
        lines += ["place += place // every1*skip1 + offset"]
        place = "place"
    for n in found:
        if n.op is Op.INDEX:
            value = f"u32({place})" if n.value == "low" else f"u32({place} >> 32)"
        elif n.extent is Extent.ELEMENT:
            value = cell[n.value or ""]
            value = f"u32({value})" if n.dtype is DType.U32 else value
        elif across(n.extent):
            value = f"{TYPES[layout.plan.real]}({names.leaf(n)}_across[i])"
        else:
            value = names.leaf(n)
        arguments.append(value)
    results = [cell[s] for s in phase.stores] + [f"r{r.slot}" for r in phase.reductions]
    lines.append(f"{', '.join(results)} = update{k}({', '.join(arguments)})")
    for r in phase.reductions:
        lane = f"sum{r.slot}[{'i' if across(r.extent) else 'lane'}]"
        lines.append(
            f"{lane} = {accumulate(r.op, lane, f'f64(r{r.slot})')}"
            if r.op is Op.AMAX
            else f"{lane} += r{r.slot}"
        )
    return lines
