"""Numba's machine code: one file in the cache folder for each function and signature, finished before a fork.

In: functions of a module that `cache.load` has made. Out: dispatchers and C functions. A compiled function
lies in one file, under the hash of all that its machine code depends on: the module's own hash, its argument
types, the processor, and which Numba, LLVM, NumPy and Python there are. Numba's own cache would unpickle half
a file, or one that anybody may have written, and fail with it for good. Here what is no whole file is
compiled again, and which files may be believed is the business of `optgen.backends.disk`.
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
    """`numba.njit` with these options, for functions of emitted modules."""

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
    """A function of an emitted module as a C function of one pointer, compiled. It has an `address`."""

    def make() -> Any:
        c_func: Any = CFunc(function, ((types.voidptr,), types.void), {}, {"error_model": "numpy"})
        c_func._cache = FunctionCache(function)
        c_func.compile()
        return c_func

    return once(_c_functions, function, make)


class FunctionCache:
    """The compiled forms of one function in the cache folder, by signature; what Numba calls a cache."""

    cache_path = None

    def __init__(self, function: Callable[..., Any]):
        self.module, self.name = function.__module__ or "", function.__name__

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compiled function; None where it has to be compiled."""
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
                if stored_signature == signature:
                    return CompileResult._rebuild(target, *parts)  # type: ignore[no-untyped-call]
            except Exception:
                # Whatever is wrong with a whole file, such as a name that another library no longer has, a
                # compilation mends it; and if not, that raises.
                pass
        disk.remove(name)
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compiled function, if it holds no addresses of this process."""
        if not self.module.startswith(PREFIX) or result.lifted or result.library.has_dynamic_globals:
            return
        content = dumps((signature, result._reduce()))  # type: ignore[no-untyped-call]
        name = self._file(signature, result.codegen)
        disk.write(name, _digest(name, content) + content)

    def _file(self, signature: Any, codegen: Any) -> str:
        """The file of a signature: `cpu_<the module's hash>.<the function>.<a hash>.nbc`."""
        versions = (numba.__version__, llvmlite.__version__, binding.llvm_version_info, numpy.__version__)
        python = (sys.implementation.cache_tag, getattr(sys, "abiflags", ""))
        codegen_options = tuple(getattr(config, name, None) for name in CODEGEN_OPTIONS)
        key = repr((str(signature), codegen.magic_tuple(), versions, python, codegen_options))
        digest = hashlib.sha256(key.encode()).hexdigest()[:20]
        return f"{self.module.removeprefix(PREFIX)}.{self.name}.{digest}.nbc"

    def enable(self) -> None:
        """It always is."""

    def disable(self) -> None:
        """It never is."""

    def flush(self) -> None:
        """What is compiled again is written again."""


def _digest(name: str, content: bytes) -> bytes:
    """What a whole file begins with; one that was renamed is none."""
    return hashlib.sha256(name.encode() + content).digest()
