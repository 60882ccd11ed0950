"""Ahead-of-time compilation of Triton kernels, and statistics from their machine code.

In: a layout, the module that `triton.emit` made, a target such as `sm_90` or `gfx942`. Out: a `Report` per
kernel: registers, spilled bytes, the width of every access to a tensor, bytes per element. No GPU is
needed. Accesses are attributed by the compiler's line information: the unmasked path, the masked one, or a
table.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from optgen.backends.layout import Layout
from optgen.backends.triton.kernels import interpreting
from optgen.backends.triton.printer import THREADS
from optgen.backends.triton.specs import Spec, specs

# The bits that one thread moves with an access, by the instruction's suffix.
PTX_ACCESS = re.compile(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s")
GCN_ACCESS = re.compile(r"\b(?:global|flat|buffer)_(load|store)_(\w+)")
# What ends a straight run of instructions; debug labels such as .Ltmp1 do not.
BRANCH = re.compile(r"^\s*(?:\.LBB\w+:|\$L__BB\w+:|s_c?branch\w*\s|(?:@\S+\s+)?bra\b)")
GCN_BITS = {
    "dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128,
    "b32": 32, "b64": 64, "b128": 128, "ubyte": 8, "byte": 8, "ushort": 16, "short": 16,
    "short_d16": 16, "short_d16_hi": 16, "ushort_d16": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Statistics of one compiled kernel. Widths are bits, one entry per access of the unmasked path.

    `planned` and `found` are bytes per element: what the plan moves, and what the unmasked path does.
    Both are None for a kernel that is no sweep.
    """

    kernel: str
    target: str
    registers: int
    spilled: int
    loads: tuple[int, ...]
    stores: tuple[int, ...]
    planned: int | None
    found: float | None
    seconds: float


def compile_ahead(layout: Layout, module: ModuleType, target: str, math_mode: str = "exact") -> list[Report]:
    """Compile every kernel of a module for a target.

    Raises:
        ValueError: an unknown target.
        RuntimeError: Triton is interpreting in this process, and cannot compile too.
    """
    if interpreting():
        raise RuntimeError("unset TRITON_INTERPRET to compile: Triton reads it when it decorates a kernel")
    real = "*fp64" if layout.plan.real == "fp64" else "*fp32"
    kinds = dict.fromkeys(("tensors", "moving", "chunks", "slices", "size"), "*i64") | {"scalars": real}
    reports = []
    for spec in specs(layout).values():
        signature = {name: kinds.get(name, "*fp64") for name in spec.tables}
        reports.append(_compile(module, spec, signature, target, math_mode))
    return reports


def gpu_target(target: str) -> Any:
    """Triton's description of a target such as `sm_90` or `gfx942`."""
    from triton.backends.compiler import GPUTarget

    if match := re.fullmatch(r"sm_(\d+)a?", target):
        return GPUTarget("cuda", int(match[1]), 32)
    if re.fullmatch(r"gfx9\w+", target):
        return GPUTarget("hip", target, 64)
    if re.fullmatch(r"gfx1\w+", target):
        return GPUTarget("hip", target, 32)
    raise ValueError(f"unknown target '{target}': write sm_80, sm_90, gfx942 or the like")


