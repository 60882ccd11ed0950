"""Loading by name and in part: what is matched with what, what is refused, and what is left as it was."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import optgen
from optgen.optim.loading import LoadReport

SHAPES = {"body.weight": (3, 4), "body.bias": (3,), "head.weight": (2, 3), "head.bias": (2,)}
NOTHING = LoadReport([], [], {}, [])


def model(names=SHAPES, seed=0, dtype=torch.float32, shapes=SHAPES):
    """Parameters by name, each with values of its own whatever the order."""
    found = {}
    for name in names:
        generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
        found[name] = nn.Parameter(torch.randn(shapes[name], generator=generator).to(dtype))
    return found


def train(optimizer, named, steps, start=0):
    for step in range(start, start + steps):
        for name, p in named.items():
            generator = torch.Generator().manual_seed(1000 * step + sum(map(ord, name)))
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def twin(named, order):
    """The same values under the same names, in another order."""
    return {name: nn.Parameter(named[name].detach().clone()) for name in order}


def adamw(named, **options):
    return optgen.AdamW(list(named.items()), backend="numpy", lr=0.1, **options)


def saved_after(steps=2, **options):
    named = model()
    optimizer = adamw(named, **options)
    train(optimizer, named, steps)
    return named, optimizer


def assert_same(a, b):
    assert all(torch.equal(a[name], b[name]) for name in a | b)


def same_state(a, b):
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def snapshot(optimizer):
    return copy.deepcopy((dict(optimizer.state), optimizer.param_groups))


def assert_unchanged(optimizer, before):
    state, groups = before
    assert repr(groups) == repr(optimizer.param_groups)
    same_state(state.values(), optimizer.state.values())


# By name


def test_a_reordered_model_goes_on_to_the_bit():
    whole, optimizer = saved_after()
    other = twin(whole, reversed(SHAPES))
    resumed = adamw(other, betas=(0.5, 0.5))
    assert resumed.load_state_dict(optimizer.state_dict()) == NOTHING
    train(optimizer, whole, 3, 2)
    train(resumed, other, 3, 2)
    assert_same(whole, other)
    assert resumed.param_groups[0]["param_names"] == list(reversed(SHAPES))
    assert resumed.param_groups[0]["betas"] == (0.9, 0.999)


def test_named_checkpoints_of_torch_both_ways():
    theirs = model(dtype=torch.float64)
    b = torch.optim.AdamW(theirs.items(), lr=0.01, foreach=False)
    train(b, theirs, 3)
    mine = twin(theirs, sorted(theirs, reverse=True))
    a = adamw(mine)
    a.load_state_dict(b.state_dict())
    assert a.param_groups[0]["lr"] == 0.01
    train(a, mine, 3, 3)
    train(b, theirs, 3, 3)
    for name, p in mine.items():
        torch.testing.assert_close(p, theirs[name], rtol=1e-12, atol=0)
    same_order = twin(mine, mine)
    c = torch.optim.AdamW(same_order.items(), foreach=False)
    c.load_state_dict(copy.deepcopy(a.state_dict()))
    assert c.param_groups[0]["param_names"] == list(mine)
    train(c, same_order, 3, 6)
    train(b, theirs, 3, 6)
    for name, p in same_order.items():
        torch.testing.assert_close(p, theirs[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("mine", [True, False])
def test_without_names_on_a_side_it_goes_by_position(mine):
    named, optimizer = saved_after()
    saved = copy.deepcopy(optimizer.state_dict())
    if mine:
        del saved["param_groups"][0]["param_names"]
        other = adamw(twin(named, named))
    else:
        other = optgen.AdamW(list(twin(named, named).values()))
    assert other.load_state_dict(saved) == NOTHING
    assert other.param_groups[0]["param_names"] == list(SHAPES)  # as torch: saved names come along
    for p, q in zip(other.param_groups[0]["params"], named.values(), strict=True):
        assert torch.equal(other.state[p]["exp_avg"], optimizer.state[q]["exp_avg"])


def test_names_that_several_have_name_nobody():
    """Two models in one optimizer: torch takes their names as they are, and loads by position."""
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = optgen.AdamW([*a.named_parameters(), *b.named_parameters()], backend="numpy")
    params = dict(enumerate([*a.parameters(), *b.parameters()]))
    for p in params.values():
        p.grad = torch.randn(p.shape)
    optimizer.step()
    fresh = optgen.AdamW([*a.named_parameters(), *b.named_parameters()])
    assert fresh.load_state_dict(optimizer.state_dict()) == NOTHING
    assert all(torch.equal(fresh.state[p]["exp_avg"], optimizer.state[p]["exp_avg"]) for p in params.values())


class Net(nn.Module):
    def __init__(self, names):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(3, 3))

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def test_torchs_distributed_checkpoints_of_a_reordered_model():
    """They bring the keys in this order, but the names and marks in the saved one."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    first, second = Net(["body", "head"]), Net(["head", "body"])
    a, b = (optgen.AdamW(net.named_parameters(), lr=0.1, backend="numpy") for net in (first, second))
    train(a, dict(first.named_parameters()), 2)
    second.load_state_dict(first.state_dict())
    a.freeze(first.body.weight)
    set_optimizer_state_dict(second, b, get_optimizer_state_dict(first, a))
    assert b.param_groups[0]["param_names"] == [name for name, _ in second.named_parameters()]
    for net, optimizer in ((first, a), (second, b)):
        train(optimizer, dict(net.named_parameters()), 2, 2)
    assert_same(dict(first.named_parameters()), dict(second.named_parameters()))
    assert b.state[second.body.weight]["step"] == 2


