"""Changes to files, as accidents and attackers make them, each determined by a generator of random numbers."""

import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from clipsep_jax.data.index import index_path, read_index
from clipsep_jax.data.record_set import read_manifest, write_manifest
from clipsep_jax.data.tfrecord import FRAMING_BYTES, framed
from clipsep_jax.files import sha256_of, write_json_lines

ODD = [3, -1, 2**70, 1.5, float("nan"), float("inf"), True, None, "", "..", "\x1b[31m", [], [[3]], {}, {"x": {}}]
WORDS = [b'"', b"\n", b"=1+1", b"\x00", b"\xff\xfe", b"../../x", b",,,,", b"\x1b[2J", b"1e999", b"{", b"[" * 5_000]
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, moved, lost or added."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        place, length = rng.randrange(len(changed) + 1), rng.choice([1, 2, 4, 8, 64, 1_000, len(changed)])
        part = changed[place : place + length]
        change = rng.randrange(9)
        if change == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            changed[place : place + length] = rng.randbytes(len(part))
        elif change == 2:
            changed[place : place + length] = bytes([rng.choice([0, 0xFF])]) * len(part)
        elif change == 3:
            del changed[place:]
        elif change == 4:
            del changed[place : place + length]
        elif change == 5:
            changed[place:place] = part
        elif change == 6:
            changed[place:place] = rng.choice(WORDS)
        elif change == 7:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice(NUMBERS) & (256**size - 1)
            changed[place : place + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        else:
            changed[place : place + length] = part[::-1]
    return bytes(changed)


def mutate_file(path: Path, rng: random.Random) -> None:
    """The bytes of a file; now and then the whole file is lost, empty, a folder, or large and hollow."""
    whole = rng.randrange(40)
    if whole == 0:
        path.unlink()
    elif whole == 1:
        path.write_bytes(b"")
    elif whole == 2:
        path.unlink()
        path.mkdir()
    elif whole == 3 and "checkpoints" not in path.parts:  # whose files are all hashed, however large they are
        with path.open("r+b") as file:
            file.truncate(40 * 2**30)  # takes no room on the disk
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))


def mutate_json(path: Path, rng: random.Random) -> None:
    """One value of a JSON file, or of one of its lines."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines))
    lines[number] = json.dumps(_with_odd_part(json.loads(lines[number]), rng))
    path.write_text("\n".join(lines))


def _with_odd_part(value: Any, rng: random.Random) -> Any:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.1:
        return rng.choice(ODD)
    changed, key = (dict(value) if isinstance(value, dict) else list(value)), rng.choice(keys)
    if rng.random() < 0.1:
        del changed[key]
    else:
        changed[key] = _with_odd_part(value[key], rng)
    return changed


def mutate_safetensors(path: Path, rng: random.Random) -> None:
    """One value of the header of a safetensors file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(_with_odd_part(json.loads(data[8:end]), rng)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def mutate_archive(path: Path, rng: random.Random) -> None:
    """A file within a zip archive, whose checksums are right again."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([*files, *[name for name in files if name.endswith("data.pkl")] * 4])
    files[name] = mutate_bytes(files[name], rng)
    buffer, kind = BytesIO(), rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())


def mutate_record(shard: Path, rng: random.Random) -> None:
    """The bytes of one record, with right checksums, index and manifest around it."""
    folder, manifest = shard.parent, read_manifest(shard.parent)
    split, old = next((s, one) for s, shards in manifest.splits.items() for one in shards if one.name == shard.name)
    entries, data = read_index(folder, [old]), shard.read_bytes()
    number = rng.randrange(len(entries))
    parts, lines, end = list[bytes](), list[dict](), 0
    for entry in entries:
        start = entry.offset + FRAMING_BYTES - 4
        record = data[start : start + entry.length]
        record = mutate_bytes(record, rng) if entry.number == number else record
        line = {name: value for name, value in asdict(entry).items() if name not in ("shard", "number", "parts")}
        lines.append(line | {"offset": end, "length": len(record)})
        parts.append(framed(record))
        end += len(parts[-1])
    shard.write_bytes(b"".join(parts))
    write_json_lines(index_path(shard), lines)
    new = replace(old, num_bytes=end, sha256=sha256_of(shard))
    shards = tuple(new if one.name == old.name else one for one in manifest.splits[split])
    write_manifest(folder, replace(manifest, splits=manifest.splits | {split: shards}))


def changes_of(path: Path) -> list[Callable[[Path, random.Random], None]]:
    """The changes that suit a file; a good one of its kind is expected."""
    by_suffix = {
        ".json": mutate_json,
        ".jsonl": mutate_json,
        ".safetensors": mutate_safetensors,
        ".pt": mutate_archive,
        ".tfrecord": mutate_record,
    }
    return [mutate_file, *([by_suffix[path.suffix]] * 2 if path.suffix in by_suffix else [])]
