"""Print IR as source, for every compiled back end: names for leaves, statements, functions, headers.

In: the nodes that a function must compute, names for the leaves, and a spelling for each op. Out: lines of
source, and an expression for each node. Variables are named as in the rule.
"""

from __future__ import annotations

import builtins
import keyword
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from optgen.backends.layout import Layout
from optgen.ir.extent import Extent
from optgen.ir.node import ATOM, INFIX, LEAVES, DType, Node, Op, Spelling, infix, toposort
from optgen.ir.program import name_nodes
from optgen.plan.plan import Plan, Step, reduction_text

Spell = Callable[[Node, Sequence[Spelling]], Spelling]
PYTHON = frozenset({*keyword.kwlist, *keyword.softkwlist, *dir(builtins)})
ACCENTS = {"\u0302": "_hat", "\u0303": "_tilde", "\u0304": "_bar", "\u0307": "_dot"}
BITWISE = 3  # the rank of an operator that Python binds otherwise than one would read it: bracket it


def identifier(name: str) -> str:
    """An ASCII identifier for a name of the rule: `β1` becomes `beta1`, `v[0]` becomes `v_0`.

    Two names may become one identifier; `Names` and `write` tell them apart.
    """
    text = ""
    for c in unicodedata.normalize("NFKD", name.replace("[", "_").replace("]", "")):
        if c.isascii():
            letter = c
        elif unicodedata.combining(c):
            letter = ACCENTS.get(c, "")
        else:
            letter = unicodedata.name(c, "x").rsplit(" ", 1)[-1].lower()
        text += letter if (text + letter).isidentifier() or not letter else "x"
    return text


PREFIX = {Op.SCALAR: "s", Op.SLOT: "r", Op.TOTAL: "total", Op.INDEX: "index_", Op.KEY: ""}
KEYS = ("seed_low", "seed_high", "param", "step")


class Names:
    """Allocates variable names for a plan's kernels, unique within it.

    Args:
        plan: the plan.
        reserved: identifiers that the back end's own text uses.
        forms: patterns that derive further names from a store's, such as `{}_at`; none may clash.
    """

    def __init__(self, plan: Plan, reserved: Iterable[str], forms: Sequence[str] = ()):
        numbers = range(max(len(plan.scalars), len(plan.extents), len(plan.totals)))
        kinds = ("s", "r", "sum", "total")
        self.taken = {*PYTHON, *reserved, *(f"{kind}{i}" for kind in kinds for i in numbers)}
        if plan.random or plan.logical:
            self.taken |= {*KEYS, "index_low", "index_high"}
        self.taken |= {f"{kind}{k}" for kind in ("update", "columns") for k in range(len(plan.sweeps))}
        self.forms = ("{}", "{}_bits", *forms)
        self.stores: dict[str, str] = {}
        for name in (b.name for b in plan.buffers if not b.name.startswith("@")):
            self.add(name, f"x{name[1:]}" if name.startswith("#") else identifier(name))

    def add(self, store: str, stem: str) -> None:
        """Allocate a name for a store: the stem, or the first of `stem_1`, `stem_2` ... without a clash."""
        name, number = stem, 0
        while not self.taken.isdisjoint(spellings := {form.format(name) for form in self.forms}):
            number += 1
            name = f"{stem}_{number}"
        self.taken |= spellings
        self.stores[store] = name

    def leaf(self, n: Node) -> str:
        """The variable that holds a leaf."""
        value = n.value or ""
        if n.op in PREFIX:
            return PREFIX[n.op] + value
        return self.stores[value] + ("_bits" if n.dtype is DType.U32 else "")


def leaves(roots: Iterable[Node], stores: Sequence[str]) -> list[Node]:
    """The leaves that a function takes as arguments, in order: element stores, states, slots, scalars, ..."""

    def sort_key(n: Node) -> tuple[int, int]:
        if n.extent is Extent.ELEMENT and n.op is not Op.INDEX:
            return 0, stores.index(n.value or "")
        kind = {Op.LOAD: 1, Op.SLOT: 2, Op.SCALAR: 3, Op.TOTAL: 4, Op.INDEX: 5, Op.KEY: 6}[n.op]
        return kind, int(n.value or 0) if n.op in (Op.SLOT, Op.SCALAR, Op.TOTAL) else 0

    return sorted((n for n in toposort(roots) if n.op in LEAVES and n.op is not Op.CONST), key=sort_key)


