"""The simulated device: for a `with` block, Triton launches kernels of CPU tensors on it.

    with Device() as gpu:
        optgen.AdamW(params, backend="triton").step()
    gpu.launches, gpu.errors, gpu.races

Tensors stay where they are: inside, the back ends `triton` and `auto` take CPU tensors for a GPU's, while
`numpy` and `cpu` are what they always are, so that a reference can stand beside. gcc and Python.h are needed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from virtual_gpu.machine import Machine
from virtual_gpu.memory import HARMLESS, GlobalMemory, Tensors, memory_of
from virtual_gpu.ptx import parse

LAUNCHED = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_uint64, *[ctypes.c_uint] * 4, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p)
)
STREAM = 0x5EAD


def missing() -> str:
    """Why there can be no simulated device here; empty if there can."""
    if not sys.platform.startswith("linux"):
        return "the simulated GPU needs Linux"
    if find_spec("triton") is None:
        return "the simulated GPU needs Triton"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 compiles nothing that a simulated GPU could execute"
    if shutil.which("gcc") is None:
        return "the simulated GPU needs gcc"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "the simulated GPU needs Python.h (Debian: python3-dev)"
    return ""


def require() -> None:
    """Skip the test that calls this where there can be no device, or have it fail where there must be one."""
    if reason := missing():
        if os.environ.get("OPTGEN_REQUIRE_SIMULATED_GPU") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


class Launch(NamedTuple):
    """One launch: the kernel's name, its grid, threads of a block, parameters, stream, and the kernel."""

    name: str
    grid: int
    threads: int
    parameters: list[int]
    stream: int
    kernel: Any


