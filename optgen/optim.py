"""A `torch.optim.Optimizer` made from a rule.

In: a rule, and what torch's optimizers take. Out: a class with parameter groups, state dicts, freezing,
hooks and closures. Everything that outlives the process lies in `state` and `param_groups`, because
pickling and torch's distributed checkpoints keep nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from difflib import get_close_matches, unified_diff
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from optgen import library
from optgen.compose import chain, complete, with_defaults, with_maximize
from optgen.errors import RuleError, Source
from optgen.ir import Extent, Node, Op, Program, State, toposort
from optgen.launch import BACKENDS, CODEC_OF, MODES, Launcher, Truths, Work, lookup
from optgen.semantics import evaluate

SUPPORTED = "float32, float64, bfloat16 and float16"


class Optimizer(torch.optim.Optimizer):
    """The base of every class that `optgen.optimizer` makes. `program` is the rule."""

    program: ClassVar[Program]

    def __init__(self, params: Any, *args: Any, **options: Any):
        given = self._arguments(params, args, options)
        self._configure(given.pop("backend"), given.pop("math"), given.pop("state_dtype"))
        defaults = {name: self._value(name, value) for name, value in given.items()}
        super().__init__(params, {**defaults, "rule": rule_text(self.program), "frozen": []})

    def _arguments(self, params: Any, args: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments by name, defaults filled in; torch's own flags are looked at."""
        name = type(self).__name__
        for flag in ("foreach", "fused"):  # they choose an implementation, and optgen has one
            options.pop(flag, None)
        for flag in ("capturable", "differentiable"):
            if options.pop(flag, False):
                raise ValueError(f"{name} does not support {flag}=True")
        signature: inspect.Signature = self.__signature__  # type: ignore[attr-defined]
        try:
            bound = signature.bind(params, *args, **options)
        except TypeError as error:
            known = ", ".join(n for n in signature.parameters if n != "params")
            raise TypeError(f"{name}: {error}; it takes {known}") from None
        bound.apply_defaults()
        return {n: value for n, value in bound.arguments.items() if n != "params"}

    def __repr__(self) -> str:
        """As torch's: every group with its options, but not the rule's text."""
        lines = []
        for i, group in enumerate(self.param_groups):
            lines += ["", f"Parameter Group {i}"]
            hidden = {"params", "rule"} | (set() if group.get("frozen") else {"frozen"})
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key not in hidden]
        return f"{type(self).__name__} (" + "\n".join(lines) + "\n)"

    def _configure(self, backend: str, math: str, state_dtype: torch.dtype | None) -> None:
        """Keep what is not saved: how to compute, not what."""
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r} is not one of {', '.join(BACKENDS)}")
        if math not in MODES:
            raise ValueError(f"math={math!r} is not one of {', '.join(MODES)}")
        if state_dtype is not None and state_dtype not in CODEC_OF:
            raise ValueError(f"state_dtype={state_dtype} is not one of {SUPPORTED}")
        self._settings = {"backend": backend, "math": math, "state_dtype": state_dtype}
        self._launcher = Launcher(self.program, backend, math)

    # Options

    def _value(self, name: str, value: Any) -> Any:
        """A hyperparameter's value as it is kept in a group, or an error that names it."""
        default = self.program.hypers[name].default
        if isinstance(default, tuple):
            if not isinstance(value, tuple | list) or len(value) != len(default):
                raise ValueError(f"{name} is a tuple of {len(default)} values, not {value!r}")
            return tuple(self._item(f"{name}[{i}]", v, d) for i, (v, d) in enumerate(zip(value, default)))
        return self._item(name, value, default)

    @staticmethod
    def _item(name: str, value: Any, default: Any) -> Any:
        if isinstance(default, bool):
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{name} is True or False, not {value!r}")
        elif isinstance(default, str):
            if not isinstance(value, str):
                raise ValueError(f"{name} is a string, not {value!r}")
        elif value is None and default is None:
            pass
        elif isinstance(value, bool | str) or value is None:
            raise ValueError(f"{name} is a number, not {value!r}")
        elif isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"{name} is one number, not a tensor of shape {tuple(value.shape)}")
        else:
            try:
                float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{name} is a number, not {value!r}") from None
        return value

    def _check_group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group's hyperparameters, completed and checked against the rule's requirements."""
        for key in group:
            if key not in self.program.hypers and key not in ("params", "rule", "frozen"):
                close = get_close_matches(key, self.program.hypers, 1, 0.8)
                if close:
                    raise ValueError(f"unknown option '{key}' in a parameter group: did you mean '{close[0]}'?")
        options = {n: self._value(n, group.get(n, self.defaults[n])) for n in self.program.hypers}
        check(self.program, options)
        self._launcher.lowered(self._launcher.truths(options))  # an undefined name shows itself here
        return options

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own options, as torch does; a bad one changes nothing."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        checked = {**param_group, **self._check_group(param_group), "frozen": []}
        super().add_param_group(checked)

    # Step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step for every parameter that has a gradient and is not frozen.

        Args:
            closure: evaluates the model again and returns the loss, as in torch.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: a gradient is sparse or complex, or the optimizer is in evaluation mode.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            if group.get("mode") == "eval":
                raise RuntimeError(f"group {index} is in evaluation mode: call optimizer.train() before step()")
        work, counters = self._prepare()
        if work:
            self._launcher.run(work, self.param_groups)
        if counters:
            torch._foreach_add_(counters, 1.0)
        return loss

    def _prepare(self) -> tuple[list[Work], list[Tensor]]:
        """Describe this step's work, creating missing state, and the counters that it will advance.

        Every tensor is checked before any state is created. Empty tensors are counted, not launched.
        """
        moving = []
        for index, group in enumerate(self.param_groups):
            frozen = group["frozen"]
            for position, p in enumerate(group["params"]):
                grad = p.grad
                if grad is None or (frozen and position in frozen):
                    continue
                if grad.layout is not torch.strided or grad.dtype not in CODEC_OF or p.dtype not in CODEC_OF:
                    self._refuse(p, grad)
                moving.append((index, group, p, grad))
        work, counters = [], []
        used: dict[tuple[int, int], tuple[Truths, list[State]]] = {}
        for index, group, p, grad in moving:
            key = (index, p.dim() if self._launcher.per_shape else 0)
            if key not in used:
                truths = self._launcher.truths(group, p.dim())
                used[key] = truths, list(self._launcher.lowered(truths).states.values())
            truths, wanted = used[key]
            kept, states = self._states(p, group, wanted)
            counter = kept["step"]
            counters.append(counter)
            if p.numel():
                work.append(Work(p, grad, states, index, truths, counter.item() + 1.0))
        return work, counters

    def _states(
        self, p: Tensor, group: Mapping[str, Any], wanted: Iterable[State]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A parameter's saved state by key, and the tensors of the wanted states; missing ones are made."""
        kept = self.state[p]
        if "step" not in kept:
            kept["step"] = torch.tensor(0.0, dtype=_counter_dtype())
        states = {}
        for state in wanted:
            tensor = kept.get(state.key)
            if tensor is None:
                tensor = self._launcher.initial(state, p, group, self._settings["state_dtype"])
                kept[state.key] = tensor
            states[state.name] = tensor
        return kept, states

    def _refuse(self, p: Tensor, grad: Tensor) -> NoReturn:
        """Say why a parameter cannot be stepped."""
        name = type(self).__name__
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"{name} does not support sparse gradients: pass dense ones, or torch.optim.SparseAdam for "
                "the embedding layers"
            )
        if p.is_complex() or grad.is_complex():
            raise RuntimeError(f"{name} does not support complex tensors: optimize torch.view_as_real(param)")
        raise RuntimeError(f"{name} supports {SUPPORTED}, not {p.dtype} with a gradient of {grad.dtype}")

    def train(self, mode: bool = True) -> None:
        """Run the rule's `train()` program on every parameter that has state; nothing without one."""
        self._enter("train" if mode else "eval")

    def eval(self) -> None:
        """Run the rule's `eval()` program on every parameter that has state; nothing without one."""
        self._enter("eval")

    @torch.no_grad()
    def _enter(self, mode: str) -> None:
        if not self.program.modes:
            return
        work = []
        for index, group in enumerate(self.param_groups):
            if group.get("mode", "train") == mode:
                continue
            for p in group["params"]:
                if p in self.state and p.numel():
                    truths = self._launcher.truths(group, p.dim())
                    wanted = self._launcher.lowered(truths).states.values()
                    kept, states = self._states(p, group, wanted)
                    work.append(Work(p, None, states, index, truths, kept["step"].item()))
        if work and mode in self.program.modes:
            self._launcher.run(work, self.param_groups, mode)
        for group in self.param_groups:
            group["mode"] = mode

    # Freezing

    def freeze(self, target: nn.Module | Tensor | Mapping[str, Any] | int | Iterable[Tensor]) -> None:
        """Keep parameters and their state as they are until `thaw`; recorded in the state dict.

        Args:
            target: a parameter, several, a module, a parameter group or its index.

        Raises:
            ValueError: a parameter is not one of this optimizer's.
        """
        self._mark(target, True)

    def thaw(self, target: nn.Module | Tensor | Mapping[str, Any] | int | Iterable[Tensor]) -> None:
        """Let frozen parameters move again; takes what `freeze` takes."""
        self._mark(target, False)

    def _mark(self, target: Any, frozen: bool) -> None:
        places = [self._place(p) for p in self._parameters_of(target)]
        for group, position in places:
            marks = set(group["frozen"]) | {position} if frozen else set(group["frozen"]) - {position}
            group["frozen"] = sorted(marks)

    def _parameters_of(self, target: Any) -> list[Tensor]:
        if isinstance(target, nn.Module):
            mine = {id(p) for group in self.param_groups for p in group["params"]}
            found: list[Tensor] = [p for p in target.parameters() if id(p) in mine]
            if not found:
                raise ValueError(f"no parameter of this {type(target).__name__} belongs to the optimizer")
            return found
        if isinstance(target, Tensor):
            return [target]
        if isinstance(target, int) and not isinstance(target, bool):
            if not -len(self.param_groups) <= target < len(self.param_groups):
                raise ValueError(f"there is no group {target}: the optimizer has {len(self.param_groups)}")
            return list(self.param_groups[target]["params"])
        if isinstance(target, Mapping):
            return list(target["params"])
        found = list(target)
        if not all(isinstance(p, Tensor) for p in found):
            raise ValueError("freeze and thaw take a parameter, several, a module, a group or its index")
        return found

    def _place(self, param: Tensor) -> tuple[dict[str, Any], int]:
        for group in self.param_groups:
            for position, p in enumerate(group["params"]):
                if p is param:
                    return group, position
        raise ValueError(f"a tensor of shape {tuple(param.shape)} is not one of the optimizer's parameters")

    # Saving and loading

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, here or by torch.optim for the same rule.

        Every tensor keeps its own dtype and moves to its parameter's device; the dict is not changed and
        shares nothing with the optimizer afterwards. On an error nothing is loaded.

        Raises:
            ValueError: another rule, other groups or sizes; the message says which.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        saved = deepcopy(state_dict["param_groups"])
        self._check_saved(saved)
        params: dict[Any, Tensor] = {}
        for group, mine in zip(saved, self.param_groups, strict=True):
            params |= dict(zip(group["params"], mine["params"], strict=True))
        groups = []
        for i, (group, mine) in enumerate(zip(saved, self.param_groups, strict=True)):
            try:
                options = self._check_group({k: v for k, v in group.items() if k != "params"})
            except ValueError as error:
                raise ValueError(f"group {i} of the state dict: {error}") from error
            keep = {"rule": mine["rule"], "frozen": list(group.get("frozen", []))}
            groups.append({**group, **options, **keep, "params": mine["params"]})
        state: dict[Any, Any] = {}
        for key, entry in state_dict["state"].items():
            if key in params:
                state[params[key]] = self._load_entry(key, params[key], entry)
            else:
                state[key] = deepcopy(entry)
        self.__setstate__({"state": state, "param_groups": groups})
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)

    def _check_saved(self, saved: list[dict[str, Any]]) -> None:
        if len(saved) != len(self.param_groups):
            raise ValueError(
                f"the state dict has {len(saved)} parameter groups, the optimizer {len(self.param_groups)}"
            )
        for i, (group, mine) in enumerate(zip(saved, self.param_groups, strict=True)):
            if len(group["params"]) != len(mine["params"]):
                raise ValueError(
                    f"group {i} of the state dict has {len(group['params'])} parameters, "
                    f"the optimizer's has {len(mine['params'])}"
                )
            text = group.get("rule", mine["rule"])
            if text != mine["rule"] and not same_rule(text, self.program):
                raise ValueError(
                    f"group {i} of the state dict was made by another rule:\n{_difference(text, mine['rule'])}"
                )

    def _load_entry(self, key: Any, p: Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
        """One parameter's saved state, each tensor cloned to where the step wants it."""
        by_key = {s.key: s for s in self.program.states.values()}
        loaded: dict[str, Any] = {}
        for name, value in entry.items():
            if name == "step":
                loaded[name] = torch.tensor(float(value), dtype=_counter_dtype())
            elif value is None:
                continue
            elif name not in by_key:
                known = ", ".join(by_key) or "none"
                raise ValueError(
                    f"parameter {key} of the state dict has a state '{name}', which the rule "
                    f"'{self.program.name}' does not have (it has: {known})"
                )
            else:
                loaded[name] = self._load_tensor(key, name, by_key[name], p, value)
        if loaded and "step" not in loaded:
            # torch's SGD counts no steps; 1 makes the next step the second, which keeps its momentum.
            loaded["step"] = torch.tensor(1.0, dtype=_counter_dtype())
        return loaded

    def _load_tensor(self, key: Any, name: str, state: State, p: Tensor, value: Any) -> Tensor:
        if state.extent is not Extent.ELEMENT:
            number = float(value)
            if self._on_host(state):
                return torch.tensor(number, dtype=torch.float64)
            dtype = torch.float64 if p.dtype is torch.float64 else torch.float32
            return torch.tensor(number, dtype=dtype, device=p.device)
        if not isinstance(value, Tensor) or value.shape != p.shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else value
            raise ValueError(f"state '{name}' of parameter {key} is {shape}, its parameter {tuple(p.shape)}")
        if value.dtype not in CODEC_OF:
            raise ValueError(f"state '{name}' of parameter {key} is {value.dtype}; optgen reads {SUPPORTED}")
        like = torch.empty_like(p, dtype=value.dtype, memory_format=torch.preserve_format)
        return like.copy_(value)

    def _on_host(self, state: State) -> bool:
        lowered = self._launcher.lowered(self._launcher.truths(self.defaults, 2))
        found = lowered.states.get(state.name)
        return found is not None and found.extent is Extent.STEP

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        settings = state.pop("settings", None)
        if settings is not None:
            self._configure(settings["backend"], settings["math"], settings["state_dtype"])
        super().__setstate__(state)

    def __reduce__(self) -> Any:
        defaults = {h.name: h.default for h in self.program.hypers.values()}
        return _restore, (type(self).__name__, _as_tuple(rule_text(self.program)), defaults), self.__getstate__()


def check(program: Program, options: Mapping[str, Any]) -> None:
    """Check a group's options against the rule's `require` conditions.

    Raises:
        ValueError: a condition does not hold; the message quotes it and the values.
    """
    launcher = Launcher(program)
    truths = dict(zip(program.facts, launcher.truths(options, 2), strict=True))

    def leaf(n: Node) -> Any:
        if n.op is Op.FACT:
            return np.bool_(truths[n.value or ""])
        value = lookup(options, n.value or "")
        return np.float64(np.nan if value is None else float(value))

    for requirement in program.requires:
        condition = requirement.condition
        if not evaluate([condition], leaf)[condition]:
            leaves = [n for n in toposort([condition]) if n.op in (Op.HYPER, Op.FACT)]
            subjects = [program.facts[n.value or ""].subject if n.op is Op.FACT else n.value for n in leaves]
            values = ", ".join(f"{s} = {lookup(options, s or '')}" for s in dict.fromkeys(subjects))
            raise ValueError(f"{program.name} needs {requirement.text}, but {values}")


def rule_text(program: Program) -> str | list[str]:
    """The text of a rule, or of each part of a chain, as it travels in a state dict."""
    texts = [part.sources[0].text for part in program.parts or (program,)]
    return texts[0] if len(texts) == 1 else texts


def same_rule(text: str | list[str], program: Program) -> bool:
    """Whether a saved rule text does what a program does, whatever its comments and defaults."""
    try:
        saved = _from_texts((text,) if isinstance(text, str) else tuple(text))
    except RuleError:
        return False
    return _meaning(saved) == _meaning(_from_texts(_as_tuple(rule_text(program))))


def _meaning(program: Program) -> tuple[str, list[tuple[str, str, str]]]:
    states = [(s.name, s.key, s.extent.name) for s in program.states.values()]
    return str(program), states


def _as_tuple(text: str | list[str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _from_texts(texts: tuple[str, ...]) -> Program:
    return chain(*(library.rule(Source(text)) for text in texts))


def _difference(saved: str | list[str], mine: str | list[str]) -> str:
    a, b = ("\n\n".join(_as_tuple(t)).splitlines() for t in (saved, mine))
    return "\n".join(unified_diff(a, b, "saved", "this optimizer", lineterm="", n=1))


def _counter_dtype() -> torch.dtype:
    """torch's own choice for step counts: exact up to 2**24 steps, or 2**53."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def optimizer(source: library.Rule, name: str | None = None) -> type[Optimizer]:
    """The optimizer class of a rule.

    Args:
        source: a shipped name, a path, the text of a rule, or a program (a chain, for example).
        name: what to call the class; by default the name that the rule's docstring begins with.

    Returns:
        A subclass of `torch.optim.Optimizer`. Its constructor takes `params`, then the rule's
        hyperparameters in their order, and by keyword `maximize`, `backend` ("auto", "triton", "cpu",
        "numpy"), `math` ("exact", "fast") and `state_dtype` (None: each parameter's own).

    Raises:
        RuleError: the text is wrong, or the rule is a transform that needs another rule beside it.
    """
    program = library.rule(source)
    if name is None:
        title = program.doc.split(":")[0].strip()
        alone = not program.parts and title.isidentifier()
        name = title if alone else library.camel(program.name)
    return _make(with_maximize(complete(program)), name)


_made: dict[tuple[Any, ...], type[Optimizer]] = {}


def _make(program: Program, name: str) -> type[Optimizer]:
    key = (name, _as_tuple(rule_text(program)), repr(program.hypers))
    if key not in _made:
        shipped = library.classes().get(name)
        own = not (shipped and not program.parts and library.rule(shipped).sources == program.sources)
        _made[key] = type(
            name,
            (Optimizer,),
            {
                "program": program,
                "__signature__": _signature(program),
                "__doc__": _docstring(program),
                "__module__": __name__ if own else "optgen",
                "__qualname__": name,
            },
        )
    return _made[key]


def _signature(program: Program) -> inspect.Signature:
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("params", either)]
    hypers = [h for h in program.hypers.values() if h.name != "maximize"]
    parameters += [inspect.Parameter(h.name, either, default=h.default) for h in hypers]
    others = {"maximize": False, "backend": "auto", "math": "exact", "state_dtype": None}
    parameters += [inspect.Parameter(n, keyword, default=d) for n, d in others.items()]
    return inspect.Signature(parameters)


def _docstring(program: Program) -> str:
    lines = [program.doc, "", "Args:", "    params: tensors, named tensors or parameter groups, as in torch."]
    for hyper in program.hypers.values():
        if hyper.name == "maximize":
            continue
        bounds = [r.text for r in program.requires if hyper.name in r.text]
        lines.append(f"    {hyper.name}: default {hyper.default!r}{'; needs ' + ', '.join(bounds) if bounds else ''}.")
    lines += [
        "    maximize: ascend instead of descend.",
        '    backend: "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy".',
        '    math: "exact" (the same bits on every back end) or "fast".',
        "    state_dtype: the dtype of new state; by default each parameter's own.",
        "",
        "State: " + (", ".join(s.key for s in program.states.values()) or "none") + ".",
    ]
    return "\n".join(lines)


def _restore(name: str, texts: tuple[str, ...], defaults: dict[str, Any]) -> Optimizer:
    """An empty optimizer of the class that these rule texts make; unpickling fills it."""
    program = with_defaults(with_maximize(complete(_from_texts(texts))), **defaults)
    cls = _make(program, name)
    return cls.__new__(cls)
