"""LaTeX to MathML: what `optgen.algebra.latex` writes, as markup that browsers show by themselves.

In: the text of an `aligned` environment. Out: one `math` element, whose table has a row for each line.
"""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

from latex2mathml.converter import convert

from optgen.algebra.latex import latex
from optgen.ir.program import Program

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ROWS = ("mrow", "mtd", "msqrt")  # elements whose children stand beside each other
FENCES = "(⌊|‖"
THIN = "0.17em"
Element = ElementTree.Element


def step(program: Program) -> str:
    """The statements of a step, and below them when the rest is left out and what t the rules after see."""
    texts = [] if _idle(program) else [latex(program)]
    if program.skip is not None:
        texts.append(latex(replace(program, assigns={"skip": program.skip})))
    if program.count is not None:
        last = _lines(latex(replace(program, assigns={"t": program.count})))[-1]
        texts.append(f"t' &= {last[1]}")
    return mathml(*texts)


def mode(program: Program, name: str) -> str:
    """The statements of `train()` or `eval()`; t-1 stands for before the call, t for after it."""
    return mathml(latex(replace(program, assigns=program.modes[name])))


def _idle(program: Program) -> bool:
    """Whether a program is a transform that leaves the gradient as it is and stores nothing."""
    return list(program.assigns) == ["g"] and not program.assigns["g"].args


def mathml(*texts: str) -> str:
    """One display of all lines of some `aligned` environments, aligned at their first `&`."""
    table = Element("mtable", {"displaystyle": "true"})
    for sides in (line for text in texts for line in _lines(text)):
        row = ElementTree.SubElement(table, "mtr")
        for side in (sides[0], f"= {sides[1]}"):
            ElementTree.SubElement(row, "mtd").append(_element(side))
    whole = Element("math", {"xmlns": NAMESPACE, "display": "block"})
    whole.append(table)
    return ElementTree.tostring(whole, encoding="unicode")


def _lines(text: str) -> list[tuple[str, str]]:
    """Left and right side of each line; lines inside `cases` are not followed by a line break."""
    inner = text.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    pairs = (line.split(" &= ", 1) for line in inner.split(" \\\\\n"))
    return [(left, right) for left, right in pairs]


def _element(text: str) -> Element:
    """The `mrow` of one expression, without a namespace."""
    text = re.sub(r"\\operatorname\{(\w+)\}", r"\\mathrm{\1}", text)
    parsed = ElementTree.fromstring(convert(text))
    for e in parsed.iter():
        e.tag = e.tag.removeprefix(f"{{{NAMESPACE}}}")
    _tidy(parsed)
    return parsed[0]


def _tidy(parent: Element) -> None:
    """Make words of single letters, and keep words apart from what they are multiplied with."""
    for child in parent:
        _tidy(child)
    for i, child in enumerate(parent):
        word = _word(child)
        if word:
            parent[i] = Element("mi", {} if len(word) > 1 else {"mathvariant": "normal"})
            parent[i].text = word
    if parent.tag in ROWS:
        for i in reversed(range(1, len(parent))):
            if _apart(parent[i - 1], parent[i]):
                parent.insert(i, Element("mspace", {"width": THIN}))


def _word(e: Element) -> str:
    """The word that an element spells: what `\\mathrm` became, or an operator such as max."""
    if e.tag == "mo" and re.fullmatch("[a-z]{2,}", e.text or "") and e.text != "mod":
        return e.text or ""
    upright = [c for c in e if c.tag == "mi" and c.get("mathvariant") == "normal"]
    if e.tag != "mrow" or not upright or upright[0] is not e[0]:
        return ""
    plain = all(c in upright or c.tag == "mn" or c.text in ("(", ")") for c in e if len(c) == 0)
    return "".join(c.text or "" for c in e) if plain and not any(len(c) for c in e) else ""


def _apart(a: Element, b: Element) -> bool:
    """Whether two neighbours are factors of which one is a word; a function stands close to its brackets."""
    if {a.tag, b.tag} & {"mo", "mtext", "mspace"}:
        return False
    fenced = b.tag == "mrow" and len(b) > 0 and (b[0].text or "") in FENCES and b[0].tag == "mo"
    return _is_word(b) or (_is_word(a) and not fenced)


def _is_word(e: Element) -> bool:
    while e.tag in ("msub", "msup", "msubsup", "mover") or (e.tag == "mrow" and len(e) == 1):
        e = e[0]
    return e.tag == "mi" and len(e.text or "") > 1
