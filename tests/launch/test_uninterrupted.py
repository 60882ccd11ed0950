"""Counts and tensors move together or not at all, wherever a signal or an error stops a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import optgen
from interrupts import Case, Look, Stopped, bits, judge
from lines import Event, chosen
from optgen import library, store, tree
from optgen.ir.extent import Extent
from optgen.launch import replay
from optgen.launch.uninterrupted import Uninterrupted, undisturbed
from optgen.optim import optimizer, steps
from optgen.training import accumulated
from optgen.tree.states import leaves

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
THREE = (((3, 4), F32), ((5,), BF16), ((2, 3), F64))
TWO = (((3, 4), F32), ((2, 3), F64))
ROWS = (((3, 4), F32), ((5,), F32))


@cache
def _numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return _numbers(shape, seed).to(dtype, copy=True)


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """Steps are in one call where a case says so, however many there were before in this process."""
    monkeypatch.setattr(replay, "WARM", 1 << 62)


class Stepped:
    """An optimizer with two groups."""

    def __init__(self, kind: Any, backend: str, shapes: Any, loss: bool = False, **options: Any):
        self.params = [nn.Parameter(numbers(*shape, i)) for i, shape in enumerate(shapes)]
        groups = [{"params": self.params[:1]}, {"params": self.params[1:]}]
        self.optimizer, self.loss = kind(groups, backend=backend, **options), loss

    def ready(self, k: int) -> None:
        for i, p in enumerate(self.params):
            p.grad = numbers(tuple(p.shape), p.dtype, 10 + 10 * k + i)
        self.inputs = {
            name: [p.grad.abs() for p in self.params]
            for name, given in self.optimizer.program.inputs.items()
            if given.extent is not Extent.ALL
        }
        if self.optimizer._compile_options["fused"]:  # as a GradScaler leaves it
            self.optimizer.found_inf, self.optimizer.grad_scale = torch.zeros(()), torch.tensor(2.0)

    def step(self) -> None:
        if self.loss:
            self.optimizer.step(lambda: torch.tensor(0.5))
        else:
            self.optimizer.step(**self.inputs)

    def look(self) -> Look:
        found: dict[str, Any] = {}
        for i, p in enumerate(self.params):
            state = self.optimizer.state.get(p)
            found |= {f"p{i}": bits(p), f"p{i}.grad": bits(p.grad), f"p{i} in state": state is not None}
            found |= {f"p{i} {key}": bits(value) for key, value in (state or {}).items()}
            found[f"version of p{i}"] = p._version
        for i, group in enumerate(self.optimizer.param_groups):
            found |= {f"group{i} {key}": bits(value) for key, value in group.items() if key != "params"}
        return {"optimizer": found}


class Turned(Stepped):
    """`eval()` and `train()`, in turn, after three steps."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        for k in range(3):
            super().ready(k)
            super().step()

    def ready(self, k: int) -> None:
        self.training = k % 2 == 1

    def step(self) -> None:
        self.optimizer.train(self.training)


