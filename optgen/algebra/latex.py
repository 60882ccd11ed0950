"""LaTeX: statements in the written order and in the notation of papers.

In: a program. Out: the text of an `aligned` environment. No sympy: it would reorder what was written.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence

from optgen.ir import functions as fn
from optgen.ir.extent import Extent
from optgen.ir.functions import FUNCTIONS, Function, Operation, operation
from optgen.ir.node import REDUCTIONS, DType, Node, Op, const, load, toposort
from optgen.ir.program import Program

GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta",
    "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
)  # fmt: skip
USUAL = {"p": "theta", "lr": "eta", "eps": "epsilon", "weight_decay": "lambda", "momentum": "mu"}
ACCENTS = ("hat", "bar", "tilde", "dot")
SYMBOLS = {
    Op.ADD: "+", Op.SUB: "-", Op.MOD: r"\,\mathrm{mod}\,", Op.AND: r"\wedge", Op.OR: r"\vee",
    Op.LT: "<", Op.LE: r"\le", Op.EQ: "=", Op.NE: r"\ne",
}  # fmt: skip
RELATIONS = {"is": "=", "==": "=", "!=": r"\ne", "<": "<", "<=": r"\le", ">": ">", ">=": r"\ge"}
RANDOM = {Op.NORMAL: r"\mathcal{N}(0, 1)", Op.UNIFORM: r"\mathcal{U}[0, 1)"}
LONG = 40  # an expression of more operations than this gets a line of its own
Spelling = tuple[str, int]  # a text, and how tightly it binds: 4 a relation, 6 +, 7 *, 8 a fraction
ATOM = 10
DOT, NEXT = r" \cdot ", r" \\ "


def latex(program: Program) -> str:
    r"""The step of a rule as an `aligned` environment, for MathJax or any LaTeX with amsmath.

    One line a statement, in the written order. A state is $m_{t-1}$ before the step and $m_t$ after it,
    a value that is replaced later is $g_t'$. p is $\theta$, lr $\eta$, eps $\epsilon$, weight_decay
    $\lambda$ and momentum $\mu$, unless the rule has another name for that letter. A choice that is not
    yet made, or is made at run time, is written as cases.
    """
    if program.scalars:
        program = program.map(lambda n: program.scalars[int(n.value or 0)] if n.op is Op.SCALAR else None)
    program = program.map(lambda n: n.args[0] if n.op is Op.ONCE else None)
    letters = _Letters(program)
    order, names = _statements(program)
    label = letters.labels(order, names, program.assigns)
    texts: dict[Node, Spelling] = {}
    lines = []
    for n in toposort([*order, *program.assigns.values()]):
        texts[n] = _spell(n, texts, letters, set(label))
        if n in label:
            lines.append(f"{label[n]} &= {texts[n][0]}")
            texts[n] = (label[n], 9 if "'" in label[n] or "^" in label[n] else ATOM)
    for target, n in program.assigns.items():
        if texts[n][0] != letters.after(target):
            lines.append(f"{letters.after(target)} &= {texts[n][0]}")
    return "\n".join([r"\begin{aligned}", " \\\\\n".join(lines), r"\end{aligned}"])


def _statements(program: Program) -> tuple[list[Node], dict[Node, str]]:
    """The nodes that get a line of their own, as the rule orders them, and the names that it gives them."""
    roots = list(program.assigns.values())
    order = toposort(roots)
    names = {n: program.names[n] for n in order if n in program.names}
    names |= {n: k for k, n in program.assigns.items() if n.args and n not in names}
    uses: dict[Node, int] = dict.fromkeys(order, 0)
    for n in order:
        for x in n.args:
            uses[x] += 1
    for n in order:  # a compile-time choice between values of one name is what has that name
        if n.op is Op.CHOOSE:
            stems = {names.get(x, x.value if x.op is Op.LOAD else None) for x in n.args[1:]}
            if len(stems) == 1 and None not in stems:
                names.setdefault(n, str(stems.pop()))
                for x in n.args[1:]:
                    if uses[x] == 1 and x not in roots:
                        names.pop(x, None)
    size: dict[Node, int] = {}
    for n in order:
        size[n] = 1 + sum(size[x] for x in n.args) if n.args else 0
        if size[n] > LONG and n.dtype is not DType.BOOL:
            names.setdefault(n, "x")
        size[n] = 0 if n in names else size[n]
    places = {source: i for i, source in enumerate(program.sources)}

    def place(n: Node) -> tuple[int, int]:
        span = program.spans.get(n)
        return (places.get(span.source, 0), span.line) if span else (len(places), 0)

    return [n for n in toposort(sorted(names, key=place)) if n in names], names


class _Letters:
    """How a program's names are written."""

    def __init__(self, program: Program):
        self.program = program
        self.hypers = {n.value for n in toposort(program.roots()) if n.op is Op.HYPER}
        self.moving = {*program.states, "p", "g", "u"}
        named = {*self.hypers, *program.hypers, *self.moving, *program.names.values()}
        spelled = {_greek(str(k).rstrip("0123456789").split("_")[0].split("[")[0]) for k in named}
        self.usual = {k: "\\" + v for k, v in USUAL.items() if "\\" + v not in spelled}

    def write(self, name: str, *below: str) -> str:
        """A name in LaTeX, with further subscripts."""
        stem, _, index = name.partition("[")
        if index:
            hyper = stem in self.program.hypers  # betas[0] is what rules call beta1
            below = (str(int(index[:-1]) + hyper), *below)
            stem = stem.removesuffix("s" if hyper and _greek(stem[:-1]) != stem[:-1] else "")
        if stem in self.usual:
            return _below(self.usual[stem], below)
        parts = [part for part in stem.split("_") if part] or [stem]
        accents = [part for part in parts[1:] if part in ACCENTS]
        digits = parts[0][len(parts[0].rstrip("0123456789")) :]
        head = parts[0].removesuffix(digits)
        if len(_greek(head)) > 1 and not _greek(head).startswith("\\"):
            accents, below = [], below
            text = _roman(stem)
        else:
            words = [_roman(part) for part in parts[1:] if part not in ACCENTS]
            below = (*([digits] if digits else []), *words, *below)
            text = _greek(head)
        for accent in accents:
            text = rf"\{accent}{{{text}}}"
        return _below(text, below)

    def before(self, n: Node) -> str:
        """A leaf: what a store holds when the step begins, a hyperparameter, t, a shape."""
        name = n.value or "t"
        if n.op in RANDOM:
            return RANDOM[n.op]
        if n.op is not Op.LOAD:
            return self.write(name)
        given = name in ("g", "u", *self.program.inputs)
        return self.write(name, "t" if given else "t-1")

    def after(self, target: str) -> str:
        return self.write(target, "t") + "'" * (target in ("g", "u"))

    def labels(
        self, order: Sequence[Node], names: Mapping[Node, str], assigns: Mapping[str, Node]
    ) -> dict[Node, str]:
        """What stands left of `=` for each node: values that are replaced within the step get primes."""
        final = {n: k for k, n in assigns.items()}
        flat = {k.replace("[", "").replace("]", ""): k for k in self.moving}
        total: dict[str, int] = {}
        for n in order:
            total[names[n]] = total.get(names[n], 0) + (n not in final)
        seen: dict[str, int] = {}
        found: dict[Node, str] = {}
        for n in order:
            name = flat.get(names[n], names[n])
            if n in final and final[n] not in ("g", "u"):
                found[n] = self.write(final[n], "t")
                continue
            seen[name] = count = seen.get(name, 0) + 1
            if name not in self.moving and count == total[names[n]]:
                count = 0
            timed = any(x.op in (Op.LOAD, Op.COUNT) for x in toposort([n]))
            text = self.write(name, *(["t"] if timed else []))
            found[n] = text + ("'" * count if count <= 3 else f"^{{({count})}}")
        return found


