"""Comparisons: of numbers, which become nodes, and of options with constants, which become facts.

A comparison in the condition of an `if` becomes a fact, which is known when a kernel is compiled.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import reduce
from typing import Any, cast

from optgen.ir.facts import Fact, Value
from optgen.ir.node import DType, Node, Op, node
from optgen.language.scope import (
    Meaning,
    Option,
)
from optgen.language.values import Values

RELATIONS = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
}
MIRROR = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
COMPARE: dict[str, Callable[[Node, Node], Node]] = {
    "<": lambda a, b: node(Op.LT, a, b),
    "<=": lambda a, b: node(Op.LE, a, b),
    ">": lambda a, b: node(Op.LT, b, a),
    ">=": lambda a, b: node(Op.LE, b, a),
    "==": lambda a, b: node(Op.EQ, a, b),
    "!=": lambda a, b: node(Op.NE, a, b),
}
ONLY_IS = "'is' compares an option with None, True or False"


class Comparisons(Values):
    """Lowers comparisons."""

    def comparison(self, at: ast.Compare) -> Node:
        """A comparison, or a chain of them as `a <= b < c`."""
        sides = [(side, self.look(side)) for side in (at.left, *at.comparators)]
        parts = [self.compare(a, op, b, at) for a, op, b in zip(sides[:-1], at.ops, sides[1:], strict=True)]
        return reduce(lambda a, b: node(Op.AND, a, b), parts)

    def compare(
        self,
        left: tuple[ast.expr, Meaning | str | None],
        op: ast.cmpop,
        right: tuple[ast.expr, Meaning | str | None],
        at: ast.expr,
    ) -> Node:
        """One comparison of two sides, each an expression with its meaning."""
        if type(op) not in RELATIONS:
            raise self.refusal(at, op)
        relation = RELATIONS[type(op)]
        mirrored = MIRROR.get(relation, relation)
        if isinstance(left[1], Option):
            return self.compare_option(left[1].name, relation, right[1], at)
        if isinstance(right[1], Option):
            return self.compare_option(right[1].name, mirrored, left[1], at)
        if relation not in COMPARE:
            raise self.error(ONLY_IS, at, "write == or != between numbers")
        a, b = (self.number(self.as_node(meaning, side), side) for side, meaning in (left, right))
        fact = self.compile_time(a, relation, b) or self.compile_time(b, mirrored, a)
        if fact is not None and self.deciding:
            return self.fact_node(fact)
        return COMPARE[relation](a, b)

    def compile_time(self, a: Node, relation: str, b: Node) -> Fact | None:
        """The fact that a comparison states, where it is of a hyperparameter or `ndim` and a constant."""
        number = self.constant(b)
        if number is None or not (a.op is Op.HYPER or (a.op is Op.SHAPE and a.value == "ndim")):
            return None
        return Fact(cast(str, a.value), relation, _plain(number))

    def compare_option(self, name: str, relation: str, other: Meaning | Value, at: ast.expr) -> Node:
        """A comparison of an option with a constant that it could hold.

        An option whose default is None can hold a number: compared with a value that is no constant, it
        is one.
        """
        default = self.declared.default(name)
        if isinstance(other, Node):
            number = self.constant(other)
            if number is None and default is None and other.dtype is DType.REAL and relation in COMPARE:
                return COMPARE[relation](node(Op.HYPER, value=name), other)
            if number is not None:
                other = bool(number) if other.dtype is DType.BOOL else _plain(number)
        if isinstance(other, Node | Option | tuple):
            raise self.error("an option can be compared with a constant only", at)
        equal = {"==": True, "is": True, "!=": False, "is not": False}.get(relation)
        if isinstance(default, bool):
            if equal is None or not isinstance(other, bool):
                raise self.error(f"'{name}' is True or False", at, f"write `{name}` or `not {name}`")
            equal, other = equal is other, True
        elif isinstance(default, str) and (relation not in ("==", "!=") or not isinstance(other, str)):
            raise self.error(f"'{name}' is a string", at, f"compare it with == or !=: {name} == {default!r}")
        identity = other is None or isinstance(other, bool)
        if not identity and relation not in COMPARE:
            raise self.error(ONLY_IS, at, "write == or !=")
        if not identity and not isinstance(other, str):
            return self.fact_node(Fact(name, relation, other))
        if equal is None:
            raise self.error(f"'{name}' has no order with {other!r}", at, "compare it with == or !=")
        fact = self.fact_node(Fact(name, "is" if identity else "==", other))
        return fact if equal else node(Op.NOT, fact)


def _plain(number: Any) -> float:
    """A constant as facts hold it: an integer where it is one."""
    value = float(number)
    return int(value) if value.is_integer() else value
