"""Nodes to source text, for every back end that compiles: a back end is a table from op to text.

In: the values that a kernel body must produce and a spelling for each op. Out: lines and an expression
for each value. Names come from the rule, so that the emitted kernel reads like it.
"""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from optgen.ir import ATOM, INFIX, LEAVES, DType, Node, Op, Spelling, infix, name_nodes, toposort

Spell = Callable[[Node, Sequence[Spelling]], Spelling]


def identifier(name: str) -> str:
    """An ASCII identifier for a name of the rule: `β1` becomes `beta1`, `v[0]` becomes `v_0`."""
    text = ""
    for c in name.replace("[", "_").replace("]", ""):
        letter = unicodedata.name(c, "x").rsplit(" ", 1)[-1].lower() if not c.isascii() else c
        text += letter if (text + letter).isidentifier() else "x"
    return text + "_" if keyword.iskeyword(text) or keyword.issoftkeyword(text) else text


def leaf_name(n: Node) -> str:
    """The variable that a kernel holds a leaf in."""
    value = n.value or ""
    if n.op is Op.SCALAR:
        return f"s{value}"
    if n.op is Op.SLOT:
        return f"r{value}"
    if n.op is Op.SPILL:
        return f"x{value[1:]}"
    return identifier(value) + ("_bits" if n.dtype is DType.U32 else "")


def write(
    roots: Sequence[Node],
    names: Mapping[Node, str],
    spell: Spell,
    reserved: Iterable[str] = (),
    atoms: frozenset[Op] = frozenset(),
) -> tuple[list[str], list[str]]:
    """Statements that compute the roots, and the expression of each root after them.

    `spell` gives the text of constants and of everything that is not a plain infix operator; ops in
    `atoms` get only names and constants as arguments.
    """
    order = toposort(roots)
    leaves = {leaf_name(n) for n in order if n.op in LEAVES and n.op is not Op.CONST}
    always = {a for n in order if n.op in atoms for a in n.args}
    plain = {n: identifier(name) for n, name in names.items()}
    chosen = name_nodes(roots, plain, {*leaves, *reserved}, always)
    texts: dict[Node, Spelling] = {}
    lines = []
    for n in order:
        args = [texts[a] for a in n.args]
        if n.op in LEAVES and n.op is not Op.CONST:
            texts[n] = (leaf_name(n), ATOM)
        else:
            texts[n] = spell(n, args)
        if n in chosen and not texts[n][0].isidentifier():
            lines.append(f"{chosen[n]} = {texts[n][0]}")
            texts[n] = (chosen[n], ATOM)
    return lines, [texts[n][0] for n in roots]


def spell_infix(n: Node, args: Sequence[Spelling]) -> Spelling:
    """An infix operator as Python writes it."""
    return infix(n.op.value, INFIX[n.op], args[0], args[1])


def indent(lines: Iterable[str], depth: int) -> str:
    """The lines as a block of source, `depth` levels in, with a final newline."""
    return "".join(f"{'    ' * depth}{line}\n" if line else "\n" for line in lines)
