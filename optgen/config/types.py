"""The registry of scheduler types: SpeeChain's two, one for each named schedule, and those of users.

In: the `type` of a configuration. Out: a subclass of `OptimScheduler`.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

from optgen import schedules
from optgen.config.scheduler import OptimScheduler
from optgen.config.schema import ConfigError
from optgen.schedules.named import NAMED, Schedule

Class = TypeVar("Class", bound=type[OptimScheduler])


class Scheduled(OptimScheduler):
    """A scheduler whose learning rate is a named schedule of the real step, with optim_conf's lr as base."""

    schedule: Schedule

    def update_lr(self, real_step: int, epoch_num: int | None = None) -> float:
        """The schedule's value at a real step."""
        return self.schedule(real_step, self.base_lr)

    def extra_repr_fn(self) -> str:
        """The schedule's constants."""
        return self.schedule.title.partition("(")[2].removesuffix(")")


class Noamlr(Scheduled):
    """The schedule of Vaswani et al., 2017; its peak is lr, or `(d_model*warmup_steps)**-0.5`."""

    def sche_init(self, d_model: float | None = None, warmup_steps: float = 4000) -> None:
        """Take the width of the model and the step that has the peak."""
        self.d_model, self.warmup_steps = d_model, warmup_steps
        self.schedule = schedules.noam(warmup_steps, d_model)

    def extra_repr_fn(self) -> str:
        """The width and the warmup, as SpeeChain shows them."""
        return f"d_model={self.d_model}, warmup_steps={self.warmup_steps}"


class ExponentDecayLr(OptimScheduler):
    """Exponential decay by epoch: `lr*decay_factor**(epoch - 1)`.

    SpeeChain's code multiplies its last value again in every step; this is the formula that it documents.
    """

    def sche_init(self, decay_factor: float = 0.999) -> None:
        """Take the factor of one epoch."""
        if not decay_factor > 0:
            raise ValueError(f"decay_factor is above 0, not {decay_factor!r}")
        self.decay_factor = decay_factor
        self._by_epoch = schedules.exponential(decay_factor)

    def update_lr(self, real_step: int, epoch_num: int | None = None) -> float:
        """The value of an epoch, counted from 1."""
        return self._by_epoch(epoch_num or 1, self.base_lr)

    def extra_repr_fn(self) -> str:
        """The factor."""
        return f"decay_factor={self.decay_factor}"


TYPES: dict[str, type[OptimScheduler]] = {
    "noam.NoamLr": Noamlr,
    "noam.Noamlr": Noamlr,
    "exp.ExponentDecayLr": ExponentDecayLr,
}


def register(name: str) -> Callable[[Class], Class]:
    """Class decorator: register a subclass of `OptimScheduler` under a name for `type`.

    Raises:
        ValueError: the name is another class's.
        TypeError: it is no such class.
    """

    def add(cls: Class) -> Class:
        if not (isinstance(cls, type) and issubclass(cls, OptimScheduler)):
            raise TypeError(f"{cls!r} is not a subclass of OptimScheduler")
        if TYPES.setdefault(name, cls) is not cls:  # the same class may be registered again
            raise ValueError(f"the type '{name}' is {TYPES[name].__qualname__} already")
        return cls

    return add


def scheduler_class(name: str) -> type[OptimScheduler]:
    """Look up the class of a `type`: a registered name, or the dotted path of a class, which is imported.

    Raises:
        ConfigError: there is none; it lists the names.
    """
    if name in TYPES:
        return TYPES[name]
    module, _, attribute = name.rpartition(".")
    cls = None
    if module:
        try:
            cls = getattr(import_module(module), attribute, None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, and something that it imports is not
    if isinstance(cls, type) and issubclass(cls, OptimScheduler):
        return cls
    if cls is not None:
        raise ConfigError(f"'{name}' is not a subclass of OptimScheduler", ("type",))
    close = get_close_matches(name, TYPES, 1, 0.8)
    known = f"known types: {', '.join(TYPES)}, or the dotted path of a class"
    help = f"did you mean '{close[0]}'? {known}" if close else known
    raise ConfigError(f"there is no type '{name}'", ("type",), None, help)


def _named(name: str, make: Callable[..., Schedule]) -> type[OptimScheduler]:
    """Make the scheduler class of a named schedule, whose `sche_init` takes the schedule's arguments."""

    def sche_init(self: Any, **sche_conf: Any) -> None:
        self.schedule = make(**sche_conf)

    title = "".join(word.title() for word in name.split("_"))
    return type(
        title,
        (Scheduled,),
        {
            "sche_init": sche_init,
            "takes": staticmethod(make),
            "own_lr": name != "constant",  # which leaves lr to optim_conf, so that it may be a text
            "__doc__": make.__doc__,
            "__module__": __name__,
        },
    )


for _name, _make in NAMED.items():
    register(_name)(_named(_name, _make))
