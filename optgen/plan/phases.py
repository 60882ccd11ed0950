"""The planner: a lowered program and its storage to a `Plan`, the one that moves the fewest bytes.

A phase is one sweep over the elements. A reduction ends one: what depends on its result comes in a later
one. What a later phase needs again it recomputes from stores or reads from a spill, whichever moves
fewer bytes: for each phase that is a minimum vertex cut between what lies in memory and what the phase
must produce. Within a step a name means the unrounded value, so a later phase may read back a store that
an earlier one wrote only where storage keeps every bit; the plan never changes results.

For one or two phases the plan moves the fewest bytes that any placement of stores and reductions and any
choice of spills can. With more, the spills of each phase are chosen after those of the phases before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from optgen.ir.extent import Extent
from optgen.ir.node import Op, toposort
from optgen.ir.program import Program
from optgen.plan.graph import Graph
from optgen.plan.placement import Candidate
from optgen.plan.plan import Buffer, Plan, Step


def plan(program: Program, codecs: Mapping[str, str]) -> Plan:
    """Schedule a lowered program (of `passes.pipeline`) for the storage of `p`, `g` and its states.

    Among all placements of stores and reductions, and all choices of spills, the one that moves the fewest
    bytes wins; ties go to the fewest spills, and then to the earliest writes.
    """
    codecs = {s: codecs[s] for s in element_stores(program)}
    graph = Graph.of(program, codecs)
    plain = [Candidate(graph, placed) for placed in graph.placements()]
    spilling = [other for candidate in plain for other in candidate.with_spills()]
    # `min` returns the first of equals, and placements come earliest first: that is the last tie-break.
    best = min([*plain, *spilling], key=lambda candidate: candidate.cost)
    tensor = {k: n for k, n in graph.tensor.items() if program.states[k].extent is not Extent.ALL}
    host = {k: n for k, n in tensor.items() if program.states[k].extent is Extent.STEP}
    finish = {k: n for k, n in tensor.items() if k not in host}
    steps = [*graph.steps(best.placed, best.sweeps)]
    result = Plan(
        name=program.name,
        real=graph.real,
        states=program.states,
        buffers=tuple(_buffers(program, graph, best)),
        steps=(*steps, Step("finish", "finish", finish)) if finish else tuple(steps),
        scalars=program.scalars,
        onces=program.onces,
        host=host,
        finals={k: graph.totals[n] for k, n in graph.finals.items()},
        unspilled=int(min(candidate.cost[0] for candidate in plain)),
        names={**graph.names, **best.names},
    )
    _check_complete(result)
    return result


def _buffers(program: Program, graph: Graph, best: Candidate) -> Iterator[Buffer]:
    """All buffers of a plan; tables have columns and numbers in this order."""
    for i in range(len(best.spilled)):
        yield Buffer(f"#{i}", "spill", Extent.ELEMENT, graph.real)
    for name, codec in graph.codecs.items():
        yield Buffer(name, "store", Extent.ELEMENT, codec)
    for name, state in program.states.items():
        if state.extent is Extent.TENSOR or state.extent.sliced:
            yield Buffer(name, "state", state.extent, graph.real)
    for i in graph.totals.values():
        yield Buffer(f"@total{i}", "global", Extent.ALL, "fp64")
    for i, extent in enumerate(graph.extents):
        yield Buffer(f"@slot{i}", "slot", extent, "fp64")
    for step in best.sweeps:
        for r in step.reductions:
            yield Buffer(f"@partial{r.slot}", "partial", r.extent, "fp64")
    for i in range(len(program.onces)):
        yield Buffer(f"@once{i}", "global", Extent.ALL, "fp64")
    for name in sorted({n.value or "" for n in toposort(graph.totals) if n.op is Op.LOAD}):
        yield Buffer(name, "global", Extent.ALL, "fp64")
    for i in range(len(program.scalars)):
        yield Buffer(f"@scalar{i}", "scalar", Extent.STEP, graph.real)


def _check_complete(result: Plan) -> None:
    """Check that every buffer is written before a step reads it, and that every slot is written at all.

    Raises:
        RuntimeError: no step writes it.
    """
    computed = [b.name for b in result.buffers if b.role in ("spill", "slot", "partial")]
    computed += [b.name for b in result.buffers if b.name.startswith("@total")]
    known = {b.name for b in result.buffers}.difference(computed)
    early: set[str] = set()
    for step in result.steps:
        # Read before any step has written it, even if a later one does.
        early |= {*step.reads} - known
        known |= {*step.writes}
    if missing := early.union(computed) - (known - early):
        raise RuntimeError(
            f"no step of the plan of {result.name} computes {', '.join(sorted(missing))} before it is read: "
            "this is a mistake of optgen's planner; please report the rule"
        )


def element_stores(program: Program) -> list[str]:
    """Names of the stores with a value for each element: p, g, element states, and inputs that are read."""
    states = [k for k, s in program.states.items() if s.extent is Extent.ELEMENT]
    used = {n.value for n in toposort(program.assigns.values()) if n.op is Op.LOAD}
    inputs = [k for k, i in program.inputs.items() if i.extent is Extent.ELEMENT and k in used]
    return ["p", "g", *states, *inputs]
