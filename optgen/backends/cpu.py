"""A plan as a Numba function over chunks: parallel, in place, without temporaries.

In: a layout. Out: the source of a module (`emit`), and a `Kernel` that runs it (`CpuKernel`). A phase is
one function over a range of chunks, compiled for one thread, and a parallel function that deals the
chunks out; both are cached on disk beside the source. Reductions add into 16 float64 lanes, so that the
compiler may vectorise them and the order is fixed.

IEEE semantics need nothing special here: LLVM contracts no multiplication with an addition unless asked.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from types import ModuleType

import numba
import numpy as np
from llvmlite import binding
from numba.core import cgutils, types
from numba.extending import intrinsic

from optgen.backends import Layout, Tables
from optgen.backends.emit import identifier, indent, leaf_name, spell_infix, write
from optgen.codecs import CODECS
from optgen.ir import ATOM, LEAVES, DType, Extent, Node, Op, Spelling, toposort
from optgen.plan import Phase, Plan, Reduction

CHUNK = 1 << 14
LANES = 16
FLAT_TYPES = {"fp64": "f64", "fp32": "f32", "bf16": "u16", "fp16": "u16"}
# Ops whose arguments are written twice, or stand on one branch of a conditional expression.
ATOMS = frozenset({Op.WHERE, Op.MAXIMUM, Op.MINIMUM})

# A rule touches more arrays than LLVM's vectoriser is by default willing to check for overlap.
binding.set_option("optgen", "-runtime-memory-check-threshold=128")


@intrinsic
def pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """An integer address as a pointer that `numba.carray` takes."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(address), codegen


def speller(real: str):  # type: ignore[no-untyped-def]
    """How Numba source spells each op, in working precision `real` (`f32` or `f64`)."""
    kinds = {DType.REAL: real, DType.F32: "f32", DType.U32: "u32", DType.BOOL: "bool"}
    calls = {Op.ABS: "abs", Op.SQRT: "math.sqrt", Op.EXP: "math.exp", Op.LOG: "math.log", Op.FLOOR: "np.floor"}

    def spell(n: Node, args: Sequence[Spelling]) -> Spelling:
        texts = [t for t, _ in args]
        kind = kinds[n.dtype]
        if n.op is Op.CONST:
            if n.dtype is DType.BOOL:
                return str(bool(n.number)), ATOM
            if n.dtype is DType.U32:
                return f"u32({int(n.number):#x})", ATOM
            if not math.isfinite(n.number):
                return f"{kind}(np.{'nan' if math.isnan(n.number) else 'inf'})", ATOM
            return f"{kind}({n.number!r})", ATOM
        if n.op in calls:
            return f"{calls[n.op]}({texts[0]})", ATOM
        if n.op is Op.WHERE:
            return f"({texts[1]} if {texts[0]} else {texts[2]})", ATOM
        if n.op in (Op.MAXIMUM, Op.MINIMUM):
            a, b = texts
            sign = ">" if n.op is Op.MAXIMUM else "<"
            return f"({a} if {a} {sign} {b} or {a} != {a} else {b})", ATOM
        if n.op is Op.NEG:
            return f"-{texts[0] if args[0][1] == ATOM else f'({texts[0]})'}", 8
        if n.op is Op.NOT:
            return f"(not {texts[0]})", ATOM
        if n.op is Op.CAST:
            source = kinds[n.args[0].dtype]
            return args[0] if source == kind else (f"{kind}({texts[0]})", ATOM)
        if n.op is Op.BITS:
            return f"bits_of({texts[0]})", ATOM
        if n.op is Op.FLOAT:
            return f"float_of({texts[0]})", ATOM
        if n.dtype is DType.U32:
            symbol = {Op.AND: "&", Op.OR: "|"}.get(n.op, n.op.value)
            return f"u32({' '.join((_bracket(args[0]), symbol, _bracket(args[1])))})", ATOM
        return spell_infix(n, args)

    return spell


def _bracket(spelling: Spelling) -> str:
    return spelling[0] if spelling[1] == ATOM else f"({spelling[0]})"


def emit(layout: Layout, math_mode: str = "exact") -> str:
    """The source of a module with `sweep<k>` for every phase, `combine` and `finish`."""
    plan = layout.plan
    fast = ", fastmath={'contract', 'arcp', 'afn'}" if math_mode == "fast" else ""
    head = f'''\
"""{plan.name}: {len(plan.phases)} phase(s), {plan.bytes} bytes per element, {plan.real}, math={math_mode}."""

import math

import numpy as np
from numba import carray, njit, prange

from optgen.backends.cpu import bits_of, float_of, pointer

f32, f64, u16, u32 = np.float32, np.float64, np.uint16, np.uint32
serial = njit(nogil=True, error_model="numpy", cache=True{fast})
parallel = njit(nogil=True, error_model="numpy", cache=True, parallel=True{fast})
'''
    parts = [head]
    for k, phase in enumerate(plan.phases):
        parts.append(_sweep(layout, k, phase))
    if plan.slots:
        parts.append(_combine(layout))
    if plan.finish:
        parts.append(_finish(layout))
    return "\n\n".join(parts)


