"""Prompts made from labels."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.errors import InputError
from clipsep_jax.files import MOST_LIST_BYTES, check_is_file

DEFAULT_TEMPLATE = "a photo of {}"

# Their embeddings are averaged.
PROMPT_ENSEMBLE = (
    "a photo of {}.",
    "a photo of the small {}.",
    "a low resolution photo of a {}.",
    "a photo of many {}.",
)

# The official evaluation, not its inference, counts the second one twice.
EVALUATION_PROMPTS = (*PROMPT_ENSEMBLE, PROMPT_ENSEMBLE[1])


def prompt_for(label: str, template: str = DEFAULT_TEMPLATE) -> str:
    """Put a label into a prompt.

    Raises:
        InputError: the template does not hold `{}` exactly once.
    """
    if template.count("{}") != 1:
        raise InputError(f"The prompt template {template!r} must hold {{}} once, where the label goes.")
    return template.replace("{}", label)


def read_templates(path: Path) -> tuple[str, ...]:
    """The templates of a text file, a line each.

    Raises:
        InputError: the file is missing or empty, or a line does not hold `{}` exactly once.
    """
    check_is_file(path, MOST_LIST_BYTES)
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8; save it as one.") from error
    if not lines:
        raise InputError(f"{path} holds no prompt template; write one a line, such as 'a photo of {{}}'.")
    for line in lines:
        prompt_for("", line)
    return tuple(lines)


def nearest_labels(label: str, labels: Sequence[str], count: int = 3) -> list[str]:
    """The labels most like a text, for messages."""
    return difflib.get_close_matches(label, labels, n=count, cutoff=0.0)
