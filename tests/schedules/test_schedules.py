"""Schedules: inside a rule, as torch schedulers, and the named ones against torch's numbers."""

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch

import optgen
from optgen import library, schedules
from optgen.backends import cache
from optgen.errors import RuleError

TORCH = torch.optim.lr_scheduler
STEPS = 200
BASE = 0.3


def parameter(*values, dtype=torch.float64):
    p = torch.nn.Parameter(torch.tensor(values or (1.0, -2.0, 0.5), dtype=dtype))
    p.grad = torch.ones_like(p)
    return p


def torch_rates(make):
    """The learning rates of a torch scheduler, one for each step."""
    optimizer = torch.optim.SGD([parameter()], lr=BASE)
    scheduler = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def fused_rates(schedule, steps=STEPS, **options):
    """What a fused descent moves a zero by: its learning rate, for each step."""
    p = parameter(0.0)
    program = schedules.scheduled("descent", lr=schedule)
    optimizer = optgen.optimizer(program)([p], lr=BASE, backend="numpy", **options)
    rates = []
    for _ in range(steps):
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        rates.append(-p.item())
    return np.array(rates)


PAIRS = {
    "cosine": (schedules.cosine(199), lambda o: TORCH.CosineAnnealingLR(o, T_max=199)),
    "cosine with a floor": (
        schedules.cosine(STEPS, floor=0.1),
        lambda o: TORCH.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.1 * BASE),
    ),
    "one cycle": (schedules.one_cycle(STEPS), lambda o: TORCH.OneCycleLR(o, BASE, total_steps=STEPS)),
    "one cycle, linear, three phases": (
        schedules.one_cycle(STEPS, 0.2, "linear", 10, 100, three_phase=True),
        lambda o: TORCH.OneCycleLR(
            o, BASE, STEPS, pct_start=0.2, anneal_strategy="linear", div_factor=10, final_div_factor=100,
            three_phase=True,
        ),
    ),
    "polynomial": (schedules.polynomial(150, 2.5), lambda o: TORCH.PolynomialLR(o, 150, power=2.5)),
    "step": (schedules.step(30, 0.5), lambda o: TORCH.StepLR(o, 30, gamma=0.5)),
    "exponential": (schedules.exponential(0.97), lambda o: TORCH.ExponentialLR(o, 0.97)),
    "linear": (schedules.linear(50, 0.25, 0.75), lambda o: TORCH.LinearLR(o, 0.25, 0.75, total_iters=50)),
    "warmup": (
        schedules.warmup(40),
        lambda o: TORCH.LambdaLR(o, lambda epoch: min((epoch + 1) / 40, 1)),
    ),
    "constant": (schedules.constant(), lambda o: TORCH.ConstantLR(o, 1.0, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_named_schedules_have_the_numbers_of_torch(name):
    """To 1e-12 of the base value: by themselves, inside a rule, and as a scheduler."""
    schedule, theirs = PAIRS[name]
    expected = torch_rates(theirs)
    alone = np.array([schedule(t, BASE) for t in range(1, STEPS + 1)])
    assert np.abs(alone - expected).max() <= 1e-12 * BASE
    assert np.abs(fused_rates(schedule) - expected).max() <= 1e-12 * BASE
    assert np.abs(torch_rates(lambda o: schedules.lr_scheduler(o, schedule)) - expected).max() <= 1e-12 * BASE


def test_warmups_rise_linearly_and_meet_what_follows():
    for schedule in (schedules.cosine(100, 10), schedules.wsd(100, 10, 20), schedules.inverse_sqrt(10)):
        rates = [schedule(t, 2.0) for t in range(1, 12)]
        np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-15)
        assert rates[10] == pytest.approx(
            2.0 if "inverse" not in repr(schedule) else 2.0 * math.sqrt(10 / 11)
        )


def test_cosine_after_warmup_is_halfway_at_its_middle():
    schedule = schedules.cosine(total=1000, warmup=100, floor=0.2)
    assert schedule(101) == 1.0
    assert schedule(551) == pytest.approx(0.6, abs=1e-15)
    assert schedule(1001) == schedule(5000) == pytest.approx(0.2, abs=1e-16)


def test_wsd_falls_at_the_end_only():
    """Against the two published shapes, written out."""
    for shape, fall in (("linear", lambda x: 1 - x), ("sqrt", lambda x: 1 - math.sqrt(x))):
        schedule = schedules.wsd(total=100, warmup=10, decay=20, floor=0.1, shape=shape)
        assert {schedule(t) for t in range(10, 82)} == {1.0}
        for t in range(82, 102):
            assert schedule(t) == pytest.approx(0.1 + 0.9 * fall((t - 81) / 20), abs=1e-15)


def test_one_cycle_has_torch_momentum_too():
    """OneCycleLR moves beta1 between 0.95 and 0.85 against the learning rate."""
    p = parameter()
    theirs = torch.optim.Adam([p], lr=BASE)
    scheduler = TORCH.OneCycleLR(theirs, BASE, total_steps=60)
    cycle = schedules.one_cycle(60, div_factor=0.85 / 0.95, final_div_factor=1)
    for t in range(1, 60):
        assert cycle(t, 0.85) == pytest.approx(theirs.param_groups[0]["betas"][0], abs=1e-14)
        theirs.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.cosine(10, 10), "cosine needs 0 <= warmup < total, but total = 10, warmup = 10"),
        (lambda: schedules.warmup(0), "warmup needs steps >= 1, but steps = 0"),
        (lambda: schedules.step(0), "step needs size >= 1 and gamma > 0, but size = 0, gamma = 0.1"),
        (lambda: schedules.wsd(10, 5, 6), "wsd needs warmup + decay <= total and decay > 0, but total = 10"),
        (lambda: schedules.wsd(10, 1, 2, shape="cubic"), "shape='cubic' is not one of linear, sqrt"),
        (lambda: schedules.one_cycle(10, anneal="exp"), "anneal='exp' is not one of cos, linear"),
        (lambda: schedules.one_cycle(3), "one_cycle needs total*pct_start > 1"),
        (lambda: schedules.noam(0), "noam needs warmup >= 1, but warmup = 0"),
        (lambda: schedules.noam(10, -1), "noam needs d_model > 0, but d_model = -1"),
        (lambda: schedules.polynomial(math.nan), "polynomial needs total > 0"),
    ],
)
def test_constants_out_of_range(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_schedule_is_a_small_value():
    schedule = schedules.cosine(100, warmup=10)
    assert repr(schedule) == "cosine(total=100, warmup=10, floor=0.0)"
    assert pickle.loads(pickle.dumps(schedule)) == schedule == schedules.cosine(100, warmup=10)
    with pytest.raises(AttributeError):
        schedule.text = "base"
    for name, make in schedules.NAMED.items():
        assert make is getattr(schedules, name)
        assert make.__doc__


# Inside a rule


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_fused_is_bit_identical_to_lr_by_hand(backend):
    """50 steps of AdamW in float32: the schedule inside, or its float64 value written into the group."""
    schedule = schedules.cosine(total=50, warmup=5, floor=0.01)
    fused = optgen.optimizer(schedules.scheduled("adamw", lr=schedule))
    rng = torch.Generator().manual_seed(1)
    start = torch.randn(257, generator=rng)
    mine, byhand = (torch.nn.Parameter(start.clone()) for _ in range(2))
    a = fused([mine], lr=BASE, backend=backend)
    b = optgen.AdamW([byhand], lr=BASE, backend=backend)
    for t in range(1, 51):
        mine.grad = torch.randn(257, generator=rng)
        byhand.grad = mine.grad.clone()
        b.param_groups[0]["lr"] = schedule(t, BASE)
        a.step()
        b.step()
        assert torch.equal(mine, byhand), t
    assert a.param_groups[0]["lr"] == BASE


def test_the_group_still_sets_the_base_value():
    p = parameter(0.0)
    optimizer = optgen.optimizer(schedules.scheduled("descent", lr="lr*minimum(t/4, 1)"))(
        [p], backend="numpy"
    )
    moved = []
    for base in (1.0, 1.0, 2.0, 2.0, 8.0):
        optimizer.param_groups[0]["lr"] = base
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        moved.append(-p.item())
    assert moved == [0.25, 0.5, 1.5, 2.0, 8.0]


def test_a_torch_scheduler_scales_a_fused_one():
    p = parameter(0.0)
    optimizer = optgen.optimizer(schedules.scheduled("descent", lr="lr/t"))([p], lr=1.0, backend="numpy")
    scheduler = TORCH.ExponentialLR(optimizer, 0.5)
    moved = []
    for _ in range(4):
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        scheduler.step()
        moved.append(-p.item())
    assert moved == [1.0, 0.5 / 2, 0.25 / 3, 0.125 / 4]


def test_groups_and_parameters_have_their_own_values():
    """Each group its base, each parameter its step count; one without a gradient does not move on."""
    a, b = parameter(0.0), parameter(0.0)
    program = schedules.scheduled("descent", lr="lr*t")
    groups = [{"params": [a], "lr": 1.0}, {"params": [b], "lr": 10.0}]
    optimizer = optgen.optimizer(program)(groups, backend="numpy")
    grad, b.grad = b.grad, None
    optimizer.step()
    b.grad = grad
    optimizer.step()
    assert (a.item(), b.item()) == (-3.0, -10.0)


def test_several_hyperparameters_read_what_the_group_has():
    """`weight_decay` reads the group's lr, not the scheduled one, in whatever order they are given."""
    texts = {"lr": "lr/t", "weight_decay": "lr*t"}
    for names in (["lr", "weight_decay"], ["weight_decay", "lr"]):
        p, q = parameter(), parameter()
        program = schedules.scheduled("adamw", **{name: texts[name] for name in names})
        fused = optgen.optimizer(program)([p], lr=0.1, backend="numpy")
        plain = optgen.AdamW([q], backend="numpy")
        for t in range(1, 6):
            plain.param_groups[0].update(lr=0.1 / t, weight_decay=0.1 * t)
            fused.step()
            plain.step()
        assert torch.equal(p, q)


def test_one_item_of_a_tuple():
    p, q = parameter(), parameter()
    program = schedules.scheduled("adam", lr=0.05, betas=("betas[0] - 0.1/t", None))
    fused = optgen.optimizer(program)([p], betas=(0.95, 0.99), backend="numpy")
    plain = optgen.Adam([q], lr=0.05, backend="numpy")
    for t in range(1, 6):
        plain.param_groups[0]["betas"] = (0.95 - 0.1 / t, 0.99)
        fused.step()
        plain.step()
    assert torch.equal(p, q)


def test_a_schedule_switches_what_the_rule_asks_at_compile_time():
    """`if weight_decay != 0` and `if momentum != 0` follow the schedule, whatever the group has."""
    p, q = parameter(), parameter()
    program = schedules.scheduled("sgd", weight_decay="0.1*floor(t/3)", momentum="where(t > 2, 0.5, 0)")
    assert not {"weight_decay != 0", "momentum != 0"} & set(program.facts)
    fused = optgen.optimizer(program)([p], lr=0.1, backend="numpy")
    plain = torch.optim.SGD([q], lr=0.1)
    for t in range(1, 7):
        plain.param_groups[0].update(weight_decay=0.1 * (t // 3), momentum=0.5 if t > 2 else 0)
        if t == 3:
            plain.state[q]["momentum_buffer"] = torch.zeros_like(q)
        fused.step()
        plain.step()
    torch.testing.assert_close(p, q, rtol=1e-14, atol=0)


def test_requirements_hold_for_the_value_of_the_group():
    cls = optgen.optimizer(schedules.scheduled("adamw", lr="lr - 1"))
    with pytest.raises(ValueError, match=re.escape("needs lr >= 0, but lr = -1")):
        cls([parameter()], lr=-1.0)
    p = parameter(0.0)
    cls([p], lr=0.5, backend="numpy").step()  # -0.5 in the step is the schedule's business
    assert p.item() == pytest.approx(0.5, abs=1e-7)


def test_the_constructor_keeps_the_order_of_the_rule():
    scheduled = optgen.optimizer(schedules.scheduled("adamw", weight_decay="weight_decay/t"))
    assert str(scheduled.__signature__) == str(optgen.AdamW.__signature__)


def test_train_and_eval_follow_the_schedule():
    """Schedule-Free's eval() uses betas[0]: the one of the last step."""
    p, q = parameter(), parameter()
    program = schedules.scheduled("schedulefree_sgd", momentum="momentum - 0.4/t")
    fused = optgen.optimizer(program)([p], backend="numpy")
    plain = optgen.optimizer("schedulefree_sgd")([q], backend="numpy")
    for t in range(1, 4):
        plain.param_groups[0]["momentum"] = 0.9 - 0.4 / t
        fused.step()
        plain.step()
    fused.eval()
    plain.eval()
    assert torch.equal(p, q)


def test_one_value_for_the_whole_optimizer_follows_too():
    """Prodigy keeps d once for all groups: lr there counts the optimizer's own steps."""
    p, q = parameter(), parameter()
    fused = optgen.optimizer(schedules.scheduled("prodigy", lr="lr/t"))([p], backend="numpy")
    plain = optgen.Prodigy([q], backend="numpy")
    for t in range(1, 5):
        plain.param_groups[0]["lr"] = 1.0 / t
        fused.step()
        plain.step()
    assert torch.equal(p, q)
    assert float(fused.param_groups[0]["d"]) == float(plain.param_groups[0]["d"])


# Chains


def test_in_a_chain_t_is_that_of_the_part():
    """Behind accum_grad a schedule counts the rule's own steps."""
    p = parameter(0.0)
    program = schedules.scheduled(optgen.chain(optgen.rule("accum_grad", n=2), "descent"), lr="lr*t")
    optimizer = optgen.optimizer(program)([p], lr=1.0, backend="numpy")
    seen = []
    for _ in range(6):
        optimizer.step()
        seen.append(p.item())
    assert seen == [0, -1, -1, -3, -3, -6]


def test_names_that_the_chain_had_to_change():
    decays = optgen.chain("weight_decay", "sgdw")
    program = schedules.scheduled(decays, sgdw_weight_decay="weight_decay*t")
    assert list(program.hypers) == list(decays.hypers)
    assert [part.name for part in program.parts] == ["weight_decay", "scheduled", "sgdw"]
    later = optgen.chain("clip_norm", program, "cautious")
    assert [part.name for part in later.parts] == [
        "clip_norm",
        "weight_decay",
        "scheduled",
        "sgdw",
        "cautious",
    ]
    assert "sgdw_weight_decay*t" in str(later)


def test_transforms_after_the_rule_have_schedules():
    p = parameter(0.0)
    averaged = optgen.chain("descent", "hyper(decay=0.5)\nstate(e=0)\ne = e + decay*p")
    optimizer = optgen.optimizer(schedules.scheduled(averaged, decay="decay*t"))([p], lr=1.0, backend="numpy")
    for _ in range(3):
        optimizer.step()
    assert optimizer.state[p]["e"].item() == -(0.5 * 1 + 1.0 * 2 + 1.5 * 3)


def test_a_transform_alone_has_schedules():
    """It waits for its rule, before or after it."""
    averaged = schedules.scheduled("ema", decay="decay/t")
    clipped = schedules.scheduled("clip_norm", max_norm="max_norm*t")
    program = optgen.chain(clipped, "descent", averaged)
    assert [part.name for part in program.parts] == ["scheduled", "clip_norm", "descent", "scheduled", "ema"]
    p = parameter(0.0)
    optimizer = optgen.optimizer(program)([p], lr=1.0, max_norm=0.25, decay=0.5, backend="numpy")
    optimizer.step()
    optimizer.step()
    assert p.item() == pytest.approx(-0.75, rel=1e-5)
    assert optimizer.state[p]["average"].item() == pytest.approx(-0.25 * 0.25 - 0.75 * 0.75, rel=1e-5)


def test_a_second_schedule_reads_the_first():
    twice = schedules.scheduled(schedules.scheduled("descent", lr="lr + 1"), lr="lr*t")
    p = parameter(0.0)
    optgen.optimizer(twice)([p], lr=2.0, backend="numpy").step()
    assert p.item() == -3.0
    assert repr(twice.schedules["lr"]) == "(lr + 1)*t"


def test_a_schedule_is_a_rule_file_like_any_other():
    """A transform may assign a hyperparameter of the rules after it, with hyperparameters of its own."""
    warm = "hyper(lr=1, warmup=4)\nlr = lr*minimum(t/warmup, 1)"
    p = parameter(0.0)
    optimizer = optgen.optimizer(optgen.chain(warm, "descent"))([p], lr=1.0, backend="numpy")
    assert optimizer.param_groups[0]["warmup"] == 4
    optimizer.step()
    optimizer.param_groups[0]["warmup"] = 8
    optimizer.step()
    assert p.item() == -(1 / 4 + 2 / 8)


def test_a_branch_of_a_schedule():
    text = "hyper(lr=1, late=False)\nif late:\n    lr = lr*t\n"
    for late, moved in ((True, -3.0), (False, -2.0)):
        p = parameter(0.0)
        optimizer = optgen.optimizer(optgen.chain(text, "descent"))([p], lr=1.0, late=late, backend="numpy")
        optimizer.step()
        optimizer.step()
        assert p.item() == moved


# What lasts


def test_one_plan_and_no_recompilation(monkeypatch):
    p = parameter(dtype=torch.float32)
    optimizer = optgen.optimizer(schedules.scheduled("adamw", lr="lr*minimum(t/10, 1)"))([p])
    optimizer.step()

    def refuse(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(cache, "kernel", refuse)
    for lr in (1e-3, 2e-3, 0.5):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.param_groups[0]["weight_decay"] = lr
        optimizer.step()
    bucket = optimizer._launcher._recordings[None].buckets
    assert [len(b.plan.sweeps) for b in bucket] == [1]


def test_a_pickle_and_a_state_dict_hold_the_schedule():
    p = parameter()
    cls = optgen.optimizer(schedules.scheduled("adamw", lr=schedules.cosine(20, 5), weight_decay="0.1/t"))
    optimizer = cls([p], lr=0.1, backend="numpy")
    for _ in range(3):
        optimizer.step()
    assert "cos(pi" in optimizer.state_dict()["param_groups"][0]["rule"][0]
    loaded = pickle.loads(pickle.dumps(optimizer))
    assert type(loaded) is cls
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    q = parameter()
    with torch.no_grad():
        q.copy_(p)
    resumed = cls([q], backend="numpy")
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer))
    for _ in range(5):
        optimizer.step()
        resumed.step()
    assert torch.equal(p, q)


def test_another_schedule_is_another_rule():
    first = optgen.optimizer(schedules.scheduled("adamw", lr="lr/t"))([parameter()])
    other = optgen.optimizer(schedules.scheduled("adamw", lr="lr/t**2"))([parameter()])
    before = copy.deepcopy(other.param_groups)
    with pytest.raises(ValueError, match="made by another rule") as error:
        other.load_state_dict(first.state_dict())
    assert "-lr = lr/t\n" in str(error.value)
    assert repr(other.param_groups) == repr(before)


def test_chains_with_names_of_their_parts_unpickle():
    cls = optgen.optimizer(optgen.chain("weight_decay", "sgdw"))
    made = cls([parameter()], sgdw_weight_decay=0.5)
    loaded = pickle.loads(pickle.dumps(made))
    assert type(loaded) is cls
    assert loaded.param_groups[0]["sgdw_weight_decay"] == 0.5


def test_optgen_show(tmp_path, capsys):
    from optgen.cli.main import main

    path = tmp_path / "warm.rule"
    path.write_text("hyper(lr=1e-3, warmup=100)\nlr = lr*minimum(t/warmup, 1)\n")
    assert main(["show", str(path), "adamw"]) == 0
    shown = capsys.readouterr().out
    assert "lr = lr*minimum(t/warmup, 1)" in shown
    assert "warmup" in shown.split("hyperparameters")[1]
    assert main(["show", str(path), "adamw", "--plan", "--latex"]) == 0
    shown = capsys.readouterr().out
    assert "plan of warm_adamw: 1 phase, 28 bytes per element" in shown
    assert r"\min\left(" in shown


# Mistakes


TEXTS = {
    "lr*minimun(t/100, 1)": ("unknown function 'minimun'", ":1:4", "did you mean 'minimum'?"),
    "lr*weight_decy": ("unknown name 'weight_decy'", ":1:4", "did you mean 'weight_decay'?"),
    "lr*norm(g)": ("'lr' needs one value per step, and this is one value per tensor", ":1:1", None),
    "1 + g*lr": ("'lr' needs one value per step, and this is a value per element", ":1:1", None),
    "lr*numel": ("depends on the tensor's shape", ":1:1", None),
    "lr if ndim > 1 else 0": ("depends on the tensor's shape", ":1:1", None),
    "normal()": ("'lr' needs one value per step", ":1:1", None),
    "betas": ("a tuple cannot be used as a number", ":1:1", "unpack it"),
    "t > 100": ("a number is needed here, and this is a condition", ":1:1", "where(condition, 1, 0)"),
    "lr = 0.1": ("a schedule is one expression", ":1:1", "write 0.1"),
    "lr\nweight_decay": ("a schedule is one expression", ":2:1", None),
    "(lr": ("'(' is never closed", ":1:1", None),
    "  ": ("the schedule is empty", ":1:1", "such as lr"),
    "cos(g)": ("cos() works on values per step, and this is a value per element", ":1:1", None),
    "__import__('os')": ("unknown function '__import__'", ":1:1", None),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_mistake_shows_its_place(text):
    message, place, help = TEXTS[text]
    with pytest.raises(RuleError) as error:
        schedules.scheduled("adamw", lr=text)
    shown = str(error.value)
    assert message in shown
    assert f"--> <lr>{place}\n" in shown
    assert "^" in shown
    assert help is None or help in shown


def test_what_has_no_schedule():
    for given, message in [
        ({"amsgrad": "1"}, "'amsgrad' is True or False and has no schedule"),
        ({"betas": "0.9"}, "'betas' is a tuple of 2 values, not '0.9'"),
        ({"betas": ("0.9",)}, "'betas' is a tuple of 2 values, not ('0.9',)"),
        ({"learning_rate": "1"}, "'adamw' has no hyperparameter 'learning_rate'"),
        ({"lr": None}, "'lr' has no schedule None"),
        ({"lr": True}, "'lr' has no schedule True"),
        ({"lr": "maximize"}, "unknown name 'maximize'"),
    ]:
        with pytest.raises(RuleError, match=re.escape(message)):
            schedules.scheduled("adamw", **given)
    with pytest.raises(RuleError, match="'sgld' has no schedule for 'seed'"):
        schedules.scheduled("sgld", seed="t")
    with pytest.raises(RuleError, match="'eps\\[0\\]' is an option and has no schedule"):
        schedules.scheduled("adafactor", eps=("1/t", None))


def test_mistakes_in_a_transform_that_assigns_hyperparameters():
    for text, message in [
        ("hyper(lr=1)\nlr = g", "'lr' needs one value per step, and this is a value per element"),
        ("hyper(lr=1)\nlr = lr, t", "'lr' is one number, and this is a tuple"),
        ("hyper(lr=1)\nlr = t > 2", "'lr' needs a number"),
        ("hyper(lr=1)\nlr = lr*rows", "depends on the tensor's shape"),
        ("hyper(fast=False)\nfast = 1", "'fast' is True or False and has no schedule"),
        ("hyper(mode='a')\nmode = 1", "'mode' is a string and has no schedule"),
        ("hyper(betas=(1, 2))\nbetas = 1, 2, 3", "'betas' is a tuple of 2 values"),
        ("hyper(lr=1)\nlr = lr/t\np = p - lr*g", "'lr' is a hyperparameter and cannot be assigned"),
        ("hyper(lr=1)\nfor lr in range(2):\n    g = g*2", "cannot count a loop"),
    ]:
        with pytest.raises(RuleError, match=re.escape(message)) as error:
            library.rule(text)
        assert "-->" in str(error.value)
    with pytest.raises(RuleError, match="assigns 'rate', which no part after it has"):
        optgen.chain("hyper(rate=1)\nrate = rate/t", "adamw")
    with pytest.raises(RuleError, match=re.escape("'betas' is 0.5 in 'rule', but (0.9, 0.999) in 'adamw'")):
        optgen.chain("hyper(betas=0.5)\nbetas = betas/t", "adamw")
    with pytest.raises(RuleError, match="is a transform"):
        optgen.optimizer("hyper(lr=1)\nlr = lr/t")


# As torch schedulers


def test_spc_20_noam_with_d_model():
    """d_model**-0.5 * min(s**-0.5, s*warmup**-1.5), whatever lr the optimizer had."""
    expected = {1: 1.746928107e-07, 100: 1.746928107e-05, 4000: 6.987712430e-04, 16000: 3.493856215e-04,
                64000: 1.746928107e-04}  # fmt: skip
    schedule = schedules.noam(4000, d_model=512)
    for step, rate in expected.items():
        assert schedule(step, 0.5) == pytest.approx(rate, rel=1e-9)
    assert schedules.noam(4000, 256)(4000) == pytest.approx(9.882117688e-04, rel=1e-9)
    optimizer = torch.optim.SGD([parameter()], lr=7.0)
    scheduler = schedules.NoamLR(optimizer, 512, warmup_steps=4000)
    for _ in range(99):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(1.746928107e-05, rel=1e-9)]


def test_spc_21_noam_without_d_model():
    schedule = schedules.noam(16000)
    for step, rate in {1: 6.25e-08, 1600: 1e-4, 16000: 1e-3, 64000: 5e-4}.items():
        assert schedule(step, 1e-3) == pytest.approx(rate, rel=1e-12)
    optimizer = optgen.Adam([parameter()], lr=1e-3)
    assert schedules.NoamLR(optimizer, warmup_steps=16000).get_last_lr() == [
        pytest.approx(6.25e-08, rel=1e-12)
    ]


def test_a_scheduler_of_another_hyperparameter():
    optimizer = optgen.AdamW([parameter()], weight_decay=0.5, lr=0.1, backend="numpy")
    decay = schedules.lr_scheduler(optimizer, "weight_decay/t", name="weight_decay")
    beta = schedules.lr_scheduler(optimizer, schedules.warmup(3), name="betas[0]")
    seen = []
    for _ in range(3):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["weight_decay"], group["betas"]))
        optimizer.step()
        decay.step()
        beta.step()
    assert seen == [(0.1, 0.5, (0.3, 0.999)), (0.1, 0.25, (0.6, 0.999)), (0.1, 0.5 / 3, (0.9, 0.999))]


