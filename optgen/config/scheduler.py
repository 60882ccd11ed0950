"""One optimizer with its losses, modules and schedule: accumulates micro-steps, then updates.

In: a model, the keys of a configuration, and in every micro-step the losses by name. Out: updated parameters.
The caller counts micro-steps from 1 over the whole run, so a schedule has no state: the real step is
`(step_num - 1)//accum_grad + 1`. Neither losses nor any `.grad` are changed, for schedulers may share a
graph: a partial accumulation is an attribute, and in the state dict.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optgen.config.optimizers import build
from optgen.config.schema import Conf, ConfigError, arguments, validated
from optgen.schedules.groups import plain

INFINITE = (
    "The grad_norm in the no.{} real step is infinite! So, the parameters are not updated in this step."
)


class OptimScheduler(ABC):
    """An optimizer whose learning rate is a function of the step, on its own losses and modules.

    Subclasses implement `sche_init`, which takes the schedule's keys, and `update_lr`.

    Args:
        optim_type: what `optim_type` of a configuration names, `"Adam"`.
        optim_conf: its options. A text where a number belongs is a schedule, `lr="1e-3*minimum(t/100, 1)"`,
            in which `t` is the real step.
        model: the module whose parameters are optimized.
        optim_losses: names of the losses to minimise, whose gradients are added; None for `loss`, or for all
            losses if none has that name.
        updated_modules: attributes of the model, also dotted, one or several; or a mapping from them to
            options, which makes a parameter group of each. None for the whole model.
        step_per_update: act in every n-th real step only; the gradients of the others are discarded.
        accum_grad: how many micro-steps make a real step, whose gradient is their mean.
        ft_factor: a factor of the learning rate, for fine-tuning.
        grad_clip: the largest norm of all gradients together; None for no limit.
        grad_norm_type: the p of the p-norm.
        clip_scope: the parameters of that norm: the "own" ones, or those of the whole "model".
        keep_group_ratio: whether parameter groups keep the ratios of their first learning rates, or all have
            the schedule's; by default they keep them where `updated_modules` has options.
        use_amp: scale losses with a `torch.amp.GradScaler` of its own.
        enabled: False leaves everything as it is.
        scaler: another scaler to use.
        **sche_conf: for `sche_init`.

    Raises:
        ConfigError: a key is wrong; it names the key.
    """

    takes: ClassVar[Any] = None  # a function whose signature validates `sche_conf`, if not `sche_init`
    own_lr: ClassVar[bool] = True  # whether `update_lr` sets the learning rate, so that optim_conf may not

    def __init__(
        self,
        optim_type: str | list[str],
        optim_conf: Mapping[str, Any],
        model: nn.Module,
        *,
        scaler: Any = None,
        **conf: Any,
    ):
        schedule_keys = arguments(self.takes or type(self).sche_init)
        options = dict(optim_conf) if isinstance(optim_conf, Mapping) else optim_conf
        checked = validated(Conf, {"optim_type": optim_type, "optim_conf": options, **conf})
        extra = checked.model_extra or {}
        sche_conf = dict(validated(schedule_keys, extra, Conf.model_fields))
        self.conf, self.model = checked, model
        groups = _groups(model, checked.updated_modules)
        self.optimizer, self.schedules = build(checked.optim_type, checked.optim_conf, groups)
        self._lr_schedules = [s for s in self.schedules if s.name == "lr"]
        if self._lr_schedules and self.own_lr:
            raise ConfigError(
                f"{type(self).__name__} sets the learning rate", ("optim_conf", "lr"), None,
                "give lr as a number, or use the type 'constant'",
            )  # fmt: skip
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", plain(group["lr"]))
        if self._keeps_ratio and not self.base_lr:
            raise ConfigError("there are no ratios to a learning rate of 0", ("optim_conf", "lr"))
        for schedule in self.schedules:
            schedule.start(self.optimizer)
        self.params = [p for group in self.optimizer.param_groups for p in group["params"]]
        # The norm may be that of the whole model, so gradients of all its parameters are computed then.
        own = set(map(id, self.params))
        others = model.parameters() if checked.clip_scope == "model" else ()
        self._grad_params = [*self.params, *(p for p in others if id(p) not in own)]
        self.accumulated: dict[int, Tensor] = {}  # by position in _grad_params
        self.scaler = scaler
        if checked.use_amp and scaler is None:
            self.scaler = torch.amp.GradScaler(self.params[0].device.type)
        # Overrides in SpeeChain's style may take the real step alone.
        self._takes_epoch = "epoch_num" in inspect.signature(self.update_lr).parameters
        try:  # last, for it may read what is set above
            self.sche_init(**sche_conf)
        except ValueError as error:
            at = next(((key,) for key in sche_conf if key in str(error)), ())
            raise ConfigError(str(error), at) from error

    # What a subclass has

    @abstractmethod
    def sche_init(self, *args: Any, **sche_conf: Any) -> None:
        """Take the schedule's own keys; called last by the constructor."""

    @abstractmethod
    def update_lr(self, real_step: int, epoch_num: int | None = None) -> float:
        """The learning rate of a real step, counted from 1; an override may leave `epoch_num` out."""

    def extra_repr_fn(self) -> str:
        """What `repr` shows after the modules; nothing by default."""
        return ""

    def __repr__(self) -> str:
        modules = self.conf.updated_modules
        parts = [
            f"optimizer={type(self.optimizer).__name__}",
            f"optim_losses={self.conf.optim_losses}",
            f"updated_modules={None if modules is None else list(modules)}",
            *filter(None, [self.extra_repr_fn()]),
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def base_lr(self) -> float:
        """The learning rate of `optim_conf`, before any schedule."""
        return float(self.optimizer.param_groups[0]["initial_lr"])

    def get_lr(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    # Steps

    def real_step(self, step_num: int) -> int:
        """The real step that a micro-step is part of; both count from 1."""
        if isinstance(step_num, bool) or not isinstance(step_num, int) or step_num < 1:
            raise ValueError(f"step_num counts micro-steps from 1, and is {step_num!r}")
        return (step_num - 1) // self.conf.accum_grad + 1

    def step(
        self,
        losses: Mapping[str, Tensor],
        step_num: int,
        epoch_num: int = 1,
        logger: logging.Logger | None = None,
    ) -> None:
        """One micro-step: gradients, and after the last one of a real step the update.

        Where several schedulers share a graph, call `OptimSchedulerDict.step` instead.

        Args:
            losses: 0-d tensors by name; they stay as they are.
            step_num: the number of this micro-step in the whole run, from 1.
            epoch_num: the epoch, from 1.
            logger: gets a message when an update is skipped because its gradient is not finite; without a
                logger that is a RuntimeWarning.

        Raises:
            KeyError: a loss that this scheduler minimises is missing.
        """
        if self.gradients(losses, step_num):
            self.update(step_num, epoch_num, logger)

    def acts(self, step_num: int) -> bool:
        """Whether a micro-step is part of a real step in which this scheduler updates."""
        return self.conf.enabled and self.real_step(step_num) % self.conf.step_per_update == 0

    def gradients(self, losses: Mapping[str, Tensor], step_num: int, retain_graph: bool = False) -> bool:
        """Accumulate the gradients of one micro-step; returns whether its real step is complete.

        If so, `update` must follow. `retain_graph` keeps the autograd graph for another scheduler.
        """
        if not self.acts(step_num):
            return False
        if (step_num - 1) % self.conf.accum_grad == 0:  # an earlier real step may have been cut short
            self.accumulated = {}
        last = step_num % self.conf.accum_grad == 0
        chosen = [losses[name] for name in self.selected(losses)]
        # DistributedDataParallel averages gradients between processes: in the last micro-step only.
        no_sync = getattr(self.model, "no_sync", None)
        with contextlib.nullcontext() if last or no_sync is None else no_sync():
            self.backward([loss / self.conf.accum_grad for loss in chosen], retain_graph)
        return last

    def selected(self, losses: Mapping[str, Tensor]) -> list[str]:
        """The names of the losses that this scheduler minimises.

        Raises:
            KeyError: one is missing; the message says which there are.
        """
        names = self.conf.optim_losses
        if names is None:
            names = ["loss"] if "loss" in losses else list(losses)
        for name in names or ["loss"]:
            if name not in losses:
                raise KeyError(f"there is no loss '{name}'; there are: {', '.join(losses) or 'none'}")
        return names

    def backward(self, losses: Sequence[Tensor], retain_graph: bool) -> None:
        """Add the gradients of these losses, scaled by the scaler if there is one, to `accumulated`."""
        params = [p for p in self._grad_params if p.requires_grad]
        if not params:
            return
        if self.scaler is not None:
            losses = [self.scaler.scale(loss) for loss in losses]
        with _temporary_grads(self._grad_params, {}):
            torch.autograd.backward(losses, retain_graph=retain_graph, inputs=params)
            grads = {i: p.grad for i, p in enumerate(self._grad_params) if p.grad is not None}
        # Not in place: after an error in another scheduler `accumulated` is set back to what it was.
        for i, grad in grads.items():
            grads[i] = grad if i not in self.accumulated else self.accumulated[i] + grad
        self.accumulated = {**self.accumulated, **grads}

    def update(self, step_num: int, epoch_num: int = 1, logger: logging.Logger | None = None) -> None:
        """Update the parameters with the accumulated gradients, at the end of a real step."""
        real_step = self.real_step(step_num)
        self.set_lr(real_step, epoch_num)
        with _temporary_grads(self._grad_params, self.accumulated):
            self.unscale()
            finite = self.clip()
            if not finite:
                (logger.info if logger is not None else _warn)(INFINITE.format(real_step))
            self.apply(finite)
        self.clear()

    def set_lr(self, real_step: int, epoch_num: int | None = None) -> None:
        """Write the values of all schedules at a real step into every parameter group."""
        groups = self.optimizer.param_groups
        for group in groups:  # also those that were added since
            group.setdefault("initial_lr", plain(group["lr"]))
        # All values before the first write: one schedule may read another's hyperparameter.
        pairs = [(schedule, group) for schedule in self.schedules for group in groups]
        values = [schedule.value(self.optimizer, group, real_step) for schedule, group in pairs]
        epoch = {"epoch_num": epoch_num} if self._takes_epoch else {}
        rate = 0.0 if self._lr_schedules else self.update_lr(real_step, **epoch)
        for (schedule, group), new in zip(pairs, values, strict=True):
            schedule.write(group, new * self.conf.ft_factor if schedule.name == "lr" else new)
        if self._lr_schedules:
            return
        for group in groups:
            ratio = float(group["initial_lr"]) / self.base_lr if self._keeps_ratio else 1.0
            new = self.conf.ft_factor * rate * ratio
            if isinstance(group["lr"], Tensor):  # in place, for a captured CUDA graph
                group["lr"].fill_(new)
            else:
                group["lr"] = new

    @property
    def _keeps_ratio(self) -> bool:
        """Whether groups keep the ratios of their first learning rates."""
        choice = self.conf.keep_group_ratio
        return any((self.conf.updated_modules or {}).values()) if choice is None else choice

    def unscale(self) -> None:
        """Divide the gradients by the scaler's scale."""
        if self.scaler is None:
            return
        if self._has_grads:
            self.scaler.unscale_(self.optimizer)
        for p in self._grad_params[len(self.params) :]:  # not the optimizer's: for the norm only
            if p.grad is not None:
                p.grad = p.grad / self.scaler.get_scale()

    def clip(self) -> bool:
        """Clip the gradients' norm; returns whether that norm is finite."""
        params = [p for p in self._grad_params if p.grad is not None]
        limit = math.inf if self.conf.grad_clip is None else self.conf.grad_clip
        return bool(nn.utils.clip_grad_norm_(params, limit, self.conf.grad_norm_type).isfinite())

    def apply(self, finite: bool) -> None:
        """Step the optimizer, through the scaler if there is one, which must see infinities too."""
        if self.scaler is None:
            if finite:
                self.optimizer.step()
        elif self._has_grads:  # a scaler raises for an optimizer without gradients
            self.scaler.step(self.optimizer)
            self.scaler.update()

    @property
    def _has_grads(self) -> bool:
        """Whether one of the optimizer's parameters has a gradient."""
        return any(p.grad is not None for p in self.params)

    def clear(self) -> None:
        """Discard the accumulated gradients."""
        self.accumulated = {}

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """The states of optimizer and scaler, and gradients of an incomplete real step under `accum`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "accum": {i: grad.detach().clone() for i, grad in self.accumulated.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, which is not changed; on an error nothing is loaded.

        Raises:
            ValueError: there is a scaler on one side only, or another model.
        """
        if (state["scaler"] is None) is not (self.scaler is None):
            which = "state" if self.scaler is None else "scheduler"
            raise ValueError(f"only the {which} has a scaler: set use_amp alike")
        accum = {}
        for i, grad in state["accum"].items():
            p = self._grad_params[i] if i < len(self._grad_params) else None
            if p is None or p.shape != grad.shape:
                raise ValueError(f"the state has a gradient of shape {tuple(grad.shape)} for parameter {i}")
            accum[i] = grad.detach().to(p.device, p.dtype, copy=True)
        # All checks are done; the optimizer's own load comes first, for it may refuse the state.
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        if self.scaler is not None:
            self.scaler.load_state_dict(dict(state["scaler"]))
        self.accumulated = accum


@contextlib.contextmanager
def _temporary_grads(params: Sequence[Tensor], grads: Mapping[int, Tensor]) -> Iterator[None]:
    """Context in which the parameters' `.grad` are these, by position, and afterwards what they were."""
    before = [p.grad for p in params]
    for i, p in enumerate(params):
        p.grad = grads.get(i)
    try:
        yield
    finally:
        for p, grad in zip(params, before, strict=True):
            p.grad = grad


def _groups(model: nn.Module, modules: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The parameter groups of `updated_modules`, or one group of the whole model."""
    if modules is None:
        return [{"params": list(model.parameters())}]
    by_module = {name: _parameters(model, name) for name in modules}
    if not any(modules.values()):
        return [{"params": list(dict.fromkeys(p for params in by_module.values() for p in params))}]
    return [{"params": params, **modules[name]} for name, params in by_module.items()]


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of a dotted attribute of the model: a module, or a parameter itself."""
    member: Any = model
    for part in name.split("."):
        member = getattr(member, part, None)
    if isinstance(member, nn.Parameter):
        return [member]
    if not isinstance(member, nn.Module):
        problem = f"{type(model).__name__} has no module '{name}'"
        names = ", ".join(n for n, _ in model.named_children())
        raise ConfigError(problem, ("updated_modules",), None, f"it has: {names or 'none'}")
    return list(member.parameters())


def _warn(message: str) -> None:
    """A RuntimeWarning at the caller of `step`."""
    warnings.warn(message, RuntimeWarning, stacklevel=5)