def test_keys_that_are_other_names_go_by_position():
    """As when the saved model was wrapped: the keys are in this order, whatever the saved names are."""
    named, optimizer = saved_after()
    saved = copy.deepcopy(optimizer.state_dict())
    order = list(reversed(SHAPES))
    state = {name: saved["state"][i] for i, name in enumerate(SHAPES)}
    names = [f"module.{name}" for name in SHAPES]
    group = {**saved["param_groups"][0], "params": order, "param_names": names}
    other = twin(named, order)
    fresh = adamw(other)
    assert fresh.load_state_dict({"state": state, "param_groups": [group]}) == NOTHING
    for name, p in other.items():
        assert torch.equal(fresh.state[p]["exp_avg"], optimizer.state[named[name]]["exp_avg"])
    assert fresh.param_groups[0]["param_names"] == order


def test_frozen_parameters_are_found_by_name():
    named, optimizer = saved_after()
    optimizer.freeze([named["body.weight"], named["head.bias"]])
    other = twin(named, ["body.bias", "head.bias", "head.weight", "body.weight"])
    fresh = adamw(other)
    fresh.freeze(other["body.bias"])
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.param_groups[0]["frozen"] == [1, 3]
    train(fresh, other, 1, 2)
    assert torch.equal(other["head.bias"], named["head.bias"])
    assert not torch.equal(other["body.bias"], named["body.bias"])


@pytest.mark.parametrize("missing", ["own", "saved"])
def test_names_for_fewer_parameters_than_there_are(missing):
    _, optimizer = saved_after()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["param_names"].pop()
    with pytest.raises(ValueError, match="group 0 has 3 param_names for 4 parameters"):
        optimizer.load_state_dict(saved, strict=missing == "own")


# Groups


def grouped(named, *groups):
    groups = [{"params": [(n, named[n]) for n in names], **options} for names, options in groups]
    return optgen.AdamW(groups, backend="numpy")


BODY, HEAD = ["body.weight", "body.bias"], ["head.weight", "head.bias"]


