"""The page about stores: its Python runs from top to bottom, and does what the text says."""

import re
from pathlib import Path

import pytest
import torch

from optgen import store

PAGE = Path(__file__).parents[2] / "docs" / "gen.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the page's Python defines, run with the default store as another process would have it."""
    monkeypatch.chdir(tmp_path)
    default = store.default_parameter_store
    monkeypatch.setattr(default, "_entries", {})
    found = {}
    torch.manual_seed(0)
    try:
        for kind, text in BLOCKS:
            assert kind in ("python", "julia")
            if kind == "python":
                exec(compile(text, str(PAGE), "exec"), found)
    finally:
        for owner in ("guide", "foo"):
            store.unregister_parameters(owner)
    return found


def test_python_runs(names):
    assert abs(store.get_param("foo", "theta").item() - 0.6) > 1e-3
    assert store.get_param_grad("foo", "theta") == 0
    torch.testing.assert_close(store.get_param("guide", "loc").detach(), torch.tensor(0.001))
    assert names["memory"].get_parameter_value(("foo", "share")) == 1
    assert names["optimizer"].state_dict()["state"][0]["step"] == 1
    assert Path("model.store").is_dir()


def test_methods_of_a_store_are_there():
    (table,) = re.findall(r"^\| method of a store .*?\n\n", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    listed = {name for row in table.strip().splitlines() for name in re.findall(r"`(\w+)", row.split("|")[1])}
    public = {name for name in dir(store.TorchParameterStore) if not name.startswith("_")}
    assert listed == public - {"durable", "get_optimizer_state", "set_optimizer_state"}
