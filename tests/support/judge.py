"""What a step may do after an edit: the judge of `edits.py`.

In: a case, whose optimizer is about to step. Out: a verdict, and why. `right` is what the reference does with
the same numbers in plain memory, `torch` what torch does with them, `refused` an error that names the
parameter or group and leaves everything as it was. Anything else is wrong in a way that the verdict names.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import optgen
from changes import Inapplicable, readable
from optgen.ir.extent import Extent
from optgen.launch.launcher import Launcher
from optgen.verify.differential import FEEDBACK, TOLERANCE, allowed, difference, largest

GOOD = ("right", "torch", "refused")


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


def images(storages: Iterable[torch.UntypedStorage]) -> Sequence[Tensor]:
    """Copies of the bytes of storages, as parts of one tensor on the CPU."""
    parts = [bytes_of(storage).cpu() for storage in storages]
    return torch.cat(parts).split(list(map(len, parts))) if parts else []


def entries(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group has: parameters and tensors by their identity."""
    own = {k: id(v) if isinstance(v, Tensor) else repr(v) for k, v in group.items() if k != "params"}
    return {**own, "params": list(map(id, group["params"]))}


class Picture:
    """Tensors, the bytes of their storages, the state's dictionaries and the groups as they are now."""

    def __init__(self, case: Any, aliases: bool = False):
        self.case, self.optimizer = case, case.optimizer
        self.tensors = list({id(t): (n, t, facts(t)) for n, t in case.tensors()}.values())
        self.aliases = [t.detach() for _, t, _ in self.tensors] if aliases else []
        self.grads = [(p, p.grad) for p in case.params]
        placed = [(t, known) for _, t, known in self.tensors if len(known) > 6 and t.device.type != "meta"]
        storages = {known[6]: t.untyped_storage() for t, known in placed}
        copies = images(storages.values())
        self.storages = {at: (storages[at], made) for at, made in zip(storages, copies, strict=True)}
        state, groups = case.optimizer.state, case.optimizer.param_groups
        self.state = state, [(p, kept, dict(kept)) for p, kept in state.items()]
        self.groups = [(group, dict(group), list(group["params"]), entries(group)) for group in groups]
        self.inputs = {k: dict(v) if isinstance(v, dict) else v for k, v in case.inputs.items()}
        own = {s.key.removeprefix("group:") for s in case.optimizer.program.states.values()}
        self.own = frozenset({*own, "steps"})  # keys of what a step changes in groups
        self.moving = [p for p in case.params if case.counts(p)]
        kept = [v for p in self.moving for k, v in state.get(p, {}).items() if p.numel() or k == "step"]
        kept += [group[key] for group in groups for key in self.own & set(group)]
        self.written = {id(x) for x in (*self.moving, *kept)}

    def changed(self) -> str | None:
        """What is not as it was, after an error."""
        for name, t, known in self.tensors:
            if facts(t) != known:
                return f"{name} was {known}, and is {facts(t)}"
        if any(p.grad is not g for p, g in self.grads):
            return "a gradient is another tensor"
        for at, known, now in self._images():
            if not torch.equal(now, known):
                return f"bytes of {self._names(at)} changed"
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

    def _images(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each storage, its bytes as they were, and as they are."""
        now = images(storage for storage, _ in self.storages.values())
        return ((at, known, new) for (at, (_, known)), new in zip(self.storages.items(), now, strict=True))

    def _names(self, at: int) -> str:
        return ", ".join(sorted({name for name, _, known in self.tensors if known[6:7] == (at,)}))

    def spilled(self) -> str | None:
        """What a step has changed and may not: gradients, options, and memory around what it writes."""
        written: dict[int, list[tuple[Any, ...]]] = {at: [] for at in self.storages}
        for name, t, known in self.tensors:
            if (id(t) not in self.written or name == "parameter") and facts(t) != known:
                return f"{name} was {known}, and is {facts(t)}"
            if id(t) in self.written and known[6:7] and known[6] in written:
                written[known[6]].append(known)
        for at, known, now in self._images():
            if len(now) == len(known) and not torch.equal(now, known):
                rest = torch.ones_like(known)
                for one in written[at]:
                    view_in(rest, one).zero_()
                if not torch.equal(now * rest, known * rest):
                    return f"memory of {self._names(at)} was written that is not the step's"
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

    def __init__(self, case: Any, measured: bool = False, shared: bool = False):
        self.given: dict[str, Any] = {}
        self.groups, self.state = [], {}
        self.sizes: dict[int, float] = {}  # the largest number of each before the step, if `measured`
        self.measured = measured
        self.copies: dict[int, Any] | None = {} if shared else None  # of tensors that are there twice
        made: dict[int, Any] = {}
        for group in case.optimizer.param_groups:
            mine = {k: self.plain(v) for k, v in group.items() if k != "params"}
            for i, p in enumerate(group["params"]):
                if id(p) not in made:
                    made[id(p)] = self._parameter(p, group, i)
            self.groups.append({**mine, "params": [made[id(p)] for p in group["params"]]})
        own = case.optimizer.state
        for p in (p for p in case.params if p in own):
            if p.grad is not None or all(map(readable, own[p].values())):
                self.state[made[id(p)]] = {k: self._kept(p, k, v) for k, v in own[p].items()}
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
        if self.measured and x.dtype in TOLERANCE:
            self.sizes[id(made)] = largest(made)
        return made if self.copies is None else self.copies.setdefault(id(x), made)

    def _kept(self, p: Tensor, key: str, value: Any) -> Any:
        """A state; that of a parameter without elements is never read, but for the count."""
        return self.plain(value) if p.numel() or key == "step" or readable(value) else value

    def _parameter(self, p: Any, group: Mapping[str, Any], position: int) -> Any:
        if not isinstance(p, Tensor):
            return p
        if p.grad is None or position in (group.get("frozen") or ()):
            return nn.Parameter(self.plain(p) if readable(p) else torch.zeros(()), requires_grad=False)
        values = self.plain(p)
        made = nn.Parameter(values, requires_grad=False)
        self.sizes[id(made)] = self.sizes.get(id(values), 0.0)
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
            optimizer._launcher = launcher_of(kind).clone()
            self._widen(optimizer._launcher)
        optimizer.step(**self.given)
        self.state = optimizer.state
        return self

    def _widen(self, launcher: Any) -> None:
        """Give states of tensors and slices the dtype that the plan reads."""
        for group in self.groups:
            for p in (p for p in group["params"] if p in self.state and p.grad is not None and p.numel()):
                kept = self.state[p]
                inputs = [v.get(p) for v in self.given.values() if isinstance(v, Mapping)]
                states = launcher.compiler.specialised(
                    launcher.compiler.facts(group, p.dim(), set(self.given))
                ).states.values()
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


def differs(before: Picture, twin: Twin, limit: float, loose: bool = False) -> str | None:
    """Where the case is not what the twin is, in words; `loose` compares only what both have."""
    optimizer = before.optimizer
    for i, (p, q) in enumerate(zip(before.case.params, tensors_of(twin.groups), strict=True)):
        if not any(p is x for x in before.moving):  # whose bytes are compared
            continue
        mine, known = optimizer.state.get(p, {}), twin.state.get(q, {})
        if not loose and set(mine) != set(known):
            return f"parameter {i} has states {list(mine)}, and should have {list(known)}"
        for key, a, b in [("p", p, q), *((k, mine[k], v) for k, v in known.items() if k in mine)]:
            if not p.numel() and key != "step":  # which no step reads
                continue
            if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
                if not loose and type(a) is not type(b):
                    return f"{key} of parameter {i} is {a!r}, and should be {b!r}"
                continue
            if a.shape != b.shape or (a.dtype != b.dtype and not loose and key != "step"):
                return f"{key} of parameter {i} is {a.dtype} {a.shape}, and should be {b.dtype} {b.shape}"
            worst = difference(a, b, twin.sizes.get(id(b), 0.0))
            if not worst <= (0 if key == "step" else limit):
                return f"{key} of parameter {i} is off by {worst:.1e} of it, and {limit:.1e} is allowed"
    keys = {s.key.removeprefix("group:") for s in optimizer.program.states.values()} | {"steps"}
    for mine, known in zip(optimizer.param_groups, twin.groups, strict=True):
        for key in () if loose else keys & set(known):
            a, b = (torch.as_tensor(x[key]).double() for x in (mine, known))
            if not difference(a, b) <= limit:
                return f"a group's {key} is {a}, and should be {b}"
    return None


@cache
def rounding(kind: type[optgen.Optimizer], dtypes: frozenset[torch.dtype], ndims: frozenset[int]) -> float:
    """The relative difference that a rule's roundings may make."""
    return allowed(kind.program, {}, dtypes, ndims)


def limit_of(case: Any) -> float:
    dtypes = {t.dtype for name, t in case.tensors() if name != "step"} & set(TOLERANCE)
    return rounding(
        case.rule.kind, frozenset(dtypes or {torch.float32}), frozenset(p.dim() for p in case.params)
    )


def judged(case: Any) -> tuple[str, str]:
    """Take a step; what came of it, and why that is wrong or what was refused."""
    before, limit = Picture(case), limit_of(case)
    right, spare, reason = None, None, ""
    try:
        right = Twin(case, limit > 0)
        spare = Twin(case, shared=True) if case.rule.oracle else None
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
        reason = differs(before, right, limit) or ""
    if not reason:
        return "right", ""
    if spare is not None and case.rule.oracle is not None:
        try:
            found = differs(before, spare.step(case.rule.oracle), max(limit, 1e-5) * FEEDBACK, loose=True)
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
    known = [
        *program.hypers,
        *program.inputs,
        *(s.name for s in program.states.values() if s.extent is Extent.ALL),
    ]
    pattern = rf"parameter ('[^']+'|\d+)|group \d+|\b({'|'.join(known)})\b"
    return ("refused" if re.search(pattern, str(error)) else "unnamed"), text