class Released(Stepped):
    """An optimizer that steps each parameter in the backward pass."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.release = optgen.release.attach(self.optimizer)

    def ready(self, k: int) -> None:
        for p in self.params:
            p.grad = None
        self.before = [self.steps(p) for p in self.params]

    def steps(self, p: Tensor) -> float:
        return float(self.optimizer.state.get(p, {}).get("step", 0.0))

    def step(self) -> None:
        loss = sum((p.double() * _numbers(tuple(p.shape), 7)).sum() for p in self.params)
        loss.backward()

    def look(self) -> Look:
        (whole,) = super().look().values()
        found: Look = {}
        for i, p in enumerate(self.params):
            mine = {k: v for k, v in whole.items() if f"p{i}" in k and not k.endswith(".grad")}
            stepped = self.steps(p) > self.before[i]
            found[f"p{i}"] = {**mine, "gradient is left": stepped and p.grad is not None}
        return found


class InOneCall:
    """What makes its third step and those after it in one call; held back or not."""

    held = True

    def step(self) -> None:
        quiet = [mock.patch.object(m, "undisturbed", return_value=not self.held) for m in (optimizer, steps)]
        with mock.patch.object(replay, "WARM", 0), quiet[0], quiet[1]:
            super().step()  # type: ignore[misc]


class SteppedInOneCall(InOneCall, Stepped):
    """An optimizer."""


class ReleasedInOneCall(InOneCall, Released):
    """One that steps each parameter in the backward pass."""


class NotHeld(SteppedInOneCall):
    """An optimizer whose steps no handler but that of Ctrl-C could disturb."""

    held = False


class ReleasedNotHeld(ReleasedInOneCall):
    """The same in the backward pass."""

    held = False


class Tree:
    """A state tree and its model, with an array that torch cannot write into; `make` sets it up."""

    def __init__(self, make: Callable[[Any], Any], inplace: bool = True, names: str = "abcd"):
        swapped = _numbers((4,), 3).numpy().astype(">f4")
        whole = {"a": numbers((3, 4), F32, 0), "b": {"c": numbers((5,), BF16, 1)}}
        whole |= {"c": _numbers((2, 3), 2).numpy().copy(), "d": swapped}
        self.model = {key: whole[key] for key in names}
        self.state, self.inplace, self.result = make(self.model), inplace, None

    def ready(self, k: int) -> None:
        whole = {"a": numbers((3, 4), F32, 10 + k), "b": {"c": numbers((5,), BF16, 20 + k)}}
        whole |= {"c": _numbers((2, 3), 30 + k).numpy(), "d": _numbers((4,), 40 + k).numpy()}
        self.grads, self.result = {key: whole[key] for key in self.model}, None

    def step(self) -> None:
        if self.inplace:
            tree.update_(self.state, self.model, self.grads)
        else:
            self.result = tree.update(self.state, self.model, self.grads)

    def look(self) -> Look:
        return {
            "tree": {**self._of(self.state, self.model), "result": self.result and self._of(*self.result)}
        }

    def _of(self, state: Any, model: Any) -> dict[str, Any]:
        found = {f"model {key}": bits(value) for key, value in model.items()}
        for i, leaf in enumerate(leaves(state)):
            found |= {f"leaf{i} {key}": bits(value) for key, value in leaf.state.items()}
            found[f"leaf{i} engine"] = bits([leaf.engine.steps, leaf.engine.numbers])
        return found


class Stored:
    """Updates of two parameters of a store, as `apply_update` makes them."""

    def __init__(self, place: Callable[[], store.ParameterStore], backend: str):
        self.place, self.ids = place(), [("owner", "a"), ("owner", "b")]
        for i, (id, shape) in enumerate(zip(self.ids, ((3, 4), (5,)), strict=True)):
            self.place.init_parameter(id, numbers(shape, F32, i))
        conf = store.RuleConf("adam", backend=backend)
        self.update = store.init_optimizer(conf, self.ids, self.place)

    def ready(self, k: int) -> None:
        for i, id in enumerate(self.ids):
            shape = tuple(self.place.get_parameter_value(id).shape)
            self.place.reset_gradient(id)
            self.place.increment_gradient(id, numbers(shape, F32, 10 + 10 * k + i))

    def step(self) -> None:
        self.update.apply_update()

    def look(self) -> Look:
        found: dict[str, Any] = {}
        for id in self.ids:
            found[f"{id} value"] = bits(self.place.get_parameter_value(id))
            found[f"{id} gradient"] = bits(self.place.get_gradient(id))
        made = self.update._optimizer
        for i, kept in enumerate(made.state.values() if made is not None else ()):
            found |= {f"state{i} {key}": bits(value) for key, value in kept.items()}
        return {"store": found}


def in_files() -> store.ParameterStore:
    """In a folder of its own, which fsspec keeps in memory."""
    return store.FileParameterStore(f"memory://interrupts{next(_folders)}")


_folders = count()


def move(subject: Stepped) -> None:
    """Give a parameter other memory, so that no step before is like the next one."""
    subject.params[0].data = subject.params[0].data.clone()


@dataclass(frozen=True)
class Rule:
    """How subjects of a rule are made."""

    kind: Callable[[], Any]
    shapes: Any
    options: dict[str, Any] = field(default_factory=dict)


def clipped() -> Any:
    return optgen.optimizer(library.chain("clip_global_norm", "adamw"))


RULES = {
    "element-wise": Rule(lambda: optgen.AdamW, THREE),
    "host states": Rule(lambda: optgen.NAdam, TWO),
    "per-tensor": Rule(lambda: optgen.LAMB, TWO),
    "slices": Rule(lambda: optgen.Adafactor, ROWS),
    "copies": Rule(lambda: optgen.AdamWScheduleFree, TWO),
    "global": Rule(lambda: optgen.Prodigy, TWO),
    "clipped": Rule(clipped, TWO, {"lr": 0.1}),
    "noise": Rule(lambda: optgen.SGLD, TWO),
    "inputs": Rule(lambda: optgen.Sophia, TWO),
    "number": Rule(lambda: optgen.PolyakSGD, TWO, {"loss": True}),
    "accumulated": Rule(lambda: accumulated("adamw", 2), TWO),
    "scaled": Rule(lambda: optgen.AdamW, TWO, {"fused": True}),
    "capturable": Rule(lambda: optgen.Prodigy, TWO, {"capturable": True}),
}


ALIKE = Rule(lambda: optgen.AdamW, ROWS)


def mixed(backend: str, model: Any) -> Any:
    """Two rules in one tree."""
    rules = {"a": tree.Adam(), "b": tree.Momentum()}
    return {
        key: tree.setup(rules.get(key, tree.Adam()), part, backend=backend) for key, part in model.items()
    }


def same(rule: Callable[[], Any], backend: str, model: Any) -> Any:
    return tree.setup(rule(), model, backend=backend)


def cases(backend: str) -> dict[str, Case]:
    found = {}
    for name, rule in RULES.items():
        new = partial(made, Stepped, rule, backend)
        found[f"{name}: first"] = (new, 0)
        found[f"{name}: ordinary"] = (new, 1, move)
        found[f"{name}: repeated"] = (new, 3)
    turned = partial(made, Turned, RULES["copies"], backend)
    found |= {"eval": (turned, 0), "train": (turned, 1)}
    for name in ("element-wise", "host states", "copies"):
        new = partial(made, Released, RULES[name], backend)
        found |= {f"released {name}: first": (new, 0), f"released {name}: repeated": (new, 3)}
    if backend == "cpu":
        for subject in (SteppedInOneCall, NotHeld, ReleasedInOneCall, ReleasedNotHeld):
            found[f"{subject.__name__}: repeated"] = (partial(made, subject, ALIKE, backend), 3)
    for name, make in {
        "Adam": partial(same, tree.Adam, backend),
        "Prodigy": partial(same, lambda: tree.Prodigy(), backend),
        "master": partial(same, lambda: tree.MixedPrecision(tree.Adam()), backend),
        "two rules": partial(mixed, backend),
    }.items():
        found |= {f"tree of {name}: {k}": (partial(Tree, make), k) for k in (0, 3)}
    for name, place in {"memory": store.TorchParameterStore, "files": in_files}.items():
        stored = partial(Stored, place, backend)
        found |= {f"store in {name}: first": (stored, 0), f"store in {name}: repeated": (stored, 3)}
    found["tree, update"] = (partial(Tree, partial(same, tree.Adam, backend), False), 1)
    return {name: Case(f"{name}, {backend}", *case) for name, case in found.items()}


def made(subject: type[Stepped], rule: Rule, backend: str) -> Stepped:
    return subject(rule.kind(), backend, rule.shapes, **rule.options)


CASES = [case for backend in ("cpu", "numpy") for case in cases(backend).values()]
DENSE = {"element-wise: repeated, cpu", "global: first, numpy", "released host states: repeated, cpu"}


def by_name(value: Any) -> str:
    return value.name if isinstance(value, Case) else getattr(value, "__name__", str(value))


def interrupt(*numbers: int) -> None:
    for number in numbers:
        signal.raise_signal(number)


def fail(error: type[BaseException]) -> None:
    raise error


def outside(choose: Callable[[Any], list[Event]], events: Any) -> list[Event]:
    """Events before the first launch, and after all is counted, but those that put signal handlers back."""
    found = [event for event in choose(events) if not event.inside]
    return [event for event in found if not event.place.file.endswith(("uninterrupted.py", "updates.py"))]


def check(case: Case, act: Callable[[], Any], *raises: type[BaseException], **more: Any) -> None:
    report = judge(case, act, raises, **more)
    print(report)
    assert not report.failures, str(report)
    assert report.outcomes["missed"] <= 0.2 * report.outcomes.total(), str(report)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_an_interrupted_step_is_made_or_not(case):
    some = partial(chosen, early=60, late=1 if case.name in DENSE else 8)
    check(case, partial(interrupt, signal.SIGINT), KeyboardInterrupt, choose=some)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_step_that_fails_is_not_made(case):
    """Alternately with an error that nothing catches and with the one that anything may raise."""
    error = MemoryError if CASES.index(case) % 2 else Stopped
    check(case, partial(fail, error), error, choose=partial(outside, partial(chosen, early=50)))


LOCKING = [case for case in CASES if case.name.startswith(("released", "store", "tree"))]  # others take none


@pytest.mark.parametrize("case", LOCKING, ids=by_name)
def test_an_interrupted_step_leaves_no_lock_closed(case):
    """Another thread, or one that forks, would wait for it."""

    def about_locks(events: Any) -> list[Event]:
        files = ("locks.py", "release.py", "tree/steps.py", "memory.py", "files.py", "updates.py")
        return [event for event in chosen(events) if event.place.file.endswith(files)]

    report = judge(case, partial(interrupt, signal.SIGINT), (KeyboardInterrupt,), about_locks, calls=True)
    assert not report.locked, str(report)


# Every place in every case takes half an hour. Otherwise cases differ in which places they leave out, and in
# what is done there.
EVERY = os.environ.get("OPTGEN_EVERY_LINE") == "1"
MANY = partial(chosen, each=2) if EVERY else partial(chosen, early=10, late=4)


def with_one_of(*ways: Any) -> list[tuple[Case, Any]]:
    """Each case with one of these in turn, or with each."""
    return [(case, way) for i, case in enumerate(CASES) for way in (ways if EVERY else ways[i % 2 :][:1])]


@pytest.mark.full
@pytest.mark.parametrize(("case", "what"), with_one_of("lines", "calls"), ids=by_name)
def test_a_step_interrupted_anywhere_is_made_or_not(case, what):
    check(case, partial(interrupt, signal.SIGINT), KeyboardInterrupt, choose=MANY, calls=what == "calls")


@pytest.mark.full
@pytest.mark.parametrize(("case", "error"), with_one_of(Stopped, MemoryError), ids=by_name)
def test_a_step_that_fails_anywhere_is_not_made(case, error):
    check(case, partial(fail, error), error, choose=partial(outside, MANY))


SOME = [
    case
    for case in CASES
    if case.name.startswith(
        ("element-wise: repeated", "global: first", "eval", "released host states: first")
    )
]
FEW = partial(chosen, early=40, late=9)


@pytest.mark.parametrize("case", SOME, ids=by_name)
@pytest.mark.parametrize(
    ("numbers", "raises"),
    [
        ([signal.SIGTERM], [SystemExit]),
        ([signal.SIGALRM], [TimeoutError]),
        ([signal.SIGINT, signal.SIGINT], [KeyboardInterrupt]),
        ([signal.SIGTERM, signal.SIGINT], [SystemExit, KeyboardInterrupt]),
    ],
    ids=["SIGTERM", "SIGALRM", "twice", "two"],
)
def test_other_signals_wait_too(case, numbers, raises):
    check(case, partial(interrupt, *numbers), *raises, choose=FEW)


@pytest.mark.parametrize("case", SOME, ids=by_name)
def test_a_handler_that_does_not_raise_is_called_once_and_the_step_is_made(case):
    found = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: found.append((number, frame is not None)))
    try:
        report = judge(case, partial(interrupt, signal.SIGUSR1), (), FEW)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert report.outcomes == {"all": len(found)}, str(report)
    assert set(found) == {(signal.SIGUSR1, True)}


@pytest.mark.parametrize("case", SOME, ids=by_name)
def test_an_ignored_signal_stays_ignored(case):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        check(case, partial(interrupt, signal.SIGUSR1), choose=FEW)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_undisturbed_is_who_has_no_handler_but_that_of_ctrl_c():
    assert undisturbed()
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert not undisturbed()
        with ThreadPoolExecutor(1) as pool:  # where no handler runs
            assert pool.submit(undisturbed).result()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert undisturbed()
    finally:
        signal.signal(signal.SIGTERM, before)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        assert not undisturbed()
    finally:
        signal.signal(signal.SIGINT, before)
    assert undisturbed()


# The test itself


class Toy:
    """A tensor and a count: moved first and counted then, or both in one line."""

    def __init__(self, whole: bool):
        self.whole, self.p, self.count = whole, torch.zeros(2), [0]

    def ready(self, k: int) -> None:
        pass

    def step(self) -> None:
        if self.whole:
            self.p, self.count = self.p + 1, [self.count[0] + 1]
        else:
            self.p += 1
            self.count[0] += 1

    def look(self) -> Look:
        return {"toy": {"p": bits(self.p), "count": bits(self.count)}}


@pytest.mark.parametrize("whole", [True, False])
def test_the_test_finds_a_line_between_moving_and_counting(whole):
    case = Case("toy", partial(Toy, whole), package=__file__)
    report = judge(case, partial(interrupt, signal.SIGINT), (KeyboardInterrupt,))
    assert report.outcomes == ({"none": 2} if whole else {"none": 2, "other": 1}), str(report)
    assert [what for _, what in report.failures] == (
        [] if whole else ["toy: moved ['p'], not moved ['count']"]
    )


@pytest.mark.parametrize(
    "name", ["element-wise: first", "element-wise: repeated", "global: ordinary", "eval"]
)
def test_the_test_finds_launches_that_signals_interrupt(monkeypatch, name):
    monkeypatch.setattr(Uninterrupted, "__enter__", lambda self: self)
    (case,) = [case for case in CASES if case.name == f"{name}, cpu"]
    report = judge(case, partial(interrupt, signal.SIGINT), (KeyboardInterrupt,), partial(chosen, early=60))
    print(report)
    assert len(report.lines) > 5, str(report)
    assert any("not moved" in what for _, what in report.failures)


def test_the_test_finds_states_that_are_created_before_the_launch(monkeypatch):
    """As an error between would leave them."""
    original = optgen.AdamW._build_work

    def build_work(self, *args, **more):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
        return original(self, *args, **more)

    monkeypatch.setattr(optgen.Optimizer, "_build_work", build_work)
    case = next(case for case in CASES if case.name == "element-wise: first, cpu")
    choose = partial(outside, partial(chosen, early=20))
    report = judge(case, partial(fail, MemoryError), (MemoryError,), choose)
    assert report.failures, str(report)


def test_the_test_finds_handlers_that_are_not_put_back(monkeypatch):
    monkeypatch.setattr(Uninterrupted, "release", Uninterrupted._run)
    case = next(case for case in CASES if case.name == "element-wise: repeated, cpu")
    report = judge(
        case, partial(interrupt, signal.SIGTERM), (SystemExit,), partial(chosen, late=20, early=60)
    )
    assert all("handlers" in what for _, what in report.failures), str(report)
    assert report.failures
