"""Parameters that several processes hold together: DTensor, FSDP2, DDP, ZeRO and distributed checkpoints.

The processes are real, over gloo. What divided tensors end at is compared with what one process computes.
"""

import numpy as np
import pytest
import torch

import distributed as do
from optgen import library
from optgen.backends.triton.kernels import interpreting
from processes import Processes

pytestmark = pytest.mark.skipif(interpreting(), reason="runs other back ends")

REDUCING = ["lamb", "adafactor", "came", "sm3", "clipped", "clipped-each", "units", "centred", "prodigy"]
ELEMENTWISE = ["adamw", "sgd", "rprop", "adam_mini"]
TOLERANCE = 2e-6  # of sums that are added up in another order


@pytest.fixture(scope="module")
def two():
    found = Processes(2)
    yield found
    found.close()


@pytest.fixture(scope="module")
def three():
    found = Processes(3)
    yield found
    found.close()


def test_elementwise_rules_are_equal_to_the_bit(two, three):
    names = ["adamw", "sgd", "rprop", "lion", "nadam"]
    for processes in (two, three):
        for backend in ("numpy", "cpu"):
            assert set(processes.run(do.agree, names, (0,), backend).values()) == {0.0}


def test_the_fourth_step_is_a_replay(two):
    names = ["adamw", "nadam", "sgld", *REDUCING]
    found = two.run(do.replays, names, (0,))
    assert {name: count for name, (count, _) in found.items()} == dict.fromkeys(names, 3)
    assert max(far for _, far in found.values()) < TOLERANCE


@pytest.mark.parametrize("divided", [(0,), (1,)], ids=["rows", "columns"])
def test_trap_10_reductions_are_completed_over_all_parts(two, three, divided):
    for processes in (two, three):
        for backend in ("numpy", "cpu"):
            found = processes.run(do.agree, REDUCING, divided, backend)
            assert max(found.values()) < TOLERANCE, found


def test_every_rule_runs_on_distributed_tensors(three):
    names = library.names()
    found = three.run(do.agree, names, (0,), "numpy", 2)
    assert found.keys() == set(names)
    assert {n: x for n, x in found.items() if not x < TOLERANCE} == {}


@pytest.mark.full
@pytest.mark.parametrize("divided", [(0,), (1,), (2,)])
def test_every_rule_however_its_tensors_are_divided(two, divided):
    found = two.run(do.agree, library.names(), divided, "numpy", 3)
    assert {n: x for n, x in found.items() if not x < TOLERANCE} == {}


def test_meshes_of_two_dimensions():
    four = Processes(4)
    try:
        for divided in ((-1, 0), (0, 1), (1, 0)):
            found = four.run(do.agree, ["adamw", "lamb", "adafactor", "clipped"], divided, "numpy", 2, (2, 2))
            assert found["adamw"] == 0
            assert max(found.values()) < TOLERANCE, (divided, found)
        for divided in ((0, 1), (1, 0), (-1, 1)):
            assert four.run(do.noise, divided, (2, 2)) == 0
    finally:
        four.close()


@pytest.mark.parametrize("name", ["adamw", "lamb", "clipped"])
def test_trap_09_uneven_and_empty_parts_train_like_one_process(two, three, name):
    for processes in (two, three):
        found = processes.run(do.fsdp_agrees, [name], "cpu")
        assert found[name] < TOLERANCE


@pytest.mark.parametrize("name", ["adafactor", "rprop"])
def test_trap_27_rules_of_torch_that_fail_on_distributed_tensors(two, three, name):
    for processes in (two, three):
        found = processes.run(do.fsdp_agrees, [name], "cpu")
        assert found[name] < TOLERANCE


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("adamw", 0), ("sgd", 0), ("rprop", 0), ("lamb", 1), ("clipped", 1), ("clipped-each", 1), ("units", 0)],
)
def test_one_collective_a_phase_whatever_the_number_of_tensors(two, name, wanted):
    assert [two.run(do.collectives, name, count) for count in (1, 40)] == [wanted, wanted]


def test_factored_rules_need_as_many_collectives_for_one_tensor_as_for_forty(two):
    for name in ("adafactor", "came", "sm3"):
        one, forty = (two.run(do.collectives, name, count) for count in (1, 40))
        assert 1 <= one == forty <= 6


@pytest.mark.parametrize("divided", [(0,), (1,), (2,)])
def test_random_numbers_do_not_depend_on_the_sharding(two, three, divided):
    assert two.run(do.noise, divided) == three.run(do.noise, divided) == 0.0


def test_values_that_all_hold_whole_stay_equal(three):
    three.run(do.replicas, REDUCING)


def test_nan_and_infinity_reach_every_process(two):
    for name in ("lamb", "sm3", "adafactor", "clipped"):
        two.run(do.not_finite, name)


def test_distributed_checkpoints_resume_on_other_numbers_of_processes(two, three, tmp_path):
    exact = ["adamw", "sgd", "rprop", "schedulefree_adamw"]
    close = ["adafactor", "lamb", "prodigy", "clipped"]
    ended = two.run(do.save, exact + close, str(tmp_path))
    one = Processes(1)
    try:
        resumed = [p.run(do.resume, exact + close, str(tmp_path)) for p in (one, three)]
    finally:
        one.close()
    for found in resumed:
        for name in exact:
            assert all(map(np.array_equal, found[name], ended[name])), name
        for name in close:
            for a, b in zip(found[name], ended[name], strict=True):
                assert do.deviation(torch.tensor(a), torch.tensor(b)) < TOLERANCE, name


def test_trap_04_to_create_state_for_a_checkpoint_is_no_step(two, tmp_path):
    """`resume` asserts that every count is 0 then, and 3 after the checkpoint was loaded."""
    two.run(do.save, ["adamw", "lion"], str(tmp_path))
    two.run(do.resume, ["adamw", "lion"], str(tmp_path))


def test_trap_24_to_create_state_for_a_checkpoint_moves_nothing(two, tmp_path):
    """`resume` asserts it, of rules too whose step is not scaled by lr, which the checkpoint sets to 0."""
    names = ["unscaled", "prodigy", "sgdw"]
    two.run(do.save, names, str(tmp_path))
    two.run(do.resume, names, str(tmp_path))


def test_the_optimizer_alone_is_saved_and_loaded(two):
    for name in ("adamw", "adafactor"):
        two.run(do.optimizer_alone, name)


def test_state_of_whole_tensors_and_of_divided_ones_interchange(three):
    assert three.run(do.plain_into_distributed, "adamw") == 0
    assert three.run(do.plain_into_distributed, "adafactor") < TOLERANCE


def test_zero_redundancy_optimizer(two):
    for name in ("adamw", "lamb", "adafactor"):
        assert two.run(do.zero_redundancy, name) == 0


def test_ddp(two):
    for name in ("adamw", "lamb"):
        assert two.run(do.data_parallel, name) < TOLERANCE


def test_a_step_bumps_the_version_of_a_distributed_parameter(two):
    assert "modified by an inplace operation" in two.run(do.versions)


def test_what_cannot_be_done_is_said(two):
    partial, plain, blocks = two.run(do.errors)
    assert "is a sum over processes: redistribute it" in partial
    assert "is distributed, but its gradient or input is plain" in plain
    assert "cannot be distributed: parts cut it" in blocks
