"""The constructor signature and the docstring of an optimizer class.

In: a program that is a complete rule. Out: an `inspect.Signature` with types, and a text. Both follow from
the rule alone: `help`, editors and the type stub show them.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from inspect import Parameter
from textwrap import TextWrapper
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optgen.errors import Source
from optgen.ir.extent import Extent
from optgen.ir.node import Op, toposort
from optgen.ir.program import Input, Program, Requirement, State
from optgen.language import grammar
from optgen.language.scope import DECLARATIONS
from optgen.launch.launcher import BACKENDS, MODES
from optgen.optim.hyperparameters import GROUP, broken

WRAPPER = TextWrapper(100, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
Number = float | Tensor
KEYWORDS: dict[str, tuple[Any, Any]] = {  # of every constructor: type and default
    "maximize": (bool, False),
    "backend": (Literal[BACKENDS], "auto"),
    "math": (Literal[MODES], "exact"),
    "state_dtype": (torch.dtype | None, None),
}
# torch's own flags, which every constructor takes too.
FLAGS: dict[str, tuple[Any, Any]] = {
    "foreach": (bool | None, None),
    "fused": (bool | None, None),
    "capturable": (bool, False),
    "differentiable": (bool, False),
}
# Hyperparameters that mean the same in every rule that has them.
MEANINGS = {
    "lr": "learning rate",
    "betas": "coefficients of the running averages or sums",
    "eps": "small number against division by 0",
    "weight_decay": "strength of weight decay",
    "momentum": "coefficient of momentum",
    "nesterov": "use Nesterov's momentum",
    "amsgrad": "divide by the largest second moment so far",
    "seed": "seed of the random numbers",
}
COMMON = """\
    maximize (bool): ascend instead of descend; default False.
    backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
    math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
    state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
    foreach: torch's; it changes nothing.
    fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
    capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
    differentiable: torch's; True is refused."""


# The signature


def signature(program: Program) -> inspect.Signature:
    """The constructor's parameters with types and defaults, without torch's own flags."""
    positional, keyword = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
    parameters = [Parameter("params", positional, annotation=ParamsT)]
    for name, hyper in program.hypers.items():
        if name not in KEYWORDS:  # `maximize` is declared as a hyperparameter, but only taken by keyword
            annotated = annotation(program, name)
            parameters.append(Parameter(name, positional, default=hyper.default, annotation=annotated))
    for name, (annotated, default) in KEYWORDS.items():
        parameters.append(Parameter(name, keyword, default=default, annotation=annotated))
    return inspect.Signature(parameters)


def annotation(program: Program, name: str) -> Any:
    """The type of a hyperparameter: that of its default; for a string the values that the rule allows."""
    default = program.hypers[name].default
    if isinstance(default, tuple):
        return tuple[tuple(_kind(item) for item in default)]  # type: ignore[misc]
    if isinstance(default, str):
        allowed = words(program, name)
        return Literal[allowed] if allowed else str
    return _kind(default)


def _kind(default: Any) -> Any:
    """The type that stands for a default: any number is a float or a tensor."""
    if isinstance(default, bool | str):
        return type(default)
    return Number | None if default is None else Number


def words(program: Program, name: str) -> tuple[str, ...]:
    """The strings that the rule's `require`s allow for an option; empty if they allow any string."""
    options = {h.name: h.default for h in program.hypers.values()}
    compared = [f.value for f in program.facts.values() if f.subject == name and isinstance(f.value, str)]
    named = tuple(dict.fromkeys([str(options[name]), *compared]))
    other = "".join(named) + "?"  # a string that no condition can name
    if not any(broken(program, {**options, name: other})):
        return ()
    return tuple(word for word in named if not any(broken(program, {**options, name: word})))


# The docstring


def docstring(program: Program, name: str, example: str) -> str:
    """The docstring of a class: title, formula, arguments, state, references and an example.

    Args:
        program: the rule, or a chain.
        name: the class's name, which is a chain's title.
        example: how the class is written in an expression, such as `optgen.AdamW`.
    """
    parts = program.parts or (program,)
    described = [_described(part.doc) for part in parts]
    if program.parts:
        title = f"{name}: {', '.join(part.name for part in parts)}, in one step."
        remarks = ["\n".join(filter(None, (head, *more))) for head, _, more in described]
    else:
        title = described[0][0] or f"{name}: an optimizer."
        remarks = described[0][2]
    references = [reference for _, reference, _ in described if reference]
    sections = [title, *filter(None, remarks), _section("Formula:", _formula(program))]
    sections.append(_section("Args:", _arguments(program)))
    sections.append(_section("State:", _states(program)))
    if program.inputs:
        sections.append(_section("Inputs of step():", map(_input, program.inputs.values())))
    if references:
        sections.append(_section("Reference:", ("    " + r for text in references for r in text.split("\n"))))
    sections.append(_section("Example:", _example(program, example)))
    return "\n\n".join(sections)


def _section(title: str, lines: Iterator[str]) -> str:
    """A heading and its lines."""
    return "\n".join((title, *lines))


