"""From inputs to a folder of records, in blocks: a block's files depend on its inputs alone, and are written once.

The same inputs give the same bytes, whichever process reads them, and a stopped run resumes with its unfinished blocks.
Blocks are written to `parts/`; when all are finished, their shards move to their final names.
"""

import hashlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from clipsep_jax.data.index import Shard, index_path, read_index
from clipsep_jax.data.record import AudioEncoding, Record
from clipsep_jax.data.record_set import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Manifest,
    ShardWriter,
    read_manifest,
    write_manifest,
)
from clipsep_jax.data_prep.embed_set import finish_embedding, other_files
from clipsep_jax.data_prep.ledger import LEDGER_NAME, LedgerLine, Rejection, ledger_line, reasons, write_ledger
from clipsep_jax.data_prep.pool import DIED, Outcome, Reader, ReaderPool
from clipsep_jax.data_prep.sources.inputs import SPLITS, Input, file_size, mark_duplicates
from clipsep_jax.errors import InputError
from clipsep_jax.files import encode_json, read_json, write_json
from clipsep_jax.terminal import say

_LOCK_NAME = "lock.partial"
_PLAN_NAME = "plan.json"
_PARTS_NAME = "parts"


@dataclass(frozen=True)
class Block:
    """Inputs whose records are written together, and where."""

    number: int
    inputs: tuple[Input, ...]
    out: Path
    audio_encoding: AudioEncoding

    @property
    def folder(self) -> Path:
        """The folder of the block's shards, at most one per split."""
        return self.out / _PARTS_NAME / f"{self.number:05d}"

    @property
    def part(self) -> Path:
        """The file that marks the block as finished."""
        return self.folder.with_suffix(".json")


@dataclass(frozen=True)
class Part:
    """What became of a block: its shards by split, and the line of each input in the ledger."""

    shards: dict[str, Shard]
    ledger: list[LedgerLine]

    @classmethod
    def read(cls, block: Block) -> "Part | None":
        """The part of a finished block; None where there is none, or it is damaged."""
        try:
            part = read_json(block.part, "is damaged.", cls)
        except (FileNotFoundError, InputError):
            return None
        named = all(split in SPLITS and shard.name == _staged_name(split) for split, shard in part.shards.items())
        same = [line.input for line in part.ledger] == [source.id for source in block.inputs]
        return part if named and same else None


# Reads and writes blocks, given how many inputs are finished already: `PoolRunner` or `data_prep.beam.BeamRunner`.
Runner = Callable[[Sequence[Block], Reader, int], None]


@dataclass(frozen=True)
class PoolRunner:
    """Reads in processes of this machine; without workers, in this process without a time limit."""

    num_workers: int = 1
    time_limit_seconds: float = 600.0

    def __call__(self, blocks: Sequence[Block], read: Reader, num_done: int) -> None:
        inputs = [source for block in blocks for source in block.inputs]
        progress = tqdm(total=num_done + len(inputs), initial=num_done, unit="clip", file=sys.stderr)
        with ReaderPool(read, self.num_workers, self.time_limit_seconds) as pool, progress:
            outcomes = _shown(pool.outcomes(inputs), progress)
            for block in blocks:
                write_block(block, islice(outcomes, len(block.inputs)))


def _shown(outcomes: Iterator[Outcome], progress: tqdm) -> Iterator[Outcome]:
    counts = {"accepted": 0, "rejected": 0}
    for outcome in outcomes:
        counts["rejected" if isinstance(outcome, Rejection) else "accepted"] += 1
        progress.set_postfix(counts, refresh=False)
        progress.update()
        yield outcome


def write_records(
    inputs: Sequence[Input],
    read: Reader,
    out: Path,
    *,
    run: Runner | None = None,
    reading: str = "",
    audio_encoding: AudioEncoding = "pcm16",
    max_rejected: float = 0.25,
    block_size: int = 64,
    command: Sequence[str] = (),
) -> Manifest:
    """Read every input and write shards, ledger and, last, the manifest.

    Args:
        inputs: what to read, in the order of the ledger.
        read: gives the record of one input, or why there is none.
        out: the folder to write; a stopped run is resumed, a finished one is left as it is.
        run: reads and writes the blocks; by default one process of this machine.
        reading: names the reader and its options, which must not change between runs.
        audio_encoding: "pcm16" or "flac".
        max_rejected: if a larger share of the inputs is rejected, only the ledger is written.
        block_size: inputs per block, which has at most one shard per split.
        command: stored in the manifest.

    Raises:
        InputError: the folder holds something else or is in use, or too few inputs could be used.
    """
    inputs = mark_duplicates(inputs)
    plan = _fingerprint(inputs, reading, audio_encoding, block_size)
    _make_folder(out)
    with _alone(out):
        finished = _claim(out, plan)
        if finished:
            return finished
        starts = range(0, len(inputs), block_size)
        blocks = [Block(n, tuple(inputs[s : s + block_size]), out, audio_encoding) for n, s in enumerate(starts)]
        _write_unfinished(blocks, run or PoolRunner(), read)
        return _finish(blocks, plan, max_rejected, command)


