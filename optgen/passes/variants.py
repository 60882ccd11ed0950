"""The same rule otherwise: with other defaults, for ascent, or as a transform of the gradient."""

from __future__ import annotations

from dataclasses import replace

from optgen.errors import RuleError
from optgen.ir.facts import Fact, Value
from optgen.ir.node import Node, Op, const, load, node, toposort
from optgen.ir.program import Hyper, Program
from optgen.passes.chain import refuse, same_kind
from optgen.passes.substitution import substituted


def as_transform(program: Program) -> Program:
    """A rule as a transform of g: what it would take from p is the gradient of what comes after it.

    Transforms stay what they are.

    Raises:
        RuleError: it has `train()` or `eval()`, which mean nothing where p does not follow.
    """
    if program.kind != "rule":
        return program
    if program.modes:
        refuse(program, "has train() and eval(), and so must come last")
    assigns = {"g": _loss(program.assigns["p"]), **{k: n for k, n in program.assigns.items() if k != "p"}}
    return replace(program, assigns=assigns, update=None, gradient=None, parts=())


def _loss(new: Node) -> Node:
    """What `p` loses on its way to a new value.

    It is read from `p = p - X`, `p = p + X` and `p = p*(1 - w)`, also within choices, so that nothing is
    rounded twice; after any other statement it is the difference of the two values.
    """
    old = load("p")
    lost: dict[Node, Node | None] = {old: None}  # None: nothing yet
    for n in toposort([new]):
        if not n.args:
            continue
        first, rest = n.args[0], n.args[-1]
        if n.op in (Op.WHERE, Op.CHOOSE) and n.args[1] in lost and rest in lost:
            sides = (lost[side] or const(0.0) for side in n.args[1:])
            lost[n] = node(n.op, first, *sides)
        elif first in lost and n.op is Op.SUB:
            lost[n] = _sum(lost[first], rest)
        elif first in lost and n.op is Op.ADD:
            lost[n] = _sum(lost[first], node(Op.NEG, rest))
        elif first in lost and n.op is Op.MUL and rest.op is Op.SUB and rest.args[0] is const(1.0):
            lost[n] = _sum(lost[first], node(Op.MUL, first, rest.args[1]))
    found = lost.get(new)
    return node(Op.SUB, old, new) if found is None else found


def _sum(a: Node | None, b: Node) -> Node:
    return b if a is None else node(Op.ADD, a, b)


def with_defaults(program: Program, **defaults: Value | tuple[Value, ...]) -> Program:
    """The program with other defaults for some hyperparameters.

    Args:
        program: a rule or a chain; it stays as it is.
        **defaults: values of the kind that the present defaults are, for a tuple as many.

    Raises:
        RuleError: a name is not a hyperparameter of the program, or its value is of another kind.
    """
    hypers = dict(program.hypers)
    for name, value in defaults.items():
        if name not in hypers:
            known = ", ".join(hypers) or "none"
            raise RuleError(f"'{program.name}' has no hyperparameter '{name}'", None, f"it has: {known}")
        old = hypers[name].default
        if not same_kind(value, old):
            raise RuleError(
                f"'{name}' of '{program.name}' cannot be {value!r}", None, f"its default is {old!r}"
            )
        hypers[name] = Hyper(name, tuple(map(_plain, value)) if isinstance(value, tuple) else _plain(value))
    return replace(program, hypers=hypers)


def _plain(value: Value) -> Value:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def with_maximize(program: Program) -> Program:
    """The program with the option `maximize`, which negates the gradient, as in torch.optim."""
    if "maximize" in program.hypers:
        return program
    ascent = Fact("maximize", "is", True)
    g = load("g")
    signed = node(Op.CHOOSE, node(Op.FACT, value=str(ascent)), node(Op.NEG, g), g)
    return replace(
        substituted(program, {g: signed}),
        hypers={**program.hypers, "maximize": Hyper("maximize", False)},
        facts={**program.facts, str(ascent): ascent},
    )
