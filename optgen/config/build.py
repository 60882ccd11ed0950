"""Builds the schedulers of a configuration, and steps them together.

In: YAML text or a dict with `optim_sches`, and a model. Out: `OptimScheduler`s by name, in the order of the
configuration. A mistake is a `ConfigError` with the key's path and, in YAML text, its line.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from optgen.config.reading import Places, read
from optgen.config.scheduler import OptimScheduler
from optgen.config.schema import Conf, ConfigError, Entry, Path, unknown, validated
from optgen.config.types import scheduler_class

TAG = "optim_sches"
TimeFunc = Callable[[list[str]], contextlib.AbstractContextManager[Any]]


class OptimSchedulerDict(dict[str, OptimScheduler]):
    """Schedulers by name that step together, as a GAN's two optimizers do.

    Attributes:
        lr_history: the learning rate of each after every micro-step; clear it when it is read.
    """

    def __init__(self, schedulers: Mapping[str, OptimScheduler]):
        """Check that no two schedulers share a parameter or a scaler; ValueError if they do."""
        owners: dict[int, str] = {}  # by the `id` of a parameter or a scaler
        for name, scheduler in schedulers.items():
            other = owners.setdefault(id(scheduler.scaler), name) if scheduler.scaler is not None else name
            if other != name:  # the first update would change the scale of the other's gradients
                raise ValueError(f"'{other}' and '{name}' have one scaler: give each its own")
            for p in scheduler.params:
                if owners.setdefault(id(p), name) != name:
                    at = next((n for n, q in scheduler.model.named_parameters() if q is p), "a parameter")
                    raise ValueError(
                        f"'{owners[id(p)]}' and '{name}' both update {at}: give each its own modules"
                    )
        super().__init__(schedulers)
        self.lr_history: dict[str, list[float]] = {name: [] for name in schedulers}

    def step(
        self,
        losses: Mapping[str, Tensor],
        step_num: int,
        epoch_num: int = 1,
        logger: logging.Logger | None = None,
        time_func: TimeFunc | None = None,
    ) -> None:
        """One micro-step of all: every backward pass, then the updates, so that losses may share a graph.

        Args:
            losses: 0-d tensors by name; they stay as they are.
            step_num: the number of this micro-step in the whole run, from 1.
            epoch_num: the epoch, from 1.
            logger: gets a message for each update that is skipped because its gradient is not finite.
            time_func: returns a context manager that times a part of the work, called with
                `["loss_backward_time", name]` or `["optim_time", name]`.

        Raises:
            KeyError: a loss is missing.
            RuntimeError: a loss has no gradient. After either, no scheduler has changed.
        """
        acting = {name: scheduler for name, scheduler in self.items() if scheduler.acts(step_num)}
        for scheduler in acting.values():  # raises for a missing loss, before any backward pass
            scheduler.selected(losses)
        timed = time_func or (lambda names: contextlib.nullcontext())
        # `gradients` replaces this attribute and does not change it, so references are enough to restore it.
        before = {name: scheduler.accumulated for name, scheduler in acting.items()}
        ready = []
        try:
            for i, (name, scheduler) in enumerate(acting.items()):
                with timed(["loss_backward_time", name]):
                    # Only the last backward pass frees the graph, which others may share.
                    if scheduler.gradients(losses, step_num, retain_graph=i + 1 < len(acting)):
                        ready.append(name)
        except BaseException:
            for name, scheduler in acting.items():
                scheduler.accumulated = before[name]
            raise
        for name in ready:
            with timed(["optim_time", name]):
                self[name].update(step_num, epoch_num, logger)
        for name, scheduler in self.items():
            self.lr_history[name].append(scheduler.get_lr())

    def state_dict(self) -> dict[str, Any]:
        """The state of every scheduler by name."""
        return {name: scheduler.state_dict() for name, scheduler in self.items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Load the states that `state_dict` returned.

        Raises:
            ValueError: it has other names, or a state does not fit; nothing is loaded then.
        """
        if set(states) != set(self):
            raise ValueError(f"the state has {', '.join(states)}; here are {', '.join(self)}")
        # Each load is atomic; after an error those that have loaded are set back.
        before = self.state_dict()
        try:
            for name, scheduler in self.items():
                scheduler.load_state_dict(states[name])
        except Exception:
            for name, scheduler in self.items():
                scheduler.load_state_dict(before[name])
            raise


