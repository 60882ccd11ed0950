"""The schema of a configuration, as pydantic models, and the one error for every mistake in it.

In: plain data. Out: validated models of it, or a `ConfigError` at the first wrong key. Validation is strict:
nothing is converted from text, and True is not 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from optgen.errors import RuleError, Span

try:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
except ImportError as error:
    raise ImportError("optgen.config needs pydantic: pip install 'optgen[config]'") from error

Path = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class ConfigError(RuleError):
    """A mistake in a configuration: the problem, the key's dotted path, its place in YAML text, help."""

    def __init__(self, problem: str, path: Path = (), span: Span | None = None, help: str | None = None):
        dotted = ".".join(map(str, path))
        super().__init__(f"{dotted}: {problem}" if dotted else problem, span, help)
        self.problem, self.path = problem, path
        self.args = (problem, path, span, help)  # pickle calls the class with these

    def under(self, path: Path, span: Span | None = None) -> ConfigError:
        """A copy of the error with a prefix to its path, and the position of the key if it is known."""
        return ConfigError(self.problem, (*path, *self.path), span or self.span, self.help)


def unknown(name: str | int, known: Iterable[str]) -> tuple[str, str]:
    """The problem and the help line for an unknown key."""
    names = list(known)
    close = get_close_matches(str(name), names, 1)
    all_keys = f"known keys: {', '.join(names) or 'none'}"
    return "unknown key", f"did you mean '{close[0]}'?" if close else all_keys


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Conf(BaseModel):
    """The general keys of `conf`; extra ones are those of the scheduler's `sche_init`."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    optim_type: str | list[str]
    optim_conf: dict[str, Any] = {}
    optim_losses: list[str] | None = None
    updated_modules: dict[str, dict[str, Any]] | None = None
    step_per_update: Count = 1
    accum_grad: Count = 1
    ft_factor: Positive = 1.0
    grad_clip: Positive | None = 1.0
    grad_norm_type: Annotated[float, Field(gt=0)] = 2.0
    clip_scope: Literal["own", "model"] = "own"
    keep_group_ratio: bool | None = None
    use_amp: bool = False
    enabled: bool = True

    @field_validator("optim_losses", mode="before")
    @classmethod
    def _losses(cls, value: Any) -> Any:
        """One name stands for a list of one."""
        return [value] if isinstance(value, str) else value

    @field_validator("optim_conf", mode="before")
    @classmethod
    def _options(cls, value: Any) -> Any:
        """An empty YAML section is None."""
        return {} if value is None else value

    @field_validator("updated_modules", mode="before")
    @classmethod
    def _modules(cls, value: Any) -> Any:
        """A name or a list of names stands for a mapping to no options."""
        if isinstance(value, Mapping):
            return {name: {} if options is None else options for name, options in value.items()}
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            if value is None:
                return None
            raise ValueError("write a module's name, a list of names, or a mapping from names to options")
        return {name: {} for name in names}


class Entry(BaseModel):
    """One scheduler of `optim_sches`: its type and its keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: str = "constant"
    conf: dict[str, Any]


def validated(model: type[Model], data: Mapping[str, Any], known: Iterable[str] = ()) -> Model:
    """Validate data with a model.

    Raises:
        ConfigError: at the first wrong key; `known` are further names for the help line.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        # Unknown keys first: a misspelt key is also reported as missing.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = first["loc"]  # below the key pydantic also names the branch of a union
    path: Path = (*location[:1], *(part for part in location[1:] if isinstance(part, int)))
    if first["type"] == "extra_forbidden":
        problem, help = unknown(path[-1], [*known, *model.model_fields])
        raise ConfigError(problem, path, None, help)
    if first["type"] == "missing":
        raise ConfigError("this key is missing", path)
    problem = first["msg"].removeprefix("Value error, ")
    problem = problem[:1].lower() + problem[1:]
    raise ConfigError(f"{problem}, not {first['input']!r}", path)


def arguments(function: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of a function's keyword arguments, from its annotations.

    An argument without an annotation takes anything; `**kwargs` allow other keys.
    """
    try:
        hints = get_type_hints(function)
    except NameError:  # an annotation names what is imported for type checkers only
        hints = {}
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (_kind(hints.get(name, Any)), default)
    # pydantic reserves names that begin with `model_`, which a user's argument may.
    config = ConfigDict(extra=extra, strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model("Arguments", __config__=config, **fields)


def _kind(hint: Any) -> Any:
    """An annotation in which `float` also takes integers, which stay integers: strict mode refuses them."""
    if hint is float:
        return int | float
    if isinstance(hint, UnionType) and float in get_args(hint):
        return hint | int
    return hint
