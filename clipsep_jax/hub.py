"""Folders of published models: on this machine, or fetched from the Hugging Face Hub."""

import re
import shutil
from pathlib import Path

from clipsep_jax.errors import InputError
from clipsep_jax.files import staged_folder
from clipsep_jax.tensors import WEIGHTS_FILE

CONFIG_FILE = "config.json"
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


def resolve_model_folder(name_or_path: str) -> Path:
    """Return a local model folder as it is, or fetch `owner/name` from the Hugging Face Hub.

    Only weights in safetensors, settings and tokenizer files are fetched.

    Raises:
        InputError: it is neither, or it cannot be fetched.
    """
    folder = Path(name_or_path)
    if name_or_path and folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name_or_path, re.ASCII):
        raise InputError(f"'{name_or_path}' is neither a folder nor a Hugging Face id such as owner/name; correct it.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # the client's network errors share no base class across its versions
        reason = (str(error) or type(error).__name__).split("\n")[0].strip().rstrip(".")
        raise InputError(
            f"{name_or_path} is not a local folder and cannot be fetched from the Hugging Face Hub ({reason}); "
            "check the name and the connection, or give a local folder."
        ) from error


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a model, and nothing else, from one folder to another.

    Raises:
        InputError: the source lacks its settings or its weights.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE, PICTURES_FILE):
        if not (source / name).is_file():
            raise InputError(f"{source / name} is missing; give a folder with a whole model.")
    with staged_folder(target) as staging:
        for name in MODEL_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, staging / name)
