"""Runs the page and the HTTP door."""

import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipsep_jax.errors import InputError
from clipsep_jax.separation.separator import Separator
from clipsep_jax.serving.examples import Example
from clipsep_jax.serving.guard import LOOPBACK, Guard
from clipsep_jax.serving.http import build_app
from clipsep_jax.serving.limits import Limits
from clipsep_jax.serving.service import Service

MOST_CONNECTIONS = 200
_LEAST_TOKEN_LETTERS = 16
_SECONDS_TO_END = 5
_SECONDS_TO_ASK = 10  # at least, twice as many at most


def read_token(path: Path) -> str:
    """The token in a file, without the spaces around it.

    Raises:
        InputError: it cannot be read, or is short enough to be guessed.
    """
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as the file of a token; write one line of text into it.") from error
    if len(token) < _LEAST_TOKEN_LETTERS or not token.isascii() or not token.isprintable():
        example = secrets.token_urlsafe(24)
        raise InputError(
            f"The token in {path} has fewer than {_LEAST_TOKEN_LETTERS} letters, or others than of ASCII; take one "
            f"such as {example}."
        )
    return token


def serve(
    separator: Separator,
    limits: Limits,
    examples: Sequence[Example] = (),
    *,
    host: str,
    port: int,
    token: str | None,
    tell: Callable[[str], None],
) -> None:
    """Serves the page and the HTTP door until SIGINT or SIGTERM, and tells where.

    Raises:
        InputError: others could reach it without a token, or the port is taken.
    """
    from clipsep_jax.serving.page import add_page

    with_page = partial(add_page, examples=examples)
    with open_server(separator, limits, host=host, port=port, token=token, add_page=with_page) as opened:
        server, address, listener = opened
        tell(f"Open {address} in a browser; Ctrl-C ends.")
        signal.signal(signal.SIGTERM, _end)  # which the server sends again, once it has shut down
        server.run(sockets=[listener])


def _end(*_: Any) -> None:
    raise SystemExit


@contextmanager
def open_server(
    separator: Separator,
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    add_page: Callable[[Any, Service], Any] = lambda app, _: app,
) -> Iterator[tuple[uvicorn.Server, str, socket.socket]]:
    """A server that listens, ready to run, its address, and its socket; once the block ends, its files are removed.

    Raises:
        InputError: others could reach it without a token, or the port is taken.
    """
    if token is None and host not in LOOPBACK:
        raise InputError(f"Others could use this machine through {host}; give --token-file, or leave out --host.")
    with _listen(host, port) as listener:
        service = Service(separator, limits, Path(tempfile.mkdtemp(prefix="clipsep-serve-")))
        before, tempfile.tempdir = tempfile.tempdir, str(service.uploads)  # where requests wait until they are whole
        try:
            service.warm_up().future.result()
            app = Guard(
                add_page(build_app(service), service), limits, service.page_uploads, token,
                (host, *LOOPBACK) if host in LOOPBACK else (host,),
            )  # fmt: skip
            config = uvicorn.Config(
                app, log_level="warning", limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=30,
                server_header=False, timeout_graceful_shutdown=_SECONDS_TO_END, http=_Impatient, ws="none",
            )  # fmt: skip
            name = f"[{host}]" if ":" in host else host
            yield uvicorn.Server(config), f"http://{name}:{listener.getsockname()[1]}", listener
        finally:
            tempfile.tempdir = before
            service.close()


class _Impatient(H11Protocol):
    """Hangs up on who asks for nothing, or does not come to an end of asking."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._look_again(None)

    def _look_again(self, before: Any) -> None:
        if self.transport.is_closing():
            return
        waits = self.cycle is None or self.cycle.response_complete
        if waits and before == (self.cycle,):
            self.transport.close()
        else:
            self.loop.call_later(_SECONDS_TO_ASK, self._look_again, (self.cycle,) if waits else None)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"The server cannot listen at {host}, port {port} ({error}); give another --port.") from error
