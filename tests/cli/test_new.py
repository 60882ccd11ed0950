"""`optgen new`, and `make rule` in a copy of the checkout: what they write, refuse and leave to write."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optgen
from optgen import library
from optgen.cli import generated, main, new

CHECKOUT = Path(optgen.__file__).parent.parent
COPIED = ("optgen", "rules", "tests", "benchmarks", "docs")
ORACLE = """
from oracles import Oracle, Setting, each


def heavy_ball(p, lr=1e-2, momentum=0.9):
    m, g = 0.0, (yield)
    while True:
        m = momentum*m + g
        p = p - lr*m
        g = yield p


ORACLES = [
    Oracle(
        "my_rule",
        "recurrence, Polyak's",
        each(heavy_ball),
        [Setting(), Setting({"lr": 0.1, "momentum": 0.5})],
    ),
]
"""
# Of all tests, those that a rule fails which has its text and nothing else.
BY_RULE = (
    "my_rule or test_is_what_the_rules_make or test_the_kernels_of_every_rule or test_every_rule_has or "
    "test_the_gallery_links"
)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command line in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = main.main(list(words))
        return code, *capsys.readouterr()

    return call


# A rule of one's own


def test_the_rule_checks(run):
    assert run("new", "my_rule")[0] == 0
    assert [path.name for path in Path().iterdir()] == ["my_rule.rule"]
    assert run("show", "my_rule.rule", "--plan")[0] == 0
    code, out, _ = run("check", "my_rule.rule", "--backend", "cpu", "--dtype", "fp32", "--steps", "3")
    assert code == 0
    assert "bit-exact" in out


def test_the_rule_trains(run):
    run("new", "my_rule")
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    opt = optgen.optimizer("my_rule.rule")([p], lr=0.03, backend="numpy")
    for _ in range(400):
        opt.zero_grad()
        (p**2).sum().backward()
        opt.step()
    assert (p**2).sum() < 1e-3


def test_the_text_has_the_form_of_shipped_rules(run):
    run("new", "my_rule")
    text = Path("my_rule.rule").read_text(encoding="utf-8")
    assert re.match(r'"""MyRule: [^.]+\.  Authors, venue year, arXiv:\d{4}\.\d{5}\.\n', text)
    starts = [line.partition("(")[0] for line in text.splitlines()]
    assert [word for word in starts if word in ("hyper", "require", "state", "keys")] == [
        "hyper", "require", "state", "keys",
    ]  # fmt: skip
    assert library.rule("my_rule.rule").kind == "rule"


def test_what_comes_next_is_so(run):
    """Each command that is printed ends well, and the Python that is printed makes an optimizer."""
    _, out, _ = run("new", "my_rule")
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == "wrote my_rule.rule: MyRule, the heavy ball to start from"
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("optgen ")]
    assert [words[0] for words in commands] == ["show", "check"]
    assert all(words[0] in main.COMMANDS and words[1] == "my_rule.rule" for words in commands)
    assert run(*commands[0])[0] == 0
    python = "\n".join(line for line in lines if " = " in line)
    names = {"optgen": optgen, "model": torch.nn.Linear(2, 1)}
    exec(python, names)
    assert type(names["opt"]).__name__ == "MyRule"


def test_nothing_is_overwritten(run):
    Path("my_rule.rule").write_text("p = p - g\n")
    code, out, err = run("new", "my_rule")
    assert (code, out) == (2, "")
    assert err == (
        "'my_rule.rule' exists, and is not overwritten\n = help: choose another name, or remove it first\n"
    )
    assert Path("my_rule.rule").read_text() == "p = p - g\n"


LETTERS = "write at most 100 letters, digits and _, and no word of Python, for example"


