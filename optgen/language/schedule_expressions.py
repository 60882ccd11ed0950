"""Values for hyperparameters: what may be assigned to one, and single expressions of `t` for one.

In: an expression's syntax tree or its text, and the hyperparameters that it may read. Out: a node with one
value per step, or a `RuleError` at the place.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from optgen.errors import RuleError, Source, Span
from optgen.ir.extent import Extent
from optgen.ir.facts import Fact, Value
from optgen.ir.node import DType, Node, Op, node, toposort
from optgen.ir.program import Hyper
from optgen.language.expressions import Expressions
from optgen.language.grammar import read
from optgen.language.scope import Declared, Meaning, Option, Scope


def scheduled_values(
    expressions: Expressions,
    name: str,
    default: Value | tuple[Value, ...],
    found: Meaning,
    at: ast.AST | Span,
) -> dict[str, Node]:
    """What an assignment to a hyperparameter makes of it, by path: `lr`, or `betas[0]`.

    Raises:
        RuleError: the hyperparameter is an option, or it cannot have such a value.
    """
    if not isinstance(default, tuple):
        return {name: scheduled_value(expressions, name, default, found, at)}
    if not isinstance(found, tuple) or len(found) != len(default):
        help = f"write {name} = ({', '.join(f'{name}[{i}]' for i in range(len(default)))})"
        raise expressions.error(f"'{name}' is a tuple of {len(default)} values", at, help)
    values = {}
    for i, (item, first) in enumerate(zip(found, default, strict=True)):
        path = f"{name}[{i}]"
        if item == Option(path) or item is node(Op.HYPER, value=path):  # it stays as it is
            continue
        values[path] = scheduled_value(expressions, path, first, item, at)
    return values


def scheduled_value(
    expressions: Expressions, path: str, default: Value, found: Meaning, at: ast.AST | Span
) -> Node:
    """The value itself, which must be one number per step for a hyperparameter that is a number."""
    if isinstance(default, bool | str) or default is None:
        what = "a string" if isinstance(default, str) else "an option" if default is None else "True or False"
        raise expressions.error(f"'{path}' is {what} and has no schedule", at, "only a number has one")
    if isinstance(found, tuple):
        raise expressions.error(f"'{path}' is one number, and this is a tuple", at)
    if isinstance(found, Option) or found.dtype is not DType.REAL:
        raise expressions.error(
            f"'{path}' needs a number", at, "turn a condition into one with where(c, 1, 0)"
        )
    if found.extent > Extent.STEP:
        raise expressions.error(f"'{path}' needs one value per step, and this is {found.extent.phrase}", at)
    for n in toposort([found]):
        if n.op is Op.SHAPE or (n.op is Op.FACT and expressions.facts[n.value or ""].subject == "ndim"):
            raise expressions.error(
                f"'{path}' is one value for all tensors of a group, and this depends on the tensor's shape",
                at,
            )
    return found


@dataclass(frozen=True)
class Expression:
    """A schedule's node, its compile-time conditions by their text, the hyperparameters that it reads."""

    node: Node
    facts: Mapping[str, Fact]
    reads: frozenset[str]


def expression(source: Source, path: str, hypers: Mapping[str, Hyper]) -> Expression:
    """What a schedule's text says.

    Args:
        source: one expression of `t` and of hyperparameters.
        path: the hyperparameter whose value it is, `lr` or `betas[0]`.
        hypers: the hyperparameters that it may read.

    Raises:
        RuleError: it is no such expression; the error shows the place in its text.
    """
    if not source.text.strip():
        raise RuleError("the schedule is empty", Span(source, 1, 1), f"write an expression, such as {path}")
    tree = read(source)
    expressions = Expressions(source, Declared(hypers=dict(hypers)))
    match tree.body:
        case [ast.Expr(value=at)]:
            pass
        case [ast.Assign(value=value)]:
            raise expressions.error(
                "a schedule is one expression", tree.body[0], f"write {ast.unparse(value)}"
            )
        case [_, second, *_]:
            raise expressions.error("a schedule is one expression", second)
        case [other]:
            raise expressions.error("a schedule is one expression", other)
    expressions.scope = Scope(expressions.declared.start())
    name, _, item = path.partition("[")
    default = hypers[name].default
    first = default[int(item[:-1])] if item and isinstance(default, tuple) else default
    if isinstance(first, tuple):
        raise expressions.error(f"'{name}' is a tuple of {len(first)} values", at, f"schedule {name}[0]")
    try:
        found = scheduled_value(expressions, path, first, expressions.value(at), at)
    except RecursionError:  # the caller itself stands deep in the stack
        raise RuleError("Python's stack is too small for this schedule", expressions.here) from None
    return Expression(found, expressions.facts, frozenset(expressions.used))
