"""Toy records: made-up clips of ten kinds, in the same files as prepared videos, with a miniature CLIP beside them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int, Int16, UInt8
from PIL import Image

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data.record import FRAMES_PER_SECOND, Record
from clipsep_jax.data.record_set import MANIFEST_NAME, read_manifest
from clipsep_jax.demo.toy.draws import Split
from clipsep_jax.demo.toy.mini_clip import train_mini_clip
from clipsep_jax.demo.toy.pictures import draw, draw_clip
from clipsep_jax.demo.toy.sounds import KINDS, off_screen_noise, synthesize
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.errors import InputError
from clipsep_jax.files import staged_folder

if TYPE_CHECKING:
    from clipsep_jax.data_prep.sources.inputs import Input

ENCODER_NAME = "encoder"
CLIP_SECONDS = 8
OFF_SCREEN_SHARE = 0.3  # of the training clips
PICTURES_PER_KIND = 250  # to train the miniature CLIP with
MIN_CLIPS = 20  # so that two clips can be mixed in every split

_VERSION = 1  # raise it when the same arguments give other records


def make_toy_records(out: Path, num_clips: int, encoder_steps: int, seed: int = 0) -> Path:
    """Make a folder of records with the splits train (80%), validation and test, and their encoder in `out/encoder`.

    Clips of validation and test come from parameters that training clips never have, and hold no off-screen sound.
    A folder that the same arguments made before is left as it is; it appears complete or not at all. Bars on stderr
    show the progress.

    Args:
        out: the folder to make, which is returned.
        encoder_steps: training of the miniature CLIP; 0 leaves it random.

    Raises:
        InputError: `out` holds something else, or `num_clips` is below 20.
    """
    if num_clips < MIN_CLIPS:
        raise InputError(f"{num_clips} toy clips are too few to mix two in every split; ask for {MIN_CLIPS} or more.")
    command = ("toy", f"version={_VERSION}", f"clips={num_clips}", f"encoder_steps={encoder_steps}", f"seed={seed}")
    if _is_made(out, command):
        return out
    with staged_folder(out.parent) as staging:
        _make(staging / out.name, out, _inputs(num_clips), encoder_steps, seed, command)
    return out


def _is_made(out: Path, command: tuple[str, ...]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if (out / MANIFEST_NAME).is_file() and read_manifest(out).command == command:
        return True
    raise InputError(f"{out} holds something other than this toy set; name another folder, or delete that one.")


def _make(
    records: Path, out: Path, inputs: "list[Input]", encoder_steps: int, seed: int, command: tuple[str, ...]
) -> None:
    """Make the folder `records`, which becomes `out` later; so its manifest names the encoder by its place in `out`."""
    from clipsep_jax.data_prep.embed_set import embed_record_set
    from clipsep_jax.data_prep.writer import PoolRunner, write_records

    write_records(inputs, ClipMaker(seed), records, run=PoolRunner(num_workers=0), command=command)
    folder = train_toy_clip(records / ENCODER_NAME, encoder_steps, seed)
    embed_record_set(records, replace(load_clip(str(folder)), name=str(out.resolve() / ENCODER_NAME)))


def train_toy_clip(folder: Path, steps: int, seed: int = 0) -> Path:
    """Train the miniature CLIP of the toy set on drawings of the training ranges; see `train_mini_clip`."""
    kinds = np.repeat(np.arange(len(KINDS)), PICTURES_PER_KIND)
    return train_mini_clip(folder, _drawings(kinds, seed), kinds, KINDS, steps, seed)


def _drawings(kinds: Int[np.ndarray, " n"], seed: int) -> Iterator[UInt8[np.ndarray, "224 224 3"]]:
    rng = np.random.default_rng([seed])
    for kind in kinds:
        yield draw(KINDS[kind], rng, "train")


def _inputs(num_clips: int) -> "list[Input]":
    """The clips by name: in each split the kinds take turns."""
    from clipsep_jax.data_prep.sources.inputs import Input

    num_held_out = num_clips // 10
    counts = {"train": num_clips - 2 * num_held_out, "validation": num_held_out, "test": num_held_out}
    ids = [(split, f"{split}/{i:05d}", KINDS[i % len(KINDS)]) for split, count in counts.items() for i in range(count)]
    return [Input(id, Path(id), kind, split) for split, id, kind in ids]


@dataclass(frozen=True)
class ClipMaker:
    """Makes a clip in place of reading it from a file: its id, its label and the seed decide everything."""

    seed: int

    def __call__(self, source: "Input") -> Record:
        """Make the clip."""
        label = source.label
        rng = np.random.default_rng([self.seed, *source.id.encode()])
        training = source.split == "train"
        split: Split = "train" if training else "test"
        num_samples = CLIP_SECONDS * SAMPLE_RATE_HZ
        wave = synthesize(label, rng, split, num_samples)
        if training and rng.random() < OFF_SCREEN_SHARE:
            wave = wave + off_screen_noise(rng, num_samples)
        frames = draw_clip(label, rng, split, CLIP_SECONDS * FRAMES_PER_SECOND)
        return Record(source.id, label, _sixteen_bits(wave), tuple(_jpeg(frame) for frame in frames))


def _sixteen_bits(wave: Float32[np.ndarray, " L"]) -> Int16[np.ndarray, " L"]:
    return np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)


def _jpeg(frame: UInt8[np.ndarray, "224 224 3"]) -> bytes:
    from clipsep_jax.data_prep.decode.pictures import JPEG_QUALITY

    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
