"""Hypothesis strategies: random rules, as text, and arrays to run them on.

A rule has the statements of the language (assignments, compile-time `if`, loops, `prev`), element states,
states per tensor, and on demand reductions and transcendental functions. Every name that it declares is
used, every option has a value, and nothing in it is constant but literals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from optgen.language.parse import parse

NUMBERS = ("0.5", "2", "3", "1.5", "0.1", "1e-3", "-0.25", "7")
HYPERS = {"a": (0.1, 0.9, 1.7, -0.3, 0.0), "b": (1e-3, 2.0, 1e4, -1.0), "c": (0.5, 1e-8, 3.0)}
FLAGS = ("fast", "odd")
STATES = ("m", "v", "w", "z")
TENSOR_STATES = ("eta", "rho")


@dataclass(frozen=True)
class Case:
    """A rule's text, the options to run it with, and its step count."""

    text: str
    options: dict = field(default_factory=dict)
    t: float = 1.0

    @property
    def program(self):
        return parse(self.text, "random")


class Writer:
    """Writes one rule, drawing every choice."""

    def __init__(self, draw, reductions, transcendental, tensor_states):
        self.draw, self.reductions, self.transcendental = draw, reductions, transcendental
        self.elements = ["p", "g", *STATES[: draw(st.integers(0, 3))]]
        self.states = self.elements[2:]
        self.tensors = list(TENSOR_STATES[: draw(st.integers(0, 2))]) if tensor_states else []
        self.tensor_states = list(self.tensors)
        self.steps = ["a", "b", "c", "t", "numel"]
        self.lines: list[str] = []
        self.count = 0

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def step(self, depth=1):
        """A value per step; never a constant."""
        kind = self.pick("name", "name", "pair", "call") if depth else "name"
        if kind == "name":
            return self.pick(*self.steps)
        if kind == "pair":
            other = self.pick(self.step(0), *NUMBERS)
            return f"({self.step(depth - 1)} {self.pick('+', '-', '*', '/')} {other})"
        return self.pick("exp(-{0})", "sqrt(abs({0}))", "tanh({0})", "{0}**0.7", "maximum(1, {0})").format(
            self.step(depth - 1)
        )

    def tensor(self, depth=1):
        """A value per tensor, or slower."""
        kinds = ["step"] + ["name"] * bool(self.tensors) + ["reduction"] * 2 * self.reductions
        kind = self.pick(*kinds)
        if kind == "step":
            return self.step(depth)
        if kind == "name":
            return self.pick(*self.tensors)
        name = self.pick("sum", "mean", "norm", "rms", "amax", "dot", "count")
        x = self.element(depth - 1)
        if name == "dot":
            return f"dot({x}, {self.element(0)})"
        if name == "count":
            return f"mean({x} > {self.element(0)})"
        return f"amax(abs({x}))" if name == "amax" else f"{name}({x})"

    def condition(self, depth):
        form = self.pick(
            "{} > {}", "{} <= {}", "{} == {}", "{} != {}", "not {} < {}", "isfinite({}) or {} < 0"
        )
        test = form.format(self.element(depth), self.element(0))
        slow = f"{self.tensor(0)} {self.pick('>', '<=')} {self.pick(*NUMBERS)}"
        other = self.pick(f"{self.element(0)} >= {self.pick(*NUMBERS)}", slow)
        joined = self.pick("{0} and {1}", "{1} and {0}", "{0} or {1}", "not ({1} or {0})").format(test, other)
        return self.pick(test, test, joined, slow)

    def element(self, depth):
        """A value per element."""
        if depth <= 0:
            name = self.pick(*self.elements, self.elements[-1])
            return f"prev({name})" if name in self.states and self.draw(st.booleans()) else name
        kind = self.pick("infix", "infix", "infix", "call", "call", "where", "scaled", "leaf")
        x = self.element(depth - 1)
        if kind == "leaf":
            return self.element(0)
        if kind == "infix":
            return f"({x} {self.pick('+', '-', '*', '/')} {self.element(depth - 1)})"
        if kind == "scaled":
            y = self.pick(self.tensor(depth - 1), *NUMBERS)
            return self.pick(
                f"({x}*{y})", f"({x} + {y})", f"({y} - {x})", f"({x} / {y})", f"lerp({x}, {y}, a)"
            )
        if kind == "where":
            return f"({x} if {self.condition(depth - 2)} else {self.element(depth - 2)})"
        form = self.pick(
            "sqrt({0})", "sqrt(abs({0}))", "abs({0})", "floor({0})", "sign({0})", "round({0})", "-({0})",
            "rsqrt({0})", "({0})**2", "({0})**3", "({0})**-1", "maximum({0}, {1})", "minimum({0}, {1})",
            "clip({0}, {1}, {2})", "maximum({0}, 0)", "lerp({0}, {1}, {2})",
            "maximum({3}, {0})", "minimum({0}, {3})", "clip({0}, {3}, 2)",
        )  # fmt: skip
        return form.format(x, self.element(depth - 1), self.element(0), self.tensor(0))

    def local(self):
        self.count += 1
        return f"x{self.count}"

    def statement(self, indent=""):
        kind = self.pick("local", "local", "state", "state", "p", "tensor", "if", "for", "for states")
        if kind == "local":
            name = self.local()
            self.lines.append(f"{indent}{name} = {self.element(2)}")
            self.elements.append(name)
        elif kind == "state" and self.states:
            self.lines.append(
                f"{indent}{self.pick(*self.states)} {self.pick('', '+', '*')}= {self.element(2)}"
            )
        elif kind == "tensor" and self.tensor_states:
            self.lines.append(f"{indent}{self.pick(*self.tensor_states)} = {self.tensor(2)}")
        elif kind == "if" and not indent:
            self.branch()
        elif kind.startswith("for") and not indent:
            target = (
                self.pick(*self.states, "p") if kind == "for states" else self.pick(*self.elements[2:], "p")
            )
            self.lines.append(f"for i in range({self.pick(2, 3)}):")
            self.lines.append(
                f"    {target} = {self.pick('', '-')}{self.element(1)} + {self.element(1)}*(i + a)"
            )
        else:
            self.lines.append(f"{indent}p = {self.pick('p - ', '')}{self.element(2)}")

    def branch(self):
        """A compile-time choice; what is new on one side is not seen after it."""
        test = self.pick("fast", "odd", "not odd", "a > 0", "fast and c >= 1")
        self.lines.append(f"if {test}:")
        for word in ("", "else:"):
            if word and self.draw(st.booleans()):
                break
            self.lines += [word] if word else []
            known, tensors = list(self.elements), list(self.tensors)
            self.statement("    ")
            self.elements, self.tensors = known, tensors

    def transcend(self):
        """Statements whose values are one function of exact values, and that nothing reads."""
        for target in ["p", *self.states]:
            form = self.pick(
                "exp({0})", "log(abs({0}))", "tanh({0})", "atan2({0}, {1})", "abs({0})**0.3", "abs({0})**-1.7"
            )
            self.lines.append(f"{target} = {form.format(f'prev({target})', self.pick('g', 'prev(p)'))}")

    def case(self):
        """The finished rule."""
        if self.transcendental:
            self.transcend()
        else:
            for _ in range(self.draw(st.integers(1, 4))):
                self.statement()
            scale = f"{self.tensor(2)}*" if self.reductions and self.draw(st.booleans()) else ""
            self.lines.append(f"p = p - {scale}{self.element(2)}")
        body = "\n".join(self.lines)
        words = set(re.findall(r"\w+", body))
        hypers = [h for h in HYPERS if h in words]
        flags = [f for f in FLAGS if f in words]
        states = [s for s in self.states if s in words]
        tensors = [s for s in self.tensor_states if s in words]
        head = [
            f"hyper({', '.join([*(f'{h}={HYPERS[h][0]}' for h in hypers), *(f'{f}=False' for f in flags)])})"
        ]
        head = head if hypers or flags else []
        head += [f"state({', '.join(f'{s}=0' for s in states)})"] if states else []
        head += [f"state({', '.join(f'{s}=1' for s in tensors)}, per=tensor)"] if tensors else []
        options = {h: self.pick(*HYPERS[h]) for h in hypers} | {f: self.draw(st.booleans()) for f in flags}
        return Case("\n".join([*head, body]), options, float(self.pick(1, 2, 100)))


