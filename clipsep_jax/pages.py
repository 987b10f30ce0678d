"""What written reports share: figures, pages and their parts."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from clipsep_jax.files import atomic_write

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
td:first-child, th:first-child {{ text-align: left; }} img {{ max-width: 100%; }}
.players {{ display: flex; flex-wrap: wrap; gap: 1rem; }} audio {{ display: block; width: 14rem; }}
</style></head><body>
{body}
</body></html>
"""


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Writes an HTML page of finished parts; returns its path."""
    with atomic_write(path) as file:
        file.write(_PAGE.format(title=html.escape(title), body="\n".join(parts)).encode())
    return path


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def html_image(path: Path, folder: Path) -> str:
    """A picture on a page that lies in `folder`."""
    return f'<img src="{html.escape(path.relative_to(folder).as_posix())}" alt="{html.escape(path.stem)}">'


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG, in which a label with dollar signs is no formula; returns its path."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return path


def plot_curve(axes: Axes, metrics: Sequence[Mapping[str, Any]], name: str, label: str, **style: Any) -> None:
    """A scalar of metrics.jsonl over the steps that have it, as a line; validation losses are rare and marked."""
    points = [(line["step"], line[name]) for line in metrics if name in line]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, marker="o" if "validation" in name else None, **style)


def finish_axes(axes: Axes, title: str, xlabel: str = "step") -> None:
    """Words, legend and grid of a plot whose values begin at 0."""
    axes.set(xlabel=xlabel, title=title, ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
