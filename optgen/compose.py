"""Programs from programs: chaining, other defaults, ascent.

In: programs. Out: one program, by substitution, so that a chain plans and fuses like any rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from optgen.errors import RuleError, Span
from optgen.ir import Fact, Hyper, Node, Op, Program, State, Value, load, node, rewrite, toposort


def chain(*programs: Program) -> Program:
    """One program that runs the given ones in order: transforms of `g`, a rule, transforms after it.

    A transform after the rule sees `u`, the X of the rule's last `p = p - X`, and the value that `p`
    had there; one that assigns `p` or its own state sees the new `p`. `g` is what the rule was given.
    Hyperparameters and states whose names collide get the name of their part in front.

    Raises:
        RuleError: the order makes no sense, or a transform needs a `u` that the rule does not have.
    """
    parts = [part for program in programs for part in (program.parts or (program,))]
    if not parts:
        raise RuleError("a chain needs at least one rule")
    rules = [i for i, part in enumerate(parts) if part.kind == "rule" and not _reads(part, "u")]
    first = rules[0] if rules else len(parts)
    for i, part in enumerate(parts):
        if i < first and part.kind != "before":
            _refuse(part, "stands before the rule, but is a transform that comes after one")
        if i > first and part.kind == "before":
            _refuse(part, "assigns g, so it must come before the rule")
    result = _distinct(parts[0], None)
    for part in parts[1:]:
        result = _join(result, _distinct(part, result))
    name = "_".join(part.name for part in parts)
    return replace(result, name=name, parts=tuple(parts) if len(parts) > 1 else parts[0].parts)


def _refuse(part: Program, why: str) -> NoReturn:
    raise RuleError(f"'{part.name}' {why}")


def _reads(program: Program, name: str) -> Node | None:
    found = (n for n in toposort(program.assigns.values()) if n.op is Op.LOAD and n.value == name)
    return next(found, None)


def _distinct(part: Program, others: Program | None) -> Program:
    """The part with names of its own where they collide with the chain so far."""
    if others is None:
        return part
    hypers = {h: f"{part.name}_{h}" for h in part.hypers if h in others.hypers}
    states = {s: f"{part.name}_{s}" for s in part.states if s in others.states}
    keys = {s.key for s in others.states.values()}
    facts = {text: str(_rename_fact(fact, hypers)) for text, fact in part.facts.items()}

    def rename(n: Node) -> Node | None:
        value = n.value or ""
        if n.op is Op.HYPER and value.split("[")[0] in hypers:
            return node(Op.HYPER, value=hypers[value.split("[")[0]] + value[len(value.split("[")[0]) :])
        if n.op is Op.LOAD and value in states:
            return load(states[value], extent=n.extent)
        if n.op is Op.FACT and facts[value] != value:
            return node(Op.FACT, value=facts[value])
        return None

    renamed = part.map(rename)
    return replace(
        renamed,
        hypers={hypers.get(k, k): Hyper(hypers.get(k, k), h.default) for k, h in part.hypers.items()},
        states={
            states.get(k, k): State(
                states.get(k, k), s.init, s.extent, f"{part.name}_{s.key}" if s.key in keys else s.key
            )
            for k, s in renamed.states.items()
        },
        facts={facts[text]: _rename_fact(fact, hypers) for text, fact in part.facts.items()},
        assigns={states.get(k, k): n for k, n in renamed.assigns.items()},
        modes={m: {states.get(k, k): n for k, n in mode.items()} for m, mode in renamed.modes.items()},
    )


def _rename_fact(fact: Fact, hypers: Mapping[str, str]) -> Fact:
    stem, bracket, rest = fact.subject.partition("[")
    return replace(fact, subject=hypers.get(stem, stem) + bracket + rest)


def _join(first: Program, then: Program) -> Program:
    """Two programs as one, by substituting what the first computes into the second."""
    if first.kind == "before":
        merged = _merge(first, _substitute(then, {load("g"): first.assigns["g"]}))
        own = {k: n for k, n in first.assigns.items() if k != "g"}
        return replace(merged, gradient=_gradient(first), assigns={**merged.assigns, **own})
    inputs = {load("g"): _gradient(first)}
    if first.update:
        inputs[load("u")] = first.update[1]
    elif used := _reads(then, "u"):
        raise RuleError(
            f"'{then.name}' needs the update u, but '{first.name}' has no last statement `p = p - X`",
            then.spans.get(used),
        )
    if "u" not in then.assigns:
        inputs[load("p")] = first.assigns["p"]
        after = _substitute(then, inputs)
        merged = _merge(first, after)
        return replace(merged, assigns={**first.assigns, **after.assigns}, update=first.update)
    assert first.update is not None, f"{then.name} assigns u"
    before, old = first.update
    inputs[load("p")] = before
    after = _substitute(then, inputs)
    new = after.assigns["u"]
    changed = rewrite(first.assigns.values(), _replacing(node(Op.SUB, before, old), node(Op.SUB, before, new)))
    merged = _merge(first, after)
    own = {k: n for k, n in after.assigns.items() if k != "u"}
    assigns = {k: changed[n] for k, n in first.assigns.items()}
    return replace(merged, assigns={**assigns, **own}, update=(before, new))


def _gradient(program: Program) -> Node:
    """The gradient after the transforms before the rule."""
    if program.kind == "before":
        return program.assigns["g"]
    return load("g") if program.gradient is None else program.gradient


def _replacing(old: Node, new: Node):  # type: ignore[no-untyped-def]
    return lambda n: new if n is old else None


def _substitute(program: Program, inputs: Mapping[Node, Node]) -> Program:
    return program.map(inputs.get)


def _merge(a: Program, b: Program) -> Program:
    """The declarations of both; `b`'s assignments and update."""
    for mode in set(a.modes) & set(b.modes):
        raise RuleError(f"'{a.name}' and '{b.name}' both define {mode}()")
    spans: dict[Node, Span] = {**b.spans, **a.spans}
    return replace(
        b,
        doc="\n".join(filter(None, (a.doc, b.doc))),
        sources=a.sources + b.sources,
        hypers={**a.hypers, **b.hypers},
        states={**a.states, **b.states},
        requires=a.requires + b.requires,
        facts={**a.facts, **b.facts},
        modes={**a.modes, **b.modes},
        gradient=a.gradient,
        spans=spans,
        names={**b.names, **a.names},
    )


