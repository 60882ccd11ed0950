"""Triton's source compiled for GPUs that are not here: registers, spills, and the width of every access."""

import re

import pytest
from test_kernels import COMMON, DEVICE_STATE, MIXED, RULES, variants

from buckets import planned
from optgen import library
from optgen.backends import cache
from optgen.backends.layout import Layout
from optgen.backends.triton import step_scalars
from optgen.backends.triton.ahead_of_time import compile_ahead, gpu_target
from optgen.backends.triton.kernels import interpreting
from optgen.passes.expand import spelled_out
from sliced import FACTORED

pytestmark = pytest.mark.skipif(interpreting(), reason="one process cannot both compile and interpret")
WIDE = ("adam_atan2", "adan", "adapnm")  # five states and more, or a long expansion
TARGETS = ("sm_80", "sm_90", "gfx942")
OTHERS = [name for name in library.names() if name not in RULES]
EACH = [rule if rule in COMMON else pytest.param(rule, marks=pytest.mark.full) for rule in RULES]


def reports(rule, codecs, target, math_mode="exact", **options):
    made = planned(rule, *codecs, **options)
    module = cache.load(cache.emit(made, "triton", math_mode), made.name, "triton")
    return made, compile_ahead(Layout(made), module, target, math_mode)


def check(rule, codecs, target, math_mode="exact", **options):
    """Nothing spilled; each phase moves what the plan says; all of it in the widest accesses."""
    made, found = reports(rule, codecs, target, math_mode, **options)
    sweeps = [r for r in found if r.kernel.startswith("sweep")]
    assert [r.kernel for r in sweeps] == [f"sweep{k}" for k in range(len(made.sweeps))]
    for r in found:
        assert r.spilled == 0, r
        limit = (80 if rule in WIDE else 64) if len(made.sweeps) == 1 else 128
        assert 0 < r.registers <= limit, r
    for r, phase in zip(sweeps, made.sweeps, strict=True):
        assert r.planned == phase.bytes
        assert r.found == r.planned, r
        # A thread has four elements: 128 bits of float32, 64 of bfloat16, twice 128 of float64.
        widths = {128 if made.codecs.get(s, "fp32") in ("fp32", "fp64") else 64 for s in phase.loads}
        assert set(r.loads) == widths, r
        assert set(r.stores) <= {64, 128}, r


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("codecs", [("fp32",), MIXED], ids=",".join)
@pytest.mark.parametrize("rule", EACH)
def test_rules_compile_to_wide_accesses(rule, codecs, target):
    check(rule, codecs, target)


SLICED = [n if n in ("came", "sm3") else pytest.param(n, marks=pytest.mark.full) for n in FACTORED]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("ndim", [2, 4])
@pytest.mark.parametrize("name", SLICED)
def test_rules_with_slices_compile(name, ndim, target):
    """Nothing spilled, in sweeps and in what sums and stores the slices; sweeps move what the plan says."""
    made = planned(library.rule(FACTORED[name]), ndim=ndim)
    module = cache.load(cache.emit(made, "triton"), made.name, "triton")
    found = compile_ahead(Layout(made), module, target)
    assert [(r.kernel, r.spilled) for r in found if r.spilled] == []
    sweeps = [r for r in found if r.kernel.startswith("sweep")]
    assert [r.planned for r in sweeps] == [r.found for r in sweeps] == [phase.bytes for phase in made.sweeps]


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("codecs", [("fp32",), MIXED], ids=",".join)
@pytest.mark.parametrize("rule", OTHERS)
def test_all_other_rules_compile(rule, codecs, target):
    """Rules with slices, totals, noise, inputs or expansions, and transforms beside a rule."""
    made, found = reports(library.runnable([library.rule(rule)])[0], codecs, target)
    assert all(r.spilled == 0 for r in found)
    sweeps = [r for r in found if r.planned is not None]
    assert [r.found for r in sweeps] == [phase.bytes for phase in made.sweeps]


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rule", "options"), [(n, o) for n in RULES for o in variants(n) if o], ids=str)
def test_rules_compile_under_every_option(rule, options, target):
    check(rule, ("fp32",), target, **options)


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("codecs", [("fp16",), ("bf16",)], ids=",".join)
@pytest.mark.parametrize("rule", COMMON)
def test_rules_compile_for_other_storage(rule, codecs, target):
    check(rule, codecs, target)


@pytest.mark.parametrize("target", TARGETS)
def test_spills_and_device_state_compile(target):
    check(DEVICE_STATE, ("fp32",), target)
    check("state(m=0, v=0, w=0)\nx = p*g + m*v + w\np = p - x/norm(x)", ("fp32",), target)
    check(library.chain("clip_norm", "adamw", "cautious"), MIXED, target)