@functools.cache
def _driver() -> ctypes.CDLL:
    """The libcuda, built once for a process, which Triton finds before any other."""
    folder = Path(tempfile.mkdtemp(prefix="simulated-gpu-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # Triton 3.6 links each launcher with it
    origin = find_spec("triton").origin  # type: ignore[union-attr]
    include = Path(str(origin)).parent / "backends" / "nvidia" / "include"
    source, library = Path(__file__).with_name("driver.c"), folder / "libcuda.so.1"
    how = ["-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1", f"-I{include}"]
    subprocess.run(["gcc", *how, str(source), "-o", str(library)], check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    made = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    _cuda_driver()  # Triton builds what it calls the driver with, and loads it
    return made


@functools.cache
def _cuda_driver() -> Any:
    from triton.backends.nvidia.driver import CudaDriver

    with mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)):
        made: Any = CudaDriver()
    made.get_current_stream = lambda index: STREAM
    made.get_current_device = lambda: 0
    made.get_device_capability = lambda device=None: (9, 0)
    return made


class Device:
    """A simulated H100.

    Args:
        log: whether races are looked for.
        memory: whether accesses must lie in live tensors.
        order: from the number of blocks the order in which they run; by default by number.
        schedule: which warp runs: all in turn, or the `first` or `last` of a block that can.

    All can be changed between launches. `edit` may be set to a function of a kernel's PTX, which is then
    executed in its place: for tests of the simulation itself.
    """

    def __init__(
        self,
        log: bool = True,
        memory: bool = True,
        order: Callable[[int], Sequence[int]] | None = None,
        schedule: str | None = None,
    ):
        self.log, self.memory, self.order, self.schedule = log, memory, order, schedule
        self.edit: Callable[[str], str] = str
        self.launches: list[Launch] = []
        self.errors: list[BaseException] = []
        self.races: Counter[tuple[str, str]] = Counter()  # by kernel and kind
        self.kernels: dict[int, Any] = {}
        self.capturing = False
        self.graph: Any = None  # see `capture`

    @property
    def harmful(self) -> dict[tuple[str, str], int]:
        """The races that may change a result."""
        return {key: count for key, count in self.races.items() if key[1] not in HARMLESS}

    def __enter__(self) -> Device:
        from triton.runtime import driver

        self.stack = contextlib.ExitStack()
        self.tensors = Tensors()
        self.stack.callback(self.tensors.close)
        library = _driver()
        self.before = driver._active  # `active` would look for a GPU
        driver.set_active(_cuda_driver())
        self.callback = LAUNCHED(functools.partial(self._launch, library))
        library.simulate_with(self.callback)
        for patch in self._patches():
            self.stack.enter_context(patch)
        return self

    def __exit__(self, *_: object) -> None:
        from triton.runtime import driver

        self.stack.close()
        driver._active = self.before

    def _patches(self) -> Iterator[Any]:
        from triton.compiler.compiler import CompiledKernel

        import optgen.optim.optimizer  # noqa: F401 - what is patched must be there

        original = CompiledKernel._init_handles

        def init(kernel: Any) -> None:
            original(kernel)
            ALL[kernel.function] = kernel

        yield mock.patch.object(CompiledKernel, "_init_handles", init)
        yield mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0))
        yield mock.patch.object(torch.cuda, "current_device", return_value=0)
        yield from replaced("resolve", _on_the_device)
        yield from replaced("capturing", lambda _: lambda device: self.capturing)

    def _launch(
        self,
        library: ctypes.CDLL,
        function: int,
        x: int,
        y: int,
        z: int,
        threads: int,
        stream: int,
        given: Any,
    ) -> int:
        """Called by the driver; not 0 is an error."""
        try:
            assert (y, z) == (1, 1), "a grid of more than one dimension"
            kernel = ALL[function]
            program = parse(self.edit(kernel.asm["ptx"]))
            pointers = [
                ctypes.cast(given[i], ctypes.POINTER(ctypes.c_uint64)) for i in range(program.parameters)
            ]
            values = [pointer[0] for pointer in pointers]
            launch = Launch(kernel.name, x, threads, values, stream, kernel)
            self.launches.append(launch)
            if self.graph is not None:
                self.graph.acts.append(functools.partial(self._execute, library, program, launch))
            self._execute(library, program, launch)
        except BaseException as error:  # which the driver's C code cannot pass on
            traceback.print_exc()
            self.errors.append(error)
            return 1
        return 0

    def _execute(self, library: ctypes.CDLL, program: Any, launch: Launch) -> None:
        memory = GlobalMemory(library, memory_of(self.tensors) if self.memory else None, self.log)
        order = None if self.order is None else self.order(launch.grid)
        machine = Machine(
            program, launch.grid, launch.threads, launch.parameters, memory, launch.kernel.metadata.shared,
            order, self.schedule, self.log,
        )  # fmt: skip
        machine.run()
        for kind, count in (memory.races() + machine.shared.races()).items() if self.log else ():
            self.races[launch.name, kind] += count


ALL: dict[int, Any] = {}  # kernels by the driver's number of them; Triton loads each once for a process


def replaced(name: str, make: Callable[[Any], Any]) -> Iterator[Any]:
    """Patches of a function of optgen's wherever its modules have it.

    Raises:
        RuntimeError: none has it, and nothing would be simulated.
    """
    modules = [m for key, m in list(sys.modules.items()) if m is not None and key.split(".")[0] == "optgen"]
    functions = {id(f): f for m in modules if callable(f := vars(m).get(name)) and hasattr(f, "__code__")}
    if not functions:
        raise RuntimeError(
            f"no module of optgen has a function '{name}': what picks the back end has another name"
        )
    for f in functions.values():
        made = functools.wraps(f)(make(f))
        for m in modules:
            if vars(m).get(name) is f:
                yield mock.patch.object(m, name, made)


def _on_the_device(resolve: Any) -> Any:
    """`resolve(backend, device)`, told that CPU tensors lie on a GPU where the back end may be Triton."""

    def simulated(backend: str, device: torch.device) -> Any:
        moved = torch.device("cuda", 0) if device.type == "cpu" and backend in ("auto", "triton") else device
        return resolve(backend, moved)

    return simulated
