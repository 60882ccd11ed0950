"""Where packages and papers differ in the rules of oracles/tensorwise.py, with numbers; and averages."""

import pytest
import pytorch_optimizer
import schedulefree
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import optgen


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def step(optimizer, p, gradient):
    p.grad = torch.as_tensor(gradient, dtype=p.dtype).clone()
    optimizer.step()


def after(make, start, gradients, **options):
    """A parameter after the steps of an optimizer."""
    p = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = make([p], **options)
    for g in gradients:
        step(optimizer, p, g)
    return p.detach()


def close(found, expected, digits=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        rtol=digits,
        atol=digits,
    )


def noise(k, shape=(3, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)


# Packages and papers


def test_lars_adapts_vectors_and_the_package_does_not():
    """trust*norm(p)/norm(g) is 0.001*5/10."""
    start, gradient = [3.0, 4.0], [[6.0, 8.0]]
    close(after(optgen.LARS, start, gradient, lr=1.0), [3 - 0.003, 4 - 0.004])
    close(after(pytorch_optimizer.LARS, start, gradient, lr=1.0, foreach=False), [-3.0, -4.0])


def test_lars_keeps_the_rate_of_each_step_in_its_velocity():
    """With lr 1 and then 0 the velocity still moves p in the paper; outside it nothing does."""
    for make, still in ((optgen.LARS, False), (pytorch_optimizer.LARS, True)):
        p = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
        optimizer = make([p], lr=1.0)
        step(optimizer, p, [[6.0, 8.0]])
        before = p.detach().clone()
        optimizer.param_groups[0]["lr"] = 0.0
        step(optimizer, p, [[6.0, 8.0]])
        assert torch.equal(before, p) == still
        if not still:
            close(p.detach() - before, [[-0.9 * 0.003, -0.9 * 0.004]])


def test_sgd_sai_takes_the_deviation_of_vectors_too():
    """norm = 5, std = sqrt(1/2): the package's ratio is 5 for a vector, ours 5/sqrt(1/2)."""
    options = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "eps": 0.0}
    close(after(optgen.SGDSaI, [0.0, 0.0], [[3.0, 4.0]], **options), [-15 * 2**0.5, -20 * 2**0.5])
    theirs = after(pytorch_optimizer.SGDSaI, [0.0, 0.0], [[3.0, 4.0]], **options, foreach=False)
    close(theirs, [-15.0, -20.0])


def test_adanorm_debiases_before_eps():
    """m_hat = g, v_hat = g**2: the paper's step is lr*g/(abs(g) + eps); the package scales eps by 10."""
    options = {"lr": 1.0, "betas": (0.9, 0.99), "eps": 0.5}
    close(after(optgen.AdaNorm, [0.0], [[2.0]], **options), [-2 / 2.5])
    theirs = after(pytorch_optimizer.AdaNorm, [0.0], [[2.0]], **options, foreach=False)
    close(theirs, [-2 / 7.0])


def test_adamod_averages_rates_without_the_debiasing_of_the_first_moment():
    """Gradients of 1: rates are lr in the paper, and lr/(1 - beta1**t) in the package."""
    gradients = [[1.0]] * 3
    ours = after(optgen.AdaMod, [0.0], gradients, lr=1.0, betas=(0.5, 0.5), beta3=0.5, eps=0.0)
    close(ours, [-(1 / 2 + 3 / 4 + 7 / 8)])
    theirs = after(
        pytorch_optimizer.AdaMod, [0.0], gradients, lr=1.0, betas=(0.5, 0.5, 0.5), eps=0.0, foreach=False
    )
    rates, bound, moved = [1 / (1 - 0.5**t) for t in (1, 2, 3)], 0.0, 0.0
    for t, rate in enumerate(rates, 1):
        bound = 0.5 * bound + 0.5 * rate
        moved -= min(rate, bound) * (1 - 0.5**t)
    close(theirs, [moved])
    assert abs(theirs.item() - ours.item()) > 0.1


