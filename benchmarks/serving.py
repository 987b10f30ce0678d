"""How soon a server answers, what 20 requests at once cost, and what hostile ones achieve.

    python -m benchmarks.serving

`first_sound_seconds` goes from the first byte of a recording of 10 s (stereo, 44.1 kHz) to the first byte of its stem,
once the server is warm; the median of turns. `peak_bytes` is the most memory that the server held. The model is of the
official size, with random weights. Needs the extra `serve`.
"""

import argparse
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.machine import machine
from benchmarks.separate import write_noise
from clipsep_jax.config import Config
from clipsep_jax.model_dir import start_model_dir, write_weights

LABEL = "accordion"
TURNS, AT_ONCE = 7, 20
MOST_SECONDS_OF_A_BODY = 3  # in which a request must have come, of the server that is attacked
NAMES = (
    "../../../etc/cron.d/x.wav",
    "..\\..\\x.wav",
    "/etc/passwd",
    "%2e%2e%2fx.wav",
    "x" * 300 + ".wav",
    "\x1b[2J\x07.wav",
    "; touch owned;.wav",
    "\u202egnp.wav",
    "",
    ".bashrc",
)


def contents() -> dict[str, bytes]:
    """Files that are not what their names say."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../owned", bytes(10**7))
    header = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0"
    return {
        "html": b"<html><script>alert(1)</script></html>",
        "archive": archive.getvalue(),
        "empty": b"",
        "wav of no channels": header + bytes(12) + b"data\xff\xff\xff\xff",
        "wav of 65,535 channels": header
        + b"\xff\xff\x80\x3e\0\0\0\0\0\0\xff\xff\x10\0data\xff\xff\xff\x7f"
        + bytes(99),
        "playlist": b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        "list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0",
        "program": b"\x7fELF\x02\x01\x01" + bytes(200),
        "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x05touch\x85R.",
    }


def hostile_uploads() -> Iterator[tuple[str, bytes]]:
    """100 of them: each name with each content."""
    for name in NAMES:
        for content in contents().values():
            yield name, content


def hostile_requests(address: str) -> dict[str, str]:
    """Bodies that are too large, too slow or of another shape; what each got."""
    url = urlsplit(address)
    head = f"POST /separate HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    upload = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

    def raw(text: str, more: bytes = b"") -> str:
        with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
            with suppress(OSError):  # cut off
                connection.sendall((head + text).encode())
                for _ in range(2_000 if more else 0):
                    connection.sendall(more)
            return _first_line(connection)

    file = {"path": "http://127.0.0.1:1/x.wav", "meta": {"_type": "gradio.FileData"}}
    join = {"fn_index": 0, "session_hash": "x", "data": [file]}
    chunked = f"Transfer-Encoding: chunked\r\n\r\n{len(upload):x}\r\n{upload}\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    fields = {f"f{number}": "x" for number in range(10_000)}
    with httpx.Client(base_url=address, timeout=60) as client:
        answers = {
            "no parts": client.post("/separate", content=b"x", headers=form),
            "10,000 fields": client.post("/separate", data=fields, files={"g": b""}),
            "an address for a file": client.post("/gradio_api/queue/join", json=join),
            "a path for a file": client.get("/gradio_api/file=/etc/passwd"),
            "an address to fetch": client.get("/gradio_api/proxy=http://127.0.0.1:1/"),
            "deep JSON": client.post("/gradio_api/queue/join", content=b"[" * 200_000),
        }
    return {
        "1 GB by its own word": raw("Content-Length: 1000000000\r\n\r\n"),
        "2 GB in chunks": raw(chunked, b"f4240\r\n" + bytes(10**6) + b"\r\n"),
        "a slow sender": raw(f"Content-Length: 1000\r\n\r\n{upload}"),
    } | {what: str(answer.status_code) for what, answer in answers.items()}


def _first_line(connection: socket.socket) -> str:
    try:
        answer = connection.recv(1_000)
    except OSError as error:
        return type(error).__name__
    return answer.split(b"\r\n")[0].removeprefix(b"HTTP/1.1 ").decode() or "hung up"


@contextmanager
def serving(model: Path, home: Path, *options: str) -> Iterator[tuple[str, int]]:
    """The address and the process of `clipsep serve`, which has nothing but `home` to write to by habit."""
    command = [sys.executable, "-m", "clipsep_jax.cli", "serve", "--model", str(model), "--port", "0", *options]
    places = {"TMPDIR": str(home), "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=home, env=os.environ | places, stdout=subprocess.PIPE, stderr=log, text=True
        )
        with process:
            try:
                assert process.stdout
                yield process.stdout.readline().split()[1], process.pid
            finally:
                process.terminate()


def first_sound_seconds(client: httpx.Client, recording: Path) -> float:
    start = time.perf_counter()
    made = _separate(client, recording.name, recording.read_bytes()).json()
    with client.stream("GET", made["stems"][0]["url"]) as answer:
        next(answer.iter_bytes(1))
    return time.perf_counter() - start


def _separate(client: httpx.Client, name: str, content: bytes) -> httpx.Response:
    return client.post("/separate", files={"file": (name, content)}, data={"queries": LABEL})


def measure(model: Path) -> dict[str, Any]:
    """All figures, of one server each."""
    with TemporaryDirectory() as temporary:
        home = Path(temporary)
        recording = write_noise(home / "ten.wav", "stereo 44.1 kHz", 10).path
        with serving(model, home) as (address, pid), httpx.Client(base_url=address, timeout=600) as client:
            seconds = [first_sound_seconds(client, recording) for _ in range(2 + TURNS)][2:]
            start = time.perf_counter()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                content = recording.read_bytes()
                codes = list(pool.map(lambda _: _separate(client, "ten.wav", content).status_code, range(AT_ONCE)))
            facts = {
                "first_sound_seconds": round(statistics.median(seconds), 2),
                "at_once": {str(code): codes.count(code) for code in set(codes)},
                "at_once_seconds": round(time.perf_counter() - start, 1),
                "peak_bytes": _peak_bytes(pid),
            }
    return facts | {"hostile": attack(model)}


def attack(model: Path) -> dict[str, Any]:
    """What hostile uploads get, and what is left of them."""
    with TemporaryDirectory() as temporary:
        home = Path(temporary) / "a" / "b" / "c" / "d"  # so that ../../.. from it is seen
        home.mkdir(parents=True)
        limits = ("--upload-seconds", str(MOST_SECONDS_OF_A_BODY), "--upload-megabytes", "50")
        with serving(model, home, *limits) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
            before = set(Path(temporary).rglob("*"))
            answers = [_separate(client, *upload) for upload in hostile_uploads()]
            requests = hostile_requests(address)
            is_well = client.get("/health").status_code == 200
            new = set(Path(temporary).rglob("*")) - before
            (own,) = home.glob("clipsep-serve-*")
            outside = sorted(str(path) for path in new if own not in path.parents)
        left = [path.name for path in home.glob("clipsep-serve-*")]
        log = (home / "log").read_text()
    codes = [answer.status_code for answer in answers]
    return {
        "uploads": len(answers),
        "answers": {str(code): codes.count(code) for code in set(codes)},
        "without_a_sentence": sum(not answer.json()["error"].isprintable() for answer in answers),
        "tracebacks_told": sum("Traceback" in answer.text or "site-packages" in answer.text for answer in answers),
        "requests": requests,
        "is_well_afterwards": is_well,
        "written_outside": outside,
        "left_at_the_end": left,
        "faults_in_the_log": log.count("Traceback"),
    }


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1_024 for line in lines if line.startswith("VmHWM"))


def write_model(folder: Path) -> Path:
    """A LabelSep of the official size, untrained, which needs no encoder."""
    from flax import nnx

    from clipsep_jax.models.clipsep import build_model

    config = Config()
    config = replace(config, query=replace(config.query, kind="label"), model=replace(config.model, num_labels=1))
    start_model_dir(folder, config, None, [LABEL])
    write_weights(folder, build_model(config.model, nnx.Rngs(0)), 0, None)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with TemporaryDirectory() as temporary:
        print(json.dumps(machine() | measure(write_model(Path(temporary) / "model")), indent=2))


if __name__ == "__main__":
    main()
