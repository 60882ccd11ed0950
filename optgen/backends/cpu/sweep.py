"""The function of a sweep: a loop over chunks of elements, or over tiles if slices have values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optgen.backends.cpu.printer import (
    CHUNK,
    DIMS,
    FIRST_TABLE,
    GLOBALS,
    LANES,
    TYPES,
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
    function,
    helper_name,
    indent,
    leaves,
)
from optgen.backends.layout import PLACE, Layout
from optgen.backends.slices import is_columns
from optgen.ir.extent import Extent
from optgen.ir.node import DType, Node, Op, node, rebuild, toposort
from optgen.plan.codecs import CODECS
from optgen.plan.plan import Plan, Reduction, Step


@dataclass(frozen=True)
class ColumnInvariants:
    """Subexpressions that vary only by column, computed once a tile: loop-invariant code motion.

    `values` are by the name of the temporary store that holds each; `step` is the sweep that loads them.
    """

    values: dict[str, Node]
    step: Step  # what is left for each element, which loads those stores
    rule_names: dict[Node, str]

    @staticmethod
    def of(step: Step, plan: Plan) -> ColumnInvariants:
        """Hoist the largest subexpressions of a sweep that vary only by column."""
        order = toposort(step.roots())
        # Maximal ones only: what a coarser-than-column or elementwise node reads directly.
        used = [a for n in order if not is_columns(n.extent) for a in n.args]
        hoisted = [
            a for a in dict.fromkeys(used) if is_columns(a.extent) and a.args and a.dtype is DType.REAL
        ]
        stores = {n: f"@column{i}" for i, n in enumerate(hoisted)}
        rewritten: dict[Node, Node] = {}
        for n in order:
            if n in stores:
                rewritten[n] = node(Op.LOAD, value=stores[n], dtype=n.dtype, extent=n.extent)
            else:
                rewritten[n] = rebuild(n, tuple(rewritten[a] for a in n.args))
        reductions = tuple(replace(r, operand=rewritten[r.operand]) for r in step.reductions)
        remainder = replace(
            step, values={s: rewritten[n] for s, n in step.values.items()}, reductions=reductions
        )
        named = {rewritten.get(n, n): name for n, name in plan.names.items() if n not in stores}
        return ColumnInvariants({s: n for n, s in stores.items()}, remainder, named)


@dataclass(frozen=True)
class Sweep:
    """What is printed: a sweep, the leaves that it reads, and the stores that it loads or writes."""

    layout: Layout
    step: Step
    names: Names
    leaf_nodes: Sequence[Node]
    touched: Sequence[str]


def sweep_source(layout: Layout, step: Step, names: Names) -> str:
    """Print `update`, the arithmetic of an element, and the sweep that calls it over a range of chunks."""
    plan, spell = layout.plan, speller(layout.plan.real)
    columns = ColumnInvariants.of(step, plan)
    for i, store in enumerate(columns.values):
        names.add(store, f"column{i}")
    parts = []
    if columns.values:
        wanted = list(columns.values.values())
        parts.append(function(helper_name(step, "columns"), wanted, (), plan.names, names, spell, GLOBALS))
    step, rule_names = columns.step, columns.rule_names
    roots = step.roots()
    parts.append(function(helper_name(step, "update"), roots, step.loads, rule_names, names, spell, GLOBALS))
    leaf_nodes = leaves(roots, step.loads)
    touched = list(dict.fromkeys([*step.loads, *step.values]))
    sweep = Sweep(layout, step, names, leaf_nodes, touched)
    body = _tile(sweep, columns) if layout.tiled else _chunk(sweep)
    inner = "".join(f"@inline\n{part}\n\n" for part in parts)
    head = f"""\
@compiled
def {step.name}(begin, end, {", ".join(layout.arguments)}):
    widest()
    for c in range(begin, end):
"""
    return inner + head + indent(body, 2) + "\n\n" + _thread_function(layout, step)


def _thread_function(layout: Layout, step: Step) -> str:
    """Print a C function that runs a thread's share of the chunks; its argument is `CpuKernel.words`."""
    tables, word = [], FIRST_TABLE
    for name in layout.arguments:
        dims = DIMS.get(name, 2)
        sizes = [f"words[{word + 1 + d}]" for d in range(dims)]
        shape = sizes[0] if dims == 1 else f"({', '.join(sizes)})"
        kind = "np.int64" if name in ("tensors", "chunks") else "f64"
        kind = TYPES[layout.plan.real] if name == "scalars" else kind
        tables.append(f"    {name} = carray(pointer(words[{word}]), {shape}, {kind})\n")
        word += 1 + dims
    head = f"""\
def {helper_name(step, "part")}(data):
    widest()
    words = carray(data, {word}, np.int64)
    thread, threads = ask(words[0]), ask(words[1])
    begin, end = words[2]*thread // threads, words[2]*(thread + 1) // threads
"""
    return head + "".join(tables) + f"    {step.name}(begin, end, {', '.join(layout.arguments)})\n"