def _described(doc: str) -> tuple[str, str, list[str]]:
    """Split a rule's docstring into title, reference and remarks.

    The first paragraph is a sentence, then, after two spaces or on a new line, a reference,
    known by its year.
    """
    first, _, remarks = doc.partition("\n\n")
    match = re.match(r"(.*?\.)(?:  |\n)(.*\b(?:1[5-9]|20)\d\d\b.*)", first, re.DOTALL)
    title, reference = (match[1], match[2]) if match else (first, "")
    return title, reference, [remarks] if remarks else []


def _formula(program: Program) -> Iterator[str]:
    """The statements of the rule as written; of a chain's parts, each under its name."""
    for i, part in enumerate(program.parts or (program,)):
        if program.parts:
            yield from [""] * bool(i) + [f"    # {part.name}"]
        yield from ("    " + line if line else "" for line in statements(part.sources[0]))


def statements(source: Source) -> list[str]:
    """The lines of a rule's text without its docstring and declarations, comments included."""
    tree = grammar.read(source)
    dropped: set[int] = set()
    used: set[int] = set()
    for i, statement in enumerate(tree.body):
        place = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        (dropped if _declares(statement, i) else used).update(place)
    # A line may have both a declaration and a statement; then it stays.
    lines = [line.rstrip() for n, line in enumerate(source.lines, 1) if n not in dropped - used]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n").split("\n")


def _declares(statement: ast.stmt, index: int) -> bool:
    """Whether a statement is the rule's docstring or a declaration such as `hyper()`."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return index == 0
        case ast.Expr(value=ast.Call(func=ast.Name(id=kind))):
            return kind in DECLARATIONS
    return False


def _arguments(program: Program) -> Iterator[str]:
    """A line for each hyperparameter: type, meaning, default and bounds."""
    yield "    params: tensors, pairs of a name and a tensor, or parameter groups, as in torch."
    for name, hyper in program.hypers.items():
        if name in KEYWORDS:
            continue
        meaning = "" if isinstance(hyper.default, tuple) and name == "eps" else MEANINGS.get(name, "")
        bounds = ", ".join(r.text for r in program.requires if name in _subjects(program, r))
        remarks = filter(None, (meaning, f"default {hyper.default!r}", f"needs {bounds}" if bounds else ""))
        yield _line(f"{name} ({spelled(annotation(program, name))})", "; ".join(remarks))
    yield COMMON


def _subjects(program: Program, requirement: Requirement) -> set[str]:
    """The hyperparameters that a `require` condition reads."""
    leaves = [n for n in toposort([requirement.condition]) if n.op in (Op.HYPER, Op.FACT)]
    paths = (program.facts[n.value or ""].subject if n.op is Op.FACT else n.value or "" for n in leaves)
    return {path.partition("[")[0] for path in paths}


def spelled(kind: Any) -> str:
    """A type as source code, `Tensor` and `ParamsT` by their short names."""
    if kind is ParamsT:
        return "ParamsT"
    if words := get_args(kind) if str(kind).startswith("typing.Literal") else ():
        return f"Literal[{', '.join(_quoted(w) for w in words)}]"
    return inspect.formatannotation(kind).replace("torch.Tensor", "Tensor")


def _quoted(word: str) -> str:
    return f'"{word}"' if '"' not in word and word.isprintable() and "\\" not in word else repr(word)


def _states(program: Program) -> Iterator[str]:
    """A line for each state: its key, what has one value of it, and its dtype."""
    yield "    step: the number of this parameter's steps, float32, or float64 where that is torch's default."
    for state in program.states.values():
        key = state.key.removeprefix(GROUP)
        yield _line(key, _storage(state) if key == state.name else f"{state.name}, {_storage(state)}")
    if any(fact.subject not in ("maximize", *program.inputs) for fact in program.facts.values()):
        yield "    What the options or a tensor's shape leave unused is not kept."


def _storage(state: State) -> str:
    """What has one value of a state, in which dtype and where."""
    if state.extent is Extent.ELEMENT:
        return f"{state.extent.phrase}, in state_dtype or the parameter's dtype"
    if state.extent is Extent.ALL:
        return f"{state.extent.phrase}, float64, in every parameter group"
    if state.extent is Extent.STEP:
        return f"{Extent.TENSOR.phrase}, float64, on the CPU"
    return f"{state.extent.phrase}, float32, or float64 beside float64 parameters"


def _input(declared: Input) -> str:
    """The line of an input of `step()`."""
    what = (
        "one number; the closure's result where it is not given"
        if declared.extent is Extent.ALL
        else "a tensor of each parameter's shape, as a mapping from parameters or a sequence"
    )
    default = "" if declared.default is None else f"; default {declared.default:g}"
    return _line(declared.name, what + default)


def _line(name: str, text: str) -> str:
    return WRAPPER.fill(f"    {name}: {text}.")


def _example(program: Program, name: str) -> Iterator[str]:
    """A constructor call and a step with the inputs that the rule needs."""
    lr = program.hypers.get("lr")
    yield f"    >>> optimizer = {name}(model.parameters(){f', lr={lr.default!r}' if lr else ''})"
    keywords = [f"{n}={n}" for n, declared in program.inputs.items() if declared.extent is not Extent.ALL]
    closure = ["closure"] if len(keywords) < len(program.inputs) else []
    yield f"    >>> optimizer.step({', '.join(closure + keywords)})"
    if program.modes:
        yield "    >>> optimizer.eval()  # before model.eval(), and optimizer.train() before training goes on"
