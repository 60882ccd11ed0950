"""PTX as instructions. In: the text that Triton makes of a kernel. Out: a `Program`, parsed once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

_LINE = re.compile(r"\.loc\s+\d+\s+(\d+)")
_SCOPED = re.compile(r"^\{ \.reg \.\w+ tmp; (.*;) \}$")
_LABEL = re.compile(r"^(\$\w+):$")
_INSTRUCTION = re.compile(r"^(?:@(!?)(%p\d+)\s+)?([\w.:]+)\s*(.*?);?$")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]\s]+")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in parts, its operands, and the predicate under which it is executed."""

    parts: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str = ""
    negated: bool = False
    line: int = 0  # of the kernel's source

    def __str__(self) -> str:
        return f"line {self.line}: {'.'.join(self.parts)} {', '.join(self.operands)}"


@dataclass(frozen=True, eq=False)
class Program:
    """A kernel's instructions; `labels` says which one a label stands before."""

    name: str
    parameters: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


@cache
def parse(text: str) -> Program:
    """The one kernel of a PTX module."""
    code = text.split("\t.section")[0]
    found = re.search(r"\.entry (\w+)\(", code)
    assert found is not None, "a module without a kernel"
    body = code[code.index("\n{", found.start()) + 2 :]
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    line = 0
    for written in body.splitlines():
        bare = written.split("//")[0].strip()
        if place := _LINE.match(bare):
            line = int(place[1])
            continue
        if scoped := _SCOPED.match(bare):  # a value that nobody reads
            bare = re.sub(r"\btmp\b", "_", scoped[1])
        if not bare or bare in "{}" or bare.startswith("."):
            continue
        if label := _LABEL.match(bare):
            labels[label[1]] = len(instructions)
            continue
        parts = _INSTRUCTION.match(bare)
        assert parts is not None, bare
        operands = tuple(_OPERAND.findall(parts[4].rstrip(";")))
        name = tuple(parts[3].replace("::", ".").split("."))
        instructions.append(Instruction(name, operands, parts[2] or "", parts[1] == "!", line))
    return Program(found[1], code.count(".param .u64"), tuple(instructions), labels)
