"""What `overhead.py` times: steps whose cost is the host's, each beside what it replaces in torch.

Everybody has tensors of his own, 1,000 of 8 elements where nothing else is said, with gradients that stay the
same unless the feature is about gradients. What differs from a plain `step()`:

- GradScaler: `scaler.step` and `scaler.update`. Torch's fused step leaves the gradients unscaled, so both get
  scaled ones before every turn, untimed.
- accumulated: `step()` and `zero_grad()` after each of 4 gradients, which are new tensors every time, as
  after a backward pass. Torch's loop leaves the sum to backward, which makes one addition in C++ for every
  tensor and each gradient but the first: only that is timed, as one call for the list, which does the same,
  then the fused step and `zero_grad()`. Whole passes would take ten times as long as what is asked for.
- release: a whole backward pass, of the sum of 1,000 products, because the hooks run inside it. Torch's are
  those of its tutorial, an optimizer a parameter, which steps and frees the gradient. The pass itself is the
  same for both; a third contestant makes it without hooks, and the note says what the steps cost without it.
- the first step: optimizers are new in every turn, made untimed, and the step makes their state. The kernel
  is what an earlier optimizer of this process has left.
- DTensor parts: two processes, the parts of 8 elements (`parts.py`).

Nobody is fast because he is wrong: in the end the parameters are those of torch, or where it does not have
the rule, another step is compared with that of the reference, the back end `numpy`, from the same state.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

import optgen
import parts
from optgen import release, training
from shapes import Shape, copies, tensors
from turns import Times, alternate, seconds, spread

VECTOR, SQUARE = (8,), (4, 4)
SMALL: list[Shape] = [VECTOR] * 1000
SQUARES: list[Shape] = [SQUARE] * 1000
MAX_NORM, BATCHES, SCALE = 1.0, 4, 1024.0
FUSED, BETTER = "torch fused AdamW", "the better of torch foreach and loop"
Params = list[torch.nn.Parameter]
Make = Callable[[Any], torch.optim.Optimizer]
Steps = dict[str, Callable[[], Any]]


@dataclass
class Contest:
    """Who is timed, what is done before each turn, and what must hold after the last.

    With `own_clock` the contestants say themselves how many seconds counted.
    """

    steps: Steps
    check: Callable[[], None]
    before: Callable[[], Any] | None = None
    own_clock: bool = False

    def times(self, turns: int, limit: float) -> Times:
        """Seconds of each in each turn; to collect what torch and Numba hold takes longer than a step."""
        clock = (lambda step: step()) if self.own_clock else seconds
        alternate(self.steps, 1, self.before, clock)  # kernels and states are made here
        gc.collect()
        gc.freeze()
        try:
            times = alternate(self.steps, turns, self.before, clock, limit)
        finally:
            gc.unfreeze()
        self.check()
        return times


@dataclass(frozen=True)
class Case:
    """A question, and how the times that answer it are found: those of optgen, and of the `others`."""

    name: str
    beside: str
    target: float
    measure: Callable[[int, float], Times]
    note: Callable[[Times], str] | None = None
    silent: tuple[str, ...] = ()  # contestants that are in no ratio

    def others(self, times: Times) -> list[str]:
        """Those of whom the fastest counts."""
        return [name for name in times if name != "optgen" and name not in self.silent]


def contest(make: Callable[..., Contest], *given: Any, **more: Any) -> Callable[[int, float], Times]:
    """The times of a contest that is made when it is wanted, and gone afterwards."""

    def measure(turns: int, limit: float) -> Times:
        return make(*given, **more).times(turns, limit)

    return measure


# What must hold


def same(mine: Sequence[Any], theirs: Sequence[Any]) -> None:
    """Both have come to the same parameters, but for the roundings of some hundred steps."""
    a, b = (torch.cat([p.detach().flatten() for p in params]) for params in (mine, theirs))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def as_reference(opt: Any, params: Params, given: Mapping[str, Any]) -> None:
    """One more step is that of the reference from the same state."""
    theirs = copies(params)
    reference = type(opt)(theirs, backend="numpy")
    reference.load_state_dict(opt.state_dict())
    before = [p.detach().clone() for p in params]
    opt.step(**given)
    reference.step(**given)
    assert not all(map(torch.equal, before, params)), "the step changes nothing"
    same(params, theirs)


# Contests


def in_groups(params: Params, groups: int) -> list[dict[str, Any]]:
    """The parameters in groups of the same size."""
    return [{"params": params[k::groups]} for k in range(groups)]


def beside_torch(
    ours: Make,
    peers: Mapping[str, Make],
    shapes: Sequence[Shape] = SMALL,
    groups: int = 1,
    scheduled: bool = False,
    repeat: int = 1,
) -> Contest:
    """Optimizers that do the same; `repeat` steps are one sample.

    A scheduler steps before every turn, so that no step finds the hyperparameters of the one before.
    """
    params = {name: tensors(shapes) for name in ("optgen", *peers)}
    opts = {name: make(in_groups(params[name], groups)) for name, make in {"optgen": ours, **peers}.items()}

    def decay(k: int, step: int) -> float:
        return 1 / (1 + 0.01 * step * (k + 1))

    decays: list[Callable[[int], float]] = [partial(decay, k) for k in range(groups)]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(opt, decays) for opt in opts.values() if scheduled]

    def several(step: Callable[[], Any]) -> None:
        for _ in range(repeat):
            step()

    def check() -> None:
        for name in peers:
            same(params["optgen"], params[name])

    def schedule() -> None:
        for scheduler in schedulers:
            scheduler.step()

    steps: Steps = {name: partial(several, opt.step) for name, opt in opts.items()}
    return Contest(steps, check, schedule)


def beside_adamw(
    ours: Make, shapes: Sequence[Shape] = SMALL, given: Callable[[Params], Mapping[str, Any]] = lambda _: {}
) -> Contest:
    """A rule that torch does not have, beside what everybody knows the cost of; `given` makes its inputs."""
    mine = tensors(shapes)
    opt, inputs = ours(mine), given(mine)
    steps: Steps = {"optgen": partial(opt.step, **inputs)}
    steps[FUSED] = fused_adamw(tensors(shapes)).step
    return Contest(steps, partial(as_reference, opt, mine, inputs))


def clipped() -> Contest:
    """A chain with clipping by the global norm beside torch's function before its step."""
    mine, theirs = tensors(SMALL), tensors(SMALL)
    chain = optgen.chain(optgen.rule("clip_global_norm", max_norm=MAX_NORM), "adamw")
    opt, step = optgen.optimizer(chain)(mine, lr=1e-3), fused_adamw(theirs).step
    grads = [p.grad.clone() for p in theirs]

    def refill() -> None:  # torch clips them in place, and would have nothing left to clip
        torch._foreach_copy_([p.grad for p in theirs], grads)

    def both() -> None:
        clip_grad_norm_(theirs, MAX_NORM)
        step()

    return Contest({"optgen": opt.step, "torch": both}, partial(same, mine, theirs), refill)


