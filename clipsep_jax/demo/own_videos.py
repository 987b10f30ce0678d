"""The demo on a folder of videos: records with embeddings of a given CLIP, or of a miniature one made for them."""

import os
from pathlib import Path

import numpy as np

from clipsep_jax.data.record import decode_frame
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.demo.toy.mini_clip import train_mini_clip
from clipsep_jax.encoders.registry import load_encoder
from clipsep_jax.errors import InputError

ENCODER_STEPS = 600


def prepare_own_videos(videos: Path, out: Path, labels: Path | None, clip: str | None) -> None:
    """Prepares records with embeddings below `out`.

    Without `clip`, a miniature CLIP is trained on the pictures and labels of the training split and stored beside
    the records in `encoder/`; its embeddings of the other splits are as good as such a network can be.

    Raises:
        InputError: the videos or labels cannot be used.
    """
    from clipsep_jax.data_prep.embed_set import embed_record_set
    from clipsep_jax.data_prep.sources.videos import find_videos, read_video
    from clipsep_jax.data_prep.writer import PoolRunner, write_records

    write_records(find_videos(videos, labels), read_video, out, run=PoolRunner(os.cpu_count() or 1), max_rejected=1.0)
    if clip is None:
        clip = str(out.with_name("encoder"))
        _train_mini_clip(RecordSet(out), Path(clip))
    embed_record_set(out, load_encoder(clip))


def _train_mini_clip(records: RecordSet, folder: Path) -> None:
    if (folder / "model.safetensors").is_file():
        return
    split, names = records.split("train"), records.labels
    labelled = [number for number, entry in enumerate(split.entries) if entry.label]
    if not labelled:
        raise InputError("None of the training videos has a label; name them in --labels, or give a CLIP with --clip.")
    entries = [split.entries[number] for number in labelled]
    kinds = np.repeat([names.index(entry.label) for entry in entries], [entry.num_frames for entry in entries])
    pictures = (decode_frame(jpeg) for number in labelled for jpeg in split[number].frames)
    train_mini_clip(folder, pictures, kinds, names, ENCODER_STEPS)
