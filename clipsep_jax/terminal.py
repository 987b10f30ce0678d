"""What is shown on the terminal. Names and labels from files of strangers may hold codes that a terminal obeys."""

import sys


def printable(text: str) -> str:
    """A text as one line in which whatever is not a letter, a sign or a space is spelled out, as in `\\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: object = "", *, error: bool = False) -> None:
    """Print one or more lines, printable, above any progress bar; to stderr, if it is no result."""
    from tqdm import tqdm

    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    lines = "\n".join(map(printable, str(text).split("\n")))
    tqdm.write(lines.encode(encoding, "backslashreplace").decode(encoding), file=stream)
    stream.flush()
