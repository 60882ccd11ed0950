"""Chains, defaults and ascent, by what the composed program computes."""

import re

import numpy as np
import pytest
import torch

import optgen
from buckets import direct, settings, truths
from optgen import library
from optgen.errors import RuleError
from optgen.ir.node import Op, load, toposort
from optgen.language.parse import parse
from optgen.passes import pipeline
from optgen.passes.chain import chain, complete
from optgen.passes.variants import as_transform, with_defaults, with_maximize
from strategies import Case

P = np.array([1.0, -2.0, 0.5])
G = np.array([0.25, 4.0, -1.0])
SGD = "hyper(lr=0.5)\np = p - lr*g"
EMA = "hyper(decay=0.75)\nstate(e=p)\nkeys(e='average')\ne = decay*e + (1 - decay)*p\ndef eval():\n    p = e"
LOOKAHEAD = "hyper(alpha=0.5)\nstate(slow=p)\nslow = slow + alpha*(p - slow)\np = slow"
DECAY = "hyper(lr=0.1)\ng = g + lr*p"
HALVE = "u = u*0.5"
CLIP = "hyper(limit=1)\ng = clip(g, -limit, limit)"


def rule(text, name="part"):
    return parse(text, name)


def result(program, stores=None, **options):
    """What a program assigns from P, G and states, in float64."""
    options = settings(program, **options)
    case = Case("", options)
    stores = {"p": P, "g": G} | {s: np.zeros(3) for s in program.states} | (stores or {})
    decided = pipeline.specialise(program, truths(program, options))
    return direct(decided, case, stores, {}, np.float64)


def same(found, expected):
    np.testing.assert_array_equal(found, expected)


# Order


def test_a_transform_before_changes_what_the_rule_sees():
    same(result(chain(rule(CLIP), rule(SGD)))["p"], P - 0.5 * np.clip(G, -1, 1))


def test_transforms_run_in_order():
    clipped = np.clip(G, -1, 1) + 0.1 * P
    same(result(chain(rule(CLIP), rule(DECAY, "decay"), rule(SGD)))["p"], P - 0.5 * clipped)
    decayed = np.clip(G + 0.1 * P, -1, 1)
    same(result(chain(rule(DECAY, "decay"), rule(CLIP), rule(SGD)))["p"], P - 0.5 * decayed)


def test_u_is_the_last_update_and_decay_stays_outside():
    decayed = rule("hyper(lr=0.5)\np = p*0.9\np = p - lr*g")
    same(result(chain(decayed, rule(HALVE)))["p"], P * 0.9 - 0.5 * G * 0.5)


def test_p_of_u_is_the_value_before_the_update():
    """In a transform of u, p is what the rule subtracts from; after it, p is the new value."""
    decayed = rule("hyper(lr=0.5)\np = p*0.9\np = p - lr*g")
    same(result(chain(decayed, rule("u = u*p")))["p"], P * 0.9 - 0.5 * G * (P * 0.9))
    same(result(chain(decayed, rule("p = p*p")))["p"], (P * 0.9 - 0.5 * G) ** 2)


def test_u_may_be_read_where_p_is_assigned():
    after = rule("p = p - 0.1*u")
    same(result(chain(rule(SGD), after))["p"], (P - 0.5 * G) - 0.1 * (0.5 * G))


def test_transforms_of_u_compose():
    once = chain(rule(SGD), rule(HALVE), rule("u = u + 1"))
    same(result(once)["p"], P - (0.5 * G * 0.5 + 1))


def test_a_transform_of_u_after_one_of_p():
    """The X of the rule is still the X of the rule; what came after follows from the new p."""
    program = chain(rule(SGD), rule(EMA, "ema"), rule(HALVE))
    found = result(program, {"e": P})
    moved = P - 0.5 * G * 0.5
    same(found["p"], moved)
    same(found["e"], 0.75 * P + (1 - 0.75) * moved)


def test_g_is_what_the_rule_was_given():
    program = chain(rule(CLIP), rule(SGD), rule("u = u*g"))
    clipped = np.clip(G, -1, 1)
    same(result(program)["p"], P - 0.5 * clipped * clipped)