@pytest.mark.parametrize("target", TARGETS)
def test_float64_compiles(target):
    made, found = reports("lamb", ("fp64",), target)
    assert all(r.spilled == 0 for r in found)
    assert [r.found for r in found if r.planned is not None] == [phase.bytes for phase in made.sweeps]


@pytest.mark.parametrize(
    "rule", ["tanh(p)", "atan2(p, g)", "abs(p)**0.3", "exp(p) + log(g)", "floor(p) + round(g)"]
)
@pytest.mark.parametrize("target", TARGETS)
def test_functions_compile(rule, target):
    for codec in ("fp32", "fp64"):
        _, found = reports(f"p = {rule}", (codec,), target)
        assert all(r.spilled == 0 for r in found)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dims", [1, 3])
def test_strides_compile(dims, target):
    made = planned("lamb")
    module = cache.load(cache.emit(made, "triton", dims=dims), made.name, "triton")
    for r in compile_ahead(Layout(made, dims), module, target):
        assert r.spilled == 0


def instructions(rule, math_mode, target="sm_90"):
    """The PTX of a rule's first phase."""
    import triton
    from triton.compiler import ASTSource

    from optgen.backends.triton.ahead_of_time import gpu_target
    from optgen.backends.triton.printer import BLOCK, BLOCKS, THREADS

    made = planned(rule)
    module = cache.load(cache.emit(made, "triton", math_mode), made.name, "triton")
    tables = {
        "tensors": "*i64",
        "chunks": "*i64",
        "scalars": "*fp32",
        "partials": "*fp64",
        "slots": "*fp64",
        "moving": "*i64",
    }
    source = ASTSource(
        module.sweep0,
        signature={**tables, "BLOCK": "constexpr", "BLOCKS": "constexpr"},
        constexprs={"BLOCK": BLOCK, "BLOCKS": BLOCKS},
    )
    options = {"num_warps": THREADS // 32, "enable_fp_fusion": math_mode == "fast"}
    return triton.compile(source, target=gpu_target(target), options=options).asm["ptx"]


def test_exact_code_is_ieee():
    """Nothing is contracted, and every division and root is rounded as IEEE says."""
    text = instructions("adamw", "exact")
    assert not re.search(r"\bfma\.", text)
    assert set(re.findall(r"\b((?:div|sqrt)\.\S+)", text)) == {"div.rn.f32", "sqrt.rn.f32"}
    assert "ftz" not in text
    fast = instructions("adamw", "fast")
    assert re.search(r"\bfma\.rn\.f32", fast)
    assert "div.full.f32" in fast


def test_unknown_target():
    made = planned("sgd")
    module = cache.load(cache.emit(made, "triton"), made.name, "triton")
    with pytest.raises(ValueError, match="unknown target 'sm90'"):
        compile_ahead(Layout(made), module, "sm90")


def test_cannot_compile_while_interpreting(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        compile_ahead(Layout(planned("sgd")), None, "sm_90")


KINDS = ("*fp64", "*i64", "*i64", "*fp64", "*i64", "*fp32")
PER_STEP = (
    "hyper(lr=0.1, power=-0.8)\np = p - lr*cos(t/9)*t**power*tanh(t/7)*(1 if t % 3 == 0 else atan2(t, 2))*g"
)
STEPPED = [PER_STEP, "nadam", *(pytest.param(n, marks=pytest.mark.full) for n in library.names())]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("rule", STEPPED, ids=lambda rule: rule[:5])
def test_values_per_step_compile(rule, target):
    """What the device computes in place of the host: `capturable=True`, and a gradient scaler on a GPU."""
    import triton
    import triton.language as tl
    from triton.compiler import ASTSource

    made = planned(library.runnable([library.rule(rule)])[0])
    roots = [*made.scalars, *made.onces]
    source = step_scalars.emit(step_scalars.Values(tuple(spelled_out(roots)), {}), "tl.float32")
    kernel = cache.load(source, "prologue", "triton").prologue
    tables = dict(zip(("values", "counters", "states", "stop", "rows", "out"), KINDS, strict=True))
    constants = {"BLOCK": step_scalars.BLOCK, "COUNTER": tl.float32}
    ast = ASTSource(kernel, signature=tables | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    options = {"enable_fp_fusion": False}
    built = triton.compile(ast, target=gpu_target(target), options=options)
    assert built.asm["ptx" if target == "sm_90" else "amdgcn"].count("prologue")
