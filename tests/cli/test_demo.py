"""The demo: its rule, its trainings, its picture."""

import importlib.util

import numpy as np
import pytest
import torch

from optgen import library
from optgen.backends import cache
from optgen.cli import demo, main
from optgen.compiler import planned
from optgen.optim.optimizer import optimizer

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("numba")


def test_the_rule_is_short_and_no_shipped_one():
    assert len(demo.RULE.strip().splitlines()) <= 10
    assert "CautiousBelief" not in library.classes()
    made = planned(library.rule(demo.RULE))
    assert len(made.sweeps) == 1
    assert made.bytes == 28


def test_the_excerpt_holds_the_arithmetic_and_the_unmasked_path():
    source = cache.emit(planned(library.rule(demo.RULE)), "triton")
    text = demo.excerpt(source)
    assert "def update0(p, g, m, v, " in text
    assert "def sweep0(" in text
    assert "tl.load(p_at)" in text
    assert "mask=" not in text
    assert len(text) < len(source)


def test_the_trainings_start_alike_and_learn():
    data = demo.digits()
    assert len(data.train) + len(data.test) == 1797
    assert not set(data.train.tolist()) & set(data.test.tolist())
    kind = optimizer(demo.RULE)
    new, again = (demo.Run("new", lambda params: kind(params, lr=3e-3)) for _ in range(2))
    demo.train(new, data, 5)
    demo.train(again, data, 5)
    assert new.losses == again.losses
    assert new.losses[0] == pytest.approx(2.3, abs=0.2)
    assert np.mean(new.losses[-20:]) < 0.2
    assert new.accuracy > 0.9


def test_the_demo_draws_and_the_curves_coincide(tmp_path, capsys):
    picture = tmp_path / "out.png"
    threads = torch.get_num_threads()
    code = main.main(["demo", "--epochs", "2", "--skip-check", "--output", str(picture)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
    assert demo.RULE in out
    assert "plan of cautious_belief: 1 phase, 28 bytes per element" in out
    assert "the two AdamW loss curves coincide" in out
    assert torch.get_num_threads() == threads


def test_curves_that_differ_end_with_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "CLOSE", -1.0)
    assert main.main(["demo", "--epochs", "1", "--skip-check", "--output", str(tmp_path / "a.png")]) == 1
    assert "DIFFER" in capsys.readouterr().out


def test_a_back_end_that_disagrees_ends_with_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_check", lambda console, program: False)
    assert main.main(["demo", "--epochs", "1", "--output", str(tmp_path / "a.png")]) == 1
    capsys.readouterr()


def test_differences_are_relative():
    runs = [demo.Run("a", None, [2.0, 4.0]), demo.Run("b", None, [2.0, 4.4])]
    assert demo.differences(runs) == pytest.approx([0, 0.1])


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    assert main.main(["demo", "--output", str(tmp_path / "a.png")]) == 2
    err = capsys.readouterr().err
    assert err == "optgen: this needs sklearn\n = help: pip install 'optgen[demo,cpu]'\n"


def test_a_picture_that_cannot_be_written_is_found_out_first(tmp_path, capsys):
    assert main.main(["demo", "--output", str(tmp_path / "no" / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("optgen: [Errno 2] No such file or directory")
