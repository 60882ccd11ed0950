"""What the commands print: tables and highlighted text, for terminals of any width.

In: programs, plans, rows and reports. Out: things that a rich `Console` prints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from optgen.compiler import kept_bytes
from optgen.ir.program import Program
from optgen.passes.pipeline import Count
from optgen.plan.plan import Plan, reduction_text

if TYPE_CHECKING:
    from optgen.backends.triton.ahead_of_time import Report
    from optgen.verify.check import Answer

THEME = "ansi_dark"  # the terminal's own colours


def code(text: str, language: str = "python") -> Text:
    """Source with colours, where the terminal has them, and no padding."""
    shown = Syntax("", language, theme=THEME, background_color="default").highlight(text.rstrip("\n"))
    shown.no_wrap = True
    shown.rstrip()
    return shown


def title_of(program: Program) -> str:
    """The name of a rule, or the names of a chain's parts in order."""
    return " → ".join(part.name for part in program.parts or (program,))


def _table(left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """A table with columns of text, then columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _section(title: str | None, table: Table, *notes: str) -> Group:
    """A table under its title and over its notes, which are as wide as the terminal."""
    head = [Text(title, "bold")] if title else []
    return Group(*head, table, *(Text(note, "dim") for note in notes))


def _cell(value: object) -> Text:
    """Text that is no markup: rules are full of square brackets."""
    return Text(str(value))


def listing(records: Iterable[dict[str, Any]]) -> Group:
    """The rules of `optgen list`."""
    note = (
        "state and bytes: kept and moved per parameter in fp32. +: a transform, and what it adds to sgd, or "
        "to adamw where it comes after a rule."
    )
    table = _table(["name", "class"], ["phases", "state", "bytes"])
    for column in table.columns[:2]:
        column.no_wrap = True
    table.add_column("source", overflow="fold", ratio=1)
    for r in records:
        sign = "" if r["kind"] == "rule" else "+"
        numbers = (f"{sign}{r[key]}" for key in ("phases", "state_bytes", "bytes"))
        table.add_row(r["name"], r["class"], *numbers, _cell(r["source"]))
    return _section(None, table, note)


def rule(program: Program) -> list[Any]:
    """The text of a rule, or of each part of a chain, then its hyperparameters and its state."""
    sections: list[Any] = []
    for part in program.parts or (program,):
        sections += [Text(f"# {part.sources[0].name}\n", "bold") + code(part.sources[0].text)]
    if program.hypers:
        sections.append(hypers(program))
    if program.states:
        sections.append(states(program))
    return sections


def hypers(program: Program) -> Group:
    """Hyperparameters with defaults and bounds."""
    table = _table(["name", "default", "needs"])
    for hyper in program.hypers.values():
        needs = [r.text for r in program.requires if _mentions(r.text, hyper.name)]
        table.add_row(_cell(hyper.name), _cell(_plain(hyper.default)), _cell(", ".join(needs)))
    return _section("hyperparameters", table)


def _mentions(text: str, name: str) -> bool:
    """Whether a condition is on a hyperparameter; a chain's has its part's name in front."""
    words = "".join(c if c.isidentifier() or c.isdigit() else " " for c in text).split()
    return name in words


def _plain(value: object) -> str:
    """A default as a rule would write it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_plain, value))})"
    return repr(value).removesuffix(".0")


def states(program: Program) -> Group:
    """States with their keys and extents."""
    table = _table(["name", "state_dict key", "per", "starts as"])
    for state in program.states.values():
        per = state.extent.name.lower()
        table.add_row(_cell(state.name), _cell(state.key), per, _cell(repr(state.init)))
    return _section("state", table)


def passes(counts: Iterable[Count]) -> Group:
    """Op counts after each pass."""
    table = _table(["pass"], ["per element", "per tensor", "per step"])
    for c in counts:
        table.add_row(c.name, str(c.element), str(c.tensor), str(c.step))
    return _section("operations after each pass", table)


def plan(made: Plan) -> Group:
    """The phases of a plan: what each loads, stores and reduces, and the bytes per element."""
    heading = f"plan of {made.name}: {_count(len(made.sweeps), 'phase')}, {made.bytes} bytes per element"
    table = _table(["phase", "loads", "stores", "reduces"], ["bytes"])
    for k, step in enumerate(made.sweeps):
        reduced = ", ".join(f"r{r.slot} = {reduction_text(r)}" for r in step.reductions)
        loads, stores = (_cell(" ".join(names) or "–") for names in (step.loads, step.values))
        table.add_row(str(k), loads, stores, reduced or "–", str(step.bytes))
    return _section(heading, table, *_plan_notes(made))


def _plan_notes(made: Plan) -> list[str]:
    """Storage, state, and who computes what is no element's."""
    lines = [
        f"storage: {storage(made)}; computed in {made.real}",
        f"state: {kept_bytes(made)} bytes per element",
    ]
    whole = [n for n in made.numbers if n in made.states]
    small = [(n, f"one number a {made.states[n].extent.name.lower()}") for n in made.tensor_states]
    small += [(n, "one number a tensor, on the host") for n in made.host]
    small += [(n, "one number in all") for n in whole]
    kinds = dict.fromkeys(kind for _, kind in small)
    lines[1:] = ["; ".join([lines[1], *(f"{k}: {', '.join(n for n, x in small if x == k)}" for k in kinds)])]
    if made.totals:
        lines.append(
            f"{_count(len(made.totals), 'value')} for all tensors together, between the phases, in float64"
        )
    lines.append(f"{_count(len(made.scalars), 'scalar')} per step, computed on the host in float64")
    if made.spills:
        lines.append(f"spilled to memory between phases: {', '.join(made.spills)}")
    return lines