def test_groups_take_the_options_of_those_that_their_parameters_were_in():
    named = model()
    a = grouped(named, (BODY, {"lr": 0.5, "weight_decay": 0.1}), (HEAD, {"lr": 0.25}))
    train(a, named, 2)
    other = twin(named, named)
    b = grouped(other, (HEAD, {}), (BODY, {}))
    assert b.load_state_dict(a.state_dict()) == NOTHING
    assert [g["lr"] for g in b.param_groups] == [0.25, 0.5]
    train(a, named, 2, 2)
    train(b, other, 2, 2)
    assert_same(named, other)


def test_a_parameter_may_move_to_another_group():
    """The state moves with it; its options are those of its new group."""
    named = model()
    a = grouped(named, (BODY, {"lr": 0.5}), (HEAD, {"lr": 0.25}))
    train(a, named, 2)
    other = twin(named, named)
    b = grouped(other, (BODY[:1], {}), ([*HEAD, *BODY[1:]], {}))
    assert b.load_state_dict(a.state_dict()) == NOTHING
    assert [g["lr"] for g in b.param_groups] == [0.5, 0.25]
    moved = b.param_groups[1]["params"][2]
    assert torch.equal(b.state[moved]["exp_avg"], a.state[named["body.bias"]]["exp_avg"])
    c = grouped(other, (BODY, {}), (HEAD[:1], {}), (HEAD[1:], {}))
    assert c.load_state_dict(a.state_dict()) == NOTHING
    assert [g["lr"] for g in c.param_groups] == [0.5, 0.25, 0.25]


def test_a_group_of_parameters_from_several_needs_options_of_its_own():
    named = model()
    a = grouped(named, (BODY, {"lr": 0.5}), (HEAD, {"lr": 0.25}))
    train(a, named, 1)
    b = grouped(twin(named, named), ([*BODY, *HEAD], {"lr": 2.0}))
    before = snapshot(b)
    with pytest.raises(ValueError, match="no group of the state dict answers to group 0"):
        b.load_state_dict(a.state_dict())
    assert_unchanged(b, before)
    assert b.load_state_dict(a.state_dict(), strict=False) == LoadReport([], [], {}, [0])
    assert b.param_groups[0]["lr"] == 2.0
    assert [entry["step"].item() for entry in b.state.values()] == [1, 1, 1, 1]


def test_numbers_of_the_whole_optimizer_come_to_every_group():
    make = optgen.optimizer("prodigy")

    def prodigy(named, *groups):
        return make([{"params": [(n, named[n]) for n in names]} for names in groups], backend="numpy")

    named = model()
    a = prodigy(named, BODY, HEAD)
    train(a, named, 3)
    assert a.param_groups[0]["d_numerator"] != 0
    other = twin(named, named)
    b = prodigy(other, BODY, HEAD[:1], HEAD[1:])
    assert b.load_state_dict(a.state_dict()) == NOTHING
    train(a, named, 2, 3)
    train(b, other, 2, 3)
    assert_same(named, other)
    new = {"new": nn.Parameter(torch.ones(3)), **twin(named, named)}
    c = prodigy(new, ["new"], BODY, HEAD)
    report = c.load_state_dict(a.state_dict(), strict=False)
    assert report == LoadReport(["new"], [], {}, [0])
    assert {float(g["d_numerator"]) for g in c.param_groups} == {float(a.param_groups[0]["d_numerator"])}
    assert {g["steps"] for g in c.param_groups} == {5}


# Strict


def test_strict_lists_every_name_that_one_side_has():
    named, optimizer = saved_after()
    renamed = {name.replace("head", "classifier"): p for name, p in twin(named, named).items()}
    fresh = adamw(renamed)
    train(fresh, renamed, 1)
    before, saved = snapshot(fresh), optimizer.state_dict()
    kept = copy.deepcopy(saved)
    with pytest.raises(ValueError, match="other parameters") as error:
        fresh.load_state_dict(saved)
    assert str(error.value).splitlines()[1:] == [
        "  missing from the state dict: classifier.weight, classifier.bias",
        "  unexpected in the state dict: head.weight, head.bias",
        "pass strict=False to load what fits, or take 'param_names' out of its groups to go by position",
    ]
    assert_unchanged(fresh, before)
    assert saved["param_groups"] == kept["param_groups"]
    same_state(saved["state"].values(), kept["state"].values())
    by_position = {**saved, "param_groups": [dict(group) for group in saved["param_groups"]]}
    for group in by_position["param_groups"]:
        del group["param_names"]
    assert fresh.load_state_dict(by_position) == NOTHING
    assert fresh.param_groups[0]["param_names"] == list(renamed)
    train(fresh, renamed, 1, 2)


