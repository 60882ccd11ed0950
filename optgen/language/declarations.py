"""The declarations of a rule: hyper(), keys(), state() and require(), wherever in the text they stand.

In: their calls, as syntax trees. Out: the tables of `Declared`, complete before the first statement.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from optgen.errors import Span
from optgen.ir.extent import Extent, fits
from optgen.ir.facts import Value
from optgen.ir.node import Node, Op, load, toposort
from optgen.ir.program import Hyper, Input, Requirement, State
from optgen.language.expressions import Expressions
from optgen.language.grammar import nearest
from optgen.language.scope import CALLED, CONSTANTS, SHAPES, STORES, Scope, absent

MAX_COPIES = 64
# Constructor arguments of every optimizer, so no hyperparameter can have their names.
RESERVED = (
    *("params", "self", "closure", "backend", "math", "state_dtype", "maximize"),
    *("foreach", "fused", "capturable", "differentiable", "frozen", "rule", "train_mode", "seed", "steps"),
)


class Entry(NamedTuple):
    """One name of a state() declaration."""

    first: ast.expr
    extent: Extent
    copies: int


class Declarations:
    """Reads the declarations of one rule into the tables of its expressions."""

    def __init__(self, expressions: Expressions):
        self.expressions, self.declared = expressions, expressions.declared
        self.error, self.span = expressions.error, expressions.span

    def read(self, calls: Mapping[str, Sequence[ast.Call]]) -> None:
        """Read the calls of each kind, after those that it needs."""
        for call in calls["hyper"]:
            self.hyper(call)
        keys: dict[str, tuple[str, Span]] = {}
        for call in calls["input"]:
            self.input(call)
        for call in calls["keys"]:
            self.keys(call, keys)
        entries: dict[str, Entry] = {}
        for call in calls["state"]:
            self.state(call, entries)
        self.states(entries, keys)
        self.expressions.scope = Scope(self.declared.start())
        used = set(self.expressions.used)
        for call in calls["require"]:
            self.require(call)
        self.expressions.used = used  # a condition alone does not make a hyperparameter useful

    def declare(self, name: str, at: ast.AST) -> None:
        """Take a name for a hyperparameter or a state."""
        places = self.declared.places
        if name in places:
            raise self.error(
                f"'{name}' is declared twice", at, f"the first declaration is on line {places[name].line}"
            )
        if name in RESERVED or name in (*STORES, "t", *SHAPES, *CONSTANTS, *CALLED):
            what = "a constructor argument of every optimizer" if name in RESERVED else "built in"
            raise self.error(f"'{name}' cannot be declared: it is {what}", at, "choose another name")
        places[name] = self.span(at)

    def arguments(self, call: ast.Call) -> Iterator[tuple[str, ast.keyword]]:
        """The `name=value` arguments of a declaration, which has no others."""
        what = cast(ast.Name, call.func).id
        if not call.keywords and not call.args:
            raise self.error(f"{what}() declares nothing", call, f"write {what}(name=value)")
        for argument in call.args:
            name = argument.id if isinstance(argument, ast.Name) else "name"
            raise self.error(f"{what}() takes name=value only", argument, f"write {what}({name}=value)")
        for keyword in call.keywords:
            if keyword.arg is None:
                raise self.error(f"{what}() takes name=value only", keyword, f"write {what}(name=value)")
            yield keyword.arg, keyword

    # hyper()

    def hyper(self, call: ast.Call) -> None:
        """One hyper() declaration."""
        self.expressions.scope = Scope(dict(CONSTANTS))
        for name, keyword in self.arguments(call):
            self.declare(name, keyword)
            self.declared.hypers[name] = Hyper(name, self.default(keyword.value))

    def default(self, at: ast.expr) -> Value | tuple[Value, ...]:
        """A default: a number, True, False, None, a string, or a tuple of those."""
        if isinstance(at, ast.Tuple) and at.elts and not any(isinstance(e, ast.Tuple) for e in at.elts):
            return tuple(cast(Value, self.default(e)) for e in at.elts)
        if isinstance(at, ast.Constant) and (isinstance(at.value, bool | str) or at.value is None):
            return at.value
        if not all(map(_is_arithmetic, ast.walk(at))):
            raise self.error(
                "a default is a number, True, False, None, a string or a tuple of those",
                at,
                "write a plain value; compute with it in the statements below",
            )
        return float(cast(float, self.expressions.constant(self.expressions.value(at))))

    # input()

    def input(self, call: ast.Call) -> None:
        """One input() declaration: names, `name=default`, and `per=all` for one number."""
        if not call.args and not any(k.arg != "per" for k in call.keywords):
            raise self.error("input() declares nothing", call, "write input(h), or input(loss, per=all)")
        extent = Extent.ELEMENT
        names: list[tuple[str, ast.AST, float | None]] = []
        for argument in call.args:
            if not isinstance(argument, ast.Name):
                raise self.error("input() takes names", argument, "write input(h)")
            names.append((argument.id, argument, None))
        for keyword in call.keywords:
            if keyword.arg == "per":
                extent = self.expressions.extent(keyword.value)
                if extent not in (Extent.ELEMENT, Extent.ALL):
                    raise self.error("an input has per=element or per=all", keyword.value)
            elif keyword.arg is None:
                raise self.error("input() takes names and name=default", keyword)
            else:
                self.expressions.scope = Scope(dict(CONSTANTS))
                value = self.expressions.constant(self.expressions.value(keyword.value))
                if value is None:
                    raise self.error("the default of an input is a number", keyword.value)
                names.append((keyword.arg, keyword, float(value)))
        for name, place, default in names:
            self.declare(name, place)
            self.declared.inputs[name] = Input(name, extent, default)
            if default is not None:
                self.expressions.fact_node(absent(name))

    # keys() and state()

    def keys(self, call: ast.Call, keys: dict[str, tuple[str, Span]]) -> None:
        """One keys() declaration."""
        for name, keyword in self.arguments(call):
            if name in keys:
                raise self.error(
                    f"'{name}' has two keys", keyword, f"the first is on line {keys[name][1].line}"
                )
            match keyword.value:
                case ast.Constant(value=str() as key) if key:
                    keys[name] = (key, self.span(keyword))
                case _:
                    raise self.error("a key is a string", keyword.value, 'write keys(m="exp_avg")')

    def state(self, call: ast.Call, entries: dict[str, Entry]) -> None:
        """One state() declaration; `per` and `copies` hold for all of its names."""
        self.expressions.scope = Scope(self.declared.start())
        extent, copies = Extent.ELEMENT, 0
        seen: set[str] = set()
        names: list[tuple[str, ast.keyword]] = []
        for name, keyword in self.arguments(call):
            if name not in ("per", "copies"):
                names.append((name, keyword))
                continue
            if name in seen:
                raise self.error(f"'{name}' is given twice", keyword)
            seen.add(name)
            if name == "per":
                extent = self.expressions.extent(keyword.value)
            else:
                copies = self.expressions.integer(keyword.value, "copies")
                if not 1 <= copies <= MAX_COPIES:
                    raise self.error(f"copies must be from 1 to {MAX_COPIES}", keyword.value)
        if not names:
            raise self.error("state() declares nothing", call, "write state(m=0)")
        for name, keyword in names:
            self.declare(name, keyword)
            entries[name] = Entry(keyword.value, extent, copies)

    def states(self, entries: Mapping[str, Entry], keys: Mapping[str, tuple[str, Span]]) -> None:
        """The states, with their first values and keys."""
        declared = self.declared
        self.expressions.scope = Scope({**declared.start(), **{s: load(s) for s in entries}})
        for name, (_, span) in keys.items():
            if name not in entries:
                raise self.error(f"keys() names '{name}', which is not a state", span, nearest(name, entries))
        firsts: dict[str, Node] = {}
        taken: dict[str, str] = {}
        for name, entry in entries.items():
            first = self.first(name, entries, firsts)
            if not fits(first.extent, entry.extent) and first.extent is not Extent.STEP:
                raise self.error(
                    f"'{name}' holds {entry.extent.phrase}, but this is {first.extent.phrase}", entry.first
                )
            key, place = keys.get(name, (name, declared.places[name]))
            if entry.copies:
                declared.copies[name] = entry.copies
            for i in range(max(1, entry.copies)):
                full, own = (f"{name}[{i}]", f"{key}_{i}") if entry.copies else (name, key)
                if entry.extent is Extent.ALL and not own.startswith("group:"):
                    own = f"group:{own}"
                elif own.startswith("group:") and entry.extent is not Extent.ALL:
                    raise self.error("only per=all state is kept in the groups", place, "declare it per=all")
                if own == "step":
                    raise self.error(
                        "'step' is the key of the step count", place, "choose another with keys()"
                    )
                if own.removeprefix("group:") in declared.hypers and own.startswith("group:"):
                    raise self.error(
                        f"the key {own!r} is the place of a hyperparameter",
                        place,
                        "choose another with keys()",
                    )
                if own in taken:
                    raise self.error(f"states '{taken[own]}' and '{full}' have the same key {own!r}", place)
                taken[own] = full
                declared.states[full] = State(full, first, entry.extent, own)

    def first(self, name: str, entries: Mapping[str, Entry], firsts: dict[str, Node]) -> Node:
        """A state's first value: a number, `p`, an expression of hyperparameters, or another state's."""
        path = {name: None}
        at = entries[name].first
        while isinstance(at, ast.Name) and at.id in entries and at.id not in firsts:
            if at.id in path:
                way = " -> ".join((*path, at.id))
                raise self.error(f"a cycle: the first value of '{at.id}' needs itself", at, way)
            path[at.id] = None
            at = entries[at.id].first
        if isinstance(at, ast.Name) and at.id in firsts:
            value = firsts[at.id]
        else:
            value = self.first_value(at, [*path][-1])
        firsts |= dict.fromkeys(path, value)
        return value

    def first_value(self, at: ast.expr, name: str) -> Node:
        """A first value that is not another state's."""
        value = self.expressions.value(at)
        leaves = {n.op for n in toposort([value]) if not n.args}
        if value is not load("p") and not leaves <= {Op.CONST, Op.HYPER}:
            raise self.error(
                f"state '{name}' cannot start from this",
                at,
                "write a number, p, another state, or an expression of hyperparameters",
            )
        return value

    # require()

    def require(self, call: ast.Call) -> None:
        """One require() declaration."""
        for keyword in call.keywords:
            raise self.error("require() takes conditions only", keyword)
        if not call.args:
            raise self.error("require() checks nothing", call, "write require(lr >= 0)")
        for argument in call.args:
            condition = self.expressions.condition(argument)
            leaves = {n.op for n in toposort([condition]) if not n.args}
            if not leaves & {Op.HYPER, Op.FACT} or not leaves <= {Op.CONST, Op.HYPER, Op.FACT}:
                raise self.error("require() can check hyperparameters only", argument)
            place = self.span(argument)
            if argument.end_lineno == argument.lineno:
                text = place.source.line(place.line)[place.column - 1 :][: place.width]
            else:
                text = ast.unparse(argument)
            self.declared.requires.append(Requirement(condition, text, place))


def _is_arithmetic(at: ast.AST) -> bool:
    """Whether a part of a default is one of a computation with constants."""
    if isinstance(at, ast.Constant):
        return type(at.value) in (int, float)
    if isinstance(at, ast.Name):
        return at.id in CONSTANTS
    return isinstance(at, ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop | ast.expr_context)
