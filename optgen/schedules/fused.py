"""Schedules compiled into a rule: the host computes their values with the step's other scalars.

In: a rule, and for some of its hyperparameters a schedule. Out: a program in which the rule reads the
schedule's value where it read the group's. The schedules are a transform before the rule, in rule text, so a
state dict and a pickle contain them as they contain every rule.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from optgen import library, locks
from optgen.errors import RuleError, Source
from optgen.ir.program import Hyper, Program
from optgen.language.declarations import RESERVED
from optgen.language.schedule_expressions import expression
from optgen.passes.chain import places, with_schedules
from optgen.schedules.named import Schedule

AnySchedule = Schedule | str | float
NAME = "scheduled"  # of the chain's part that has the schedules


def scheduled(source: library.Rule, **schedules: AnySchedule | tuple[AnySchedule | None, ...]) -> Program:
    """Compile schedules of hyperparameters into a rule: one program, with no additional launch.

    Args:
        source: a shipped name, a path, the text of a rule, or a program (a chain, for example).
        **schedules: for a hyperparameter a named schedule, or one expression of the rule language that has
            one value a step, computed in float64: `lr="lr*minimum(t/100, 1)"`. There `t` is the parameter's
            step count, from 1; the hyperparameter's own name, and that of any other of the same rule, is its
            value in the parameter group, which may still be changed. For a tuple, a tuple:
            `betas=("0.9 + 0.05/t", None)`.

    Returns:
        The program, for `optgen.optimizer` or `optgen.chain`. `require`s and initial values of state use the
        group's value. In a chain a text has the names of the part that the hyperparameter is of. A rule
        can be scheduled again: its second schedules read the values of the first ones.

    Raises:
        RuleError: there is no such hyperparameter, it is no number, or a text is wrong; with its place.
    """
    program = library.rule(source)
    # A chain may have renamed hyperparameters; a schedule's text has the names of its part.
    homes = {name: place for name, place in places(program).items() if name not in RESERVED}
    parts = program.parts or (program,)
    texts: dict[int, dict[str, str]] = {}
    for name, schedule in schedules.items():
        if name not in homes:
            known = ", ".join(homes) or "none"
            what = "hyperparameter" if name not in program.hypers else "schedule for"
            raise RuleError(f"'{program.name}' has no {what} '{name}'", None, f"it has: {known}")
        i, own = homes[name]
        texts.setdefault(i, {})[own] = _text(own, schedule, _hypers(parts[i]))
    return with_schedules(program, {i: _transform(lines, _hypers(parts[i])) for i, lines in texts.items()})


def _hypers(part: Program) -> dict[str, Hyper]:
    """The hyperparameters that a schedule may read, without the reserved ones."""
    return {name: hyper for name, hyper in part.hypers.items() if name not in RESERVED}


def _text(name: str, schedule: object, hypers: Mapping[str, Hyper]) -> str:
    """The checked rule text of a hyperparameter's schedule: an expression, or a tuple of expressions."""
    default = hypers[name].default
    if not isinstance(default, tuple):
        return _one(name, schedule, hypers)
    if not isinstance(schedule, tuple | list) or len(schedule) != len(default):
        raise RuleError(
            f"'{name}' is a tuple of {len(default)} values, not {schedule!r}",
            None,
            "give a tuple of schedules, with None for what keeps the group's value",
        )
    paths = [f"{name}[{i}]" for i in range(len(schedule))]
    items = [path if g is None else _one(path, g, hypers) for path, g in zip(paths, schedule, strict=True)]
    return f"({', '.join(items)},)"


def _one(path: str, schedule: object, hypers: Mapping[str, Hyper]) -> str:
    """The checked text of one expression, on one line, for a hyperparameter or an item of a tuple."""
    if isinstance(schedule, Schedule):
        text = schedule.of(path)
    elif isinstance(schedule, str):
        text = schedule.strip()
    elif isinstance(schedule, int | float) and not isinstance(schedule, bool):
        text = repr(float(schedule))
    else:
        raise RuleError(
            f"'{path}' has no schedule {schedule!r}", None, "give a text, a named schedule or a number"
        )
    # Raises with a place in the text; comments and line breaks would not fit into an assignment.
    expression(Source(text, f"<{path}>"), path, hypers)
    return ast.unparse(locks.parse(text, mode="eval")) if "\n" in text or "#" in text else text


def _transform(texts: Mapping[str, str], hypers: Mapping[str, Hyper]) -> Program:
    """A transform, in rule text, that assigns its hyperparameters the values of these expressions."""
    names = {n.id for text in texts.values() for n in ast.walk(locks.parse(text)) if isinstance(n, ast.Name)}
    declared = [h for h in hypers.values() if h.name in names or h.name in texts]
    lines = [
        f'"""Schedule of {", ".join(texts)}."""',
        f"hyper({', '.join(f'{h.name}={h.default!r}' for h in declared)})",
        "",
    ]
    if len(texts) == 1:
        lines += [f"{name} = {text}" for name, text in texts.items()]
    else:  # each may read the group's value of another, so none is assigned before all are computed
        lines += [f"{NAME}_{name} = {text}" for name, text in texts.items()]
        lines += [f"{name} = {NAME}_{name}" for name in texts]
    return library.rule(Source("\n".join(lines) + "\n", NAME))
