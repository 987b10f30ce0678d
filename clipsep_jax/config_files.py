"""Config files, shipped and of users, with the `--config.a.b=value` overrides of the command line."""

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.config import Config
from clipsep_jax.errors import InputError

CONFIGS_FOLDER = Path(__file__).parent / "configs"


def read_config(spec: str, overrides: Sequence[str]) -> Config:
    """Reads a config file and the `--config.a.b=value` overrides of the command line.

    Args:
        spec: FILE.py or the name of a shipped config, such as "clipsep_nit", optionally followed by ":DATASET".

    Raises:
        InputError: there is no such file, it fails, or an override names no option.
    """
    from absl import flags
    from ml_collections import config_flags

    spec = _find_file(spec)
    sys.modules.setdefault("configs", importlib.import_module("clipsep_jax.configs"))  # users' configs import from it
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    typed, sys.argv = sys.argv, ["clipsep", f"--config={spec}", *overrides]  # config_flags looks for overrides there
    try:
        left = values(sys.argv)[1:]
        if left:
            raise InputError(f"{left[0]!r} is not an option; see --help.")
        return Config.from_config_dict(holder.value)
    except InputError:
        raise
    except Exception as error:  # whatever the code of a config file may raise
        raise InputError(f"{spec} cannot be used with these options: {_reason(error)}.") from error
    finally:
        sys.argv = typed


def _find_file(spec: str) -> str:
    """FILE.py or FILE.py:DATASET, with a shipped config's name replaced by its path."""
    name, suffix, dataset = spec.partition(".py")
    if not suffix:
        name, colon, dataset = spec.partition(":")
        dataset = colon + dataset
    path = Path(f"{name}.py")
    if not suffix and re.fullmatch(r"\w+", name):
        path = CONFIGS_FOLDER / path
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in CONFIGS_FOLDER.glob("[a-z]*.py")))
        raise InputError(f"There is no config {spec!r}; give a Python file, or one of the shipped ones: {shipped}.")
    return f"{path}{dataset}"


def _reason(error: Exception) -> str:
    """What an error says; config_flags wraps errors, or puts their whole traceback into one."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if error.args else error).strip()
    if "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()).rstrip(".")
