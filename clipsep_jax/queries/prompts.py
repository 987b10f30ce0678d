"""Prompts made from labels."""

import difflib
from collections.abc import Sequence

from clipsep_jax.errors import InputError

DEFAULT_TEMPLATE = "a photo of {}"

# Their embeddings are averaged. (The official evaluation, not its inference, counts the second one twice.)
PROMPT_ENSEMBLE = (
    "a photo of {}.",
    "a photo of the small {}.",
    "a low resolution photo of a {}.",
    "a photo of many {}.",
)


def prompt_for(label: str, template: str = DEFAULT_TEMPLATE) -> str:
    """Put a label into a prompt.

    Raises:
        InputError: the template does not hold `{}` exactly once.
    """
    if template.count("{}") != 1:
        raise InputError(f"The prompt template {template!r} must hold {{}} once, where the label goes.")
    return template.replace("{}", label)


def nearest_labels(label: str, labels: Sequence[str], count: int = 3) -> list[str]:
    """The labels most like a text, for messages."""
    return difflib.get_close_matches(label, labels, n=count, cutoff=0.0)