def test_strict_names_the_parameter_whose_state_does_not_fit():
    _, optimizer = saved_after()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][2]["exp_avg"] = torch.zeros(7)
    before = snapshot(optimizer)
    with pytest.raises(
        ValueError, match=r"'exp_avg' of parameter 'head.weight' is \(7,\), its parameter \(2, 3"
    ):
        optimizer.load_state_dict(saved)
    assert_unchanged(optimizer, before)


# Not strict


def test_a_new_head_keeps_its_own_state():
    """Fine-tuning: the body's state is loaded, a head of another size and a new layer are left."""
    named, optimizer = saved_after()
    optimizer.param_groups[0]["lr"] = 0.3
    shapes = {**SHAPES, "head.weight": (5, 3), "head.bias": (5,), "norm.weight": (3,)}
    other = model([*BODY, "norm.weight", *HEAD], seed=5, shapes=shapes)
    fresh = adamw(other)
    train(fresh, other, 1)
    head = {name: fresh.state[other[name]] for name in [*HEAD, "norm.weight"]}
    values = copy.deepcopy(head)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    report = fresh.load_state_dict(saved, strict=False)
    assert (report.missing, report.unexpected, report.kept_groups) == (["norm.weight"], [], [])
    assert list(report.mismatched) == HEAD
    assert report.mismatched["head.bias"] == (
        "state 'exp_avg' of parameter 'head.bias' is (2,), its parameter (5,)"
    )
    assert saved["param_groups"] == kept["param_groups"]
    same_state(saved["state"].values(), kept["state"].values())
    assert fresh.param_groups[0]["lr"] == 0.3
    for name in BODY:
        assert torch.equal(fresh.state[other[name]]["exp_avg"], optimizer.state[named[name]]["exp_avg"])
        assert fresh.state[other[name]]["step"] == 2
    for name, entry in head.items():
        assert fresh.state[other[name]] is entry
        same_state([entry], [values[name]])
        assert entry["step"] == 1
    train(fresh, other, 1, 2)


def test_a_head_in_a_group_of_its_own_keeps_its_options():
    named, optimizer = saved_after()
    other = {**twin(named, BODY), "new.weight": nn.Parameter(torch.ones(2, 3))}
    fresh = grouped(other, (["new.weight"], {"lr": 3.0}), (BODY, {"lr": 2.0}))
    fresh.freeze(other["new.weight"])
    report = fresh.load_state_dict(optimizer.state_dict(), strict=False)
    assert report == LoadReport(["new.weight"], HEAD, {}, [0])
    assert [g["lr"] for g in fresh.param_groups] == [3.0, 0.1]
    assert [g["frozen"] for g in fresh.param_groups] == [[0], []]
    assert set(fresh.state) == {other[name] for name in BODY}  # what has no parameter is left behind


def test_nothing_in_common_loads_nothing():
    _, optimizer = saved_after()
    other = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(3))}
    fresh = grouped(other, (["a"], {"lr": 2.0}), (["b"], {"lr": 3.0}))
    train(fresh, other, 1)
    before = snapshot(fresh)
    report = fresh.load_state_dict(optimizer.state_dict(), strict=False)
    assert report == LoadReport(["a", "b"], [*BODY, *HEAD], {}, [0, 1])
    assert_unchanged(fresh, before)