def _write_unfinished(blocks: Sequence[Block], run: Runner, read: Reader) -> None:
    unfinished = _unfinished(blocks)
    if unfinished:
        num_done = sum(len(block.inputs) for block in blocks) - sum(len(block.inputs) for block in unfinished)
        run(unfinished, read, num_done)


def _unfinished(blocks: Sequence[Block]) -> list[Block]:
    """The blocks whose part file or shards are not there whole, and those that are worth another try."""
    unfinished, counts, all_known = [], Counter[str](), True
    for block in blocks:
        part = Part.read(block)
        if part is None or not _has_shards(block, part, counts if all_known else None) or _may_try_again(block, part):
            unfinished.append(block)
        all_known = all_known and part is not None
        counts.update(list(part.shards) if part else [])  # their splits
    return unfinished


def _has_shards(block: Block, part: "Part", counts: Mapping[str, int] | None) -> bool:
    """Whether each shard is in the block's folder or, where its number is known, has moved to its final name."""
    return all(
        _is_whole(block.folder, shard)
        or (counts is not None and _is_whole(block.out, replace(shard, name=_final_name(split, counts.get(split, 0)))))
        for split, shard in part.shards.items()
    )


def _is_whole(folder: Path, shard: Shard) -> bool:
    try:
        read_index(folder, [shard])
    except InputError:
        return False
    return True


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder to write the records to.")
    out.mkdir(parents=True, exist_ok=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes of this machine from writing to the same folder."""
    try:
        with FileLock(out / _LOCK_NAME, timeout=0):
            try:
                yield
            finally:
                (out / _LOCK_NAME).unlink(missing_ok=True)
    except Timeout:
        raise InputError(f"Another process is writing to {out}; wait until it ends, or name another folder.") from None


def _may_try_again(block: Block, part: "Part") -> bool:
    """Whether a run ended with too many rejections, some of which in this block may be the machine's fault."""
    if not (block.out / LEDGER_NAME).is_file() or any(block.out.glob("*.tfrecord")):
        return False
    return any(line.reason == "timeout" or line.detail.startswith(DIED) for line in part.ledger)


def _fingerprint(inputs: Sequence[Input], reading: str, audio_encoding: AudioEncoding, block_size: int) -> str:
    """Hash what determines the records: the inputs, the sizes of their files, and the options."""
    described = {
        "schema": SCHEMA_VERSION,
        "reading": reading,
        "inputs": [_described(source) for source in inputs],
        "audio_encoding": audio_encoding,
        "block_size": block_size,
    }
    return hashlib.sha256(encode_json(described).rstrip()).hexdigest()


def _described(source: Input) -> list:
    segment = [source.segment.start_seconds, source.segment.seconds] if source.segment else None
    frames = source.frames.count if source.frames else None
    return [source.id, source.label, source.split, file_size(source.path), segment, frames]


def _claim(out: Path, plan: str) -> Manifest | None:
    """Make `out` ready for a run of this plan; return the manifest if that run is already complete."""
    finish_embedding(out)
    if (out / MANIFEST_NAME).is_file():
        finished = read_manifest(out)
        _expect(out, finished.inputs_sha256 == plan)
        _clear(out)
        say(f"{out} already holds the records of these inputs: nothing to read.", error=True)
        return finished
    if (out / _PLAN_NAME).is_file():
        _check_plan(out, plan)
    elif any(path.suffix != ".partial" for path in out.iterdir()):
        raise InputError(f"{out} holds other files; name an empty or a new folder to write the records to.")
    else:
        write_json(out / _PLAN_NAME, plan, indent=None)
    (out / _PARTS_NAME).mkdir(exist_ok=True)
    return None


def _check_plan(out: Path, plan: str) -> None:
    """Refuse another plan; if it cannot be read, nothing tells what the finished blocks were made from."""
    try:
        known = read_json(out / _PLAN_NAME, "is damaged: all inputs are read again.", str)
    except InputError as error:
        say(error, error=True)
        shutil.rmtree(out / _PARTS_NAME, ignore_errors=True)
        write_json(out / _PLAN_NAME, plan, indent=None)
    else:
        _expect(out, known == plan)


def _expect(out: Path, same: bool) -> None:
    if not same:
        raise InputError(f"{out} holds records of other inputs or options; name a new folder, or delete that one.")


def _clear(out: Path) -> None:
    """Remove what only an unfinished run needs."""
    shutil.rmtree(out / _PARTS_NAME, ignore_errors=True)
    for path in [out / _PLAN_NAME, *out.glob("*.partial")]:
        if path.is_file() and path.name != _LOCK_NAME:
            path.unlink()


def write_block(block: Block, outcomes: Iterator[Outcome]) -> None:
    """Write a block's shards, record by record, then the part file that marks it as finished."""
    block.folder.mkdir(exist_ok=True)
    writers: dict[str, ShardWriter] = {}
    lines = []
    with ExitStack() as stack:
        for source, outcome in zip(block.inputs, outcomes, strict=True):
            lines.append(asdict(ledger_line(source, outcome)))
            if isinstance(outcome, Record):
                if source.split not in writers:
                    writer = ShardWriter(block.folder / _staged_name(source.split), block.audio_encoding)
                    writers[source.split] = stack.enter_context(writer)
                writers[source.split].add(outcome)
    shards = {split: asdict(writer.shard) for split, writer in writers.items()}
    write_json(block.part, {"shards": shards, "ledger": lines}, indent=None)


def _finish(blocks: Sequence[Block], plan: str, max_rejected: float, command: Sequence[str]) -> Manifest:
    """Merge the parts into the ledger, the final shards and the manifest."""
    out = blocks[0].out
    parts = [part for block in blocks if (part := Part.read(block))]
    assert len(parts) == len(blocks)
    ledger = [line for part in parts for line in part.ledger]
    write_ledger(out / LEDGER_NAME, ledger)
    accepted = [line for line in ledger if line.status == "accepted"]
    _check_rejected(out, ledger, len(accepted), max_rejected)
    splits = {}
    for split in SPLITS:
        found = [(b.folder, p.shards[split]) for b, p in zip(blocks, parts, strict=True) if split in p.shards]
        if found:
            names = [_final_name(split, number) for number in range(len(found))]
            splits[split] = tuple(_move(*one, out, name) for one, name in zip(found, names, strict=True))
    labels = Counter(line.label for line in accepted if line.label)
    manifest = Manifest(
        counts={"inputs": len(ledger), "accepted": len(accepted), "rejected": len(ledger) - len(accepted)},
        labels=dict(sorted(labels.items())),
        splits=splits,
        encoder=None,
        inputs_sha256=plan,
        command=tuple(command),
        audio_encoding=blocks[0].audio_encoding,
        other_files=other_files(out),
    )
    write_manifest(out, manifest)
    _clear(out)
    return manifest


def _check_rejected(out: Path, ledger: Sequence[LedgerLine], num_accepted: int, max_rejected: float) -> None:
    num_rejected = len(ledger) - num_accepted
    if num_accepted and num_rejected <= max_rejected * len(ledger):
        return
    why = ", ".join(f"{count} {reason}" for reason, count in reasons(ledger).items())
    if not num_accepted:
        raise InputError(f"None of the {len(ledger)} inputs could be used ({why}); see {out / LEDGER_NAME}.")
    raise InputError(
        f"{num_rejected} of {len(ledger)} inputs were rejected ({why}), a share of {num_rejected / len(ledger):.2f}; "
        f"see {out / LEDGER_NAME}, and run the same command with a higher --max-rejected to take the others."
    )


def _staged_name(split: str) -> str:
    return f"{split}.tfrecord"


def _final_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.tfrecord"


def _move(folder: Path, shard: Shard, out: Path, name: str) -> Shard:
    """Give a shard its final name, unless a stopped run has already done so."""
    staged, placed = folder / shard.name, out / name
    for old, new in ((staged, placed), (index_path(staged), index_path(placed))):
        if old.exists():
            os.replace(old, new)
    return replace(shard, name=name)
