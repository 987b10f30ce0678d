"""Reading the config files of `configs/`, with overrides from the command line."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from clipsep_jax.config import Config
from clipsep_jax.structures import InputError


def read_config(spec: str, overrides: Sequence[str]) -> Config:
    """The config of a Python file, FILE.py or FILE.py:DATASET, with `--config.a.b=value` overrides.

    Raises:
        InputError: there is no such file, it fails, or an override is none.
    """
    path = Path(spec.rpartition(".py")[0] + ".py")
    if not path.is_file():
        raise InputError(f"There is no config {path}; give a file such as configs/clipsep_nit.py.")
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    typed, sys.argv = sys.argv, ["clipsep", f"--config={spec}", *overrides]  # config_flags looks for overrides there
    try:
        left = values(sys.argv)[1:]
        if left:
            raise InputError(f"{left[0]!r} is no option; see --help.")
        return Config.from_config_dict(holder.value)
    except InputError:
        raise
    except Exception as error:  # whatever the code of a config file may raise
        raise InputError(f"{spec} cannot be used with these options: {_reason(error)}.") from error
    finally:
        sys.argv = typed


def _reason(error: Exception) -> str:
    """What an error says; config_flags wraps errors, or puts their whole traceback into one."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if error.args else error).strip()
    if "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()).rstrip(".")
