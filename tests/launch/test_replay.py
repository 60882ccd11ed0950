"""Steps that replay the one before: the same bits as recorded ones, whatever changes in between."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import optgen
from optgen import library, release
from optgen.backends.triton.kernels import interpreting
from optgen.ir.extent import Extent
from optgen.launch import guards, object_guards, replay
from optgen.launch.guards import MANY, CompiledGuard, guard
from optgen.launch.one_call import OneCall
from optgen.launch.replay import WARM, Replay
from optgen.launch.run import Launch
from optgen.launch.step_counters import Cells, StepCounters
from optgen.passes.specialise import recur

pytestmark = pytest.mark.skipif(interpreting(), reason="runs other back ends")


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in ((3, 3), (5,), (2, 4), ())]


def fill(params, k):
    generator = torch.Generator().manual_seed(k)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def groups_of(params):
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.01}]


@pytest.fixture
def repeated(monkeypatch):
    """Of each step that could be one, whether it was a replay."""
    found = []
    ready, again = Replay.ready, Replay.again

    def readied(self, *args):
        made = ready(self, *args)
        found.append(made is not None)
        return made

    def in_one_call(self, *args):
        made = again(self, *args)
        found.extend([True] * made)  # if not, it is tried the other way
        return made

    monkeypatch.setattr(Replay, "ready", readied)
    monkeypatch.setattr(Replay, "again", in_one_call)
    return found


@pytest.fixture(params=[False, True], ids=["", "warm"])
def one_call(monkeypatch, request):
    """Whether steps are made in one call from the third one on."""
    made, original = [], OneCall.make

    def make(self, *args, **options):
        done = original(self, *args, **options)
        made.extend([done] * (self.count == self.count))  # not where it is only compiled
        return done

    monkeypatch.setattr(replay, "WARM", 0 if request.param else 1 << 62)
    monkeypatch.setattr(OneCall, "make", make)
    return made


def step(optimizer, params, k):
    """A step of new gradients, with whatever else the rule is handed."""
    fill(params, k)
    generator = torch.Generator().manual_seed(100 + k)
    handed = {}
    for name, given in optimizer.program.inputs.items():
        one = given.extent is Extent.ALL
        values = [torch.rand(p.shape, generator=generator) for p in params]
        handed[name] = torch.tensor(1.0 + k) if one else values
    optimizer.step(**handed)


@pytest.mark.parametrize("name", sorted(library.optimizers()))
def test_the_fourth_step_of_every_rule_is_a_replay(monkeypatch, repeated, one_call, name):
    """So are the second and the third, with the bits of recorded steps, in one call too."""
    runs = []
    for replayed in (True, False):
        if not replayed:
            monkeypatch.setattr(Replay, "of", lambda *args: None)
        params = parameters()
        program = recur(getattr(optgen, name).program)
        if not program.inputs and all(s.extent is not Extent.STEP for s in program.states.values()):
            params.append(nn.Parameter(torch.empty(0, 3)))
        groups = [{"params": params[:2]}, {"params": params[2:]}]
        optimizer = getattr(optgen, name)(groups, backend="cpu")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k))
        for k in range(5):
            step(optimizer, params, k)
            scheduler.step()
        runs.append([*params, *(v for p in params for v in optimizer.state[p].values())])
        assert repeated == [True] * 4
    assert all(map(same, *runs))


def same(a, b):
    """Whether two tensors have the same bits, NaN in the same places."""
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "LAMB", "Lion"])
def test_a_replay_has_the_bits_of_a_recorded_step(monkeypatch, repeated, one_call, name, backend):
    runs = []
    for replayed in (True, False):
        if not replayed:
            monkeypatch.setattr(Replay, "of", lambda *args: None)
        params = parameters()
        optimizer = getattr(optgen, name)(groups_of(params), lr=0.1, backend=backend)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for k in range(6):
            fill(params, k)
            optimizer.step()
            scheduler.step()
        runs.append([*params, *(v for p in params for v in optimizer.state[p].values())])
    assert all(map(torch.equal, *runs))
    assert repeated == [True] * 5
    at_once = backend == "cpu" and name != "LAMB" and not replay.WARM
    assert one_call == [True] * 4 * at_once


def lr(optimizer, params):
    optimizer.param_groups[1]["lr"] = 0.5
    return True


def lr_tensor(optimizer, params):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.02)
    return True


def option(optimizer, params):
    optimizer.param_groups[0]["amsgrad"] = True


def grad_elsewhere(optimizer, params):
    params[0].grad = params[0].grad.clone()
    return True


def grad_transposed(optimizer, params):
    params[0].grad = params[0].grad.t()


def no_grad(optimizer, params):
    params[1].grad = None


def freeze(optimizer, params):
    optimizer.freeze(params[2])


def data_elsewhere(optimizer, params):
    params[0].data = params[0].data.clone()


def data_transposed(optimizer, params):
    params[0].data = params[0].data.t()


def data_of_float64(optimizer, params):
    params[1].data = params[1].data.double()
    params[1].grad = torch.ones(5, dtype=torch.float64)


def grad_of_bfloat16(optimizer, params):
    params[1].grad.data = params[1].grad.data.bfloat16()


def state_replaced(optimizer, params):
    optimizer.state[params[0]]["exp_avg"] = torch.ones(3, 3)


def state_moved(optimizer, params):
    kept = optimizer.state[params[0]]["exp_avg"]
    kept.data = kept.data.clone() + 1


def state_filled(optimizer, params):
    optimizer.state[params[0]]["exp_avg"].fill_(2.0)
    return True


def state_gone(optimizer, params):
    del optimizer.state[params[3]]


def counter_changed(optimizer, params):
    optimizer.state[params[1]]["step"].fill_(40.0)
    return True


def counter_replaced(optimizer, params):
    optimizer.state[params[1]]["step"] = torch.tensor(40.0)


def all_counters_changed(optimizer, params):
    for p in params:
        optimizer.state[p]["step"].fill_(40.0)
    return True


def loaded(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def group_added(optimizer, params):
    late = nn.Parameter(torch.ones(4))
    late.grad = torch.ones(4)
    optimizer.add_param_group({"params": [late]})


def parameter_replaced(optimizer, params):
    params[3] = optimizer.param_groups[1]["params"][1] = nn.Parameter(torch.tensor(2.0))
    params[3].grad = torch.tensor(1.0)


CHANGES = [
    *(lr, lr_tensor, option, grad_elsewhere, grad_transposed, no_grad, freeze, data_elsewhere),
    *(data_transposed, data_of_float64, grad_of_bfloat16, state_replaced, state_moved, state_filled),
    *(state_gone, counter_changed, counter_replaced, all_counters_changed, loaded, group_added),
    parameter_replaced,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_noticed(monkeypatch, repeated, one_call, change):
    """Whether the step is repeated or not, it does what an ordinary one does."""
    runs = []
    for replayed in (True, False):
        if not replayed:
            monkeypatch.setattr(Replay, "of", lambda *args: None)
        params = parameters()
        optimizer = optgen.AdamW(groups_of(params), lr=0.1, backend="cpu")
        for k in range(7):
            fill(params, k)
            if k == 3:
                same = bool(change(optimizer, params))
                repeated.clear()
            optimizer.step()
            if k == 3 and replayed:
                assert repeated == [same]
                assert one_call[:1] == ([] if replay.WARM else [True])
        kept = [p for group in optimizer.param_groups for p in group["params"]]
        runs.append([*kept, *(v for p in kept for v in optimizer.state[p].values())])
    assert len(runs[0]) == len(runs[1])
    assert all(map(torch.equal, *runs))


def test_frozen_parameters_with_gradients_hold_up_nothing(repeated):
    params = parameters()
    optimizer = optgen.AdamW(params, backend="cpu")
    optimizer.freeze(params[1])
    before = params[1].detach().clone()
    for k in range(4):
        fill(params, k)
        optimizer.step()
    assert repeated == [True] * 3
    assert torch.equal(params[1], before)


def test_addresses_that_come_back():
    """Gradients in two buffers by turns, with an ordinary step between them."""
    params, others = parameters(), parameters()
    a, b = (optgen.AdamW(p, lr=0.1, backend=k) for p, k in ((params, "cpu"), (others, "numpy")))
    buffers = [[torch.randn_like(p) for p in params] for _ in range(2)]
    for k in range(9):
        for p, q, g in zip(params, others, buffers[k % 2], strict=True):
            p.grad, q.grad = g, g.clone()
        if k == 4:
            params[0].grad = others[0].grad = None
        a.step()
        b.step()
    assert all(map(torch.equal, params, others))


def test_no_gradient_is_kept_alive():
    params = parameters()
    optimizer = optgen.AdamW(params, backend="cpu")
    for k in range(3):
        fill(params, k)
        optimizer.step()
    grads = [weakref.ref(p.grad) for p in params]
    optimizer.zero_grad()
    gc.collect()
    assert [grad() for grad in grads] == [None] * 4


def test_sparse_gradients_are_refused_as_ever(repeated):
    weight = nn.Parameter(torch.randn(6, 3))
    optimizer = optgen.AdamW([weight], backend="cpu")
    for k in range(2):
        fill([weight], k)
        optimizer.step()
    weight.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 3), (6, 3), check_invariants=True)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "LAMB", "Prodigy"])
def test_under_a_scaler_the_fourth_step_is_a_replay(repeated, name):
    params, twins = parameters(), parameters()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    one = getattr(optgen, name)(params, fused=True, backend="cpu")
    two = getattr(optgen, name)(twins, backend="cpu")
    for k in range(5):
        fill(params, k)
        fill(twins, k)
        scaler.scale(torch.ones(()))
        for p in params:
            p.grad *= 8.0
        if k == 2:  # a step that is none, between replays
            kept = [p.grad.clone() for p in params]
            params[0].grad.fill_(torch.inf)
            scaler.step(one)
            for p, g in zip(params, kept, strict=True):
                p.grad = g
            one.found_inf, one.grad_scale = torch.zeros(()), torch.tensor(8.0)
            one.step()
            del one.found_inf, one.grad_scale
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        else:
            scaler.step(one)
            scaler.update(8.0)
        two.step()
    assert all(map(torch.equal, params, twins))
    assert repeated.count(False) == 0
    assert repeated.count(True) == 8


def test_with_gradient_release_the_fourth_step_of_each_parameter_is_a_replay(repeated):
    model, twin = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    released = optgen.NAdam(model.parameters(), lr=0.1)
    ordinary = optgen.NAdam(twin.parameters(), lr=0.1)
    with release.attach(released):
        for k in range(5):
            x = torch.full((2, 3), 1.0 + k)
            model(x).sum().backward()
    assert repeated == [True] * 16
    for k in range(5):
        ordinary.zero_grad()
        twin(torch.full((2, 3), 1.0 + k)).sum().backward()
        ordinary.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_parameters_at_steps_of_their_own_are_replayed(repeated):
    """Rows of scalars follow from each count, and host states from each parameter's own."""
    runs = []
    for backend in ("cpu", "numpy"):
        params = parameters()
        optimizer = optgen.NAdam(groups_of(params), lr=0.1, backend=backend)
        for k in range(8):
            fill(params, k)
            if k < 2:
                params[k].grad = None  # these two are behind the others
            optimizer.step()
        runs.append(params)
        counts = [optimizer.state[p]["step"].item() for p in params]
        assert counts == [7.0, 7.0, 8.0, 8.0]
    assert all(map(torch.equal, *runs))
    assert repeated == 2 * [False, False, *[True] * 5]


