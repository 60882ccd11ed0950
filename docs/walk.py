"""What each stage makes of AdamW: the blocks of architecture.md, printed by the code.

    python docs/walk.py            prints them
    python docs/walk.py --write    writes them into the page

A block of the page stands below a line `<!-- walk: name -->`; `tests/test_architecture.py` compares.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import optgen
from optgen import library
from optgen.backends import cache
from optgen.backends.layout import Layout
from optgen.cli import render
from optgen.compiler import Compiler, planned
from optgen.library import runnable
from optgen.passes.pipeline import trace
from optgen.passes.specialise import recur, specialise
from optgen.passes.variants import with_maximize
from optgen.plan.plan import Plan

PAGE = Path(__file__).with_name("architecture.md")
BLOCK = re.compile(r"(?<=^<!-- walk: )(\w+)( -->\n+```\w+\n)(.*?)(?=^```$)", re.M | re.S)
# As torch.optim's classes have it, `maximize` is an option of every rule.
ADAMW = with_maximize(library.rule("adamw"))
COMPILER = Compiler.of(ADAMW)


def rule() -> str:
    """The text, without its docstring."""
    return library.rule("adamw").sources[0].text.split('"""\n', 1)[1]


def program() -> str:
    """The program as statements."""
    return str(ADAMW)


def facts() -> str:
    """Which conditions hold for two groups."""
    groups = ({}, {"amsgrad": True})
    return "\n".join(f"{group or 'defaults'}: {_named(group)}" for group in groups)


def _named(group: dict[str, Any]) -> dict[str, bool]:
    return COMPILER.named(COMPILER.facts({**COMPILER.defaults, **group}))


def specialised() -> str:
    """The program for the defaults."""
    return str(specialise(recur(ADAMW), _named({})))


def lowered() -> str:
    """The program that the passes leave, with what the host computes."""
    return str(COMPILER.specialised(COMPILER.facts()))


def counts() -> str:
    """How many operations there are after each pass, of two rules."""
    rules = [library.rule(name) for name in ("adamw", "madgrad")]
    traces = [trace(r, Compiler.of(r).named(Compiler.of(r).facts())) for r in rules]
    lines = [f"{'':12}" + "".join(f"{r.name:28}" for r in rules)]
    for passes in zip(*traces, strict=True):
        numbers = (f"{c.element:3} per element, {c.step:2} per step" for c in passes)
        lines.append(f"{passes[0].name:12}" + "  ".join(numbers))
    return "\n".join(line.rstrip() for line in lines)


def plan() -> str:
    """What `optgen show adamw --plan` prints."""
    printed = io.StringIO()
    Console(file=printed, width=100).print(render.plan(planned(library.rule("adamw"))))
    lines = printed.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines)


def buffers() -> str:
    """The buffers of that plan, by role."""
    return _by_role(planned(library.rule("adamw")))


def _by_role(made: Plan) -> str:
    found: dict[tuple[str, str, str], list[str]] = {}
    for b in made.buffers:
        found.setdefault((b.role, b.extent.name, b.codec), []).append(b.name)
    return "\n".join(
        f"{role:8} {extent:8} {codec:5} {' '.join(names)}" for (role, extent, codec), names in found.items()
    )


def phases() -> str:
    """The steps of three plans, in order, with the buffers that each reads and writes."""
    parts = []
    for name in ("adamw", "lamb", "clip_global_norm"):
        made = planned(runnable([library.rule(name)])[0])
        parts.append(f"{made.name}")
        for step in made.steps:
            reads = " ".join(b for b in step.reads if not b.startswith("@scalar"))
            parts.append(f"  {step.name:9} reads {reads:20} writes {' '.join(step.writes)}")
    return "\n".join(parts)


def layout() -> str:
    """The columns of the table of tensors, and the tables that a kernel takes."""
    made = Layout(planned(library.rule("adamw")))
    columns = " ".join(f"{i}:{name}" for name, i in made.columns.items())
    return f"columns of tensors: {columns}\narguments: {', '.join(made.arguments)}"


def kernel() -> str:
    """The arithmetic of the CPU's kernel, and how it reads the tables."""
    source = cache.emit(planned(library.rule("adamw")), "cpu").splitlines()
    start = next(i for i, line in enumerate(source) if line.startswith("def update0")) - 1
    end = next(i for i, line in enumerate(source) if line.startswith("def part0"))
    shown: list[str] = []
    for line in source[start:end]:
        if not re.match(r" +(s[1-6] = |[gmv] = carray)", line):
            shown.append(line)
        elif not shown[-1].endswith("..."):  # one after the other, all alike
            shown.append("        ...")
    return "\n".join(shown)


# Launches


