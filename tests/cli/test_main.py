"""The command line: what each command prints, and what a mistake says."""

import io
import json
import os
import subprocess
import sys

import pytest

from optgen import __version__, library
from optgen.backends import cache
from optgen.cli import main
from optgen.compiler import planned

MINE = '''\
"""Mine: momentum with a bounded step."""
hyper(lr=1e-2, beta=0.9, bounded=True)
require(lr >= 0, 0 <= beta < 1)
state(m=0)
m = beta*m + (1 - beta)*g
if bounded:
    m = clip(m, -1, 1)
p = p - lr*m
'''


@pytest.fixture
def optgen(capsys):
    """Run the command line in this process: exit code, output, errors."""

    def run(*words):
        try:
            code = main.main(list(words))
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.rule"
    path.write_text(MINE)
    return str(path)


def shell(command, **environment):
    """Run a shell command in which `optgen` is this Python's."""
    line = f'optgen() {{ "{sys.executable}" -m optgen "$@"; }}; {command}'
    given = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=given, timeout=120)


# The program itself


def test_version(optgen):
    assert optgen("--version") == (0, f"optgen {__version__}\n", "")


def test_no_command_shows_the_commands(optgen):
    code, out, _ = optgen()
    assert code == 2
    for command in main.COMMANDS:
        assert f"\n    {command} " in out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["lst"], "did you mean 'optgen list'?"),
        (["chekc", "adamw"], "did you mean 'optgen check adamw'?"),
        (["adamw"], "it is a rule: optgen show adamw"),
        (["frobnicate"], "the commands are list, new, show, emit, check, compile, stubs, demo"),
    ],
)
def test_an_unknown_command_gets_a_hint(optgen, words, hint):
    code, out, err = optgen(*words)
    assert (code, out) == (2, "")
    assert err == f"optgen: there is no command '{words[0]}'\n = help: {hint}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["show"], "the following arguments are required: RULE"),
        (["emit", "lion", "--backend", "cuda"], "invalid choice: 'cuda'"),
        (["check", "lion", "--steps", "0"], "'0' is not a positive whole number"),
        (["compile", "lion", "--target", "h100"], "'h100' is no target: write sm_90, gfx942 or the like"),
        (["show", "lion", "--pas"], "unrecognized arguments: --pas"),
    ],
)
def test_wrong_arguments(optgen, words, text):
    code, out, err = optgen(*words)
    assert (code, out) == (2, "")
    assert text in err
    assert err.endswith("--help\n")


def test_help_says_how_a_chain_is_written(optgen):
    code, out, _ = optgen("check", "--help")
    assert code == 0
    assert "Several RULEs are chained in order" in out
    assert "optgen check clip_norm adamw cautious" in out


def test_a_closed_pipe_is_no_error():
    done = shell("optgen list | head -1; echo ${PIPESTATUS[0]}", PYTHONUNBUFFERED="1")
    assert done.stdout.splitlines()[0].startswith("name")
    assert done.stdout.splitlines()[1] in ("0", "141")
    assert done.stderr == ""
    done = shell("optgen emit adamw | (exec <&-; sleep 3); echo ${PIPESTATUS[0]}")
    assert done.stdout == "141\n"
    assert done.stderr == ""


def test_the_list_needs_no_torch():
    script = "import sys; from optgen.cli.main import main; main(['list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_terminal_without_unicode(mine):
    done = shell(f"optgen list && optgen show {mine}", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stderr == ""


# Rules


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("adamx", "there is no rule 'adamx'\n = help: did you mean 'adamax'?\n"),
        ("p=g", "there is no rule 'p=g'\n = help: `optgen list` lists them; a path ends in .rule\n"),
        ("no/such.rule", "cannot read 'no/such.rule': No such file or directory\n"),
    ],
)
def test_no_such_rule(optgen, word, text):
    assert optgen("show", word) == (2, "", text)


def test_a_mistake_in_a_rule_shows_its_place(optgen, tmp_path):
    path = tmp_path / "bad.rule"
    path.write_text("state(m=0)\nm = 0.9*m + g\np = p - 0.1*n\n")
    code, out, err = optgen("check", str(path))
    assert (code, out) == (2, "")
    assert err.splitlines()[:2] == ["unknown name 'n'", f" --> {path}:3:13"]