@pytest.mark.parametrize(
    ("name", "message", "help"),
    [
        ("3x", "'3x' cannot name a rule", f"{LETTERS} my_rule"),
        ("", "'' cannot name a rule", f"{LETTERS} my_rule"),
        ("x" * 101, f"'{'x' * 101}' cannot name a rule", f"{LETTERS} my_rule"),
        ("adamw.rule", "'adamw.rule' cannot name a rule", f"{LETTERS} my_rule"),
        ("my-rule", "'my-rule' cannot name a rule", f"{LETTERS} my_rule"),
        ("rules/own.rule", "'rules/own.rule' cannot name a rule", f"{LETTERS} own"),
        ("lambda", "'lambda' cannot name a rule", f"{LETTERS} my_rule"),
        ("none", "'none' cannot name a rule", f"{LETTERS} my_rule"),  # the class would be None
        ("_", "'_' cannot name a rule", f"{LETTERS} my_rule"),
        (
            "adamw",
            "'adamw' is a shipped rule",
            "choose another name; `optgen show adamw` shows that rule",
        ),
        ("adam_w", "'adam_w' would be the class AdamW, as 'adamw' is, a shipped rule", "choose another name"),
        (
            "optimizer",
            "'optimizer' would be the class Optimizer, and optgen has that name",
            "choose another name",
        ),
    ],
)
def test_refused_names(run, name, message, help):
    code, out, err = run("new", name)
    assert (code, out) == (2, "")
    assert err == f"{message}\n = help: {help}\n"
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["3x", "../x", "adam_w"])
def test_refused_names_of_shipped_rules(run, name, monkeypatch, tmp_path):
    monkeypatch.setattr(generated, "checkout", lambda: tmp_path)
    code, out, _ = run("new", name, "--shipped")
    assert (code, out) == (2, "")
    assert not list(Path().iterdir())


def test_shipped_names_are_refused():
    for name in library.names():
        with pytest.raises(optgen.RuleError, match="is a shipped rule"):
            new.check_name(name)


def test_shipped_is_for_a_checkout(run, monkeypatch, tmp_path):
    monkeypatch.setattr(library, "folder", lambda: tmp_path / "optgen" / "rules")
    code, out, err = run("new", "my_rule", "--shipped")
    assert (code, out) == (2, "")
    assert err == (
        "--shipped is for a checkout of optgen, and this is none\n"
        " = help: without --shipped the rule is written into this folder\n"
    )


def test_records_of_another_triton_stay(monkeypatch):
    monkeypatch.setattr(generated, "version", lambda package: "1.0")
    monkeypatch.setattr(generated, "_run", lambda *words: pytest.fail("the other records would be lost"))
    assert generated._records("adamw", CHECKOUT).startswith("missing: its records in ")


# A shipped rule, in a copy of the checkout


class Copy:
    """A copy of the checkout, in which this Python stands in for that of .venv."""

    def __init__(self, root):
        self.root = root
        for name in COPIED:
            shutil.copytree(CHECKOUT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for name in ("Makefile", "pyproject.toml", "README.md", "mkdocs.yml", "constraints.txt"):
            shutil.copy2(CHECKOUT / name, root / name)
        (root / ".venv").mkdir()
        (root / ".venv" / "installed").touch()

    def run(self, *words, **environment):
        given = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "MAKEFLAGS")}
        given |= {"PYTHONPATH": str(self.root), "PYTHONUTF8": "1", **environment}
        return subprocess.run(words, cwd=self.root, env=given, capture_output=True, encoding="utf-8")

    def python(self, *words):
        """Run Python with the optgen of the copy."""
        return self.run(sys.executable, *words)

    def make_rule(self, *names, **environment):
        """Run `make rule`."""
        # The suite itself may run below make, which would then say what folder it enters.
        quiet = "--no-print-directory"
        return self.run("make", quiet, "rule", *names, f"BIN={Path(sys.executable).parent}", **environment)

    def again(self):
        """What `make rule NAME=my_rule` says, line by line."""
        done = self.make_rule("NAME=my_rule")
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if "-m optgen new" not in line]

    def text(self, path):
        return (self.root / path).read_text(encoding="utf-8")

    def files(self):
        """The bytes of every file, but for what Python and caches leave there."""
        parts = {p: p.relative_to(self.root).parts for p in self.root.rglob("*") if p.is_file()}
        kept = {
            p: names
            for p, names in parts.items()
            if not any(n[0] == "." or n == "__pycache__" for n in names)
        }
        return {"/".join(names): path.read_bytes() for path, names in kept.items()}

    def add_oracle(self):
        """Write an oracle, and let the command that is printed then write its row of the table."""
        (min(self.root.glob("tests/**/oracles")) / "own.py").write_text(ORACLE)
        (line,) = (line for line in self.again() if line.startswith("missing"))
        command = shlex.split(line.partition("which this writes: ")[2])
        assert command[0] == "pytest"
        done = self.python("-m", *command)
        assert done.returncode == 0, done.stdout