def test_a_few_tensors_are_compared_in_compiled_code_in_the_long_run(repeated):
    params, twins = parameters(), parameters()
    one, two = optgen.AdamW(params), optgen.AdamW(twins, backend="numpy")
    for k in range(WARM + 5):
        for p, q in zip(params, twins, strict=True):
            p.grad = torch.full_like(p, 1.0 + k % 3)
            q.grad = p.grad.clone()
        one.step()
        two.step()
    assert all(repeated)
    assert isinstance(one._launcher.replay.recording.guard, CompiledGuard)
    assert all(map(torch.equal, params, twins))
    params[0].data = params[0].data.clone()
    one.step()
    assert repeated[-1] is False


def test_versions_and_hooks():
    params, seen = parameters(), []
    optimizer = optgen.AdamW(params, backend="cpu")
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    for k in range(3):
        fill(params, k)
        before = [p._version for p in params]
        assert optimizer.step(lambda: 7.0) == 7.0
        assert all(p._version > old for p, old in zip(params, before, strict=True))
    assert seen == ["before", "after"] * 3


def test_copies_have_their_own():
    params = parameters()
    optimizer = optgen.AdamW(params, backend="cpu")
    for k in range(2):
        fill(params, k)
        optimizer.step()
    twin = copy.deepcopy(optimizer)
    others = [p for group in twin.param_groups for p in group["params"]]
    for k in range(2, 5):
        fill(params, k)
        fill(others, k)
        optimizer.step()
        twin.step()
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.float64], [torch.float32, torch.float64]])
def test_counters_are_read_and_advanced_by_address(dtypes, many):
    kinds = dtypes * (MANY if many else 3)
    counters = [torch.tensor(3.0, dtype=kind) for kind in kinds]
    places = np.array([c.data_ptr() for c in counters])
    count = StepCounters(counters, places, [False] * len(counters))
    assert (count.cells.module is not None) == many
    assert count.read(counters) == 3.0
    count.advance(counters, None)
    assert [c.item() for c in counters] == [4.0] * len(counters)
    count.advance(counters, torch.tensor(1.0))
    counters[1].fill_(9.0)
    assert count.read(counters).tolist() == [c.item() for c in counters]
    assert sorted({c.item() for c in counters}) == [4.0, 9.0]
    counters[0].fill_(torch.nan)
    assert count.read(counters) is None
    cells = Cells(places, np.array([c.dtype is torch.float64 for c in counters]))
    cells.write(np.arange(len(counters)) + 0.1)
    exact = [torch.tensor(i + 0.1, dtype=kind).item() for i, kind in enumerate(kinds)]
    assert [c.item() for c in counters] == exact