def test_without_names_in_part():
    """By group and position; a parameter that was not stepped has no state, and loads as such."""
    named, optimizer = saved_after()
    extra = nn.Parameter(torch.ones(3))
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][1]
    fresh = optgen.AdamW([*twin(named, named).values(), extra], backend="numpy")
    params = fresh.param_groups[0]["params"]
    train(fresh, dict(zip([*SHAPES, "extra"], params, strict=True)), 1)
    with pytest.raises(ValueError, match="has 4 parameters, the optimizer's has 5"):
        fresh.load_state_dict(saved)
    report = fresh.load_state_dict(saved, strict=False)
    assert report == LoadReport(["group 0, position 4"], [], {}, [])
    assert [fresh.state[p]["step"].item() if p in fresh.state else None for p in params] == [2, None, 2, 2, 1]
    assert "param_names" not in fresh.param_groups[0]


def test_another_rule_or_a_bad_option_is_no_part_that_fits():
    named, optimizer = saved_after()
    lion = optgen.Lion(list(named.items()), backend="numpy")
    with pytest.raises(ValueError, match="made by another rule"):
        lion.load_state_dict(optimizer.state_dict(), strict=False)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = -1.0
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="group 0 of the state dict: adamw needs lr >= 0"):
        optimizer.load_state_dict(saved, strict=False)
    assert_unchanged(optimizer, before)
    torchs = torch.optim.SGD(named.items(), lr=0.1, momentum=0.9)
    train(torchs, named, 1)
    report = adamw(twin(named, named)).load_state_dict(torchs.state_dict(), strict=False)
    assert list(report.mismatched) == list(SHAPES)
    assert (
        "has a state 'momentum_buffer', which the rule 'adamw' does not have"
        in report.mismatched["body.bias"]
    )


# Around it


@pytest.mark.parametrize("strict", [True, False])
def test_files_chains_and_dtypes(strict):
    make = optgen.optimizer(optgen.chain("clip_norm", "adamw"))
    named = model(dtype=torch.bfloat16)
    a = make(list(named.items()), backend="numpy", state_dtype=torch.float32)
    train(a, named, 2)
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    other = twin(named, reversed(SHAPES))
    b = make(list(other.items()), backend="numpy")
    assert b.load_state_dict(torch.load(file, weights_only=True), strict=strict) == NOTHING
    assert {entry["exp_avg"].dtype for entry in b.state.values()} == {torch.float32}
    c = pickle.loads(pickle.dumps(b))
    copied = dict(zip(c.param_groups[0]["param_names"], c.param_groups[0]["params"], strict=True))
    for optimizer, params in ((a, named), (b, other), (c, copied)):
        train(optimizer, params, 2, 2)
    assert_same(named, other)
    assert_same(named, copied)
    assert c.load_state_dict(a.state_dict()) == NOTHING


def test_what_is_loaded_is_nobody_elses():
    named, optimizer = saved_after()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    saved = optimizer.state_dict()
    other = twin(named, named)
    fresh = grouped(other, (BODY, {}), (HEAD, {}))
    fresh.load_state_dict(saved)
    fresh.param_groups[0]["lr"].fill_(9)
    assert saved["param_groups"][0]["lr"] == fresh.param_groups[1]["lr"] == torch.tensor(0.1)
    kept = copy.deepcopy(saved["state"])
    train(fresh, other, 2, 2)
    same_state(kept.values(), saved["state"].values())


def test_hooks_see_the_dict_and_run_once():
    named, optimizer = saved_after()
    renamed = {f"module.{name}": p for name, p in twin(named, named).items()}
    fresh, calls = adamw(renamed), []

    def rename(_, saved):
        groups = [
            {**g, "param_names": [f"module.{n}" for n in g["param_names"]]} for g in saved["param_groups"]
        ]
        return {**saved, "param_groups": groups}

    fresh.register_load_state_dict_pre_hook(rename)
    fresh.register_load_state_dict_post_hook(calls.append)
    assert fresh.load_state_dict(optimizer.state_dict()) == NOTHING
    assert calls == [fresh]
