"""A launch: all threads of all blocks, instruction by instruction.

In: a program, a grid, parameters and memory. Out: memory as the launch leaves it, or a `Fault`. Threads that
stand at one instruction are executed together. `schedule` says whose turn it is: of all (`None`), or of each
block's `first` or `last` warp that can go on, which then runs until it waits; `order` in which blocks come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from virtual_gpu.arithmetic import UNSIGNED, NoSemantics, bits_of, computation
from virtual_gpu.memory import Access, Array, Fault, GlobalMemory, SharedMemory
from virtual_gpu.ptx import Instruction, Program

WARP = 32
POISON = 0x7FC0DEADBEEF7FC1  # what registers have that nobody wrote; a NaN in float32 and float64
LIMIT = 5_000_000  # instructions of a launch
Index = Any  # which threads: their numbers, or all
Read = Callable[["Machine", Index], Array]
Execute = Callable[["Machine", Index], None]
CONTROL = {"ret", "exit", "bra", "bar", "barrier"}
SPECIAL: dict[str, Read] = {
    "%tid.x": lambda m, i: m.thread[i],
    "%ctaid.x": lambda m, i: m.block[i],
    "%laneid": lambda m, i: m.thread[i] % np.uint32(WARP),
    "%ntid.x": lambda m, i: np.uint32(m.threads),
    "%nctaid.x": lambda m, i: np.uint32(m.grid),
}


class Machine:
    """One launch of a program."""

    def __init__(
        self,
        program: Program,
        grid: int,
        threads: int,
        parameters: Sequence[int],
        memory: GlobalMemory,
        shared: int,
        order: Sequence[int] | None = None,
        schedule: str | None = None,
        log: bool = True,
    ):
        self.program, self.grid, self.threads, self.parameters = program, grid, threads, parameters
        self.memory, self.schedule = memory, schedule
        self.shared = SharedMemory(grid, shared, [] if log else None)
        numbers = np.arange(grid) if order is None else np.asarray(order)
        self.slot = np.repeat(np.arange(grid), threads)  # the place of a block in this order
        self.block = numbers[self.slot].astype(np.uint32)
        self.thread = np.tile(np.arange(threads, dtype=np.uint32), grid)
        self.warp = self.thread // WARP
        self.epoch = np.zeros(grid, np.int64)  # how many barriers a block has passed
        self.at = np.zeros(grid * threads, np.int64)  # the instruction of each thread
        self.done = np.zeros(grid * threads, bool)
        self.waiting = np.zeros(grid * threads, bool)  # at a barrier
        self.registers: dict[str, Array] = {}
        self.every = np.arange(grid * threads)

    def register(self, name: str) -> Array:
        """A register of all threads."""
        if name not in self.registers:
            bits = 1 if name[1] == "p" else {"s": 16, "d": 64}.get(name[2], 32)
            kind = np.dtype(bool) if bits == 1 else np.dtype(UNSIGNED[bits])
            self.registers[name] = np.full(len(self.at), np.uint64(POISON).astype(kind), kind)
        return self.registers[name]

    def run(self) -> None:
        """Execute all threads to their end."""
        code, starts, executed = decoded(self.program), set(self.program.labels.values()), 0
        with np.errstate(all="ignore"):
            while True:
                ready = self._ready()
                if not ready.any():
                    if self.done.all():
                        return
                    raise Fault(f"deadlock in {self.program.name}: threads wait at different barriers")
                at = int(self.at[ready].min())
                mine = ready & (self.at == at)
                who: Index = slice(None) if mine.all() else np.flatnonzero(mine)
                while True:
                    executed += 1
                    if executed > LIMIT:
                        raise Fault(f"{self.program.name} does not come to an end")
                    name = self.program.instructions[at].parts[0]
                    if name in CONTROL:
                        self._control(at, mine, who)
                        break
                    code[at](self, who)
                    at += 1
                    self.at[who] = at
                    if at in starts:
                        break

    def _ready(self) -> Array:
        """The threads whose turn it is."""
        ready = ~self.done & ~self.waiting
        if self.schedule is None or not ready.any():
            return ready
        warps = self.warp[ready]
        return ready & (self.warp == (warps.min() if self.schedule == "first" else warps.max()))

    def _control(self, at: int, mine: Array, who: Index) -> None:
        """Branches, barriers and the end."""
        what = self.program.instructions[at]
        name = what.parts[0]
        if name in ("ret", "exit"):
            self.done[who] = True
        elif name == "bra":
            target = self.program.labels[what.operands[-1]]
            if not what.predicate:
                self.at[who] = target
            else:
                taken = self.register(what.predicate)[who] != what.negated
                self.at[who] = np.where(taken, target, at + 1)
        else:
            self.waiting |= mine
            here = (self.waiting & (self.at == at)).reshape(self.grid, self.threads)
            whole = here.all(axis=1)
            passed = np.repeat(whole, self.threads)
            self.waiting[passed] = False
            self.at[passed] = at + 1
            self.epoch[whole] += 1

    def access(self, who: Index, addresses: Array, size: int, values: Array | None) -> Access:
        """What these threads do now."""
        slots = self.slot[who]
        return Access(addresses, size, slots, self.thread[who].astype(np.int64), self.epoch[slots], values)


@cache
def decoded(program: Program) -> list[Execute]:
    """What each instruction does; those of control do it elsewhere."""
    return [
        _decode(program, what) if what.parts[0] not in CONTROL else _nothing for what in program.instructions
    ]


def _nothing(machine: Machine, who: Index) -> None:
    raise AssertionError("instructions of control are not executed here")


def _decode(program: Program, what: Instruction) -> Execute:
    place = f"{program.name}, {what}"
    name = what.parts[0]
    if name in ("ld", "st"):
        execute = _load_or_store(what, place)
    elif name == "atom":
        execute = _atomic(what, place)
    elif name in ("ldmatrix", "stmatrix"):
        execute = _matrix(what, place)
    elif name == "shfl":
        execute = _shuffle(what)
    elif name == "mov":
        execute = _move(what)
    else:
        execute = _compute(what, place)
    if "sync" in what.parts:
        execute = _by_warps(execute, place)
    return _if(what, execute) if what.predicate else execute


def _if(what: Instruction, execute: Execute) -> Execute:
    def some(m: Machine, who: Index) -> None:
        chosen = m.every[who][m.register(what.predicate)[who] != what.negated]
        if len(chosen):
            execute(m, chosen)

    return some


def _by_warps(execute: Execute, place: str) -> Execute:
    """An instruction that all threads of a warp must execute together."""

    def checked(m: Machine, who: Index) -> None:
        there = np.zeros(len(m.at), bool)
        there[who] = True
        warps = there.reshape(-1, WARP)
        if (warps.any(axis=1) & ~warps.all(axis=1)).any():
            raise Fault(f"{place}: only a part of a warp is there")
        execute(m, who)

    return checked


def _operand(text: str, bits: int) -> Read:
    """What gives an operand's values: of a register, or one for all threads."""
    if text in SPECIAL:
        return SPECIAL[text]
    if text.startswith("%"):
        return lambda m, i: m.register(text)[i]
    if text == "global_smem":
        number = 0
    elif text[:2] in ("0f", "0d"):
        number = int(text[2:], 16)
    else:
        number = int(text, 0)
    value = np.bool_(number) if bits == 1 else UNSIGNED[bits](number & (1 << bits) - 1)
    return lambda m, i: value


