"""The kernel cache: compiles a plan for a layout, once per process, and keeps the sources on disk.

In: a plan, a layout's dimensions, a back end, a math mode. Out: a `Kernel`, built once per process,
whichever thread asks first. A module is keyed by the hash of all that its machine code depends on: its
source without the docstring, every file of the back end, the versions of the compilers. So rules that
differ only in host scalars, as in a sweep over schedules, share one. Source files in the cache folder
(`backends.disk`) are for reading only, and are never executed; Numba's machine code is stored there too
(`backends.cpu.machine_code`). Triton has a cache of its own.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import os
import sys
from functools import partial
from types import ModuleType
from typing import Any

from optgen.backends import disk
from optgen.backends.disk import folder
from optgen.backends.emit import identifier
from optgen.backends.layout import Block, Layout
from optgen.backends.protocol import Kernel
from optgen.backends.registry import BACKENDS
from optgen.locks import lock, once, parse, uncut
from optgen.plan.plan import Plan

compiling = uncut  # `with compiling():` a fork waits; any number of threads compile at once

_kernels: dict[tuple[Any, ...], Kernel] = {}
_modules: dict[str, ModuleType] = {}
_built_lock = lock()
built = 0  # kernels built by this process; a step that compiles nothing leaves it as it is


def emit(
    plan: Plan,
    backend: str,
    math_mode: str = "exact",
    dims: int = 0,
    sharded: bool = False,
    block: Block | None = None,
) -> str:
    """The source that a back end compiles for a plan."""
    return BACKENDS[backend].emit(Layout(plan, dims, sharded, block), math_mode)


def kernel(
    plan: Plan,
    backend: str,
    math_mode: str,
    dims: int = 0,
    sharded: bool = False,
    block: Block | None = None,
) -> Kernel:
    """The compiled kernel of a plan, from the process's cache or compiled now."""
    # The fingerprint says what kernels compute and not what the host does: rules may share a kernel.
    key = (plan.fingerprint(), dims, sharded, block, backend, math_mode)
    return once(_kernels, key, partial(_build, Layout(plan, dims, sharded, block), backend, math_mode))


def _build(layout: Layout, backend: str, math_mode: str) -> Kernel:
    """Emit, load and count one kernel; `once` calls it with the key's lock held."""
    global built
    plan = layout.plan

    def module() -> ModuleType:
        source = emit(plan, backend, math_mode, layout.dims, layout.sharded, layout.block)
        return load(source, plan.name, backend)

    result = BACKENDS[backend].load(layout, math_mode, module)
    with _built_lock:
        built += 1
    return result


def load(source: str, name: str, backend: str) -> ModuleType:
    """Load emitted source as a module, keyed by a hash of its text without the docstring.

    Args:
        source: its text.
        name: of the rule, for the file name in the cache folder.
        backend: what compiles it, `cpu` or `triton`.
    """
    tree = parse(source)
    if ast.get_docstring(tree, clean=False) is not None:
        lines = source.splitlines(keepends=True)
        source = "".join(lines[tree.body[0].end_lineno :]).lstrip("\n")
    digest = hashlib.sha256("\0".join((source, BACKENDS[backend].version())).encode()).hexdigest()[:20]
    key = f"{backend}_{digest}"
    return once(_modules, key, partial(_execute, source, key, f"{identifier(name)[:80]}_{key}.py"))


def _execute(source: str, key: str, file: str) -> ModuleType:
    """Execute a module's source and register it; it becomes visible to other threads only when complete."""
    data, cache_folder = source.encode(), folder()
    if cache_folder is not None and disk.read(file) != data:
        disk.write(file, data)
    path = os.fspath(cache_folder / file) if cache_folder is not None else f"<{file}>"
    # For tracebacks, and for Triton, which reads the text of its functions: no file is looked at then.
    linecache.cache[path] = len(source), None, source.splitlines(keepends=True), path
    module = ModuleType(f"optgen_kernel_{key}")
    module.__file__ = path
    exec(compile(source, path, "exec"), module.__dict__)
    sys.modules[module.__name__] = module  # where Numba looks for the module of a function that it reads
    return module
