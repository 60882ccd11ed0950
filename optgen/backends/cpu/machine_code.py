"""Persistent cache of Numba's machine code, and compilation that a fork waits for.

In: functions of a module that `cache.load` has executed. Out: dispatchers and C functions. A compiled
function is one file, named by the hash of all that its machine code depends on: the module's own hash, its
argument types, the processor, and the versions of Numba, LLVM, NumPy and Python. Numba's own cache would
unpickle a truncated file, or one that anybody may have written, and fail with it for good. Here an
incomplete file is compiled again, and `optgen.backends.disk` decides which files may be trusted.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

import llvmlite
import numba
import numpy
from llvmlite import binding
from numba import njit, types
from numba.core import config
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from optgen.backends import disk
from optgen.locks import once, uncut

PREFIX = "optgen_kernel_"  # of the modules that `cache.load` makes; what else is compiled stays in memory
# Numba's settings that change what it compiles.
CODEGEN_OPTIONS = (
    "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT", "LLVM_REFPRUNE_PASS",
)  # fmt: skip

_c_functions: dict[Any, Any] = {}  # by function


def stored(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with these options and the persistent cache, for functions of emitted modules."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        if dispatcher is function:  # NUMBA_DISABLE_JIT
            return dispatcher
        dispatcher._cache = FunctionCache(function)
        compile = dispatcher.compile

        def compile_uncut(signature: Any) -> Any:
            with uncut():
                return compile(signature)

        dispatcher.compile = compile_uncut  # every way to a compilation leads through it
        return dispatcher

    return decorate


def c_function(function: Callable[..., Any]) -> Any:
    """Compile a function of an emitted module as a C function of one pointer; the result has an `address`."""

    def make() -> Any:
        c_func: Any = CFunc(function, ((types.voidptr,), types.void), {}, {"error_model": "numpy"})
        c_func._cache = FunctionCache(function)
        c_func.compile()
        return c_func

    return once(_c_functions, function, make)


class FunctionCache:
    """One function's persistent cache, by signature, with the methods that Numba calls on a cache."""

    cache_path = None

    def __init__(self, function: Callable[..., Any]):
        self.module, self.name = function.__module__ or "", function.__name__

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Load the machine code of a signature; None if it must be compiled."""
        if not self.module.startswith(PREFIX):
            return None
        target.refresh()
        name = self._file(signature, target.codegen())
        data = disk.read(name)
        if data is None:
            return None
        digest, content = data[:32], data[32:]
        if _digest(name, content) == digest:
            try:
                stored_signature, parts = pickle.loads(content)
                # The name is a hash: compare what it stands for.
                if stored_signature == signature:
                    return CompileResult._rebuild(target, *parts)  # type: ignore[no-untyped-call]
            except Exception:
                # Whatever is wrong with a whole file, such as a name that another library no longer has, a
                # compilation mends it; and if not, that raises.
                pass
        disk.remove(name)
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Store the machine code of a signature, unless it embeds addresses of this process."""
        # Dynamic globals are addresses of this process's objects; lifted loops are functions of their own.
        if not self.module.startswith(PREFIX) or result.lifted or result.library.has_dynamic_globals:
            return
        content = dumps((signature, result._reduce()))  # type: ignore[no-untyped-call]
        name = self._file(signature, result.codegen)
        disk.write(name, _digest(name, content) + content)

    def _file(self, signature: Any, codegen: Any) -> str:
        """File name of a signature: `cpu_<module hash>.<function>.<hash>.nbc`."""
        versions = (numba.__version__, llvmlite.__version__, binding.llvm_version_info, numpy.__version__)
        python = (sys.implementation.cache_tag, getattr(sys, "abiflags", ""))
        codegen_options = tuple(getattr(config, name, None) for name in CODEGEN_OPTIONS)
        key = repr((str(signature), codegen.magic_tuple(), versions, python, codegen_options))
        digest = hashlib.sha256(key.encode()).hexdigest()[:20]
        return f"{self.module.removeprefix(PREFIX)}.{self.name}.{digest}.nbc"

    def enable(self) -> None:
        """Do nothing: it is always enabled."""

    def disable(self) -> None:
        """Do nothing: it is always enabled."""

    def flush(self) -> None:
        """Do nothing: a recompilation overwrites the file."""


def _digest(name: str, content: bytes) -> bytes:
    """Checksum of a file's name and content, which the file begins with."""
    return hashlib.sha256(name.encode() + content).digest()
