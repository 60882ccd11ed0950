"""Rules as values: a program and its hyperparameters, immutable and without state.

In: hyperparameters under the names of Optimisers.jl or of the rule's file. Out: a `Rule`, and chains of
them. A chain has the meaning of Optimisers.jl: each part takes what the part before it would subtract from
p as its gradient, and all of them see the same p. By substitution it is one program, like any rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any

import torch

from optgen import library
from optgen.ir.program import Program
from optgen.locks import once
from optgen.optim.checkpoint import as_tuple, from_texts, rule_text
from optgen.optim.hyperparameters import check, checked
from optgen.passes.chain import complete, places
from optgen.passes.variants import as_transform

ALIASES = {"centered": "centred", "lambda_": "lambda", "ε": "epsilon", "η": "eta", "λ": "lambda", "ρ": "rho"}
ADAM = {"eta": "lr", "beta": "betas", "epsilon": "eps"}
# By constructor of Optimisers.jl: the shipped rule; for each field, in its order, the rule's hyperparameter;
# and the defaults of Optimisers.jl where the rule has others.
NAMES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "Descent": ("descent", {"eta": "lr"}, {}),
    "Momentum": ("momentum", {"eta": "lr", "rho": "momentum"}, {}),
    "Nesterov": ("nesterov", {"eta": "lr", "rho": "momentum"}, {}),
    "AdaGrad": ("optimisers_adagrad", {"eta": "lr", "epsilon": "eps"}, {}),
    "RMSProp": (
        "optimisers_rmsprop",
        {"eta": "lr", "rho": "alpha", "epsilon": "eps", "centred": "centred"},
        {},
    ),
    "Rprop": ("optimisers_rprop", {"eta": "lr", "ell": "etas", "gamma": "step_sizes"}, {}),
    "RAdam": ("optimisers_radam", ADAM, {}),
    "AMSGrad": ("amsgrad", ADAM, {}),
    "NAdam": ("optimisers_nadam", ADAM, {}),
    "Adam": ("adam", ADAM, {}),
    "AdamW": (
        "optimisers_adamw",
        {"eta": "lr", "beta": "betas", "lambda": "weight_decay", "epsilon": "eps", "couple": "couple"},
        {},
    ),
    "AdaMax": ("optimisers_adamax", ADAM, {}),
    "OAdam": ("oadam", ADAM, {}),
    "AdaDelta": ("adadelta", {"rho": "rho", "epsilon": "eps"}, {"eps": 1e-8}),
    "AdaBelief": ("optimisers_adabelief", ADAM, {}),
    "Lion": ("lion", {"eta": "lr", "beta": "betas"}, {"lr": 1e-3, "betas": (0.9, 0.999)}),
    "WeightDecay": ("weight_decay", {"lambda": "weight_decay"}, {}),
    "SignDecay": ("sign_decay", {"lambda": "sign_decay"}, {}),
    "ClipGrad": ("clip_value", {"delta": "max_value"}, {"max_value": 10.0}),
    "ClipNorm": ("clip_norm", {"omega": "max_norm"}, {"max_norm": 10.0}),
    "AccumGrad": ("accum_grad", {"n": "n"}, {}),
}
IDENTITY = '"""Identity: the gradient itself is the step."""\np = p - g'


class Kind:
    """A constructor of rules, such as `tree.Adam`: takes values in the order of its fields, or by name.

    Args:
        name: the constructor's.
        program: of its rules.
        fields: the hyperparameter that each positional argument sets; by default their own names.
        defaults: in place of the program's, by hyperparameter.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        fields: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        own = [h for h in program.hypers if h != "maximize"]
        self.__name__, self.__doc__, self.program = name, program.doc, program
        self.fields = {h: f for f, h in (fields or {h: h for h in own}).items()}  # by hyperparameter
        self.defaults = {h: hyper.default for h, hyper in program.hypers.items()} | dict(defaults or {})
        self.order = [*self.fields, *(h for h in self.defaults if h not in self.fields)]

    def __repr__(self) -> str:
        return f"<rule {self.__name__}({', '.join(self.fields.values())})>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Kind:
        return self  # immutable, and compared by identity

    def __reduce__(self) -> Any:
        # By name or by text, so that an unpickled rule equals one that is made here. Pickles name `named` and
        # `_kind`.
        if named(self.__name__) is self:
            return named, (self.__name__,)
        return _kind, (self.__name__, as_tuple(rule_text(self.program)))

    def __call__(self, *args: Any, **options: Any) -> Rule:
        """Make a rule of these values, with defaults for the others.

        Raises:
            TypeError: too many values, an unknown name, or a value of the wrong kind.
            ValueError: a value is out of bounds.
        """
        if len(args) > len(self.fields):
            raise TypeError(f"{self.__name__} takes {len(self.fields)} values at most, not {len(args)}")
        values = dict(zip(self.fields, args, strict=False))
        for name, value in options.items():
            target = self.target(name)
            if target is None:
                raise TypeError(unknown(self.__name__, name, self.names))
            if target in values:
                raise TypeError(f"{self.__name__} got several values for '{name}'")
            values[target] = value
        return Rule((self.part({**self.defaults, **values}),))

    def part(self, values: Mapping[str, Any]) -> Part:
        """Check the values of all hyperparameters, and bind them.

        Raises:
            TypeError: a value is of the wrong kind.
            ValueError: a value is out of bounds.
        """
        normalised = {h: _normalised(self.program, h, values[h]) for h in self.order}
        check(self.program, normalised)
        return Part(self, tuple(normalised.items()))

    def target(self, name: str) -> str | None:
        """The hyperparameter that a field, an alias or the rule itself calls so; None if there is none."""
        name = ALIASES.get(name, name)
        return next((h for h in self.order if name in (h, self.fields.get(h))), None)

    @property
    def names(self) -> list[str]:
        """The names of its hyperparameters, by which a call takes them: fields first."""
        return [self.fields.get(h, h) for h in self.order]


