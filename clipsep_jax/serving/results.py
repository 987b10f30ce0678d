"""A result as a part of the page: players, curves and the spectrogram."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from clipsep_jax.serving.http import url_of
from clipsep_jax.serving.service import Result, Service

_COLUMNS = 400  # of the drawn peaks
_BLOCK_SAMPLES = 2**16


def show_result(service: Service, result: Result) -> str:
    """Players of every sound beside the mixture, what tells whether it is there, and the spectrograms."""
    made = result.separated
    mixture, parts = url_of(result, made.paths[-1].name), []
    drawn = [peaks(path) for path in made.paths]
    loudest = max(float(each.max(initial=0.0)) for each in drawn) or 1.0
    titles = [*result.titles[:-2], "what is left"]
    for number, (title, path) in enumerate(zip(titles, made.paths[:-1], strict=True)):
        is_told = service.separator.presence is not None and number < len(made.presence)
        presence = made.presence[number] if is_told else ()
        shape = _draw_peaks(drawn[number] / loudest)
        parts.append(_show_stem(title, url_of(result, path.name), mixture, shape, presence, silent=path in made.silent))
    if made.gain < 1:
        parts.append(
            f"<p>All sounds are written {made.gain:.2f} times as loud, as they exceed full scale together.</p>"
        )
    if made.spectrogram:
        picture = html.escape(url_of(result, made.spectrogram.name))
        words = "Spectrograms of the mixture, and of each sound its mask and its result"
        parts.append(
            f'<div class="wide" tabindex="0" role="region" aria-label="{words}">'
            f'<img src="{picture}" alt="{words}"></div>'
        )
    parts.append(f"<p>Files are removed after {service.limits.keep_minutes} minutes.</p>")
    done = f'<p role="status">Separated {made.seconds:.1f} s in {made.took_seconds:.1f} s.</p>'
    return done + "\n".join(parts)


def _show_stem(title: str, url: str, mixture: str, shape: str, presence: Sequence[float], *, silent: bool) -> str:
    name = html.escape(title)
    said = "<p>This sound is not likely to be there, so its file is silent.</p>" if silent else ""
    return f"""<section class="stem"><h2>{name}</h2>{said}
<clipsep-player data-mixture="{html.escape(mixture)}">
{shape}<audio controls preload="metadata" src="{html.escape(url)}" aria-label="{name}"></audio>
</clipsep-player>
{_curve(presence)}<p><a href="{html.escape(url)}" download>Download {name}</a></p></section>"""


def peaks(path: Path) -> Float[np.ndarray, " C"]:
    """The highest amplitude of each of up to 400 parts of a sound file, of all its channels."""
    import soundfile

    with soundfile.SoundFile(path) as sound:
        size = max(1, -(-sound.frames // _COLUMNS))
        found: list[float] = []
        for block in sound.blocks(size * max(1, _BLOCK_SAMPLES // size), dtype="float32", always_2d=True):
            loudest = np.abs(block).max(axis=1)
            found += [loudest[start : start + size].max() for start in range(0, len(loudest), size)]
    return np.asarray(found)


def _draw_peaks(heights: Float[np.ndarray, " C"]) -> str:
    bars = "".join(f"M{n} {50 - 49 * height:.1f}V{50 + 49 * height:.1f}" for n, height in enumerate(heights))
    return (
        f'<svg class="peaks" viewBox="0 0 {len(heights)} 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{bars}" /></svg>'
    )


def _curve(presence: Sequence[float]) -> str:
    """How likely a sound is there, over the seconds."""
    if not presence:
        return ""
    points = " ".join(f"{n} {100 - 98 * value:.0f} {n + 1} {100 - 98 * value:.0f}" for n, value in enumerate(presence))
    words = f"How likely the sound is there, second by second: at most {max(presence):.0%}"
    return (
        f'<p class="caption">{words}</p>'
        f'<svg class="curve" viewBox="0 0 {len(presence)} 100" preserveAspectRatio="none" '
        f'role="img" aria-label="{words}"><polyline points="{points}" /></svg>'
    )
