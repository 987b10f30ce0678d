"""Reads XLA's text of a compiled module: its kernels, and the bytes that each has to read and write."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "f32": 32, "s32": 32, "u32": 32}
_BITS |= {"f64": 64, "s64": 64, "u64": 64, "c64": 64, "c128": 128}
_SHAPE = re.compile(rf"\b({'|'.join(_BITS)})\[([\d,]*)\](?:\{{([\d,]*))?")
_NO_KERNEL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element"}
_AS_THEY_ARE = {"convert", "copy", "select", "compare", "clamp", "map"}

# For each dimension, the indices that are needed.
Needed = list[np.ndarray]


@dataclass(frozen=True)
class Shape:
    """A shape of the text; `order` lists the dimensions from the slowest in memory to the fastest."""

    kind: str
    sides: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.sides) * _BITS[self.kind] // 8

    @property
    def everything(self) -> Needed:
        return [np.ones(side, bool) for side in self.sides]

    def bytes_of(self, needed: Needed) -> int:
        return prod(int(mask.sum()) for mask in needed) * _BITS[self.kind] // 8


@dataclass
class Instruction:
    """A line of a computation."""

    name: str
    is_root: bool
    shapes: list[Shape]
    opcode: str
    operands: list[str]
    text: str = field(repr=False)

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in the line, or nothing."""
        found = re.search(pattern, self.text)
        return found.group(1) if found else ""

    @cached_property
    def origin(self) -> str:
        """Which operation of the program it came from."""
        return self.attribute(r'op_name="([^"]*)"')

    @property
    def num_bytes(self) -> int:
        return sum(shape.num_bytes for shape in self.shapes)


@dataclass(frozen=True)
class Kernel:
    """What is launched once: its name, what kind of work it is, where it comes from, and the bytes it moves."""

    name: str
    kind: str
    origin: str
    num_bytes: int


def kernels(text: str) -> Iterator[Kernel]:
    """The kernels of a compiled module, in their order. What is read several times in one kernel is counted once."""
    computations, entry = _computations(text)
    results = {instruction.name: instruction for instruction in computations[entry]}
    for instruction in computations[entry]:
        if instruction.opcode in _NO_KERNEL:
            continue
        operands = [results[name] for name in instruction.operands]
        moved = instruction.num_bytes
        kind = instruction.opcode
        if kind == "fusion":
            body = computations[instruction.attribute(r"calls=%?([\w.\-]+)")]
            moved = sum(_bytes_read(body)) + _bytes_written(body)
        elif kind == "custom-call":
            kind = instruction.attribute(r'custom_call_target="([^"]*)"')
            scratch = sum(shape.num_bytes for shape in instruction.shapes[1:] if shape.kind in ("s8", "u8"))
            moved += sum(operand.num_bytes for operand in operands) - scratch
        else:
            moved += sum(operand.num_bytes for operand in operands)
        yield Kernel(instruction.name, kind, instruction.origin, moved)


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    found: dict[str, list[Instruction]] = {}
    entry = ""
    for line in text.splitlines():
        if heading := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            name = heading.group(2)
            found[name] = []
            entry = name if heading.group(1) else entry
        elif found and (parts := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)):
            root, name, shape, opcode, rest = parts.groups()
            operands = re.findall(r"%([\w.\-]+)", rest[: rest.index(")")])
            shapes = [_shape(*found) for found in _SHAPE.findall(shape)]
            next(reversed(found.values())).append(Instruction(name, bool(root), shapes, opcode, operands, rest))
    return found, entry


def _shape(kind: str, sides: str, order: str) -> Shape:
    lengths = _numbers(sides)
    return Shape(kind, lengths, _numbers(order)[::-1] if order else tuple(range(len(lengths))))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _bytes_written(body: list[Instruction]) -> int:
    """Bytes of a fused computation's results; an update in place writes just the update."""
    by_name = {instruction.name: instruction for instruction in body}
    (root,) = (instruction for instruction in body if instruction.is_root)
    results = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return sum(
        (by_name[result.operands[1]] if result.opcode == "dynamic-update-slice" else result).num_bytes
        for result in results
    )


