"""Kernels in memory and on disk: many threads, forks, and a folder that is damaged, full or somebody else's.

Traps 7 to 10 of the second list in `test_traps.py`, at length.
"""

import hashlib
import multiprocessing
import os
import pickle
import subprocess
import threading
import time
import warnings

import pytest
import torch
from torch import nn

import optgen
from fresh import run
from optgen import locks, tree
from optgen.backends import cache, disk
from optgen.backends.cpu import machine_code

pytest.importorskip("numba")
needs_root = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can give files away"
)
NOBODY = 65534


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A cache folder that nothing is in yet, as a process finds it that has compiled nothing."""

    folder = tmp_path / "cache"
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(folder))
    for module, name in (
        *((cache, "_kernels"), (cache, "_modules"), (disk, "_folders"), (machine_code, "_c_functions")),
    ):
        monkeypatch.setattr(module, name, {})
    monkeypatch.setattr(disk, "_warned", set())
    return folder


def forget():
    """Be the next process."""
    from optgen.backends.cpu import machine_code

    for table in (cache._kernels, cache._modules, disk._folders, machine_code._c_functions, disk._warned):
        table.clear()


MANY = 40_000  # elements that several threads share, which takes a function more


def moved(size=1000, rule="p = p - 0.4375*g"):
    """Where a step brings a parameter."""
    p = nn.Parameter(torch.linspace(-1, 1, size))
    p.grad = torch.linspace(3, 5, size)
    optgen.optimizer(rule)([p]).step()
    return p.detach().clone()


def compiled(folder):
    """The files of machine code."""
    return sorted(folder.glob("*.nbc"))


# Threads


def first_steps(runs, rules, cache_folder):
    """Eight threads that take the first steps of all rules together, each run in a process of its own."""
    code = f"""
    names = ("Lion AdamW SGD Adam RMSprop NAdam RAdam Adagrad Adadelta Adamax ASGD Rprop LAMB LARS "
             "Adan AdaBelief Yogi QHAdam Tiger Signum").split()[:{rules}]
    kinds = [getattr(optgen, name) for name in names]
    def steps(start):
        return {{k: moved(kinds[k % len(kinds)]) for k in range(start, start + len(kinds))}}
    found = together(*[lambda i=i: steps(i) for i in range(8)])
    serial = [moved(kind) for kind in kinds]
    for each in found:
        for k, value in each.items():
            assert value == serial[k % len(kinds)], names[k % len(kinds)]
    """
    for i in range(runs):
        run(code, cache_folder / str(i))


def test_eight_threads_take_first_steps(tmp_path):
    first_steps(1, 4, tmp_path)


@pytest.mark.full
def test_eight_threads_take_the_first_steps_of_twenty_rules(tmp_path):
    first_steps(int(os.environ.get("OPTGEN_RUNS", "1")), 20, tmp_path)  # a run takes a minute


def test_the_interpreter_of_triton_in_several_threads(tmp_path):
    """It keeps the place in the grid for the whole process."""
    pytest.importorskip("triton")
    run(
        """
        kinds = [lambda p, kind=kind: kind(p, backend="triton") for kind in (optgen.AdamW, optgen.SGD)]
        sys.setswitchinterval(1e-4)
        a, b, c, d = together(*[lambda kind=kind: moved(kind, 1000, 1) for kind in kinds] * 2)
        assert (a, b) == (c, d) == tuple(moved(kind, 1000, 1) for kind in kinds)
        """,
        tmp_path,
        TRITON_INTERPRET="1",
    )


def test_different_kernels_are_made_at_once():
    """A key waits for its own maker only."""
    table, first, second = {}, threading.Event(), threading.Event()

    def slow():
        first.set()
        assert second.wait(10)
        return 1

    thread = threading.Thread(target=lambda: locks.once(table, "slow", slow))
    thread.start()
    assert first.wait(10)
    assert locks.once(table, "quick", lambda: 2) == 2
    second.set()
    thread.join()
    assert table == {"slow": 1, "quick": 2}


def test_what_could_not_be_made_is_made_by_the_next():
    table = {}
    with pytest.raises(ZeroDivisionError):
        locks.once(table, "x", lambda: 1 / 0)
    assert locks.once(table, "x", lambda: None) is None
    assert locks.once(table, "x", lambda: 1) is None  # it is there


def test_constructors_of_rules_are_one_object(monkeypatch):
    monkeypatch.setattr("optgen.tree.rules._named", {})
    found, barrier = [], threading.Barrier(8)

    def ask():
        barrier.wait()
        found.append(tree.rules.named("Adam"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(kind is found[0] for kind in found)


def test_an_owner_is_registered_by_one_thread():
    from optgen import store

    def register():
        barrier.wait()
        try:
            store.register_parameters("together", ["a"])
        except ValueError as error:
            refused.append(error)

    barrier, refused = threading.Barrier(8), []
    threads = [threading.Thread(target=register) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.unregister_parameters("together")
    assert len(refused) == 7


def test_one_optimizer_of_a_store_in_many_threads():
    """Updates from several threads are all counted, whoever looks at the optimizer meanwhile."""
    from optgen.store.configurations import FixedStepGradientDescent
    from optgen.store.memory import TorchParameterStore
    from optgen.store.updates import init_optimizer

    place = TorchParameterStore()
    place.init_parameter(("owner", "p"), torch.zeros(3))
    update = init_optimizer(FixedStepGradientDescent(1.0), [("owner", "p")], place)
    barrier, seen = threading.Barrier(8), []

    def work(i):
        barrier.wait()
        for _ in range(20):
            place.increment_gradient(("owner", "p"), torch.ones(3))
            update.apply_update()
            seen.append(update.optimizer)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.get_parameter_value(("owner", "p")).tolist() == [160.0] * 3
    assert all(each is seen[0] for each in seen)


# Forks

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_waits_for_sections_and_children_find_them_open():
    """A store's locks and the like: what a thread holds when another one forks."""
    section, inside, done = locks.section(), threading.Event(), []

    def work():
        with section:
            inside.set()
            time.sleep(0.3)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    child = os.fork()
    if not child:
        with section, cache.compiling():
            os._exit(0 if done else 1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_thread_that_forks_inside_waits_for_nobody():
    """The others may wait for it; the child keeps its own locks, and finds theirs free."""
    mine, theirs = locks.section(), locks.section()
    inside, end = threading.Event(), threading.Event()

    def work():
        with theirs:
            inside.set()
            end.wait(10)

    thread = threading.Thread(target=work)
    with mine:
        thread.start()
        assert inside.wait(10)
        child = os.fork()
        if not child:
            with theirs:
                os._exit(0)
        end.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_multiprocessing_forks(tmp_path):
    moved()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        there = pool.map(_moved_bytes, range(2))
    assert there == [moved().numpy().tobytes()] * 2


def _moved_bytes(_):
    torch.set_num_threads(1)  # torch's own operations are not for a forked process otherwise
    return moved().numpy().tobytes()


# The folder


def test_what_is_on_disk_is_used_again(empty, monkeypatch):
    """Nothing is compiled then."""
    from numba.core.dispatcher import _FunctionCompiler

    before = moved(MANY)
    assert len(compiled(empty)) == 2
    forget()
    monkeypatch.setattr(_FunctionCompiler, "compile", lambda *_: pytest.fail("compiled again"))
    assert torch.equal(moved(MANY), before)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"noise" * 9000, lambda data: data[:-1]])