def _compile(
    module: ModuleType, spec: Spec, tables: Mapping[str, str], target: str, math_mode: str
) -> Report:
    """Compile one kernel and read its statistics."""
    import triton
    from triton.compiler import ASTSource

    gpu, name, planned = gpu_target(target), spec.name, spec.planned
    constants = spec.constants
    signature = {**tables, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(getattr(module, name), signature=signature, constexprs=dict(constants))
    options = {"num_warps": THREADS // gpu.warp_size, "enable_fp_fusion": math_mode == "fast"}
    start = time.perf_counter()
    built = triton.compile(source, target=gpu, options=options)
    seconds = time.perf_counter() - start
    cuda = gpu.backend == "cuda"
    registers, spilled = _ptx_usage(built.asm["ptx"], target) if cuda else _gcn_usage(built.asm["amdgcn"])
    if planned is None:
        return Report(name, target, registers, spilled, (), (), None, None, seconds)
    lines = _unmasked_lines(Path(module.__file__ or "").read_text(encoding="utf-8"), name)
    loads, stores = _accesses(built.asm["ptx" if cuda else "amdgcn"], lines, cuda)
    block = constants["BLOCK"] if "BLOCK" in constants else constants["HEIGHT"] * constants["WIDTH"]
    moved = sum(loads + stores) / 8 * THREADS / block
    return Report(name, target, registers, spilled, tuple(loads), tuple(stores), planned, moved, seconds)


def _unmasked_lines(source: str, kernel: str) -> range:
    """The source lines of a kernel's unmasked path, which complete and aligned blocks take."""
    lines = source.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"def {kernel}("))
    unmasked = re.compile(r"if \(first \+ HEIGHT <=|if base \+ BLOCK <=")
    first = next((i for i in range(start, len(lines)) if unmasked.search(lines[i])), len(lines))
    last = next((i for i in range(first, len(lines)) if lines[i].strip() == "else:"), len(lines))
    return range(first + 2, last + 1)  # counted from 1


def _accesses(assembly: str, lines: range, cuda: bool) -> tuple[list[int], list[int]]:
    """Widths in bits of the loads and of the stores that come from some source lines.

    A compiler that unrolls the loop over blocks copies them into several basic blocks (LLVM does for
    gfx942, if a body is small): each line counts in the basic block with the most bits.
    """
    widths: dict[tuple[str, int], dict[int, list[int]]] = {}
    line = block = 0
    for text in assembly.splitlines():
        if place := re.match(r"\s*\.loc\s+\d+\s+(\d+)", text):
            line = int(place[1])
        elif BRANCH.search(text):
            block += 1
        elif line in lines and cuda and (access := PTX_ACCESS.search(text + " ")):
            copies = widths.setdefault((access[1], line), {})
            copies.setdefault(block, []).append(int(access[2] or 1) * int(access[3]))
        elif line in lines and not cuda and (access := GCN_ACCESS.search(text)):
            copies = widths.setdefault(({"load": "ld", "store": "st"}[access[1]], line), {})
            copies.setdefault(block, []).append(GCN_BITS[access[2]])
    loads, stores = (
        [
            bits
            for (kind, _), copies in widths.items()
            if kind == which
            for bits in max(copies.values(), key=sum)
        ]
        for which in ("ld", "st")
    )
    return loads, stores


def _ptx_usage(ptx: str, target: str) -> tuple[int, int]:
    """Registers and spilled bytes as reported by the ptxas that Triton ships."""
    specification = importlib.util.find_spec("triton.backends.nvidia")
    assert specification is not None
    assert specification.submodule_search_locations is not None
    folder = Path(next(iter(specification.submodule_search_locations))) / "bin"
    directive = re.search(r"^\s*\.target\s+(\w+)", ptx, re.M)
    arch = directive[1] if directive else target
    # Triton ships a second, newer assembler for what its first does not know.
    newer = folder / "ptxas-blackwell"
    tool = newer if int(re.sub(r"\D", "", arch)) >= 100 and newer.exists() else folder / "ptxas"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernel.ptx"
        path.write_text(ptx)
        command: list[str | Path] = [tool, "-v", f"--gpu-name={arch}", path, "-o", f"{path}.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.search(r"Used (\d+) registers", said)
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    if used is None or not spills:
        raise RuntimeError(f"ptxas said nothing about registers and spills:\n{said}")
    return int(used[1]), sum(spills)


def _gcn_usage(assembly: str) -> tuple[int, int]:
    """Vector registers and bytes of scratch memory per thread, from AMD's metadata.

    Scalar registers that do not fit are spilled to lanes of vector registers, which takes no memory.
    """
    wanted = r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s+(\d+)"
    counts = {key: int(value) for key, value in re.findall(wanted, assembly)}
    return counts["vgpr_count"], max(counts["private_segment_fixed_size"], 4 * counts["vgpr_spill_count"])