def _roman(text: str) -> str:
    return "\\mathrm{" + text.replace("_", r"\_") + "}"


def _below(text: str, below: Sequence[str]) -> str:
    return f"{text}_{{{','.join(below)}}}" if below else text


def _greek(word: str) -> str:
    if len(word) == 1 and not word.isascii():
        *_, kind, _, letter = ("", "", "", *unicodedata.name(word, "").split())
        word = {"SMALL": letter.lower(), "CAPITAL": letter.title()}.get(kind, word)
    word = {"lam": "lambda", "lambd": "lambda", "lamda": "lambda"}.get(word, word)
    return "\\" + word if word in GREEK else word


def _number(x: float) -> str:
    if x == math.pi or not math.isfinite(x):
        return (
            r"\pi"
            if x == math.pi
            else r"\mathrm{nan}"
            if math.isnan(x)
            else r"\infty"
            if x > 0
            else r"-\infty"
        )
    mantissa, _, exponent = repr(x).partition("e")
    mantissa = mantissa.removesuffix(".0")
    if not exponent:
        return mantissa
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa} \cdot {power}"


def _spell(n: Node, texts: Mapping[Node, Spelling], letters: _Letters, named: set[Node]) -> Spelling:
    """A node from the spellings of its arguments, as a paper would write it."""

    def tight(x: Node, rank: int) -> str:
        return texts[x][0] if texts[x][1] >= rank else rf"\left({texts[x][0]}\right)"

    if n.op is Op.CONST:
        text = _roman(str(bool(n.number))) if n.dtype is DType.BOOL else _number(n.number)
        return text, 5 if text.startswith("-") else 7 if "cdot" in text else 9 if "^" in text else ATOM
    if n.op is Op.FACT:
        return _fact(letters, n, True)
    if n.op is Op.UNDEF:
        return r"\mathrm{undefined}", ATOM
    if not n.args:
        return letters.before(n), ATOM
    known = _known(n)
    if known:
        text, parts = known
        return text % tuple(texts[x][0] for x in parts), ATOM
    x, y = n.args[0], n.args[-1]
    if n.op is Op.ADD and y.op is Op.MUL and y not in named and n is fn.lerp(x, *_last_two(y)):
        return _mean(x, *_last_two(y), texts, named), 6
    row = operation(n.op)
    if row:
        return row.latex % tuple(texts[a][0] for a in n.args), ATOM
    if n.op is Op.CAST:
        return texts[x]
    if n.op is Op.DIV:
        return rf"\frac{{{texts[x][0]}}}{{{texts[y][0]}}}", 8
    if n.op is Op.POW:
        return rf"{tight(x, ATOM)}^{{{texts[y][0]}}}", 9
    if n.op is Op.MUL:
        base, count = _power(n, named)
        if count > 1:
            return rf"{tight(base, ATOM)}^{{{count}}}", 9
        left, right = tight(x, 5 if texts[x][1] == 5 else 7), tight(y, 7)
        return f"{left}{DOT if right[0].isdigit() else ' '}{right}", 5 if left[0] == "-" else 7
    if n.op is Op.NEG:
        return "-" + tight(x, 7), 5
    if n.op is Op.NOT:
        return _fact(letters, x, False) if x.op is Op.FACT else (r"\neg " + tight(x, 8), 3)
    if n.op in (Op.WHERE, Op.CHOOSE):
        rows, rest = [], n
        while rest.op in (Op.WHERE, Op.CHOOSE) and (rest is n or rest not in named):
            rows.append(rf"{texts[rest.args[1]][0]} & \text{{if }} {texts[rest.args[0]][0]}")
            rest = rest.args[2]
        rows.append(rf"{texts[rest][0]} & \text{{otherwise}}")
        return rf"\begin{{cases}} {NEXT.join(rows)} \end{{cases}}", 0
    rank = {Op.ADD: 6, Op.SUB: 6, Op.MOD: 7, Op.AND: 2, Op.OR: 1}.get(n.op, 4)
    return f"{tight(x, rank)} {SYMBOLS[n.op]} {tight(y, rank + (n.op is not Op.ADD))}", rank


