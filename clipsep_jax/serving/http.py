"""The HTTP door: separation for programs, and the files of all results."""

import asyncio
import zipfile
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from clipsep_jax.errors import InputError
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.separation.stem_files import StemFormat
from clipsep_jax.serving.line import Full, Ticket
from clipsep_jax.serving.service import FAULT, Asked, Fault, Result, Service, remove

BUSY = "Too many recordings wait; try again in a minute."
Takes = Literal["queries", "images", "examples"]
_ASK_AGAIN_SECONDS = 0.05  # whether the client is still there
_ZIP = "stems.zip"
_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".png": "image/png",
    ".zip": "application/zip",
}


class Error(BaseModel):
    """Why a request was not answered."""

    error: str


class Stem(BaseModel):
    """A sound that was pulled out."""

    title: str = Field(description="of the query; `residual` is what the stems leave, `mixture` the recording itself")
    url: str
    presence: list[float] = Field(description="how likely the sound is there, second by second; none if not known")
    silent: bool = Field(description="whether the stem is silent, as its sound is not likely to be there")


class Separation(BaseModel):
    """What was made of a recording."""

    seconds: float
    rate_hz: int
    channels: int
    stems: list[Stem]
    spectrogram: str | None = Field(description="a picture of the mixture, the masks and the stems")
    kept_minutes: int = Field(description="after which the files are removed")


class Model(BaseModel):
    """A model that separates."""

    name: str
    query: str = Field(description="the kind of query it was trained with")
    takes: list[Takes]
    labels: list[str] = Field(description="the only queries that it takes; empty if it takes any text")
    sample_rate_hz: int
    calibrated: bool = Field(description="whether it tells if a sound is there")


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok"]
    waiting: int = Field(description="recordings that wait or are worked on")


def build_app(service: Service) -> FastAPI:
    """The HTTP application of a service."""
    app = FastAPI(
        title="clipsep",
        version=version("clipsep-jax"),
        description="Pull sounds out of recordings by a sentence.",
        docs_url=None,  # these pages load scripts of other servers
        redoc_url=None,
        responses={status: {"model": Error} for status in (400, 401, 403, 404, 408, 413, 421, 500, 503)},
    )
    app.add_exception_handler(InputError, _sentence(400))
    app.add_exception_handler(Full, _sentence(503, BUSY, {"Retry-After": "60"}))
    for kind in (Fault, Exception):
        app.add_exception_handler(kind, _sentence(500, FAULT))
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_exception_handler(HTTPException, _explain_http)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Health:
        return Health(status="ok", waiting=len(service.line))

    @app.get("/models")
    async def models() -> list[Model]:
        return [_describe(service)]

    @app.get("/results/{key}/{name}", response_class=FileResponse)
    async def file_of_result(key: str, name: str) -> FileResponse:
        """A file of a result."""
        path = service.file(key, name)
        if path is None:
            minutes = service.limits.keep_minutes
            raise HTTPException(404, f"There is no such file; results are removed after {minutes} minutes.")
        return FileResponse(path, media_type=_TYPES.get(path.suffix), headers={"Cache-Control": "private"})

    _add_separation(app, service)


def _add_separation(app: FastAPI, service: Service) -> None:
    @app.post("/separate", response_model=Separation, response_model_exclude_none=False)
    async def separate(
        request: Request,
        file: Annotated[UploadFile, File(description="a sound or a video")],
        queries: Annotated[list[str], Form(description="texts, such as `accordion`; one field each")] = [],  # noqa: B006
        without: Annotated[list[str], Form(description="texts of what to leave out")] = [],  # noqa: B006
        images: Annotated[list[UploadFile], File(description="pictures to ask by")] = [],  # noqa: B006
        examples: Annotated[list[UploadFile], File(description="sounds to ask by")] = [],  # noqa: B006
        format: Annotated[Literal["wav", "flac", "mp3"], Form(description="of the stems")] = "wav",
        reply: Annotated[Literal["json", "zip"], Form(description="links to the stems, or all of them")] = "json",
    ) -> Any:
        """Separates a recording, and answers once that is done."""
        uploads = [
            await asyncio.to_thread(service.keep, each.file, each.filename or "") for each in (file, *images, *examples)
        ]
        try:
            asked = Asked(
                uploads[0],
                tuple(queries),
                tuple(without),
                tuple(uploads[1 : 1 + len(images)]),
                tuple(uploads[1 + len(images) :]),
                StemFormat(format),
            )
            result = await wait(service.submit(asked), request.is_disconnected)
        finally:
            for upload in uploads:
                remove(upload.path)
        if reply == "zip":
            await asyncio.to_thread(_pack, service, result)
            return FileResponse(service.results / result.key / _ZIP, filename=_ZIP)
        return describe(service, result)


async def wait(ticket: Ticket[Result], is_gone: Callable[[], Awaitable[bool]]) -> Result:
    """The result of a ticket, which leaves the line if its client goes away."""
    try:
        while not ticket.future.done():
            if await is_gone():
                raise HTTPException(499, "The client went away.")
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
    except BaseException:
        ticket.leave()
        raise
    return ticket.future.result()


def describe(service: Service, result: Result) -> Separation:
    """What a client is told of a result."""
    made = result.separated
    presence = service.separator.presence
    stems = [
        Stem(
            title=title,
            url=url_of(result, path.name),
            presence=list(made.presence[n]) if presence and n < len(made.presence) else [],
            silent=path in made.silent,
        )
        for n, (title, path) in enumerate(zip(result.titles, made.paths, strict=True))
    ]
    return Separation(
        seconds=made.seconds,
        rate_hz=made.rate_hz,
        channels=made.num_channels,
        stems=stems,
        spectrogram=url_of(result, made.spectrogram.name) if made.spectrogram else None,
        kept_minutes=service.limits.keep_minutes,
    )


def url_of(result: Result, name: str) -> str:
    """Where a file of a result is, on this server."""
    return f"/results/{result.key}/{quote(name)}"


def _describe(service: Service) -> Model:
    separator = service.separator
    kind = kind_of(separator.config)
    takes: list[Takes] = ["examples"] if kind.hears_examples else [] if kind.scores_best_mask else ["queries"]
    if kind.has_encoder:
        takes.append("images")
    folder = separator.model_dir.folder
    return Model(
        name=(folder.parent if folder.name == "best" else folder).resolve().name,
        query=kind.name,
        takes=takes,
        labels=[] if kind.has_encoder else list(separator.model_dir.labels),
        sample_rate_hz=separator.sample_rate_hz,
        calibrated=separator.presence is not None,
    )


def _pack(service: Service, result: Result) -> None:
    with zipfile.ZipFile(service.results / result.key / _ZIP, "w") as archive:
        for path in filter(None, (*result.separated.paths, result.separated.spectrogram)):
            archive.write(path, path.name)


def _sentence(status: int, sentence: str | None = None, headers: dict[str, str] | None = None) -> Any:
    async def answer(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": sentence or str(error)}, status, headers)

    return answer


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """The first field that is wrong, as a sentence."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"][1:])) or "request"
    return JSONResponse({"error": f"The field {field} cannot be used: {first['msg']}."}, 400)


async def _explain_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