_kinds: dict[tuple[str, tuple[str, ...]], Kind] = {}


def _kind(name: str, texts: tuple[str, ...]) -> Kind:
    """Unpickling: the constructor with this name and text, one object, so that rules compare equal."""
    return _kinds.setdefault((name, texts), Kind(name, from_texts(texts)))


@dataclass(frozen=True)
class Part:
    """One rule of a chain: a constructor, and a value for each of its hyperparameters."""

    kind: Kind
    values: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        kind = self.kind
        shown = ((h, v) for h, v in self.values if h in kind.fields or v != kind.defaults[h])
        return f"{kind.__name__}({', '.join(f'{kind.fields.get(h, h)}={v!r}' for h, v in shown)})"


@dataclass(frozen=True)
class Rule:
    """An update rule with values for all hyperparameters; equal rules compute the same.

    Attributes:
        parts: one, or those of a chain in order.
        chained: whether it was made by `chain`.
        master: the dtype of the copy that moves in place of the parameter (`MixedPrecision`), or None.
    """

    parts: tuple[Part, ...]
    chained: bool = False
    master: torch.dtype | None = None

    def __repr__(self) -> str:
        text = f"chain({', '.join(map(repr, self.parts))})" if self.chained else repr(self.parts[0])
        return text if self.master is None else f"MixedPrecision({self.master}, {text})"

    def __getattr__(self, name: str) -> Any:
        # Unpickling asks for methods such as `__setstate__` before there are `parts`.
        for part in () if name.startswith("_") else self.parts:
            target = part.kind.target(name)
            if target is not None:
                return dict(part.values)[target]
        raise AttributeError(f"{type(self).__name__} has no attribute or hyperparameter '{name}'")

    @property
    def program(self) -> Program:
        """The program of the rule or chain; RuleError for a transform that needs a rule before it."""
        return _sequence(tuple(part.kind for part in self.parts))[0]

    @property
    def values(self) -> dict[str, Any]:
        """The value of each hyperparameter of `program`, by its name there."""
        program, names = _sequence(tuple(part.kind for part in self.parts))
        values = {n[h]: v for n, part in zip(names, self.parts, strict=True) for h, v in part.values}
        return {name: values[name] for name in program.hypers}

    def adjusted(self, *eta: float, strict: bool = True, **values: Any) -> Rule:
        """A copy of the rule with other values for some hyperparameters, in every part that has them.

        Args:
            *eta: the learning rate; parts without one stay as they are.
            strict: with False, names that no part has are ignored.
            **values: by field.

        Raises:
            TypeError: no value, several learning rates, or a value of the wrong kind.
            ValueError: no part has such a field, it chooses what is computed, or a value is out of bounds.
        """
        if len(eta) > 1 or not (eta or values):
            raise TypeError("adjust takes one learning rate, or hyperparameters by name")
        known = dict.fromkeys(name for part in self.parts for name in part.kind.names)
        for name in values if strict else ():
            if all(part.kind.target(name) is None for part in self.parts):
                raise ValueError(unknown(repr(self), name, list(known)))
        return replace(
            self, parts=tuple(_adjusted(part, {"lr": eta[0]} if eta else {}, values) for part in self.parts)
        )