def build_optim_sches(cfg: str | Mapping[str, Any], model: nn.Module, **exp_cfg: Any) -> OptimSchedulerDict:
    """Build the schedulers of a configuration.

    Args:
        cfg: YAML text, or the same as a dict. Under `optim_sches` it has `{name: {type, conf}}`, or one
            `{type, conf}` alone, which is called `main`. Other sections are ignored.
        model: the module whose parameters are optimized.
        **exp_cfg: defaults for the general keys of every `conf`, such as `accum_grad` or `ft_factor`.

    Raises:
        ConfigError: with the dotted path of the key, its line in YAML text, and the names that exist.
        ValueError: two schedulers have a parameter in common.
    """
    data, places = read(cfg) if isinstance(cfg, str) else (cfg, None)
    for key in exp_cfg:
        if key not in Conf.model_fields:
            problem, help = unknown(key, Conf.model_fields)
            raise ConfigError(f"exp_cfg: {problem}", (key,), None, help)
    if not isinstance(data, Mapping) or TAG not in data:
        keys = ", ".join(map(str, data)) if isinstance(data, Mapping) else "no keys"
        raise ConfigError(f"there is no '{TAG}'; there is: {keys}", (), None, f"write {TAG}: {{name: …}}")
    entries, base = data[TAG], (TAG,)
    if not isinstance(entries, Mapping) or not entries:
        raise _at(ConfigError(f"a mapping from names is needed, not {entries!r}"), base, places)
    alone = set(entries) == {"type", "conf"}  # one scheduler without a name
    named = {"main": entries} if alone else entries
    schedulers = {}
    for name, entry in named.items():
        path: Path = base if alone else (TAG, name)
        try:
            schedulers[name] = _scheduler(entry, model, exp_cfg)
        except ConfigError as error:
            raise _at(error, path, places) from error.__cause__
    return OptimSchedulerDict(schedulers)


def _scheduler(entry: Any, model: nn.Module, exp_cfg: Mapping[str, Any]) -> OptimScheduler:
    """Build the scheduler of one entry, with `exp_cfg` for the keys that it leaves out."""
    if not isinstance(entry, Mapping):
        raise ConfigError(f"type and conf are needed, not {entry!r}")
    checked = validated(Entry, entry)
    cls = scheduler_class(checked.type)
    conf = {**exp_cfg, **checked.conf}
    try:
        for key in ("model", "scaler"):  # arguments of the constructor that are no keys of a configuration
            if key in conf:
                raise ConfigError(unknown(key, ())[0], (key,))
        if "optim_loss" in conf:  # the name in later versions of SpeeChain
            if "optim_losses" in conf:
                raise ConfigError("this is there twice, as optim_losses and optim_loss", ("optim_loss",))
            conf["optim_losses"] = conf.pop("optim_loss")
        if "optim_type" not in conf:
            raise ConfigError("the key 'optim_type' is missing", (), None, "write optim_type: AdamW")
        return cls(conf.pop("optim_type"), conf.pop("optim_conf", {}), model, **conf)
    except ConfigError as error:
        raise error.under(("conf",)) from error.__cause__


def _at(error: ConfigError, path: Path, places: Places | None) -> ConfigError:
    """The error with the path that its key is under, and the key's position in YAML text."""
    if places is None:
        return error.under(path)
    full_path = (*path, *error.path)
    span = places.inside(full_path, error.span) if error.span is not None else None
    return error.under(path, span or places.key(full_path))


def state_dicts(optim_sches: Mapping[str, OptimScheduler]) -> dict[str, Any]:
    """The state dicts of schedulers by name, for a checkpoint."""
    return {name: scheduler.state_dict() for name, scheduler in optim_sches.items()}


def freeze_modules(model: nn.Module, names: str | Iterable[str]) -> None:
    """Set `requires_grad` of the named modules' parameters to False.

    Args:
        model: the module that has them.
        names: paths of modules or parameters, `encoder`, `encoder.0` or `encoder.0.weight`; one or several;
            or `all`.

    Raises:
        ValueError: a name is the beginning of no parameter's path; nothing is frozen then.
    """
    chosen = []  # all names are looked up before the first parameter is frozen
    for name in [names] if isinstance(names, str) else list(names):
        members = [p for n, p in model.named_parameters() if name == "all" or f"{n}.".startswith(f"{name}.")]
        if not members:
            children = ", ".join(n for n, _ in model.named_children())
            raise ValueError(f"no parameter's path begins with '{name}'; the modules are: {children}")
        chosen += members
    for p in chosen:
        p.requires_grad_(False)