def test_padam_is_not_debiased_and_keeps_the_largest_second_moment():
    """Steps of lr*m/v_max**(1/4): m = 0.1, 0.09; v_max = 0.01, 0.01. The package's v falls to 0.0099."""
    options = {"lr": 1.0, "betas": (0.9, 0.99), "partial": 0.25, "eps": 0.0}
    ours = after(optgen.Padam, [0.0], [[1.0], [0.0]], **options)
    close(ours, [-(0.1 + 0.09) / 0.01**0.25])
    theirs = after(pytorch_optimizer.PAdam, [0.0], [[1.0], [0.0]], **options, foreach=False)
    first = 0.1 / (1 - 0.9) * (1 - 0.99) ** 0.5 / 0.01**0.25
    second = 0.09 / (1 - 0.9**2) * (1 - 0.99**2) ** 0.5 / 0.0099**0.25
    close(theirs, [-first - second])


def test_gravity_starts_at_rest_and_the_package_at_random():
    """beta_1 = 1.9/3, zeta = g/(1 + g**4) for one element."""
    close(after(optgen.Gravity, [0.0], [[2.0]], lr=1.0), [-(1 - 1.9 / 3) * 2 / 17])
    torch.manual_seed(0)
    theirs = {
        after(pytorch_optimizer.Gravity, [0.0], [[2.0]], lr=1.0, foreach=False).item() for _ in range(3)
    }
    assert len(theirs) == 3


def test_pid_without_momentum_is_sgd_in_the_package_only():
    options = {"lr": 1.0, "momentum": 0.0}
    close(after(optgen.PID, [0.0], [[1.0], [2.0]], **options), [-(1 + 5) - (2 + 10 + 10)])
    close(after(pytorch_optimizer.PID, [0.0], [[1.0], [2.0]], **options, foreach=False), [-3.0])


def test_ema_momentum_is_what_genesis_computes():
    """Optimisers.jl's Momentum(0.01), and not torch's dampening, whose first step is whole."""
    gradients = [[0.5], [-0.25], [1.0]]
    for n, expected in enumerate((0.995, 0.993, 0.9812), 1):
        close(after(optgen.EMAMomentum, [1.0], gradients[:n], lr=0.1, momentum=0.9), [expected])
    dampened = after(torch.optim.SGD, [1.0], gradients[:1], lr=0.1, momentum=0.9, dampening=0.9)
    close(dampened, [0.95])


def test_heavy_ball_keeps_the_step_it_took_when_lr_changes():
    for make, options, expected in (
        (optgen.HeavyBall, {"beta": 0.9}, -0.39),
        (torch.optim.SGD, {"momentum": 0.9}, -0.48),
    ):
        p = parameter(0.0)
        optimizer = make([p], lr=0.1, **options)
        step(optimizer, p, [1.0])
        optimizer.param_groups[0]["lr"] = 0.2
        step(optimizer, p, [1.0])
        close(p.detach(), [expected])


def test_rmsprop_tf_starts_at_one_and_has_eps_inside():
    close(after(optgen.RMSpropTF, [0.0], [[2.0]], lr=1.0, eps=0.7), [-2 / (0.9 + 0.4 + 0.7) ** 0.5])
    theirs = after(torch.optim.RMSprop, [0.0], [[2.0]], lr=1.0, alpha=0.9, eps=0.7)
    close(theirs, [-2 / (0.4**0.5 + 0.7)])


def test_adagc_with_the_global_clipping_of_the_warmup_done_before():
    """Two tensors: the package's global norm in the warmup is what clip_grad_norm_ does."""

    def run(make, clip):
        params = [nn.Parameter(noise(50)), nn.Parameter(noise(51, (5,)))]
        optimizer = make(params)
        for k in range(12):
            for i, p in enumerate(params):
                p.grad = 3 * noise(2 * k + i, p.shape)
            if clip and k + 1 < 5:
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
        return params

    ours = run(
        lambda params: optgen.optimizer(optgen.chain("adagc", "adamw"))(
            params, warmup_steps=5, weight_decay=0.1
        ),
        True,
    )
    theirs = run(lambda params: pytorch_optimizer.AdaGC(params, warmup_steps=5, foreach=False), False)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # clip_grad_norm_ adds 1e-6 to the norm