def test_a_rule_from_standard_input(optgen, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(MINE.encode())))
    code, out, _ = optgen("show", "-")
    assert code == 0
    assert "# <stdin>" in out
    assert MINE in out


def test_a_file_without_a_suffix(optgen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text(MINE)
    (tmp_path / "lion").write_text("not a rule")
    assert optgen("show", "mine")[0] == 0
    assert "evolved sign momentum" in optgen("show", "lion")[1]  # a shipped name comes first
    assert optgen("show", "./lion")[0] == 2


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("lr", "--set lr: write name=value"),
        ("=3", "--set =3: write name=value"),
        ("ls=3", "'lion' has no hyperparameter 'ls'"),
        ("lr=fast", "'lr' is a number, not 'fast'"),
        ("lr=True", "'lr' is a number, not True"),
        ("betas=0.9", "'betas' is a tuple of 2 values, not 0.9"),
        ("betas=(0.9, 'x')", "'betas[1]' is a number, not 'x'"),
        ("maximize=1", "'maximize' is True or False, not 1"),
    ],
)
def test_wrong_settings(optgen, setting, text):
    code, out, err = optgen("show", "lion", "--set", setting)
    assert (code, out) == (2, "")
    assert err.startswith(text)


def test_a_setting_that_the_rule_forbids(optgen):
    code, _, err = optgen("check", "lion", "--set", "lr=-1")
    assert code == 2
    assert err == "lion needs lr >= 0, but lr = -1.0\n"


# list


def test_list(optgen, wide):
    code, out, err = optgen("list")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["name", "class", "phases", "state", "bytes", "source"]
    rows = {line[0]: line for line in lines if line}
    assert rows["lamb"][1:5] == ["per-tensor", "2", "8", "40"]
    assert rows["cautious"][1:5] == ["per-tensor", "+1", "+0", "+12"]
    for name in library.names():
        assert f"\n{name} " in out


def test_list_as_json(optgen):
    code, out, err = optgen("list", "--json")
    assert (code, err) == (0, "")
    records = {r["name"]: r for r in json.loads(out)}
    assert sorted(records) == library.names()
    assert records["adamw"] == {
        "name": "adamw",
        "kind": "rule",
        "class": "element-wise",
        "phases": 1,
        "bytes": 28,
        "state_bytes": 8,
        "source": library.rule("adamw").doc.splitlines()[0],
    }
    assert records["sgd"]["bytes"] == 12
    assert records["clip_value"]["kind"] == "before"
    assert records["clip_value"]["phases"] == records["clip_value"]["bytes"] == 0
    assert records["cautious"]["kind"] == "after"
    assert records["cautious"]["phases"] == 1
    assert all(r["source"] for r in records.values())
    assert {r["class"] for r in records.values()} <= set(library.CLASSES)
    assert records["clip_global_norm"]["class"] == "global"
    assert records["schedulefree_sgd"]["class"] == records["lookahead"]["class"] == "copies"


# show


def test_show(optgen, wide, mine):
    code, out, err = optgen("show", mine)
    assert (code, err) == (0, "")
    assert out.startswith(f"# {mine}\n{MINE}")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "lr 0.01 lr >= 0" in lines
    assert "beta 0.9 0 <= beta < 1" in lines
    assert "bounded True" in lines
    assert "m m element 0" in lines


def test_show_keys_and_extents(optgen, wide):
    lines = [" ".join(line.split()) for line in optgen("show", "nadam")[1].splitlines()]
    assert "m exp_avg element 0" in lines
    assert "mu_product mu_product tensor 1" in lines
    assert "betas (0.9, 0.999) 0 <= betas[0] < 1, 0 <= betas[1] < 1" in lines


def test_show_a_chain(optgen, wide):
    out = optgen("show", "clip_norm", "adamw")[1]
    assert out.index("rules/clip_norm.rule") < out.index("rules/adamw.rule") < out.index("hyperparameters")