def test_damaged_files_are_replaced(empty, damage):
    before = moved()
    whole = {file: file.read_bytes() for file in sorted(empty.iterdir())}
    for file, data in whole.items():
        file.write_bytes(damage(data))
    forget()
    assert torch.equal(moved(), before)
    assert sorted(empty.iterdir()) == list(whole)
    assert all(0.9 < len(file.read_bytes()) / len(data) < 1.1 for file, data in whole.items())


def test_each_file_may_be_damaged_alone(empty):
    before = moved(MANY)
    for file in sorted(empty.iterdir()):
        file.write_bytes(file.read_bytes()[:5000])
        forget()
        assert torch.equal(moved(MANY), before)
    names = sorted(compiled(empty))
    names[0].rename(names[1])  # a whole file of another function
    forget()
    assert torch.equal(moved(MANY), before)


def test_a_whole_file_that_does_not_load_is_compiled_again(empty):
    """As of a library that has changed: the bytes are right, and what they name is not there."""
    before = moved()
    for file in compiled(empty):
        write(file, ("another signature", ()))
    forget()
    assert torch.equal(moved(), before)
    assert all(len(file.read_bytes()) > 10_000 for file in compiled(empty))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write(file, what):
    """A file as whole as those of optgen."""
    content = pickle.dumps(what)
    file.write_bytes(hashlib.sha256(file.name.encode() + content).digest() + content)


