"""Embeddings of the stored pictures and of the labels, by a frozen encoder: of new records, or of a whole folder."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from clipsep_jax.data import tfds
from clipsep_jax.data.record import Record, decode_frame
from clipsep_jax.data.record_set import (
    EMBEDDING_NAME,
    LABEL_EMBEDDINGS_NAME,
    MANIFEST_NAME,
    EncoderInfo,
    Manifest,
    RecordSplit,
    Shard,
    read_manifest,
    write_manifest,
    write_shard,
)
from clipsep_jax.data_prep.ledger import LEDGER_NAME
from clipsep_jax.encoders.base import Encoder, NoTextError
from clipsep_jax.errors import InputError
from clipsep_jax.files import decode_json_as, read_json, staged_folder, write_json
from clipsep_jax.queries.prompts import DEFAULT_TEMPLATE, prompt_for
from clipsep_jax.queries.table import EmbeddingTable

_OPTIONS_NAME = "options.json"


def embed_records(records: Sequence[Record], encoder: Encoder, batch_size: int = 32) -> list[Record]:
    """Fill `frame_embeddings` from the stored JPEGs, so that they match the stored pixels exactly."""
    if not records:
        return []
    jpegs = [jpeg for record in records for jpeg in record.frames]
    batches = [jpegs[start : start + batch_size] for start in range(0, len(jpegs), batch_size)]
    nothing = np.zeros((0, encoder.query_size), np.float32)
    vectors = np.concatenate([nothing, *(_embed_batch(batch, encoder, batch_size) for batch in batches)])
    ends = np.cumsum([len(record.frames) for record in records])
    parts = np.split(vectors, ends[:-1])
    return [replace(record, frame_embeddings=part) for record, part in zip(records, parts, strict=True)]


def _embed_batch(jpegs: Sequence[bytes], encoder: Encoder, batch_size: int) -> Float32[np.ndarray, "num_frames Q"]:
    frames = np.stack([decode_frame(jpeg) for jpeg in jpegs])
    padding = np.zeros((batch_size - len(frames), *frames.shape[1:]), np.uint8)  # one shape is compiled once
    return encoder.embed_frames(np.concatenate([frames, padding]))[: len(frames)]


def label_table(labels: Sequence[str], encoder: Encoder, template: str = DEFAULT_TEMPLATE) -> EmbeddingTable:
    """Embed the prompt of every label.

    Raises:
        NoTextError: the encoder takes only pictures.
        InputError: the template does not hold `{}` exactly once.
    """
    return EmbeddingTable(tuple(labels), encoder.embed_text([prompt_for(label, template) for label in labels]))


def embed_record_set(records: Path, encoder: Encoder, *, drop_frames: bool = False, batch_size: int = 32) -> Manifest:
    """Embed the stored pictures and the labels of a folder of records and rewrite its shards, one by one.

    For recordings without pictures, only the labels are embedded. The same call resumes a stopped run, and gives the
    same files as an uninterrupted one. Until the end there is no manifest, so that a half-rewritten folder is never
    read.

    Args:
        drop_frames: leave the pictures out of the rewritten records.
        batch_size: pictures per batch; batches are counted from the start of each shard.

    Returns:
        The new manifest, or the old one if there was nothing to do.

    Raises:
        InputError: the records are not complete or hold no pictures, or a run with other options is unfinished.
    """
    info = EncoderInfo(encoder.name, encoder.sha256, encoder.query_size)
    options = {"encoder": info.sha256, "drop_frames": drop_frames, "batch_size": batch_size}
    manifest = manifest_in_hand(records)
    if manifest:
        _check_options(records, options)
    else:
        manifest = read_manifest(records)
        shutil.rmtree(records / EMBEDDING_NAME, ignore_errors=True)
        if not _needs_work(records, manifest, info, drop_frames):
            print(f"{records} already holds these embeddings: nothing to do.", file=sys.stderr)
            return manifest
    known = _made_by(info, manifest)
    table = None if known else _table_of(manifest, encoder)  # may fail, so it comes before any change of files
    _take_manifest(records, options)
    (records / tfds.INFO_NAME).unlink(missing_ok=True)  # TensorFlow Datasets must not read it meanwhile either
    rewrite = partial(_rewritten, encoder=None if known else encoder, drop_frames=drop_frames, batch_size=batch_size)
    splits = _rewrite_shards(records, manifest, rewrite)
    if not known:
        _replace_table(records / LABEL_EMBEDDINGS_NAME, table)
    new = replace(manifest, splits=splits, encoder=info, other_files=other_files(records))
    write_manifest(records, new)
    shutil.rmtree(records / EMBEDDING_NAME)
    return new


def _rewritten(old: list[Record], encoder: Encoder | None, drop_frames: bool, batch_size: int) -> list[Record]:
    """The records, embedded if there is an encoder, and without their pictures if those are dropped."""
    new = embed_records(old, encoder, batch_size) if encoder else old
    return [replace(record, frames=()) for record in new] if drop_frames else new


def other_files(records: Path) -> dict[str, str]:
    """SHA-256 of the files beside the shards that are not made from the manifest."""
    paths = [records / name for name in (LEDGER_NAME, LABEL_EMBEDDINGS_NAME)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def manifest_in_hand(records: Path) -> Manifest | None:
    """The manifest that an unfinished run has moved away, None if there is no such run."""
    work = records / EMBEDDING_NAME
    if (records / MANIFEST_NAME).is_file() or not (work / MANIFEST_NAME).is_file():
        return None
    return read_manifest(work)


def _check_options(records: Path, options: dict) -> None:
    path = records / EMBEDDING_NAME / _OPTIONS_NAME
    if read_json(path, "is damaged; prepare the records again.", dict) != options:
        raise InputError(f"{records} is half embedded with another encoder or options; finish that run first.")


def _take_manifest(records: Path, options: dict) -> None:
    work = records / EMBEDDING_NAME
    if (work / MANIFEST_NAME).is_file():
        return
    work.mkdir()
    write_json(work / _OPTIONS_NAME, options, indent=None)
    os.replace(records / MANIFEST_NAME, work / MANIFEST_NAME)


def _made_by(encoder: EncoderInfo, manifest: Manifest) -> bool:
    return manifest.encoder is not None and manifest.encoder.sha256 == encoder.sha256


def _needs_work(records: Path, manifest: Manifest, encoder: EncoderInfo, drop_frames: bool) -> bool:
    splits = [RecordSplit(records, name, shards) for name, shards in manifest.splits.items()]  # checks every file
    has_frames = any(split[0].frames for split in splits if split.entries)  # all records keep their pictures, or none
    if _made_by(encoder, manifest):
        return drop_frames and has_frames
    if not has_frames and any(entry.num_frames for split in splits for entry in split.entries):
        raise InputError(f"{records} holds clips without pictures, so it cannot be embedded; prepare it again.")
    return True


def _table_of(manifest: Manifest, encoder: Encoder) -> EmbeddingTable | None:
    """The table of the known labels; None if there are none, or the encoder takes no text."""
    try:
        return label_table(sorted(manifest.labels), encoder) if manifest.labels else None
    except NoTextError:
        return None


def _replace_table(path: Path, table: EmbeddingTable | None) -> None:
    if table is None:
        path.unlink(missing_ok=True)
    else:
        table.save(path)


def _rewrite_shards(
    records: Path, manifest: Manifest, rewrite: Callable[[list[Record]], list[Record]]
) -> dict[str, tuple[Shard, ...]]:
    num_records = sum(shard.num_records for shards in manifest.splits.values() for shard in shards)
    splits = {}
    with tqdm(total=num_records, unit="clip", file=sys.stderr) as progress:
        for split, shards in manifest.splits.items():
            done = []
            for shard in shards:
                done.append(_rewrite_shard(records, shard, rewrite, manifest.audio_encoding))
                progress.update(shard.num_records)
            splits[split] = tuple(done)
    return splits


def _rewrite_shard(
    records: Path, shard: Shard, rewrite: Callable[[list[Record]], list[Record]], audio_encoding: str
) -> Shard:
    """Replace a shard and its index by new ones, unless a stopped run has already done so.

    The old ones stay until the new ones are complete and a separate file says so; after that, they only have to be
    moved.
    """
    work = records / EMBEDDING_NAME / shard.name
    complete = work.with_name(shard.name + ".json")
    with staged_folder(records, kept=work):
        if not complete.is_file():
            old = RecordSplit(records, "", [shard])
            new = write_shard(work / shard.name, rewrite([old[number] for number in range(len(old))]), audio_encoding)
            write_json(complete, asdict(new), indent=None)
    return decode_json_as(Shard, complete.read_bytes(), complete, "is damaged; prepare the records again.")