def lists_of(groups):
    return [group["params"] for group in groups]


def watched(many):
    """Groups, state and what watches them; compiled for many."""
    params = [nn.Parameter(torch.randn(5)) for _ in range(MANY if many else 4)]
    state = {p: {"step": torch.tensor(1.0), "exp_avg": torch.randn(5)} for p in params}
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    wanted = [x for p in params for x in (p, *state[p].values())]
    found = object_guards.object_guard(lists_of(groups), state, wanted)
    assert list(map(id, found.find(lists_of(groups), state))) == list(map(id, wanted))
    assert isinstance(found, object_guards.CompiledObjectGuard) == many
    return groups, state, found


def reordered(groups, state):
    groups[1]["params"].reverse()


def fewer(groups, state):
    groups[1]["params"].pop()


def moved_over(groups, state):
    groups[1]["params"].insert(0, groups[0]["params"].pop())


def another(groups, state):
    groups[0]["params"][1] = nn.Parameter(torch.zeros(5))


def as_tuple(groups, state):
    groups[0]["params"] = (groups[0]["params"][0],)


def entry_replaced(groups, state):
    kept = state[groups[0]["params"][1]]
    kept["exp_avg"] = kept["exp_avg"].clone()


def equal_step(groups, state):
    state[groups[0]["params"][0]]["step"] = torch.tensor(1.0)