def test_files_that_others_could_write_are_not_executed(empty, tmp_path):
    """Said once, and replaced: the folder is this user's."""
    before = moved()
    for file in compiled(empty):
        write(file, Bomb(str(tmp_path / "executed")))
        file.chmod(0o666)
    forget()
    with pytest.warns(RuntimeWarning, match="somebody else can write or has written") as said:
        assert torch.equal(moved(), before)
    assert len(said) == 1
    assert not (tmp_path / "executed").exists()
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in compiled(empty))
    forget()
    assert torch.equal(moved(), before)  # and nothing is said


def test_links_to_other_files_are_not_followed(empty, tmp_path):
    before = moved()
    for i, file in enumerate(compiled(empty)):
        (tmp_path / str(i)).mkdir()
        write(tmp_path / str(i) / file.name, Bomb(str(tmp_path / "executed")))
        file.unlink()
        file.symlink_to(tmp_path / str(i) / file.name)
    forget()
    with pytest.warns(RuntimeWarning, match="which cannot be read"):
        assert torch.equal(moved(), before)
    assert not (tmp_path / "executed").exists()
    assert not any(file.is_symlink() for file in compiled(empty))


@needs_root
def test_files_of_another_user_are_not_executed(empty, tmp_path):
    before = moved()
    for file in compiled(empty):
        write(file, Bomb(str(tmp_path / "executed")))
        os.chown(file, NOBODY, NOBODY)
    forget()
    with pytest.warns(RuntimeWarning, match="somebody else"):
        assert torch.equal(moved(), before)
    assert not (tmp_path / "executed").exists()
    assert all(file.stat().st_uid == os.geteuid() for file in compiled(empty))


@needs_root
@pytest.mark.parametrize("which", ["cache", "."])
def test_a_folder_of_another_user_is_not_used(empty, which):
    """Its own or one above it; root is nobody special."""
    cache.folder()
    os.chown(empty.parent if which == "." else empty, NOBODY, NOBODY)
    forget()
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        cache.folder()
    assert cache.folder() is None


def test_a_folder_that_others_can_write_is_not_used(empty, tmp_path):
    """It is none that optgen made, which would be closed."""
    empty.mkdir()
    (empty / "something").write_text("")
    empty.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=f"others can write in {empty}.*set OPTGEN_CACHE_DIR"):
        moved()
    assert cache.folder() is None
    assert empty.stat().st_mode & 0o777 == 0o777
    tmp_path.chmod(0o777)  # now somebody could put another folder in its place
    empty.chmod(0o700)
    forget()
    with pytest.warns(RuntimeWarning, match=f"others can write in {tmp_path}"):
        assert cache.folder() is None
    tmp_path.chmod(0o1777)  # as /tmp is
    forget()
    assert cache.folder() == empty


def test_older_folders_of_ours_are_closed(empty):
    """Whatever the umask was that they were made under."""
    moved()
    empty.chmod(0o777)
    for file in empty.iterdir():
        file.chmod(0o644)
    forget()
    moved()
    assert empty.stat().st_mode & 0o777 == 0o700
    assert {oct(file.stat().st_mode & 0o777) for file in empty.iterdir()} == {"0o600"}


@pytest.mark.parametrize("mask", [0o000, 0o277])
def test_the_umask_does_not_matter(empty, mask):
    old = os.umask(mask)
    try:
        moved()
    finally:
        os.umask(old)
    assert empty.stat().st_mode & 0o777 == 0o700
    assert {oct(file.stat().st_mode & 0o777) for file in empty.iterdir()} == {"0o600"}