STUB, LATEX, RECORDS = "optgen/__init__.pyi", "tests/golden/latex/my_rule.txt", str(generated.RECORDS)


@pytest.fixture
def copy(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    return Copy(tmp_path)


def test_make_rule(copy):
    """What it writes, what it says is missing, and what it does after a change of the rule."""
    before, said = copy.files(), copy.again()
    after = copy.files()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"rules/my_rule.rule", STUB, LATEX, RECORDS}
    assert set(before) <= set(after)
    assert "class MyRule(Optimizer):" in copy.text(STUB)
    assert copy.text(STUB) == copy.python("-m", "optgen", "stubs").stdout
    assert copy.text(LATEX) == copy.python("-m", "optgen", "show", "my_rule", "--latex").stdout
    there, now = (json.loads(found[RECORDS])["records"] for found in (before, after))
    assert [r for r in now if r["rule"] != "my_rule"] == there
    assert sum(r["rule"] == "my_rule" for r in now) == 4
    wrote, *others, oracle, row, following = said
    assert wrote == "wrote rules/my_rule.rule: MyRule, the heavy ball to start from"
    assert others == [f"wrote {name}" for name in (STUB, LATEX, RECORDS)]
    assert re.fullmatch(r"missing: an oracle, Oracle\('my_rule', …\) among .* tests/\S*oracles/", oracle)
    assert row.startswith("missing: its row of rules/ORACLES.md")
    assert following.startswith(
        "next: write the rule in rules/my_rule.rule, and `make rule NAME=my_rule` again"
    )

    text, formula = copy.text("rules/my_rule.rule"), copy.text(LATEX)
    changed_text = text.replace("p - lr*m", "p - lr*(g + momentum*m)")
    (copy.root / "rules" / "my_rule.rule").write_text(changed_text)
    stays, stub, latex, *_ = copy.again()
    assert stays == "rules/my_rule.rule stays as it is"
    assert (stub, latex) == (f"wrote {STUB}", f"wrote {LATEX}")
    assert copy.text("rules/my_rule.rule") == changed_text
    assert copy.text(LATEX) != formula
    assert copy.again()[1:3] == [f"{STUB} is as it should be", f"{LATEX} is as it should be"]


def test_with_an_oracle_nothing_is_missing(copy):
    copy.again()
    copy.add_oracle()
    assert "| `my_rule` | recurrence, Polyak's | – |" in copy.text("rules/ORACLES.md")
    assert not any(line.startswith("missing") for line in copy.again())


@pytest.mark.full
def test_then_every_test_passes(copy):
    """All tests that fail for a rule which has its text and nothing else."""
    copy.again()
    copy.add_oracle()
    words = ["-m", "pytest", "-q", "-n", "2", "-m", "not full and not gpu", "-k", BY_RULE, "tests"]
    done = copy.python(*words, "--ignore=tests/integration", "--ignore=tests/interpreter")
    assert done.returncode == 0, done.stdout[-4000:]


def test_make_rule_needs_a_name(copy):
    """From the command line, whatever the environment has."""
    done = copy.make_rule(NAME="host")
    assert done.returncode
    assert done.stderr.startswith("Name the rule: make rule NAME=my_rule\n")
    assert not (copy.root / "rules" / "host.rule").exists()


def test_a_mistake_in_the_rule_is_shown_with_its_place(copy):
    (copy.root / "rules" / "wrong.rule").write_text("p = p - lr*g\n")
    done = copy.python("-m", "optgen", "new", "wrong", "--shipped")
    assert done.returncode == 2
    assert done.stderr.startswith("unknown name 'lr'\n --> rules/wrong.rule:1:9")
