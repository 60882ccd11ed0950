"""Evaluates a schedule in a step, with the reference's float64 semantics.

In: an expression, the step and the hyperparameters. Out: a float.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optgen.ir.facts import holds, lookup
from optgen.ir.node import Node, Op
from optgen.ir.semantics import evaluate
from optgen.language.schedule_expressions import Expression


def value(schedule: Expression, t: float, options: Mapping[str, Any]) -> float:
    """Evaluate a schedule in step `t`, counted from 1, with these hyperparameters."""

    def leaf(n: Node) -> Any:
        if n.op is Op.COUNT:
            return np.float64(t)
        if n.op is Op.FACT:
            fact = schedule.facts[n.value or ""]
            return np.bool_(holds(fact, lookup(options, fact.subject)))
        return np.float64(float(lookup(options, n.value or "")))

    return float(evaluate([schedule.node], leaf)[schedule.node])
