"""The sentences that docs/troubleshooting.md quotes are those that the program prints."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUOTE = re.compile(r"^\*\*(`+)((?:(?!\n\n).)+?)\1\*\*$", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"""['"]?\b(?:N|[A-Z][A-Z_]+)\b['"]?""")
LEAST_LETTERS = 8  # of what is compared


def test_every_quoted_sentence_is_in_the_code():
    document = (ROOT / "docs" / "troubleshooting.md").read_text()
    quotes = [match[2] for match in QUOTE.finditer(document)]
    assert len(quotes) == document.count("**`") >= 35
    assert [quote for quote in quotes if not is_in_the_code(quote)] == []


def test_a_sentence_that_nothing_prints_is_missed():
    assert is_in_the_code("The token in FILE has fewer than N letters, or others than of ASCII; take one such as TEXT.")
    assert not is_in_the_code("The token in FILE has fewer than N letters; take a longer token, such as TEXT.")
    assert not is_in_the_code("FILE is N.")


def is_in_the_code(sentence: str) -> bool:
    """Whether all constant parts of a sentence are in the strings of one module."""
    parts = [part.strip(" .,:;()") for part in VARIABLE.split(_plain(sentence))]
    parts = [part for part in parts if len(part) >= LEAST_LETTERS]
    return bool(parts) and any(all(any(part in text for text in texts) for part in parts) for texts in _modules())


@cache
def _modules() -> list[list[str]]:
    """The strings of each module."""
    folders = (ROOT / "clipsep_jax", ROOT / "data_prep")
    return [_strings(path.read_text()) for folder in folders for path in sorted(folder.rglob("*.py"))]


def _strings(code: str) -> list[str]:
    """The strings of a module but its docstrings; the parser joins those that stand beside each other."""
    nodes = list(ast.walk(ast.parse(code)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return [_plain(node.value) for node in constants if isinstance(node.value, str)]


def _plain(text: str) -> str:
    return " ".join(text.split())
