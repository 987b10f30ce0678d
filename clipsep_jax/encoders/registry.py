"""The names of query encoders, and how they are loaded.

    clip:PLACE            a CLIP; a PLACE alone means the same
    resnet18:PLACE        the dilated ResNet-18 of Sound of Pixels, pictures normalised as those of ImageNet
    resnet18-clip:PLACE   the same, pictures normalised as CLIP's, which models of the official code need

PLACE is a folder or a Hugging Face id; of a ResNet-18 also a file (see `load_resnet`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clipsep_jax.encoders.base import Encoder
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.encoders.resnet import load_resnet
from clipsep_jax.errors import InputError
from clipsep_jax.hub import copy_folder

_CLIP = "clip"  # if a name has no kind


@dataclass(frozen=True)
class _Kind:
    load: Callable[..., Encoder]  # from its place, with `download`
    copy: Callable[[str, Path], None]  # from its place into a folder


_KINDS = {
    _CLIP: _Kind(load_clip, lambda place, folder: copy_folder(Path(place), folder)),
    "resnet18": _Kind(load_resnet, lambda place, folder: load_resnet(place).save(folder)),
    "resnet18-clip": _Kind(
        partial(load_resnet, pictures="clip"), lambda place, folder: load_resnet(place).save(folder)
    ),
}
KINDS = tuple(_KINDS)


def split_name(name: str) -> tuple[str, str]:
    """Kind and place of an encoder's name."""
    kind, colon, place = name.partition(":")
    return (kind, place) if colon and kind in KINDS else (_CLIP, name)


def moved_name(name: str, place: Path) -> str:
    """The name of the same encoder at another place."""
    kind, _ = split_name(name)
    return str(place) if kind == _CLIP else f"{kind}:{place}"


def load_encoder(name: str, *, download: bool = True) -> Encoder:
    """Load an encoder by its name; a local place becomes absolute in the name that the encoder keeps.

    Args:
        download: whether one that is not on this machine is fetched. False where a file, not the user, names it.

    Raises:
        InputError: the name is of no known kind, or its files are missing, damaged or of another network.
    """
    kind, place = split_name(name)
    if kind == _CLIP and ":" in place and not Path(place).is_dir():
        raise InputError(f"'{name}' names no known kind of encoder; the kinds are {', '.join(f'{k}:' for k in KINDS)}.")
    return _KINDS[kind].load(place, download=download)


def copy_encoder(name: str, folder: Path) -> None:
    """Copy a local encoder into a folder, where `moved_name` finds it; one from the Hub is not copied.

    Raises:
        InputError: its files are damaged or incomplete.
    """
    kind, place = split_name(name)
    if Path(place).exists():
        _KINDS[kind].copy(place, folder)
