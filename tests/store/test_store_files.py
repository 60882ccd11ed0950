"""Stores in files: whole after any failure, clear about damage, safe with any name."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import killed_store
from optgen.store.configurations import FixedStepGradientDescent, RuleConf, TorchOptimConf
from optgen.store.files import MOST_PARTS, FileParameterStore
from optgen.store.folder import Folder, LocalFolder
from optgen.store.memory import TorchParameterStore
from optgen.store.snapshot import NAMES
from optgen.store.updates import init_optimizer

A, B = ("f", "a"), ("f", "b")
CONF = RuleConf("adam", lr=0.1, backend="numpy")


@pytest.fixture(params=["folder", "memory://"])
def url(request, tmp_path):
    return str(tmp_path / "a store") if request.param == "folder" else f"memory://{uuid4()}/a store"


def filled(url):
    """A store after one update of two parameters, one of which has a gradient again; and the optimizer."""
    store = FileParameterStore(url)
    store.init_parameters({A: [1.0, 2.0], B: 3.0})
    optimizer = init_optimizer(CONF, [A, B], store, name="adam")
    advance(store, optimizer)
    store.increment_gradient(B, 2.0)
    store.flush()
    return store, optimizer


def advance(store, optimizer):
    store.increment_gradient(A, [1.0, -2.0])
    store.increment_gradient(B, 0.5)
    optimizer.apply_update()


def content(store):
    """All that a store has, as plain Python."""
    found = {
        id: (store.get_parameter_value(id).tolist(), store.get_gradient(id).tolist()) for id in store.ids()
    }
    states = {}
    for name, state in store._states.items():
        states[name] = {k: {n: t.tolist() for n, t in s.items()} for k, s in state["state"].items()}
    return found, states


def files(store):
    """What lies in its folder."""
    return store._folder.names()


def damage(store, name, data):
    """Put other bytes into a file of its folder."""
    with fsspec.open(store._folder.path(name), "wb", protocol=protocol(store)) as file:
        file.write(data)


def protocol(store):
    return "file" if isinstance(store._folder, LocalFolder) else "memory"


class Dies(BaseException):
    """The process dies here."""


class Failing(Folder):
    """A folder whose n-th operation fails: before it, half way through it, or after it."""

    def __init__(self, inner, n, how, error):
        self.inner, self.left, self.how, self.error = inner, n, how, error

    def _do(self, act, half=None):
        self.left -= 1
        if self.left >= 0 or self.error is None:
            return act()
        error, self.error = self.error, None
        if self.how == "half" and half is not None:
            half()
        if self.how == "after":
            act()
        raise error

    def __str__(self):
        return str(self.inner)

    def names(self):
        return self._do(self.inner.names)

    def read(self, name):
        return self._do(lambda: self.inner.read(name))

    def write(self, name, data):
        temporary = f"{name}.tmp" if isinstance(self.inner, LocalFolder) else name
        self._do(lambda: self.inner.write(name, data), lambda: self._half(temporary, data))

    def _half(self, name, data):
        """What an interrupted write leaves: a temporary file, or the file itself where it is in place."""
        if isinstance(self.inner, LocalFolder):
            Path(self.inner.path(name)).write_bytes(data[: len(data) // 2])
        else:
            self.inner.write(name, data[: len(data) // 2])

    def remove(self, name):
        self._do(lambda: self.inner.remove(name))


def change_update(store, optimizer):
    advance(store, optimizer)


def change_value(store, optimizer):
    store.set_parameter_value(A, [7.0, 8.0])


def change_new(store, optimizer):
    store.init_parameters({A: [1.0, 2.0, 3.0], ("g", "new"): 4.0})


def change_reset(store, optimizer):
    store.reset_gradient(B)


CHANGES = [change_update, change_value, change_new, change_reset]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_killed_at_each_operation_it_is_old_or_new(url, change, how):
    """Every place in a commit where a process can die, one after the other."""
    store, optimizer = filled(f"{url}/straight")
    old = content(store)
    change(store, optimizer)
    new = content(FileParameterStore(store.url))
    seen = []
    for n in range(40):
        store, optimizer = filled(f"{url}/{n}")
        store._folder = Failing(store._folder, n, how, Dies())
        try:
            change(store, optimizer)
        except Dies:
            found = FileParameterStore(store.url)
            assert content(found) in (old, new)
            seen.append(content(found) == new)
            advance_again(found)
        else:
            break
    assert store._folder.error is not None, "there are more operations than that"
    assert seen == sorted(seen)
    assert set(seen) == {False, True}


def advance_again(store):
    """The store works as before, and what the dead process left is removed."""
    before = store.get_parameter_value(B).item()
    store.increment_gradient(B, 1.0)
    init_optimizer(FixedStepGradientDescent(1.0, backend="numpy"), [B], store).apply_update()
    found = FileParameterStore(store.url)
    assert found.get_parameter_value(B) >= before + 1
    assert found.get_gradient(B) == 0
    needed = {f"store-{found._manifest.generation:012d}.json", *found._manifest.parts}
    assert set(files(store)) == needed


@pytest.mark.parametrize("change", CHANGES[:3])
@pytest.mark.parametrize("how", ["before", "half"])
def test_what_cannot_be_committed_is_undone(url, change, how):
    """After an error of the file system memory and files are as before, and the change can be repeated."""
    straight = filled(f"{url}/straight")
    change(*straight)
    for n in range(3):  # the listing, the part, the manifest
        store, optimizer = filled(f"{url}/{n}")
        before, live = content(store), store.get_parameter_value(A)
        store._folder = Failing(store._folder, n, how, OSError("no space left"))
        with pytest.raises(OSError, match="no space left"):
            change(store, optimizer)
        if change is change_update:  # its increments were before the failure, and are not undone
            store.set_gradient(A, [0.0, 0.0])
            store.set_gradient(B, 2.0)
        assert content(store) == before
        assert store.get_parameter_value(A) is live
        assert content(FileParameterStore(store.url)) == before
        change(store, optimizer)
        assert content(store) == content(straight[0])
        assert content(FileParameterStore(store.url)) == content(straight[0])


def test_a_step_that_fails_changes_nothing(url):
    store, _ = filled(url)
    before = content(store)

    def step(values, gradients):
        with torch.no_grad():
            values[0].fill_(9)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.update([A, B], step)
    assert content(store) == content(FileParameterStore(url)) == before


def test_a_file_that_cannot_be_removed_is_a_warning(url):
    store, optimizer = filled(url)
    store._folder = Failing(store._folder, 3, "before", OSError("busy"))
    with pytest.warns(UserWarning, match=r"cannot remove .*: busy"):
        advance(store, optimizer)
    found = FileParameterStore(url)
    assert content(found) == content(store)
    advance_again(found)


def test_blobs_reach_the_disk_before_their_names(tmp_path, monkeypatch):
    """The order in which a power failure leaves a whole file or none."""
    calls = []

    def spy(name, real):
        def call(*arguments):
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    spy("fsync", os.fsync)
    spy("replace", os.replace)
    LocalFolder(str(tmp_path)).write("x", b"data")
    assert calls == ["fsync", "replace", "fsync"]
    assert os.listdir(tmp_path) == ["x"]


class ForkServer:
    """Children that update a store until they are killed; see `killed_store`."""

    def __init__(self):
        home = Path(killed_store.__file__).parent
        environment = {**os.environ, "PYTHONPATH": f"{home.parents[1]}{os.pathsep}{home}"}
        command = [sys.executable, "-c", "import killed_store; killed_store.main()"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def kill_one(self, url, seed, delay):
        """Start a child, and kill it after so many seconds."""
        self.process.stdin.write(f"{url} {seed}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        assert self.process.stdout.readline() == "gone\n"

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("form", "kills"),
    [
        ("{}/store", 10),
        pytest.param("{}/store", 200, marks=pytest.mark.full),
        pytest.param("dir://store::file://{}", 100, marks=pytest.mark.full),  # written in place, no rename
    ],
)
def test_killed_at_random_instants_it_is_of_one_step(tmp_path, form, kills):
    """Values, states and gradients are all of one step, to the bit, whenever the process was killed."""
    url, chance = form.format(tmp_path), random.Random(kills)
    straight = killed_store.TorchParameterStore()
    killed_store.start(straight)
    trajectory = init_optimizer(killed_store.CONF, list(killed_store.SHAPES), straight)
    server, unfinished, last, limit = ForkServer(), 0, 0, 0.15
    try:
        for seed in range(kills):
            server.kill_one(url, seed, chance.uniform(0, limit))
            limit *= 1.3  # until one gets that far, on a machine that is busy
            store = FileParameterStore(url)
            if not store.ids():
                continue
            needed = {f"store-{store._manifest.generation:012d}.json", *store._manifest.parts}
            unfinished += set(files(store)) != needed
            found = init_optimizer(killed_store.CONF, list(killed_store.SHAPES), store, name="adam")
            k = killed_store.steps(found)
            assert k >= last
            limit = 0.15 if k > last else limit
            for step in range(last, k):
                killed_store.accumulate(straight, step)
                trajectory.apply_update()
            last = k
            same_step(store, found, straight, trajectory, k)
    finally:
        server.close()
    assert last > 0
    assert unfinished > 0 or kills == 10, "no child was killed within a commit"


def same_step(store, found, straight, trajectory, k):
    """The store is as it was in memory after k steps; its gradients are zero, or all those of the next."""
    assert store.ids() == straight.ids()
    coming = killed_store.gradients(k)
    added = bool(store.get_gradient(("net", "bias")))
    for i, id in enumerate(straight.ids()):
        assert torch.equal(store.get_parameter_value(id), straight.get_parameter_value(id))
        wanted = coming[id] if added else torch.zeros_like(coming[id])
        assert torch.equal(store.get_gradient(id), wanted)
        if k:
            theirs = trajectory.state_dict()["state"][i]
            mine = found.state_dict()["state"][i]
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_opening_while_another_writes(tmp_path):
    """A reader sees one commit, whole, however many are written and removed meanwhile."""
    store = FileParameterStore(tmp_path)
    store.init_parameters({A: 0.0, B: 0.0})
    stop = threading.Event()

    def write():
        optimizer = init_optimizer(FixedStepGradientDescent(1.0, backend="numpy"), [A, B], store)
        while not stop.is_set():
            store.increment_gradient(A, 1.0)
            store.increment_gradient(B, 1.0)
            optimizer.apply_update()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    try:
        while len(seen) < 100 or (len(set(seen)) < 5 and len(seen) < 10_000):
            found = FileParameterStore(tmp_path)
            a, b = (found.get_parameter_value(id).item() for id in (A, B))
            assert a == b
            seen.append(a)
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) >= 5


def test_two_writers_are_noticed(url):
    store, _ = filled(url)
    other = FileParameterStore(url)
    other.set_parameter_value(B, 8.0)
    before = content(store)
    with pytest.raises(RuntimeError, match=r"another process has written .* open the store again"):
        store.set_parameter_value(B, 9.0)
    assert content(store) == before
    assert FileParameterStore(url).get_parameter_value(B) == 8


# What is committed when


def test_increments_wait_for_a_commit(url):
    with FileParameterStore(url) as store:
        store.init_parameters({A: [1.0, 2.0], B: 3.0})
        store.increment_gradient(A, [1.0, 1.0])
        assert FileParameterStore(url).get_gradient(A).tolist() == [0, 0]
        store.set_parameter_value(B, 4.0)
        assert FileParameterStore(url).get_gradient(A).tolist() == [1, 1]
        store.increment_gradient(A, [1.0, 1.0])
        with torch.no_grad():
            store.get_parameter_value(B).mul_(2)
    found = FileParameterStore(url)
    assert (found.get_gradient(A).tolist(), found.get_parameter_value(B).item()) == ([2, 2], 8)


def test_only_what_changed_is_written(tmp_path):
    store = FileParameterStore(tmp_path)
    store.init_parameters({A: torch.zeros(10_000), B: torch.zeros(1000)})
    large = set(files(store))
    store.flush()
    assert set(files(store)) == large, "nothing changed"
    store.set_parameter_value(B, torch.ones(1000))
    (kept,) = (name for name in large if name.startswith("part"))
    (new,) = (name for name in files(store) if name.startswith("part") and name != kept)
    assert (tmp_path / kept).stat().st_size > 80_000
    assert load_file(tmp_path / new).keys() == {"value/f/b"}


def test_files_stay_few_and_used(tmp_path):
    store = FileParameterStore(tmp_path)
    chance = random.Random(0)
    ids = [("f", str(i)) for i in range(30)]
    sizes = {id: 10 ** chance.randint(0, 4) for id in ids}
    for id in ids:
        store.init_parameter(id, torch.zeros(sizes[id]))
    used = 2 * 4 * sum(sizes.values())
    for k in range(60):
        id = chance.choice(ids)
        store.set_parameter_value(id, torch.full((sizes[id],), float(k)))
        assert len(files(store)) <= MOST_PARTS + 2
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * used + 30_000
    assert content(FileParameterStore(tmp_path)) == content(store)


# Damage and strangers


def replaced(data, content):
    """A manifest's bytes with other content, and the old checksum."""
    envelope = json.loads(data)
    envelope["content"] |= content
    return json.dumps(envelope).encode()