def test_views_are_combined(optgen, wide):
    code, out, _ = optgen("show", "lamb", "--passes", "--plan", "--latex")
    assert code == 0
    assert (
        out.index("operations after each pass") < out.index("plan of lamb: 2 phases") < out.index(r"\begin")
    )
    passes = [line.split()[0] for line in out[: out.index("plan of")].splitlines()[3:] if line.strip()]
    assert passes[0] == "written"
    assert passes[-1] == "hoist"
    assert "You et al." not in out


def test_the_plan_follows_storage_and_settings(optgen, wide):
    def plan(*words):
        return optgen("show", *words, "--plan")[1]

    assert "plan of adamw: 1 phase, 28 bytes per element" in plan("adamw")
    assert "36 bytes per element" in plan("adamw", "--set", "amsgrad=True")
    assert "22 bytes per element" in plan("adamw", "--dtype", "bf16")
    assert "p g in bf16, m v in fp32; computed in fp32" in plan("adamw", "--dtype", "bf16")
    assert "14 bytes per element" in plan("adamw", "--dtype", "bf16", "--state-dtype", "bf16")
    assert "one number a tensor, on the host: mu_product" in plan("nadam")
    assert "one number a row: row_var; one number a col: col_var" in plan("adafactor")
    assert "r1 = sum by row" in plan("adafactor")
    assert "one number in all: d, d_max, d_numerator" in plan("prodigy")
    assert "state: 8 bytes per element" in plan("sophia")  # m and h; what a step is handed is none
    assert "r0 = sum, r1 = sum" in plan("lamb")


def test_the_plan_of_a_transform_needs_a_rule(optgen, wide):
    code, out, err = optgen("show", "cautious", "--plan")
    assert code == 0
    assert err == "note: cautious cannot run without a rule: chained with adamw\n"
    assert "plan of adamw_cautious: 2 phases" in out
    assert "chained with sgd" in optgen("show", "clip_norm", "clip_value", "--plan")[2]
    between = optgen("show", "clip_norm", "cautious", "--plan")
    assert "chained with adamw" in between[2]
    assert "plan of clip_norm_adamw_cautious" in between[1]


def test_dimensions_count_where_the_rule_asks(optgen, tmp_path, wide):
    path = tmp_path / "shaped.rule"
    path.write_text("state(m=0)\nif ndim > 1:\n    m = 0.9*m + g\n    g = m\np = p - 0.1*g\n")
    assert "20 bytes per element" in optgen("show", str(path), "--plan")[1]
    assert "12 bytes per element" in optgen("show", str(path), "--plan", "--ndim", "1")[1]


# emit


@pytest.mark.parametrize("backend", ["triton", "cpu", "numpy"])
def test_emit_prints_the_source_and_nothing_else(optgen, backend):
    if backend == "cpu":
        pytest.importorskip("numba")
    code, out, err = optgen("emit", "adamw", "--backend", backend, "--dtype", "bf16")
    assert (code, err) == (0, "")
    assert out == cache.emit(planned(library.rule("adamw"), "bf16"), backend)
    if backend != "numpy":
        compile(out, "emitted", "exec")


def test_emit_takes_settings_and_chains(optgen):
    code, out, err = optgen("emit", "clip_value", "adamw", "--set", "amsgrad=True", "--set", "maximize=True")
    assert (code, err) == (0, "")
    assert "v_max" in out
    assert "max_value" in out
    assert optgen("emit", "adamw", "--math", "fast")[1] != optgen("emit", "adamw")[1]


@pytest.mark.parametrize(
    "words",
    [
        ["show", "--passes", "--plan", "--latex"],
        ["emit", "--backend", "triton"],
        ["emit", "--backend", "numpy"],
        ["check", "--backend", "numpy", "--steps", "1"],
    ],
)
def test_a_rule_outside_the_repository_is_like_any_other(optgen, mine, words):
    assert len(MINE.splitlines()) <= 10
    code, out, err = optgen(*words, mine, "--set", "beta=0.5")
    assert (code, err) == (0, "")
    assert out


# check


