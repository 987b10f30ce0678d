"""The demo on a folder of videos: records with embeddings of a given CLIP, or of a miniature one made for them."""

import os
from pathlib import Path

import numpy as np

from clipsep_jax.demo.mini_clip import train_mini_clip
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.records import RecordSet, decode_frame
from clipsep_jax.structures import InputError

ENCODER_STEPS = 600


def prepare_own_videos(videos: Path, out: Path, labels: Path | None, clip: str | None) -> None:
    """Prepares records with embeddings below `out`.

    Without `clip`, a miniature CLIP is trained on the pictures and labels of the training split and stored beside
    the records in `encoder/`; its embeddings of the other splits are as good as such a network can be.

    Raises:
        InputError: the videos or labels cannot be used.
    """
    from data_prep.videos import prepare_videos

    num_workers = os.cpu_count() or 1
    if clip is None:
        bare = out.with_name(out.name + "_without_embeddings")
        prepare_videos(videos, bare, labels_csv=labels, num_workers=num_workers)
        clip = str(_mini_clip(RecordSet(bare), out.with_name("encoder")))
    prepare_videos(videos, out, labels_csv=labels, encoder=load_clip(clip), num_workers=num_workers)


def _mini_clip(records: RecordSet, folder: Path) -> Path:
    if (folder / "model.safetensors").is_file():
        return folder
    split, names = records.split("train"), records.labels
    labelled = [number for number, entry in enumerate(split.entries) if entry.label]
    if not labelled:
        raise InputError("None of the training videos has a label; name them in --labels, or give a CLIP with --clip.")
    entries = [split.entries[number] for number in labelled]
    kinds = np.repeat([names.index(entry.label) for entry in entries], [entry.num_frames for entry in entries])
    pictures = (decode_frame(jpeg) for number in labelled for jpeg in split[number].frames)
    return train_mini_clip(folder, pictures, kinds, names, ENCODER_STEPS)
