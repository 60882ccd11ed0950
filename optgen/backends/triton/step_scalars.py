"""Step scalars on the device: the kernel that computes values per step in float64, before a step's own.

In: the values, which the host would otherwise compute, and the states that follow from them. Out: source of
a module with one kernel (`emit`), and its launch (`run`). A program computes `BLOCK` rows of the scalar
table; each row has its own counter, states and hyperparameters. If a gradient scaler has found an infinity
(`stop` is not 0), states keep their values; the counter, which the caller advances, then stays as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from optgen.backends.emit import PYTHON, Names, identifier, indent, write
from optgen.backends.triton.printer import GLOBALS, extremes, speller
from optgen.backends.triton.specs import ONE_THREAD
from optgen.ir.node import ATOM, DType, Node, Op, Spelling, toposort

BLOCK = 64  # rows of a program
LOCALS = {"values", "counters", "states", "stop", "rows", "out", "row", "live", "t", "stopped", "place"}
EXACT = speller("fp64", "exact")


@dataclass(frozen=True)
class Values:
    """What is computed for each row: `roots`, and by state its new value (`results`)."""

    roots: tuple[Node, ...]
    results: Mapping[str, Node]

    @property
    def leaves(self) -> list[Node]:
        """Hyperparameters and shape facts, which are read from a table."""
        order = toposort([*self.roots, *self.results.values()])
        return [n for n in order if n.op in (Op.HYPER, Op.SHAPE)]

    @property
    def states(self) -> list[str]:
        """The states that are read or written, in order."""
        read = [n.value or "" for n in toposort([*self.roots, *self.results.values()]) if n.op is Op.LOAD]
        return list(dict.fromkeys([*read, *self.results]))


class _Names(Names):
    """Variables for leaves, with the part of `Names` that `write` uses."""

    def __init__(self, values: Values):
        self.taken = {*PYTHON, *GLOBALS, *LOCALS}
        self.variables: dict[tuple[Op, str | None], str] = {(Op.COUNT, None): "t"}
        keys = [(n.op, n.value) for n in values.leaves] + [(Op.LOAD, name) for name in values.states]
        for key in keys:
            stem = name = identifier(key[1] or "x")
            number = 0
            while name in self.taken or f"{name}_at" in self.taken:
                number += 1
                name = f"{stem}_{number}"
            self.taken |= {name, f"{name}_at"}
            self.variables[key] = name

    def leaf(self, n: Node) -> str:
        """The variable that holds a leaf."""
        return self.variables[n.op, None if n.op is Op.COUNT else n.value]


def _spell(n: Node, args: Sequence[Spelling]) -> Spelling:
    """Spell an op in float64, including COS."""
    if n.op is Op.COS:
        return f"tl.cos({args[0][0]})", ATOM
    return EXACT(n, args)


def emit(values: Values, real: str) -> str:
    """Source of a module with the kernel; `real` is the dtype of the scalar table in Triton."""
    names = _Names(values)
    lines = [
        "row = tl.program_id(0).to(tl.int64)*BLOCK + tl.arange(0, BLOCK)",
        "live = row < tl.load(rows)",
        "stopped = tl.load(stop) != 0",
        "place = tl.load(counters + row, live, 0).to(tl.pointer_type(COUNTER))",
        "t = tl.load(place, live, 0.0).to(tl.float64) + 1",
    ]
    width = len(values.leaves)
    for i, n in enumerate(values.leaves):
        lines.append(f"{names.leaf(n)} = tl.load(values + row*{width} + {i}, live, 0.0)")
    for i, name in enumerate(values.states):
        variable = names.variables[Op.LOAD, name]
        place = f"tl.load(states + row*{len(values.states)} + {i}, live, 0).to(tl.pointer_type(tl.float64))"
        lines += [f"{variable}_at = {place}", f"{variable} = tl.load({variable}_at, live, 0.0)"]
    wanted = [*values.roots, *values.results.values()]
    texts, results = write(wanted, {}, names, _spell, names.taken)
    lines += texts
    for i, (n, result) in enumerate(zip(values.roots, results, strict=False)):
        number = f"tl.where({result}, 1.0, 0.0)" if n.dtype is DType.BOOL else f"({result})"
        stored = f"(tl.zeros([BLOCK], tl.float64) + {number}).to({real})"
        lines.append(f"tl.store(out + row*{len(values.roots)} + {i}, {stored}, live)")
    for name, result in zip(values.results, results[len(values.roots) :], strict=True):
        variable = names.variables[Op.LOAD, name]
        lines.append(f"tl.store({variable}_at, tl.where(stopped, {variable}, {result}), live)")
    parameters = "values, counters, states, stop, rows, out, BLOCK: tl.constexpr, COUNTER: tl.constexpr"
    return "\n\n".join(
        [
            '"""The values of a step that are not an element\'s; made by optgen."""\n\nimport triton\n'
            "import triton.language as tl\n",
            *extremes({n.op for n in toposort(wanted)}),
            f"@triton.jit\ndef prologue({parameters}):\n" + indent(lines, 1),
        ]
    )


def run(module: ModuleType, tables: Sequence[Any], count: int, wide: bool) -> None:
    """Launch the kernel for `count` rows; `wide` counters are float64."""
    kernel = module.prologue[(-(-count // BLOCK),)]
    # Triton's interpreter computes with NumPy, where IEEE has an answer, and has one grid for the process.
    with ONE_THREAD, np.errstate(all="ignore"):
        kernel(*tables, **_constants(wide))


def prepare(module: ModuleType, tables: Sequence[Any], count: int, wide: bool) -> None:
    """Compile what `run` would launch with these arguments."""
    with ONE_THREAD:
        compiled = module.prologue.warmup(*tables, grid=(-(-count // BLOCK),), **_constants(wide))
        if compiled is not None:  # Triton's interpreter compiles nothing
            compiled._init_handles()  # loads it, as Triton's tutorials do


def _constants(wide: bool) -> dict[str, Any]:
    """Compile-time constants and options; contraction is off, as the host computes without."""
    import triton.language as tl

    return {"BLOCK": BLOCK, "COUNTER": tl.float64 if wide else tl.float32, "enable_fp_fusion": False}