def _leaves(roots: Sequence[Node]) -> list[Node]:
    return [n for n in toposort(roots) if n.op in LEAVES and n.op is not Op.CONST]


def _read_scalars(plan: Plan, layout: Layout, leaves: Sequence[Node]) -> list[str]:
    """Lines that read a tensor's scalars, finished reductions and tensor states."""
    real = FLAT_TYPES[plan.real]
    lines = []
    for n in leaves:
        if n.op is Op.SCALAR:
            truth = " != 0" if n.dtype is DType.BOOL else ""
            lines.append(f"{leaf_name(n)} = scalars[row, {n.value}]{truth}")
        elif n.op is Op.SLOT:
            lines.append(f"{leaf_name(n)} = {real}(slots[tensor, {n.value}])")
        elif n.op is Op.LOAD and n.extent is Extent.TENSOR:
            column = layout.columns[n.value or ""]
            lines.append(f"{leaf_name(n)} = carray(pointer(tensors[tensor, {column}]), 1, {real})[0]")
    return lines


def _sweep(layout: Layout, k: int, phase: Phase) -> str:
    plan, columns = layout.plan, layout.columns
    stores = list(phase.stores)
    touched = list(dict.fromkeys([*phase.loads, *stores]))
    leaves = _leaves(phase.roots())
    used = [n for n in leaves if n.extent is Extent.ELEMENT]
    arrays = {s: f"{_variable(s)}_" for s in touched}
    inside = {"begin", "end", "tensors", "chunks", "scalars", "partials", "slots", "tensor", "row", "start"}
    inside |= {"stop", "first", "j", "i", "c", "lane", "at", "rest", "math", "np", "real"} | {*arrays.values()}
    inside |= {f"{_variable(s)}_at" for s in touched} | {f"sum{r.slot}" for r in phase.reductions}
    spell = speller(FLAT_TYPES[plan.real])
    body, results = write(phase.roots(), plan.names, spell, inside, ATOMS)
    lines = ["for c in range(begin, end):"]
    setup = [
        "tensor, start = chunks[c, 0], chunks[c, 1]",
        f"stop = min(start + {CHUNK}, tensors[tensor, {columns['@numel']}])",
        f"row = tensors[tensor, {columns['@row']}]",
        *_read_scalars(plan, layout, leaves),
    ]
    for s in touched:
        codec = plan.real if s.startswith("#") else plan.codecs[s]
        size, kind = CODECS[codec].bytes, FLAT_TYPES[codec]
        if layout.dims and not s.startswith("#"):
            setup.append(f"{arrays[s]} = carray(pointer(tensors[tensor, {columns[s]}]), 1 << 62, {kind})")
        else:
            setup.append(
                f"{arrays[s]} = carray(pointer(tensors[tensor, {columns[s]}] + start * {size}), stop - start, {kind})"
            )
    for r in phase.reductions:
        empty = "-np.inf" if r.op is Op.AMAX else "0.0"
        setup.append(f"sum{r.slot} = np.full({LANES}, {empty})")
    element = _element(layout, touched, used, arrays, body, stores, results)
    element += [
        _accumulate(r, result) for r, result in zip(phase.reductions, results[len(stores) :], strict=True)
    ]
    text = f"@serial\ndef sweep{k}(begin, end, tensors, chunks, scalars, partials, slots):\n"
    text += indent(lines, 1) + indent(setup, 2)
    if phase.reductions:
        text += indent([f"for first in range(0, stop - start, {LANES}):"], 2)
        text += indent([f"for lane in range(min({LANES}, stop - start - first)):"], 3)
        text += indent(["i = first + lane", *element], 4)
        text += indent(
            [f"partials[c, {r.slot}] = {_fold(r)}" for r in phase.reductions],
            2,
        )
    else:
        text += indent(["for i in range(stop - start):"], 2) + indent(element, 3)
    arguments = "tensors, chunks, scalars, partials, slots"
    text += f"\n\n@parallel\ndef sweep{k}_parallel(threads, {arguments}):\n"
    text += indent(["count = len(chunks)", "for k in prange(threads):"], 1)
    text += indent([f"sweep{k}(k * count // threads, (k + 1) * count // threads, {arguments})"], 2)
    return text


def _variable(store: str) -> str:
    return f"x{store[1:]}" if store.startswith("#") else identifier(store)


