"""Edits at random between two steps of an optimizer, and the judge of what comes of them.

In: a back end, a device and seeds. Out: for each edit of each seed what the step after it did. Three things
are allowed: what the reference does with the same numbers in plain memory, what torch does with them, or an
error that names the parameter or group and leaves everything as it was. `python tests/edits.py --backend cpu
--seeds 7:8` runs one seed again; with `--guard` each tensor lies between pages that nobody may touch, see
`guard.c`.

A wrong address ends the process, so cases run in processes of their own, which say first what they do.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import optgen
from changes import EDITS, GO, STOP, Inapplicable, need, readable, usual
from optgen.ir import Extent
from optgen.launch import Launcher
from optgen.release import attach
from optgen.training import accumulated
from optgen.trial import FEEDBACK, TOLERANCE, allowed, difference

GOOD = ("right", "torch", "refused")
SHAPES = [(), (0,), (2, 3), (4, 1, 5), (7,), (1025,), (3, 1), (2, 3, 2, 2)]
LONG = 60  # seconds for one case
PYTHON = [sys.executable, __file__]


class Rule(NamedTuple):
    """A class, options that it is used with, torch's class for the same rule, and dtypes of parameters."""

    kind: type[optgen.Optimizer]
    options: Mapping[str, Any] = MappingProxyType({})
    oracle: type[torch.optim.Optimizer] | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)


@cache
def rules() -> dict[str, Rule]:
    """One rule of each class at least, and hard ones; compiling takes a second each, and more for CAME."""
    wide = (torch.float32, torch.float32, torch.float64, torch.bfloat16)
    return {
        "AdamW": Rule(optgen.AdamW, {"lr": 0.01}, torch.optim.AdamW, wide),
        "SGD": Rule(optgen.SGD, {"momentum": 0.9}, torch.optim.SGD, wide),
        "NAdam": Rule(optgen.NAdam, {}, torch.optim.NAdam),
        "LAMB": Rule(optgen.LAMB),
        "Adafactor": Rule(optgen.Adafactor, {}, torch.optim.Adafactor),
        "SM3": Rule(optgen.SM3, {"momentum": 0.5}),
        "CAME": Rule(optgen.CAME),
        "AdamWScheduleFree": Rule(optgen.AdamWScheduleFree),
        "Prodigy": Rule(optgen.Prodigy),
        "SGLD": Rule(optgen.SGLD),
        "AdaHessian": Rule(optgen.AdaHessian),
        "PolyakSGD": Rule(optgen.PolyakSGD),
        "Lion cautious": Rule(optgen.optimizer(optgen.chain("lion", "cautious"))),
        "clipped AdamW": Rule(optgen.optimizer(optgen.chain("clip_global_norm", "adamw"))),
        "accumulated SGD": Rule(accumulated("sgd", 2)),
        "released AdamW": Rule(optgen.AdamW, {}, torch.optim.AdamW),
    }