def storage(made: Plan) -> str:
    """What is stored how: `p g in bf16, m v in fp32`."""
    kinds: dict[str, list[str]] = {}
    for store, codec in made.codecs.items():
        kinds.setdefault(codec, []).append(store)
    return ", ".join(f"{' '.join(stores)} in {codec}" for codec, stores in kinds.items())


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def verdicts(answer: Answer) -> Group:
    """The rows of `optgen check`, and below them what disagrees."""
    request, rows = answer.request, answer.rows
    labels = "; ".join(case.label for case in request.cases("numpy")[: len(request.option_sets)])
    limits = {row.dtype: f"{row.allowed:.0e} in {row.dtype}" for row in rows if row.allowed}
    notes = [
        f"{request.steps} steps over {rows[0].tensors} tensors; settings, {len(request.option_sets)} of "
        f"{answer.combinations}: {labels}",
        "allowed: no difference, for it has neither sums nor transcendental functions",
    ]
    if limits:
        notes[1] = f"allowed, for its sums or transcendental functions: {', '.join(limits.values())}"
    table = _table(["back end", "dtype", "result"], ["settings", "error vs fp64", "seconds"])
    for row in rows:
        name = row.backend if row.device == "CPU" else f"{row.backend}, {row.device}"
        dtype = row.dtype if row.dtype == row.state_dtype else f"{row.dtype}, state {row.state_dtype}"
        table.add_row(
            _cell(name),
            dtype,
            _verdict(row.verdict),
            str(row.runs),
            "–" if row.error == 0 else f"{row.error:.1e}",
            f"{row.seconds:.1f}",
        )
    group = _section(f"{title_of(request.program)} against the reference", table, *notes)
    for row in rows:
        lines = (f"{row.backend} {row.dtype} {failure}" for failure in row.failures[:3])
        group.renderables.extend(Text(line, "red") for line in lines)
    return group


def answers(found: Sequence[tuple[str, Answer]]) -> Group:
    """The answers of `optgen check --all`: a row a rule, and below them what disagrees."""
    backends = list(dict.fromkeys(row.backend for _, answer in found for row in answer.rows))
    compared = [b for b in backends if b != "numpy"] or backends
    table = _table(["rule", *compared], ["settings", "seconds"])
    failures = []
    for name, answer in found:
        cells = []
        for backend in compared:
            rows = [row for row in answer.rows if row.backend == backend]
            wrong = [row for row in rows if not row.passed]
            worst = max(rows, key=lambda row: row.worst)
            cells.append(_verdict((wrong or [worst])[0].verdict))
            failures += [f"{name}: {r.backend} {r.dtype} {r.failures[0]}" for r in wrong]
        spent = sum(row.seconds for row in answer.rows)
        table.add_row(_cell(name), *cells, str(len(answer.request.option_sets)), f"{spent:.1f}")
    good = sum(answer.passed for _, answer in found)
    note = f"{good} of {len(found)} rules agree with the reference; a cell shows the worst of the dtypes"
    group = _section("every rule against the reference", table, note)
    group.renderables.extend(Text(line, "red") for line in failures)
    return group


def _verdict(text: str) -> Text:
    return Text(text, {"disagrees": "bold red", "reference": "dim"}.get(text, "green"))


def reports(found: Iterable[Report], title: str) -> Group:
    """The kernels of `optgen compile`."""
    left = ["target", "kernel", "loads", "stores"]
    table = _table(left, ["regs", "spilled", "planned", "found", "seconds"])
    for r in found:
        table.add_row(
            r.target,
            r.kernel,
            widths(r.loads),
            widths(r.stores),
            str(r.registers),
            Text(str(r.spilled), "bold red" if r.spilled else "green"),
            "–" if r.planned is None else str(r.planned),
            "–" if r.found is None else f"{r.found:g}",
            f"{r.seconds:.2f}",
        )
    note = (
        "loads, stores: how many, and the bits that a thread moves with each, in a whole, aligned block; "
        "regs: a thread's registers; spilled: bytes; planned, found: bytes per element, and those in the "
        "machine code"
    )
    return _section(title, table, note)


def widths(bits: Sequence[int]) -> str:
    """Access widths, each with its count: `4×128`."""
    return " ".join(f"{n}×{width}" for width, n in Counter(bits).items()) or "–"


def trainings(rows: Iterable[tuple[str, int, float, float, float]]) -> Group:
    """The trainings of the demo: name, steps, last loss, accuracy, seconds."""
    table = _table(["optimizer"], ["steps", "last loss", "test accuracy", "seconds"])
    for name, steps, loss, accuracy, seconds in rows:
        table.add_row(name, str(steps), f"{loss:.4f}", f"{accuracy:.1%}", f"{seconds:.1f}")
    return _section(None, table, "last loss: the mean over the last epoch")
