"""Chaining: transforms of the gradient, a rule and transforms of its update as one program.

In: programs. Out: one program, by substitution, so that a chain plans and fuses like any rule.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from optgen.errors import RuleError
from optgen.ir.extent import Extent
from optgen.ir.node import REDUCTIONS, Node, Op, load, node
from optgen.ir.program import Hyper, Program, State
from optgen.passes.substitution import (
    at_run_time,
    either,
    gradient_of,
    merge,
    reads,
    substituted,
    unless,
    with_modes,
)

Names = Mapping[str, str]


def chain(*programs: Program) -> Program:
    """One program that runs the given ones in order: transforms of `g`, a rule, transforms after it.

    A transform after the rule sees `u`, the X of the rule's last `p = p - X`, and the value that `p`
    had there; one that assigns `p` or its own state sees the new `p`, also as `prev(p)`. `g` is what the
    rule was given. A chain among the programs counts as its parts, with the defaults that it has now.
    Hyperparameters, states and keys whose names are taken get the name of their part in front. A transform
    that assigns hyperparameters shares those that a part after it has by the same name: that part reads
    the assigned value, and the group has the value that the transform reads.

    Raises:
        RuleError: the order makes no sense, or a transform needs a `u` that the rule does not have.
    """
    parts = [part for program in programs for part in _parts(program)]
    if not parts:
        raise RuleError("a chain needs at least one rule")
    rules = [i for i, part in enumerate(parts) if part.kind == "rule" and not reads(part, "u")]
    first = rules[0] if rules else len(parts)
    if len(parts) > 1 and all(map(_only_schedules, parts[:-1])):  # a transform with its schedules
        first = len(parts) - 1
    for i, part in enumerate(parts):
        if i < first and part.kind != "before":
            refuse(part, "stands before the rule, but is a transform that comes after one")
        if i > first and part.kind == "before" and not _only_schedules(part):
            refuse(part, "assigns g, so it must come before the rule")
    if rules:
        _check_schedules(parts)
    renamed = [
        _rename(part, hypers, i)
        for i, (part, hypers) in enumerate(zip(parts, _hyper_names(parts), strict=True))
    ]
    result = renamed[0]
    for part in renamed[1:]:
        result = _join(result, _own_states(part, result))
    name = "_".join(part.name for part in parts)
    return replace(result, name=name, parts=tuple(parts) if len(parts) > 1 else ())


def refuse(part: Program, why: str) -> NoReturn:
    """Say why a program cannot stand where it does."""
    raise RuleError(f"'{part.name}' {why}")


def _parts(program: Program) -> list[Program]:
    """What a chain was made of, each part with the defaults that the chain has for it."""
    if not program.parts:
        return [program]
    found = []
    for part, names in zip(program.parts, _hyper_names(program.parts), strict=True):
        hypers = {h: Hyper(h, program.hypers[names[h]].default) for h in part.hypers}
        found.append(replace(part, hypers=hypers))
    return found


# Names of their own


def _free(name: str, prefix: str, taken: Container[str]) -> str:
    """The name, with as many prefixes as it takes for it to be free."""
    while name in taken:
        name = f"{prefix}_{name}"
    return name


def _hyper_names(parts: Sequence[Program]) -> list[dict[str, str]]:
    """For each part of a chain: its hyperparameters, and what they are called in the chain."""
    taken: set[str] = set()
    tables: list[dict[str, str]] = []
    owners = [_owners(parts, i) for i in range(len(parts))]
    for part, others in zip(parts, owners, strict=True):
        table: dict[str, str] = {}
        for h in part.hypers:
            if h in others:
                continue
            if h == "seed":  # of all random numbers together
                table[h] = h
                continue
            table[h] = _free(h, part.name, taken | (part.hypers.keys() - {h}) if h in taken else ())
            taken.add(table[h])
        tables.append(table)
    for table, others in reversed([*zip(tables, owners, strict=True)]):
        table |= {h: tables[j][h] for h, j in others.items()}
    return tables


def _rename(part: Program, names: Names, place: int) -> Program:
    """The part with other names for its hyperparameters; its random numbers and totals are its own."""
    facts = {text: replace(fact, subject=_path(fact.subject, names)) for text, fact in part.facts.items()}

    def change(n: Node) -> Node | None:
        if n.op is Op.HYPER:
            return node(Op.HYPER, value=_path(n.value or "", names))
        if place and (n.op in (Op.NORMAL, Op.UNIFORM) or (n.op in REDUCTIONS and n.extent is Extent.ALL)):
            return node(n.op, *n.args, value=f"{place}.{n.value}", extent=n.extent)
        return node(Op.FACT, value=str(facts[n.value or ""])) if n.op is Op.FACT else None

    schedules = {_path(path, names): n for path, n in part.schedules.items()}
    return replace(
        replace(part, schedules=schedules).map(change),
        hypers={names[h]: Hyper(names[h], hyper.default) for h, hyper in part.hypers.items()},
        facts={str(fact): fact for fact in facts.values()},
    )


def _path(path: str, names: Names) -> str:
    """`betas[0]` with another name for `betas`."""
    stem, bracket, rest = path.partition("[")
    return names.get(stem, stem) + bracket + rest


def _own_states(part: Program, others: Program) -> Program:
    """The part with other names and keys for its states where the chain so far has them already."""
    keys = {s.key for s in others.states.values()}
    taken = others.states.keys() | part.states.keys()
    names: dict[str, str] = {}
    states: dict[str, State] = {}
    for s, state in part.states.items():
        names[s] = _free(f"{part.name}_{s}", part.name, taken) if s in others.states else s
        group, key = ("group:", state.key[6:]) if state.extent is Extent.ALL else ("", state.key)
        while group + key in keys:
            key = f"{part.name}_{key}"
        key = group + key
        states[names[s]] = replace(state, name=names[s], key=key)
        taken.add(names[s])
        keys.add(key)

    def change(n: Node) -> Node | None:
        if n.op is Op.LOAD and n.value in names:
            return load(names[n.value], extent=n.extent)
        return None

    def named(assigns: Mapping[str, Node]) -> dict[str, Node]:
        return {names.get(k, k): n for k, n in assigns.items()}

    renamed = replace(part, states=states).map(change)
    modes = {mode: named(assigns) for mode, assigns in renamed.modes.items()}
    return replace(renamed, assigns=named(renamed.assigns), modes=modes)


# Schedules


def _owners(parts: Sequence[Program], place: int) -> dict[str, int]:
    """Hyperparameters that a part with schedules shares, and the part after it whose they are."""
    part = parts[place]
    found: dict[str, int] = {}
    for h in part.hypers if part.schedules else ():
        owner = next((j for j in range(place + 1, len(parts)) if h in parts[j].hypers), None)
        if owner is not None and h != "seed":
            found[h] = owner
    return found


def places(program: Program) -> dict[str, tuple[int, str]]:
    """For each hyperparameter: which part of the chain has it, and what it is called there."""
    found: dict[str, tuple[int, str]] = {}
    for i, names in enumerate(_hyper_names(program.parts or (program,))):
        found |= {name: (i, h) for h, name in names.items()}  # a shared one is the later part's
    return found


def with_schedules(program: Program, schedules: Mapping[int, Program]) -> Program:
    """The chain with transforms that assign hyperparameters.

    Args:
        program: a rule or a chain.
        schedules: by the index of a part the transform that comes right before it.

    Raises:
        RuleError: as of `chain`.
    """
    found: list[Program] = []
    for i, part in enumerate(_parts(program)):
        found += [schedules[i], part] if i in schedules else [part]
    return chain(*found)


def _check_schedules(parts: Sequence[Program]) -> None:
    """Refuse a schedule of a hyperparameter that no part after it has, or that is of another kind there."""
    for i, part in enumerate(parts):
        owners = _owners(parts, i)
        for path, value in part.schedules.items():
            name = path.partition("[")[0]
            if name not in owners:
                known = dict.fromkeys(h for later in parts[i + 1 :] for h in later.hypers)
                raise RuleError(
                    f"'{part.name}' assigns '{name}', which no part after it has",
                    part.spans.get(value),
                    f"the hyperparameters after it: {', '.join(known) or 'none'}",
                )
        for h, j in owners.items():
            mine, theirs = part.hypers[h].default, parts[j].hypers[h].default
            if not same_kind(mine, theirs):
                raise RuleError(
                    f"'{h}' is {mine!r} in '{part.name}', but {theirs!r} in '{parts[j].name}'",
                    None,
                    "declare it with the same kind of default",
                )


def _only_schedules(part: Program) -> bool:
    """Whether all that a part does is to assign hyperparameters."""
    return bool(part.schedules) and part.skip is None and part.assigns == {"g": load("g")}


# Two programs as one


def _join(first: Program, then: Program) -> Program:
    """Two programs as one, by substituting what the first computes into the second."""
    scheduled = {node(Op.HYPER, value=path): n for path, n in first.schedules.items()}
    if scheduled:
        then = with_modes(at_run_time(then, first.schedules), scheduled)
    counted = {} if first.count is None else {node(Op.COUNT): first.count}
    if first.kind != "before" and _only_schedules(then):
        merged = merge(first, substituted(then, scheduled))
        return replace(merged, assigns=first.assigns, update=first.update, skip=first.skip, count=first.count)
    if first.kind == "before":
        inputs = {load("g"): first.assigns["g"], **scheduled, **counted}
        merged = merge(first, unless(first.skip, substituted(then, inputs)))
        own = {k: n for k, n in first.assigns.items() if k != "g"}
        skip = either(first.skip, merged.skip)
        return replace(merged, gradient=gradient_of(first), assigns={**merged.assigns, **own}, skip=skip)
    inputs = {load("g"): gradient_of(first), **scheduled, **counted}
    if first.update:
        inputs[load("u")] = first.update[1]
    elif used := reads(then, "u"):
        raise RuleError(
            f"'{then.name}' needs the update u, but '{first.name}' has no last statement `p = p - X`",
            then.spans.get(used),
        )
    if "u" not in then.assigns:
        inputs[load("p")] = first.assigns["p"]
        after = unless(first.skip, substituted(then, inputs))
        assigns = {**first.assigns, **after.assigns}
        return replace(merge(first, after), assigns=assigns, update=first.update, skip=first.skip)
    if first.update is None:
        raise RuleError(f"'{then.name}' assigns u, but '{first.name}' has no last statement `p = p - X`")
    before, old = first.update
    inputs[load("p")] = before
    after = unless(first.skip, substituted(then, inputs))
    new = after.assigns["u"]
    own = {k: n for k, n in after.assigns.items() if k != "u"}
    changed = substituted(first, {node(Op.SUB, before, old): node(Op.SUB, before, new)})
    assigns = {**changed.assigns, **own}
    return replace(merge(changed, after), assigns=assigns, update=(before, new), skip=first.skip)


# One program


def complete(program: Program) -> Program:
    """The program itself, where it can be trained with: it assigns `p` and needs no other rule.

    Raises:
        RuleError: it is a transform, which needs a rule beside it.
    """
    if "p" not in program.assigns:
        raise RuleError(
            f"'{program.name}' is a transform: it does not assign p",
            None,
            f"chain it with a rule, for example {example(program.kind, program.name)}",
        )
    if used := reads(program, "u"):
        raise RuleError(
            "'u' has no value here: it is the update of the rule that a transform comes after",
            program.spans.get(used),
            f"assign u first, or chain the transform: {example('after', program.name)}",
        )
    return program


def example(kind: str, name: str) -> str:
    """How a transform is chained, by the place it has: before the rule or after it."""
    return f"chain({name}, adamw)" if kind == "before" else f"chain(adamw, {name})"


def same_kind(value: object, old: object) -> bool:
    """Whether a value can stand for a default: a number for a number or None, an option for an option."""
    if isinstance(old, tuple):
        return isinstance(value, tuple) and len(value) == len(old) and all(map(same_kind, value, old))
    if isinstance(old, bool | str):
        return type(value) is type(old)
    return (value is None and old is None) or (isinstance(value, int | float) and not isinstance(value, bool))
