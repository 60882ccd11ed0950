"""A program for the scaled gradients of mixed precision (`torch.amp.GradScaler`).

In: a program. Out: one that is handed the scale and whether an infinity was found, so that both are read
where the step runs, and the host need not know whether there was a step at all.
"""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.extent import Extent
from optgen.ir.node import Op, const, load, node
from optgen.ir.program import Input, Program
from optgen.passes.specialise import recur
from optgen.passes.substitution import substituted

SCALING = {"grad_scale": 1.0, "found_inf": 0.0}  # inputs, and what they are without a scaler


def with_scaling(program: Program) -> Program:
    """The program for scaled gradients, which are divided by the input `grad_scale`.

    Where the input `found_inf` is not 0, nothing that lies on the device changes.  States that follow from
    the step count alone are left to whoever counts.
    """
    scale, found = (load(name, extent=Extent.ALL) for name in SCALING)
    stop = node(Op.NE, found, const(0))
    changed = substituted(program, {load("g"): node(Op.DIV, load("g"), scale)})
    counted = {k for k, s in recur(program).states.items() if s.extent is Extent.STEP}
    assigns = {}
    for name, n in changed.assigns.items():
        extent = Extent.ELEMENT if name == "p" else program.states[name].extent
        kept = n if name in counted else node(Op.WHERE, stop, load(name, extent=extent), n)
        assigns[name] = kept
    inputs = {name: Input(name, Extent.ALL, default) for name, default in SCALING.items()}
    return replace(changed, assigns=assigns, inputs={**program.inputs, **inputs})
