"""Embeddings of a finished folder of records, which stays as it was until all of the new one is on disk.

A folder `embedding.partial` in it holds

    options.json   what the run does, and from which manifest
    NAME.json      what became of the shard NAME
    records/       the new files; its manifest, which is written last, says that all are there
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from clipsep_jax.data import tfds
from clipsep_jax.data.index import Shard, read_index
from clipsep_jax.data.record import CorruptRecordError, Record
from clipsep_jax.data.record_set import (
    EMBEDDING_NAME,
    LABEL_EMBEDDINGS_NAME,
    MANIFEST_NAME,
    EncoderInfo,
    Manifest,
    RecordSplit,
    read_manifest,
    write_manifest,
    write_shard,
)
from clipsep_jax.data_prep.embed import embed_records, label_table
from clipsep_jax.data_prep.ledger import LEDGER_NAME, LedgerLine, Rejection, read_ledger, reject, write_ledger
from clipsep_jax.encoders.base import Encoder, NoTextError
from clipsep_jax.errors import InputError
from clipsep_jax.files import move_all, read_json, sha256_of, write_json
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.terminal import say

_OPTIONS_NAME = "options.json"
_STAGED_NAME = "records"


@dataclass(frozen=True)
class Change:
    """What is made of each record.

    Attributes:
        encoder: gives the embeddings; None keeps those that are there.
        drop_frames: whether the pictures are left out.
        batch_size: pictures per batch; batches are counted from the start of each shard.
        leave_out_damaged: whether records that cannot be read are left out.
    """

    encoder: Encoder | None
    drop_frames: bool
    batch_size: int
    leave_out_damaged: bool

    def of(self, records: list[Record]) -> list[Record]:
        """The changed records."""
        new = embed_records(records, self.encoder, self.batch_size) if self.encoder else records
        return [replace(record, frames=()) for record in new] if self.drop_frames else new


@dataclass(frozen=True)
class NewShard:
    """What became of a shard: the new one, and the records that were left out, by id, with what is wrong with each."""

    shard: Shard
    left_out: dict[str, str]


def embed_record_set(
    records: Path,
    encoder: Encoder,
    *,
    drop_frames: bool = False,
    leave_out_damaged: bool = False,
    batch_size: int = 32,
) -> Manifest:
    """Embed the stored pictures and the labels of a folder of records anew.

    For recordings without pictures, only the labels are embedded. The new shards are written beside the old ones, and
    take their places when all are complete; until then the folder is what it was. The same call resumes a stopped run,
    and gives the same files as an uninterrupted one.

    Args:
        drop_frames: leave the pictures out of the rewritten records.
        leave_out_damaged: leave out records that cannot be read, and say so in the ledger.
        batch_size: pictures per batch; batches are counted from the start of each shard.

    Returns:
        The new manifest, or the old one if there was nothing to do.

    Raises:
        InputError: the records are not complete or hold no pictures, or some are damaged (all are named).
    """
    finish_embedding(records)
    manifest = read_manifest(records)
    info = EncoderInfo(encoder.name, encoder.sha256, encoder.query_size)
    if not _needs_work(records, manifest, info, drop_frames):
        shutil.rmtree(records / EMBEDDING_NAME, ignore_errors=True)
        say(f"{records} already holds these embeddings: nothing to do.", error=True)
        return manifest
    known = _made_by(info, manifest)
    table = None if known else _table_of(manifest, encoder)
    change = Change(None if known else encoder, drop_frames, batch_size, leave_out_damaged)
    staged = _begin(records, info, change)
    splits, left_out = _write_shards(records, staged, manifest, change)
    if table:
        table.save(staged / LABEL_EMBEDDINGS_NAME)
    new = replace(manifest, splits=splits, encoder=info)
    if left_out:
        new = _without(new, records, staged, left_out)
    names = [LEDGER_NAME] if not known and not table else [LEDGER_NAME, LABEL_EMBEDDINGS_NAME]
    new = replace(new, other_files=_hashes([staged / name for name in names], records))
    write_manifest(staged, new)
    finish_embedding(records)
    return new


def finish_embedding(records: Path) -> None:
    """Move the new files of a run that was stopped after it had written all of them into their places.

    Raises:
        InputError: an earlier version has replaced a part of the shards.
    """
    work = records / EMBEDDING_NAME
    _check_own(work)
    staged = work / _STAGED_NAME
    if (work / MANIFEST_NAME).is_file() and not (records / MANIFEST_NAME).is_file():
        _give_back(records, work)
    if not (staged / MANIFEST_NAME).is_file():
        return
    new = read_manifest(staged)
    for name in (MANIFEST_NAME, tfds.INFO_NAME):  # nobody, TensorFlow Datasets too, must read half of each
        if (staged / name).is_file():
            (records / name).unlink(missing_ok=True)
    if LABEL_EMBEDDINGS_NAME not in new.other_files:
        (records / LABEL_EMBEDDINGS_NAME).unlink(missing_ok=True)
    move_all(staged, records, last=MANIFEST_NAME)
    shutil.rmtree(records / EMBEDDING_NAME)


def _give_back(records: Path, work: Path) -> None:
    """Give a folder its manifest back, which earlier versions moved away before they replaced the first shard."""
    try:
        for shards in read_manifest(work).splits.values():
            for shard in shards:
                read_index(records, [shard])  # checks the files; embeddings change their sizes
    except InputError as error:
        raise InputError(
            f"{records} was left half embedded by an earlier version; prepare the records anew in another folder."
        ) from error
    os.replace(work / MANIFEST_NAME, records / MANIFEST_NAME)
    shutil.rmtree(work)


def other_files(records: Path) -> dict[str, str]:
    """SHA-256 of the files beside the shards that are not made from the manifest."""
    return _hashes([records / name for name in (LEDGER_NAME, LABEL_EMBEDDINGS_NAME)], records)


def _hashes(paths: Sequence[Path], otherwise: Path) -> dict[str, str]:
    """The SHA-256 of each file by its name, or of that in another folder; of none that is in neither."""
    found = [path if path.is_file() else otherwise / path.name for path in paths]
    return {path.name: sha256_of(path) for path in found if path.is_file()}


def _begin(records: Path, encoder: EncoderInfo, change: Change) -> Path:
    """The folder for the new files; what a run that did something else has left there is dropped."""
    work = records / EMBEDDING_NAME
    _check_own(work)
    options = {"encoder": encoder.sha256, "drop_frames": change.drop_frames, "batch_size": change.batch_size}
    options["manifest"] = sha256_of(records / MANIFEST_NAME)
    if work.is_dir() and not _holds(work / _OPTIONS_NAME, options):
        say(f"{work} is of an unfinished run with other options: started anew.", error=True)
        shutil.rmtree(work)
    (work / _STAGED_NAME).mkdir(parents=True, exist_ok=True)
    write_json(work / _OPTIONS_NAME, options, indent=None)
    (work / _STAGED_NAME / LEDGER_NAME).unlink(missing_ok=True)  # tells of records that may have been restored
    return work / _STAGED_NAME


def _check_own(work: Path) -> None:
    """Refuse a folder of an unfinished run in which a link leads to files of others, which would be moved."""
    for path in (work, *(work.iterdir() if work.is_dir() else ())):
        if path.is_symlink():
            raise InputError(f"{path} is a link, which `clipsep prepare embed` does not write; delete it.")


def _holds(path: Path, options: dict) -> bool:
    try:
        return read_json(path, "is damaged.", dict) == options
    except (FileNotFoundError, InputError):
        return False


def _made_by(encoder: EncoderInfo, manifest: Manifest) -> bool:
    return manifest.encoder is not None and manifest.encoder.sha256 == encoder.sha256


def _needs_work(records: Path, manifest: Manifest, encoder: EncoderInfo, drop_frames: bool) -> bool:
    splits = [RecordSplit(records, name, shards, manifest.contents) for name, shards in manifest.splits.items()]
    has_frames = any(_has_frames(split) for split in splits)  # all records keep their pictures, or none
    if _made_by(encoder, manifest):
        return drop_frames and has_frames
    if not has_frames and any(entry.num_frames for split in splits for entry in split.entries):
        raise InputError(f"{records} holds clips without pictures, so it cannot be embedded; prepare it again.")
    return True


def _has_frames(split: RecordSplit) -> bool:
    """Whether the first record that can be read has pictures."""
    for number in range(len(split)):
        try:
            return bool(split[number].frames)
        except CorruptRecordError:
            continue
    return False


def _table_of(manifest: Manifest, encoder: Encoder) -> EmbeddingTable | None:
    """The table of the known labels; None if there are none, or the encoder takes no text."""
    try:
        return label_table(sorted(manifest.labels), encoder) if manifest.labels else None
    except NoTextError:
        return None


def _write_shards(
    records: Path, staged: Path, manifest: Manifest, change: Change
) -> tuple[dict[str, tuple[Shard, ...]], dict[str, str]]:
    """The new shards of each split, and the records that were left out, by id, with what is wrong with each.

    Raises:
        InputError: records are damaged and are not to be left out; all are named.
    """
    num_records = sum(shard.num_records for shards in manifest.splits.values() for shard in shards)
    splits, left_out = {}, dict[str, str]()
    with tqdm(total=num_records, unit="clip", file=sys.stderr) as progress:
        for split, shards in manifest.splits.items():
            new = [_write_shard(records, staged, shard, change, manifest, progress) for shard in shards]
            splits[split] = tuple(one.shard for one in new)
            left_out |= {name: fault for one in new for name, fault in one.left_out.items()}
    if left_out and not change.leave_out_damaged:
        raise InputError(
            f"{records}: {len(left_out)} records are damaged, named above, and nothing was changed; restore them, or "
            "add --leave-out-damaged."
        )
    return splits, left_out


def _write_shard(
    records: Path, staged: Path, shard: Shard, change: Change, manifest: Manifest, progress: tqdm
) -> NewShard:
    """Write a shard, unless a stopped run has; one with damaged records only where these are to be left out."""
    note = staged.with_name(shard.name + ".json")
    known = _written(note, staged)
    if known and not known.left_out:  # damaged records may have been restored
        progress.update(shard.num_records)
        return known
    split = RecordSplit(records, "", [shard], manifest.contents)
    whole, faults = _readable(split, decode=False)
    try:
        new = change.of(list(whole.values()))
    except CorruptRecordError:
        whole, faults = _readable(split, decode=True)
        new = change.of(list(whole.values())) if change.leave_out_damaged else []
    left_out = {split.entries[number].id: fault for number, fault in faults.items()}
    for fault in left_out.values():
        say(fault, error=True)
    if left_out and not change.leave_out_damaged:
        return NewShard(shard, left_out)
    written = NewShard(write_shard(staged / shard.name, new, manifest.audio_encoding), left_out)
    write_json(note, asdict(written), indent=None)
    progress.update(shard.num_records)
    return written


def _written(note: Path, staged: Path) -> NewShard | None:
    """The shard that a stopped run has written down; None if it has not, or if that is not there whole."""
    try:
        new = read_json(note, "is damaged.", NewShard)
        if note.name != f"{new.shard.name}.json":
            return None
        read_index(staged, [new.shard])  # checks the files
        return new
    except (FileNotFoundError, InputError):
        return None


def _readable(split: RecordSplit, decode: bool) -> tuple[dict[int, Record], dict[int, str]]:
    """The records that can be read, and what is wrong with the others, by number; also with pictures, if decoded."""
    whole, faults = {}, {}
    for number in range(len(split)):
        try:
            whole[number] = split.decoded(number) if decode else split[number]
        except CorruptRecordError as error:
            faults[number] = str(error)
    return whole, faults


def _without(new: Manifest, records: Path, staged: Path, left_out: dict[str, str]) -> Manifest:
    """The manifest of fewer records, whose ledger tells why."""
    splits = [RecordSplit(staged, name, shards, new.contents) for name, shards in new.splits.items()]
    for split in splits:
        if not len(split):
            raise InputError(f"{records}: no record of the split {split.name!r} can be read; restore its files.")
    entries = [entry for split in splits for entry in split.entries]
    ledger = [_outcome(line, left_out) for line in read_ledger(records / LEDGER_NAME)]
    write_ledger(staged / LEDGER_NAME, ledger)
    counts = {"inputs": len(ledger), "accepted": len(entries), "rejected": len(ledger) - len(entries)}
    labels = Counter(entry.label for entry in entries if entry.label)
    return replace(new, counts=counts, labels=dict(sorted(labels.items())))


def _outcome(line: LedgerLine, left_out: dict[str, str]) -> LedgerLine:
    return reject(line, Rejection("damaged", left_out[line.input])) if line.input in left_out else line
