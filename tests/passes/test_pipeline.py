"""Each pass by what it does; that none changes a value is in `test_random_programs`."""

import itertools

import numpy as np
import pytest
import torch

from buckets import direct, flat, planned, same, settings, truths
from optgen import library
from optgen.errors import RuleError
from optgen.ir.extent import Extent
from optgen.ir.facts import Fact, holds
from optgen.ir.node import REDUCTIONS, Op, load, toposort
from optgen.language.parse import parse
from optgen.passes import pipeline
from optgen.passes.expand import expand
from optgen.passes.fold import fold
from optgen.passes.hoist import hoist
from optgen.passes.pipeline import lower, trace
from optgen.passes.specialise import recur, specialise
from strategies import Case

RULES = [name for name in library.names() if library.rule(name).kind == "rule" and flat(name)]


def decided(text, mode=None, **options):
    """The program of a text, specialised on its defaults and these options."""
    program = parse(text, "part")
    return specialise(program, truths(program, settings(program, **options)), mode)


def ops(program):
    return {n.op for n in toposort(program.assigns.values())}


# Facts


@pytest.mark.parametrize(
    ("relation", "bound", "value", "truth"),
    [
        ("is", True, True, True),
        ("is", True, False, False),
        ("is", True, np.True_, True),
        ("is", True, np.False_, False),
        ("is", True, 1.0, False),
        ("is", None, None, True),
        ("is", None, 0.0, False),
        ("==", "sum", "sum", True),
        ("==", "sum", "mean", False),
        ("==", "sum", None, False),
        ("==", 0, 0.0, True),
        ("==", 0, None, False),
        ("!=", 0, None, True),
        ("!=", 0, np.float32(0.5), True),
        ("!=", 0, torch.tensor(0.0), False),
        (">", 0, torch.tensor(0.5), True),
        (">", 0, None, False),
        ("<", 3, 2, True),
        ("<=", 3, 3, True),
        (">=", 3, 2.9, False),
        (">=", 3, float("nan"), False),
        ("!=", 3, float("nan"), True),
    ],
)
def test_holds(relation, bound, value, truth):
    assert holds(Fact("x", relation, bound), value) is truth


# specialise


CHOICE = """
hyper(lr=0.1, heavy=False, kind="a", wd=0)
state(b=0, unused=0)
if heavy:
    b = 0.9*b + g
    d = b
else:
    d = g
if kind == "a" and wd != 0:
    d = d + wd*p
p = p - lr*d
unused = unused
"""


def test_specialise_leaves_no_choice():
    for heavy, kind, wd in itertools.product((False, True), "ab", (0, 0.1)):
        program = decided(CHOICE, heavy=heavy, kind=kind, wd=wd)
        assert not ops(program) & {Op.CHOOSE, Op.FACT, Op.UNDEF}
        assert list(program.states) == (["b"] if heavy else [])
        decay = " + wd*p" if kind == "a" and wd else ""
        assert str(program).splitlines()[-1 - heavy].startswith("p <- ")
        assert ("wd" in str(program)) is bool(decay)


def test_specialise_drops_only_what_nothing_touches():
    """State that a mode reads, or that is read but never assigned, is kept."""
    program = decided("state(a=1, b=2, c=3)\np = p - a*g\nc = c\ndef eval():\n    p = b")
    assert list(program.states) == ["a", "b"]


UNDEFINED = """
hyper(on=False)
if on:
    x = g
p = p - x
"""


def test_a_name_without_a_value_is_an_error_at_its_branch():
    decided(UNDEFINED, on=True)
    with pytest.raises(RuleError, match=r"'x' has no value with these options \(on: False\)") as caught:
        decided(UNDEFINED)
    assert caught.value.help == "assign x on both branches"


def test_specialise_takes_the_program_of_a_mode():
    text = "state(z=p)\nz = z - g\np = z\ndef eval():\n    p = 2*z\n    z = p\ndef train():\n    p = z"
    assert set(decided(text).assigns) == {"p", "z"}
    assert repr(decided(text, "eval").assigns) == "{'p': 2*z, 'z': 2*z}"
    assert repr(decided(text, "train").assigns) == "{'p': z}"
    for mode in (None, "eval", "train"):
        assert decided(text, mode).modes == {}
        assert list(decided(text, mode).states) == ["z"]


def test_a_mode_that_a_rule_does_not_have_assigns_nothing():
    assert decided("p = p - g", "eval").assigns == {}


