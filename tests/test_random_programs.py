"""Random rules through every pass, every plan and the back ends that run here; see `strategies`.

Passes and the reference are compared to the bit. Numba's kernels too, in every store: sums are compared
with the reference's, within an error in proportion to the size of their terms, and then given to it.
"""

import numpy as np
import pytest
from buckets import Bucket, element_states, raw, same, scalars, settings, step_leaf, truths
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from strategies import array, cases

from optgen import passes
from optgen.codecs import CODECS
from optgen.ir import DType, Extent, Op
from optgen.plan import plan
from optgen.semantics import evaluate

REAL = {"fp32": np.float32, "fp64": np.float64}
ANY = cases(reductions=True, tensor_states=True)


def examples(count, phases=tuple(Phase)):
    """Settings that give the same examples in every run."""
    return hypothesis(
        max_examples=count,
        phases=phases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def compiled(count):
    """The same without shrinking, which would compile for minutes."""
    return examples(count, (Phase.explicit, Phase.generate))


def stores_of(program, seed, wild, dtype, numel=9):
    names = ["p", "g", *element_states(program)]
    return {s: array(seed + i, numel, wild, dtype) for i, s in enumerate(names)}


def tensor_values(program, seed):
    random = np.random.default_rng(seed)
    return {s: random.random() for s, state in program.states.items() if state.extent is not Extent.ELEMENT}


def run(program, case, stores, numbers, real):
    """What a program assigns, node by node, without a plan."""
    numel = stores["p"].size
    host = {s: np.float64(x) for s, x in numbers.items()}
    step = step_leaf(case.options, case.t, numel, host)
    values = evaluate(program.scalars, step)
    known = [values[n] for n in program.scalars]

    def leaf(n):
        if n.op is Op.SCALAR:
            return np.bool_(known[int(n.value)]) if n.dtype is DType.BOOL else known[int(n.value)]
        if n.op is not Op.LOAD or n.extent is Extent.STEP:
            return step(n)
        return real(numbers[n.value]) if n.extent is Extent.TENSOR else stores[n.value].copy()

    values = evaluate(program.assigns.values(), leaf, real)
    return {k: np.asarray(values[n]) for k, n in program.assigns.items()}


@examples(200)
@given(ANY, st.integers(0, 9999), st.booleans(), st.sampled_from(list(REAL)))
def test_every_pass_keeps_every_value(case, seed, wild, real):
    real = REAL[real]
    held = truths(case.program, case.options)
    program = passes.specialise(passes.recur(case.program), held)
    stores = stores_of(program, seed, wild, real)
    numbers = tensor_values(program, seed)
    before = run(program, case, stores, numbers, real)
    for change in passes.PASSES:
        program = change(program)
        after = run(program, case, stores, numbers, real)
        for name in before:
            same(real(after[name]), real(before[name]), f"{name} after {change.__name__}")


@examples(200)
@given(ANY, st.integers(0, 9999), st.booleans())
def test_recur_and_specialise_keep_every_value(case, seed, wild):
    """In float64, where the host's precision is the device's."""
    held = truths(case.program, case.options)
    stores = stores_of(case.program, seed, wild, np.float64)
    numbers = tensor_values(case.program, seed)
    decided = passes.specialise(case.program, held)
    moved = passes.specialise(passes.recur(case.program), held)
    before, after = (run(p, case, stores, numbers, np.float64) for p in (decided, moved))
    assert before.keys() == after.keys()
    for name in before:
        same(np.float64(after[name]), np.float64(before[name]), name)


def bucket(case, seed, wild, codecs, sizes=(9,)):
    """A case as one bucket; `codecs` are those of p, g and every state."""
    program = passes.lower(case.program, truths(case.program, case.options))
    names = ["p", "g", *element_states(program)]
    made = plan(program, dict(zip(names, [*codecs, *[codecs[-1]] * len(names)], strict=False)))
    tensors, rows, states = [], [], []
    for i, numel in enumerate(sizes):
        stores = stores_of(program, seed + 100 * i, wild, np.float64, numel)
        tensors.append({s: raw(made.codecs[s], x) for s, x in stores.items()})
        numbers = tensor_values(program, seed + i)
        host = {s: np.float64(x) for s, x in numbers.items()}
        rows.append(scalars(made, case.options, t=case.t, numel=numel, host=host))
        states.append({s: numbers[s] for s in made.tensor_states})
    return program, Bucket(made, tensors, rows, states)


CODEC_LISTS = st.sampled_from(
    [("fp32",), ("fp64",), ("bf16",), ("fp16",), ("bf16", "bf16", "fp32"), ("fp32", "fp32", "bf16"),
     ("fp32", "bf16", "fp64"), ("fp16", "fp32", "bf16", "fp32")]
)  # fmt: skip


@examples(200)
@given(ANY, st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_plan_keeps_every_value(case, seed, wild, codecs):
    """Phases, spills and storage: the plan's results are those of the program, rounded once."""
    program, one = bucket(case, seed, wild, codecs)
    real = REAL[one.plan.real]
    (stores,) = one.tensors
    decoded = {}
    for s, bits in stores.items():
        decode = CODECS[one.plan.codecs[s]].load(s)
        wide = bits.astype(np.uint32) if bits.dtype == np.uint16 else bits
        decoded[s] = evaluate([decode], lambda n, wide=wide: wide, real)[decode]
    numbers = tensor_values(program, seed)
    right = run(program, case, decoded, numbers, real)
    (mine,), (states,) = one.reference()
    for name, value in right.items():
        if name in stores:
            with np.errstate(all="ignore"):
                value = np.broadcast_to(value.astype(real), stores[name].shape)
                exact = value.astype(np.float32) if one.plan.codecs[name] != "fp64" else value
            same(mine[name], raw(one.plan.codecs[name], exact), name, one.plan.codecs[name])
        elif name in one.plan.tensor_states:
            with np.errstate(all="ignore"):
                same(states[name], value.astype(real), name)


def check_cpu(case, seed, wild, codecs):
    _, several = bucket(case, seed, wild, codecs, sizes=(1, 37, 16384 * 2 + 5))
    several.check("cpu")


@compiled(30)
@given(ANY, st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_cpu_agrees(case, seed, wild, codecs):
    check_cpu(case, seed, wild, codecs)


@pytest.mark.full
@compiled(200)
@given(ANY, st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_cpu_agrees_on_many(case, seed, wild, codecs):
    check_cpu(case, seed, wild, codecs)
