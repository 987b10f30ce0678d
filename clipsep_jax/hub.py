"""Folders of published models: on this machine, or fetched from the Hugging Face Hub."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipsep_jax.errors import InputError
from clipsep_jax.files import is_file_name, read_json, staged_folder
from clipsep_jax.tensors import WEIGHTS_FILE, read_tensors, read_torch_tensors
from clipsep_jax.terminal import say

CONFIG_FILE = "config.json"
SHARDS_FILE = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
PICTURES_FILE = "preprocessor_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, PICTURES_FILE, *TOKENIZER_FILES)
SEPARATOR_FILES = (CONFIG_FILE, "*.safetensors", *(f"query_encoder/{name}" for name in MODEL_FILES))
_ID = r"\w[\w.-]*/\w[\w.-]*"


def resolve_model_folder(name_or_path: str, *, download: bool = True) -> Path:
    """Return a local model folder as it is, or fetch `owner/name` from the Hugging Face Hub.

    Only weights, settings and tokenizer files are fetched; PyTorch's weights only where there are no others.

    Args:
        download: False takes only what was fetched before, for names that a file, not the user, gives.

    Raises:
        InputError: it is neither, or it cannot be fetched, or is not on this machine and is not to be fetched.
    """
    folder = Path(name_or_path)
    if name_or_path and os.path.isdir(folder):  # Path.is_dir raises an error at a name too long for a file
        return folder
    if not re.fullmatch(_ID, name_or_path, re.ASCII):
        raise InputError(f"'{name_or_path}' is neither a folder nor a Hugging Face id such as owner/name; correct it.")
    cached = _cached(name_or_path)
    if not download:
        if cached:
            return cached
        raise InputError(
            f"{name_or_path}, which a file names, is not on this machine; if you trust its owner, fetch it from "
            f"https://huggingface.co/{name_or_path} with --download, or by naming it on the command line."
        )
    if not cached:
        say(f"Fetching {name_or_path} from https://huggingface.co/{name_or_path}", error=True)
    folder = _fetched(name_or_path, [*MODEL_FILES, SHARDS_FILE, "model-*.safetensors"])
    return folder if _has_weights(folder) else _fetched(name_or_path, [*MODEL_FILES, TORCH_FILE])


def find_separator(name: str, *, download: bool) -> Path:
    """The folder of a separator that was published as `owner/name`; `owner/name@revision` always gives the same.

    Args:
        download: False takes only what was fetched before.

    Raises:
        InputError: this is no such name, or it cannot be fetched, or is not on this machine and is not to be fetched.
    """
    match = re.fullmatch(rf"({_ID})(?:@([\w.-]+))?", name, re.ASCII)
    if not match:
        raise InputError(f"{name} is not a folder; give a model directory or a training workdir.")
    owner_and_name, revision = match.groups()
    cached = _cached(owner_and_name, revision, list(SEPARATOR_FILES))
    if not download and not cached:
        raise InputError(
            f"{name} is not a folder; give a model directory or a training workdir, or, if this is a model of the "
            "Hugging Face Hub whose owner you trust, --download."
        )
    if not download and cached:
        return cached
    folder = _fetched(owner_and_name, list(SEPARATOR_FILES), revision)
    if not revision:
        say(f"{name} is taken as it is today; {name}@{folder.name} gives the same for ever.", error=True)
    return folder


def push_folder(folder: Path, name: str, *, private: bool) -> str:
    """Publishes the files of a folder as `owner/name` on the Hugging Face Hub; gives the address of the commit.

    Raises:
        InputError: this is no such name, or the Hub does not take it.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(_ID, name, re.ASCII):
        raise InputError(f"{name!r} is not a name on the Hugging Face Hub; write owner/name.")
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a clipsep model"))
    except Exception as error:  # as below
        raise InputError(
            f"{name} cannot be written to on the Hugging Face Hub ({_reason(error)}); log in by `hf auth login` with a "
            "token that may write there."
        ) from error


def _cached(name: str, revision: str | None = None, patterns: list[str] | None = None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
    except Exception:  # as below
        return None
    return folder if _has_weights(folder) else None


def _fetched(name: str, patterns: list[str], revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the client's network errors share no base class across its versions
        raise InputError(
            f"{name} is not a local folder and cannot be fetched from the Hugging Face Hub ({_reason(error)}); "
            "check the name and the connection, or give a local folder."
        ) from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0].strip().rstrip(".")


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS_FILE, SHARDS_FILE, TORCH_FILE))


@dataclass(frozen=True)
class _Shards:
    weight_map: dict[str, str]  # the file of each tensor
    metadata: Any = None


def weights_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: `model.safetensors`, else its shards, else `pytorch_model.bin`.

    Raises:
        InputError: there are none, or the list of shards is damaged.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / SHARDS_FILE
    if index.is_file():
        otherwise = "is damaged (it is not a list of safetensors files); fetch it again."
        names = sorted(set(read_json(index, otherwise, _Shards).weight_map.values()))
        if not names or not all(is_file_name(name) and name.endswith(".safetensors") for name in names):
            raise InputError(f"{index} {otherwise}")
        return [folder / name for name in names]
    if (folder / TORCH_FILE).is_file():
        return [folder / TORCH_FILE]
    raise InputError(f"{folder / WEIGHTS_FILE} is missing; give a folder with a whole model.")


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a model, see `weights_files`; half precision becomes float32.

    Raises:
        InputError: a file is missing or damaged, or PyTorch is needed and not installed.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in weights_files(folder):
        tensors |= read_torch_tensors(path) if path.name == TORCH_FILE else read_tensors(path)
    return tensors


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a model, and nothing else, from one folder to another.

    Raises:
        InputError: the source lacks its settings or its weights.
    """
    for name in (CONFIG_FILE, PICTURES_FILE):
        if not (source / name).is_file():
            raise InputError(f"{source / name} is missing; give a folder with a whole model.")
    weights = weights_files(source)
    others = [*MODEL_FILES, *([SHARDS_FILE] if weights[0].name not in (WEIGHTS_FILE, TORCH_FILE) else [])]
    with staged_folder(target) as staging:
        for path in [*weights, *(source / name for name in others)]:
            if path.is_file():
                shutil.copyfile(path, staging / path.name)