def _each(m: Machine, who: Index, read: Read) -> Array:
    """An operand's value for each thread."""
    return np.broadcast_to(read(m, who), m.at[who].shape)


def _put(m: Machine, name: str, who: Index, values: Array) -> None:
    if name != "_":
        m.register(name)[who] = values


def _compute(what: Instruction, place: str) -> Execute:
    function, widths = computation(what.parts)
    target, *sources = what.operands
    reads = [_operand(s, widths[min(i, len(widths) - 1)]) for i, s in enumerate(sources)]

    def execute(m: Machine, who: Index) -> None:
        try:
            _put(m, target, who, function(*(read(m, who) for read in reads)))
        except NoSemantics as error:
            raise Fault(f"{place}: {error}") from None

    return execute


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("{}").split(",")]


def _move(what: Instruction) -> Execute:
    """Between registers, one of which may be written as its parts."""
    target, source = what.operands
    bits = bits_of(what.parts[-1])
    if source.startswith("{"):
        part = bits // len(_names(source))
        reads = [_operand(name, part) for name in _names(source)]

        def pack(m: Machine, who: Index) -> None:
            values = [
                read(m, who).astype(UNSIGNED[bits]) << UNSIGNED[bits](k * part)
                for k, read in enumerate(reads)
            ]
            _put(m, target, who, np.bitwise_or.reduce(values))

        return pack
    read = _operand(source, bits)
    if not target.startswith("{"):
        return lambda m, who: _put(m, target, who, read(m, who))
    names = _names(target)
    part = bits // len(names)

    def unpack(m: Machine, who: Index) -> None:
        values = np.asarray(read(m, who), UNSIGNED[bits])
        for k, name in enumerate(names):
            _put(m, name, who, (values >> UNSIGNED[bits](k * part)).astype(UNSIGNED[part]))

    return unpack


