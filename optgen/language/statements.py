"""Statements of a rule: what names mean after each of them.

A compile-time `if` does not choose here: both branches are lowered and merged with CHOOSE nodes, so a
mistake on either is reported, and one program serves all options (`passes.specialise`).
A name that only one branch assigns is UNDEF on the other.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import cast

from optgen.errors import Source, Span
from optgen.ir.extent import Extent, fits
from optgen.ir.node import REDUCTIONS, DType, Node, Op, const, node, rebuild
from optgen.language.expressions import Expressions
from optgen.language.grammar import nearest
from optgen.language.schedule_expressions import scheduled_values
from optgen.language.scope import (
    CALLED,
    CONSTANTS,
    DECLARATIONS,
    NOT_YET,
    SHAPES,
    STORES,
    Declared,
    Item,
    Meaning,
    Scope,
    Update,
)


class Statements:
    """Walks statements, top to bottom, and keeps what names mean after each."""

    def __init__(self, source: Source):
        self.source, self.declared = source, Declared()
        self.expressions = Expressions(source, self.declared)
        self.error, self.span = self.expressions.error, self.expressions.span
        self.assigned: dict[str, Span] = {}
        self.node_names: dict[Node, str] = {}
        self.skips: list[tuple[Node, dict[str, Meaning]]] = []
        self.before = False  # whether this is a transform that comes before a rule

    @property
    def scope(self) -> Scope:
        """What names mean now."""
        return self.expressions.scope

    def once(self, value: Node, name: str, at: ast.expr | Span) -> Node:
        """A value as one for the whole optimizer: what is per step must be the same in every group."""
        order: list[Node] = []  # of what is not inside a reduction over all tensors
        stack = [value]
        while stack:
            n = stack.pop()
            order.append(n)
            stack.extend(() if n.op in REDUCTIONS else n.args)
        done: dict[Node, Node] = {}
        for n in reversed(order):
            shape = n.op is Op.SHAPE or (
                n.op is Op.FACT and self.expressions.facts[cast(str, n.value)].subject == "ndim"
            )
            if shape:
                raise self.error(
                    f"'{name}' is one value for all tensors, and this depends on the tensor's shape", at
                )
            if n.extent > Extent.ALL and n.args and n.op not in REDUCTIONS:
                args = (node(Op.ONCE, a) if a.extent is Extent.STEP else done[a] for a in n.args)
                done[n] = rebuild(n, tuple(args))
                if n in self.node_names:
                    self.node_names.setdefault(done[n], self.node_names[n])
                if n in self.expressions.spans:
                    self.expressions.spans.setdefault(done[n], self.expressions.spans[n])
            else:
                done[n] = n
        return node(Op.ONCE, value) if value.extent is Extent.STEP else done[value]

    def block(self, statements: list[ast.stmt]) -> None:
        """Read statements in order."""
        for statement in statements:
            self.expressions.grow(statement)
            self.expressions.here = self.span(statement)
            match statement:
                case ast.Assign(targets=[target], value=value):
                    self.assign(target, value)
                case ast.Assign(targets=[_, second, *_]):
                    raise self.error("one name on the left of '='", second, "write one assignment a line")
                case ast.AugAssign(target=target, op=op, value=value):
                    # A target reads like an expression: nothing here looks at its `ctx`.
                    self.assign(target, ast.copy_location(ast.BinOp(target, op, value), statement))
                case ast.If():
                    self.branch(statement)
                case ast.For():
                    self.loop(statement)
                case ast.Pass():
                    pass
                case ast.Expr(value=value):
                    self.bare(value)
                case ast.FunctionDef():
                    raise self.error("a function stands at the top level only", statement)
                case _:
                    raise self.expressions.refusal(statement)

    def bare(self, at: ast.expr) -> None:
        """Report an expression that stands alone on a line."""
        match at:
            case ast.Call(func=ast.Name(id="skip")):
                self.skip(at)
                return
            case ast.Call(func=ast.Name(id=name)) if name in DECLARATIONS:
                raise self.error(f"{name}() stands outside `if`, `for` and `def`", at)
            case ast.Call(func=ast.Name(id=name)) if name in NOT_YET:
                raise self.error(f"{name}() is not yet supported", at)
            case ast.Call(func=ast.Name(id=name), keywords=[_, *_]):
                raise self.error(f"unknown declaration '{name}'", at, nearest(name, DECLARATIONS))
            case ast.Yield() | ast.YieldFrom() | ast.Await() | ast.NamedExpr():
                raise self.expressions.refusal(at)
        raise self.error("this line has no effect", at, "write `name = expression`")

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        """Read `target = value`."""
        before = self.scope.names.get("p")
        meaning = self.expressions.look(value)
        if isinstance(target, ast.Tuple):
            self.unpack(target, meaning, value)
            return
        name = self.target(target)
        self.bind(
            name, meaning if isinstance(meaning, tuple) else self.expressions.as_node(meaning, value), target
        )
        match value:
            case ast.BinOp(left=ast.Name(id="p"), op=ast.Sub()) if (
                name == "p" and self.expressions.mode is None
            ):
                built = cast(Node, self.scope.names["p"])
                self.scope.update = cast(Node, before), built.args[1]

    def skip(self, at: ast.Call) -> None:
        """`skip(condition)`: what comes after it does not happen where the condition holds."""
        if self.expressions.mode:
            raise self.error(f"{self.expressions.mode}() cannot be skipped", at)
        if self.scope.replaced is not None:
            raise self.error("skip() stands outside `if` and `for`", at, "write skip(option and condition)")
        if len(at.args) != 1 or at.keywords:
            raise self.error("skip() takes one condition", at)
        condition = self.expressions.condition(at.args[0])
        if condition.extent > Extent.TENSOR:
            raise self.error(
                "skip() needs a condition on the tensor or on all tensors, and this is "
                f"{condition.extent.phrase}",
                at.args[0],
                "reduce it, for example with sum",
            )
        stored = {k: v for k, v in self.scope.names.items() if k in (*STORES, *self.declared.states)}
        self.skips.append((condition, stored))

    def target(self, at: ast.expr) -> str:
        """The name that an assignment is to: a plain one, or `v[1]` for a copy of a state."""
        name = self.expressions.stored(at)
        if name:
            return name
        if isinstance(at, ast.Subscript):
            stem = at.value.id if isinstance(at.value, ast.Name) else ""
            self.check_name(stem, at)
            raise self.error(
                "only a copy of a state can be assigned by index", at, "declare state(v=0, copies=n)"
            )
        raise self.error("only a name can be assigned", at)

    def unpack(self, target: ast.Tuple, items: Meaning | str | None, value: ast.expr) -> None:
        """Read `a, b = items`, or refuse it."""
        if not isinstance(items, tuple):
            raise self.error("only a tuple can be unpacked", value)
        if len(items) != len(target.elts):
            raise self.error(f"{len(target.elts)} names for a tuple of {len(items)}", target)
        for element, item in zip(target.elts, items, strict=True):
            self.bind(self.target(element), item, element)

    def check_name(self, name: str, at: ast.AST) -> None:
        """Refuse to assign what has its value from elsewhere."""
        if name in self.declared.hypers and (self.expressions.mode or not self.before):
            raise self.error(
                f"'{name}' is a hyperparameter and cannot be assigned", at, "assign to a new name"
            )
        if name in (*SHAPES, *CONSTANTS) or (name == "t" and self.expressions.mode):
            raise self.error(f"'{name}' cannot be assigned", at, "assign to a new name")
        if name in self.declared.inputs:
            raise self.error(f"'{name}' is an input and cannot be assigned", at, "assign to a new name")
        if name in CALLED:
            raise self.error(f"'{name}' is a function and cannot be assigned", at, "choose another name")
        self.expressions.check_mode(name, at)

    def bind(self, name: str, meaning: Meaning, at: ast.expr) -> None:
        """Give a name a new meaning, where it may have one."""
        self.check_name(name, at)
        declared = self.declared
        if name in declared.copies:
            raise self.error(f"'{name}' is a state with copies", at, f"assign to {name}[0], {name}[1], …")
        if name in STORES or name in declared.states:
            if not isinstance(meaning, Node) or meaning.dtype is not DType.REAL:
                raise self.error(
                    f"'{name}' needs a number", at, "turn a condition into one with where(c, 1, 0)"
                )
            limit = declared.states[name].extent if name in declared.states else Extent.ELEMENT
            if limit is Extent.ALL:
                if self.expressions.mode:
                    raise self.error(
                        f"{self.expressions.mode}() cannot assign what is one value for all tensors", at
                    )
                meaning = self.expressions.make(self.once(meaning, name, at))
            if not fits(meaning.extent, limit):
                raise self.error(
                    f"'{name}' holds {limit.phrase}, but this is {meaning.extent.phrase}",
                    at,
                    "reduce it with sum, mean, norm, rms, amax or dot"
                    + (", over=all" if limit is Extent.ALL else ""),
                )
        if name in declared.hypers:
            scheduled_values(self.expressions, name, declared.hypers[name].default, meaning, at)
            self.expressions.used.add(name)
        if name == "t" and not (isinstance(meaning, Node) and meaning.extent <= Extent.STEP):
            raise self.error("'t' needs one value per step", at)
        if isinstance(meaning, Node) and meaning.args:
            self.node_names.setdefault(meaning, name.replace("[", "").replace("]", ""))
        self.scope.bind(name, meaning)
        stem = name.partition("[")[0]
        if stem in declared.copies:
            copies = (self.scope.names[f"{stem}[{i}]"] for i in range(declared.copies[stem]))
            self.scope.bind(stem, tuple(cast(Item, c) for c in copies))
        self.assigned.setdefault(name, self.span(at))

    def branch(self, at: ast.If) -> None:
        """A compile-time choice: lower both sides, and choose between them name by name."""
        condition = self.expressions.decision(at.test)
        decided = self.expressions.constant(condition)
        if decided is not None:
            self.block(at.body if decided else at.orelse)
            return
        yes, yes_update = self.scope.branch(lambda: self.block(at.body))
        no, no_update = self.scope.branch(lambda: self.block(at.orelse))
        self.expressions.here = self.span(at.test)
        names = self.scope.names
        for name in {**yes, **no}:
            a, b = (side.get(name, names.get(name)) for side in (yes, no))
            self.scope.bind(name, self.choose(condition, name, a, b))
        if yes_update is no_update:
            self.scope.update = yes_update
            return
        self.scope.update = None
        if yes_update and no_update and _ends_in(yes, yes_update) and _ends_in(no, no_update):
            # Both sides end in `p = p - X`: the same choice, written as one `p - X`.
            old, step = (
                cast(Node, self.choose(condition, "p", a, b))
                for a, b in zip(yes_update, no_update, strict=True)
            )
            self.scope.update = old, step
            self.scope.bind("p", self.expressions.make(node(Op.SUB, old, step)))

    def choose(self, condition: Node, name: str, a: Meaning | None, b: Meaning | None) -> Meaning:
        """What a name means after a branch, from its meanings on both sides; None is no meaning."""
        if a == b:
            return cast(Meaning, a)
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            return tuple(cast(Item, self.choose(condition, name, x, y)) for x, y in zip(a, b, strict=True))
        dtype = next((x.dtype for x in (a, b) if isinstance(x, Node)), DType.REAL)
        undefined = node(Op.UNDEF, value=name, dtype=dtype)
        sides = [x if isinstance(x, Node) and x.dtype is dtype else undefined for x in (a, b)]
        chosen = node(Op.CHOOSE, condition, *sides)
        # What may have no value gets its place where it is read.
        return chosen if undefined in sides else self.expressions.make(chosen)

    def loop(self, at: ast.For) -> None:
        """A loop over range(n), unrolled."""
        match at.iter:
            case ast.Call(func=ast.Name(id="range"), args=bounds, keywords=[]) if 1 <= len(bounds) <= 3:
                limits = [self.expressions.integer(b, "range()") for b in bounds]
            case _:
                raise self.error("a loop runs over range(n)", at.iter, "write `for i in range(n):`")
        if not isinstance(at.target, ast.Name):
            raise self.error("a loop counts with one name", at.target)
        if at.orelse:
            raise self.error("a loop has no `else`", at.orelse[0])
        if len(limits) == 3 and limits[2] == 0:
            raise self.error("the step of range() is 0", at.iter)
        name = at.target.id
        self.check_name(name, at.target)
        if name in (*STORES, "t") or name in self.declared.places:
            raise self.error(f"'{name}' cannot count a loop: it is stored", at.target, "choose another name")
        for i in range(*limits):
            self.expressions.here = self.span(at.target)
            self.scope.bind(name, self.expressions.make(const(i)))
            self.block(at.body)


def _ends_in(assigned: Mapping[str, Meaning], update: Update) -> bool:
    """Whether a branch left `p` with the value of its last `p = p - X`."""
    return assigned.get("p") is node(Op.SUB, *update)
