"""Program to program: everything between the text and the plan, as a visible list of functions.

`recur` and `specialise` come first: one says for all options which state the host computes, the other
needs the options of a parameter group. `PASSES` follow in order. None of them changes the value that the
reference computes, except that `expand` rounds otherwise than a library does (its figures are there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optgen.ir.extent import Extent
from optgen.ir.node import LEAVES, toposort
from optgen.ir.program import Program
from optgen.passes.expand import expand
from optgen.passes.fold import fold
from optgen.passes.hoist import hoist
from optgen.passes.specialise import recur, specialise

Pass = Callable[[Program], Program]
PASSES: tuple[Pass, ...] = (expand, fold, hoist)


def lower(program: Program, truths: Mapping[str, bool], mode: str | None = None, ndim: int = 2) -> Program:
    """The program that `plan` takes: specialised, then every pass in order."""
    program = specialise(recur(program), truths, mode, ndim)
    for run in PASSES:
        program = run(program)
    return program


@dataclass(frozen=True)
class Count:
    """How many operations a program has after a pass, per element and per step."""

    name: str
    element: int
    tensor: int
    step: int


def count(name: str, program: Program) -> Count:
    """Count the operations of a program by extent; leaves are free."""
    nodes = [n for n in toposort([*program.assigns.values(), *program.scalars]) if n.op not in LEAVES]
    element = sum(n.extent is Extent.ELEMENT for n in nodes)
    tensor = sum(n.extent is Extent.TENSOR for n in nodes)
    return Count(name, element, tensor, len(nodes) - element - tensor)


def trace(program: Program, truths: Mapping[str, bool]) -> list[Count]:
    """The op counts of the program as written and after each pass."""
    counts = [count("written", program)]
    program = specialise(recur(program), truths)
    counts.append(count("specialise", program))
    for run in PASSES:
        program = run(program)
        counts.append(count(run.__name__, program))
    return counts