@pytest.mark.parametrize(
    ("reduction", "right"),
    [("sum(x)", 3 * 0.5), ("mean(x)", 0.5), ("amax(x)", 0.5), ("norm(x)", 0.75**0.5), ("rms(x)", 0.5)],
)
def test_a_reduction_of_what_an_option_made_one_value(reduction, right):
    """With the option off, x is one number; each element still counts."""
    text = f"hyper(a=0.5, on=False)\nx = g if on else a\np = p - {reduction}"
    program = decided(text)
    assert not ops(program) & REDUCTIONS
    stores = {"p": np.zeros(3), "g": np.ones(3)}
    case = Case(text, settings(parse(text)))
    found = direct(lower(parse(text), {"on": False}), case, stores, {}, np.float64)
    np.testing.assert_allclose(found["p"], -right, rtol=1e-15)
    assert planned(text).sweeps[0].reductions == ()


# recur


def test_recur_finds_what_the_host_computes():
    """Nothing in NAdam's mu_product or ASGD's eta and mu depends on a tensor."""
    for name, states in {"nadam": {"mu_product"}, "asgd": {"eta", "mu"}}.items():
        program = recur(library.rule(name))
        host = {k for k, s in program.states.items() if s.extent is Extent.STEP}
        assert host == states
        for n in toposort(program.assigns.values()):
            if n.op is Op.LOAD and n.value in states:
                assert n.extent is Extent.STEP


@pytest.mark.parametrize(
    ("body", "host"),
    [
        ("a = 0.5*a\nb = b + a", {"a", "b"}),
        ("a = norm(g)\nb = b + 1", {"b"}),
        ("a = norm(g)\nb = b + a", set()),
        ("a = b\nb = norm(g)", set()),
        ("a = b\nb = a + t", {"a", "b"}),
        ("a = b\nb = amax(abs(p))*a", set()),
        ("x = numel*a\na = x\nb = b if t > 1 else numel", {"a", "b"}),
    ],
)
def test_recur_follows_dependences(body, host):
    program = recur(parse(f"state(a=1, b=1, per=tensor)\n{body}\np = p - a*b*g"))
    assert {k for k, s in program.states.items() if s.extent is Extent.STEP} == host


def test_where_a_state_lives_does_not_depend_on_options():
    """Turned round in mid-training, an option must find the state where it was created."""
    text = (
        "hyper(on=False)\nstate(a=1, per=tensor)\nif on:\n    a = norm(g)\nelse:\n    a = 0.5*a\np = p - a*g"
    )
    for on in (False, True):
        program = lower(parse(text), {"on": on})
        assert program.states["a"].extent is Extent.TENSOR


def test_where_a_state_lives_does_not_depend_on_the_mode():
    text = "state(a=1, per=tensor)\na = 0.5*a\np = p - a*g\ndef eval():\n    a = norm(p)\n    p = p*a"
    for mode in (None, "eval"):
        assert lower(parse(text), {}, mode).states["a"].extent is Extent.TENSOR
    text = "state(a=1, per=tensor)\na = 0.5*a\np = p - a*g\ndef eval():\n    a = 2*a\n    p = p*a"
    for mode in (None, "eval"):
        assert lower(parse(text), {}, mode).states["a"].extent is Extent.STEP


# fold


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1*g", "g"),
        ("g*1", "g"),
        ("g/1", "g"),
        ("g - 0", "g"),
        ("-(-g)", "g"),
        ("g if p > 0 else g", "g"),
        ("g*(2*3 - 5)", "g"),
        ("g*(1/4)", "g*0.25"),
        ("g*sqrt(2)**2", f"g*{2**0.5 * 2**0.5!r}"),
        ("g + tanh(0.5)", f"g + {float(np.tanh(0.5))!r}"),
        ("g*0", "g*0"),  # of Inf it is NaN
        ("g + 0", "g + 0"),  # of -0 it is 0
        ("g - g", "g - g"),
        ("g/g", "g/g"),
        ("0 - g", "0 - g"),
        ("(g + 1) - 1", "g + 1 - 1"),
        ("g**0", "1"),
    ],
)
def test_fold(text, right):
    program = fold(decided(f"p = {text}"))
    assert repr(program.assigns["p"]) == right


def test_fold_makes_no_element_a_step():
    """f32(lr)*f32(lr) is not f32(lr*lr): what an element had, an element keeps."""
    program = fold(decided("hyper(lr=0.1)\np = (lr if g > 0 else lr)*lr"))
    assert Op.WHERE in ops(program)
    program = fold(decided("hyper(lr=0.1)\np = p*(lr if t > 5 else lr)*lr"))
    assert Op.WHERE not in ops(program)


