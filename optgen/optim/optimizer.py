"""The `torch.optim.Optimizer` subclass of a rule.

In: a rule, and the arguments of torch's optimizers. Out: a class with parameter groups, state dicts,
freezing, hooks and closures. Everything that outlives the process lies in `state` and `param_groups`, for
state dicts and torch's distributed checkpoints have nothing else; a pickle adds the rule's text and the
compile options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optgen import library
from optgen.ir.program import Program
from optgen.launch.overlap import check_memory
from optgen.launch.uninterrupted import Uninterrupted, undisturbed
from optgen.locks import once
from optgen.optim import _restore
from optgen.optim.checkpoint import as_tuple, from_texts, part_names, rule_text
from optgen.optim.freeze import mark
from optgen.optim.hyperparameters import checked, complete_group
from optgen.optim.loading import LoadReport, load
from optgen.optim.signature import docstring, signature
from optgen.optim.state import materialising
from optgen.optim.steps import Steps
from optgen.optim.untraced import untraced
from optgen.passes.chain import complete
from optgen.passes.variants import with_defaults, with_maximize

# torch wraps this method so that its compiler, if it should meet it, leaves it alone; the wrapper imports
# that compiler on its first call, which takes a second before the first step.
_add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

# Arguments of the constructor that say how to compute; no parameter group and no state dict has them.
COMPILE_OPTIONS = ("backend", "math", "state_dtype", "capturable", "fused")


class Optimizer(Steps):
    """Base class of the classes that `optgen.optimizer` returns; `program` is the rule as a `Program`."""

    _constructing = False  # then all groups are checked for overlaps together, at the end

    def __init__(self, params: Any, *args: Any, **options: Any):
        arguments = self._arguments(params, args, options)
        self._configure(**{name: arguments.pop(name) for name in COMPILE_OPTIONS})
        defaults = {name: checked(self.program, name, value) for name, value in arguments.items()}
        self._constructing = True
        super().__init__(params, {**defaults, "rule": rule_text(self.program), "frozen": []})
        self._constructing = False
        check_memory(self._params())

    def _arguments(self, params: Any, args: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Bind the constructor's arguments to the class's signature: by name, defaults filled in.

        torch's own flags are not in that signature: `foreach` is ignored, `differentiable` refused.
        """
        name = type(self).__name__
        options.pop("foreach", None)  # it chooses an implementation, and optgen has one
        if options.pop("differentiable", False):
            raise ValueError(f"{name} does not support differentiable=True: a step is no part of a graph")
        flags = {flag: bool(options.pop(flag, False)) for flag in ("capturable", "fused")}
        # Not by super().__init__: torch takes unknown options as defaults without a word.
        signature: inspect.Signature = self.__signature__  # type: ignore[attr-defined]
        try:
            bound = signature.bind(params, *args, **options)
        except TypeError as error:
            known = ", ".join(n for n in signature.parameters if n != "params")
            raise TypeError(f"{name}: {error}; it takes {known}") from None
        bound.apply_defaults()
        return {n: value for n, value in bound.arguments.items() if n != "params"} | flags

    def __repr__(self) -> str:
        """Every group with its options, as torch writes them, but not the rule's text."""
        lines = []
        for i, group in enumerate(self.param_groups):
            lines += ["", f"Parameter Group {i}"]
            hidden = {"params", "rule"} | (set() if group.get("frozen") else {"frozen"})
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key not in hidden]
        return f"{type(self).__name__} (" + "\n".join(lines) + "\n)"

    def _check_group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Complete a group's hyperparameters from the defaults, and check them against the rule."""
        options = complete_group(self.program, group, self.defaults)
        # Specialising finds names without a value under these options: now, and not in the first step.
        self._launcher.compiler.specialised(self._launcher.compiler.facts(options))
        return options

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own options, as torch does; a bad one changes nothing.

        Args:
            param_group: `params`, which is a tensor, tensors or pairs of a name and a tensor, and
                hyperparameters in place of the constructor's; not changed.

        Raises:
            TypeError: it is no dict, or has something else than tensors for `params`.
            ValueError: an option is wrong, a parameter is in the group twice or in another group, or it
                overlaps with another in memory.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        group = {**param_group, **self._check_group(param_group), "frozen": []}
        if not isinstance(group["params"], set):  # for which torch raises its own error
            params = group["params"]
            group["params"] = [params] if isinstance(params, Tensor) else list(params)
            tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
            # torch only warns, but here one launch would step it twice at the same time.
            if len({id(p) for p in tensors}) < len(tensors):
                raise ValueError("a parameter is twice in a parameter group")
            if not self._constructing:
                check_memory([*self._params(), *(p for p in tensors if isinstance(p, Tensor))])
        _add_param_group(self, group)

    @untraced
    def step(self, closure: Callable[[], Any] | None = None, **inputs: Any) -> Any:
        """One step for every parameter that has a gradient and is not frozen.

        All tensors of a device, storage and specialisation move in one launch for each sweep of the rule's
        plan. After an error, no parameter, state or step count has changed.

        Args:
            closure: evaluates the model again and returns the loss, as in torch; it is called with gradients
                enabled.
            **inputs: what the rule declares with `input()`: for each parameter a tensor of its shape, in
                float32, float64, bfloat16 or float16, as a mapping from parameters or a sequence in the order
                of the groups; or one number, such as the loss, as a number or a tensor of one element. Where
                that is not given it is the closure's result.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: a gradient is sparse or complex, the optimizer is in evaluation mode, or a
                parameter has no gradient while a CUDA graph is captured.
            TypeError: the rule has no such input, or needs one that is missing.
            ValueError: an input has another shape than its parameter, or there is none for a parameter.
        """
        if not self.state and materialising():
            self._materialise()
            return None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        launcher, key = self._launcher, (self._compile_options["capturable"],)
        # Tables belong to the launcher: two threads in a step would fill the same ones.
        with launcher.lock:
            quiet = undisturbed()
            # Where handlers can only raise KeyboardInterrupt, a replay, which is one compiled call, needs no
            # signals held back. All else does: a handler must not change what was checked, or cut an import.
            if inputs or not (quiet and self._try_replay(launcher, key)):
                with Uninterrupted():
                    if inputs or quiet or not self._try_replay(launcher, key):
                        self._step(inputs, loss)
        return loss

    def train(self, mode: bool = True) -> None:
        """Run the rule's `train()` program on every parameter that has state; does nothing without one.

        For rules such as schedule-free ones, which train with other values than they are evaluated with. It
        undoes `eval()`; a second call does nothing.
        """
        self._set_mode(mode)

    def eval(self) -> None:
        """Run the rule's `eval()` program on every parameter that has state; does nothing without one.

        Until `train()` a step raises a RuntimeError. Which mode a group is in is its `train_mode`, in the
        state dict too.
        """
        self._set_mode(False)

    @untraced
    @torch.no_grad()
    def _set_mode(self, training: bool) -> None:
        """Run `_run_mode` if the rule has modes, locked and with signals held back."""
        if self.program.modes:
            with self._launcher.lock, Uninterrupted():
                self._run_mode(training)

    def freeze(self, target: nn.Module | Tensor | Mapping[str, Any] | int | Iterable[Tensor]) -> None:
        """Keep parameters and their state as they are until `thaw`; the state dict records it.

        Args:
            target: a parameter, several, a module, a parameter group or its index.

        Raises:
            ValueError: a parameter is not one of this optimizer's.
        """
        mark(self.param_groups, target, True)

    def thaw(self, target: nn.Module | Tensor | Mapping[str, Any] | int | Iterable[Tensor]) -> None:
        """Let frozen parameters move again; takes what `freeze` takes."""
        mark(self.param_groups, target, False)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> LoadReport:  # type: ignore[override]
        """Load what `state_dict` returned, here or by torch.optim for the same rule.

        Parameters are matched by name where both sides have names, `AdamW(model.named_parameters())`, so that
        their order and their groups may differ; otherwise by position. Every tensor keeps its own dtype and
        moves to its parameter's device; the dict is not changed and shares nothing with the optimizer
        afterwards. On an error nothing is loaded.

        Args:
            state_dict: what to load.
            strict: whether every parameter must be on both sides, and its state fit. If not, what fits is
                loaded, and other parameters and groups keep the state and the options that they have.

        Returns:
            What was left; with `strict`, nothing.

        Raises:
            ValueError: another rule, or an option that the rule refuses; with `strict` also other parameters,
                groups or sizes. The message says which.
        """
        # torch's method is replaced, and so must call its hooks; they may return another dict.
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        loaded, report = load(
            state_dict, self.param_groups, self.state, self._launcher, self._check_group, strict
        )
        self.__setstate__(loaded)
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)
        return report

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "settings": self._compile_options}  # the key of older pickles

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        options = state.pop("settings", None)  # a loaded state dict has none, and leaves them as they are
        if options is not None:
            self._configure(**options)
        super().__setstate__(state)

    def __reduce__(self) -> Any:
        # By the rule's text: a class that `optgen.optimizer` made has no name that pickle could import.
        defaults = {h.name: h.default for h in self.program.hypers.values()}
        return (
            _restore,
            (type(self).__name__, as_tuple(rule_text(self.program)), defaults, part_names(self.program)),
            self.__getstate__(),
        )


