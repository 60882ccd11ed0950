"""What is known at one point of a rule: what names mean, what was declared, where nodes were written.

In: the declarations and assignments, as they are met. Out: the meaning of a name, the place of a node.
"""

from __future__ import annotations

import ast
import math
from collections import ChainMap
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, cast

from optgen.errors import Source, Span
from optgen.ir.extent import Extent
from optgen.ir.facts import Fact, Value
from optgen.ir.functions import FUNCTIONS
from optgen.ir.node import Node, Op, const, load, node, rebuild
from optgen.ir.program import Hyper, Input, Requirement, State
from optgen.ir.semantics import constant
from optgen.language.grammar import Report

MAX_SIZE = 100_000  # statements and expressions, after unrolling
STORES = ("p", "g", "u")
SHAPES = ("numel", "ndim", "rows", "cols")
CONSTANTS = {"pi": const(math.pi), "inf": const(math.inf)}
SPECIAL = ("where", "prev", "len", "range")
RANDOM = {"normal": Op.NORMAL, "uniform": Op.UNIFORM}
DECLARATIONS = ("hyper", "require", "state", "keys", "input")
STATEMENTS = ("skip",)  # calls that are statements of a step
NOT_YET = ("orthogonalize", "inverse_root", "eigh", "qr")
BUILT_IN = dict.fromkeys((*SPECIAL, *RANDOM, *DECLARATIONS, *STATEMENTS, *NOT_YET))
CALLED: Collection[str] = ChainMap[str, Any](FUNCTIONS, BUILT_IN)  # names that stand for no value


@dataclass(frozen=True)
class Option:
    """The value of a name that stands for a compile-time option, and not for a number."""

    name: str  # "amsgrad", or "eps[0]"


Item = Node | Option
Meaning = Item | tuple[Item, ...]
Update = tuple[Node, Node]


def absent(name: str) -> Fact:
    """The fact that an input is not given."""
    return Fact(name, "is", None)


@dataclass
class Declared:
    """What a rule declares, and where."""

    hypers: dict[str, Hyper] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)  # v[0], v[1], … where v has copies
    copies: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    requires: list[Requirement] = field(default_factory=list)
    places: dict[str, Span] = field(default_factory=dict)

    def default(self, path: str) -> Value | tuple[Value, ...]:
        """The default of a hyperparameter, `betas`, or of one item of a tuple, `betas[0]`."""
        name, _, item = path.partition("[")
        default = self.hypers[name].default
        return default[int(item[:-1])] if item and isinstance(default, tuple) else default

    def hyper(self, path: str) -> Meaning:
        """What the name of a hyperparameter means: a number, an option, or a tuple of those."""
        default = self.default(path)
        if isinstance(default, tuple):
            return tuple(cast(Item, self.hyper(f"{path}[{i}]")) for i in range(len(default)))
        if isinstance(default, bool | str) or default is None:
            return Option(path)
        return node(Op.HYPER, value=path)

    def input(self, name: str) -> Node:
        """What the name of an input means: a default where none is given."""
        given = self.inputs[name]
        value = load(name, extent=given.extent)
        if given.default is None:
            return value
        missing = node(Op.FACT, value=str(absent(name)))
        return node(Op.CHOOSE, missing, const(given.default), value)

    def start(self) -> dict[str, Meaning]:
        """What names mean before the first statement."""
        names: dict[str, Meaning] = {**CONSTANTS, "t": node(Op.COUNT)}
        names |= {s: node(Op.SHAPE, value=s) for s in SHAPES}
        names |= {s: load(s) for s in STORES}
        names |= {h: self.hyper(h) for h in self.hypers}
        names |= {name: load(name, extent=state.extent) for name, state in self.states.items()}
        names |= {name: self.input(name) for name in self.inputs}
        for name, copies in self.copies.items():
            names[name] = tuple(cast(Item, names[f"{name}[{i}]"]) for i in range(copies))
        return names


@dataclass
class Scope:
    """What names mean at one point of the text, and the rule's last `p = p - X` so far."""

    names: dict[str, Meaning] = field(default_factory=dict)
    update: Update | None = None
    # Inside a branch: what each name that it assigned meant before, so that the branch can be taken back.
    replaced: dict[str, Meaning | None] | None = None

    def bind(self, name: str, meaning: Meaning) -> None:
        """Give a name a new meaning."""
        if self.replaced is not None:
            self.replaced.setdefault(name, self.names.get(name))
        self.names[name] = meaning

    def branch(self, run: Callable[[], None]) -> tuple[dict[str, Meaning], Update | None]:
        """What `run` assigns and the last update after it; the scope itself stays as it was."""
        outer, update = self.replaced, self.update
        replaced: dict[str, Meaning | None] = {}
        self.replaced = replaced
        run()
        assigned, last = {name: self.names[name] for name in replaced}, self.update
        for name, before in replaced.items():
            if before is None:
                del self.names[name]
            else:
                self.names[name] = before
        self.replaced, self.update = outer, update
        return assigned, last


class Context(Report):
    """What the lowering of one rule knows so far: names, places, facts, constants."""

    def __init__(self, source: Source, declared: Declared):
        super().__init__(source)
        self.declared = declared
        self.scope = Scope()
        self.mode: str | None = None  # inside `def train()` or `def eval()`
        self.deciding = False  # inside the condition of a compile-time `if`
        self.here = Span(source, 1, 1)  # of the expression under way
        self.size = 0
        self.facts: dict[str, Fact] = {}
        self.tags: dict[tuple[Node, ...], str] = {}  # of reductions over all tensors, by what they reduce
        self.draws = 0  # calls of normal() and uniform()
        self.spans: dict[Node, Span] = {}  # where each node was first written
        self.used: set[str] = set()  # hyperparameters
        self.loaded: set[str] = set()  # states, p, g and u whose value at the start of the step is read
        self.known: dict[Node, Any] = {}  # constants worked out so far; None for what depends on something

    def grow(self, at: ast.AST) -> None:
        """Count one more statement or expression."""
        self.size += 1
        if self.size > MAX_SIZE:
            raise self.error(
                f"the rule unrolls to more than {MAX_SIZE:,} operations", at, "is a range() too long?"
            )

    def make(self, built: Node) -> Node:
        """Remember where a node and what it is made of were first written."""
        stack = [built]
        while stack:
            current = stack.pop()
            if current not in self.spans:
                self.spans[current] = self.here
                stack.extend(current.args)
        return built

    def constant(self, root: Node) -> Any | None:
        """The value of a node that depends on nothing, or None. No node is worked out twice."""
        stack = [root]
        while stack:
            current = stack.pop()
            if current in self.known:
                continue
            if current.extent is not Extent.CONST or current.op in (Op.FACT, Op.UNDEF):
                self.known[current] = None
            elif unknown := [a for a in current.args if a not in self.known]:
                stack += [current, *unknown]
            elif any(self.known[a] is None for a in current.args):
                self.known[current] = None
            else:
                args = tuple(const(self.known[a], a.dtype) for a in current.args)
                self.known[current] = constant(rebuild(current, args))
        return self.known[root]

    def fact_node(self, fact: Fact) -> Node:
        """The condition that a fact holds."""
        self.facts[str(fact)] = fact
        return self.make(node(Op.FACT, value=str(fact)))