def test_a_link_to_the_folder_is_followed_to_its_end(empty, tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    empty.symlink_to("real")
    moved()
    assert compiled(tmp_path / "real")
    (tmp_path / "real").chmod(0o777)
    (tmp_path / "real" / "something").write_text("")
    forget()
    with pytest.warns(RuntimeWarning, match=f"others can write in {tmp_path / 'real'}"):
        assert cache.folder() is None


def test_without_a_home(monkeypatch, empty, tmp_path):
    monkeypatch.delenv("OPTGEN_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="the cache folder .*set OPTGEN_CACHE_DIR") as said:
        moved()
    assert len(said) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    forget()
    with pytest.warns(RuntimeWarning, match="there is no home folder"):
        assert cache.folder() is None


def test_what_killed_processes_left_is_removed(empty):
    empty.mkdir()
    old, new = empty / ".optgen-old", empty / ".optgen-new"
    for file in (old, new):
        file.write_text("half a file")
    os.utime(old, (0, 0))
    cache.folder()
    assert not old.exists()
    assert new.exists()  # another process may be writing it


def test_a_folder_that_is_removed_is_made_again(empty):
    moved()
    for file in empty.iterdir():
        file.unlink()
    empty.rmdir()
    moved(rule="p = p - 0.5625*g")
    assert compiled(empty)


@needs_root
def test_a_file_system_of_64_kilobytes(tmp_path):
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this container mounts nothing")
    try:
        code = """
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert moved(optgen.AdamW) != moved(optgen.SGD)
        assert len(said) == 1, said
        assert "No space left on device" in str(said[0].message)
        """
        run(code, tmp_path / "disk" / "cache")
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=False)


def test_settings_of_numba_are_in_the_key(empty, monkeypatch):
    """Code that was not optimised is no other process's."""
    from numba.core import config

    moved()
    files = compiled(empty)
    monkeypatch.setattr(config, "OPT", 1)
    forget()
    moved()
    assert len(compiled(empty)) == 2 * len(files)


def test_without_owners_forks_or_openmp(tmp_path):
    """As on Windows and macOS, where the respective check is left out."""
    run(
        """
        import concurrent.futures.thread, numba, numba.core.caching, multiprocessing
        wide = 300_000  # for several threads
        right = moved(lambda p: torch.optim.AdamW(p, lr=1e-3), wide)
        for name in [name for name in sys.modules if name.partition(".")[0] == "optgen"]:
            del sys.modules[name]
        for name in ("fork", "getuid", "geteuid", "register_at_fork", "fchmod", "O_NOFOLLOW", "O_NONBLOCK"):
            delattr(os, name)
        import optgen, optgen.optim.optimizer
        from importlib import import_module
        team = import_module("optgen.backends.cpu.openmp")
        team.Team = lambda library: library.no_such_function
        warnings.simplefilter("error")
        found = moved(optgen.AdamW, wide)
        assert team.team() is None
        a, b = (torch.frombuffer(bytearray(x), dtype=torch.float32) for x in (found, right))
        assert torch.allclose(a, b, atol=1e-6)
        """,
        tmp_path / "cache",
    )
    assert compiled(tmp_path / "cache")


# The key


def test_the_docstring_is_not_in_the_key(empty):
    modules = [
        cache.load(f'"""{text}"""\n\nfrom math import pi\n\nx = pi\n', name, "cpu")
        for text, name in (("one line", "a"), ("two\nlines, of which one has 'quotes'", "β[0]/../b"))
    ]
    assert modules[0] is modules[1]
    assert cache.load("from math import pi\n\nx = pi + 1\n", "a", "cpu") is not modules[0]
    assert modules[0].x == pytest.approx(3.14159265)


def test_a_module_that_fails_is_nobody_s(empty):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.load("1/0", "wrong", "cpu")


# What a hostile reader found


def test_a_file_system_that_is_read_only(empty, monkeypatch):
    """A cache that lies in an image: files that all may read are used as they are."""
    before = moved()
    for file in empty.iterdir():
        file.chmod(0o644)
    forget()
    monkeypatch.setattr(os, "fchmod", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    assert torch.equal(moved(), before)


def test_a_folder_in_the_place_of_a_file(empty):
    before = moved()
    for file in compiled(empty):
        file.unlink()
        file.mkdir()
    forget()
    handles = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert torch.equal(moved(), before)
    assert "which is no file" in str(said[0].message)
    assert len(os.listdir("/proc/self/fd")) <= handles


def test_a_group_that_is_another_user_s_first(monkeypatch, tmp_path):
    """`gr_mem` does not list those whose first group it is; a list of access has the group's bits too."""
    pwd = pytest.importorskip("pwd")
    me = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr("grp.getgrgid", lambda gid: type("G", (), {"gr_name": me.pw_name, "gr_mem": []}))
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o770)
    monkeypatch.setattr(pwd, "getpwall", lambda: [me])
    assert disk.exposure(str(folder)) is None
    other = type("P", (), {"pw_name": "somebody", "pw_gid": folder.stat().st_gid})
    monkeypatch.setattr(pwd, "getpwall", lambda: [me, other])
    assert disk.exposure(str(folder)) == f"others can write in {folder}"
    monkeypatch.setattr(pwd, "getpwall", lambda: [me])
    monkeypatch.setattr(os, "getxattr", lambda *_: b"a list")
    assert disk.exposure(str(folder)) == f"others can write in {folder}"


def test_a_folder_whose_name_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTGEN_CACHE_DIR", os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    monkeypatch.setattr(disk, "_warned", set())
    with pytest.warns(RuntimeWarning, match="its name is not UTF-8"):
        assert disk._locate() is None