def test_state_of_the_rule_that_follows_the_update_sees_the_new_one():
    follows = rule("hyper(lr=0.5)\nstate(m=0)\np = p - lr*g\nm = p")
    found = result(chain(follows, rule(HALVE)))
    same(found["m"], P - 0.5 * G * 0.5)


def test_both_sides_of_a_branch_may_end_in_an_update():
    program = chain(
        rule("hyper(lr=0.5, plain=True)\nif plain:\n    p = p - lr*g\nelse:\n    p = p*0.5\n    p = p - g"),
        rule(HALVE),
    )
    same(result(program)["p"], P - 0.5 * G * 0.5)
    same(result(program, plain=False)["p"], P * 0.5 - G * 0.5)


def test_lookahead():
    found = result(chain(rule(SGD), rule(LOOKAHEAD)), {"slow": P})
    same(found["p"], P + 0.5 * ((P - 0.5 * G) - P))
    same(found["slow"], found["p"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((SGD, CLIP), "'part' assigns g, so it must come before the rule"),
        ((HALVE, SGD), "'part' stands before the rule, but is a transform that comes after one"),
        ((EMA, SGD), "'part' stands before the rule"),
        (("p = p - u", SGD), "'part' stands before the rule"),
        ((CLIP, HALVE), "'part' stands before the rule"),
        (("p = g", HALVE), "'part' needs the update u, but 'part' has no last statement `p = p - X`"),
        (("p = g", "u = 0.5*g"), "'part' assigns u, but 'part' has no last statement `p = p - X`"),
        (("p = g", "p = p - u"), "needs the update u"),
        ((SGD, EMA, EMA), r"both define eval\(\)"),
        ((), "a chain needs at least one rule"),
    ],
)
def test_orders_that_make_no_sense(parts, message):
    with pytest.raises(RuleError, match=message):
        chain(*map(rule, parts))


def test_the_error_points_at_what_needs_u():
    with pytest.raises(RuleError) as caught:
        chain(rule("p = g"), rule("x = 1 + g\nu = u*x"))
    assert caught.value.span.line == 2
    assert caught.value.span.column == 5


@pytest.mark.parametrize(
    ("text", "message", "help"),
    [
        (CLIP, "does not assign p", r"chain\(part, adamw\)"),
        (HALVE, "does not assign p", r"chain\(adamw, part\)"),
        (EMA, "does not assign p", r"chain\(adamw, part\)"),
        ("p = p - u", "'u' has no value here", r"chain\(adamw, part\)"),
    ],
)
def test_a_transform_alone_is_not_complete(text, message, help):
    with pytest.raises(RuleError, match=message) as caught:
        complete(rule(text))
    assert caught.value.help is not None

    assert re.search(help, caught.value.help)


def test_what_needs_no_other_is_complete():
    program = rule(SGD)
    assert complete(program) is program
    assert complete(rule("u = g\np = p - u")).kind == "rule"


# First values and modes lie outside the step


def test_first_values_and_modes_see_what_is_stored():
    program = chain(rule(SGD), rule(EMA, "ema"))
    assert program.states["e"].init is load("p")
    assert program.modes["eval"]["p"] is load("e")
    program = chain(rule(SGD), rule("state(e=p)\ne = e + p\ndef train():\n    e = p*2\n    p = e", "swap"))
    assert program.states["e"].init is load("p")
    reads = {n.value for n in toposort(program.modes["train"].values()) if n.op is Op.LOAD}
    assert reads == {"p"}


# Names


def test_names_that_collide_get_the_name_of_their_part():
    program = chain(rule(SGD, "sgd"), rule("hyper(lr=2, other=3)\np = p + lr*other*0", "second"))
    assert list(program.hypers) == ["lr", "second_lr", "other"]
    assert program.hypers["second_lr"].default == 2


