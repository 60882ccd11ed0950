"""The table of functions: a new row is a new function everywhere, and each row is true.

Functions are added here by a change of the table alone: `softplus`, written in operations that there are, and
`sinh`, an operation with an expansion. So are `relu` and `ceil`, which round nothing.
"""

import math

import numpy as np
import pytest
import sympy as sp
import torch

from optgen import library
from optgen.algebra.equality import equal
from optgen.algebra.latex import latex
from optgen.algebra.proof import op_of, sympy_of
from optgen.algebra.scalars import derive, simplify
from optgen.backends.cpu import printer as cpu
from optgen.backends.triton import printer as triton
from optgen.errors import RuleError, Source
from optgen.ir import expansions, functions
from optgen.ir.functions import ELEMENT_FUNCTIONS, STEP_FUNCTIONS, Function, Operation, operation, operations
from optgen.ir.node import ATOM, Node, Op, const, load, node, toposort
from optgen.ir.semantics import evaluate
from optgen.launch.host_scalars import Scalars
from optgen.optim.optimizer import optimizer
from optgen.passes.expand import expand
from optgen.verify import differential


def member(name: str) -> Op:
    """A new member of `Op`, as a line in the class makes one."""
    op = object.__new__(Op)
    op._name_, op._value_ = name.upper(), name
    return op


def softplus(x: Node) -> Node:
    """log(1 + exp(x)), which overflows nowhere."""
    raised = node(Op.EXP, node(Op.NEG, node(Op.ABS, x)))
    return node(Op.ADD, node(Op.MAXIMUM, x, const(0)), node(Op.LOG, node(Op.ADD, const(1), raised)))


def sinh(x: Node) -> Node:
    """Taylor's series near zero, (exp(x) - exp(-x))/2 elsewhere."""
    z = node(Op.MUL, x, x)
    series = expansions._polynomial(z, tuple(1 / math.factorial(k) for k in (13, 11, 9, 7, 5, 3, 1)))
    raised = node(Op.EXP, x), node(Op.EXP, node(Op.NEG, x))
    far = node(Op.MUL, const(0.5), node(Op.SUB, *raised))
    near = node(Op.LT, node(Op.ABS, x), const(0.5))
    return node(Op.WHERE, near, node(Op.MUL, x, series), far)


ROWS = {
    "softplus": Function(1, softplus, r"\operatorname{softplus}\left(%s\right)"),
    "relu": Function(1, lambda x: node(Op.MAXIMUM, x, const(0))),
    "sinh": Operation(
        1, member("sinh"), r"\sinh\left(%s\right)", numpy=np.sinh, sympy="sinh", exact=False,
        expansion=sinh, bounds=functions._increasing(np.sinh),
        error=lambda x, d: np.cosh(abs(x[0]) + d[0]) * d[0],
    ),
    "ceil": Operation(
        1, member("ceil"), r"\left\lceil %s\right\rceil", numpy=np.ceil, sympy="ceiling", exact=True,
        expansion=lambda x: node(Op.NEG, node(Op.FLOOR, node(Op.NEG, x))),
        bounds=functions._increasing(np.ceil), flat=True,
        error=lambda x, d: np.where(np.ceil(x[0] - d[0]) < np.ceil(x[0] + d[0]), math.inf, 0.0),
    ),
}  # fmt: skip
MEANING = {"softplus": lambda x: np.logaddexp(0, x), "sinh": np.sinh}


@pytest.fixture
def added(monkeypatch):
    """The rows are in the table."""
    for name, row in ROWS.items():
        monkeypatch.setitem(ELEMENT_FUNCTIONS, name, row)


def rule(text: str):
    return library.rule(Source(text))


def refused(text: str) -> RuleError:
    with pytest.raises(RuleError) as caught:
        rule(text)
    return caught.value


# One row is all


@pytest.mark.parametrize("name", ROWS)
def test_without_its_row_a_function_is_unknown(name):
    assert f"unknown function '{name}'" in str(refused(f"p = p - {name}(g)"))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("added")