@pytest.mark.parametrize(
    ("kind", "harm", "message"),
    [
        ("part", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is damaged: its checksum is wrong"),
        ("part", lambda data: data[:-5], r"is damaged: \d+ bytes of \d+"),
        ("part", lambda data: b"", "is damaged: 0 bytes of"),
        ("part", None, "is damaged: a file of it is missing: .*part-"),
        ("store", lambda data: data[: len(data) // 2], "is damaged: "),
        ("store", lambda data: replaced(data, {"generation": 9}), "is damaged: its checksum is wrong"),
        ("store", lambda data: b"\xff\x00", "is damaged: "),
        ("store", lambda data: b'{"some": "other file"}', "is not the manifest of an optgen parameter store"),
        ("store", lambda data: data.replace(b'"version": 1', b'"version": 2'), "has version 2 of the format"),
    ],
)
def test_damage_is_reported(url, kind, harm, message):
    store, _ = filled(url)
    (name,) = (name for name in files(store) if name.startswith(kind))
    if harm is None:
        store._folder.remove(name)
    else:
        damage(store, name, harm(store._folder.read(name)))
    with pytest.raises(ValueError, match=message) as caught:
        FileParameterStore(url)
    assert name in str(caught.value)
    assert "a store" in str(caught.value)


def test_a_newer_format_is_not_passed_over(url):
    """An older manifest beside one of an unknown version is not taken instead."""
    store, _ = filled(url)
    (name,) = (name for name in files(store) if name.startswith("store"))
    newer = store._folder.read(name).replace(b'"version": 1', b'"version": 2')
    damage(store, f"store-{99:012d}.json", newer)
    with pytest.raises(ValueError, match="open it with the optgen that wrote it"):
        FileParameterStore(url)


def test_strangers_are_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"no parameter store, and not empty either \(it has 'letter.txt'\)"):
        FileParameterStore(tmp_path)
    with pytest.raises(NotADirectoryError):
        FileParameterStore(tmp_path / "letter.txt")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/letters/letter.txt", b"dear")
    with pytest.raises(NotADirectoryError, match=r"letter.txt is a file"):
        FileParameterStore("memory://letters/letter.txt")
    with pytest.raises(ValueError, match="nosuch"):
        FileParameterStore("nosuch://x")
    store = FileParameterStore(tmp_path / "new")
    assert not (tmp_path / "new").exists(), "opening writes nothing"
    store.init_parameter(A, 1.0)
    (tmp_path / "new" / "letter.txt").write_text("dear")
    store.set_parameter_value(A, 2.0)
    assert (tmp_path / "new" / "letter.txt").exists()


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"needs safetensors: pip install 'optgen\[store\]'"):
        FileParameterStore(tmp_path).init_parameter(A, 1.0)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"needs fsspec: pip install 'optgen\[store\]'"):
        FileParameterStore(tmp_path)


