"""Program and storage to `Plan`: phases, what each loads and stores, and the bytes that they move.

A phase is one sweep over the elements. A reduction ends one: what depends on its result comes in a later
one. What a later phase needs again it recomputes from stores or reads from a spill, whichever moves
fewer bytes: for each phase that is a minimum vertex cut between what lies in memory and what the phase
must produce. Within a step a name means the unrounded value, so a later phase may read back a store that
an earlier one wrote only where storage keeps every bit; the plan never changes results.

For one or two phases the plan moves the fewest bytes that any placement of stores and reductions and any
choice of spills can. With more, the spills of each phase are chosen after those of the phases before it.
"""

from __future__ import annotations

from collections.abc import Mapping

from optgen.ir import (
    Extent,
    Op,
    Program,
    toposort,
)
from optgen.plan.candidates import Candidate
from optgen.plan.graph import Graph
from optgen.plan.phases import Phase, Plan, Reduction, Round, reduction_text

__all__ = ["Phase", "Plan", "Reduction", "Round", "element_stores", "plan", "reduction_text"]


def plan(program: Program, codecs: Mapping[str, str]) -> Plan:
    """Schedule a lowered program (see `passes.lower`) for the given storage of `p`, `g` and its states.

    Among the ways to place stores and reductions and to spill, the one that moves the fewest bytes wins;
    of equals, the one that spills least, and then the one that writes earliest.
    """
    codecs = {s: codecs[s] for s in element_stores(program)}
    graph = Graph.of(program, codecs)
    plain = [Candidate(graph, placed) for placed in graph.placements()]
    spilling = [other for candidate in plain for other in candidate.with_spills()]
    best = min([*plain, *spilling], key=lambda candidate: candidate.cost)
    tensor = {k: n for k, n in graph.tensor.items() if program.states[k].extent is not Extent.ALL}
    host = {k: n for k, n in tensor.items() if program.states[k].extent is Extent.STEP}
    coarse = [k for k, s in program.states.items() if s.extent is Extent.TENSOR or s.extent.sliced]
    made = Plan(
        name=program.name,
        real=graph.real,
        codecs=codecs,
        states=program.states,
        tensor_states=tuple(coarse),
        finish={k: n for k, n in tensor.items() if k not in host},
        scalars=program.scalars,
        host=host,
        phases=best.phases,
        slots=len(graph.ops),
        spills=len(best.spilled),
        unspilled=int(min(candidate.cost[0] for candidate in plain)),
        names={**graph.names, **best.names},
        rounds=graph.rounds(best.placed),
        extents=tuple(graph.extents),
        totals=tuple(graph.totals),
        finals={k: graph.totals[n] for k, n in graph.finals.items()},
        onces=program.onces,
    )
    _complete(made)
    return made


def _complete(made: Plan) -> None:
    """Every reduction whose value is read must be computed, and from parts that a phase has left.

    Raises:
        RuntimeError: one is not.
    """
    swept = {r.slot for phase in made.phases for r in phase.reductions}
    combined = {slot for found in made.rounds for slot in found.sweeps}
    later = [r for found in made.rounds for r in (*found.small, *found.over)]
    read = toposort([*made.roots, *made.totals])
    wanted = {int(n.value or 0) for n in read if n.op is Op.SLOT} | combined | swept
    if missing := sorted(wanted - (swept & combined) - {r.slot for r in later}):
        raise RuntimeError(
            f"no step of the plan of {made.name} computes its reductions {missing}, counted in the order of "
            "the text: this is a mistake of optgen's planner; please report the rule"
        )


def element_stores(program: Program) -> list[str]:
    """The tensors that a step walks: p, g, element states and inputs."""
    states = [k for k, s in program.states.items() if s.extent is Extent.ELEMENT]
    used = {n.value for n in toposort(program.assigns.values()) if n.op is Op.LOAD}
    inputs = [k for k, i in program.inputs.items() if i.extent is Extent.ELEMENT and k in used]
    return ["p", "g", *states, *inputs]
