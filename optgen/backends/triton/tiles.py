"""The kernel of a sweep over tiles, block by block, for plans whose slices have values.

A block is some lines by some columns, or several small matrices on top of each other. Partial results of
slices go to the cells that `launch/tiles.py` allocates: sums to the tile's own, maxima by atomics to those
of the slices, so that the order of programs does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from optgen.backends.emit import Names, leaves
from optgen.backends.layout import Layout
from optgen.backends.slices import is_columns
from optgen.backends.triton.printer import (
    TYPES,
    accumulate,
    entry_of,
    neutral,
    partial_of,
    pointer_of,
    pointers,
    read_tensor_values,
    reduce_axis,
)
from optgen.backends.triton.sweep import loads, places, sizes, strided, updated
from optgen.ir.extent import Extent
from optgen.ir.node import Node, Op
from optgen.plan.plan import Reduction, Step

# Numbers as integers in the same order, which a GPU compares and replaces at once; NaN is above all.
KEYS = """\
@triton.jit
def key_of(x):
    bits = x.to(tl.float64).to(tl.int64, bitcast=True)
    return tl.where(x != x, 0x7FFFFFFFFFFFFFFF, bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF))


@triton.jit
def value_of(key):
    return (key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
"""
OF_TILE = ("tensor", "top", "left", "end", "side", "matrix", "stack")  # a row of `chunks`
KEY = "tl.pointer_type(tl.int64)"


def tile_lines(layout: Layout, step: Step, names: Names) -> list[str]:
    """Print a sweep over tiles.

    If columns have sums, the outer loop is over columns, so that each column sum is complete after one pass
    down; blocks then accumulate line sums in memory. Otherwise the outer loop is over lines.
    """
    tile = Tile(layout, step, names)
    down, beside = "for first in range(top, end, HEIGHT):", "for from_column in range(left, right, WIDTH):"
    lines = [*tile.head(), *map(tile.init_total, tile.of_tensor)]
    if tile.by_column or not tile.by_line:
        body = [*tile.line(), *tile.block()]
        body += [text for r in tile.by_line for text in tile.add_line(r)]
        if tile.multi_matrix:
            body += [text for r in tile.by_column for text in tile.store_columns(r)]
        outer = [
            *tile.column(),
            *([] if tile.multi_matrix else map(tile.init_total, tile.by_column)),
            down,
            *_indented(body),
        ]
        if not tile.multi_matrix:
            outer += [text for r in tile.by_column for text in tile.store_columns(r)]
        if tile.by_line:  # which other threads read for the next columns
            outer.append("tl.debug_barrier()")
        lines += [beside, *_indented(outer)]
    else:
        outer = [
            *tile.line(),
            *(f"total{r.slot} = {tile.neutral_block(r, '[HEIGHT]')}" for r in tile.by_line),
        ]
        body = [*tile.column(), *tile.block(), *map(tile.add, tile.by_line)]
        outer += [beside, *_indented(body), *(text for r in tile.by_line for text in tile.store_line(r))]
        lines += [down, *_indented(outer)]
    for r in tile.of_tensor:
        total = reduce_axis(r.op, reduce_axis(r.op, f"sum{r.slot}", 1), 0)
        lines.append(f"tl.store({partial_of(layout, r.slot)}, {total})")
    return lines


def _indented(lines: Iterable[str]) -> list[str]:
    """Indent lines by one level."""
    return ["    " + line for line in lines]


@dataclass(frozen=True)
class Tile:
    """A sweep over tiles as it is printed: text for a tile, a line of blocks, a column of blocks, a block."""

    layout: Layout
    step: Step
    names: Names

    @cached_property
    def leaf_nodes(self) -> list[Node]:
        """The leaves that the sweep reads."""
        return leaves(self.step.roots(), self.step.loads)

    @cached_property
    def touched(self) -> Mapping[str, str]:
        """The variable of each element store that the sweep loads or writes."""
        stores = dict.fromkeys([*self.step.loads, *self.step.values])
        return {s: self.names.stores[s] for s in stores}

    @property
    def multi_matrix(self) -> bool:
        """Whether a block may have several matrices."""
        return self.layout.block is not None and self.layout.block.rows > 0

    def _reductions(self, sliced: bool, columns: bool = False) -> list[Reduction]:
        """Reductions to slices or not, and to columns or not."""
        reductions = (r for r in self.step.reductions if r.extent.sliced is sliced)
        return [r for r in reductions if is_columns(r.extent) is columns]

    @cached_property
    def by_line(self) -> list[Reduction]:
        """Reductions to slices that consist of lines."""
        return self._reductions(True)

    @cached_property
    def by_column(self) -> list[Reduction]:
        """Reductions to slices that are columns."""
        return self._reductions(True, columns=True)

    @cached_property
    def of_tensor(self) -> list[Reduction]:
        """Reductions to one value per tensor."""
        return self._reductions(False)

    def neutral_block(self, r: Reduction, shape: str) -> str:
        """Spell a block of neutral elements; sums are in float64."""
        kind = "tl.float64" if r.op is Op.SUM else TYPES[self.layout.plan.real]
        return f"tl.full({shape}, {neutral(r.op)}, {kind})"

    def init_total(self, r: Reduction) -> str:
        """Print the initialisation of a reduction's total."""
        return f"sum{r.slot} = {self.neutral_block(r, '[HEIGHT, WIDTH]')}"

    def head(self) -> list[str]:
        """Print loads of a tile's bounds, of values that are one per tensor, and of base addresses."""
        layout = self.layout
        lines = [
            "chunk = tl.program_id(0).to(tl.int64)",
            *(
                f"{name} = tl.load(chunks + chunk*7{f' + {i}' if i else ''})"
                for i, name in enumerate(OF_TILE)
            ),
            f"entry = tensors + tensor*{layout.width}",
            *(f"{name} = {entry_of(layout, f'@{name}')}" for name in ("numel", "columns", "rows", "width")),
            f"many = {entry_of(layout, '@lines')}",
            "right = tl.minimum(left + width, columns)",
            "lane = tl.arange(0, WIDTH)",
        ]
        lines += [
            *read_tensor_values(layout, self.names, self.leaf_nodes),
            *places(layout),
            *pointers(layout, self.touched),
        ]
        lines += sizes(layout, self.touched)
        sliced = [n for n in self.leaf_nodes if n.extent.sliced]
        kinds = [n.extent for n in sliced] + [r.extent for r in (*self.by_line, *self.by_column)]
        for kind in dict.fromkeys(kinds):
            i = layout.plan.slices.index(kind)
            if layout.spans_lines(kind) or (is_columns(kind) and self.multi_matrix):
                lines += [f"{what}{i} = {entry_of(layout, f'@{what}_{kind}')}" for what in ("inner", "count")]
        for n in sliced:
            begin = f" + {self._first(n)}" if is_columns(n.extent) and not self.multi_matrix else ""
            lines.append(f"{self.names.leaf(n)}_base = {base_of(layout, n)}{begin}")
        for r in (*self.by_line, *self.by_column):
            lines.append(f"part{r.slot} = {self._part(r)}")
        return lines

    def _part(self, r: Reduction) -> str:
        """Spell the base address of the tile's partial results of a reduction."""
        part = f"lines + {entry_of(self.layout, f'@parts{r.slot}')}"
        if is_columns(r.extent) and not self.multi_matrix:
            part += f" + {self._first(r) if r.op is Op.AMAX else 'stack*columns'}"
        elif not is_columns(r.extent) and r.op is Op.SUM:
            part += " + side*many"
        return f"({part}).to({KEY})" if r.op is Op.AMAX else part

    def column(self) -> list[str]:
        """Print loads of what the columns of a block have."""
        lines = ["column = from_column + lane"]
        for n in self._slices(columns=True) if not self.multi_matrix else ():
            lines.append(f"{self.names.leaf(n)} = {self._values(n, 'column', 'column < right')}[None, :]")
        return lines

    def line(self) -> list[str]:
        """Print loads of what the lines of a block have; padding of small matrices is masked."""
        lines = ["line = first + tl.arange(0, HEIGHT)", "live = line < end"]
        if self.multi_matrix:
            lines = ["padded = first + tl.arange(0, HEIGHT)", "line = padded // ROWS*rows + padded % ROWS"]
            lines.append("live = (padded < end) & (padded % ROWS < rows)")
        for n in self._slices(columns=False):
            lines.append(f"{self.names.leaf(n)} = {self._values(n, self._slice(n), 'live')}[:, None]")
        return lines

    def block(self) -> list[str]:
        """Print addresses, loads, update, stores and sums of one block."""
        layout, stores = self.layout, self.touched
        blocked = any(e.name.startswith("BLOCK") for e in layout.plan.slices)
        lines = ["inside = live[:, None] & (column < right)[None, :]"]
        for n in self._slices(columns=True) if self.multi_matrix else ():
            at = f"(line // {self._inner(n)}*columns)[:, None] + column[None, :]"
            lines.append(f"{self.names.leaf(n)} = {self._values(n, at, 'inside')}")
        general = ["index = (line*columns)[:, None] + column[None, :]"]
        general.append("mask = inside" + (" & (index < numel)" if blocked else ""))
        if layout.dims:
            return [*lines, *general, "rest = index", *strided(layout, stores)[2:], *self._run(", mask")]
        full = "(first + HEIGHT <= end) & (from_column + WIDTH <= right)"
        full += " & (rows == ROWS)" if self.multi_matrix else ""
        full += " & ((first + HEIGHT)*columns <= numel)" if blocked else ""
        step = "(tl.arange(0, HEIGHT)*tl.multiple_of(columns, 16))[:, None] + lane[None, :]"
        fast = [f"index = tl.multiple_of(first*columns + from_column, 16) + {step}"]
        fast += [f"{n}_at = tl.multiple_of({n}_ptr, 16) + index" for n in stores.values()]
        general += [f"{n}_at = {n}_ptr + index" for n in stores.values()]
        lines += [f"if {full}:", *_indented([*fast, *self._run("")])]
        return [*lines, "else:", *_indented([*general, *self._run(", mask")])]

    def _run(self, mask: str) -> list[str]:
        """Print what is done at a block's addresses."""
        lines = loads(self.layout, self.leaf_nodes, self.names, mask, "index")
        lines += updated(self.layout, self.step, self.leaf_nodes, self.names, mask)
        for r in self.step.reductions:
            term = f"tl.broadcast_to(r{r.slot}, [HEIGHT, WIDTH])"
            term = f"tl.where(mask, {term}, {neutral(r.op)})" if mask else term
            if r in self.by_line:
                lines.append(f"sum{r.slot} = {reduce_axis(r.op, term, 1)}")
            elif r in self.by_column and self.multi_matrix:
                term = f"tl.reshape({term}, [HEIGHT // ROWS, ROWS, WIDTH])"
                lines.append(f"sum{r.slot} = {reduce_axis(r.op, term, 1)}")
            else:
                lines.append(f"sum{r.slot} = {accumulate(r.op, f'sum{r.slot}', term)}")
        return lines

    def add(self, r: Reduction) -> str:
        """Print the accumulation of a block's line sums."""
        return f"total{r.slot} = {accumulate(r.op, f'total{r.slot}', f'sum{r.slot}')}"

    def store_line(self, r: Reduction, value: str = "total") -> list[str]:
        """Print the store of line sums, or the atomic maximum."""
        if r.op is Op.AMAX:
            place = f"part{r.slot} + {self._slice(r)}"
            return [f'tl.atomic_max({place}, key_of({value}{r.slot}), live, sem="relaxed")']
        return [f"tl.store(part{r.slot} + line, {value}{r.slot}, live)"]

    def add_line(self, r: Reduction) -> list[str]:
        """Print the accumulation of a block's line sums in memory; the first block of a line overwrites."""
        if r.op is Op.AMAX:
            return self.store_line(r, "sum")
        known = f"tl.load(part{r.slot} + line, live & (from_column > left), 0.0)"
        return [f"total{r.slot} = sum{r.slot} + {known}", *self.store_line(r)]

    def store_columns(self, r: Reduction) -> list[str]:
        """Print the store of column sums, or the atomic maximum."""
        lines, value, live, place = [], reduce_axis(r.op, f"sum{r.slot}", 0), "column < right", "column"
        if self.multi_matrix:
            lines, value = ["matrices = first // ROWS + tl.arange(0, HEIGHT // ROWS)"], f"sum{r.slot}"
            live = "(matrices*ROWS < end)[:, None] & (column < right)[None, :]"
            slices = f"matrices*rows // {self._inner(r)}" if r.op is Op.AMAX else "matrices"
            place = f"({slices}*columns)[:, None] + column[None, :]"
        if r.op is Op.AMAX:
            return [*lines, f'tl.atomic_max(part{r.slot} + {place}, key_of({value}), {live}, sem="relaxed")']
        return [*lines, f"tl.store(part{r.slot} + {place}, {value}, {live})"]

    def _inner(self, of: Node | Reduction) -> str:
        """The variable that holds `View.inner` of an extent."""
        return f"inner{self.layout.plan.slices.index(of.extent)}"

    def _first(self, of: Node | Reduction) -> str:
        """Spell the index of the matrix's first slice that is a column."""
        return "matrix*columns" if of.extent is Extent.COL else "0"

    def _slice(self, of: Node | Reduction) -> str:
        """Spell the slice indices of a block's lines."""
        if not self.layout.spans_lines(of.extent):
            return "line"
        return f"line // {self._inner(of)} % count{self.layout.plan.slices.index(of.extent)}"

    def _values(self, n: Node, at: str, live: str) -> str:
        """Spell a masked load of a state's or slot's values."""
        real = TYPES[self.layout.plan.real]
        cast = f".to({real})" if n.op is Op.SLOT else ""
        return f"tl.load({self.names.leaf(n)}_base + {at}, {live}, 0.0){cast}"

    def _slices(self, columns: bool) -> list[Node]:
        """Leaves with a value per slice, of columns or of lines."""
        return [n for n in self.leaf_nodes if n.extent.sliced and is_columns(n.extent) is columns]


def base_of(layout: Layout, n: Node) -> str:
    """Spell the address of a state's or slot's first slice."""
    if n.op is Op.SLOT:
        return f"lines + {entry_of(layout, f'@slot{n.value}')}"
    return pointer_of(layout, n.value or "", TYPES[layout.plan.real])


def slice_values(layout: Layout, n: Node, at: str, live: str) -> str:
    """Spell a masked load of values of a state or slot of slices."""
    cast = f".to({TYPES[layout.plan.real]})" if n.op is Op.SLOT else ""
    return f"tl.load({base_of(layout, n)} + {at}, {live}, 0.0){cast}"
