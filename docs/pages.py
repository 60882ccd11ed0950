"""The pages of the gallery, as Markdown: one for each rule, and one that lists them all.

In: the names of rules, and what their oracles say. Out: `Page`s. Everything on a page comes from the rule's
text, its plan and rules/ORACLES.md, when the documentation is built.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import formulas
import trajectories

from optgen import library
from optgen.compiler import costs, planned
from optgen.ir.extent import Extent
from optgen.ir.node import Node, Op, toposort
from optgen.ir.program import Program
from optgen.library import CLASSES, class_of, runnable
from optgen.plan.plan import Plan, Step

ORACLES = Path(__file__).resolve().parent.parent / "rules" / "ORACLES.md"
HEADINGS = {
    "element-wise": ("Element by element", "Each element by itself: one sweep over the parameters."),
    "per-tensor": ("One value a tensor", "Norms, means and other reductions to one value for each tensor."),
    "slices": ("Slices of a tensor", "Values for each row, column, unit, dimension or block."),
    "copies": ("Copies of the parameters", "A second set of parameters, some to be swapped by `eval()`."),
    "global": ("All tensors", "Values that are one for the whole optimizer."),
    "noise": ("Noise", "Random numbers."),
    "inputs": ("Further inputs", "`step` is handed more than gradients."),
}
PLACES = {
    "before": "before a rule: it changes the gradient",
    "after": "after a rule: it changes what the rule did",
}
LINKS = (
    (r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'),
    (r"(?<![/\w])(openreview\.net/[\w?=./-]*[\w-])", r'<a href="https://\1">\1</a>'),
    (r"`([^`]+)`", r"<code>\1</code>"),
)


@dataclass(frozen=True)
class Page:
    """A page of the documentation: its place below docs/, its title, its class, its Markdown, its figure."""

    uri: str
    title: str
    kind: str
    text: str
    figure: str | None = None

    @property
    def figure_uri(self) -> str:
        """Where the figure is kept."""
        return f"{self.uri.removesuffix('.md')}.svg"


def title_of(name: str) -> str:
    """The name of a rule's class, which is what its docstring begins with."""
    return _titles()[name]


@cache
def _titles() -> dict[str, str]:
    return {name: title for title, name in library.classes().items()}


def in_classes(names: Iterable[str]) -> dict[str, list[str]]:
    """Rules by class, both in order; classes without rules are left out."""
    found: dict[str, list[str]] = {kind: [] for kind in CLASSES}
    for name in sorted(names, key=lambda n: title_of(n).lower()):
        found[class_of(library.rule(name))].append(name)
    return {kind: members for kind, members in found.items() if members}


# A rule


def drawn(name: str) -> Page:
    """The page of one rule with its figure."""
    program, _ = runnable([library.rule(name)])
    return page(name, trajectories.draw(title_of(name), program, learns(name)))


def learns(name: str) -> Mapping[str, Any]:
    """The options with which a rule learns in the tests, from its oracle in tests/support/oracles."""
    from oracles import every

    known = every().get(name)
    return known.learns if known else {"lr": 0.03}


def page(name: str, drawing: trajectories.Drawing | None = None) -> Page:
    """The page of one rule, with a figure where it is given one."""
    program = library.rule(name)
    whole, partner = runnable([program])
    sections = [
        f"# {title_of(name)}\n\n{docstring(program.doc)}\n\n{_summary(program)}",
        f"## Mathematics\n\n{mathematics(program)}",
        f"## Rule\n\n```python\n{program.sources[0].text.rstrip()}\n```\n\n{_use(program, partner)}",
        f"## Hyperparameters\n\n{hyperparameters(program)}",
        f"## State\n\n{state(program)}",
        f"## Plan\n\n{plan(whole, partner)}",
        f"## Oracle\n\n{oracle(name)}",
    ]
    if drawing:
        also = f" The rule is chained with {_link(partner)}." if partner else ""
        picture = f"![{drawing.alt}]({name}.svg){{ width=640 height=310 }}"
        figure = f'<figure markdown="span">\n{picture}\n</figure>\n\n{_escape(drawing.caption)}'
        sections.append(f"## Paths\n\nOn two functions of two variables, in float64.{also}\n\n{figure}")
    svg = drawing.svg if drawing else None
    return Page(f"rules/{name}.md", title_of(name), class_of(program), "\n\n".join(sections) + "\n", svg)


