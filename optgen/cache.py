"""Compiled kernels, in memory and on disk.

In: a plan, a layout's dimensions, a back end, a math mode. Out: a `Kernel`, built once per process. The
emitted source lies in the cache folder under the hash of everything that it depends on, because Numba
and Triton both need a file, and keep their own compiled code beside it or in their own folder.

The folder is `$OPTGEN_CACHE_DIR`, or `optgen` in `$XDG_CACHE_HOME` or `~/.cache`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from optgen import __version__
from optgen.backends import Kernel, Layout
from optgen.plan import Plan

_kernels: dict[tuple[str, int, bool, str, str], Kernel] = {}
built = 0  # kernels built by this process; a step that compiles nothing leaves it as it is


@cache
def folder() -> Path:
    """The cache folder; a private temporary one where the usual place cannot be written."""
    given = os.environ.get("OPTGEN_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(given) if given else Path(base) / "optgen"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        if given:
            raise OSError(f"OPTGEN_CACHE_DIR={given} cannot be written: {error}") from error
        return Path(tempfile.mkdtemp(prefix="optgen-"))


def emit(plan: Plan, backend: str, math_mode: str = "exact", dims: int = 0, sharded: bool = False) -> str:
    """The source that a back end compiles for a plan."""
    layout = Layout(plan, dims, sharded)
    if backend == "numpy":
        from optgen.backends import numpy

        return numpy.emit(plan)
    if backend == "cpu":
        from optgen.backends import cpu

        return cpu.emit(layout, math_mode)
    from optgen.backends import triton

    return triton.emit(layout, math_mode)


def kernel(plan: Plan, backend: str, math_mode: str, dims: int = 0, sharded: bool = False) -> Kernel:
    """The compiled kernel of a plan, from memory, from disk, or made now."""
    global built
    key = (plan.fingerprint(), dims, sharded, backend, math_mode)
    found = _kernels.get(key)
    if found is None:
        module = load(emit(plan, backend, math_mode, dims, sharded), plan.name, backend)
        layout = Layout(plan, dims, sharded)
        if backend == "cpu":
            from optgen.backends.cpu import CpuKernel

            found = CpuKernel(layout, module)
        else:
            from optgen.backends.triton import TritonKernel

            found = TritonKernel(layout, module, math_mode)
        _kernels[key] = found
        built += 1
    return found


def load(source: str, name: str, backend: str) -> ModuleType:
    """Import emitted source from the cache folder, written there first where it is not yet."""
    digest = hashlib.sha256("\0".join((source, _versions(backend))).encode()).hexdigest()[:20]
    stem = f"{name}_{backend}_{digest}" if name.isascii() else f"rule_{backend}_{digest}"
    path = folder() / f"{stem[-120:]}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != source:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(source)
        os.replace(file.name, path)  # so that no other process ever reads half a file
    qualified = f"optgen_kernel_{stem}"
    if qualified in sys.modules:
        return sys.modules[qualified]
    spec = importlib.util.spec_from_file_location(qualified, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[qualified]
        raise
    return module


@cache
def _versions(backend: str) -> str:
    """What compiled code depends on besides its source."""
    if backend == "cpu":
        import numba

        from optgen.backends import cpu

        runtime = Path(cpu.__file__).read_text(encoding="utf-8")
        return f"{__version__} {numba.__version__} {sys.version_info[:2]} {runtime}"
    import triton

    return f"{__version__} {triton.__version__}"
