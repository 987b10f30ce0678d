"""Whatever value a stranger's JSON file holds in any place, it is read, or refused in one sentence."""

import json
import random
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.robustness.mutations import ODD
from tests.robustness.readings import READINGS, refused

MOST, MOST_TOKENIZERS = 60, 12  # odd values per file; a tokenizer takes a fifth of a second to read

MOST_LETTERS = 3_000  # of a refusal

FILES = [(kind, name) for kind, reading in READINGS.items() for name in reading.json_files]


def _odd(value: Any) -> Iterator[Any]:
    """The value with each of its parts, at any depth, replaced or left out."""
    yield from ODD
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        for odd in _odd(part):
            changed = dict(value) if isinstance(value, dict) else list(value)
            changed[key] = odd
            yield changed
        if isinstance(value, dict):
            yield {name: other for name, other in value.items() if name != key}
    if isinstance(value, dict):
        yield value | {"unknown": 1}


def _texts(text: str, lines: bool, most: int) -> list[str]:
    first = text.splitlines()[0] if lines else text
    value = json.loads(first)
    if len(first) > 100_000:  # a tokenizer, which another library reads
        value = {"version": "1.0"}
    odd = list(_odd(value))
    chosen = random.Random(0).sample(odd, min(most, len(odd)))
    texts = ["", first[: len(first) // 2], "[" * 100_000, '{"a":' * 100_000, "\0", *map(json.dumps, chosen)]
    return [text.replace(first, odd, 1) if lines else odd for odd in texts]


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_odd_values_are_read_or_refused_in_one_sentence(kind, name, trained, clip_folder, tmp_path):
    reading, good, folder = READINGS[kind], tmp_path / "good", tmp_path / "odd"
    reading.make(good, trained, clip_folder)
    most = MOST_TOKENIZERS if name.startswith("tokenizer") else MOST
    for text in _texts((good / name).read_text(), name.endswith(".jsonl"), most):
        shutil.copytree(good, folder)
        (folder / name).write_text(text)
        refusal = refused(lambda: reading.read(folder, tmp_path / "out"))
        assert len(refusal) < MOST_LETTERS
        assert "\n" not in refusal, text[:500]
        shutil.rmtree(folder)