def test_check(optgen, wide, mine):
    pytest.importorskip("numba")
    code, out, err = optgen("check", mine, "--backend", "cpu", "--steps", "3")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    rows = [line for line in lines if line[:1] == ["cpu"]]
    assert [row[1:4] for row in rows] == [[d, "bit-exact", "4"] for d in ("fp32", "fp64", "bf16", "fp16")]
    assert "settings, 4 of 4: the defaults; bounded=False; maximize=True; bounded=False, maximize=True" in out
    assert "allowed: no difference" in out


def test_check_as_json(optgen):
    pytest.importorskip("numba")
    words = ["check", "cautious", "--backend", "cpu", "--backend", "numpy", "--dtype", "fp32", "--steps", "2"]
    code, out, err = optgen(*words, "--settings", "1", "--json")
    assert code == 0
    assert "chained with adamw" in err
    answer = json.loads(out)
    assert answer["passed"] is True
    assert answer["rule"] == "adamw_cautious"
    assert answer["settings"] == [{}]
    assert answer["combinations"] == 4
    assert [(row["backend"], row["dtype"]) for row in answer["rows"]] == [("numpy", "fp32"), ("cpu", "fp32")]
    assert answer["rows"][1]["allowed"] == 1e-6
    assert answer["rows"][1]["steps"] == 2


def test_check_fixes_what_is_set(optgen):
    pytest.importorskip("numba")
    words = ["check", "adamw", "--backend", "numpy", "--dtype", "fp32", "--steps", "1", "--json"]
    answer = json.loads(optgen(*words, "--set", "amsgrad=True")[1])
    assert answer["settings"] == [{}, {"maximize": True}]


def test_check_ends_with_1_where_a_back_end_disagrees(optgen, monkeypatch, wide):
    pytest.importorskip("numba")
    emit = cache.emit
    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(cache, "emit", lambda *a: emit(*a).replace("s1*m + s2*g", "s1*m - s2*g"))
    words = ["check", "lion", "--backend", "cpu", "--dtype", "fp32", "--steps", "2", "--settings", "1"]
    code, out, _ = optgen(*words)
    assert code == 1
    assert "disagrees" in out
    assert "cpu fp32 with the defaults, step 1: p of '0-d' is " in out
    code, out, _ = optgen(*words, "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "check takes the rules of one chain, or --all"),
        (["lion", "--all"], "check takes the rules of one chain, or --all"),
        (["--all", "--set", "lr=1"], "--set is for one rule, --all for every one"),
    ],
)
def test_check_takes_rules_or_all(optgen, words, text):
    code, out, err = optgen("check", *words)
    assert (code, out) == (2, "")
    assert text in err


def test_check_all(optgen, monkeypatch, wide):
    pytest.importorskip("numba")
    monkeypatch.setattr("optgen.library.names", lambda: ["adamw", "cautious", "lion"])
    words = ["check", "--all", "--backend", "numpy", "--backend", "cpu", "--dtype", "fp32"]
    words += ["--steps", "2", "--settings", "1"]
    code, out, err = optgen(*words)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows if row[:1] == ["lion"]] == [["lion", "bit-exact"]]
    assert [row[0] for row in rows if row[-2:-1] == ["1"]] == ["adamw", "cautious", "lion"]
    assert "3 of 3 rules agree" in out
    code, out, _ = optgen(*words, "--json")
    answers = json.loads(out)
    assert (code, [a["rule"] for a in answers]) == (0, ["adamw", "cautious", "lion"])
    assert all(a["passed"] for a in answers)


def test_check_all_ends_with_1_where_one_rule_disagrees(optgen, monkeypatch, wide):
    pytest.importorskip("numba")
    emit = cache.emit
    monkeypatch.setattr("optgen.library.names", lambda: ["sgd", "lion"])
    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(cache, "emit", lambda *a: emit(*a).replace("s1*m + s2*g", "s1*m - s2*g"))
    words = ["check", "--all", "--backend", "cpu", "--dtype", "fp32", "--steps", "2", "--settings", "1"]
    code, out, _ = optgen(*words)
    assert code == 1
    assert "1 of 2 rules agree" in out
    assert "lion: cpu fp32 with the defaults, step 1: p of '0-d' is " in out