class Training:
    """AdamW on two tensors, whose launches are noted."""

    def __init__(self, rule: str = "adamw") -> None:
        self.params = [nn.Parameter(torch.zeros(100, 200)), nn.Parameter(torch.zeros(3))]
        self.optimizer = optgen.optimizer(rule)(self.params, lr=0.01, backend="cpu")
        self.gradients()

    def gradients(self) -> None:
        """New gradients, in new memory."""
        self.kept = [p.grad for p in self.params]  # so that no address comes again
        for p in self.params:
            p.grad = torch.ones_like(p)

    def step(self) -> str:
        """Take a step; what was made anew for it."""
        launcher = self.optimizer._launcher
        replay, recording = launcher.replay, launcher._recordings.get(None)
        tables = None if recording is None else [id(b) for b in recording.buckets]
        built = cache.built
        self.optimizer.step()
        now = launcher._recordings[None]
        if launcher.replay is not None and launcher.replay is replay:
            return "replayed"
        if now is recording:
            return "recording kept, each tensor looked at"
        if [id(b) for b in now.buckets] == tables:
            return "recorded, tables kept"
        return f"recorded, new tables{', kernel compiled' if cache.built > built else ''}"


def tables() -> str:
    """The tables of the first step; addresses by what lies there."""
    training = Training()
    training.step()
    (bucket,) = training.optimizer._launcher._recordings[None].buckets
    names = {0: "&p", 1: "&g", 2: "&m", 3: "&v"}
    rows = [[names.get(i, str(x)) for i, x in enumerate(row)] for row in bucket.host.tolist()]
    return "\n".join(
        [
            *(f"tensors[{i}] = {' '.join(row)}" for i, row in enumerate(rows)),
            *(f"chunks[{i}]  = {a} {b}" for i, (a, b) in enumerate(bucket.tables.chunks.tolist())),
            f"scalars[0] = {' '.join(f'{x:.6g}' for x in bucket.tables.scalars[0].tolist())}",
        ]
    )


def launches() -> str:
    """What a step of two tensors runs, for two rules."""
    lines = []
    for name in ("adamw", "lamb"):
        training = Training(name)
        training.step()
        (bucket,) = training.optimizer._launcher._recordings[None].buckets
        ran: list[str] = []
        run = bucket.kernel.run
        bucket.kernel.run = lambda step, tables, ran=ran, run=run: [ran.append(step.name), run(step, tables)]
        training.step()
        bucket.kernel.run = run
        lines.append(
            f"{name:6} {len(bucket.members)} tensors, {len(bucket.tables.chunks)} chunks: {', '.join(ran)}"
        )
    return "\n".join(lines)


def replay() -> str:
    """What a step is after each kind of change."""
    training = Training()
    lines = [("the first step", training.step())]
    for what, change in CHANGES.items():
        change(training)
        lines.append((what, training.step()))
        if lines[-1][1] != "replayed":
            assert training.step() == "replayed", what
    width = max(len(what) for what, _ in lines) + 2
    return "\n".join(f"{what:{width}}{found}" for what, found in lines)


def _replace_state(training: Training) -> None:
    state = training.optimizer.state[training.params[0]]
    state["exp_avg"] = state["exp_avg"].clone()


def _move(training: Training) -> None:
    training.params[0].data = training.params[0].data.clone()


def _transpose(training: Training) -> None:
    g: Tensor = training.params[0].grad
    training.params[0].grad = g.t().contiguous().t()


def _drop(training: Training) -> None:
    training.params[1].grad = None


def _set(name: str, value: object) -> Callable[[Training], None]:
    return lambda training: training.optimizer.param_groups[0].update({name: value})


CHANGES: dict[str, Callable[[Training], None]] = {
    "nothing": lambda training: None,
    "gradients in other memory": Training.gradients,
    "another lr": _set("lr", 0.1),
    "a state written in place": lambda t: t.optimizer.state[t.params[0]]["exp_avg"].zero_(),
    "a state replaced": _replace_state,
    "a parameter in other memory": _move,
    "load_state_dict": lambda t: t.optimizer.load_state_dict(t.optimizer.state_dict()),
    "amsgrad=True": _set("amsgrad", True),
    "a gradient with other strides": _transpose,
    "a gradient less": _drop,
    "a gradient more": Training.gradients,
    "a parameter frozen": lambda t: t.optimizer.freeze(t.params[1]),
}
STAGES = (
    *(rule, program, facts, specialised, counts, lowered, plan, buffers, phases),
    *(layout, tables, kernel, launches, replay),
)
BLOCKS: dict[str, Callable[[], str]] = {stage.__name__: stage for stage in STAGES}


def page(texts: dict[str, str]) -> str:
    """The page with these blocks."""
    old = PAGE.read_text(encoding="utf-8")
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}{texts[found[1]]}\n", old)


def main() -> None:
    """Print the blocks, or write them into the page."""
    parser = argparse.ArgumentParser(description="The blocks of architecture.md.")
    parser.add_argument("--write", action="store_true", help="write them into the page")
    write = parser.parse_args().write
    texts = {name: made().rstrip("\n") for name, made in BLOCKS.items()}
    if write:
        PAGE.write_text(page(texts), encoding="utf-8", newline="\n")
    else:
        print("\n\n".join(f"== {name}\n{text}" for name, text in texts.items()))


if __name__ == "__main__":
    main()