def _arrays(layout: Layout, names: Names, touched: Sequence[str], start: str) -> list[str]:
    """Print arrays over each store's elements from `start` on; over all of it if it is strided."""
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
    """Print loads of sizes and strides."""
    lines = []
    for d in range(layout.dims):
        lines.append(f"size{d} = {table_cell(layout, f'@size{d}')}")
        strided = [s for s in touched if s in layout.plan.codecs]
        lines += [f"{names.stores[s]}_stride{d} = {table_cell(layout, f'@stride_{s}{d}')}" for s in strided]
    return lines


def _shard_offsets(layout: Layout) -> list[str]:
    """Print loads of the numbers that map an index in a shard to one in the full tensor."""
    return [f"{name} = {table_cell(layout, f'@{name}')}" for name in (PLACE if layout.sharded else ())]


def _loop(step: Step, one: Sequence[str]) -> list[str]:
    """Print the loop over `count` elements; with reductions, whole rows of lanes first."""
    if any(not is_columns(r.extent) for r in step.reductions):
        return [
            # The inner loop's trip count is constant, so that LLVM vectorises it.
            f"whole = count // {LANES}*{LANES}",
            f"for first in range(0, whole, {LANES}):",
            f"    for lane in range({LANES}):",
            *("        " + line for line in ("i = first + lane", *one)),
            "for i in range(whole, count):",
            *("    " + line for line in ("lane = i - whole", *one)),
        ]
    return ["for i in range(count):", *("    " + line for line in one)]


def _combine_lanes(r: Reduction) -> str:
    """Spell the reduction of all lanes; `max` propagates NaN."""
    return f"sum{r.slot}.{'sum' if r.op is Op.SUM else 'max'}()"


def _chunk(sweep: Sweep) -> list[str]:
    """Print the body for a chunk of one tensor: a loop over its elements."""
    layout, step, names, touched = sweep.layout, sweep.step, sweep.names, sweep.touched
    return [
        "tensor, start = chunks[c, 0], chunks[c, 1]",
        f"count = min({CHUNK}, {table_cell(layout, '@numel')} - start)",
        *read_tensor_values(layout, names, sweep.leaf_nodes),
        *_arrays(layout, names, touched, "start"),
        *_strides(layout, names, touched),
        *_shard_offsets(layout),
        *(f"sum{r.slot} = np.full({LANES}, {neutral(r.op)})" for r in step.reductions),
        *_loop(step, _element(sweep, "start")),
        *(f"partials[c, {layout.partial.index(r.slot)}] = {_combine_lanes(r)}" for r in step.reductions),
    ]


def _tile(sweep: Sweep, hoisted: ColumnInvariants) -> list[str]:
    """Print the body for a tile of one tensor: loops over matrices, lines and elements."""
    layout, step, names, touched = sweep.layout, sweep.step, sweep.names, sweep.touched
    plan = layout.plan
    inner = leaves(list(hoisted.values.values()), ())
    read = [n for n in dict.fromkeys([*sweep.leaf_nodes, *inner]) if n.value not in hoisted.values]
    block = any(e.name.startswith("BLOCK") for e in plan.slices)
    over = [n for n in read if n.extent.sliced and is_columns(n.extent)]
    by_line = [r for r in step.reductions if r.extent.sliced and not is_columns(r.extent)]
    by_column = [r for r in step.reductions if is_columns(r.extent)]
    by_tensor = [r for r in step.reductions if not r.extent.sliced]
    lines = [
        "tensor, corner, left = chunks[c, 0], chunks[c, 1], chunks[c, 2]",
        "last, side, stack = chunks[c, 3], chunks[c, 4], chunks[c, 6]",
        f"columns, rows = {table_cell(layout, '@columns')}, {table_cell(layout, '@rows')}",
        f"many, right = {table_cell(layout, '@lines')}, min(left + {table_cell(layout, '@width')}, columns)",
        *read_tensor_values(layout, names, read),
        *_strides(layout, names, touched),
        *_shard_offsets(layout),
        *(f"part{r.slot} = {table_cell(layout, f'@parts{r.slot}')}" for r in (*by_line, *by_column)),
        *(line for r in by_line if layout.spans_lines(r.extent) for line in _clear_partials(layout, r)),
        *(f"{names.stores[s]}_across = np.empty(right - left, {TYPES[plan.real]})" for s in hoisted.values),
        *(f"sum{r.slot} = np.full({LANES}, {neutral(r.op)})" for r in (*by_tensor, *by_line)),
        *(f"sum{r.slot} = np.empty(right - left)" for r in by_column),
    ]
    matrix = ["bottom = min(last, (top // rows + 1)*rows)"]
    matrix += _hoist_columns(sweep, hoisted, inner, over)
    matrix += [f"sum{r.slot}[:] = {neutral(r.op)}" for r in by_column]
    body = ["base = line*columns + left", "count = right - left"]
    if block:
        body[1] = f"count = min(right - left, {table_cell(layout, '@numel')} - base)"
    body += _arrays(layout, names, touched, "base")
    for n in _line_leaves(sweep.leaf_nodes):
        body += _line_value(layout, names, n, "line")
    body += [f"sum{r.slot}[:] = {neutral(r.op)}" for r in by_line]
    body += _loop(step, _element(sweep, "base"))
    for r in by_line:
        place = f"part{r.slot} + side*many + line"
        if layout.spans_lines(r.extent):
            place, value = f"part{r.slot} + {_slice_of_line(layout, r.extent, 'line')}", _combine_lanes(r)
            body += [f"at = {place}", f"lines[at] = {accumulate(r.op, 'lines[at]', value)}"]
        else:
            body.append(f"lines[{place}] = {_combine_lanes(r)}")
    matrix += ["for line in range(top, bottom):", *("    " + line for line in body)]
    if by_column:
        matrix.append("at = (stack + (top - corner) // rows)*columns + left")
    for r in by_column:
        place = f"part{r.slot} + at"
        matrix.append(f"lines[{place}:{place} + right - left] = sum{r.slot}")
    lines += ["for top in range(corner, last, rows):", *("    " + line for line in matrix)]
    lines += [f"partials[c, {layout.partial.index(r.slot)}] = {_combine_lanes(r)}" for r in by_tensor]
    return lines


