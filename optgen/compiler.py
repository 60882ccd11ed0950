"""The pipeline from a rule to its plan, stage by stage: text, program, specialised, planned.

    library.rule(text)                     a Program: what the text says
    Compiler.facts(options, ndim)          Facts: which of its compile-time conditions hold for a group
    Compiler.specialised(facts)            a Program without conditions, through every pass
    Compiler.planned(facts, codecs)        a Plan: sweeps over stores, and what happens between them
    backends.cache.kernel(plan, …)         a Kernel; `launch.launcher` asks for it, as it knows the layout

Each stage is made once for its inputs. Everybody who needs one asks here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

from optgen import library
from optgen.ir.extent import Extent
from optgen.ir.facts import Facts, holds, lookup
from optgen.ir.node import REDUCTIONS, Op, toposort
from optgen.ir.program import Program
from optgen.library import runnable
from optgen.passes.pipeline import lower
from optgen.passes.specialise import shaped
from optgen.plan.codecs import CODECS
from optgen.plan.phases import element_stores, plan
from optgen.plan.plan import Plan

NDIM = 2  # dimensions of the tensors that a plan is shown for, where the rule asks


class Compiler:
    """The stages of one program; `Compiler.of` gives everybody the same one."""

    def __init__(self, program: Program):
        self.program = program
        self._specialised: dict[tuple[Facts, str | None], Program] = {}
        self._stores: dict[tuple[Facts, str | None], list[str]] = {}
        self._planned: dict[tuple[Facts, str | None, tuple[str, ...]], Plan] = {}

    @staticmethod
    def of(program: Program) -> Compiler:
        """The compiler of a program, for as long as anybody uses it."""
        known = _compilers.get(id(program))
        return _compilers.setdefault(id(program), Compiler(program)) if known is None else known

    @cached_property
    def per_shape(self) -> bool:
        """Whether what the program does for a tensor depends on how many dimensions it has."""
        return shaped(self.program)

    @cached_property
    def logical(self) -> bool:
        """Whether an element's place in its tensor matters, whatever the memory order."""
        random = (Op.NORMAL, Op.UNIFORM)
        return self.per_shape or any(n.op in random for n in toposort(self.program.roots()))

    @cached_property
    def reduces(self) -> bool:
        """Whether there are reductions."""
        return any(n.op in REDUCTIONS for n in toposort(self.program.roots()))

    @cached_property
    def counts(self) -> bool:
        """Whether there is state that is one for the whole optimizer, which then counts its own steps."""
        return any(state.extent is Extent.ALL for state in self.program.states.values())

    @cached_property
    def whole(self) -> set[str]:
        """The inputs that are one for the whole optimizer."""
        return {name for name, given in self.program.inputs.items() if given.extent is Extent.ALL}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The default of each hyperparameter."""
        return {name: hyper.default for name, hyper in self.program.hypers.items()}

    def facts(
        self, options: Mapping[str, Any] | None = None, ndim: int = NDIM, given: Collection[str] | None = None
    ) -> Facts:
        """Which of the program's conditions hold for a group's options and a number of dimensions.

        Args:
            options: values of hyperparameters; by default the defaults.
            ndim: of the tensor.
            given: the inputs that the step has; by default all.
        """
        inputs = {
            name: None if given is not None and name not in given else 1 for name in self.program.inputs
        }
        known = self.defaults if options is None else options
        known = {**known, **inputs} if inputs else known
        facts = self.program.facts.values()
        found = tuple(holds(f, ndim if f.subject == "ndim" else lookup(known, f.subject)) for f in facts)
        return Facts(found, ndim if self.per_shape else NDIM)

    def named(self, facts: Facts) -> dict[str, bool]:
        """The truths by the text of the condition."""
        return dict(zip(self.program.facts, facts.truths, strict=True))

    def specialised(self, facts: Facts, mode: str | None = None) -> Program:
        """The program for these facts, through every pass; a `mode` is `train` or `eval`."""
        key = (facts, mode)
        if key not in self._specialised:
            self._specialised[key] = lower(self.program, self.named(facts), mode, facts.ndim)
        return self._specialised[key]

    def stores(self, facts: Facts, mode: str | None = None) -> list[str]:
        """The tensors that a step walks: p, g, element states and inputs."""
        key = (facts, mode)
        if key not in self._stores:
            self._stores[key] = element_stores(self.specialised(facts, mode))
        return self._stores[key]

    def planned(self, facts: Facts, codecs: Sequence[str], mode: str | None = None) -> Plan:
        """The plan for these facts and the storage of p, g and the element states, in order."""
        key = (facts, mode, tuple(codecs))
        if key not in self._planned:
            program = self.specialised(facts, mode)
            stores = self.stores(facts, mode)
            self._planned[key] = plan(program, dict(zip(stores, codecs, strict=True)))
        return self._planned[key]


# By the id of the program, which each keeps.
_compilers: WeakValueDictionary[int, Compiler] = WeakValueDictionary()


def planned(program: Program, dtype: str = "fp32", state_dtype: str | None = None, ndim: int = NDIM) -> Plan:
    """The plan under a program's defaults.

    Args:
        program: a rule, or a chain with one.
        dtype: the storage of parameters and gradients, one of `CODECS`.
        state_dtype: the storage of element states; by default fp32, or fp64 beside fp64 parameters.
        ndim: how many dimensions the parameter has, where the rule asks.
    """
    compiler = Compiler.of(program)
    facts = compiler.facts(ndim=ndim)
    lowered = compiler.specialised(facts)
    kept = state_dtype or ("fp64" if dtype == "fp64" else "fp32")
    return compiler.planned(facts, [kept if s in lowered.states else dtype for s in compiler.stores(facts)])


def costs(program: Program) -> dict[str, int]:
    """What one step takes: `phases`, `bytes` moved and `state_bytes` kept, per parameter in fp32.

    Of a transform: what it adds to the rule that `runnable` chains it with. State of a tensor or of its
    slices counts as nothing, for it is small beside the elements.
    """
    whole, partner = runnable([program])
    plans = [planned(whole)] + ([planned(library.rule(partner))] if partner else [])
    numbers = [(len(p.sweeps), p.bytes, kept_bytes(p)) for p in plans]
    difference = (a - sum(rest) for a, *rest in zip(*numbers, strict=True))
    return dict(zip(("phases", "bytes", "state_bytes"), difference, strict=True))


def kept_bytes(made: Plan) -> int:
    """Bytes of element state per parameter; inputs are no state."""
    return sum(CODECS[codec].bytes for store, codec in made.codecs.items() if store in made.states)
