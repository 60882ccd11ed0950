"""Two programs as one: what the first computes in place of what the second reads."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import cast

from optgen.errors import RuleError
from optgen.ir.extent import Extent, join
from optgen.ir.node import Node, Op, const, load, node, rewrite, toposort
from optgen.ir.program import Hyper, Program
from optgen.language.comparisons import COMPARE


def reads(program: Program, name: str) -> Node | None:
    """The node with which a program reads a store, if it does."""
    found = (n for n in toposort(program.assigns.values()) if n.op is Op.LOAD and n.value == name)
    return next(found, None)


def at_run_time(program: Program, paths: Container[str]) -> Program:
    """The program with conditions on scheduled hyperparameters as comparisons: they change from step to step.

    A value that one side of such a condition alone has is that side's.
    """
    facts = {text: fact for text, fact in program.facts.items() if fact.subject in paths}
    if not facts:
        return program

    def change(n: Node) -> Node | None:
        if n.op is Op.FACT and n.value in facts:
            fact = facts[n.value]
            return COMPARE[fact.relation](node(Op.HYPER, value=fact.subject), const(cast(float, fact.value)))
        if n.op is Op.CHOOSE and n.args[0].extent is not Extent.CONST:
            condition, a, b = n.args
            if Op.UNDEF in (a.op, b.op):
                return b if a.op is Op.UNDEF else a
            return node(Op.WHERE, condition, a, b)
        return None

    kept = {text: fact for text, fact in program.facts.items() if text not in facts}
    return replace(program.map(change), facts=kept)


def with_modes(program: Program, inputs: Mapping[Node, Node]) -> Program:
    """The program with other nodes in `train()` and `eval()`."""
    done = rewrite((n for mode in program.modes.values() for n in mode.values()), inputs.get)
    modes = {m: {k: done[n] for k, n in mode.items()} for m, mode in program.modes.items()}
    return replace(program, modes=modes)


def either(a: Node | None, b: Node | None) -> Node | None:
    """Whether one of two conditions holds; None is one that never does."""
    return node(Op.OR, a, b) if a is not None and b is not None else a if a is not None else b


def unless(skip: Node | None, program: Program) -> Program:
    """The program with everything that it stores kept as it was where a condition holds."""
    if skip is None:
        return program
    assigns = {}
    for k, n in program.assigns.items():
        extent = program.states[k].extent if k in program.states else Extent.ELEMENT
        kept = join(skip.extent, n.extent)
        if extent is Extent.ALL and kept is not Extent.ALL:
            raise RuleError(
                f"'{program.name}' has a value for all tensors, '{k}', which cannot be kept by tensor"
            )
        assigns[k] = n if k in ("g", "u") else node(Op.WHERE, skip, load(k, extent=extent), n)
    return replace(program, assigns=assigns)


def gradient_of(program: Program) -> Node:
    """The gradient after the transforms before the rule."""
    if program.kind == "before":
        return program.assigns["g"]
    return load("g") if program.gradient is None else program.gradient


def substituted(program: Program, inputs: Mapping[Node, Node]) -> Program:
    """The program with other nodes in its step; first values, modes and conditions are outside it."""
    outer = replace(program, states={}, modes={}, requires=())
    inner = outer.map(inputs.get)
    return replace(
        inner,
        states=program.states,
        modes=program.modes,
        requires=program.requires,
        spans={**program.spans, **inner.spans},
        names={**program.names, **inner.names},
    )


def merge(a: Program, b: Program) -> Program:
    """The declarations of both; `b`'s assignments and update."""
    for mode in a.modes.keys() & b.modes.keys():
        raise RuleError(f"'{a.name}' and '{b.name}' both define {mode}()")
    return replace(
        b,
        doc="\n".join(filter(None, (a.doc, b.doc))),
        sources=a.sources + b.sources,
        hypers=_together(a.hypers, b.hypers),
        states={**a.states, **b.states},
        inputs={**a.inputs, **b.inputs},
        requires=a.requires + b.requires,
        facts={**a.facts, **b.facts},
        modes={**a.modes, **b.modes},
        gradient=a.gradient,
        skip=b.skip,
        schedules={**a.schedules, **b.schedules},
        count=a.count if b.count is None else b.count,
        spans={**b.spans, **a.spans},
        names={**b.names, **a.names},
    )


def _together(first: Mapping[str, Hyper], then: Mapping[str, Hyper]) -> dict[str, Hyper]:
    """The hyperparameters of both; a shared one stands where the part has it that it is of."""
    return {**{h: hyper for h, hyper in first.items() if h not in then}, **then}