def _hoist_columns(
    sweep: Sweep, hoisted: ColumnInvariants, inner: Sequence[Node], over: Sequence[Node]
) -> list[str]:
    """Print loads of what a matrix's columns have, and the loop that computes column invariants."""
    layout, names, matrix = sweep.layout, sweep.names, []
    for n in over:
        matrix.append(f"at = top // {table_cell(layout, f'@inner_{n.extent}')}*columns + left")
        if n.op is Op.SLOT:
            offset = table_cell(layout, f"@slot{n.value}")
            array = f"lines[{offset} + at:{offset} + at + right - left]"
        else:
            array = states_at(layout, n.value or "", "at", "right - left")
        matrix.append(f"{names.leaf(n)}_across = {array}")
    if hoisted.values:
        arrays = [f"{names.stores[s]}_across" for s in hoisted.values]
        arguments = ", ".join(_argument(layout, names, n, "i") for n in inner)
        for n in _line_leaves(inner):  # of the matrix, of which all these columns are
            matrix += _line_value(layout, names, n, "top")
        matrix.append("for i in range(right - left):")
        targets = ", ".join(f"{array}[i]" for array in arrays)
        matrix.append(f"    {targets} = {helper_name(sweep.step, 'columns')}({arguments})")
    return matrix


def _clear_partials(layout: Layout, r: Reduction) -> list[str]:
    """Print the clearing of a tile's own partial results of slices that span several lines."""
    count = table_cell(layout, f"@count_{r.extent}")
    return [
        f"part{r.slot} += (c - {table_cell(layout, '@first')})*{count}",
        f"lines[part{r.slot}:part{r.slot} + {count}] = {neutral(r.op)}",
    ]


def _line_leaves(leaf_nodes: Sequence[Node]) -> list[Node]:
    """The leaves that have a value for each line."""
    return [n for n in leaf_nodes if n.extent.sliced and not is_columns(n.extent)]


def _line_value(layout: Layout, names: Names, n: Node, line: str) -> list[str]:
    """Print the load of a line's value."""
    return [
        f"at = {_slice_of_line(layout, n.extent, line)}",
        f"{names.leaf(n)} = {slice_at(layout, n, 'at')}",
    ]


def _slice_of_line(layout: Layout, kind: Extent, line: str) -> str:
    """Spell the index of the slice that a line belongs to."""
    inner, count = (table_cell(layout, f"@{what}_{kind}") for what in ("inner", "count"))
    return f"{line} // {inner} % {count}"


def _argument(layout: Layout, names: Names, n: Node, at: str) -> str:
    """Spell a leaf coarser than elements, in column `at` of a line."""
    if is_columns(n.extent):
        return f"{TYPES[layout.plan.real]}({names.leaf(n)}_across[{at}])"
    return names.leaf(n)


def _element(sweep: Sweep, start: str) -> list[str]:
    """Print the loop body: addresses of strided stores, the call of `update`, accumulation into lanes."""
    layout, step, names, touched = sweep.layout, sweep.step, sweep.names, sweep.touched
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
    for n in sweep.leaf_nodes:
        if n.op is Op.INDEX:
            value = f"u32({place})" if n.value == "low" else f"u32({place} >> 32)"
        elif n.extent is Extent.ELEMENT:
            value = cell[n.value or ""]
            value = f"u32({value})" if n.dtype is DType.U32 else value
        else:
            value = _argument(layout, names, n, "i")
        arguments.append(value)
    results = [cell[s] for s in step.values] + [f"r{r.slot}" for r in step.reductions]
    lines.append(f"{', '.join(results)} = {helper_name(step, 'update')}({', '.join(arguments)})")
    for r in step.reductions:
        lane = f"sum{r.slot}[{'i' if is_columns(r.extent) else 'lane'}]"
        lines.append(
            f"{lane} = {accumulate(r.op, lane, f'f64(r{r.slot})')}"
            if r.op is Op.AMAX
            else f"{lane} += r{r.slot}"
        )
    return lines