# Names


ODD = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "a%2Fb",
    "../../x",
    "θ",
    "\0",
    "\n",
    '"',
    "\\",
    "CON",
    "a" * 300,
    "\udc80",
    "🦀",
]


def test_odd_names(url):
    store = FileParameterStore(url)
    ids = [(owner, name) for owner in ODD for name in ODD]
    store.init_parameters({id: float(i) for i, id in enumerate(ids)})
    optimizers = [init_optimizer(CONF, [ids[i]], store, name=name) for i, name in enumerate(ODD)]
    for optimizer in optimizers[:3]:
        optimizer.apply_update()
    found = FileParameterStore(url)
    assert found.ids() == ids
    assert [found.get_parameter_value(id).item() for id in ids] == list(range(len(ids)))
    assert content(found) == content(store)
    assert all(NAMES.fullmatch(name) for name in files(store))


def test_owners_are_strings(url):
    store = FileParameterStore(url)
    with pytest.raises(
        TypeError, match="needs strings for owners, not 3: another process must find 'x' again"
    ):
        store.init_parameters({A: 1.0, (3, "x"): 2.0})
    assert store.ids() == []


def test_shapes_and_dtypes_come_back(url):
    values = {
        ("f", str(dtype)): torch.arange(6).reshape(2, 3).t().to(dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    values |= {
        ("f", "empty"): torch.zeros(0, 3),
        ("f", "one"): torch.tensor(-0.0),
        ("f", "nan"): torch.tensor(torch.nan),
    }
    store = FileParameterStore(url)
    store.init_parameters(values)
    found = FileParameterStore(url)
    for id, wanted in values.items():
        value = found.get_parameter_value(id)
        assert value.dtype is wanted.dtype
        assert value.requires_grad
        torch.testing.assert_close(value.detach(), wanted, rtol=0, atol=0, equal_nan=True)


def test_the_state_of_a_rule_with_numbers_for_all_parameters(url):
    """Prodigy keeps its distance in the parameter group, as one tensor that every group shares."""
    store = FileParameterStore(url)
    store.init_parameters({A: [1.0, 2.0], B: 3.0})
    conf = RuleConf("prodigy", backend="numpy")
    straight = TorchParameterStore()
    straight.init_parameters({A: [1.0, 2.0], B: 3.0})
    whole = init_optimizer(conf, [A, B], straight, name="prodigy")
    for _ in range(4):
        store = FileParameterStore(url)
        optimizer = init_optimizer(conf, [A, B], store, name="prodigy")
        for place, each in ((store, optimizer), (straight, whole)):
            advance(place, each)
    assert content(FileParameterStore(url)) == content(straight)
    found, wanted = (each.state_dict()["param_groups"][0] for each in (optimizer, whole))
    assert found == wanted
    assert any(isinstance(number, torch.Tensor) for number in found.values())


def test_the_state_of_torchs_own_optimizers(url):
    straight = TorchParameterStore()
    straight.init_parameters({A: [1.0, 2.0], B: 3.0})
    conf = TorchOptimConf(torch.optim.Adam, lr=np.float32(0.1), betas=(0.5, 0.9))
    whole = init_optimizer(conf, [A, B], straight)
    FileParameterStore(url).init_parameters({A: [1.0, 2.0], B: 3.0})
    for _ in range(3):
        store = FileParameterStore(url)
        for place, each in ((store, init_optimizer(conf, {A, B}, store, name="x")), (straight, whole)):
            advance(place, each)
    assert content(FileParameterStore(url))[0] == content(straight)[0]


def test_what_json_cannot_say_is_refused(url):
    store, _ = filled(url)
    before = content(store)
    with pytest.raises(TypeError, match="holds a object, which a file store cannot keep"):
        store.set_optimizer_state("odd", {"state": {}, "param_groups": [{"x": object()}]})
    assert content(store) == content(FileParameterStore(url)) == before


def test_a_failed_commit_restores_numbers_for_all_parameters(url):
    store = FileParameterStore(url)
    store.init_parameters({A: [1.0, 2.0], B: 3.0})
    optimizer = init_optimizer(RuleConf("prodigy", backend="numpy"), [A, B], store, name="prodigy")
    advance(store, optimizer)
    before = str(FileParameterStore(url)._states)
    store._folder = Failing(store._folder, 2, "before", OSError("no space left"))
    with pytest.raises(OSError, match="no space left"):
        advance(store, optimizer)
    store.set_parameter_value(B, 5.0)
    assert str(FileParameterStore(url)._states) == before