def scaled() -> Contest:
    """The step and the update of a GradScaler."""
    params = {name: tensors(SMALL) for name in ("optgen", "torch")}
    grads = [SCALE * p.grad for p in params["optgen"]]
    steps: Steps = {}
    for name, made in (("optgen", optgen.AdamW), ("torch", torch.optim.AdamW)):
        opt = made(params[name], lr=1e-3, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        scaler.scale(torch.ones(()))  # which makes what `step` reads

        def both(opt: Any = opt, scaler: Any = scaler) -> None:
            scaler.step(opt)
            scaler.update()

        steps[name] = both

    def refill() -> None:
        for own in params.values():
            torch._foreach_copy_([p.grad for p in own], grads)

    return Contest(steps, lambda: same(params["optgen"], params["torch"]), refill)


def accumulated() -> Contest:
    """A step for every 4 gradients."""
    mine, theirs = tensors(SMALL), tensors(SMALL)
    batches = [[torch.randn_like(p) for p in mine] for _ in range(BATCHES)]
    parted = [[g / BATCHES for g in batch] for batch in batches]  # the loss would be divided
    ours = training.accumulated(optgen.AdamW, BATCHES)(mine, lr=1e-3)
    peer = fused_adamw(theirs)

    def end(opt: torch.optim.Optimizer) -> None:
        opt.step()
        opt.zero_grad()

    def many_steps() -> float:
        total = 0.0
        for batch in batches:
            for p, g in zip(mine, batch, strict=True):
                p.grad = g.clone()
            total += seconds(partial(end, ours))
        return total

    def one_step() -> float:
        for p, g in zip(theirs, parted[0], strict=True):
            p.grad = g.clone()
        grads = [p.grad for p in theirs]
        added = sum(seconds(partial(torch._foreach_add_, grads, batch)) for batch in parted[1:])
        del grads
        return added + seconds(partial(end, peer))

    steps = {"optgen": many_steps, "torch": one_step}
    return Contest(steps, partial(same, mine, theirs), own_clock=True)


def released() -> Contest:
    """Steps inside a backward pass."""
    params = {name: tensors(SMALL) for name in ("optgen", "torch", "backward")}
    factors = [p.grad for p in params["optgen"]]
    for own in params.values():
        for p in own:
            p.grad = None
    ours = optgen.AdamW(params["optgen"], lr=1e-3)
    handles = release.attach(ours)
    for p in params["torch"]:
        opt = fused_adamw([p])

        def hook(_: Any, opt: Any = opt) -> None:
            opt.step()
            opt.zero_grad()

        p.register_post_accumulate_grad_hook(hook)

    def loss(name: str) -> torch.Tensor:
        products = [(p * c).sum() for p, c in zip(params[name], factors, strict=True)]
        return torch.stack(products).sum()

    def both(backward: Callable[[], Any]) -> None:
        backward()
        ours.step()  # which stays in the loop

    def free() -> None:
        for p in params["backward"]:
            p.grad = None

    def check() -> None:
        assert all(p.grad is None for name in ("optgen", "torch") for p in params[name])
        same(params["optgen"], params["torch"])
        handles.remove()

    steps = {
        "optgen": lambda: seconds(partial(both, loss("optgen").backward)),
        "torch": lambda: seconds(loss("torch").backward),
        "backward": lambda: seconds(loss("backward").backward),
    }
    return Contest(steps, check, free, own_clock=True)


def steps_alone(times: Times) -> str:
    """What released steps take without the backward pass that they are in."""
    ours, theirs, plain = (times[name] for name in ("optgen", "torch", "backward"))
    found = spread([(a - c) / (b - c) for a, b, c in zip(ours, theirs, plain, strict=True)])
    return f"without the pass itself {found.median:.3g}"


def first() -> Contest:
    """The first step of new optimizers."""
    makes: dict[str, Make] = {"optgen": adamw, "torch": fused_adamw}
    params = {name: tensors(SMALL) for name in makes}
    made: dict[str, torch.optim.Optimizer] = {}

    def renew() -> None:
        made.clear()
        made.update({name: make(params[name]) for name, make in makes.items()})
        gc.collect()  # of the ones before

    def step(name: str) -> None:
        made[name].step()

    steps: Steps = {name: partial(step, name) for name in makes}
    return Contest(steps, lambda: same(params["optgen"], params["torch"]), renew)


# The rules


def adamw(params: Any) -> torch.optim.Optimizer:
    """Ours."""
    return optgen.AdamW(params, lr=1e-3)


def fused_adamw(params: Any) -> torch.optim.Optimizer:
    """Torch's."""
    return torch.optim.AdamW(params, lr=1e-3, fused=True)


def foreach_and_loop(name: str) -> dict[str, Make]:
    """The two implementations in torch of what it has no fused one of."""
    made = getattr(torch.optim, name)
    return {"torch foreach": partial(made, foreach=True), "torch loop": partial(made, foreach=False)}


def against_adamw(**more: Any) -> Callable[[int, float], Times]:
    """AdamW beside torch's fused one."""
    return contest(beside_torch, adamw, {"torch fused": fused_adamw}, **more)


def against_better(name: str, **more: Any) -> Callable[[int, float], Times]:
    """A rule that torch has, but not fused."""
    return contest(beside_torch, getattr(optgen, name), foreach_and_loop(name), **more)


def against_fused(ours: Callable[[], Make], **more: Any) -> Callable[[int, float], Times]:
    """A rule that torch has not."""
    return contest(lambda: beside_adamw(ours(), **more))


def hessians(params: Params) -> dict[str, Any]:
    """An estimate of the Hessian's diagonal for each parameter."""
    return {"hess": [torch.rand_like(p) for p in params]}


HALF: dict[str, Callable[[int, float], Times]] = {
    "LAMB": against_fused(lambda: optgen.LAMB),
    "CAME": against_fused(lambda: optgen.CAME),
    "Prodigy": against_fused(lambda: optgen.Prodigy),
    "Schedule-Free AdamW": against_fused(lambda: optgen.AdamWScheduleFree),
    "SGLD": against_fused(lambda: optgen.SGLD),
    "Lion chained with cautious": against_fused(lambda: optgen.optimizer(optgen.chain("lion", "cautious"))),
    "Sophia, handed a tensor for each": against_fused(lambda: partial(optgen.Sophia, k=1), given=hessians),
}
CASES = [
    Case("AdamW", FUSED, 0.3, against_adamw()),
    Case("4 groups and a scheduler, AdamW", FUSED, 1 / 3, against_adamw(groups=4, scheduled=True)),
    Case("1,000 groups, AdamW", FUSED, 1 / 3, against_adamw(groups=1000)),
    *(
        Case(name, BETTER, 1 / 8, against_better(name))
        for name in ("NAdam", "RAdam", "Adadelta", "Rprop", "ASGD")
    ),
    Case("Adafactor", BETTER, 1 / 4, against_better("Adafactor")),
    Case("4x4, Adafactor", BETTER, 1 / 3, against_better("Adafactor", shapes=SQUARES)),
    Case("4x4, CAME", FUSED, 0.6, against_fused(lambda: optgen.CAME, shapes=SQUARES)),
    Case("clipped AdamW", "torch's clipping and " + FUSED, 1 / 2, contest(clipped)),
    *(Case(name, FUSED, 1 / 2, measure) for name, measure in HALF.items()),
    Case("GradScaler, AdamW", FUSED, 0.55, contest(scaled)),
    Case("accumulated AdamW", "a loop that adds, and " + FUSED, 1 / 2, contest(accumulated)),
    Case("released AdamW", "torch's hooks, fused", 1 / 2, contest(released), steps_alone, ("backward",)),
    Case("10,000 tensors, AdamW", FUSED, 0.35, against_adamw(shapes=10 * SMALL)),
    Case("1 tensor, AdamW", FUSED, 0.8, against_adamw(shapes=SMALL[:1], repeat=20)),
    Case("10 tensors, AdamW", FUSED, 0.6, against_adamw(shapes=SMALL[:10], repeat=20)),
    Case("DTensor parts, AdamW", "torch foreach AdamW", 1 / 2, partial(parts.measure, "AdamW")),
    Case("DTensor parts, LAMB", "torch foreach AdamW", 1 / 2, partial(parts.measure, "LAMB")),
    Case("first step, AdamW", FUSED + "'s", 1.3, contest(first)),
]