def _address(text: str, bits: int) -> Read:
    found = re.fullmatch(r"\[\s*([%\w.]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
    assert found is not None, text
    base, offset = _operand(found[1], bits), np.uint64(int(found[2] or 0) & (1 << 64) - 1)
    return lambda m, who: np.asarray(base(m, who)).astype(np.uint64) + offset


def _load_or_store(what: Instruction, place: str) -> Execute:
    parts, loads = what.parts, what.parts[0] == "ld"
    text, names = what.operands if not loads else what.operands[::-1]
    if parts[1] == "param":
        number = int(text.strip("[]").rsplit("_", 1)[1])
        return lambda m, who: _put(m, names, who, np.uint64(m.parameters[number]))
    bits = bits_of(parts[-1])
    registers = _names(names)
    size = bits // 8 * len(registers)
    address = _address(text, 64 if parts[1] == "global" else 32)
    reads = [] if loads else [_operand(name, bits) for name in registers]

    def execute(m: Machine, who: Index) -> None:
        addresses = _each(m, who, address)
        values = None
        if not loads:
            columns = [_each(m, who, read).astype(UNSIGNED[bits]) for read in reads]
            values = np.ascontiguousarray(np.stack(columns, axis=1)).view(np.uint8)
        found = _transfer(m, who, parts[1] == "global", addresses, size, values, place)
        if loads:
            for k, name in enumerate(registers):
                _put(m, name, who, found.view(UNSIGNED[bits])[:, k])

    return execute


def _atomic(what: Instruction, place: str) -> Execute:
    """The larger of two integers, in global memory, thread by thread."""
    if what.parts[1] != "global" or what.parts[-2:] != ("max", "s64"):
        raise Fault(f"{place}: no such atomic instruction is known")
    target, text, source = what.operands
    address, given = _address(text, 64), _operand(source, 64)

    def execute(m: Machine, who: Index) -> None:
        addresses, values = _each(m, who, address), _each(m, who, given)
        m.memory.check(addresses, 8, place)
        old = np.empty(len(addresses), np.uint64)
        for i in range(len(addresses)):
            old[i] = m.memory.load(addresses[i : i + 1], 8).view(np.uint64)[0, 0]
            new = np.maximum(old[i].view(np.int64), values[i].view(np.int64)).view(np.uint64)
            m.memory.store(addresses[i : i + 1], new.reshape(1, 1).view(np.uint8))
        if m.memory.log is not None:
            access = m.access(who, addresses, 8, np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8))
            m.memory.log.append(replace(access, atomic=True))
        _put(m, target, who, old)

    return execute


def _transfer(
    m: Machine, who: Index, everywhere: bool, addresses: Array, size: int, values: Array | None, place: str
) -> Array:
    """Load bytes, or store `values`."""
    if everywhere:
        m.memory.check(addresses, size, place)
        if m.memory.log is not None:
            m.memory.log.append(m.access(who, addresses, size, values))
        if values is None:
            return m.memory.load(addresses, size)
        m.memory.store(addresses, values)
        return values
    places = m.shared.places(addresses, size, place)
    if m.shared.log is not None:
        m.shared.log.append((m.access(who, addresses, size, values), places))
    if values is None:
        return np.ascontiguousarray(m.shared.load(m.slot[who], places, place))
    m.shared.store(m.slot[who], places, values)
    return values


def _matrix(what: Instruction, place: str) -> Execute:
    """`ldmatrix` and `stmatrix`: rows of 8 16-bit numbers, two of them in a thread; lanes have addresses."""
    loads = what.parts[0] == "ldmatrix"
    text, names = what.operands if not loads else what.operands[::-1]
    address, registers = _address(text, 32), _names(names)
    assert "trans" not in what.parts, place
    lane = np.arange(WARP)

    def execute(m: Machine, who: Index) -> None:
        rows = _each(m, who, address).reshape(-1, WARP)
        if (rows[:, : 8 * len(registers)] % np.uint64(16)).any():
            raise Fault(f"{place}: misaligned row of a matrix")
        for k, name in enumerate(registers):
            mine = (rows[:, 8 * k + lane // 4] + (4 * (lane % 4)).astype(np.uint64)).ravel()
            values = (
                None if loads else np.ascontiguousarray(m.register(name)[who]).view(np.uint8).reshape(-1, 4)
            )
            found = _transfer(m, who, False, mine, 4, values, place)
            if loads:
                _put(m, name, who, found.view(np.uint32)[:, 0])

    return execute


def _shuffle(what: Instruction) -> Execute:
    """`shfl.sync`: the value of another lane of the warp, or its own where there is none."""
    kind, (target, source, by, *_) = what.parts[2], what.operands
    value, distance = _operand(source, 32), _operand(by, 32)
    lane = np.arange(WARP)

    def execute(m: Machine, who: Index) -> None:
        values = _each(m, who, value).reshape(-1, WARP)
        far = _each(m, who, distance).reshape(-1, WARP).astype(np.int64)
        other = {"bfly": lane ^ far, "idx": far, "down": lane + far, "up": lane - far}[kind]
        other = np.where((other < 0) | (other >= WARP), lane, other)
        _put(m, target, who, np.take_along_axis(values, other, axis=1).ravel())

    return execute
