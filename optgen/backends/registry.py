"""Registry of back ends: what each needs, which devices it runs on, how it compiles a plan.

A back end is a module or a folder beside this one with two functions: `emit(layout, math_mode)` returns
source, and `load(layout, math_mode, module)` a `Kernel`, where `module()` loads that source. One entry in
`BACKENDS` registers it. It is imported on first use, since the package it needs may not be installed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from optgen.__version__ import __version__
from optgen.backends.layout import Layout
from optgen.backends.protocol import Kernel


@dataclass(frozen=True)
class Backend:
    """One back end: its module, the package that compiles for it, and the torch device types it runs on."""

    name: str
    module: str  # in this package: what has `emit` and `load`
    package: str
    devices: tuple[str, ...]
    missing: str  # what to do where there is no such package

    @property
    def available(self) -> bool:
        """Whether its package is installed."""
        return find_spec(self.package) is not None

    def require(self) -> ModuleType:
        """Import its package.

        Raises:
            ImportError: it is not installed; says what to do.
        """
        try:
            return import_module(self.package)
        except ImportError as error:
            raise ImportError(self.missing) from error

    def emit(self, layout: Layout, math_mode: str) -> str:
        """Emit the source of a layout's kernel."""
        return str(self._module.emit(layout, math_mode))

    def load(self, layout: Layout, math_mode: str, module: Callable[[], ModuleType]) -> Kernel:
        """The kernel of a layout, whose source `module()` loads."""
        kernel: Kernel = self._module.load(layout, math_mode, module)
        return kernel

    @cache  # noqa: B019
    def version(self) -> str:
        """Version for cache keys: of optgen, the compiler and Python, and a hash of the back end's files."""
        home = Path(__file__).parent
        files = sorted(home.glob(f"{self.name}/**/*.py")) or [home / f"{self.module}.py"]
        texts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        return f"{__version__} {self.require().__version__} {sys.version_info[:2]} {texts}"

    @property
    def _module(self) -> Any:
        return import_module(f"optgen.backends.{self.module}")


# `auto` takes the first of them that runs on a device.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "triton",
            "triton.kernels",
            "triton",
            ("cuda",),
            "the Triton back end needs triton: pip install triton",
        ),
        Backend(
            "cpu",
            "cpu.kernel",
            "numba",
            ("cpu",),
            "the CPU back end needs numba: pip install 'optgen[cpu]', or pass backend='numpy'",
        ),
        Backend("numpy", "reference", "numpy", ("cpu",), "the reference needs numpy: pip install numpy"),
    )
}