class Case:
    """An optimizer in use: what edits change, and what is judged."""

    def __init__(self, seed: int, backend: str, device: str = "cpu"):
        self.rng, self.backend, self.device = random.Random(seed), backend, device
        torch.manual_seed(seed)
        self.name = self.rng.choice(["AdamW", "AdamW", "AdamW", "SGD", *rules()])
        self.rule = rules()[self.name]
        self.wide = self.name in ("AdamW", "SGD")  # gets every dtype and shape, each of which is compiled
        many = self.name in ("AdamW", "SGD", "LAMB") and self.rng.random() < 0.4
        shapes = [self._shape() for _ in range(60 if many else self.rng.randint(3, 6))]
        dtypes = self.rule.dtypes if self.rng.random() < 0.4 else (torch.float32,)
        params = [nn.Parameter(torch.randn(s, dtype=self.rng.choice(dtypes), device=device)) for s in shapes]
        named = [(f"layer{i}.weight", p) for i, p in enumerate(params)] if self.rng.random() < 0.5 else params
        cut = self.rng.randrange(1, len(params))
        groups = [{"params": named[:cut]}, {"params": named[cut:]}]
        self.optimizer: Any = self.rule.kind(groups, backend=backend, **self.rule.options)
        self.release = attach(self.optimizer) if self.name == "released AdamW" else None
        self.still = {params[-1]} if self.rng.random() < 0.2 else set()  # have no gradient
        self.in_place = self.rng.random() < 0.4  # as after zero_grad(set_to_none=False)
        self.inputs: dict[str, Any] = {}
        self.witnesses: list[Tensor] = []  # copies that others have, which no step may change
        self.edited = ""
        self.moves = False  # whether what was edited takes part in the next step

    def _shape(self) -> tuple[int, ...]:
        small = SHAPES if self.wide else SHAPES[:-1]
        return (40_001,) if self.rng.random() < 0.01 else self.rng.choice(small)

    @property
    def params(self) -> list[Tensor]:
        """The parameters of all groups, each once."""
        return tensors_of(self.optimizer.param_groups)

    def takes_part(self, p: Tensor) -> bool:
        """Whether a step moves a parameter."""
        frozen = any(
            p is group["params"][i] for group in self.optimizer.param_groups for i in group["frozen"]
        )
        return p.grad is not None and p.numel() > 0 and not frozen

    def replace(self, duplicate: Callable[[Any], Any]) -> None:
        """Go on with a copy of the optimizer, which has its own parameters."""
        grads = [p.grad for p in self.params if need(not self.release)]
        self.optimizer, self.inputs, still = duplicate((self.optimizer, self.inputs, list(self.still)))
        self.still = set(still)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def feed(self) -> None:
        """New gradients and inputs, as a backward pass leaves them; of one parameter if hooks step it."""
        params = [p for p in self.params if p not in self.still and p.is_floating_point()]
        if self.release and params:
            for p in params:
                p.grad = None
            params = self.rng.sample(params, 1)
        for p in params:
            g = p.grad
            if self.in_place and type(g) is Tensor and usual(g) and g.dtype in TOLERANCE:
                g.normal_()
                continue
            p.grad = None
            if readable(p) and p.dtype in TOLERANCE:
                made = torch.empty_like(p, requires_grad=False).normal_()
                p.grad = made.mul_(10 ** self.rng.uniform(-2, 1))
        for name, declared in self.optimizer.program.inputs.items():
            whole = declared.extent is Extent.ALL
            able = (p for p in self.params if p.dtype in TOLERANCE and readable(p))
            each = {p: torch.rand_like(p, requires_grad=False) for p in able}
            self.inputs[name] = torch.rand(()) if whole else each

    def step(self) -> None:
        """What is judged: a step of all parameters, or of those with a gradient in the backward pass."""
        if not self.release:
            self.optimizer.step(**self.inputs)
            return
        for p in [p for p in self.params if p.grad is not None]:
            for hook in [*(p._post_accumulate_grad_hooks or {}).values()]:
                hook(p)
        if any(p.grad is not None for p in self.params):  # because it has no hook
            self.optimizer.step()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that a step may read or write, and those that it may not."""
        for p in self.params:
            yield "parameter", p
            if p.grad is not None:
                yield "gradient", p.grad
        for kept in [*self.optimizer.state.values(), *self.optimizer.param_groups]:
            yield from ((k, v) for k, v in kept.items() if isinstance(v, Tensor))
        for value in self.inputs.values():
            values = value.values() if isinstance(value, Mapping) else [value]
            yield from (("input", v) for v in values if isinstance(v, Tensor))
        yield from (("witness", t) for t in self.witnesses)


def tensors_of(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """The parameters of groups, each once."""
    return list({id(p): p for group in groups for p in group["params"] if isinstance(p, Tensor)}.values())


# What there was before a step


def facts(t: Tensor) -> tuple[Any, ...]:
    """What a tensor is, but for its numbers; no address, because to ask for it ends a lazy copy."""
    own: tuple[Any, ...] = (
        type(t),
        t.dtype,
        () if t.is_nested else tuple(t.shape),
        t.layout,
        t.device,
        t.requires_grad,
    )
    if t.layout is not torch.strided or t._is_zerotensor() or t.is_nested:
        return own
    storage = t.untyped_storage()
    return (*own, storage._cdata, storage.nbytes(), t.storage_offset(), t.stride(), t.is_neg(), t.is_conj())


def bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """The memory of a storage, as a tensor."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),))