def entry_added(groups, state):
    state[groups[0]["params"][1]]["more"] = 1


def entry_removed(groups, state):
    del state[groups[1]["params"][-1]]["exp_avg"]


def kept_removed(groups, state):
    del state[groups[1]["params"][-1]]


def kept_replaced(groups, state):
    state[groups[1]["params"][0]] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(5)}


def kept_added(groups, state):
    state[torch.zeros(2)] = {}


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        reordered,
        fewer,
        moved_over,
        another,
        as_tuple,
        entry_replaced,
        equal_step,
        entry_added,
        entry_removed,
        kept_removed,
        kept_replaced,
        kept_added,
    ],
)
def test_a_watch_sees_every_change(change, many):
    groups, state, found = watched(many)
    gc.collect()
    assert found.find(lists_of(groups), state)
    change(groups, state)
    assert found.find(lists_of(groups), state) is None


@pytest.mark.parametrize("many", [True, False])
def test_a_watch_takes_equal_groups_and_state(many):
    groups, state, found = watched(many)
    others = [{"params": list(group["params"]), "lr": 1.0} for group in groups]
    for p in groups[0]["params"]:
        p.detach().add_(1.0)
        state[p]["exp_avg"].fill_(0.0)
    assert found.find(lists_of(others), state)


def guarded(many):
    """Tensors of three shapes, some in one buffer: fixed ones, free ones, and what guards them."""
    count, buffer = MANY if many else 6, torch.zeros(10_000)
    fixed = [torch.randn(k % 3, 5) if k % 2 else buffer[7 * k : 7 * k + 5] for k in range(count)]
    free = [torch.randn(5, 2).t() for _ in range(count)]
    found = guard(fixed, free)
    assert isinstance(found, CompiledGuard) == many
    return fixed, free, found


