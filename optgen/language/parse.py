"""Rule text to `Program`; with the modules below it, the only place that knows the grammar.

In: a `Source`. Out: a `Program`, or one `RuleError` that shows the place. The text is never executed:
`grammar` reads it with `ast.parse`, `declarations` and `expressions` lower what is in a statement, and
`statements` walks them.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from optgen.errors import RuleError, Source, Span
from optgen.ir.extent import Extent
from optgen.ir.node import Node, Op, load, node, toposort
from optgen.ir.program import Hyper, Program
from optgen.language.declarations import Declarations
from optgen.language.grammar import read
from optgen.language.schedule_expressions import scheduled_values
from optgen.language.scope import (
    DECLARATIONS,
    STORES,
    Scope,
)
from optgen.language.statements import Statements


def parse(source: Source | str, name: str | None = None) -> Program:
    """The program of a rule's text.

    Raises:
        RuleError: the text is not a rule; the error shows where and why.
    """
    if isinstance(source, str):
        source = Source(source)
    source = replace(source, text=source.text.removeprefix("\ufeff"))
    title = source.name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".rule")
    if name is None:
        name = title if title.isidentifier() else "rule"
    tree = read(source)
    parser = Parser(source)
    try:
        return parser.program(tree, name)
    except RecursionError:  # the caller itself stands deep in the stack
        raise RuleError("Python's stack is too small for this rule", parser.expressions.here) from None


class Parser(Statements):
    """Reads one rule: its declarations, its statements, and what they leave in its stores."""

    def program(self, tree: ast.Module, name: str) -> Program:
        """The program of a whole rule."""
        doc, body = _docstring(tree.body)
        calls: dict[str, list[ast.Call]] = {kind: [] for kind in DECLARATIONS}
        functions: dict[str, ast.FunctionDef] = {}
        steps = []
        for statement in body:
            match statement:
                case ast.Expr(value=ast.Call(func=ast.Name(id=kind)) as call) if kind in DECLARATIONS:
                    calls[kind].append(call)
                case ast.FunctionDef():
                    if statement.name in functions:
                        raise self.error(f"{statement.name}() is defined twice", statement)
                    functions[statement.name] = self.check_function(statement)
                case _:
                    steps.append(statement)
        Declarations(self.expressions).read(calls)
        self.expressions.scope = Scope(self.declared.start())
        self.before = not {"p", "u"} & _stored(steps)
        self.block(steps)
        assigns, update, schedules = self.finish(), self.scope.update, self.schedules()
        count, skip = cast(Node, self.scope.names["t"]), None
        for condition, _ in self.skips:
            skip = condition if skip is None else node(Op.OR, skip, condition)
        modes = {mode: self.function(function) for mode, function in functions.items()}
        self.check_use(modes)
        seed = {"seed": Hyper("seed", 0.0)} if self.expressions.draws else {}
        before = "g" in assigns
        return Program(
            name=name,
            doc=doc,
            sources=(self.source,),
            hypers=self.declared.hypers | seed,
            inputs=self.declared.inputs,
            skip=skip if before else None,
            count=count if before and count is not node(Op.COUNT) else None,
            states=self.declared.states,
            requires=tuple(self.declared.requires),
            facts=self.expressions.facts,
            assigns=assigns,
            update=update if "p" in assigns else None,
            schedules=schedules,
            modes=modes,
            spans=self.expressions.spans,
            names=self.node_names,
        )

    def finish(self) -> dict[str, Node]:
        """The stores that the statements assigned, and their last values."""
        targets = self.assigned.keys() & {*STORES, *self.declared.states}
        if self.assigned.keys() & self.declared.hypers:
            targets |= {"g"}  # it comes before the rules whose hyperparameters it assigns
        if "t" in self.assigned and "g" not in targets and not self.skips:
            raise self.error("only a transform of g assigns t", self.assigned["t"])
        if "p" in targets:
            targets -= {"g", "u"}  # local names of a rule
        if {"g", "u"} <= targets:
            raise self.error("a transform assigns g or u, not both", self.assigned["u"])
        if not targets and self.skips:
            targets = {"g"}  # a transform that only leaves steps out
        if not targets:
            place = next(iter(self.assigned.values()), Span(self.source, 1, 1))
            what = "neither p, g, u nor a state" if self.assigned else "nothing"
            raise self.error(
                f"the rule assigns {what}", place, "a rule assigns p, for example `p = p - lr*g`"
            )
        order = (*STORES, *self.declared.states)
        assigns = {k: self.unless_skipped(k) for k in order if k in targets}
        update = load("u")
        if "g" in assigns and "u" in self.expressions.loaded and update in toposort(assigns.values()):
            raise self.error(
                "'u' has no value in a transform of g, which comes before the rule",
                self.expressions.spans[update],
            )
        return assigns

    def schedules(self) -> dict[str, Node]:
        """What hyperparameters of the rules after this one become, by path."""
        found: dict[str, Node] = {}
        for name in self.declared.hypers:
            if name in self.assigned:
                default, meaning = self.declared.hypers[name].default, self.scope.names[name]
                found |= scheduled_values(self.expressions, name, default, meaning, self.assigned[name])
        return found

    def unless_skipped(self, name: str) -> Node:
        """The last value of a store, or the one that it had where the rest of the step was skipped."""
        value = cast(Node, self.scope.names[name])
        if name in self.declared.states and self.declared.states[name].extent is Extent.ALL:
            value = self.once(value, name, self.assigned[name])
        for condition, stored in reversed(self.skips):
            before = cast(Node, stored[name])
            if before is not value and name not in ("g", "u"):
                limit = self.declared.states[name].extent if name in self.declared.states else Extent.ELEMENT
                if limit is Extent.ALL:
                    condition = self.once(condition, name, self.assigned[name])
                value = self.expressions.make(node(Op.WHERE, condition, before, value))
        return value

    def check_function(self, at: ast.FunctionDef) -> ast.FunctionDef:
        """The function itself, which must be `def train():` or `def eval():`."""
        name, given = at.name, at.args
        if name not in ("train", "eval"):
            message = f"function '{name}' is not part of the rule language"
            raise self.error(message, at, "only train() and eval() are")
        if at.decorator_list:
            raise self.error("a decorator is not part of the rule language", at.decorator_list[0])
        if given.posonlyargs or given.args or given.vararg or given.kwonlyargs or given.kwarg:
            raise self.error(f"{name}() takes no arguments", at)
        if at.returns:
            raise self.error("a type annotation is not part of the rule language", at.returns)
        return at

    def function(self, at: ast.FunctionDef) -> dict[str, Node]:
        """What `def train()` or `def eval()` assigns."""
        outer, self.assigned = self.assigned, {}
        self.expressions.scope, self.expressions.mode = Scope(self.declared.start()), at.name
        self.block(_docstring(at.body)[1])
        order = ("p", *self.declared.states)
        result = {k: cast(Node, self.scope.names[k]) for k in order if k in self.assigned}
        self.assigned, self.expressions.mode = outer, None
        if not result:
            raise self.error(f"{at.name}() assigns neither p nor a state", at)
        return result

    def check_use(self, modes: Mapping[str, Mapping[str, Node]]) -> None:
        """Report a hyperparameter or a state that nothing uses."""
        places = self.declared.places
        for name in self.declared.hypers:
            if name not in self.expressions.used:
                raise self.error(f"hyperparameter '{name}' is never used", places[name], "remove it")
        for name in self.declared.inputs:
            if name not in self.expressions.used:
                raise self.error(f"input '{name}' is never used", places[name], "remove it")
        touched = self.expressions.loaded.union(self.assigned, *modes.values())
        for name in self.declared.states:
            if name not in touched:
                place = places[name.partition("[")[0]]
                raise self.error(f"state '{name}' is neither read nor assigned", place, "remove it")


def _docstring(body: list[ast.stmt]) -> tuple[str, list[ast.stmt]]:
    """A leading string, without its indentation, and the statements after it."""
    match body:
        case [ast.Expr(value=ast.Constant(value=str() as text)), *rest]:
            return inspect.cleandoc(text), rest
    return "", body


def _stored(statements: list[ast.stmt]) -> set[str]:
    """The plain names that statements assign."""
    nodes = (n for statement in statements for n in ast.walk(statement))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