def entries(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group has: parameters and tensors by their identity."""
    own = {k: id(v) if isinstance(v, Tensor) else repr(v) for k, v in group.items() if k != "params"}
    return {**own, "params": list(map(id, group["params"]))}


class Picture:
    """Tensors, the bytes of their storages, the state's dictionaries and the groups as they are now."""

    def __init__(self, case: Case, aliases: bool = False):
        self.case, self.optimizer = case, case.optimizer
        self.tensors = list({id(t): (n, t, facts(t)) for n, t in case.tensors()}.values())
        self.aliases = [t.detach() for _, t, _ in self.tensors] if aliases else []
        self.grads = [(p, p.grad) for p in case.params]
        self.storages = {}
        for _, t, known in self.tensors:
            if len(known) > 6 and t.device.type != "meta":
                self.storages[known[6]] = t.untyped_storage(), bytes_of(t.untyped_storage()).clone()
        state, groups = case.optimizer.state, case.optimizer.param_groups
        self.state = state, [(p, kept, dict(kept)) for p, kept in state.items()]
        self.groups = [(group, dict(group), list(group["params"]), entries(group)) for group in groups]
        self.inputs = {k: dict(v) if isinstance(v, dict) else v for k, v in case.inputs.items()}
        own = {s.key.removeprefix("group:") for s in case.optimizer.program.states.values()}
        self.own = frozenset({*own, "step", "steps"})  # keys of what a step changes

    def changed(self) -> str | None:
        """What is not as it was, after an error."""
        for name, t, known in self.tensors:
            if facts(t) != known:
                return f"{name} was {known}, and is {facts(t)}"
        if any(p.grad is not g for p, g in self.grads):
            return "a gradient is another tensor"
        for storage, known in self.storages.values():
            if not torch.equal(bytes_of(storage), known):
                return f"bytes of {self._names(storage)} changed"
        state, dicts = self.state
        if list(map(id, state)) != [id(p) for p, _, _ in dicts]:
            return f"the state has {len(state)} parameters, and had {len(dicts)}"
        for p, kept, known in dicts:
            if (
                state[p] is not kept
                or list(kept) != list(known)
                or any(kept[k] is not known[k] for k in known)
            ):
                return f"the state {list(known)} became {list(state[p])}, or has other values"
        return self._groups_changed()

    def _groups_changed(self, but: Collection[str] = ()) -> str | None:
        groups = self.optimizer.param_groups
        for group, (_, _, _, known) in zip(groups, self.groups, strict=True):
            now = entries(group)
            for key in {*now, *known} - {*but}:
                if now.get(key) != known.get(key):
                    return f"a group's {key} was {known.get(key)}, and is {now.get(key)}"
        return None

    def _names(self, storage: torch.UntypedStorage) -> str:
        return ", ".join(sorted({n for n, _, known in self.tensors if known[6:7] == (storage._cdata,)}))

    def spilled(self) -> str | None:
        """What a step has changed and may not: gradients, options, and memory around what it writes."""
        masks = {at: torch.ones_like(known) for at, (_, known) in self.storages.items()}
        for name, t, known in self.tensors:
            if name not in self.own and facts(t) != known:
                return f"{name} was {known}, and is {facts(t)}"
            if name in {*self.own, "parameter"} and known[6:7] and known[6] in masks:
                view_in(masks[known[6]], known).zero_()
        for at, (storage, known) in self.storages.items():
            now = bytes_of(storage)
            if len(now) == len(known) and not torch.equal(now * masks[at], known * masks[at]):
                return f"memory of {self._names(storage)} was written that is not the step's"
        return self._groups_changed(self.own)

    def restore(self) -> None:
        """Make everything what it was, in place; what cannot be undone raises."""
        for (_, t, known), alias in zip(self.tensors, self.aliases, strict=True):
            t.requires_grad_(False)
            t.data = alias
            if type(t) is not known[0]:
                t.__class__ = known[0]
            t.requires_grad_(known[5])
        for storage, known in self.storages.values():
            if storage.nbytes() != len(known):
                storage.resize_(len(known))
            bytes_of(storage).copy_(known)
        optimizer, (state, dicts) = self.optimizer, self.state
        self.case.optimizer, optimizer.state, self.case.inputs = optimizer, state, self.inputs
        state.clear()
        for p, kept, known in dicts:
            kept.clear()
            kept.update(known)
            state[p] = kept
        for group, known, params, _ in self.groups:
            group.clear()
            group.update(known)
            group["params"][:] = params
        optimizer.param_groups[:] = [group for group, *_ in self.groups]
        for p, g in self.grads:
            p.grad = g


def view_in(memory: Tensor, known: tuple[Any, ...]) -> Tensor:
    """The bytes of a tensor in those of its storage, from its facts."""
    size, shape, offset, strides = known[1].itemsize, known[2], *known[8:10]
    reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if 0 in shape or reach * size > len(memory):
        return memory[:0]
    return torch.as_strided(memory, (*shape, size), (*(s * size for s in strides), 1), offset * size)


# What should come of a step


class Twin:
    """The same numbers in plain memory of their own."""

    def __init__(self, case: Case, shared: bool = False):
        self.given: dict[str, Any] = {}
        self.groups = []
        self.copies: dict[int, Any] | None = {} if shared else None  # of tensors that are there twice
        made: dict[int, Any] = {}
        for group in case.optimizer.param_groups:
            mine = {k: self.plain(v) for k, v in group.items() if k != "params"}
            for i, p in enumerate(group["params"]):
                if id(p) not in made:
                    made[id(p)] = self._parameter(p, group, i)
            self.groups.append({**mine, "params": [made[id(p)] for p in group["params"]]})
        own = case.optimizer.state
        self.state = {
            made[id(p)]: {k: self.plain(v) for k, v in own[p].items()}
            for p in case.params
            if p in own and (p.grad is not None or all(map(readable, own[p].values())))
        }
        for name, value in case.inputs.items():
            pairs = value.items() if isinstance(value, Mapping) else ()
            moving = {made[id(p)]: self.plain(v) for p, v in pairs if id(p) in made and p.grad is not None}
            self.given[name] = moving if isinstance(value, Mapping) else self.plain(value)

    def plain(self, x: Any) -> Any:
        """A copy of a tensor's numbers, without strides, laziness and company; others are themselves."""
        if not isinstance(x, Tensor):
            return copy.copy(x)
        if not readable(x):
            raise Inapplicable("a tensor has no numbers that could be read")
        made = torch.empty(x.shape, dtype=x.dtype).copy_(x.detach())
        return made if self.copies is None else self.copies.setdefault(id(x), made)

    def _parameter(self, p: Any, group: Mapping[str, Any], position: int) -> Any:
        if not isinstance(p, Tensor):
            return p
        if p.grad is None or position in (group["frozen"] or ()):
            return nn.Parameter(self.plain(p) if readable(p) else torch.zeros(()), requires_grad=False)
        made = nn.Parameter(self.plain(p), requires_grad=False)
        made.grad = torch.zeros_like(made)
        made.grad.data = self.plain(p.grad)
        return made

    def step(self, kind: type[torch.optim.Optimizer], **settings: Any) -> Twin:
        """Become what a new optimizer of a class makes of it in one step."""
        optimizer: Any = kind([nn.Parameter(torch.zeros(1))], **settings)
        groups, ours = self.groups, issubclass(kind, optgen.Optimizer)
        if not ours:  # torch has options that the rule has not
            defaults = optimizer.param_groups[0]
            groups = [{**{k: g.get(k, v) for k, v in defaults.items()}, "foreach": True} for g in groups]
        optimizer.param_groups, optimizer.state = groups, defaultdict(dict, self.state)
        if ours:  # plans are made once for all references, which share nothing else
            optimizer._launcher = launcher_of(kind).apart()
            self._widen(optimizer._launcher)
        optimizer.step(**self.given)
        self.state = optimizer.state
        return self

    def _widen(self, launcher: Any) -> None:
        """Give states of tensors and slices the dtype that the plan reads."""
        for group in self.groups:
            for p in (p for p in group["params"] if p in self.state and p.grad is not None):
                kept = self.state[p]
                inputs = [v.get(p) for v in self.given.values() if isinstance(v, Mapping)]
                states = launcher.lowered(launcher.truths(group, p.dim(), set(self.given))).states.values()
                fine = [kept.get(s.key) for s in states if s.extent is Extent.ELEMENT]
                double = any(getattr(t, "dtype", None) is torch.float64 for t in (p, p.grad, *inputs, *fine))
                for s in states:
                    value = kept.get(s.key)
                    if s.extent in (Extent.ELEMENT, Extent.ALL) or not isinstance(value, Tensor):
                        continue
                    if value.is_floating_point():
                        wide = double or s.extent is Extent.STEP
                        kept[s.key] = value.to(torch.float64 if wide else torch.float32)


@cache
def launcher_of(kind: type[optgen.Optimizer]) -> Launcher:
    return Launcher(kind.program, "numpy")


def differs(case: Case, twin: Twin, limit: float, loose: bool = False) -> str | None:
    """Where the case is not what the twin is, in words; `loose` compares only what both have."""
    for i, (p, q) in enumerate(zip(case.params, tensors_of(twin.groups), strict=True)):
        if p.grad is None and not readable(p):
            continue
        mine, known = case.optimizer.state.get(p, {}), twin.state.get(q, {})
        if not loose and set(mine) != set(known) and (known or p.grad is not None):
            return f"parameter {i} has states {list(mine)}, and should have {list(known)}"
        for key, a, b in [("p", p, q), *((k, mine[k], v) for k, v in known.items() if k in mine)]:
            if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
                if not loose and type(a) is not type(b):
                    return f"{key} of parameter {i} is {a!r}, and should be {b!r}"
                continue
            if a.shape != b.shape or (a.dtype != b.dtype and not loose and key != "step"):
                return f"{key} of parameter {i} is {a.dtype} {a.shape}, and should be {b.dtype} {b.shape}"
            worst = difference(a, b)
            if not worst <= (0 if key == "step" else limit):
                return f"{key} of parameter {i} is off by {worst:.1e} of it, and {limit:.1e} is allowed"
    keys = {s.key.removeprefix("group:") for s in case.optimizer.program.states.values()} | {"steps"}
    for mine, known in zip(case.optimizer.param_groups, twin.groups, strict=True):
        for key in () if loose else keys & set(known):
            a, b = (torch.as_tensor(x[key]).double() for x in (mine, known))
            if not difference(a, b) <= limit:
                return f"a group's {key} is {a}, and should be {b}"
    return None


@cache
def rounding(name: str, dtypes: frozenset[torch.dtype], ndims: frozenset[int]) -> float:
    """The relative difference that a rule's roundings may make."""
    return allowed(rules()[name].kind.program, rules()[name].options, dtypes, ndims)


def limit_of(case: Case) -> float:
    dtypes = {t.dtype for name, t in case.tensors() if name != "step"} & set(TOLERANCE)
    return rounding(case.name, frozenset(dtypes or {torch.float32}), frozenset(p.dim() for p in case.params))


def judged(case: Case) -> tuple[str, str]:
    """Take a step; what came of it, and why that is wrong or what was refused."""
    before, limit = Picture(case), limit_of(case)
    right, spare, reason = None, None, ""
    try:
        right, spare = Twin(case), Twin(case, shared=True)
        right.step(case.rule.kind, backend="numpy")
    except Exception as error:
        right, reason = None, f"the reference says {type(error).__name__}: {error}"
    try:
        case.step()
    except Exception as error:
        return refusal(before, error)
    spilled = before.spilled()
    if spilled:
        return "wrong", spilled
    if right is not None:
        reason = differs(case, right, limit) or ""
    if not reason:
        return "right", ""
    if spare is not None and case.rule.oracle is not None:
        try:
            found = differs(case, spare.step(case.rule.oracle), max(limit, 1e-5) * FEEDBACK, loose=True)
        except Exception as error:
            found = f"torch says {type(error).__name__}: {error}"
        if not found:
            return "torch", reason
        reason += f"; {found}" if right is None else ""
    return "wrong", reason


def refusal(before: Picture, error: Exception) -> tuple[str, str]:
    """Whether an error is one that a user can act on, and everything is as it was."""
    text, program = f"{type(error).__name__}: {error}", before.optimizer.program
    changed = before.changed()
    if changed:
        return "changed", f"{changed}, after {text}"
    bare = isinstance(error, NotImplementedError | RecursionError)
    if bare or not isinstance(error, RuntimeError | ValueError | TypeError):
        return "internal", text
    known = [*program.hypers, *(s.name for s in program.states.values() if s.extent is Extent.ALL)]
    pattern = rf"parameter ('[^']+'|\d+)|group \d+|\b({'|'.join(known)})\b"
    return ("refused" if re.search(pattern, str(error)) else "unnamed"), text


# One seed, a process for many, and what starts it


def attempts(case: Case, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Steps and edits; what came of each step after an edit."""
    if case.rng.random() < 0.5:
        case.feed()
        yield from attempt(case, say)
    for k in range(case.rng.randint(3, 5) * (2 if case.release else 1)):
        case.feed()
        say(f"step {k} after {case.edited or 'nothing'}")
        if not case.edited:
            case.step()
            continue
        verdict, detail = judged(case)
        yield {"edit": f"{case.edited}, later", "verdict": verdict, "detail": detail}
        if verdict not in ("right", "torch"):
            return
    case.feed()
    yield from attempt(case, say)


def attempt(case: Case, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One edit, a step, and two more; where it was refused, perhaps undo it and go on."""
    undo = case.rng.random() < 0.5
    for _ in range(30):
        picture, case.moves = Picture(case, undo), False
        name = case.rng.choice(list(EDITS))
        try:
            with torch.no_grad():
                where = EDITS[name](case)
            break
        except (Inapplicable, RuntimeError, TypeError, ValueError):
            continue
    else:
        return
    case.edited = name = f"{where} {name}" if where else name
    if case.release:  # hooks come one by one, and an error in one leaves others as they are
        for p in [p for p in case.params if p.grad is not None][1:]:
            p.grad = None
    stop = name in STOP and case.moves
    if case.rng.random() < 0.3:
        case.feed()
        stop = stop and name.startswith("state")
    for k in range(3):
        say(f"step {k} after {name}")
        verdict, detail = judged(case)
        if k == 0 and verdict == "refused" and name in GO:
            verdict = "refused, but must go on"
        if k == 0 and verdict in ("right", "torch") and stop:
            verdict = "went on, but must be refused"
        yield {"edit": name if k == 0 else f"{name}, later", "verdict": verdict, "detail": detail}
        if verdict not in ("right", "torch"):
            break
        case.feed()
    if verdict == "refused" and undo:
        try:
            picture.restore()
        except (RuntimeError, TypeError):  # of another layout, for example
            return
        for k in range(2):
            say(f"step {k} after {name} was undone")
            verdict, detail = judged(case)
            verdict = "refused, but undone" if verdict == "refused" else verdict
            yield {"edit": f"{name}, undone", "verdict": verdict, "detail": detail}
            case.feed()


def run(case: Case, tell: Callable[..., None]) -> None:
    """Run one seed; when this returns, its tensors are free."""
    try:
        for found in attempts(case, lambda text: tell(rule=case.name, step=text)):
            tell(rule=case.name, **found)
    except Exception:  # of this module
        tell(rule=case.name, edit=case.edited, verdict="failed", detail=traceback.format_exc())


def serve(backend: str, device: str, seeds: range) -> None:
    """Run seeds in this process: a line of JSON for each outcome, and for each step before it is taken."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def tell(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    for seed in seeds:
        faulthandler.dump_traceback_later(LONG, exit=True)
        run(Case(seed, backend, device), lambda seed=seed, **what: tell(seed=seed, **what))
    faulthandler.cancel_dump_traceback_later()
    tell(end=True)


def outcomes(backend: str, seeds: range, device: str = "cpu", guard: bool = False) -> list[dict[str, Any]]:
    """What came of every edit of these seeds, in two processes at a time."""
    environment = {**os.environ, "MALLOC_PERTURB_": "85", "PYTHONPATH": os.pathsep.join(sys.path)}
    if backend == "triton" and device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [*PYTHON, "--serve", "--backend", backend, "--device", device]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        if guard:
            library = os.path.join(folder, "guard.so")
            source = str(Path(__file__).with_name("guard.c"))
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
            environment["LD_PRELOAD"] = library
        half = seeds.start + len(seeds) // 2
        parts = [range(seeds.start, half), range(half, seeds.stop)]
        return [line for part in pool.map(lambda s: _served(command, environment, s), parts) for line in part]


def _served(command: list[str], environment: Mapping[str, str], seeds: range) -> list[dict[str, Any]]:
    """The same in one process, and in another one each time that it has ended before the seeds did."""
    found: list[dict[str, Any]] = []
    while seeds:
        wanted = [*command, "--seeds", f"{seeds.start}:{seeds.stop}"]
        done = subprocess.run(wanted, capture_output=True, env=environment, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
        found += [line for line in lines if "verdict" in line]
        if lines and "end" in lines[-1]:
            break
        last = lines[-1] if lines else {"seed": seeds.start, "rule": "?"}
        trace = done.stderr.split("Extension modules")[0]
        verdict = "hung" if "Timeout" in trace else "crashed" if done.returncode < 0 else "failed"
        what = f"exit status {done.returncode}: {trace[-2000:]}"
        found.append({"edit": "nothing", **last, "verdict": verdict, "detail": what})
        seeds = range(last["seed"] + 1, seeds.stop)
    return found


def report(found: Sequence[Mapping[str, Any]], backend: str) -> str:
    """Counts of verdicts, and each edit that had a bad one, with a seed that shows it."""
    counts = Counter(line["verdict"] for line in found)
    lines = [f"{backend}: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())]
    bad = [line for line in found if line["verdict"] not in GOOD]
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for line in bad:
        kinds[line["verdict"], line.get("step", line["edit"]).split(" after ")[-1]].append(line)
    for (verdict, name), several in sorted(kinds.items()):
        seeds = " ".join(str(line["seed"]) for line in several[:6])
        first = several[0]
        lines.append(
            f"{verdict}: {name} ({len(several)}; {first['rule']}; seeds {seeds}): {first['detail'][:1200]}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run seeds of one back end, and end with 1 where an outcome is a fourth one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cpu", choices=["cpu", "numpy", "triton"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", default="0:300", help="first:end")
    parser.add_argument(
        "--guard", action="store_true", help="each tensor between pages that nobody may touch"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seeds = range(*map(int, given.seeds.split(":")))
    if given.serve:
        serve(given.backend, given.device, seeds)
        return
    start = time.perf_counter()
    found = outcomes(given.backend, seeds, given.device, given.guard)
    print(report(found, given.backend))
    print(f"{len(seeds)} seeds in {time.perf_counter() - start:.0f} s")
    sys.exit(any(line["verdict"] not in GOOD for line in found))


if __name__ == "__main__":
    main()