@st.composite
def cases(draw, reductions=False, transcendental=False, tensor_states=False):
    """Random rules with options."""
    return Writer(draw, reductions, transcendental, tensor_states).case()


# Zeros, subnormals, the largest numbers of float32, Inf and NaN.
SPECIAL = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-45,
        -1e-40,
        1.1754944e-38,
        3.4028235e38,
        -3e38,
        0.5,
        1e-20,
    ]
)


def array(seed, numel, wild, dtype=np.float32):
    """Numbers of many sizes; `wild` puts special ones among them."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(numel) * 10.0 ** random.integers(-3, 3, numel)
    values = np.where(random.random(numel) < 0.1, np.round(values), values)
    if wild:
        values = np.where(random.random(numel) < 0.5, random.choice(SPECIAL, numel), values)
    with np.errstate(all="ignore"):
        return values.astype(dtype)


@st.composite
def staged(draw):
    """Small rules with sums between cheap values of many stores, so that there is much to plan."""
    states = list(STATES[: draw(st.integers(0, 4))])
    values, totals, lines = ["p", "g", *states], ["a"], []
    for i in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(["local", "sum", "state"]))
        value = st.sampled_from([*values, values[-1], values[-1]])
        terms = [
            f"{draw(value)}*{draw(st.one_of(value, st.sampled_from(totals)))}"
            for _ in range(draw(st.integers(1, 3)))
        ]
        if kind == "sum" and len(totals) < 4:
            totals.append(f"r{i}")
            lines.append(f"r{i} = sum({terms[0]})")
        elif kind == "state" and states:
            lines.append(f"{draw(st.sampled_from(states))} = {' + '.join(terms)}")
        else:
            values.append(f"x{i}")
            lines.append(f"x{i} = {' + '.join(terms)}")
    lines.append(f"p = p - {totals[-1]}*{values[-1]}")
    body = "\n".join(lines)
    words = set(re.findall(r"\w+", body))
    head = ["hyper(a=0.1)"] if "a" in words else []
    used = [s for s in states if s in words]
    head += [f"state({', '.join(f'{s}=0' for s in used)})"] if used else []
    return Case("\n".join([*head, body]), {"a": 0.1})


CODEC_LISTS = st.sampled_from(
    [("fp32",), ("fp64",), ("bf16",), ("fp16",), ("bf16", "bf16", "fp32"), ("fp32", "fp32", "bf16"),
     ("fp32", "bf16", "fp64"), ("fp16", "fp32", "bf16", "fp32")]
)  # fmt: skip


def examples(count, phases=tuple(Phase)):
    """Settings that give the same examples in every run."""
    return settings(
        max_examples=count,
        phases=phases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def compiled(count):
    """The same without shrinking, which would compile for minutes."""
    return examples(count, (Phase.explicit, Phase.generate))