@pytest.mark.parametrize("many", [True, False])
def test_a_guard_tells_the_addresses_that_torch_says(many):
    fixed, free, found = guarded(many)
    for _ in range(2):
        where = found.find(fixed, free)
        assert where.tolist() == [t.data_ptr() for t in (*fixed, *free)]
        free = [t.t().clone().t() for t in free]


CHANGES = {
    "grown": lambda t: torch.zeros(2, 9),
    "the same size in another shape": lambda t: t.reshape(-1),
    "other strides": lambda t: torch.zeros(100).as_strided(t.shape, (13, 2)),
    "expanded": lambda t: torch.zeros(()).expand(t.shape),
    "float64": lambda t: t.double(),
    "integers": lambda t: t.view(torch.int32),
    "negated": torch._neg_view,
    "sparse": lambda t: t.to_sparse(),
    "on meta": lambda t: t.to("meta"),
    "a parameter": lambda t: nn.Parameter(t, False),
    "None": lambda t: None,
    "a number": lambda t: 3,
}


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", ["fixed", "free"])
def test_a_guard_sees_what_a_tensor_has_become(which, change, many):
    fixed, free, found = guarded(many)
    tensors = fixed if which == "fixed" else free
    tensors[5] = CHANGES[change](tensors[5])
    assert found.find(fixed, free) is None


@pytest.mark.parametrize("many", [True, False])
def test_a_guard_sees_what_has_become_of_memory(many):
    def freed(fixed, free):
        fixed[1].untyped_storage().resize_(0)

    def cut(fixed, free):
        fixed[2].untyped_storage().resize_(400)  # all of the buffer's tensors, and this one's end

    def moved(fixed, free):
        fixed[1].data = fixed[1].clone()

    def negated(fixed, free):
        fixed[2].data = torch._neg_view(fixed[2])

    def short_gradient(fixed, free):
        free[4].untyped_storage().resize_(8)

    def gradient_in_a_parameter(fixed, free):
        free[0].data = fixed[0].as_strided((2, 5), (1, 2))

    for change in (freed, cut, moved, negated, short_gradient, gradient_in_a_parameter):
        fixed, free, found = guarded(many)
        assert found.find(fixed, free) is not None
        change(fixed, free)
        assert found.find(fixed, free) is None, change.__name__


@pytest.mark.parametrize("many", [True, False])
def test_a_guard_counts_versions_as_torch_does(many):
    fixed, free, found = guarded(many)
    assert found.find(fixed, free) is not None
    before = [t._version for t in (*fixed, *free)]
    found.increment_versions(fixed)
    # Tensors that are views of one share its version: each of the write counts for all of them.
    shared = sum(t._is_view() for t in fixed)
    assert [t._version for t in fixed] == [
        v + (shared if t._is_view() else 1) for v, t in zip(before, fixed, strict=False)
    ]
    assert [t._version for t in free] == before[len(fixed) :]


@pytest.mark.parametrize("many", [True, False])
def test_an_inference_tensor_has_no_version_to_count(many):
    fixed, free, found = guarded(many)
    with torch.inference_mode():
        fixed[1].data = fixed[1].clone()
        fixed[1] = fixed[1].clone()
    assert found.find(fixed, free) is None