def docstring(doc: str) -> str:
    """Paragraphs of HTML, with links to papers; nothing in them is Markdown."""
    shown = html.escape(doc, quote=False)
    for pattern, link in LINKS:
        shown = re.sub(pattern, link, shown)
    return "\n\n".join(f"<p>{' '.join(part.split())}</p>" for part in shown.split("\n\n"))


def _summary(program: Program) -> str:
    """The kind, the class and the costs in one line."""
    spent = costs(program)
    head = f"A transform {PLACES[program.kind]}" if program.kind != "rule" else "A rule"
    sign = "" if program.kind == "rule" else "+"
    numbers = (
        f"{sign}{_number(spent['phases'], 'phase')}, "
        f"{sign}{spent['bytes']} bytes moved and {sign}{spent['state_bytes']} kept per parameter in float32"
    )
    return f"{head}. Class: {HEADINGS[class_of(program)][0].lower()}. {numbers}."


def mathematics(program: Program) -> str:
    """The step as MathML, and `train()` and `eval()` where the rule has them."""
    letters = "A state at *t*−1 is what it was before the step; a prime marks a value that is replaced later."
    parts = [f'<div class="formula">{formulas.step(program)}</div>', letters]
    if program.skip is not None:
        parts.append(
            "Where skip holds, what the rule has below it does not happen, nor do the rules after it."
        )
    if program.count is not None:
        parts.append("*t*′ is the step count that the rules after it see.")
    for name in program.modes:
        parts.append(f"`{name}()`, where *t*−1 is before the call and *t* after it:")
        parts.append(f'<div class="formula">{formulas.mode(program, name)}</div>')
    return "\n\n".join(parts)


def _use(program: Program, partner: str | None) -> str:
    """How to make an optimizer of it."""
    given = ", ".join(
        f"{n}={'loss' if i.extent is Extent.ALL else '{p: …}'}" for n, i in program.inputs.items()
    )
    if partner is None:
        made = f"optgen.{title_of(program.name)}(model.parameters())"
    else:
        order = (program.name, partner) if program.kind == "before" else (partner, program.name)
        made = f'optgen.optimizer(optgen.chain("{order[0]}", "{order[1]}"))(model.parameters())'
    return f"```python\nopt = {made}\nopt.step({given})\n```"


def hyperparameters(program: Program) -> str:
    """Names, defaults and bounds."""
    if not program.hypers:
        return "None."
    bounds = [(_subjects(r.condition, program), r.text) for r in program.requires]
    rows = []
    for h in program.hypers.values():
        needs = ", ".join(_code(text) for subjects, text in bounds if h.name in subjects)
        rows.append((_code(h.name), _code(_value(h.default)), needs or "–"))
    return _table(["name", "default", "needs"], rows)


def _subjects(condition: Node, program: Program) -> set[str]:
    """The hyperparameters that a condition is on."""
    leaves = [n for n in toposort([condition]) if n.op in (Op.HYPER, Op.FACT)]
    paths = [program.facts[n.value or ""].subject if n.op is Op.FACT else n.value or "" for n in leaves]
    return {path.partition("[")[0] for path in paths}