def complete(program: Program) -> Program:
    """The program itself, where it can be trained with: it assigns `p` and needs no other rule.

    Raises:
        RuleError: it is a transform, which needs a rule beside it.
    """
    example = {"before": "chain({}, adamw)", "after": "chain(adamw, {})"}
    if "p" not in program.assigns:
        raise RuleError(
            f"'{program.name}' is a transform: it does not assign p",
            None,
            f"chain it with a rule, for example {example[program.kind].format(program.name)}",
        )
    if used := _reads(program, "u"):
        raise RuleError(
            "'u' has no value here: it is the update of the rule that a transform comes after",
            program.spans.get(used),
            f"assign u first, or chain the transform: {example['after'].format(program.name)}",
        )
    return program


def with_defaults(program: Program, **defaults: Value | tuple[Value, ...]) -> Program:
    """The program with other defaults for some hyperparameters.

    Raises:
        RuleError: a name is not a hyperparameter of the program.
    """
    hypers = dict(program.hypers)
    for name, value in defaults.items():
        if name not in hypers:
            known = ", ".join(hypers) or "none"
            raise RuleError(f"'{program.name}' has no hyperparameter '{name}'", None, f"it has: {known}")
        old = hypers[name].default
        if isinstance(old, tuple) != isinstance(value, tuple) or isinstance(old, bool) != isinstance(value, bool):
            raise RuleError(f"'{name}' of '{program.name}' cannot be {value!r}", None, f"its default is {old!r}")
        if isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        hypers[name] = Hyper(name, value)
    return replace(program, hypers=hypers)


def with_maximize(program: Program) -> Program:
    """The program with the option `maximize`, which negates the gradient, as in torch.optim."""
    if "maximize" in program.hypers:
        return program
    ascent = Fact("maximize", "is", True)
    g = load("g")
    signed = node(Op.CHOOSE, node(Op.FACT, value=str(ascent)), node(Op.NEG, g), g)
    return replace(
        _substitute(program, {g: signed}),
        hypers={**program.hypers, "maximize": Hyper("maximize", False)},
        facts={**program.facts, str(ascent): ascent},
    )