def optimizer(source: library.Rule, name: str | None = None) -> type[Optimizer]:
    """The optimizer class of a rule; equal rules and names give the same class.

    Args:
        source: a shipped name, a path, the text of a rule, or a program (a chain, for example).
        name: what to call the class; by default the name that the rule's docstring begins with.

    Returns:
        A subclass of `torch.optim.Optimizer`. Its constructor takes `params`, then the rule's
        hyperparameters in their order, and by keyword `maximize`, `backend` ("auto", "triton", "cpu",
        "numpy"), `math` ("exact", "fast") and `state_dtype` (None: each parameter's own), and torch's
        `fused`, `capturable`, `foreach` and `differentiable`. Parameters and gradients are float32, float64,
        bfloat16 or float16.

    Raises:
        RuleError: the text is wrong, or the rule is a transform that needs another rule beside it.
    """
    program = library.rule(source)
    if name is None:
        title = program.doc.split(":")[0].strip()
        alone = not program.parts and title.isidentifier()
        name = title if alone else library.camel(program.name)
    return _make(with_maximize(complete(program)), name)


_classes: dict[tuple[Any, ...], type[Optimizer]] = {}  # by name, rule texts and hyperparameters


def _make(program: Program, name: str) -> type[Optimizer]:
    """The class of a program, one object whichever thread asks first."""

    def make() -> type[Optimizer]:
        # A rule with the text of a shipped one, as a pickle has it, is that shipped class, `optgen.AdamW`.
        shipped = library.classes().get(name)
        own = not (shipped and rule_text(library.rule(shipped)) == rule_text(program))
        return type(
            name,
            (Optimizer,),
            {
                "program": program,
                "__signature__": signature(program),
                "__doc__": docstring(program, name, name if own else f"optgen.{name}"),
                "__module__": "optgen.optim" if own else "optgen",
                "__qualname__": name,
            },
        )

    return once(_classes, (name, as_tuple(rule_text(program)), repr(program.hypers)), make)


def restored(
    name: str, texts: tuple[str, ...], defaults: dict[str, Any], names: tuple[str, ...] = ()
) -> Optimizer:
    """Unpickling: an empty optimizer of the class of these rule texts, which `__setstate__` fills."""
    program = with_defaults(with_maximize(complete(from_texts(texts, names))), **defaults)
    cls = _make(program, name)
    return cls.__new__(cls)
