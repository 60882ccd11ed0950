"""The kernel of a sweep over chunks of elements; `tiles` has the one over tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optgen.backends.emit import (
    Names,
    helper_name,
    leaves,
)
from optgen.backends.layout import PLACE, Layout
from optgen.backends.triton.printer import (
    TYPES,
    accumulate,
    entry_of,
    neutral,
    partial_of,
    pointers,
    read_tensor_values,
    shifted,
)
from optgen.ir.extent import Extent
from optgen.ir.node import DType, Node, Op
from optgen.plan.plan import Step


def sweep_lines(layout: Layout, step: Step, names: Names) -> list[str]:
    """Print a sweep over chunks: pointers, loads, `update`, stores, partial sums."""
    plan, columns = layout.plan, layout.columns
    touched = {s: names.stores[s] for s in dict.fromkeys([*step.loads, *step.values])}
    leaf_nodes = leaves(step.roots(), step.loads)
    lines = [
        "chunk = tl.program_id(0).to(tl.int64)",
        "tensor = tl.load(chunks + chunk*2)",
        "start = tl.load(chunks + chunk*2 + 1)",
        f"entry = tensors + tensor*{layout.width}",
        f"numel = tl.load({shifted('entry', columns['@numel'])})",
        *read_tensor_values(layout, names, leaf_nodes),
        *places(layout),
    ]
    lines += pointers(layout, touched)
    for r in step.reductions:
        lines.append(f"sum{r.slot} = tl.full([BLOCK], {neutral(r.op)}, {TYPES[plan.real]})")
    lines.append("lane = tl.arange(0, BLOCK)")
    lines += sizes(layout, touched)
    lines += ["for block in range(BLOCKS):", "    base = start + block*BLOCK"]
    if layout.dims:
        body = [*strided(layout, touched), *_block(layout, step, leaf_nodes, names, ", mask")]
        lines += ["    " + line for line in body]
    else:
        unmasked = [
            f"{n}_at = tl.multiple_of({n}_ptr, 16) + tl.multiple_of(base, BLOCK) + lane"
            for n in touched.values()
        ]
        masked = [
            "mask = base + lane < numel",
            *(f"{n}_at = {n}_ptr + base + lane" for n in touched.values()),
        ]
        lines.append("    if base + BLOCK <= numel:")
        lines += ["        " + line for line in (*unmasked, *_block(layout, step, leaf_nodes, names, ""))]
        lines.append("    else:")
        lines += ["        " + line for line in (*masked, *_block(layout, step, leaf_nodes, names, ", mask"))]
    for r in step.reductions:
        total = f"tl.sum(sum{r.slot})" if r.op is Op.SUM else f"tl.reduce(sum{r.slot}, 0, maximum)"
        lines.append(f"tl.store({partial_of(layout, r.slot)}, {total}.to(tl.float64))")
    return lines


def sizes(layout: Layout, touched: Mapping[str, str]) -> list[str]:
    """Print loads of sizes and strides, if the layout has any."""
    lines = []
    for d in range(layout.dims):
        lines.append(f"size{d} = {entry_of(layout, f'@size{d}')}")
        for s, name in touched.items():
            if s in layout.plan.codecs:
                lines.append(f"{name}_stride{d} = {entry_of(layout, f'@stride_{s}{d}')}")
    return lines


def places(layout: Layout) -> list[str]:
    """Print loads of the numbers that map an index in a shard to one in the full tensor."""
    return [f"{name} = {entry_of(layout, f'@{name}')}" for name in (PLACE if layout.sharded else ())]


def strided(layout: Layout, touched: Mapping[str, str]) -> list[str]:
    """Print addresses from logical indices, last dimension first."""
    lines = ["mask = base + lane < numel", "rest = base + lane"]
    lines += [f"{name}_at = {name}_ptr + rest" for s, name in touched.items() if s not in layout.plan.codecs]
    for d in reversed(range(layout.dims)):
        lines += [f"index = rest % size{d}", f"rest = rest // size{d}"] if d else ["index = rest"]
        for s, name in touched.items():
            if s in layout.plan.codecs:
                before = f"{name}_ptr" if d == layout.dims - 1 else f"{name}_at"
                lines.append(f"{name}_at = {before} + index*{name}_stride{d}")
    return lines


def loads(layout: Layout, leaf_nodes: Sequence[Node], names: Names, mask: str, place: str) -> list[str]:
    """Print loads of a block's elements; `place` spells an element's index in its tensor."""
    lines = []
    if layout.sharded:
        lines += [f"place = {place}", "place += place // every0*skip0"]
        lines += ["place += place // every1*skip1 + offset"]
        place = "place"
    for n in leaf_nodes:
        if n.op is Op.INDEX:
            shift = " >> 32" if n.value == "high" else ""
            lines.append(f"{names.leaf(n)} = ({place}{shift}).to(tl.uint32)")
        elif n.extent is Extent.ELEMENT:
            value = f"tl.load({names.stores[n.value or '']}_at{mask}{', 0' if mask else ''})"
            lines.append(f"{names.leaf(n)} = {value}{'.to(tl.uint32)' if n.dtype is DType.U32 else ''}")
    return lines


def updated(layout: Layout, step: Step, leaf_nodes: Sequence[Node], names: Names, mask: str) -> list[str]:
    """Print the update of a block and its stores."""
    results = [f"{names.stores[s]}_new" for s in step.values] + [f"r{r.slot}" for r in step.reductions]
    lines = [
        f"{', '.join(results)} = {helper_name(step, 'update')}({', '.join(map(names.leaf, leaf_nodes))})"
    ]
    for s in step.values:
        name = names.stores[s]
        lines.append(f"tl.store({name}_at, {name}_new{mask})")
    return lines


def _block(layout: Layout, step: Step, leaf_nodes: Sequence[Node], names: Names, mask: str) -> list[str]:
    """Print the loads, update, stores and partial sums of a block; `mask` is `, mask` or empty."""
    lines = loads(layout, leaf_nodes, names, mask, "(base + lane)")
    lines += updated(layout, step, leaf_nodes, names, mask)
    for r in step.reductions:
        term = f"tl.where(mask, r{r.slot}, {neutral(r.op)})" if mask else f"r{r.slot}"
        lines.append(f"sum{r.slot} = {accumulate(r.op, f'sum{r.slot}', term)}")
    return lines
