"""From inputs to a folder of records, in blocks: a block's files depend on its inputs alone, and are written once.

The same inputs give the same bytes for any number of workers, and a run that was stopped goes on after the last
block that it had finished.
"""

import hashlib
import json
import multiprocessing
import shutil
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from clipsep_jax.queries import DEFAULT_TEMPLATE, prompt_for
from clipsep_jax.records import (
    LABEL_EMBEDDINGS_NAME,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    EncoderInfo,
    Manifest,
    Record,
    Shard,
    atomic_write,
    read_manifest,
    write_manifest,
    write_shard,
)
from clipsep_jax.structures import InputError
from data_prep.embed import Encoder, embed_records, label_table
from data_prep.ledger import LEDGER_NAME, Input, LedgerLine, Rejection, ledger_line, reasons, write_ledger

SPLITS = ("train", "validation", "test")
_PLAN_NAME = "plan.json"
_PARTS_NAME = "parts"

Outcome = Record | Rejection
Reader = Callable[[Path, str, str], Outcome]  # of path, id, label; must be a module's function, to reach the workers


def write_records(
    inputs: Sequence[Input],
    read: Reader,
    out: Path,
    *,
    encoder: Encoder | None = None,
    template: str = DEFAULT_TEMPLATE,
    num_workers: int = 1,
    block_size: int = 64,
    command: Sequence[str] = (),
) -> Manifest:
    """Read every input, embed its pictures, and write shards, ledger, label embeddings and, last, the manifest.

    Args:
        inputs: what to read, in the order of the ledger.
        read: gives the record of one input, or why there is none.
        out: the folder to write; a run that was stopped is continued, a finished one is left as it is.
        encoder: of pictures and labels; without one, the records hold no embeddings.
        template: of the labels' prompts.
        num_workers: processes that read; 0 reads in this process.
        block_size: inputs of one block, at most one shard a split.
        command: to be remembered in the manifest.

    Raises:
        InputError: the folder holds something else, no input could be used, or a worker died.
    """
    prompt_for("", template)  # refuse a bad template before the long work
    plan = _fingerprint(inputs, encoder, template, block_size)
    if _claim(out, plan):
        print(f"{out} already holds the records of these inputs: nothing to do.", file=sys.stderr)
        return read_manifest(out)
    blocks = [inputs[start : start + block_size] for start in range(0, len(inputs), block_size)]
    _write_blocks(out, blocks, read, encoder, num_workers)
    return _finish(out, len(blocks), plan, encoder, template, command)


