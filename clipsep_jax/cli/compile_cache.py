"""The cache of compiled programs, in the user's cache folder."""

import os
import stat
import warnings
from pathlib import Path

import jax
from platformdirs import user_cache_path

from clipsep_jax.errors import InputWarning

MAX_BYTES = 2**31


def keep_compiled_programs() -> None:
    """Tells JAX where to keep what it compiles.

    Whoever can write to the folder can run code here, so it must belong to the user and be writable by nobody else;
    otherwise a warning says so and nothing is kept. A folder that is set already (JAX_COMPILATION_CACHE_DIR) is used.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = user_cache_path("clipsep-jax") / "xla"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        trusted = _is_private(folder)
    except OSError:
        return  # a home that cannot be written to: compile anew every time
    if not trusted:
        warnings.warn(
            f"{folder} can be written to by others, so compiled programs are not kept; make it yours alone "
            "(chmod 700), or name another folder in JAX_COMPILATION_CACHE_DIR.",
            InputWarning,
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)


def _is_private(folder: Path) -> bool:
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