def test_three_parts_of_one_name_stay_apart():
    """Each clips at its own limit, and each keeps its own state."""
    program = chain(*(with_defaults(rule(CLIP, "clip"), limit=x) for x in (3.0, 2.0, 1.0)), rule(SGD))
    assert list(program.hypers.values())[:3] == [
        type(program.hypers["limit"])(name, default)
        for name, default in [("limit", 3.0), ("clip_limit", 2.0), ("clip_clip_limit", 1.0)]
    ]
    same(
        result(program, limit=9.0, clip_limit=0.5, clip_clip_limit=7.0)["p"], P - 0.5 * np.clip(G, -0.5, 0.5)
    )
    average = EMA[: EMA.index("def")]
    program = chain(rule(SGD), *(rule(average, "ema") for _ in range(3)))
    assert len(program.states) == len({s.key for s in program.states.values()}) == 3
    assert list(program.states) == ["e", "ema_e", "ema_ema_e"]
    assert [s.name for s in program.states.values()] == list(program.states)
    found = result(program, dict.fromkeys(program.states, P))
    for s in program.states:
        same(found[s], 0.75 * P + (1 - 0.75) * found["p"])


def test_a_new_name_is_not_taken_either():
    """The prefix could make a name that the part has already, or that another part has."""
    program = chain(rule(SGD), rule("hyper(lr=2, x_lr=3)\np = p + lr - x_lr", "x"))
    assert list(program.hypers) == ["lr", "x_x_lr", "x_lr"]
    same(result(program)["p"], P - 0.5 * G + 2 - 3)
    states = rule("state(m=0, x_m=0)\nm = m + 1\nx_m = x_m + 2\np = p + m + x_m", "x")
    program = chain(rule("state(m=0)\nm = m + 4\np = p - m"), states)
    assert len(program.states) == 3
    found = result(program)
    assert sorted(float(found[s][0]) for s in program.states) == [1, 2, 4]
    same(found["p"], P - 4 + 1 + 2)


def test_facts_follow_their_hyperparameters():
    first = rule(
        "hyper(on=True, betas=(0.5, 0))\nif on and betas[1] != 0:\n    g = g*2\nelse:\n    g = g*3", "a"
    )
    second = rule(
        "hyper(on=True, betas=(0.5, 0))\nif on and betas[1] != 0:\n    p = p - g\nelse:\n    p = p + g", "b"
    )
    program = chain(first, second)
    assert list(program.facts) == ["on", "betas[1] != 0", "b_on", "b_betas[1] != 0"]
    same(result(program)["p"], P + 3 * G)
    same(result(program, b_betas=(0.5, 1))["p"], P - 3 * G)
    same(result(program, betas=(0.5, 1), b_on=False)["p"], P + 2 * G)


def test_a_fact_about_ndim_is_shared():
    part = "if ndim > 1:\n    g = g*2\nelse:\n    g = g*3"
    program = chain(rule(part, "a"), rule(part, "b"), rule(SGD))
    assert list(program.facts) == ["ndim > 1"]
    same(result(program)["p"], P - 0.5 * G * 4)


def test_requirements_follow_their_hyperparameters():
    text = "hyper(lr=1)\nrequire(lr >= 0)\ng = g*lr"
    program = chain(rule(text, "a"), rule(text, "b"), rule(SGD, "c"))
    subjects = [n.value for r in program.requires for n in toposort([r.condition]) if n.op is Op.HYPER]
    assert subjects == ["lr", "b_lr"]


# Flattening


def test_chains_of_chains_are_flat():
    clip, sgd, halve = rule(CLIP, "clip"), rule(SGD, "sgd"), rule(HALVE, "halve")
    flat = chain(clip, sgd, halve)
    for nested in (
        chain(chain(clip, sgd), halve),
        chain(chain(clip, sgd, halve)),
        chain(chain(clip), sgd, halve),
    ):
        assert [part.name for part in nested.parts] == ["clip", "sgd", "halve"]
        assert nested.name == flat.name == "clip_sgd_halve"
        assert nested.assigns == flat.assigns
        assert nested.update == flat.update


def test_a_nested_chain_keeps_its_defaults():
    inner = with_defaults(chain(rule(CLIP), rule(SGD, "sgd")), limit=3.0, lr=7.0)
    outer = chain(inner, rule(HALVE))
    assert outer.hypers["limit"].default == 3.0
    assert outer.hypers["lr"].default == 7.0
    again = chain(rule(DECAY, "decay"), inner)
    assert {h: again.hypers[h].default for h in again.hypers} == {"lr": 0.1, "limit": 3.0, "sgd_lr": 7.0}


