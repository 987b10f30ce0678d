"""Checks that a folder of records is unchanged: every byte of every shard and index."""

import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from clipsep_jax.data.index import Shard, index_line, index_path
from clipsep_jax.data.record import CorruptRecordError
from clipsep_jax.data.record_set import MANIFEST_NAME, Contents, RecordSplit, read_manifest, tfds_files
from clipsep_jax.errors import InputError
from clipsep_jax.files import sha256_of


def verify(folder: Path) -> Iterator[str]:
    """Check every record, shard, index and other file; give a sentence for each that has changed.

    Raises:
        InputError: there is no complete folder of records.
    """
    manifest = read_manifest(folder)
    shards = [shard for split in manifest.splits.values() for shard in split]
    with tqdm(total=sum(shard.num_bytes for shard in shards), unit="B", unit_scale=True, file=sys.stderr) as progress:
        for shard in shards:
            yield from shard_problems(folder, shard, manifest.contents)
            progress.update(shard.num_bytes)
    for name, digest in manifest.other_files.items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing; restore it or prepare the records again."
        elif sha256_of(path) != digest:
            yield f"{path} has changed; restore it or prepare the records again."
    for name, content in tfds_files(manifest).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
            yield f"{path} disagrees with the manifest; restore it or prepare the records again."
    num_records = sum(shard.num_records for shard in shards)
    if manifest.counts.get("accepted") != num_records or sum(manifest.labels.values()) > num_records:
        yield f"{folder / MANIFEST_NAME} counts its records wrongly; restore it or prepare the records again."


def shard_problems(folder: Path, shard: Shard, contents: Contents) -> Iterator[str]:
    """The problems of one shard, a sentence each."""
    path = folder / shard.name
    try:
        split = RecordSplit(folder, "", [shard], contents)
    except InputError as error:
        yield str(error)
        return
    lines, intact = [], True
    for number, entry in enumerate(split.entries):
        try:
            record, data = split.decoded(number), split.serialized(number)
            lines.append(index_line(record, entry.offset, data, in_parts=entry.parts is not None))
        except CorruptRecordError as error:
            intact = False
            yield str(error)
    if not intact:
        return
    if sha256_of(path) != shard.sha256:
        yield f"{path} does not have the SHA-256 of the manifest; restore it or prepare it again."
    elif index_path(path).read_bytes() != b"".join(lines):
        yield f"{index_path(path)} disagrees with its shard; restore it or prepare the records again."