def test_fold_leaves_a_reduction_its_elements():
    program = fold(decided("p = p - mean(where(g > 0, 1, 1))"))
    assert Op.SUM in ops(program)


# expand


def test_expand_writes_out_what_elements_need():
    text = "hyper(a=0.5)\np = p - tanh(g)*atan2(p, g)*abs(g)**a*tanh(a)*a**a*atan2(a, t)"
    program = expand(decided(text))
    left = [n for n in toposort(program.assigns.values()) if n.op in (Op.TANH, Op.ATAN2, Op.POW)]
    assert {n.op for n in left} == {Op.TANH, Op.ATAN2, Op.POW}
    assert all(n.extent is Extent.STEP for n in left)


# hoist


def test_hoist_takes_the_largest_steps():
    program = hoist(fold(decided("hyper(lr=0.1, wd=0.2)\np = p*(1 - lr*wd) - lr/(1 - 0.9**t)*g")))
    assert [repr(n) for n in program.scalars] == ["1 - lr*wd", "lr/(1 - 0.9**t)"]
    assert repr(program.assigns["p"]) == "p*s0 - s1*g"


def test_a_step_inside_a_larger_one_stays_there():
    program = hoist(decided("hyper(lr=0.1)\nx = lr*t\np = p - x*g - sqrt(x)*p"))
    assert [repr(n) for n in program.scalars] == ["lr*t", "sqrt(lr*t)"]


@pytest.mark.parametrize("name", RULES)
def test_nothing_that_the_host_knows_is_left_to_elements(name):
    program = library.rule(name)
    lowered = lower(program, truths(program, settings(program)))
    for n in toposort(lowered.assigns.values()):
        if n.extent > Extent.STEP:
            assert all(a.extent is not Extent.STEP or a.op is Op.SCALAR for a in n.args)
    assert len(set(lowered.scalars)) == len(lowered.scalars)
    assert all(n.extent <= Extent.STEP for n in lowered.scalars)


def test_adamw_leaves_seven_scalars_and_fourteen_operations():
    counts = trace(library.rule("adamw"), {"amsgrad": False})
    assert [c.name for c in counts] == ["written", "specialise", "expand", "fold", "hoist"]
    assert (counts[-1].element, counts[-1].tensor) == (14, 0)
    assert len(lower(library.rule("adamw"), {"amsgrad": False}).scalars) == 7


def test_names_and_places_survive_every_pass():
    program = library.rule("adamw")
    lowered = lower(program, {"amsgrad": False})
    assert set(lowered.names.values()) >= {"m", "v", "v_hat", "p"}
    order = set(toposort(lowered.assigns.values()))
    assert set(lowered.names) <= order
    assert {n for n in order if n.args and n.extent is Extent.ELEMENT} <= set(lowered.spans)


# lower


def test_lower_is_the_passes_in_order():
    program = library.rule("nadam")
    held = truths(program, settings(program))
    step = specialise(recur(program), held)
    for change in pipeline.PASSES:
        step = change(step)
    assert step.assigns == lower(program, held).assigns
    assert [p.__name__ for p in pipeline.PASSES] == ["expand", "fold", "hoist"]


@pytest.mark.parametrize("name", RULES)
def test_lower_keeps_the_values_of_shipped_rules(name):
    """Under every single option turned round, in float32, against the program as it is written."""
    program = recur(library.rule(name))
    flags = [h for h, hyper in program.hypers.items() if isinstance(hyper.default, bool)]
    for changed in [{}, *({h: not program.hypers[h].default} for h in flags)]:
        options = settings(program, **changed)
        random = np.random.default_rng(0)
        element = [s for s, state in program.states.items() if state.extent is Extent.ELEMENT]
        stores = {s: random.random(9).astype(np.float32) for s in ("p", "g", *element)}
        numbers = {s: 0.5 for s in program.states if s not in element}
        held = truths(program, options)
        case = Case("", options, 3.0)
        before = direct(specialise(program, held), case, stores, numbers, np.float32)
        after = direct(lower(library.rule(name), held), case, stores, numbers, np.float32)
        assert before.keys() == after.keys()
        for s in before:
            same(np.float32(after[s]), np.float32(before[s]), s)


def test_loads_are_shared():
    assert load("p") is load("p")
