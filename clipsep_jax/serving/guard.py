"""What stands before all doors of a server: who may come in, and how large and how slow a request may be."""

import asyncio
import base64
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsep_jax.serving.limits import Limits

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_JSON_BYTES = 10**6
_PAGE = "/gradio_api/"
# Of the doors that Gradio opens, those that the page needs; others fetch addresses, run programs or show the log.
_JSON_DOORS = {"queue/join", "run/predict", "cancel", "reset"}
_PAGE_DOORS = _JSON_DOORS | {"queue/data", "upload", "upload_progress", "startup-events"}
_HEARTBEAT = "heartbeat/"
_BODY = {"content-length", "transfer-encoding"}  # headers of requests that have one
_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; "
    "connect-src 'self' blob:; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class _Refused(Exception):
    """A request that is not let in."""

    status: int
    sentence: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Guard:
    """An ASGI application around another one.

    Attributes:
        token: that clients must show, as `Authorization: Bearer TOKEN`, or as the password that a browser asks for.
        hosts: names by which a server that has no token may be called, so that no web page that a user looks at
            reaches it by a name of its own.
    """

    def __init__(self, app: _App, limits: Limits, uploads: Path, token: str | None, hosts: Sequence[str] = LOOPBACK):
        self._app, self._limits, self._uploads = app, limits, uploads.resolve()
        self.token, self.hosts = token, tuple(hosts)
        self._bytes_coming = 0  # of all requests that are not answered

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a connection of another kind is closed
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        body = _Body(receive, self._limits, self._admit, has_none=not _BODY & headers.keys())
        has_answered = False

        async def answer(message: _Message) -> None:
            nonlocal has_answered
            if body.refusal and not has_answered:
                return  # what the application makes of it is not what happened
            if message["type"] == "http.response.start":
                has_answered = True
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                if not body.is_whole:
                    more.append((b"connection", b"close"))  # what is left of the request is not read
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            self._check_caller(headers)
            await self._app(scope, await self._checked(scope["path"], headers, body), answer)
            refusal = body.refusal
        except _Refused as refused:
            refusal = refused
        finally:
            self._bytes_coming -= body.num_bytes
        if refusal and not has_answered:
            body.refusal = None
            await _refuse(answer, refusal)

    def _admit(self, num_bytes: int) -> bool:
        """Whether so much more may come, beside all that others send at the same time."""
        self._bytes_coming += num_bytes
        return self._bytes_coming <= self._limits.keep_gigabytes * 10**9

    def _check_caller(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self.token is None and _name_of(host) not in self.hosts:
            raise _Refused(421, f"This server is not called so; call it {self.hosts[0]}.")
        origin = headers.get("origin")
        if origin and origin.split("://")[-1] != host:
            raise _Refused(403, "Pages of other sites may not use this server.")
        if self.token is not None and not secrets.compare_digest(_token_in(headers), self.token.encode()):
            raise _Refused(401, "Give the server's token.", ((b"www-authenticate", b'Basic realm="clipsep"'),))

    async def _checked(self, path: str, headers: dict[str, str], body: "_Body") -> _Receive:
        """What receives a request of bounded size and time.

        Raises:
            _Refused: it is larger by its own word, or goes where no client should.
        """
        rest = path.removeprefix(_PAGE)
        is_door = rest in _PAGE_DOORS or rest.startswith(_HEARTBEAT) or self._is_upload(rest)
        if path.startswith(_PAGE) and not is_door:
            raise _Refused(404, "There is nothing here.")
        is_json = path.startswith(_PAGE) and rest in _JSON_DOORS
        if is_json:
            body.most_bytes = _MOST_JSON_BYTES
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > body.most_bytes:
            raise body.too_large()
        return await self._without_addresses(body) if is_json else body.receive

    def _is_upload(self, rest: str) -> bool:
        return rest.startswith("file=/") and self._is_below(rest.removeprefix("file="))

    def _is_below(self, path: str) -> bool:
        """Whether a path leads to what clients sent."""
        try:
            return self._uploads in Path(path).resolve().parents
        except (OSError, ValueError):  # no file can have it
            return False

    async def _without_addresses(self, body: "_Body") -> _Receive:
        """A request of JSON that names no file but what its client sent, and nothing on other servers."""
        whole = b""
        while not body.is_whole:
            whole += (await body.receive()).get("body", b"")
        try:
            self._check_paths(json.loads(whole or b"{}"))
        except (ValueError, RecursionError):
            raise _Refused(400, "This is not JSON.") from None
        messages = iter([{"type": "http.request", "body": whole, "more_body": False}])

        async def replay() -> _Message:
            return next(messages, None) or await body.receive()

        return replay

    def _check_paths(self, value: Any) -> None:
        if isinstance(value, dict):
            path = value.get("path")
            if path is not None and not (isinstance(path, str) and self._is_below(path)):
                raise _Refused(400, "Send the file itself; addresses and paths are not followed.")
            value = list(value.values())
        for each in value if isinstance(value, list) else ():
            self._check_paths(each)


class _Body:
    """Receives a request, and counts its bytes and seconds.

    Attributes:
        most_bytes: that it may have.
        num_bytes: that it has so far.
        is_whole: whether it has come to its end.
        refusal: why no more of it is taken.
    """

    def __init__(self, receive: _Receive, limits: Limits, admit: Callable[[int], bool], *, has_none: bool):
        self._receive, self._limits, self._admit = receive, limits, admit
        self._end = asyncio.get_running_loop().time() + limits.upload_seconds
        self.num_bytes = 0
        self.most_bytes, self.is_whole = limits.upload_bytes, has_none
        self.refusal: _Refused | None = None

    async def receive(self) -> _Message:
        """The next part; after the last, what tells that the client goes away.

        Raises:
            _Refused: it is too large, or too slow.
        """
        if self.is_whole:
            return await self._receive()
        if self.refusal:
            raise self.refusal
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            seconds = self._limits.upload_seconds
            self.refusal = _Refused(408, f"The request did not come within {seconds} seconds.")
            raise self.refusal from None
        size = len(message.get("body", b""))
        self.num_bytes += size
        self.is_whole = not message.get("more_body", False)
        if not self._admit(size):
            self.refusal = _Refused(503, "Too much comes at once; try again in a minute.", ((b"retry-after", b"60"),))
        if self.num_bytes > self.most_bytes:
            self.refusal = self.too_large()
        if self.refusal:
            raise self.refusal
        return message

    def too_large(self) -> _Refused:
        return _Refused(413, f"The request is too large; send at most {self._limits.upload_megabytes} MB.")


def _name_of(host: str) -> str:
    """A host without its port."""
    return host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


def _token_in(headers: dict[str, str]) -> bytes:
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value).partition(b":")[2]
        except ValueError:
            return b""
    return b""


async def _refuse(send: _Send, refused: _Refused) -> None:
    body = json.dumps({"error": refused.sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": refused.status, "headers": [*headers, *refused.headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