def _adjusted(part: Part, rates: Mapping[str, float], values: Mapping[str, Any]) -> Part:
    """A copy of a part with other values: `rates` where it has a field for them, `values` by name."""
    new, kind = dict(part.values), part.kind
    for name, value in {**rates, **values}.items():
        target = kind.target(name)
        if target is None or (name in rates and target not in kind.fields):
            continue
        # Such a value is a compile-time condition: states of another program would be needed.
        if isinstance(new[target], bool | str):
            raise ValueError(f"'{name}' chooses what is computed: set it before setup")
        new[target] = value
    return kind.part(new)


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """The error text for a name that no hyperparameter has."""
    close = get_close_matches(name, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"it has: {', '.join(known) or 'none'}"
    return f"{what} has no hyperparameter '{name}'; {hint}"


def _normalised(program: Program, name: str, value: Any) -> Any:
    """Check a hyperparameter's value, numbers as floats, so that rules with equal values are equal."""
    try:
        value = checked(program, name, value)
    except ValueError as error:
        raise TypeError(str(error)) from None
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return _plain(value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | str | None) else float(value)


@cache
def _sequence(kinds: tuple[Kind, ...]) -> tuple[Program, list[dict[str, str]]]:
    """The program of a chain, and for each part its names there of the part's hyperparameters."""
    # A unit is a rule with the transforms of its update, or a transform of gradients. All units but the last
    # become transforms of the gradient, as Optimisers.jl has it; the last one moves p.
    units: list[list[Program]] = []
    for kind in kinds:
        if kind.program.kind == "after" and units:
            units[-1].append(kind.program)
        else:
            units.append([kind.program])
    inner = [library.chain(*unit) for unit in units]
    stages = [as_transform(program) for program in inner[:-1]]
    stages += [replace(program, parts=()) for program in inner[-1:]]
    if not stages or stages[-1].kind == "before":  # nothing moves p yet
        stages.append(library.rule(IDENTITY))
    program = complete(library.chain(*stages))
    outer = places(program)
    names = []
    for i, unit in enumerate(units):
        there = {h: name for name, (place, h) in outer.items() if place == i}
        for j in range(len(unit)):
            within = places(inner[i]).items()
            names.append({h: there[name] for name, (place, h) in within if place == j})
    return program, names


def chain(*rules: Rule) -> Rule:
    """Compose rules: each takes the step of the one before it as its gradient.

    All of them see the same p. Without rules the gradient itself is subtracted. Chains may be nested.

    Raises:
        TypeError: something is not a rule.
        ValueError: a part is a `MixedPrecision`, which must be outermost.
        RuleError: a part cannot stand where it does.
    """
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"chain takes rules, such as tree.Adam(), not {rule!r}")
        if rule.master is not None:
            raise ValueError("MixedPrecision must be outermost: MixedPrecision(chain(…))")
    chained = Rule(tuple(part for rule in rules for part in rule.parts), chained=True)
    _ = chained.program  # raises here what would be raised in `setup`
    return chained


def MixedPrecision(first: torch.dtype | Rule, rule: Rule | None = None) -> Rule:
    """A rule that moves a master copy of the parameter, in float32 by default, and rounds it to p.

    Args:
        first: the dtype of the copy, before the rule; or the rule alone, for float32.
        rule: which moves the copy.

    Returns:
        The rule, with `master` set. Its leaves have a state `master`.

    Raises:
        TypeError: no rule, or no dtype of floating point.
        ValueError: the rule is a `MixedPrecision` itself.
    """
    dtype, inner = (torch.float32, first) if rule is None else (first, rule)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or not isinstance(inner, Rule):
        raise TypeError("write MixedPrecision(rule), or MixedPrecision(torch.float32, rule)")
    if inner.master is not None:
        raise ValueError("MixedPrecision must be outermost")
    return replace(inner, master=dtype)


def rule(source: library.Rule, name: str | None = None) -> Kind:
    """Make a constructor of rules from any text, path, shipped name or program.

    Args:
        source: as `optgen.rule` takes it.
        name: what to call it; by default what the rule's docstring begins with.

    Raises:
        RuleError: the text is wrong.
    """
    program = library.rule(source)
    title = program.doc.split(":")[0].strip()
    name = name or (title if title.isidentifier() else library.camel(program.name))
    return _kinds.setdefault((name, as_tuple(rule_text(program))), Kind(name, program))


def named(name: str) -> Kind | None:
    """The constructor of a rule of Optimisers.jl, or of a shipped class; None if there is neither.

    It is one object, whichever thread asks first.
    """
    return once(_named, name, lambda: _find(name))


_named: dict[str, Kind | None] = {}


def _find(name: str) -> Kind | None:
    """Look up a constructor's program and its field names."""
    if name in NAMES:
        source, fields, defaults = NAMES[name]
        return Kind(name, library.rule(source), fields, defaults)
    shipped = library.classes()
    return Kind(name, library.rule(shipped[name])) if name in shipped else None