def test_a_scheduler_resumes():
    """Saved after 5 steps, with torch.save and with pickle, it goes on as if it had not stopped."""

    def made():
        optimizer = torch.optim.AdamW([parameter()], lr=BASE)
        return optimizer, schedules.lr_scheduler(optimizer, schedules.cosine(20, 4))

    optimizer, scheduler = made()
    rates = []
    for step in range(10):
        if step == 5:
            saved = optimizer.state_dict(), scheduler.state_dict()
            pickled = pickle.loads(pickle.dumps(scheduler))
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    optimizer, scheduler = made()
    for part, state in zip((optimizer, scheduler), torch.load(buffer), strict=True):
        part.load_state_dict(state)
    again = []
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        pickled.optimizer.step()
        pickled.step()
        again.append(scheduler.get_last_lr()[0])
        assert pickled.get_last_lr()[0] == again[-1]
    assert again == rates[5:]
    later = schedules.lr_scheduler(optimizer, schedules.cosine(20, 4), last_epoch=9)
    assert later.get_last_lr() == [schedules.cosine(20, 4)(11, BASE)]


def test_mistakes_of_a_scheduler_change_nothing():
    optimizer = torch.optim.SGD([parameter()], lr=BASE)
    before = copy.deepcopy({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
    with pytest.raises(RuleError, match="unknown name 'lrr'"):
        schedules.lr_scheduler(optimizer, "lrr*t")
    with pytest.raises(ValueError, match="parameter group 0 has no 'betas\\[0\\]'; it has: lr, momentum"):
        schedules.lr_scheduler(optimizer, "1/t", name="betas[0]")
    with pytest.raises(KeyError, match="initial_lr"):
        schedules.lr_scheduler(optimizer, "lr/t", last_epoch=3)
    assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == before