def _bytes_read(body: list[Instruction]) -> list[int]:
    """Bytes that a fused computation needs of each of its parameters."""
    by_name = {instruction.name: instruction for instruction in body}
    needed: dict[str, Needed] = {}
    read: dict[int, int] = {}
    for instruction in reversed(body):
        if instruction.is_root and instruction.opcode != "tuple":
            needed[instruction.name] = instruction.shapes[0].everything
        operands = [by_name[name] for name in instruction.operands]
        if instruction.opcode == "tuple":
            wanted = [operand.shapes[0].everything for operand in operands]
        elif instruction.name in needed:
            wanted = _wanted(instruction, needed[instruction.name], [operand.shapes[0] for operand in operands])
        else:  # nothing of it is used
            wanted = []
        for operand, masks in zip(operands, wanted, strict=False):
            before = needed.get(operand.name)
            needed[operand.name] = masks if before is None else [a | b for a, b in zip(before, masks, strict=True)]
        if instruction.opcode == "parameter":
            number = int(instruction.text[: instruction.text.index(")")])
            read[number] = instruction.shapes[0].bytes_of(needed[instruction.name]) if instruction.name in needed else 0
    return [read[number] for number in sorted(read)]


def _wanted(instruction: Instruction, needed: Needed, operands: list[Shape]) -> list[Needed]:
    """What an instruction needs of its operands for what is needed of it; everything, where that is not known."""
    (shape, *_), dimensions = instruction.shapes, _numbers(instruction.attribute(r"dimensions=\{([\d,]*)\}"))
    match instruction.opcode:
        case "slice":
            return [_sliced(instruction, needed, operands[0])]
        case "pad":
            return [_padded(instruction, needed, operands[0]), operands[1].everything]
        case "dynamic-update-slice":
            return [[np.zeros(side, bool) for side in operands[0].sides], *(rest.everything for rest in operands[1:])]
        case "concatenate":
            return _concatenated(dimensions[0], needed, operands)
        case "broadcast":
            return [[needed[dimension] for dimension in dimensions]]
        case "transpose":
            return [[needed[dimensions.index(i)] for i in range(len(dimensions))]]
        case "reduce":
            kept = iter(needed)
            reduced = [np.ones(n, bool) if i in dimensions else next(kept) for i, n in enumerate(operands[0].sides)]
            return [reduced, *(operand.everything for operand in operands[1:])]
        case "reshape" | "bitcast":
            return [_reshaped(needed, shape, operands[0])]
    if all(operand.sides == shape.sides for operand in operands):
        return [needed for _ in operands]  # elementwise
    return [operand.everything for operand in operands]


def _sliced(instruction: Instruction, needed: Needed, operand: Shape) -> Needed:
    spans = re.findall(r"\[(\d+):(\d+)(?::(\d+))?\]", instruction.attribute(r"slice=\{([^}]*)\}"))
    masks = [np.zeros(side, bool) for side in operand.sides]
    for mask, inner, (start, stop, step) in zip(masks, needed, spans, strict=True):
        mask[int(start) : int(stop) : int(step or 1)] = inner
    return masks


def _padded(instruction: Instruction, needed: Needed, operand: Shape) -> Needed:
    masks = []
    paddings = instruction.attribute(r"padding=([\dx_\-]+)").split("x")
    for mask, side, padding in zip(needed, operand.sides, paddings, strict=True):
        low, _, *interior = (int(number) for number in padding.split("_"))
        places = low + np.arange(side) * (1 + sum(interior))
        inside = (places >= 0) & (places < len(mask))
        masks.append(inside & mask[np.clip(places, 0, len(mask) - 1)])
    return masks


def _concatenated(dimension: int, needed: Needed, operands: list[Shape]) -> list[Needed]:
    parts = np.split(needed[dimension], np.cumsum([operand.sides[dimension] for operand in operands])[:-1])
    return [[*needed[:dimension], part, *needed[dimension + 1 :]] for part in parts]


def _reshaped(needed: Needed, shape: Shape, operand: Shape) -> Needed:
    """The masks after a change of shape, in memory's order; by groups of dimensions that hold the same elements."""
    ours, theirs = [needed[i] for i in shape.order], [operand.sides[i] for i in operand.order]
    masks: Needed = []
    while ours or len(masks) < len(theirs):
        mine, their_sides = [np.ones(1, bool)], [1]
        rest = theirs[len(masks) :]
        while True:
            left, right = prod(map(len, mine)), prod(their_sides)
            if left == right and (left > 1 or not (ours or len(their_sides) - 1 < len(rest))):
                break
            if left <= right and ours:
                mine.append(ours.pop(0))
            else:
                their_sides.append(rest[len(their_sides) - 1])
        whole = np.ones(1, bool)
        for mask in mine:
            whole = (whole[:, None] & mask[None]).ravel()
        grid = whole.reshape(their_sides)
        masks += [grid.any(tuple(j for j in range(grid.ndim) if j != i)) for i in range(1, grid.ndim)]
    inverse = np.argsort(operand.order)
    return [masks[i] for i in inverse]
