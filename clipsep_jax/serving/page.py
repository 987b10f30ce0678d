"""The page: a recording and words go in, sounds to listen to come out."""

import asyncio
import html
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from clipsep_jax.data_prep.sources.audio import AUDIO_SUFFIXES
from clipsep_jax.data_prep.sources.videos import VIDEO_SUFFIXES
from clipsep_jax.errors import InputError
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.serving.examples import Example
from clipsep_jax.serving.http import BUSY
from clipsep_jax.serving.line import Full
from clipsep_jax.serving.results import show_result
from clipsep_jax.serving.service import Asked, Fault, Service, Upload, name_of

_HERE = Path(__file__).parent
_TELL_SECONDS, _TELL_AGAIN = 0.2, 10
_PICTURES = [".jpg", ".jpeg", ".png", ".webp"]


def add_page(app: Any, service: Service, examples: Sequence[Example] = ()) -> Any:
    """Puts the page at the root of a FastAPI application; it offers examples to those who have no recording."""
    os.environ["GRADIO_TEMP_DIR"] = str(service.page_uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    mounted = gradio.mount_gradio_app(
        app,
        _blocks(gradio, service, examples),
        path="/",
        footer_links=[],
        max_file_size=service.limits.upload_bytes,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=_HERE / "page.css",
        head=f"<script>{(_HERE / 'player.js').read_text('utf-8')}</script>",
    )
    service.keep_what_is_there()  # Gradio's copies of the examples
    return mounted


def _blocks(gradio: Any, service: Service, offered: Sequence[Example]) -> Any:
    kind, limits = kind_of(service.separator.config), service.limits
    sounds = sorted(AUDIO_SUFFIXES | VIDEO_SUFFIXES)
    with gradio.Blocks(title="clipsep", analytics_enabled=False) as blocks:
        gradio.HTML(_INTRODUCTION.format(minutes=limits.recording_minutes, megabytes=limits.upload_megabytes))
        with gradio.Row():
            recording = gradio.File(label="A recording or a video", file_types=sounds, height=140)
            # No `format`: with one, Gradio would have ffmpeg read what a client sends.
            microphone = gradio.Audio(sources="microphone", type="filepath", editable=False, label="Or record")
        takes_text = _takes_text(service)
        queries = gradio.Textbox(
            label="What to pull out, a line each", placeholder=_placeholder(service), lines=2, visible=takes_text
        )
        without = gradio.Textbox(label="What to leave out, a line each", lines=1, visible=takes_text)
        with gradio.Row():
            pictures = gradio.File(
                label="Or pictures of it", file_types=_PICTURES, file_count="multiple", height=120,
                visible=kind.has_encoder,
            )  # fmt: skip
            examples = gradio.File(
                label="A sound like it", file_types=sounds, file_count="multiple", height=120,
                visible=kind.hears_examples,
            )  # fmt: skip
        button = gradio.Button("Separate", variant="primary", elem_id="separate")
        if offered:
            rows = [[str(example.recording), example.query] for example in offered]
            gradio.Examples(rows, [recording, queries], label="Or try one of these", cache_examples=False)
        result = gradio.HTML(elem_id="result")

        async def separate(*given: Any) -> AsyncIterator[str]:
            async for text in _answer(service, *given):
                yield text

        button.click(
            separate,
            [recording, microphone, queries, without, pictures, examples],
            result,
            show_progress="hidden",
            concurrency_limit=None,
            api_visibility="private",
        )
    return blocks.queue(max_size=2 * limits.waiting, default_concurrency_limit=None, api_open=False)


async def _answer(service: Service, *given: Any) -> AsyncIterator[str]:
    """How far a separation is, then its result or a sentence."""
    try:
        ticket = service.submit(_asked(service, *given))
    except InputError as error:
        yield _alert(str(error))
        return
    except Full:
        yield _alert(BUSY)
        return
    told, again = "", 0
    try:
        while not ticket.future.done():
            text = _status(service.line.place(ticket), ticket.share)
            if text != told or again >= _TELL_AGAIN:  # Gradio sees that a page was closed when it is told something
                yield text
                told, again = text, 0
            again += 1
            await asyncio.sleep(_TELL_SECONDS)
    except BaseException:  # the page was closed
        ticket.leave()
        raise
    try:
        result = ticket.future.result()
    except (InputError, Fault) as error:
        yield _alert(str(error))
        return
    yield await asyncio.to_thread(show_result, service, result)


def _asked(
    service: Service,
    recording: str | None,
    microphone: str | None,
    queries: str | None,
    without: str | None,
    pictures: Sequence[str] | None,
    examples: Sequence[str] | None,
) -> Asked:
    """What the fields of the page say.

    Raises:
        InputError: one that is needed is empty.
    """
    sound = recording or microphone
    if not sound:
        raise InputError("Give a recording first: drop a file, or record one.")
    images, sounds = (tuple(map(_upload, some or ())) for some in (pictures, examples))
    asked = Asked(_upload(sound), _lines(queries), _lines(without), images, sounds)
    if _takes_text(service) and not (asked.queries or asked.pictures):
        raise InputError("Say what to pull out, such as: " + _placeholder(service).splitlines()[0])
    return asked


def _takes_text(service: Service) -> bool:
    kind = kind_of(service.separator.config)
    return not kind.hears_examples and not kind.scores_best_mask


def _lines(text: str | None) -> tuple[str, ...]:
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def _upload(path: str) -> Upload:
    return Upload(Path(path), name_of(path))


def _placeholder(service: Service) -> str:
    labels = service.separator.model_dir.labels[:2]
    return "\n".join(labels or ("accordion", "footsteps + voices"))


def _status(place: int, share: float | None) -> str:
    if place:
        return f'<p role="status">{place} before yours.</p>'
    done = f'value="{share:.2f}"' if share is not None else ""
    return f'<p role="status">Separating … <progress {done} aria-label="separated"></progress></p>'


def _alert(sentence: str) -> str:
    return f'<p role="alert">{html.escape(sentence)}</p>'


_INTRODUCTION = """<h1>Pull a sound out of a recording</h1>
<p>Give a recording of up to {minutes} minutes and {megabytes} MB, and say what to pull out of it.</p>
"""