def _known(n: Node) -> tuple[str, list[Node]] | None:
    """A call of a function of the language: how it is written, and its arguments."""
    for row in FUNCTIONS.values():
        arguments = _arguments(row, n) if row.latex and not isinstance(row, Operation) else None
        if arguments:
            return row.latex, arguments
    x = n.args[0]
    inner = x if n.op is Op.SQRT else n
    total = inner.args[0] if inner.op is Op.DIV else inner
    if total.op not in REDUCTIONS:
        return None
    operand = total.args[0]
    if total.extent is Extent.ALL and operand.op in REDUCTIONS:
        operand = operand.args[0]
    made = fn.Reducer(operand.extent, total.extent, (total.value or "").removeprefix(total.op.value))
    below = "" if total.extent is Extent.TENSOR else rf"_{{\mathrm{{{total.extent.name.lower()}}}}}"
    if n.op is Op.SQRT and operand.op is Op.MUL and n is fn.norm(made, operand.args[0]):
        return r"\left\|%s\right\|" + below, [operand.args[0]]
    if n.op is Op.SQRT and operand.op is Op.MUL and n is fn.rms(made, operand.args[0]):
        return rf"\operatorname{{rms}}{below}\left(%s\right)", [operand.args[0]]
    if n.op is Op.DIV and n is fn.mean(made, operand):
        return rf"\operatorname{{mean}}{below}\left(%s\right)", [operand]
    if n is total:
        return rf"\operatorname{{{n.op.value}}}{below}\left(%s\right)", [operand]
    return None


