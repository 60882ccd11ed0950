"""Expressions of a rule to nodes: the walk over one syntax tree, node by node, against what is listed here.

In: an expression's syntax tree and the scope it stands in. Out: a node, or a `RuleError` at the place.
A comparison in the condition of an `if` becomes a fact, which is known when a kernel is compiled.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from functools import reduce
from typing import Any, cast

from optgen.ir.extent import EXTENTS, Extent, join
from optgen.ir.facts import Fact, Value
from optgen.ir.functions import REDUCTION_FUNCTIONS, STEP_FUNCTIONS, Reducer, power
from optgen.ir.node import DType, Node, Op, const, load, node
from optgen.language.grammar import nearest
from optgen.language.scope import (
    DECLARATIONS,
    FUNCTIONS,
    NOT_YET,
    RANDOM,
    SPECIAL,
    Context,
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
PER = ("element", "tensor", "all", "row", "col", "matrix", "unit")
MAX_BLOCK = 1 << 20
ONLY_IS = "'is' compares an option with None, True or False"
OTHER_NAMES = {"grad": "g", "gradient": "g", "param": "p", "params": "p", "step": "t"}
OTHER_FUNCTIONS = {
    "max": "maximum",
    "min": "minimum",
    "clamp": "clip",
    "fabs": "abs",
    "pow": "`x**y`",
    "square": "`x**2`",
    "mod": "`x % y`",
    "ceil": "-floor(-x)",
}


class Expressions(Context):
    """Lowers expressions, in the scope that the statements before them made."""

    def value(self, at: ast.expr) -> Node:
        """Lower an expression that must be a number."""
        return self.number(self.as_node(self.look(at), at), at)

    def condition(self, at: ast.expr) -> Node:
        """Lower an expression that must be a condition."""
        found = self.as_node(self.look(at), at)
        if found.dtype is not DType.BOOL:
            raise self.error(
                "a condition is needed here, and this is a number", at, "compare it: x > 0, x != 0"
            )
        return found

    def decision(self, at: ast.expr) -> Node:
        """Lower a condition that must be known when the kernel is compiled."""
        outer, self.deciding = self.deciding, True
        condition = self.condition(at)
        self.deciding = outer
        if condition.extent > Extent.CONST:
            raise self.error(
                "`if` chooses at compile time, and this condition is known only at run time",
                at,
                "write `a if condition else b` or where(condition, a, b)",
            )
        return condition

    def integer(self, at: ast.expr, what: str) -> int:
        """The value of an expression that must be a constant integer."""
        found = self.value(at)
        number = self.constant(found)
        if number is None:
            help = "hyperparameters are run-time values" if found.extent is Extent.STEP else None
            raise self.error(f"{what} needs a constant", at, help)
        if not math.isfinite(number) or number != int(number):
            raise self.error(f"{what} needs an integer, not {float(number):g}", at)
        return int(number)

    def index(self, at: ast.expr, length: int) -> int:
        """The value of an index into a tuple or into the copies of a state."""
        index = self.integer(at, "an index")
        if not 0 <= index < length:
            raise self.error(f"index {index} is outside 0 to {length - 1}", at)
        return index

    def number(self, found: Node, at: ast.expr) -> Node:
        """The node itself, which must be a number."""
        if found.dtype is DType.BOOL:
            raise self.error(
                "a number is needed here, and this is a condition", at, "write where(condition, 1, 0)"
            )
        return found

    def as_node(self, meaning: Meaning | str | None, at: ast.expr) -> Node:
        """A meaning as a number or a condition: a boolean option is a condition, one of None a number."""
        if isinstance(meaning, Node):
            return meaning
        if isinstance(meaning, tuple):
            raise self.error("a tuple cannot be used as a number", at, "unpack it: `a, b = name`")
        if not isinstance(meaning, Option):
            raise self.error(f"{meaning!r} is not a number", at)
        default = self.declared.default(meaning.name)
        if isinstance(default, bool):
            return self.fact_node(Fact(meaning.name, "is", True))
        if default is None:
            return self.make(node(Op.HYPER, value=meaning.name))
        raise self.error(
            f"'{meaning.name}' is a string, not a number", at, f"compare it: {meaning.name} == {default!r}"
        )

    # What an expression means

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

    def check_mode(self, name: str, at: ast.AST) -> None:
        """Refuse what train() and eval() do not have."""
        if self.mode and (name in ("g", "u") or name in self.declared.inputs):
            raise self.error(f"{self.mode}() has no '{name}'", at, "only p and states exist there")

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

    def select(self, test: ast.expr, body: ast.expr, orelse: ast.expr, at: ast.expr) -> Node:
        """`body if test else orelse`: a choice at compile time where the condition is known then."""
        condition = self.condition(test)
        a, b = self.as_node(self.look(body), body), self.as_node(self.look(orelse), orelse)
        if a.dtype is not b.dtype:
            raise self.error("one side is a number and the other a condition", at)
        decided = self.constant(condition)
        if decided is not None:
            return a if decided else b
        return node(Op.CHOOSE if condition.extent is Extent.CONST else Op.WHERE, condition, a, b)

    # Comparisons

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

    # Calls

    def call(self, at: ast.Call) -> Node:
        """A call of one of the language's functions."""
        func = at.func
        if isinstance(func, ast.Attribute) and func.attr in FUNCTIONS:
            raise self.error(
                f"attribute '.{func.attr}' is not part of the rule language", func, f"write {func.attr}(…)"
            )
        if isinstance(func, ast.Attribute):
            raise self.refusal(func)
        if not isinstance(func, ast.Name):
            raise self.error("only the functions of the language can be called", at)
        name = func.id
        if name in NOT_YET:
            raise self.error(f"{name}() is not yet supported", at)
        if name not in FUNCTIONS and name not in RANDOM and name not in ("where", "prev", "len"):
            self.unknown_function(name, at)
        for keyword in at.keywords:
            if keyword.arg in ("axis", "over") and name in REDUCTION_FUNCTIONS:
                continue
            what = f"argument '{keyword.arg}'" if keyword.arg else "'**'"
            raise self.error(f"{name}() takes no {what}", keyword)
        count, build = FUNCTIONS.get(name, ({"where": 3, **dict.fromkeys(RANDOM, 0)}.get(name, 1), None))
        if len(at.args) != count:
            plural = "s" if count != 1 else ""
            raise self.error(f"{name}() takes {count} argument{plural}, not {len(at.args)}", at)
        if name in RANDOM:
            return self.random(name, at)
        if build is None:
            return {"where": self.where, "prev": self.prev, "len": self.len}[name](at)
        if name in REDUCTION_FUNCTIONS:
            return self.reduction(name, build, at)
        built = build(*(self.value(a) for a in at.args))
        if name in STEP_FUNCTIONS and built.extent > Extent.STEP:
            raise self.error(f"{name}() works on values per step, and this is {built.extent.phrase}", at)
        return built

    def unknown_function(self, name: str, at: ast.Call) -> None:
        """Report a name that is called but is no function."""
        if name in DECLARATIONS or name == "range":
            raise self.error(f"{name}() cannot stand in an expression", at)
        if name in self.scope.names:
            raise self.error(f"'{name}' is not a function", at.func, f"to multiply, write {name}*(…)")
        other = OTHER_FUNCTIONS.get(name)
        help = f"write {other}" if other else nearest(name, [*FUNCTIONS, *SPECIAL])
        raise self.error(f"unknown function '{name}'", at.func, help)

    def random(self, name: str, at: ast.Call) -> Node:
        """A call of normal() or uniform(): a number of its own for each element."""
        if self.mode:
            raise self.error(f"{self.mode}() has no random numbers", at)
        self.draws += 1
        return self.make(node(RANDOM[name], value=str(self.draws - 1)))

    def reduction(self, name: str, build: Callable[..., Node], at: ast.Call) -> Node:
        """A reduction over the tensor, over what `axis` says, or over all tensors."""
        counts = name in ("sum", "mean")  # of a condition: how often it holds
        arguments = [self.as_node(self.look(a), a) if counts else self.value(a) for a in at.args]
        extent = reduce(join, (a.extent for a in arguments))
        settings: dict[str, ast.expr] = {}
        for keyword in at.keywords:
            if cast(str, keyword.arg) in settings:
                raise self.error(f"'{keyword.arg}' is given twice", keyword)
            settings[cast(str, keyword.arg)] = keyword.value
        if len(settings) == 2:
            raise self.error("a reduction has axis= or over=, not both", at.keywords[1])
        if "over" in settings:
            if not isinstance(settings["over"], ast.Name) or settings["over"].id != "all":
                raise self.error(
                    f"over={ast.unparse(settings['over'])} is not known", settings["over"], "write over=all"
                )
            if self.mode:
                raise self.error(f"{self.mode}() cannot reduce over all tensors", at)
            tag = self.tags.setdefault(tuple(arguments), str(len(self.tags)))
            if extent is Extent.ALL:
                raise self.error(
                    f"{name}() over all tensors needs a value of each, and this is {extent.phrase}", at
                )
            return build(Reducer(extent, Extent.ALL, tag), *arguments)
        if "axis" in settings:
            return build(Reducer(extent, self.axis(name, settings["axis"], extent, at)), *arguments)
        if extent <= Extent.TENSOR:
            raise self.error(f"{name}() needs a value per element, and this is {extent.phrase}", at)
        return build(Reducer(extent, Extent.TENSOR), *arguments)

    def axis(self, name: str, at: ast.expr, extent: Extent, call: ast.Call) -> Extent:
        """What a reduction with `axis` leaves: a value per row for -1, per column for -2, or as named."""
        try:
            along = {-1: "row", -2: "col"}.get(ast.literal_eval(at))
        except ValueError:
            along = None
        if along is None and not isinstance(at, ast.Name | ast.Call):
            raise self.error(
                f"axis={ast.unparse(at)} is not known", at, "write axis=-1, axis=-2, axis=unit, axis=dim(k)"
            )
        target = EXTENTS[along.upper()] if along else self.extent(at)
        if not target.sliced or target is Extent.MATRIX:
            raise self.error(
                f"axis={ast.unparse(at)} is not known", at, "write axis=-1, axis=-2, axis=unit, axis=dim(k)"
            )
        if extent is Extent.ELEMENT:
            return target
        if along and (extent, target) in ((Extent.ROW, Extent.COL), (Extent.COL, Extent.ROW)):
            return Extent.MATRIX
        raise self.error(
            f"{name}() along this axis needs a value per element, and this is {extent.phrase}", call
        )

    def extent(self, at: ast.expr) -> Extent:
        """What `per=` and `axis=` name: `row`, `dim(0)`, `block(64)`."""
        match at:
            case ast.Name(id=name) if name in PER:
                return EXTENTS[name.upper()]
            case ast.Call(func=ast.Name(id="dim"), args=[size], keywords=[]):
                k = self.integer(size, "dim()")
                if not -1 <= k < 8:
                    raise self.error("dim() takes a dimension from 0 to 7, or -1 for the last", size)
                return Extent.dim(k)
            case ast.Call(func=ast.Name(id="block"), args=[size], keywords=[]):
                n = self.integer(size, "block()")
                if not 1 <= n <= MAX_BLOCK:
                    raise self.error(f"block() takes a size from 1 to {MAX_BLOCK}", size)
                return Extent.block(n)
        known = f"{', '.join(PER)}, dim(k) or block(n)"
        raise self.error(f"per={ast.unparse(at)} is not an extent", at, f"write one of {known}")

    def where(self, at: ast.Call) -> Node:
        """where(c, a, b), which is `a if c else b`."""
        test, body, orelse = at.args
        return self.select(test, body, orelse, at)

    def len(self, at: ast.Call) -> Node:
        """How many items a tuple has, or how many copies a state."""
        items = self.look(at.args[0])
        if not isinstance(items, tuple):
            raise self.error("len() needs a tuple or a state with copies", at.args[0])
        return const(len(items))

    def prev(self, at: ast.Call) -> Node:
        """The value that p, g or a state has when the step begins."""
        argument = at.args[0]
        name = self.stored(argument)
        if name not in ("p", "g") and name not in self.declared.states:
            help = f"write prev({name}[0])" if name in self.declared.copies else None
            raise self.error("prev() needs a state, p or g", argument, help)
        self.check_mode(name, argument)
        state = self.declared.states.get(name)
        return load(name, extent=Extent.ELEMENT if state is None else state.extent)

    def stored(self, at: ast.expr) -> str:
        """The full name that a name or an indexed state stands for, `m` or `v[1]`; "" for others."""
        match at:
            case ast.Name(id=name):
                return name
            case ast.Subscript(value=ast.Name(id=stem), slice=item) if stem in self.declared.copies:
                return f"{stem}[{self.index(item, self.declared.copies[stem])}]"
        return ""


def _plain(number: Any) -> float:
    """A constant as facts hold it: an integer where it is one."""
    value = float(number)
    return int(value) if value.is_integer() else value