def write(
    roots: Sequence[Node],
    rule_names: Mapping[Node, str],
    names: Names,
    spell: Spell,
    reserved: Iterable[str] = (),
) -> tuple[list[str], list[str]]:
    """Print assignments for named and shared nodes; returns them and an expression for each root.

    `spell` prints one op, given its printed arguments; no variable gets a name in `reserved`.
    """
    order = toposort(roots)
    variables = {names.leaf(n) for n in order if n.op in LEAVES and n.op is not Op.CONST}
    plain = {n: identifier(name) for n, name in rule_names.items()}
    bits = {a for n in order if n.op is Op.WHERE and n.dtype is DType.U32 for a in n.args if a.args}
    chosen = name_nodes(roots, plain, {*PYTHON, *variables, *reserved}, bits)
    texts: dict[Node, Spelling] = {}
    lines = []
    for n in order:
        if n.op in LEAVES and n.op is not Op.CONST:
            texts[n] = (names.leaf(n), ATOM)
        else:
            texts[n] = spell(n, [texts[a] for a in n.args])
        if n in chosen and not texts[n][0].isidentifier():
            lines.append(f"{chosen[n]} = {texts[n][0]}")
            texts[n] = (chosen[n], ATOM)
    return lines, [texts[n][0] for n in roots]


def function(
    name: str,
    roots: Sequence[Node],
    stores: Sequence[str],
    rule_names: Mapping[Node, str],
    names: Names,
    spell: Spell,
    reserved: Iterable[str],
) -> str:
    """Print a function from the values of the leaves, in the order of `leaves`, to those of the roots."""
    arguments = ", ".join(map(names.leaf, leaves(roots, stores)))
    body, results = write(roots, rule_names, names, spell, reserved)
    return f"def {name}({arguments}):\n" + indent([*body, f"return {', '.join(results)}"], 1)


def helper_name(step: Step, word: str) -> str:
    """Name of a function that belongs to a sweep: `update0` for `sweep0`."""
    return step.name.replace(step.kind, word)


def emitted(plan: Plan) -> list[Step]:
    """The steps in the order of their functions in a module: sweeps first."""
    return [*plan.sweeps, *(step for step in plan.steps if step.kind != "sweep")]


def spell_infix(n: Node, args: Sequence[Spelling]) -> Spelling:
    """Print an infix operator."""
    return infix(n.op.value, INFIX[n.op], args[0], args[1])


def spell_bitwise(n: Node, args: Sequence[Spelling]) -> Spelling:
    """Print a bitwise operator, or a logical one that does not short-circuit."""
    symbol = {Op.AND: "&", Op.OR: "|"}.get(n.op, n.op.value)
    return f"{bracket(args[0])} {symbol} {bracket(args[1])}", BITWISE


def bracket(spelling: Spelling) -> str:
    """Parenthesise an expression unless it is atomic."""
    return spelling[0] if spelling[1] == ATOM else f"({spelling[0]})"


def u32(value: float) -> str:
    """Print a uint32 constant: masks in hexadecimal, shift counts in decimal."""
    return f"{int(value):#x}" if value > 31 else str(int(value))


def states_by_extent(plan: Plan, step: Step) -> dict[Extent, list[str]]:
    """States that a finish step writes, grouped by extent, finest first.

    Finer states may read the old values of coarser ones, so those are written last.
    """
    by_extent: dict[Extent, list[str]] = {}
    for name in sorted(step.values, key=lambda s: -plan.states[s].extent.rank):
        by_extent.setdefault(plan.states[name].extent, []).append(name)
    return by_extent


def header(layout: Layout, math_mode: str) -> str:
    """The docstring of an emitted module: bytes and phases, and the values that the host computes."""
    plan = layout.plan
    dims = f", {layout.dims} strides" if layout.dims else ""
    lines = [f'"""{plan.name}: {plan.bytes} bytes per element, {plan.real}, math={math_mode}{dims}.']
    for k, step in enumerate(plan.sweeps):
        stored = f"; stores {', '.join(step.values)}" if step.values else ""
        reduced = ", ".join(f"r{r.slot} = {reduction_text(r)}" for r in step.reductions)
        lines.append(f"Phase {k} loads {', '.join(step.loads)}{stored}{'; ' + reduced if reduced else ''}.")
    if plan.totals:
        lines += ["", "For all tensors together, in float64 between the phases:"]
        lines += [f"    total{i} = {n!r}" for i, n in enumerate(plan.totals)]
    if plan.onces:
        lines += ["", "The same in every group, computed by the host in float64:"]
        lines += [f"    once{i} = {n!r}" for i, n in enumerate(plan.onces)]
    if plan.scalars:
        lines += ["", "Scalars, which the host computes in float64:"]
        lines += [f"    s{i} = {scalar!r}" for i, scalar in enumerate(plan.scalars)]
    return "\n".join(lines) + '\n"""\n'


def indent(lines: Iterable[str], depth: int) -> str:
    """Indent lines by `depth` levels and join them, with a final newline."""
    return "".join(f"{'    ' * depth}{line}\n" if line else "\n" for line in lines)