def _value(value: Any) -> str:
    """A default as a rule would write it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))})"
    return repr(value).removesuffix(".0")


def state(program: Program) -> str:
    """What is kept from step to step, and under which keys."""
    if not program.states:
        return "None, but for the step count."
    rows = []
    for s in program.states.values():
        key = _code(s.key.removeprefix("group:"))
        place = f"{key}, in `param_groups`" if s.extent is Extent.ALL else key
        rows.append((_code(s.name), place, s.extent.name.lower(), _code(repr(s.init))))
    return _table(["name", "key in a state dict", "one per", "starts as"], rows)


# The plan


def plan(whole: Program, partner: str | None) -> str:
    """What each phase loads, stores and reduces, and the bytes that it moves."""
    wide, narrow = planned(whole, "fp32"), planned(whole, "bf16")
    parts = [_plan_of(whole, partner)]
    if [_shape(p) for p in wide.sweeps] == [_shape(p) for p in narrow.sweeps]:
        parts.append(_phases({"bytes, float32": wide, "bytes, bfloat16": narrow}))
    else:
        parts += [_phases({"bytes, float32": wide}), _phases({"bytes, bfloat16": narrow})]
    parts.append(
        f"{wide.bytes} bytes per element with float32 parameters, {narrow.bytes} with bfloat16 parameters, "
        "gradients and inputs beside float32 state. "
        f"On the host, once a step: {_number(len(wide.scalars), 'number')}."
    )
    if wide.totals:
        sums = sum(r.extent is Extent.ALL for r in wide.reductions)
        parts.append(
            f"Between the phases, for all tensors together: {_number(sums, 'reduction')} and "
            f"{_number(len(wide.totals), 'number')}."
        )
    if wide.spills or narrow.spills:
        parts.append("`#0`, `#1`, … are values that one phase leaves in memory for a later one.")
    return "\n\n".join(parts)


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _plan_of(whole: Program, partner: str | None) -> str:
    """Which program is planned, and for which parameters."""
    shaped = any(fact.subject == "ndim" for fact in whole.facts.values())
    where = ", for a parameter of two dimensions" if shaped else ""
    chained = f", a chain with {_link(partner)}" if partner else ""
    return f"Of `{whole.name}`{chained}, with its defaults{where}."


def _shape(step: Step) -> tuple[object, ...]:
    return step.loads, tuple(step.values), _reductions(step)


def _phases(plans: dict[str, Plan]) -> str:
    """A table of phases that several plans share, with the bytes of each plan."""
    rows = []
    for k, phases in enumerate(zip(*(made.sweeps for made in plans.values()), strict=True)):
        first = phases[0]
        names = [" ".join(map(_code, stores)) or "–" for stores in (first.loads, first.values)]
        rows.append((str(k), *names, _reductions(first) or "–", *(str(phase.bytes) for phase in phases)))
    return _table(["phase", "loads", "stores", "reduces", *plans], rows, numbers=len(plans))


def _reductions(step: Step) -> str:
    """What a phase reduces: `2 × sum per tensor`."""
    kinds = Counter(f"{r.op.value} per {r.extent.name.lower()}" for r in step.reductions)
    return ", ".join(kind if n == 1 else f"{n} × {kind}" for kind, n in kinds.items())


# The oracle


def oracle(name: str) -> str:
    """What the rule is checked against, and how close it comes."""
    row = oracles().get(name)
    if row is None:
        return "No row in rules/ORACLES.md yet."
    source, version, single, double = row
    known = "" if version == "–" else f" {version}"
    return (
        f"Checked against {_escape(source)}{known}. After 100 steps "
        f"the largest relative difference is {single} in float32 and {double} in float64."
    )


@cache
def oracles() -> dict[str, list[str]]:
    """The rows of rules/ORACLES.md by rule: oracle, version, difference in float32 and in float64."""
    lines = [line for line in ORACLES.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {c[0].strip("`"): c[1:] for c in cells}


# The gallery


def gallery(names: Sequence[str]) -> Page:
    """All rules by class, with what they move and keep."""
    intro = (
        f"{len(names)} rules. Bytes are moved and kept per parameter in float32; a + stands before what a "
        "transform adds to [SGD](/rules/sgd.md), or to [AdamW](/rules/adamw.md) where it comes after a rule. "
        "A rule that fits several classes is in the last of them."
    )
    parts = [f"# Gallery\n\n{intro}"]
    for kind, members in in_classes(names).items():
        title, what = HEADINGS[kind]
        parts.append(f"## {title}\n\n{what}\n\n{_members(members)}")
    return Page("gallery.md", "Gallery", "", "\n\n".join(parts) + "\n")


def _members(names: Iterable[str]) -> str:
    rows = []
    for name in names:
        program = library.rule(name)
        sign = "" if program.kind == "rule" else "+"
        numbers = (f"{sign}{costs(program)[key]}" for key in ("phases", "state_bytes", "bytes"))
        rows.append((_link(name), _code(name), _what(program.doc), *numbers))
    return _table(["rule", "file", "what it is", "phases", "state", "moved"], rows, numbers=3)


def _what(doc: str) -> str:
    """The first sentence of a docstring, without the name in front and the authors after it."""
    line = doc.partition("\n")[0].split(".  ")[0].rstrip(".")
    text = re.sub(r"^\w+:\s*", "", line)
    return _escape(text[:1].upper() + text[1:])


# Markdown


def _link(name: str | None) -> str:
    """A link to a rule's page, from any page: mkdocs.yml says that `/` is docs/."""
    return f"[{title_of(name)}](/rules/{name}.md)" if name else ""


def _escape(text: str) -> str:
    """Text that is no markup."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A Markdown table whose last columns are numbers."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