def _arguments(row: Function, n: Node) -> list[Node] | None:
    """What a function was called with where a node is what a call of it builds, else None."""
    places = [load(str(i)) for i in range(row.arguments)]
    met: dict[Node, Node] = {}
    stack = [(row(*places), n)]
    while stack:
        pattern, part = stack.pop()
        if pattern not in places:
            if pattern.op is not part.op or len(pattern.args) != len(part.args):
                return None
            stack.extend(zip(pattern.args, part.args, strict=True))
        if met.setdefault(pattern, part) is not part:
            return None
    arguments = [met[place] for place in places]
    return arguments if row(*arguments) is n else None


def _last_two(product: Node) -> tuple[Node, Node]:
    """b and weight of the `weight*(b - a)` in a lerp."""
    weight, gap = product.args
    return (gap.args[0] if gap.op is Op.SUB else gap), weight


def _mean(a: Node, b: Node, weight: Node, texts: Mapping[Node, Spelling], named: set[Node]) -> str:
    """lerp(a, b, weight) as a weighted mean: with 1 - beta for its weight it is beta a + (1 - beta) b."""

    def times(factor: Spelling, x: Node) -> str:
        both = [text if rank >= 7 else rf"\left({text}\right)" for text, rank in (factor, texts[x])]
        return f"{both[0]}{DOT if both[1][0].isdigit() else ' '}{both[1]}"

    if weight.op is Op.SUB and weight.args[0] is const(1) and weight not in named:
        rest = texts[weight.args[1]]
    else:
        inner, rank = texts[weight]
        rest = ("1 - " + (inner if rank > 6 else rf"\left({inner}\right)"), 6)
    return f"{times(rest, a)} + {times(texts[weight], b)}"


def _power(n: Node, named: set[Node]) -> tuple[Node, int]:
    """x and k where a product is the chain x*x*…*x of k factors."""
    count, base = 1, n.args[1]
    while n.op is Op.MUL and n.args[1] is base and (count == 1 or n not in named):
        count, n = count + 1, n.args[0]
    return (base, count) if n is base else (base, 1)


def _fact(letters: _Letters, n: Node, truth: bool) -> Spelling:
    fact = letters.program.facts[n.value or ""]
    subject = letters.write(fact.subject)
    if fact.relation == "is" and fact.value is True:
        return (subject if truth else rf"\text{{not }} {subject}"), (ATOM if truth else 3)
    relation = (
        RELATIONS[fact.relation] if truth else {"=": r"\ne", r"\ne": "="}.get(RELATIONS[fact.relation], "")
    )
    value = _number(float(fact.value)) if isinstance(fact.value, int | float) else _roman(str(fact.value))
    if not relation:
        return rf"\neg \left({subject} {RELATIONS[fact.relation]} {value}\right)", 3
    return f"{subject} {relation} {value}", 4