def test_orthograd_of_one_element_and_of_a_parallel_gradient():
    """The package stops a scalar for good; the authors' code moves it by the sign of a rounding error."""
    ours = optgen.optimizer(optgen.chain("orthograd", "sgd"))
    close(after(ours, [3.0], [[0.7]], lr=1.0), [2.3])
    close(after(ours, [3.0, 1.0, 0.1], [[0.3, 0.1, 0.01]], lr=1.0), [3.0, 1.0, 0.1])

    def theirs(params, **options):
        return pytorch_optimizer.OrthoGrad(torch.optim.SGD(params, **options), foreach=False)

    close(after(theirs, [3.0], [[0.7]], lr=1.0), [3.0])


def test_lookahead_leaves_the_state_of_the_rule():
    ours = optgen.optimizer(optgen.chain("sgd", "lookahead"))
    p = parameter(1.0)
    optimizer = ours([p], lr=1.0, k=2, alpha=0.25)
    for expected in (0.0, 0.5, -0.5, 0.0):
        step(optimizer, p, [1.0])
        close(p.detach(), [expected])


# Averages: what eval() shows, and that train() goes on from where it was


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"])
def test_schedule_free_shows_its_average(name):
    """To eval() and back, in the middle of training, as the package does it."""
    options = {"lr": 0.05, "weight_decay": 0.1} | ({} if name == "RAdamScheduleFree" else {"warmup_steps": 7})
    mine, other = nn.Parameter(noise(99)), nn.Parameter(noise(99))
    ours = getattr(optgen, name)([mine], **options)
    theirs = getattr(schedulefree, name)([other], **options)
    for k in range(40):
        theirs.train()
        ours.train()
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
        step(ours, mine, noise(k))
        step(theirs, other, noise(k))
        y = mine.detach().clone()
        if k % 10 == 9:
            ours.eval()
            theirs.eval()
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
            assert (mine - y).abs().max() > 1e-4
            with pytest.raises(RuntimeError, match="evaluation mode"):
                ours.step()


def test_schedule_free_counts_per_tensor():
    """A parameter that comes late starts its own average; the package's weights are the group's."""
    moved = []
    for module in (optgen, schedulefree):
        early, late = parameter(1.0), parameter(1.0)
        optimizer = module.SGDScheduleFree([early, late], lr=0.5)
        optimizer.train()
        for _ in range(3):
            step(optimizer, early, [1.0])
        late.grad = torch.ones_like(late)
        optimizer.step()
        moved.append(late.item())
    close(moved, [1 - 0.5, 1 - 0.5 * (1 - 0.9 * 3 / 4)])


@pytest.mark.parametrize(
    ("name", "options", "average", "sampled"),
    [
        ("ema", {"decay": 0.9}, get_ema_multi_avg_fn(0.9), lambda t: True),
        ("swa", {}, None, lambda t: True),
        ("swa", {"swa_start": 4, "swa_freq": 3}, None, lambda t: t >= 4 and t % 3 == 1),
    ],
)
def test_averages_are_those_of_torch(name, options, average, sampled):
    mine, model = nn.Parameter(noise(99)), nn.Module()
    model.p = nn.Parameter(noise(99))
    averaged = AveragedModel(model, multi_avg_fn=average)  # None: the running mean
    ours = optgen.optimizer(optgen.chain("adamw", name))([mine], lr=0.05, **options)
    theirs = torch.optim.AdamW([model.p], lr=0.05)
    for t in range(1, 21):
        step(ours, mine, noise(t))
        step(theirs, model.p, noise(t))
        if sampled(t):
            averaged.update_parameters(model)
        before = mine.detach().clone()
        ours.eval()
        expected = averaged.module.p if averaged.n_averaged else model.p
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
        ours.train()
        assert torch.equal(mine, before)