def test_the_language_knows_it(name):
    assert rule(f"p = p - {name}(g)").assigns["p"].args[1] is ROWS[name](load("g"))
    assert f"did you mean '{name}'?" in str(refused(f"p = p - {name}x(g)"))
    assert f"{name}() takes 1 argument, not 2" in str(refused(f"p = p - {name}(g, p)"))
    assert f"write {name}(…)" in str(refused(f"p = p - p.{name}(g)"))
    assert f"'{name}' is a function" in str(refused(f"p = p - {name}"))
    assert f"'{name}' is a function and cannot be assigned" in str(refused(f"{name} = 1\np = p - {name}"))
    assert f"'{name}' cannot be declared" in str(refused(f"hyper({name}=1)\np = p - {name}*g"))


@pytest.mark.parametrize("name", MEANING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.usefixtures("added")
def test_its_values(name, dtype, backend):
    x = torch.cat([torch.linspace(-20, 20, 999, dtype=dtype), torch.tensor([0, 1e-20, -1e-3], dtype=dtype)])
    p = torch.nn.Parameter(torch.zeros_like(x))
    p.grad = x
    optimizer(rule(f"p = {name}(g)"))([p], backend=backend).step()
    right, unit = MEANING[name](x.double().numpy()), torch.finfo(dtype).eps
    np.testing.assert_allclose(p.detach().numpy(), right, 8 * unit, unit)


def agrees(backend: str, text: str, dtype: str = "fp32") -> float:
    outcome = differential.run(rule(text), differential.Case(backend, dtype, None, {}, False, 2))
    assert outcome.failure is None, outcome
    return outcome.allowed


ALLOWED = {"softplus": 1e-6, "sinh": 1e-6, "relu": 0.0, "ceil": 0.0}


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.usefixtures("added")
def test_back_ends_agree_within_what_its_rounding_allows(name):
    assert agrees("cpu", f"p = p - 0.1*{name}(3*g)") == ALLOWED[name]


@pytest.mark.usefixtures("added")
def test_triton_agrees(gpu):
    assert agrees("triton", "p = p - 0.1*softplus(sinh(g)) + relu(p)*ceil(g)") == 1e-6


@pytest.mark.usefixtures("added")
def test_the_host_computes_it_for_a_step():
    program = rule("hyper(lr=0.1)\np = p - lr*sinh(t/10)*g")
    (n,) = [n for n in toposort(program.assigns.values()) if n.op is ROWS["sinh"].op]
    assert Scalars([n]).rows([({"lr": 0.1}, 7.0, [])]) == [[np.sinh(0.7)]]
    assert agrees("cpu", "hyper(lr=0.1)\np = p - lr*sinh(t/10)*g") == 0


@pytest.mark.usefixtures("added")
def test_a_formula_has_its_name():
    text = latex(rule("x = softplus(2*g)\np = p - sinh(x)*ceil(g/2)"))
    assert r"x_{t} &= \operatorname{softplus}\left(2 g_{t}\right)" in text
    assert r"\sinh\left(x_{t}\right) \left\lceil \frac{g_{t}}{2}\right\rceil" in text
    assert r"\max\left(g_{t}, 0\right)" in latex(rule("p = p - relu(g)"))  # its row has no LaTeX


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("added")
def test_proofs_know_it(name):
    assert equal(rule(f"p = p - {name}(g)*2"), rule(f"p = p - {name}(g) - {name}(g)"))
    found = equal(rule(f"p = p - {name}(g)"), rule("p = p - g"))
    assert not found
    assert found.counterexample is not None


@pytest.mark.usefixtures("added")
def test_proofs_know_what_sympy_knows_of_it():
    assert equal(rule("p = p - sinh(-g)"), rule("p = p + sinh(g)"))
    assert equal(rule("p = p - abs(sinh(g*g))"), rule("p = p - sinh(g*g)"))  # by its bounds
    text = "hyper(lr=0.1)\np = p - lr*sinh(lr + t - t)*g"
    assert repr(simplify(rule(text).assigns["p"].args[1].args[0])) == "lr*sinh(lr)"


@pytest.mark.parametrize(
    ("text", "slope"),
    [
        ("sinh(2*g)", lambda x: 2 * np.cosh(2 * x)),  # cosh is no function of the language
        ("softplus(g)", lambda x: 1 / (1 + np.exp(-x))),
        ("g*ceil(g)", np.ceil),
    ],
)
@pytest.mark.usefixtures("added")
def test_it_has_a_derivative(text, slope):
    x = np.array([-2.3, -0.4, 0.6, 3.7])
    n = derive(rule(f"p = {text}"), "g")
    np.testing.assert_allclose(evaluate([n], lambda leaf: x)[n], slope(x), 1e-14)


# Each row is true

TABLE = {**ELEMENT_FUNCTIONS, **STEP_FUNCTIONS}
OPERATIONS = {name: row for name, row in {**TABLE, **ROWS}.items() if isinstance(row, Operation)}
PLACES = [load("p"), load("g")]


@pytest.fixture
def points():
    """Arguments over many sizes, within the domain of a function."""
    random = np.random.default_rng(5)
    both = random.choice([-1, 1], (2, 400)) * 10 ** random.uniform(-3, 2, (2, 400))
    return lambda row: [np.abs(x) if row.least >= 0 else x for x in both[: row.arguments]]


@pytest.mark.parametrize("name", [name for name, row in {**TABLE, **ROWS}.items() if row.latex])
def test_latex_has_a_place_for_each_argument(name):
    row = {**TABLE, **ROWS}[name]
    assert row.latex.count("%s") == row.latex.count("%") == row.arguments


def test_an_operation_is_found_by_its_value():
    assert {row.op for row in operations()} == {
        row.op for row in TABLE.values() if isinstance(row, Operation)
    }
    for row in operations():
        assert operation(row.op) is row
        assert op_of(getattr(sp, row.sympy)) is row.op
    others = [op for op in Op if op not in {row.op for row in operations()}]
    assert not any(map(operation, others))


@pytest.mark.parametrize("name", ELEMENT_FUNCTIONS)
def test_every_back_end_has_what_is_not_written_out(name):
    call = f"{name}({', '.join('pgp'[: ELEMENT_FUNCTIONS[name].arguments])})"
    written = expand(rule(f"p = where({call}, 1, 2)" if name == "isfinite" else f"p = 2*{call}"))
    for n in toposort(written.roots()):
        row = operation(n.op)
        assert row is None or row.expansion is None
        if n.args:
            for spell in (cpu.speller("fp32"), triton.speller("fp32", "exact")):
                assert spell(n, [("x", ATOM)] * len(n.args))


@pytest.mark.parametrize("name", [name for name, row in OPERATIONS.items() if row.expansion])
def test_expansions_are_the_function(name, points):
    row = OPERATIONS[name]
    written = row.expansion(*PLACES[: row.arguments])
    x = [np.clip(a, -300, 300) for a in points(row)]
    found = evaluate([written], lambda n: x[PLACES.index(n)])[written]
    np.testing.assert_allclose(found, row.numpy(*x), 4e-16 * 8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_sympy_has_the_function(name, points, monkeypatch):
    row = OPERATIONS[name]
    monkeypatch.setitem(ELEMENT_FUNCTIONS, name, row)
    x = [a[:40] for a in points(row)]
    found = [float(sympy_of(row.op)(*map(sp.Float, each)).evalf()) for each in zip(*x, strict=True)]
    np.testing.assert_allclose(found, row.numpy(*x), 1e-12)


@pytest.mark.parametrize("name", [name for name, row in OPERATIONS.items() if row.bounds])
def test_bounds_hold(name, points):
    row = OPERATIONS[name]
    x = points(row)
    for k in range(0, 400, 8):
        part = [a[k : k + 8] for a in x]
        low, high = row.bounds(*((a.min(), a.max()) for a in part))
        assert (row.numpy(*part) >= low).all()
        assert (row.numpy(*part) <= high).all()
    low, high = row.bounds(*[(-math.inf, math.inf)] * row.arguments)
    assert low < high


@pytest.mark.parametrize("name", OPERATIONS)
def test_errors_cover_what_wrong_arguments_do(name, points):
    row = OPERATIONS[name]
    random = np.random.default_rng(6)
    x = points(row)
    for size in (1e-9, 1e-4):
        d = [size * abs(a) * random.uniform(0, 1, a.shape) for a in x]
        rule = row.error or (lambda x, d: np.maximum.reduce(d))
        for side in (1, -1):
            moved = [a + side * b for a, b in zip(x, d, strict=True)]
            values = row.numpy(*x), row.numpy(*moved)
            wrong = [abs(a - b) for a, b in zip(x, moved, strict=True)]
            slack = 4 * np.spacing(np.abs(values).max(0))
            assert (abs(values[0] - values[1]) <= rule(x, wrong) + slack).all()