@pytest.mark.parametrize("missing", ["torch's guards", "compiled code"])
def test_what_is_private_to_torch_may_be_missing(monkeypatch, repeated, missing):
    monkeypatch.setattr(guards, "TensorGuards", None)
    if missing == "compiled code":
        monkeypatch.setattr(guards, "compiled", lambda: None)
    params, twins = ([nn.Parameter(torch.full((3,), float(i))) for i in range(MANY)] for _ in range(2))
    one, two = optgen.AdamW(params, backend="cpu"), optgen.AdamW(twins, backend="numpy")
    for k in range(3):
        for found, optimizer in ((params, one), (twins, two)):
            fill(found, k)
            optimizer.step()
    assert all(map(torch.equal, params, twins))
    assert repeated == [True] * 4


def test_many_parameters(repeated):
    one, two = ([nn.Parameter(torch.full((3,), float(i))) for i in range(MANY)] for _ in range(2))
    a, b = optgen.AdamW(one, lr=0.1, backend="cpu"), optgen.AdamW(two, lr=0.1, backend="numpy")
    for k in range(4):
        fill(one, k)
        fill(two, k)
        before = [t._version for p in one for t in (p, *a.state[p].values())]
        a.step()
        b.step()
    after = [t._version for p in one for t in (p, *a.state[p].values())]
    assert all(x < y for x, y in zip(before, after, strict=True))  # counters too: a store reads them
    assert all(map(torch.equal, one, two))
    assert [s["step"].item() for s in a.state.values()] == [4.0] * MANY
    assert repeated == [True] * 6


def test_a_launch_that_fails_counts_no_step(monkeypatch):
    monkeypatch.setattr(replay, "WARM", 1 << 62)
    params = parameters()
    optimizer = optgen.AdamW(params)
    for k in range(2):
        fill(params, k)
        optimizer.step()

    def fail(*args):
        raise RuntimeError("no launch")

    with monkeypatch.context() as patched:
        patched.setattr(Launch, "run", fail)
        with pytest.raises(RuntimeError, match="no launch"):
            optimizer.step()
    assert {s["step"].item() for s in optimizer.state.values()} == {2.0}
    optimizer.step()
    assert {s["step"].item() for s in optimizer.state.values()} == {3.0}


def test_steps_under_inference_mode_after_many_replays():
    """The state is made of inference tensors then, for which torch counts no versions."""
    params = parameters()
    optimizer = optgen.AdamW(params)
    for k in range(WARM + 2):
        fill(params, k)
        optimizer.step()
    p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
    one, two = optgen.AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
    for optimizer, x in ((one, p), (two, q)):
        x.grad = torch.ones(3)
        with torch.inference_mode():
            for _ in range(4):
                optimizer.step()
    torch.testing.assert_close(p, q)


def test_an_empty_parameter_that_gets_elements_is_stepped(repeated):
    p, empty = nn.Parameter(torch.ones(2)), nn.Parameter(torch.empty(0))
    optimizer = optgen.SGD([p, empty], lr=0.1)
    for _ in range(4):
        p.grad, empty.grad = torch.ones(2), torch.empty(0)
        optimizer.step()
    assert repeated == [True] * 3
    empty.data, empty.grad = torch.ones(4), torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(empty.detach(), torch.full((4,), 0.9))
    assert optimizer.state[empty]["step"] == 5


def test_released_parameters_are_frozen_and_keep_their_random_numbers():
    a, b, c = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = optgen.SGLD([{"params": [a, b]}, {"params": [c]}])
    twins = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    ordinary = optgen.SGLD([{"params": twins[:2]}, {"params": twins[2:]}])
    with release.attach(optimizer):
        for k in range(5):
            sum(p.sum() for p in (a, b, c)).backward()
            ordinary.zero_grad()
            sum(p.sum() for p in twins).backward()
            ordinary.step()
            if k == 2:
                for one, gone in ((optimizer, a), (ordinary, twins[0])):
                    one.param_groups[0]["params"] = [
                        p for p in one.param_groups[0]["params"] if p is not gone
                    ]
        assert torch.equal(c, twins[2])
        kept = c.detach().clone()
        optimizer.freeze(c)
        c.sum().backward()
        assert torch.equal(c, kept)


def test_an_input_of_a_step_is_not_written():
    p = nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = optgen.optimizer("input(loss, per=all)\nhyper(lr=0.1)\np = p - lr*loss*g")([p])
    for _ in range(3):
        optimizer.zero_grad()
        loss = p * p
        loss.backward(retain_graph=True)
        optimizer.step(loss=loss)
        assert loss._version == 0