def test_one_part_is_no_chain():
    assert chain(rule(SGD)).parts == ()
    assert chain(rule(SGD)).assigns == rule(SGD).assigns


def test_shipped_rules_and_transforms_chain():
    before = [n for n in library.names() if library.rule(n).kind == "before" and not library.rule(n).skip]
    after = [n for n in library.names() if library.rule(n).kind == "after" and not library.rule(n).modes]
    for name in library.names():
        if library.rule(name).kind == "rule" and library.rule(name).update:
            program = library.chain(*before, name, *after)
            assert program.kind == "rule"
            held = truths(program, settings(program))
            lowered = pipeline.lower(program, held)
            assert "p" in lowered.assigns


# Defaults and ascent


@pytest.mark.parametrize(
    ("defaults", "kept"),
    [
        ({"a": 2}, 2.0),
        ({"b": (1, 2)}, (1.0, 2.0)),
        ({"c": False}, False),
        ({"d": "new"}, "new"),
        ({"e": None}, None),
        ({"e": 3}, 3.0),
    ],
)
def test_other_defaults(defaults, kept):
    (name,) = defaults
    value = with_defaults(rule(KINDS), **defaults).hypers[name].default
    assert value == kept
    assert type(value) is type(kept)
    assert rule(KINDS).hypers[name].default != kept or kept is None


KINDS = """
hyper(a=1, b=(0.5, 0.25), c=True, d="old", e=None)
if c and d == "old" and e is None:
    p = p - a*g*b[0]*b[1]
"""


@pytest.mark.parametrize(
    "defaults",
    [{"a": None}, {"a": "x"}, {"a": True}, {"a": (1.0,)}, {"b": 1.0}, {"b": (1.0,)}, {"b": (1.0, "x")}]
    + [{"c": 1}, {"c": None}, {"d": 1}, {"d": True}, {"d": None}, {"e": "x"}, {"e": True}],
    ids=str,
)
def test_defaults_of_another_kind_are_refused(defaults):
    with pytest.raises(RuleError, match="cannot be"):
        with_defaults(rule(KINDS), **defaults)


def test_unknown_defaults_are_refused():
    with pytest.raises(RuleError, match="'part' has no hyperparameter 'aa'") as caught:
        with_defaults(rule(KINDS), aa=1.0)
    assert caught.value.help == "it has: a, b, c, d, e"


def test_maximize_negates_the_gradient():
    program = with_maximize(chain(rule(DECAY, "decay"), rule(SGD)))
    same(result(program)["p"], P - 0.5 * (G + 0.1 * P))
    same(result(program, maximize=True)["p"], P - 0.5 * (-G + 0.1 * P))
    assert with_maximize(program) is program


def test_what_comes_after_counts_the_steps_that_accumulation_lets_through():
    scaled = rule("u = u*t", "scaled")
    kind = optgen.optimizer(chain(library.rule("accum_grad", n=2), library.rule("descent", lr=1.0), scaled))
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = kind([p], backend="numpy")
    found = []
    for _ in range(4):
        p.grad = torch.ones(1)
        optimizer.step()
        found.append(p.item())
    assert found == [0.0, -1.0, -1.0, -3.0]


def test_a_rule_as_a_transform_is_what_p_loses():
    """Not the difference of two rounded values, decay included."""
    rule_ = library.rule("adamw", amsgrad=False)
    made = as_transform(rule_)
    assert made.kind == "before"
    text = str(made.assigns["g"])
    assert "p*(lr*weight_decay)" in text
    assert as_transform(library.rule("clip_norm")) is library.rule("clip_norm")
    with pytest.raises(RuleError, match="must come last"):
        as_transform(library.rule("schedulefree_sgd"))
    odd = as_transform(rule("p = sqrt(p)", "odd"))
    assert str(odd.assigns["g"]) == "p - sqrt(p)"
