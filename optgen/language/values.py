"""What every part of an expression is asked for: a number, a condition, a constant.

In: an expression's syntax tree and the scope it stands in. Out: a node of the kind that is needed, or a
`RuleError` at the place.
"""

from __future__ import annotations

import ast
import math

from optgen.ir.extent import Extent
from optgen.ir.facts import Fact
from optgen.ir.node import DType, Node, Op, node
from optgen.language.scope import (
    Context,
    Meaning,
    Option,
)


class Values(Context):
    """Looks at expressions, and says what is wrong where they are of another kind than is needed."""

    def look(self, at: ast.expr) -> Meaning | str | None:
        """What an expression means: a node, an option, a tuple, or a string or None to compare with."""
        raise NotImplementedError

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

    def check_mode(self, name: str, at: ast.AST) -> None:
        """Refuse what train() and eval() do not have."""
        if self.mode and (name in ("g", "u") or name in self.declared.inputs):
            raise self.error(f"{self.mode}() has no '{name}'", at, "only p and states exist there")

    def stored(self, at: ast.expr) -> str:
        """The full name that a name or an indexed state stands for, `m` or `v[1]`; "" for others."""
        match at:
            case ast.Name(id=name):
                return name
            case ast.Subscript(value=ast.Name(id=stem), slice=item) if stem in self.declared.copies:
                return f"{stem}[{self.index(item, self.declared.copies[stem])}]"
        return ""
