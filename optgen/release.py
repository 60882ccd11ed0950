"""Gradient release (optimizer-in-backward): steps each parameter in the backward pass and frees its gradient.

In: an optimizer. Out: hooks on its parameters, so that at most one of their gradients exists at a time, where
an ordinary loop has all of them until `step()`.

A hook makes the step of one parameter, with the options that its group has then; so parameters, state and
state dict are those of an ordinary loop, to the bit, and a state dict can be loaded with or without hooks.
`optimizer.step()` stays in the loop: it runs its own hooks, schedulers see it called, and it steps parameters
that got a gradient without a hook. A rule whose step needs all parameters together is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet, finalize, ref

from torch import Tensor

from optgen.ir.extent import Extent
from optgen.ir.node import REDUCTIONS, toposort
from optgen.ir.program import Program
from optgen.launch.launcher import Launcher
from optgen.launch.replay import Place
from optgen.locks import lock
from optgen.optim.optimizer import Optimizer

_released: WeakSet[Optimizer] = WeakSet()


class Release:
    """The hooks of one optimizer, until `remove()` or the end of a `with` statement."""

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        handles: list[Any] = [optimizer.register_step_pre_hook(_refuse_scaler)]
        # Hooks that outlived the optimizer would keep launchers with addresses of its state.
        self._end = finalize(optimizer, _remove, handles)
        self._end.atexit = False  # at exit nothing needs to be removed
        # Only then does a GradScaler call step() with its attributes set, by which `_refuse_scaler` knows it.
        self._scaling, optimizer._step_supports_amp_scaling = optimizer._step_supports_amp_scaling, True
        _released.add(optimizer)
        # Autograd has a thread for each device, and hooks read and write the optimizer's groups and state.
        hook_lock = lock()
        for place in optimizer._places():
            p = optimizer.param_groups[place[1]]["params"][place[2]]
            if p.requires_grad:
                hook = _hook(ref(optimizer), place, optimizer._launcher.clone(), hook_lock)
                handles.append(p.register_post_accumulate_grad_hook(hook))

    def remove(self) -> None:
        """Remove the hooks: gradients then stay until `step()`. A second call does nothing."""
        if self._end.alive:
            self._end()
            self._optimizer._step_supports_amp_scaling = self._scaling
            _released.discard(self._optimizer)

    def __enter__(self) -> Release:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _remove(handles: list[Any]) -> None:
    """Remove hooks, when `remove` is called or the optimizer is garbage."""
    for handle in handles:
        handle.remove()


def _hook(
    weak_optimizer: ref[Optimizer], place: Place, launcher: Launcher, hook_lock: Any
) -> Callable[[Tensor], None]:
    """A gradient hook without references to tensors: Python's collector does not follow a tensor's hooks."""

    def step(p: Tensor) -> None:
        optimizer = weak_optimizer()
        if optimizer is not None:
            with hook_lock:
                optimizer._step_parameter(p, place, launcher)

    return step


def attach(optimizer: Optimizer) -> Release:
    """Step each parameter in the backward pass, when its gradient is complete, and free the gradient.

    The loop stays as it is: `loss.backward()`, `optimizer.step()`, `scheduler.step()`. An lr that changes
    between two iterations counts from the next backward. A tied parameter is stepped once, with the whole
    gradient; one that is frozen is not, but its gradient is freed. Parameters that require no gradient now,
    or are added later, are stepped by `step()`.

    A backward pass is a step. To accumulate over several, use `optgen.training.accumulated`: gradients are
    never summed in `p.grad`. For the same reason they cannot be changed between backward and step, nor
    averaged between processes: `DistributedDataParallel` does that after the hooks. If backward fails,
    parameters whose gradients were complete before the failure have moved.

    Args:
        optimizer: of an optgen class.

    Returns:
        The hooks; `remove()` them, or use it as a context manager.

    Raises:
        TypeError: it is another optimizer.
        ValueError: a step of its rule needs all gradients at once, as clipping by the global norm does, or
            needs inputs besides gradients; a parameter has a gradient already, or is no leaf; the optimizer
            has hooks already. A `GradScaler` is detected in its `step`, which raises a RuntimeError.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"release takes an optgen optimizer, not {type(optimizer).__name__}")
    if optimizer in _released:
        raise ValueError(f"this {type(optimizer).__name__} is released already: call remove() first")
    for part in optimizer.program.parts or (optimizer.program,):
        _check(part)
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not p.is_leaf:
                raise ValueError(
                    f"a tensor of shape {tuple(p.shape)} is no leaf, and torch has no hook for it"
                )
            if p.grad is not None:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} has a gradient: call optimizer.step() and "
                    "zero_grad() before gradients are released"
                )
    return Release(optimizer)


def _check(part: Program) -> None:
    """Refuse a rule whose step one parameter's hook cannot make alone."""
    if part.inputs:
        reason = f"is handed {', '.join(part.inputs)} by step(), which comes after backward"
    elif any(state.extent is Extent.ALL for state in part.states.values()):
        reason = "keeps numbers that are one for all parameters"
    elif any(n.op in REDUCTIONS and n.extent is Extent.ALL for n in toposort(part.roots())):
        reason = "needs the gradients of all parameters at once"
        if part.kind == "before":
            reason += "; to clip, chain clip_norm, clip_value or agc, which take one tensor at a time"
    else:
        return
    raise ValueError(f"gradients cannot be released: '{part.name}' {reason}")


def _refuse_scaler(optimizer: Any, *_: object) -> None:
    """Step pre-hook: raise if a GradScaler makes this step, for updates were made with scaled gradients."""
    scaled = [vars(optimizer).pop(name) for name in ("found_inf", "grad_scale") if name in vars(optimizer)]
    if scaled:
        raise RuntimeError(
            "gradients cannot be released under a GradScaler: the parameters were stepped with scaled "
            "gradients; train in bfloat16, or without optgen.release"
        )