def _element(
    layout: Layout,
    touched: Sequence[str],
    used: Sequence[Node],
    arrays: dict[str, str],
    body: Sequence[str],
    stores: Sequence[str],
    results: Sequence[str],
) -> list[str]:
    """The loop body: addresses, loads, arithmetic, stores."""
    lines = []
    index = dict.fromkeys(touched, "i")
    if layout.dims:
        strided = [s for s in touched if not s.startswith("#")]
        index |= {s: f"{_variable(s)}_at" for s in strided}
        lines.append("rest = start + i")
        for d in reversed(range(layout.dims)):
            size = f"tensors[tensor, {layout.columns[f'@size{d}']}]"
            lines.append(f"at = rest % {size}" if d else "at = rest")
            if d:
                lines.append(f"rest = rest // {size}")
            for s in strided:
                stride = f"at * tensors[tensor, {layout.columns[f'@stride_{s}{d}']}]"
                first = d == layout.dims - 1
                lines.append(f"{index[s]} = {stride}" if first else f"{index[s]} += {stride}")
    for n in used:
        value = f"{arrays[n.value or '']}[{index[n.value or '']}]"
        lines.append(f"{leaf_name(n)} = {f'u32({value})' if n.dtype is DType.U32 else value}")
    lines += body
    for s, result in zip(stores, results, strict=False):
        codec = layout.plan.real if s.startswith("#") else layout.plan.codecs[s]
        kind = FLAT_TYPES[codec]
        lines.append(f"{arrays[s]}[{index[s]}] = {kind}({result})")
    return lines


def _accumulate(r: Reduction, result: str) -> str:
    lane = f"sum{r.slot}[lane]"
    if r.op is Op.SUM:
        return f"{lane} += f64({result})"
    return f"{lane} = f64({result}) if {result} > {lane} or {result} != {result} else {lane}"


def _fold(r: Reduction) -> str:
    """The lanes of one reduction as one number; `np.max` carries a NaN through."""
    return f"sum{r.slot}.sum()" if r.op is Op.SUM else f"greatest(sum{r.slot})"


def _combine(layout: Layout) -> str:
    columns = layout.columns
    ops = {r.slot: r.op for phase in layout.plan.phases for r in phase.reductions}
    text = f"""@serial
def combine(which, tensors, partials, slots):
    for tensor in range(len(tensors)):
        first = tensors[tensor, {columns["@first"]}]
        count = tensors[tensor, {columns["@count"]}]
        for slot in which:
            total = partials[first, slot]
            for c in range(first + 1, first + count):
                x = partials[c, slot]
"""
    greatest = " or ".join(f"slot == {slot}" for slot, op in ops.items() if op is Op.AMAX)
    larger = "(x if x > total or x != x else total)"
    text += indent([f"total = {larger} if {greatest} else total + x" if greatest else "total += x"], 4)
    return text + indent(["slots[tensor, slot] = total"], 3)


def _finish(layout: Layout) -> str:
    plan, columns = layout.plan, layout.columns
    roots = list(plan.finish.values())
    spell = speller(FLAT_TYPES[plan.real])
    body, results = write(roots, plan.names, spell, {"tensors", "scalars", "slots", "tensor", "row"}, ATOMS)
    lines = [f"row = tensors[tensor, {columns['@row']}]", *_read_scalars(plan, layout, _leaves(roots)), *body]
    real = FLAT_TYPES[plan.real]
    for name, result in zip(plan.finish, results, strict=True):
        lines.append(f"carray(pointer(tensors[tensor, {columns[name]}]), 1, {real})[0] = {real}({result})")
    head = "@serial\ndef finish(tensors, scalars, slots):\n    for tensor in range(len(tensors)):\n"
    return head + indent(lines, 2)


@numba.njit(error_model="numpy")
def greatest(lanes):  # type: ignore[no-untyped-def]
    """The largest number of an array, or NaN where there is one."""
    best = lanes[0]
    for x in lanes:
        best = x if x > best or x != x else best
    return best


@numba.njit(error_model="numpy")
def bits_of(x):  # type: ignore[no-untyped-def]
    """The bits of a float32 as uint32."""
    return np.float32(x).view(np.uint32)


@numba.njit(error_model="numpy")
def float_of(x):  # type: ignore[no-untyped-def]
    """The float32 that some bits stand for."""
    return np.uint32(x).view(np.float32)


# Numba's own `workqueue` pool aborts the process when two threads enter it; omp and tbb do not.
_launching = threading.RLock()


class CpuKernel:
    """A module made by `emit`, with the number of threads that torch uses."""

    chunk = CHUNK
    numpy_tables = True
    small = 4  # this few chunks run faster without waking the other threads

    def __init__(self, layout: Layout, module: ModuleType):
        self.layout, self.module = layout, module

    def sweep(self, phase: int, tables: Tables) -> None:
        """Run one phase over every chunk."""
        arguments = (tables.tensors, tables.chunks, tables.scalars, tables.partials, tables.slots)
        threads = min(_threads(), len(tables.chunks))
        if threads == 1 or len(tables.chunks) < self.small:
            getattr(self.module, f"sweep{phase}")(0, len(tables.chunks), *arguments)
            return
        with _launching:
            getattr(self.module, f"sweep{phase}_parallel")(threads, *arguments)

    def combine(self, tables: Tables, slots: Sequence[int]) -> None:
        """Combine the chunks' partial results of these slots, one value a tensor."""
        self.module.combine(np.array(slots), tables.tensors, tables.partials, tables.slots)

    def finish(self, tables: Tables) -> None:
        """Write the new tensor states."""
        self.module.finish(tables.tensors, tables.scalars, tables.slots)


def _threads() -> int:
    """As many threads as torch uses, as far as Numba's pool has them."""
    import torch

    count = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if numba.get_num_threads() != count:
        numba.set_num_threads(count)
    return count
