"""Each core and expected row of `rows.py` has a test, and `features.md` says what is."""

import re
from types import SimpleNamespace

import pytest

import features
from rows import ROWS, SYSTEMS, WAITING

TESTS = features.named_tests()


@pytest.fixture
def table(request):
    """The lines of the table; they are about to be written in a session that updates them."""
    if request.config.getoption("--update-golden"):
        pytest.skip("features.md is written at the end of this session")
    return features.listed()


def test_rows_are_well_formed():
    identifiers = [row.id for row in ROWS]
    assert len(set(identifiers)) == len(identifiers)
    for row in ROWS:
        assert re.fullmatch(rf"({'|'.join(SYSTEMS)})-\d\d", row.id)
        assert row.priority in ("core", "expected", "nice")
        assert row.what
        assert "|" not in row.what


def test_each_row_that_matters_has_a_test():
    wanted = {row.id for row in ROWS if row.priority != "nice"}
    assert sorted(wanted - TESTS.keys() - WAITING) == [], "these rows need a test named after them"
    assert sorted(WAITING & TESTS.keys()) == [], "these rows have a test: take them out of WAITING"
    assert wanted >= WAITING


def test_each_test_has_its_row():
    assert sorted(TESTS.keys() - {row.id for row in ROWS}) == []
    names = [name for tests in TESTS.values() for name in tests]
    assert len(set(names)) == len(names), "a second test of the same name hides the first"


def test_the_table_lists_the_rows_and_their_tests(table):
    expected = features.entries({entry.id: entry.outcome for entry in table}, {})
    assert [e[:4] for e in table] == [e[:4] for e in expected], "run what the head of features.md says"


def test_every_outcome_is_passed(table):
    wrong = [f"{entry.id} {entry.outcome}" for entry in table if entry.tests and entry.outcome != "passed"]
    assert wrong == []


@pytest.mark.parametrize(
    ("before", "ran", "after"),
    [
        ("not run", {}, "not run"),
        ("not run", {"a": "passed"}, "passed"),
        ("not run", {"a": "skipped"}, "not run"),
        ("passed", {"a": "passed", "b": "failed"}, "failed"),
        ("passed", {"a": "skipped"}, "passed"),
        ("failed", {"a": "passed"}, "failed"),
        ("failed", {"a": "passed", "b": "skipped"}, "passed"),
        ("failed", {"c": "passed"}, "failed"),
    ],
)
def test_outcome_of_a_row(before, ran, after):
    assert features.outcome(before, ["a", "b"], ran) == after


def report(nodeid, outcome, when="call"):
    return SimpleNamespace(
        nodeid=nodeid, when=when, **{o: o == outcome for o in ("passed", "failed", "skipped")}
    )


def test_a_session_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "TABLE", tmp_path / "features.md")
    (first, *_), (second, *_) = TESTS["GNS-08"], TESTS["GNS-06"]
    recorder = features.Recorder()
    for nodeid, outcome, when in (
        (f"tests/{first}", "passed", "setup"),
        (f"tests/{first}", "passed", "call"),
        (f"tests/{second}[a::b]", "failed", "teardown"),
        (f"tests/{second}[c]", "passed", "call"),
        ("tests/test_other.py::test_other", "failed", "call"),
    ):
        recorder.pytest_runtest_logreport(report(nodeid, outcome, when))
    recorder.pytest_sessionfinish(2)
    assert features.listed() == []
    recorder.pytest_sessionfinish(1)
    found = {entry.id: entry for entry in features.listed()}
    assert list(found) == [row.id for row in ROWS]
    assert found["GNS-08"].tests.startswith(f"`{first}`")
    assert [found[row].outcome for row in ("GNS-08", "GNS-06", "GNS-07")] == ["passed", "failed", "not run"]
    written = features.TABLE.read_bytes()
    features.write({})
    assert features.TABLE.read_bytes() == written


def test_tests_are_found_by_their_names(tmp_path):
    text = (
        "def test_gen_01_a(): ...\ndef test_gen_1_b(): ...\nclass TestX:\n    def test_opt_77_c(self): ...\n"
    )
    (tmp_path / "test_x.py").write_text(text)
    (tmp_path / "other.py").write_text(text)
    found = features.named_tests(tmp_path)
    assert found == {"GEN-01": ["test_x.py::test_gen_01_a"], "OPT-77": ["test_x.py::test_opt_77_c"]}
