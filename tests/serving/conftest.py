"""A server of a model of the least size."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

import clipsep_jax
from clipsep_jax.serving.limits import DEFAULT_LIMITS, Limits
from clipsep_jax.serving.server import open_server
from tests.separation.inputs import noise


@contextmanager
def running(model: Path, limits: Limits = DEFAULT_LIMITS, **how: Any) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    with open_server(clipsep_jax.load(model), limits, **how) as (server, address, listener):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(trained) -> Iterator[httpx.Client]:
    with running(trained) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture
def start(trained) -> Iterator[Callable[..., httpx.Client]]:
    """Starts servers with other limits."""
    with ExitStack() as stack:

        def started(**how: Any) -> httpx.Client:
            address = stack.enter_context(running(trained, **how))
            return stack.enter_context(httpx.Client(base_url=address, timeout=60))

        yield started


@pytest.fixture
def recording(tmp_path) -> Path:
    path = tmp_path / "street.wav"
    soundfile.write(path, noise(20_000, level=0.3), 16_000)
    return path