def _fingerprint(inputs: Sequence[Input], encoder: Encoder | None, template: str, block_size: int) -> str:
    """Hash what decides the records: names, labels, splits and sizes of the inputs, and the options."""
    described = {
        "schema": SCHEMA_VERSION,
        "inputs": [[i.id, i.label, i.split, i.path.stat().st_size if i.path.is_file() else None] for i in inputs],
        "encoder": [encoder.sha256, template] if encoder else None,
        "block_size": block_size,
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _claim(out: Path, plan: str) -> bool:
    """Make `out` ready for a run of this plan; True where the run is already complete."""
    if (out / MANIFEST_NAME).is_file():
        _expect(out, read_manifest(out).inputs_sha256 == plan)
        _clear(out)
        return True
    if (out / _PLAN_NAME).is_file():
        _expect(out, json.loads((out / _PLAN_NAME).read_text("utf-8")) == plan)
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder to write the records to.")
    elif out.is_dir() and any(path.suffix != ".partial" for path in out.iterdir()):
        raise InputError(f"{out} holds other files; name an empty or a new folder to write the records to.")
    else:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(out / _PLAN_NAME) as file:
            file.write(json.dumps(plan).encode())
    (out / _PARTS_NAME).mkdir(exist_ok=True)
    return False


def _expect(out: Path, same: bool) -> None:
    if not same:
        raise InputError(f"{out} holds records of other inputs or options; name a new folder, or delete that one.")


def _clear(out: Path) -> None:
    """Remove what only an unfinished run needs."""
    shutil.rmtree(out / _PARTS_NAME, ignore_errors=True)
    (out / _PLAN_NAME).unlink(missing_ok=True)


def _part_path(out: Path, number: int) -> Path:
    return out / _PARTS_NAME / f"{number:05d}.json"


def _write_blocks(
    out: Path, blocks: Sequence[Sequence[Input]], read: Reader, encoder: Encoder | None, num_workers: int
) -> None:
    """Write the blocks that have no part file yet."""
    todo = [number for number in range(len(blocks)) if not _part_path(out, number).is_file()]
    inputs = [source for number in todo for source in blocks[number]]
    total = sum(len(block) for block in blocks)
    outcomes = _read_in_order(inputs, read, num_workers)
    with closing(outcomes), tqdm(total=total, initial=total - len(inputs), unit="clip", file=sys.stderr) as progress:
        shown = _shown(outcomes, progress)
        for number in todo:
            _write_block(out, number, blocks[number], list(islice(shown, len(blocks[number]))), encoder)


def _shown(outcomes: Iterable[Outcome], progress: tqdm) -> Iterator[Outcome]:
    counts = {"accepted": 0, "rejected": 0}
    for outcome in outcomes:
        counts["rejected" if isinstance(outcome, Rejection) else "accepted"] += 1
        progress.set_postfix(counts, refresh=False)
        progress.update()
        yield outcome


def _write_block(
    out: Path, number: int, block: Sequence[Input], outcomes: Sequence[Outcome], encoder: Encoder | None
) -> None:
    """Write a block's shards, then the part file that says that it is finished."""
    shards = {}
    for split in SPLITS:
        pairs = zip(block, outcomes, strict=True)
        records = [outcome for source, outcome in pairs if source.split == split and isinstance(outcome, Record)]
        if records:
            embedded = embed_records(records, encoder) if encoder else records
            shards[split] = asdict(write_shard(out / f"{split}-{number:05d}.tfrecord", embedded))
    lines = [asdict(ledger_line(source, outcome)) for source, outcome in zip(block, outcomes, strict=True)]
    with atomic_write(_part_path(out, number)) as file:
        file.write(json.dumps({"shards": shards, "ledger": lines}).encode())


def _finish(
    out: Path, num_blocks: int, plan: str, encoder: Encoder | None, template: str, command: Sequence[str]
) -> Manifest:
    """Merge the parts into the ledger and the manifest."""
    parts = [json.loads(_part_path(out, number).read_text("utf-8")) for number in range(num_blocks)]
    ledger = [LedgerLine(**line) for part in parts for line in part["ledger"]]
    write_ledger(out / LEDGER_NAME, ledger)
    accepted = [line for line in ledger if line.status == "accepted"]
    if not accepted:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons(ledger).items())
        raise InputError(f"None of the {len(ledger)} inputs could be used ({why}); see {out / LEDGER_NAME}.")
    labels = Counter(line.label for line in accepted if line.label)
    if encoder and labels:
        label_table(sorted(labels), encoder, template).save(out / LABEL_EMBEDDINGS_NAME)
    shards = {split: tuple(Shard(**p["shards"][split]) for p in parts if split in p["shards"]) for split in SPLITS}
    manifest = Manifest(
        counts={"inputs": len(ledger), "accepted": len(accepted), "rejected": len(ledger) - len(accepted)},
        labels=dict(sorted(labels.items())),
        splits={split: found for split, found in shards.items() if found},
        encoder=EncoderInfo(encoder.name, encoder.sha256, encoder.query_size) if encoder else None,
        inputs_sha256=plan,
        command=tuple(command),
    )
    write_manifest(out, manifest)
    _clear(out)
    return manifest


def _read_in_order(inputs: Sequence[Input], read: Reader, num_workers: int) -> Generator[Outcome, None, None]:
    """Read in worker processes, a bounded number of inputs ahead, and give the outcomes in the order of the inputs."""
    if num_workers == 0 or not inputs:
        yield from (read(source.path, source.id, source.label) for source in inputs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
    pending: deque[tuple[Input, Future[Outcome]]] = deque()
    try:
        for source in inputs:
            pending.append((source, pool.submit(read, source.path, source.id, source.label)))
            if len(pending) > 4 * num_workers:
                yield pending[0][1].result()
                pending.popleft()
        while pending:
            yield pending[0][1].result()
            pending.popleft()
    except BrokenProcessPool as error:
        unread = [source.id for source, future in pending if not future.done() or future.exception()]
        names = ", ".join(unread[:num_workers])
        raise InputError(
            f"A worker process died while it read one of {names}; remove that file, or run with fewer workers "
            "if memory is short; what is finished is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
