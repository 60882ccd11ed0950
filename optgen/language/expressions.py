"""Expressions of a rule to nodes: the walk over one syntax tree, node by node, against what is listed here.

In: an expression's syntax tree and the scope it stands in. Out: a node, or a `RuleError` at the place.
"""

from __future__ import annotations

import ast
import math
from functools import reduce
from typing import Any, cast

from optgen.ir.extent import Extent
from optgen.ir.functions import FUNCTIONS, power
from optgen.ir.node import DType, Node, Op, const, node
from optgen.language.calls import Calls
from optgen.language.comparisons import Comparisons
from optgen.language.grammar import nearest
from optgen.language.scope import (
    NOT_YET,
    RANDOM,
    SPECIAL,
    Item,
    Meaning,
    Option,
)

BINARY = {
    ast.Add: Op.ADD,
    ast.Sub: Op.SUB,
    ast.Mult: Op.MUL,
    ast.Div: Op.DIV,
    ast.Mod: Op.MOD,
    ast.Pow: Op.POW,
}
OTHER_NAMES = {"grad": "g", "gradient": "g", "param": "p", "params": "p", "step": "t"}


class Expressions(Comparisons, Calls):
    """Lowers expressions, in the scope that the statements before them made."""

    def look(self, at: ast.expr) -> Meaning | str | None:
        """What an expression means: a node, an option, a tuple, or a string or None to compare with."""
        self.grow(at)
        outer, self.here = self.here, self.span(at)
        meaning = self.meaning(at)
        if isinstance(meaning, Node):
            self.make(meaning)
            if meaning.op is Op.LOAD:
                self.loaded.add(cast(str, meaning.value))
        self.here = outer
        return meaning

    def meaning(self, at: ast.expr) -> Meaning | str | None:
        """One line for each kind of expression that the language has; anything else is refused by name."""
        match at:
            case ast.Constant(value=bool() as flag):
                return const(flag, DType.BOOL)
            case ast.Constant(value=int() | float()):
                return const(self.literal(at))
            case ast.Constant(value=str() | None as value):
                return value
            case ast.Constant():
                raise self.error(f"{ast.unparse(at)} is not a number of the rule language", at)
            case ast.Name(id=name):
                return self.name(name, at)
            case ast.Tuple(elts=[]):
                raise self.error("a tuple needs at least one item", at)
            case ast.Tuple(elts=elements):
                return tuple(self.item(e) for e in elements)
            case ast.Subscript(value=value, slice=item):
                items = self.look(value)
                if not isinstance(items, tuple):
                    raise self.error("only a tuple or a state with copies has an index", at)
                return items[self.index(item, len(items))]
            case ast.BinOp():
                return self.binary(at)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if (
                not isinstance(value, bool)
            ):
                return const(-self.literal(at.operand))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return node(Op.NEG, self.value(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return node(Op.NOT, self.condition(operand))
            case ast.BoolOp(op=op, values=values):
                kind = Op.AND if isinstance(op, ast.And) else Op.OR
                return reduce(lambda a, b: node(kind, a, b), [self.condition(v) for v in values])
            case ast.Compare():
                return self.comparison(at)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.select(test, body, orelse, at)
            case ast.Call():
                return self.call(at)
            case ast.UnaryOp(op=op):
                raise self.refusal(at, op)
            case _:
                raise self.refusal(at)

    def literal(self, at: ast.expr) -> float:
        """The value of an `ast.Constant` that holds a number."""
        number = cast(ast.Constant, at).value
        try:
            value = float(cast(Any, number))
        except OverflowError:
            value = math.inf
        if math.isinf(value):
            raise self.error("the number is too large for a float", at, "write inf for infinity")
        return value

    def name(self, name: str, at: ast.expr) -> Meaning:
        """What a name means here."""
        self.check_mode(name, at)
        if name in self.declared.hypers or name in self.declared.inputs:
            self.used.add(name)
        if name in self.scope.names:
            return self.scope.names[name]
        if name in FUNCTIONS or name in SPECIAL or name in RANDOM:
            raise self.error(f"'{name}' is a function", at, f"call it: {name}(…)")
        if name in NOT_YET:
            raise self.error(f"{name}() is not yet supported", at)
        other = OTHER_NAMES.get(name)
        known = (n for n in self.scope.names if not (self.mode and n in ("g", "u")))
        raise self.error(f"unknown name '{name}'", at, f"write {other}" if other else nearest(name, known))

    def item(self, at: ast.expr) -> Item:
        """What one item of a tuple means."""
        meaning = self.look(at)
        if isinstance(meaning, tuple):
            raise self.error("a tuple holds numbers, not tuples", at)
        return meaning if isinstance(meaning, Option) else self.as_node(meaning, at)

    def binary(self, at: ast.BinOp) -> Node:
        """Arithmetic on two numbers."""
        if type(at.op) not in BINARY:
            raise self.refusal(at, at.op)
        op = BINARY[type(at.op)]
        a, b = self.value(at.left), self.value(at.right)
        known = self.constant(b)
        if op is Op.MOD and max(a.extent, b.extent) > Extent.STEP:
            raise self.error("'%' works on values per step", at, "on elements write x - floor(x/n)*n")
        if known is not None and (known < 0 if op is Op.POW else known == 0 and op in (Op.DIV, Op.MOD)):
            divided = self.constant(a)
            if divided is not None and (op is not Op.POW or divided == 0):
                raise self.error("division by zero", at)
        if op is Op.POW:
            return power(a, b if known is None else const(known))
        return node(op, a, b)
