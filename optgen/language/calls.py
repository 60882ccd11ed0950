"""Calls of the language's functions: of elements, of values per step, reductions, random numbers."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import reduce
from typing import cast

from optgen.ir.extent import EXTENTS, Extent, join
from optgen.ir.functions import FUNCTIONS, REDUCTION_FUNCTIONS, STEP_FUNCTIONS, Reducer
from optgen.ir.node import Node, const, load, node
from optgen.language.grammar import nearest
from optgen.language.scope import (
    DECLARATIONS,
    NOT_YET,
    RANDOM,
    SPECIAL,
)
from optgen.language.values import Values

PER = ("element", "tensor", "all", "row", "col", "matrix", "unit")
MAX_BLOCK = 1 << 20
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


class Calls(Values):
    """Lowers calls; what a function is made of, `ir.functions` says."""

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
        row = FUNCTIONS.get(name)
        count = row.arguments if row else {"where": 3, **dict.fromkeys(RANDOM, 0)}.get(name, 1)
        if len(at.args) != count:
            plural = "s" if count != 1 else ""
            raise self.error(f"{name}() takes {count} argument{plural}, not {len(at.args)}", at)
        if name in RANDOM:
            return self.random(name, at)
        if row is None:
            return {"where": self.where, "prev": self.prev, "len": self.len}[name](at)
        if name in REDUCTION_FUNCTIONS:
            return self.reduction(name, row, at)
        built = row(*(self.value(a) for a in at.args))
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
        keywords: dict[str, ast.expr] = {}
        for keyword in at.keywords:
            if cast(str, keyword.arg) in keywords:
                raise self.error(f"'{keyword.arg}' is given twice", keyword)
            keywords[cast(str, keyword.arg)] = keyword.value
        if len(keywords) == 2:
            raise self.error("a reduction has axis= or over=, not both", at.keywords[1])
        if "over" in keywords:
            if not isinstance(keywords["over"], ast.Name) or keywords["over"].id != "all":
                raise self.error(
                    f"over={ast.unparse(keywords['over'])} is not known", keywords["over"], "write over=all"
                )
            if self.mode:
                raise self.error(f"{self.mode}() cannot reduce over all tensors", at)
            tag = self.tags.setdefault(tuple(arguments), str(len(self.tags)))
            if extent is Extent.ALL:
                raise self.error(
                    f"{name}() over all tensors needs a value of each, and this is {extent.phrase}", at
                )
            return build(Reducer(extent, Extent.ALL, tag), *arguments)
        if "axis" in keywords:
            return build(Reducer(extent, self.axis(name, keywords["axis"], extent, at)), *arguments)
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
