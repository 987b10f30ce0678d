"""What a stem shall hold: one sound or a sum of several, without others, for a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image as Pillow
from PIL import ImageOps

from clipsep_jax.config import SAMPLE_RATE_HZ, ModelConfig, SpectrogramConfig
from clipsep_jax.data_prep.decode.limits import MAX_PIXELS
from clipsep_jax.data_prep.decode.pictures import crop_square
from clipsep_jax.errors import InputError
from clipsep_jax.files import check_is_file
from clipsep_jax.queries.base import Example, Query
from clipsep_jax.separation.masking import MaskForm, Recipe
from clipsep_jax.separation.rates import Resampler
from clipsep_jax.sound_files import open_sound

MOST_EXAMPLE_SECONDS = 600

_PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


@dataclass(frozen=True, eq=False)
class Target:
    """What a stem shall hold.

    Attributes:
        sounds: queries whose sounds are summed.
        without: queries whose sounds are left out.
        span: seconds between which it is heard; before and after, the stem is silent.
        name: for people, and for the name of a file.
    """

    sounds: tuple[Query, ...]
    without: tuple[Query, ...] = ()
    span: tuple[float, float] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.span and not 0 <= self.span[0] < self.span[1]:
            raise InputError(
                f"A span goes from a second to a later one, not from {self.span[0]:g} to {self.span[1]:g}."
            )


def read_targets(asked: Sequence[tuple[str, str]], prompt: Callable[[str], str]) -> list[Target]:
    """Targets as a user names them, one after the other.

    Args:
        asked: pairs of a word and its value: "query" and a text such as "guitar + singing", "image" and the path of a
            picture, "example" and the path of a recording, "without" and a text, "span" and seconds such as "3.5-7".
            The last two hold for the target before them, or for all, where they come first.
        prompt: puts a bare word into a prompt.

    Raises:
        InputError: a picture cannot be read, or a span is none.
    """
    targets: list[Target] = []
    for_all = Target(())
    for word, value in asked:
        if word == "query":
            parts = [part.strip() for part in value.split(" + ")]
            targets.append(Target(tuple(map(prompt, parts)), for_all.without, for_all.span, value))
        elif word in ("image", "example"):
            read = read_picture if word == "image" else read_example
            targets.append(Target((read(Path(value)),), for_all.without, for_all.span, Path(value).stem))
        else:
            last = targets[-1] if targets else for_all
            if word == "without":
                last = replace(last, without=(*last.without, prompt(value)))
            else:
                last = replace(last, span=_span(value))
            if targets:
                targets[-1] = last
            else:
                for_all = last
    return targets


def read_picture(path: Path) -> Pillow.Image:
    """A picture as records hold them: upright, its centre square, 224 pixels wide.

    Raises:
        InputError: the file is missing, no picture, or too large.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give a picture.")
    check_is_file(path)
    try:
        with Pillow.open(path, formats=_PICTURE_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"{path} has {picture.width} x {picture.height} pixels; give a smaller picture.")
            return crop_square(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as a picture; give a JPEG, PNG or WebP file.") from error


def read_example(path: Path) -> Example:
    """The sound of a recording or a video, as models take it, up to MOST_EXAMPLE_SECONDS.

    Raises:
        InputError: it cannot be read, or is longer.
    """
    with open_sound(path, MOST_EXAMPLE_SECONDS) as blocks:
        mono = np.concatenate([block.mean(axis=0) for block in blocks]).astype(np.float32)
        waveform = Resampler(blocks.rate_hz, SAMPLE_RATE_HZ)(mono, last=True)
    return Example(waveform, path.name)


def _span(text: str) -> tuple[float, float]:
    start, _, end = text.partition("-")
    try:
        return float(start or 0), float(end or "inf")
    except ValueError as error:
        raise InputError(f"{text!r} is no span of seconds; write it as in 3.5-7.") from error


@dataclass(frozen=True, eq=False)
class Atom:
    """A query for one mask.

    Attributes:
        query: what is asked for.
        negatives: what is left out, for a model that was trained with negative queries.
    """

    query: Query
    negatives: tuple[Query, ...] = ()


def recipe_for(
    targets: Sequence[Target], model: ModelConfig, form: MaskForm, *, noise: bool
) -> tuple[Recipe, list[Atom]]:
    """How the masks of targets are made of those of queries, and these queries, each once.

    A model of learned queries gives a mask for each of them, and takes no targets. One with negative queries is told
    what a target leaves out, and of that, what the target is.

    Raises:
        InputError: noise masks are asked for that the model has not.
    """
    if noise and not model.num_noise_heads:
        raise InputError("The model has no noise masks; leave out --noise.")
    atoms: list[Atom] = []
    rows: list[tuple[list[int], list[int]]] = []
    for target in targets:
        without, sounds = (target.without, target.sounds) if model.negative_query and target.without else ((), ())
        rows.append((_numbers(target.sounds, without, atoms), _numbers(target.without, sounds, atoms)))
    num_masks = model.num_learned_queries or len(atoms)
    rows += [([number], []) for number in range(model.num_learned_queries if not targets else 0)]
    num_noise = model.num_noise_heads if noise else 0
    rows += [([num_masks + number], []) for number in range(num_noise)]
    plus = np.zeros((len(rows), num_masks + num_noise), np.float32)
    minus = np.zeros_like(plus)
    for number, (added, left_out) in enumerate(rows):
        plus[number, added], minus[number, left_out] = 1, 1
    return Recipe(plus, minus, form), atoms


def _numbers(queries: Sequence[Query], negatives: tuple[Query, ...], atoms: list[Atom]) -> list[int]:
    """The numbers of queries among all, to which new ones are added."""
    found = []
    for query in queries:
        wanted = (query, *negatives)
        same = [n for n, atom in enumerate(atoms) if _are_same((atom.query, *atom.negatives), wanted)]
        if not same:
            atoms.append(Atom(query, negatives))
        found.append(same[0] if same else len(atoms) - 1)
    return found


def _are_same(some: Sequence[Query], others: Sequence[Query]) -> bool:
    """Texts that read alike, and other queries that are the same object."""
    return len(some) == len(others) and all(
        a is b or (isinstance(a, str) and isinstance(b, str) and a == b) for a, b in zip(some, others, strict=True)
    )


def gates_of(
    targets: Sequence[Target], num_stems: int, config: SpectrogramConfig
) -> Callable[[int, int], Float32[np.ndarray, "N T"]]:
    """One where a stem's frames lie within its span, zero elsewhere."""
    frames_a_second = config.sample_rate_hz / config.hop_samples

    def gates(start: int, end: int) -> Float32[np.ndarray, "N T"]:
        times = np.arange(start, end) / frames_a_second
        found = np.ones((num_stems, end - start), np.float32)
        for row, target in zip(found, targets, strict=False):
            if target.span:
                row[:] = (times >= target.span[0]) & (times <= target.span[1])
        return found

    return gates
