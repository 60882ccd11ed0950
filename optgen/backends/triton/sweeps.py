"""The kernel of a phase: a sweep over chunks of elements, or over tiles where slices have values."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from optgen.backends import PLACE, Layout, across
from optgen.backends.emit import (
    Names,
    leaves,
)
from optgen.backends.triton.spelling import (
    TYPES,
    entry_of,
    neutral,
    pointer_of,
    pointers,
    reading,
    reduce_axis,
    shifted,
    table_cell,
)
from optgen.ir import DType, Extent, Node, Op
from optgen.plan import Phase


def sweep_lines(layout: Layout, k: int, phase: Phase, names: Names) -> list[str]:
    """One phase over every chunk: addresses, loads, `update`, stores."""
    plan, columns = layout.plan, layout.columns
    touched = {s: names.stores[s] for s in dict.fromkeys([*phase.loads, *phase.stores])}
    found = leaves(phase.roots(), phase.loads)
    lines = [
        "chunk = tl.program_id(0).to(tl.int64)",
        "tensor = tl.load(chunks + chunk*2)",
        "start = tl.load(chunks + chunk*2 + 1)",
        f"entry = tensors + tensor*{layout.width}",
        f"numel = tl.load({shifted('entry', columns['@numel'])})",
        *reading(layout, names, found),
        *_places(layout),
    ]
    lines += pointers(layout, touched)
    for r in phase.reductions:
        lines.append(f"sum{r.slot} = tl.full([BLOCK], {neutral(r.op)}, {TYPES[plan.real]})")
    lines.append("lane = tl.arange(0, BLOCK)")
    if layout.dims:
        for d in range(layout.dims):
            lines.append(f"size{d} = tl.load({shifted('entry', columns[f'@size{d}'])})")
            for s, name in touched.items():
                if s in plan.codecs:
                    place = shifted("entry", columns[f"@stride_{s}{d}"])
                    lines.append(f"{name}_stride{d} = tl.load({place})")
    lines += ["for block in range(BLOCKS):", "    base = start + block*BLOCK"]
    if layout.dims:
        body = [*_strided(layout, touched), *_block(layout, k, phase, found, names, ", mask")]
        lines += ["    " + line for line in body]
    else:
        whole = [
            f"{n}_at = tl.multiple_of({n}_ptr, 16) + tl.multiple_of(base, BLOCK) + lane"
            for n in touched.values()
        ]
        tail = ["mask = base + lane < numel", *(f"{n}_at = {n}_ptr + base + lane" for n in touched.values())]
        lines.append("    if base + BLOCK <= numel:")
        lines += ["        " + line for line in (*whole, *_block(layout, k, phase, found, names, ""))]
        lines.append("    else:")
        lines += ["        " + line for line in (*tail, *_block(layout, k, phase, found, names, ", mask"))]
    for r in phase.reductions:
        total = f"tl.sum(sum{r.slot})" if r.op is Op.SUM else f"tl.reduce(sum{r.slot}, 0, maximum)"
        place = table_cell("partials", "chunk", plan.slots, r.slot)
        lines.append(f"tl.store({place}, {total}.to(tl.float64))")
    return lines


def _places(layout: Layout) -> list[str]:
    """Lines that read where a part of a larger tensor lies in it."""
    return [f"{name} = {entry_of(layout, f'@{name}')}" for name in (PLACE if layout.sharded else ())]


def _strided(layout: Layout, touched: dict[str, str]) -> list[str]:
    """Addresses from the logical index, last dimension first."""
    lines = ["mask = base + lane < numel", "rest = base + lane"]
    lines += [f"{name}_at = {name}_ptr + rest" for s, name in touched.items() if s not in layout.plan.codecs]
    for d in reversed(range(layout.dims)):
        lines += [f"index = rest % size{d}", f"rest = rest // size{d}"] if d else ["index = rest"]
        for s, name in touched.items():
            if s in layout.plan.codecs:
                before = f"{name}_ptr" if d == layout.dims - 1 else f"{name}_at"
                lines.append(f"{name}_at = {before} + index*{name}_stride{d}")
    return lines


def _block(
    layout: Layout,
    k: int,
    phase: Phase,
    found: Sequence[Node],
    names: Names,
    mask: str,
    place: str = "(base + lane)",
    line_parts: Collection[int] | None = None,
) -> list[str]:
    """Loads, the update, stores and partial sums of one block; `mask` is `, mask` or empty.

    `place` is where an element stands in its tensor; in a tile, the sums of lines in `line_parts` are
    those of this block, and the others are added up element by element.
    """
    lines = []
    if layout.sharded:
        lines += [f"place = {place}", "place += place // every0*skip0"]
        lines += ["place += place // every1*skip1 + offset"]
        place = "place"
    for n in found:
        if n.op is Op.INDEX:
            shift = " >> 32" if n.value == "high" else ""
            lines.append(f"{names.leaf(n)} = ({place}{shift}).to(tl.uint32)")
        elif n.extent is Extent.ELEMENT:
            value = f"tl.load({names.stores[n.value or '']}_at{mask}{', 0' if mask else ''})"
            lines.append(f"{names.leaf(n)} = {value}{'.to(tl.uint32)' if n.dtype is DType.U32 else ''}")
    results = [f"{names.stores[s]}_new" for s in phase.stores] + [f"r{r.slot}" for r in phase.reductions]
    lines.append(f"{', '.join(results)} = update{k}({', '.join(map(names.leaf, found))})")
    for s in phase.stores:
        name = names.stores[s]
        lines.append(f"tl.store({name}_at, {name}_new{mask})")
    for r in phase.reductions:
        term = f"r{r.slot}"
        if line_parts is not None:
            term = f"tl.broadcast_to({term}, [HEIGHT, WIDTH])"
        term = f"tl.where(mask, {term}, {neutral(r.op)})" if mask else term
        if line_parts is not None and r.slot in line_parts:
            lines.append(f"sum{r.slot} = {reduce_axis(r.op, term, 1)}")
            continue
        total = f"sum{r.slot} + {term}" if r.op is Op.SUM else f"maximum(sum{r.slot}, {term})"
        lines.append(f"sum{r.slot} = {total}")
    return lines


def tile_lines(layout: Layout, k: int, phase: Phase, names: Names) -> list[str]:
    """One phase over every tile, a few lines at a time: what slices have is read once a line or column."""
    plan = layout.plan
    blocked = any(e.name.startswith("BLOCK") for e in plan.slices)
    touched = {s: names.stores[s] for s in dict.fromkeys([*phase.loads, *phase.stores])}
    found = leaves(phase.roots(), phase.loads)
    lines = [
        "chunk = tl.program_id(0).to(tl.int64)",
        "tensor = tl.load(chunks + chunk*3)",
        "top = tl.load(chunks + chunk*3 + 1)",
        "left = tl.load(chunks + chunk*3 + 2)",
        f"entry = tensors + tensor*{layout.width}",
        f"numel = {entry_of(layout, '@numel')}",
        f"columns = {entry_of(layout, '@columns')}",
        f"rows = {entry_of(layout, '@rows')}",
        "bottom = tl.minimum(top + HEIGHT*BLOCKS, (top // rows + 1)*rows)",
        "lane = tl.arange(0, WIDTH)",
        "column = left + lane",
        *reading(layout, names, found),
        *_places(layout),
    ]
    for n in found:
        if n.extent.sliced and across(n.extent):
            at = f"top // {entry_of(layout, f'@inner_{n.extent}')}*columns + column"
            lines.append(f"{names.leaf(n)} = {slice_values(layout, n, at, 'column < columns')}[None, :]")
    lines += pointers(layout, touched)
    by_line = [r for r in phase.reductions if r.extent.sliced and not across(r.extent)]
    others = [r for r in phase.reductions if r not in by_line]
    for r in others:
        lines.append(f"sum{r.slot} = tl.full([HEIGHT, WIDTH], {neutral(r.op)}, {TYPES[plan.real]})")
    if layout.dims:
        for d in range(layout.dims):
            lines.append(f"size{d} = {entry_of(layout, f'@size{d}')}")
            for s, name in touched.items():
                if s in plan.codecs:
                    lines.append(f"{name}_stride{d} = {entry_of(layout, f'@stride_{s}{d}')}")
    body = ["first = top + block*HEIGHT", "line = first + tl.arange(0, HEIGHT)"]
    for n in found:
        if n.extent.sliced and not across(n.extent):
            inner, count = (entry_of(layout, f"@{what}_{n.extent}") for what in ("inner", "count"))
            body.append(f"at = line // {inner} % {count}")
            body.append(f"{names.leaf(n)} = {slice_values(layout, n, 'at', 'line < bottom')}[:, None]")
    ranks = layout.parts(False)
    where = {
        r.slot: f"line_parts + (chunk*{len(ranks)} + {ranks.index(r.slot)})*HEIGHT*BLOCKS"
        " + block*HEIGHT + tl.arange(0, HEIGHT)"
        for r in by_line
    }
    inside = "(line < bottom)[:, None] & (column < columns)[None, :]"
    general = ["index = (line*columns)[:, None] + column[None, :]"]
    general.append(f"mask = {inside}" + (" & (index < numel)" if blocked else ""))
    run = _block(layout, k, phase, found, names, ", mask", "index", where)
    if layout.dims:
        body += [*general, "rest = index", *_strided(layout, touched)[2:], *run]
    else:
        whole = "(first + HEIGHT <= bottom) & (left + WIDTH <= columns)"
        whole += " & ((first + HEIGHT)*columns <= numel)" if blocked else ""
        step = "(tl.arange(0, HEIGHT)*tl.multiple_of(columns, 16))[:, None] + lane[None, :]"
        fast = [f"index = tl.multiple_of(first*columns + left, 16) + {step}"]
        fast += [f"{n}_at = tl.multiple_of({n}_ptr, 16) + index" for n in touched.values()]
        body += [
            f"if {whole}:",
            *("    " + line for line in (*fast, *_block(layout, k, phase, found, names, "", "index", where))),
        ]
        slow = [*general, *(f"{n}_at = {n}_ptr + index" for n in touched.values()), *run]
        body += ["else:", *("    " + line for line in slow)]
    body += [f"tl.store({place}, sum{slot}.to(tl.float64))" for slot, place in where.items()]
    lines += ["for block in range(BLOCKS):", *("    " + line for line in body)]
    for r in others:
        if r.extent.sliced:
            rank = layout.parts(True).index(r.slot)
            place = f"column_parts + (chunk*{len(layout.parts(True))} + {rank})*WIDTH + lane"
            lines.append(f"tl.store({place}, {reduce_axis(r.op, f'sum{r.slot}', 0)}.to(tl.float64))")
        else:
            total = (
                f"tl.sum(sum{r.slot})"
                if r.op is Op.SUM
                else f"tl.reduce(tl.reduce(sum{r.slot}, 1, maximum), 0, maximum)"
            )
            lines.append(
                f"tl.store({table_cell('partials', 'chunk', plan.slots, r.slot)}, {total}.to(tl.float64))"
            )
    return lines


def slice_values(layout: Layout, n: Node, at: str, live: str) -> str:
    """Values of a state or of a reduction of slices."""
    real = TYPES[layout.plan.real]
    if n.op is Op.SLOT:
        return f"tl.load(lines + {entry_of(layout, f'@slot{n.value}')} + {at}, {live}, 0.0).to({real})"
    return f"tl.load({pointer_of(layout, n.value or '', real)} + {at}, {live}, 0.0)"
