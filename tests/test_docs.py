"""The documentation: every rule has a page that says all of it, and its formulas are well-formed.

`make docs` builds the site itself, strictly; what is tested here is what the builder puts on the pages.
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from optgen import library
from optgen.compiler import costs
from optgen.library import CLASSES, class_of, runnable

pytest.importorskip("latex2mathml")
pytest.importorskip("matplotlib")

DOCS = Path(__file__).parent.parent / "docs"
SVG = "{http://www.w3.org/2000/svg}"
DRAWN = ("sgd", "cautious", "adafactor", "schedulefree_adamw")


@pytest.fixture(scope="module")
def docs():
    """The modules that MkDocs imports from docs/."""
    sys.path.insert(0, str(DOCS))
    try:
        import formulas
        import kernels
        import pages
        import trajectories
    finally:
        sys.path.remove(str(DOCS))
    modules = {"formulas": formulas, "kernels": kernels, "pages": pages, "trajectories": trajectories}
    return type("Docs", (), modules)


def section(text, title):
    """What stands below a heading."""
    found = re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {title}"
    return found[1]


def displays(text):
    """The formulas in a text, their names without the namespace."""
    found = re.findall(r"<math xmlns=\S+ (.*?</math>)", text)
    return [ElementTree.fromstring(f"<math {math}") for math in found]


# Pages


@pytest.mark.parametrize("name", library.names())
def test_every_rule_has_a_page(docs, name):
    program = library.rule(name)
    made = docs.pages.page(name)
    assert made.uri == f"rules/{name}.md"
    assert made.kind == class_of(program)
    mathematics = displays(section(made.text, "Mathematics"))
    assert len(mathematics) == 1 + len(program.modes)
    for display in mathematics:
        words = "".join(display.itertext())
        assert "=" in words
        assert not set("\\&") & set(words), "a command that latex2mathml does not know"
    assert program.sources[0].text.rstrip() in section(made.text, "Rule")
    plan = section(made.text, "Plan")
    assert "| 0 | " in plan
    assert re.search(r"\d+ bytes per element with float32 parameters, \d+ with bfloat16", plan)
    assert all(f"| `{h}` | " in section(made.text, "Hyperparameters") for h in program.hypers)
    assert all(f"| `{s}` | " in section(made.text, "State") for s in program.states)
    assert "Checked against " in section(made.text, "Oracle")


def test_a_page_in_words(docs):
    text = docs.pages.page("adamw").text
    assert text.startswith("# AdamW\n\n<p>AdamW: Adam with decoupled weight decay.")
    assert '<a href="https://arxiv.org/abs/1711.05101">arXiv:1711.05101</a>' in text
    assert "| `betas` | `(0.9, 0.999)` | `0 <= betas[0] < 1`, `0 <= betas[1] < 1` |" in text
    assert "| `m` | `exp_avg` | element | `0` |" in text
    assert "| 0 | `p` `g` `m` `v` | `p` `m` `v` | – | 28 | 22 |" in text
    assert "torch.optim.AdamW" in section(text, "Oracle")


def test_the_kernels_of_every_rule_are_listed(docs):
    assert docs.kernels.known() == set(library.names())
    made = docs.kernels.page()
    assert made.uri == "kernels.md"
    for title in docs.kernels.STORAGE.values():
        table = section(made.text, title[0].upper() + title[1:])
        assert len(re.findall(r"^\| \[\w+\]\(rules/\w+\.md\) ", table, re.M)) == len(library.names())
    assert "| [LAMB](rules/lamb.md) | 2 | 40 | 40 | 128 |" in made.text
    assert "| [LAMB](rules/lamb.md) | 2 | 32 | 32 | 64, 128 |" in made.text


def test_a_transform_is_shown_beside_a_rule(docs):
    text = docs.pages.page("clip_norm").text
    assert "a chain with [SGD](/rules/sgd.md)" in section(text, "Plan")
    assert "sum per tensor" in section(text, "Plan")
    assert 'optgen.chain("clip_norm", "sgd")' in text


def test_text_is_no_markup(docs):
    shown = docs.pages.docstring("A: a < b & c*d*e, `eval()`.\n\nCode: openreview.net/forum?id=OM0j, x_y.")
    link = '<a href="https://openreview.net/forum?id=OM0j">openreview.net/forum?id=OM0j</a>'
    assert shown == (f"<p>A: a &lt; b &amp; c*d*e, <code>eval()</code>.</p>\n\n<p>Code: {link}, x_y.</p>")


def test_the_gallery_links_to_every_rule(docs):
    names = library.names()
    text = docs.pages.gallery(names).text
    assert sorted(re.findall(r"\(/rules/(\w+)\.md\) \| `\1`", text)) == names
    headings = [docs.pages.HEADINGS[kind][0] for kind in docs.pages.in_classes(names)]
    assert re.findall(r"^## (.*)$", text, re.M) == headings
    assert (
        "| [LAMB](/rules/lamb.md) | `lamb` | Layer-wise adaptive moments for large batches | 2 | 8 | 40 |"
        in text
    )


@pytest.mark.parametrize(
    "text", re.findall(r"^```rule\n(.*?)^```$", (DOCS / "language.md").read_text("utf-8"), re.M | re.S)
)
def test_the_rules_of_the_language_page_compile(text):
    assert costs(library.rule(text))


# Formulas


def test_a_formula_is_a_table_of_lines(docs):
    (display,) = displays(docs.formulas.step(library.rule("lamb")))
    (table,) = display
    assert table.get("displaystyle") == "true"
    assert [len(row) for row in table] == [2] * 7
    first, last = ("".join(row.itertext()) for row in (table[0], table[-1]))
    assert first == "mt=β1mt−1+(1−β1)gt"
    assert last == "θt=θt−1−ηratiotrt"
    assert [e.text for e in table.iter("mi") if e.text == "ratio"]


@pytest.mark.parametrize(
    ("latex", "words"),
    [
        (r"\operatorname{atan2}\left(a, b\right)", ["atan2", "a", "b"]),
        (r"\operatorname{rms}_{\mathrm{dim(0)}}\left(x\right)", ["rms", "dim(0)", "x"]),
        (r"\mathrm{weight\_decay} \, x", ["weight_decay", "x"]),
    ],
)
def test_words_are_one_identifier(docs, latex, words):
    (display,) = displays(docs.formulas.mathml(f"y &= {latex}"))
    assert [e.text for e in display.iter("mi")] == ["y", *words]


def test_what_is_skipped_is_said(docs):
    (display,) = displays(docs.formulas.step(library.rule("accum_grad")))
    lines = ["".join(row.itertext()) for row in display[0]]
    assert lines[-2:] == ["skipt=tmodn≠0", "t′=⌊t+n−1n⌋"]


# Classes


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("adamw", "element-wise"),
        ("nadam", "element-wise"),
        ("lamb", "per-tensor"),
        ("clip_global_norm", "global"),
        ("schedulefree_sgd", "copies"),
        ("lookahead", "copies"),
        ("state(r=0, per=row)\nr = r + mean(g**2, axis=-1)\np = p - g/r", "slices"),
        ("p = p - g/norm(g, axis=unit)", "slices"),
        ("state(p0=p)\np = p - norm(p - p0, over=all)*g", "global"),
        ("state(d=1, per=all)\nd = d*2\np = p - d*g", "global"),
        ("p = p - norm(g, over=all)*normal()", "noise"),
        ("input(h=0)\np = p - uniform()*g/h", "inputs"),
        ("skip(sum(g) > 0)\n", "per-tensor"),
    ],
)
def test_the_class_of_a_rule(rule, kind):
    assert class_of(library.rule(rule)) == kind
    assert kind in CLASSES


def test_what_a_step_is_handed_is_no_state():
    assert costs(library.rule("input(h)\np = p - g/h")) == {"phases": 1, "bytes": 16, "state_bytes": 0}


# Paths


def drawing_of(docs, name):
    return docs.trajectories.draw(name, runnable([library.rule(name)])[0], docs.pages.learns(name))


@pytest.mark.parametrize(
    "name", [n if n in DRAWN else pytest.param(n, marks=pytest.mark.full) for n in library.names()]
)
def test_paths_are_drawn(docs, name):
    drawing = drawing_of(docs, name)
    root = ElementTree.fromstring(drawing.svg)
    assert root.tag == f"{SVG}svg"
    assert len(drawing.svg) < 60_000
    assert "inf" not in drawing.alt
    assert "nan" not in drawing.alt
    ends = [float(end) for end in re.findall(r" to ([\d.e+-]*\d)(?=[;.])", drawing.alt)]
    assert len(ends) == 2
    assert ends[1] < 70.5


@pytest.mark.parametrize("name", DRAWN)
def test_a_page_shows_its_figure(docs, name):
    drawing = docs.trajectories.Drawing("<svg/>", "Paths of it.", "150 steps of a_b.")
    made = docs.pages.page(name, drawing)
    assert f"]({name}.svg)" in section(made.text, "Paths")
    assert made.figure == "<svg/>"
    assert made.figure_uri == f"rules/{name}.svg"


@pytest.mark.parametrize(("declared", "called"), [("input(h)", "h"), ("input(loss, per=all)", "loss")])
def test_inputs_are_handed_in(docs, declared, called):
    program = library.rule(f"{declared}\nhyper(lr=0.1)\np = p - lr*g/(1 + {called}**2)")
    path = docs.trajectories.best(program, {"lr": 0.1}, docs.trajectories.PROBLEMS[1])
    assert path.value(-1) < path.value(0)


def test_derivatives_are_right(docs):
    step = 1e-5
    for problem in docs.trajectories.PROBLEMS:
        x, y = problem.start
        for k, (dx, dy) in enumerate(((step, 0), (0, step))):
            ahead, behind = problem.value(x + dx, y + dy), problem.value(x - dx, y - dy)
            assert problem.gradient(x, y)[k] == pytest.approx((ahead - behind) / (2 * step), rel=1e-6)
            curvature = (ahead - 2 * problem.value(x, y) + behind) / step**2
            assert problem.curvature(x, y)[k] == pytest.approx(curvature, rel=1e-3)
        assert problem.value(*problem.minimum) == 0
