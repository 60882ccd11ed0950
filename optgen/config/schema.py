"""The keys of a configuration, their kinds and bounds, and the one error for every mistake in them.

In: plain data. Out: validated models of it, or a `ConfigError` at the first wrong key. Numbers are numbers:
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
    """A mistake in a configuration: what is wrong, the key's dotted path, its place in YAML text, help."""

    def __init__(self, problem: str, path: Path = (), span: Span | None = None, help: str | None = None):
        dotted = ".".join(map(str, path))
        super().__init__(f"{dotted}: {problem}" if dotted else problem, span, help)
        self.problem, self.path = problem, path
        self.args = (problem, path, span, help)  # what pickle calls the class with

    def under(self, path: Path, span: Span | None = None) -> ConfigError:
        """The error with the path of what the key is in, and the place of the key."""
        return ConfigError(self.problem, (*path, *self.path), span or self.span, self.help)


def unknown(name: str | int, known: Iterable[str]) -> tuple[str, str]:
    """The problem and the help line of a key that nothing has."""
    names = list(known)
    close = get_close_matches(str(name), names, 1)
    listed = f"known keys: {', '.join(names) or 'none'}"
    return "unknown key", f"did you mean '{close[0]}'?" if close else listed


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Conf(BaseModel):
    """The keys that every scheduler has; what is left is for its schedule."""

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
    def _losses(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("optim_conf", mode="before")
    @classmethod
    def _options(cls, given: Any) -> Any:
        return {} if given is None else given

    @field_validator("updated_modules", mode="before")
    @classmethod
    def _modules(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {name: {} if options is None else options for name, options in given.items()}
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            if given is None:
                return None
            raise ValueError("write a module's name, a list of names, or a mapping from names to options")
        return {name: {} for name in names}


class Entry(BaseModel):
    """One scheduler: its type and the rest."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: str = "constant"
    conf: dict[str, Any]


def validated(model: type[Model], data: Mapping[str, Any], known: Iterable[str] = ()) -> Model:
    """Data as a model.

    Raises:
        ConfigError: at the first wrong key; `known` are further names for the help line.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place = first["loc"]  # below the key it also names the branch of a union
    path: Path = (*place[:1], *(part for part in place[1:] if isinstance(part, int)))
    if first["type"] == "extra_forbidden":
        problem, help = unknown(path[-1], [*known, *model.model_fields])
        raise ConfigError(problem, path, None, help)
    if first["type"] == "missing":
        raise ConfigError("this key is missing", path)
    problem = first["msg"].removeprefix("Value error, ")
    problem = problem[:1].lower() + problem[1:]
    raise ConfigError(f"{problem}, not {first['input']!r}", path)


def arguments(function: Callable[..., Any]) -> type[BaseModel]:
    """A model of the keys that a function takes; without an annotation anything is taken."""
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
    kinds = ConfigDict(extra=extra, strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model("Arguments", __config__=kinds, **fields)


def _kind(hint: Any) -> Any:
    """An annotation, where `float` takes integers too and keeps them as they are."""
    if hint is float:
        return int | float
    if isinstance(hint, UnionType) and float in get_args(hint):
        return hint | int
    return hint