def test_check_sees_a_broken_triton_kernel():
    pytest.importorskip("triton")
    script = """
import sys
from optgen.backends import cache
from optgen.cli import main
emit = cache.emit
cache.emit = lambda *a: emit(*a).replace("s1*m + s2*g", "s1*m - s2*g")
sys.exit(main.main("check lion --backend triton --dtype fp32 --steps 1 --settings 1".split()))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert "disagrees" in done.stdout


@pytest.mark.parametrize(("backend", "module", "install"), [("cpu", "numba", "optgen[cpu]"), ("triton",) * 3])
def test_check_names_what_is_missing(optgen, monkeypatch, backend, module, install):
    from optgen.backends.registry import Backend

    monkeypatch.setattr(Backend, "available", property(lambda self: self.name != backend))
    code, _, err = optgen("check", "lion", "--backend", backend)
    assert code == 2
    assert err == f"optgen: this needs {module}\n = help: pip install '{install}'\n"


# compile


def needs_compiler():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets in this process")


def test_compile_as_json(optgen, mine):
    needs_compiler()
    code, out, err = optgen("compile", mine, "--json", "--target", "sm_90", "--target", "gfx942")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["passed"] is True
    assert answer["storage"] == {"p": "fp32", "g": "fp32", "m": "fp32"}
    assert [(k["target"], k["kernel"]) for k in answer["kernels"]] == [
        ("sm_90", "sweep0"),
        ("gfx942", "sweep0"),
    ]
    for kernel in answer["kernels"]:
        assert kernel["spilled"] == 0
        assert kernel["loads"] == [128] * 3
        assert kernel["stores"] == [128] * 2
        assert kernel["planned"] == kernel["found"] == 20
        assert 0 < kernel["registers"] <= 128
        assert kernel["seconds"] > 0.01  # compiled, and not read from Triton's cache


@pytest.mark.parametrize(
    "name", ["sgd", *(pytest.param(n, marks=pytest.mark.full) for n in library.names() if n != "sgd")]
)
def test_every_full_block_moves_128_bits_at_once(optgen, name):
    needs_compiler()
    targets = [word for target in ("sm_80", "sm_90", "gfx942") for word in ("--target", target)]
    code, out, _ = optgen("compile", name, "--json", *targets)
    assert code == 0
    for kernel in json.loads(out)["kernels"]:
        assert kernel["spilled"] == 0
        assert set(kernel["loads"]) | set(kernel["stores"]) <= {128}
        assert kernel["found"] == kernel["planned"]


def test_compile_every_phase_in_bf16(optgen, wide):
    needs_compiler()
    code, out, _ = optgen("compile", "lamb", "--dtype", "bf16")
    assert code == 0
    assert "lamb: p g in bf16, m v in fp32, math=exact" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("sm_90")]
    assert [row[1] for row in rows] == ["sweep0", "combine0", "sweep1"]
    assert rows[0][2:4] == ["2×64", "2×128"]
    assert "TRITON_ALWAYS_COMPILE" not in os.environ


def test_compile_ends_with_1_on_spills(optgen, monkeypatch, wide):
    needs_compiler()
    from optgen.backends.triton import ahead_of_time

    spilled = ahead_of_time.Report("sweep0", "sm_90", 255, 16, (128,), (128,), 8, 8.0, 0.1)
    monkeypatch.setattr(ahead_of_time, "compile_ahead", lambda *arguments: [spilled])
    code, out, _ = optgen("compile", "lion")
    assert code == 1
    assert "255" in out


def test_compile_says_what_to_do_about_the_interpreter(optgen, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code, out, err = optgen("compile", "lion")
    assert (code, out) == (2, "")
    assert "env -u TRITON_INTERPRET optgen compile" in err


def test_compile_reports_what_triton_cannot(optgen, monkeypatch):
    needs_compiler()

    def refuse(*arguments):
        raise RuntimeError("PassManager::run failed")

    from optgen.backends.triton import ahead_of_time

    monkeypatch.setattr(ahead_of_time, "compile_ahead", refuse)
    code, _, err = optgen("compile", "lion", "--target", "sm_80")
    assert code == 2
    assert err == "optgen: cannot compile for sm_80: RuntimeError: PassManager::run failed\n"
