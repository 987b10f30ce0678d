"""Fetching from a server on this machine: complete, gone, refused, and interrupted."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipsep_jax.data_prep import download as module
from clipsep_jax.data_prep.download import download, read_ids
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.sources.videos import read_video
from clipsep_jax.errors import InputError
from tests.data_prep.made_media import grey_pictures, make_video, tone


class VideoServer(ThreadingHTTPServer):
    """Serves the video as /ID.mp4, but answers some ids with an HTTP status of `codes`."""

    def __init__(self, video: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.video, self.codes = video, dict[str, int]()
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{{}}.mp4"


class _Handler(BaseHTTPRequestHandler):
    server: VideoServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        id = self.path.strip("/").removesuffix(".mp4")
        self.server.asked[id] += 1
        if id in self.server.codes:
            self.send_error(self.server.codes[id])
            return
        video, begin = self.server.video, 0
        if "Range" in self.headers:
            first = self.headers["Range"].removeprefix("bytes=").split("-")[0]
            begin = int(first)
            self.server.ranges.append(first)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(video) - begin))
        self.send_header("Accept-Ranges", "bytes")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(video) - 1}/{len(video)}")
        self.end_headers()
        if with_body:
            self.wfile.write(video[begin:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    path = make_video(tmp_path_factory.mktemp("video") / "a.mp4", tone(2.0), grey_pictures(20))
    return path.read_bytes()


@pytest.fixture
def server(video) -> Iterator[VideoServer]:
    with VideoServer(video) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(ids, out: Path, server: VideoServer, **options):
    pauses: list[float] = []
    lines = download(ids, out, url=server.url, sleep=pauses.append, **options)
    return {line.id: line for line in lines}, pauses


@pytest.mark.slow
def test_videos_are_fetched_once_with_pauses_and_a_ledger(tmp_path, server, video):
    server.codes = {"gone_video1": 404}
    ids = ["-good_one-1", "gone_video1", "good_two__2"]
    lines, pauses = run(ids, tmp_path, server, pause_seconds=7.0)
    assert [(line.status, line.reason) for line in lines.values()] == [
        ("downloaded", ""),
        ("failed", "gone"),
        ("downloaded", ""),
    ]
    assert pauses == [7.0, 7.0]
    for id in (ids[0], ids[2]):
        assert (tmp_path / f"{id}.mp4").read_bytes() == video
        assert (lines[id].file, lines[id].num_bytes) == (f"{id}.mp4", len(video))
    assert len(read_video(Input("a", tmp_path / f"{ids[0]}.mp4", "", "train")).frames) == 2
    written = [json.loads(line) for line in (tmp_path / "download.jsonl").read_text().splitlines()]
    assert [line["id"] for line in written] == ids
    asked = server.asked.copy()
    again, pauses = run(ids, tmp_path, server)
    assert again == lines
    assert (server.asked, pauses) == (asked, [])
    assert len((tmp_path / "download.jsonl").read_text().splitlines()) == 3
    server.codes = {}
    assert run(ids, tmp_path, server)[0]["gone_video1"].status == "failed"
    assert run(ids, tmp_path, server, retry_gone=True)[0]["gone_video1"].status == "downloaded"


def test_half_a_file_is_continued(tmp_path, server, video):
    half = len(video) // 2
    (tmp_path / "good_one__1.mp4.part").write_bytes(video[:half])
    lines, _ = run(["good_one__1"], tmp_path, server)
    assert lines["good_one__1"].status == "downloaded"
    assert (tmp_path / "good_one__1.mp4").read_bytes() == video
    assert str(half) in server.ranges


@pytest.mark.slow
def test_a_server_that_refuses_is_left_alone(tmp_path, server, monkeypatch):
    monkeypatch.setattr(module, "MAX_BLOCKED", 3)
    ids = [f"video{n:06d}" for n in range(9)]
    server.codes = dict.fromkeys(ids[1:], 429)
    with pytest.raises(InputError, match=r"refused 3 times in a row .*429.*; try again later"):
        run(ids, tmp_path, server)
    assert set(server.asked) == set(ids[:4])
    server.codes = {}
    lines, _ = run(ids, tmp_path, server)
    assert all(line.status == "downloaded" for line in lines.values())


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("[youtube] x: Video unavailable", "gone"),
        ("[youtube] x: Private video. Sign in if you've been granted access to this video", "gone"),
        ("[youtube] x: This video has been removed by the uploader", "gone"),
        ("[youtube] x: This video is no longer available because the account has been terminated.", "gone"),
        ("unable to download video data: HTTP Error 404: Not Found", "gone"),
        ("HTTP Error 503: Service Unavailable", "blocked"),
        ("HTTP Error 429: Too Many Requests", "blocked"),
        ("[youtube] x: Sign in to confirm you're not a bot", "blocked"),
        (
            "Video unavailable. This content isn't available, try again later. The session has been rate-limited",
            "blocked",
        ),
        ("[youtube] x: Requested format is not available", "error"),
        ("The read operation timed out", "error"),
    ],
)
def test_what_a_failure_means(told, reason):
    assert module.reason_of(told) == reason


def test_other_failures_are_asked_for_again(tmp_path, server):
    server.codes = {"video000000": 418}
    lines, _ = run(["video000000"], tmp_path, server)
    assert (lines["video000000"].reason, "418" in lines["video000000"].detail) == ("error", True)
    server.codes = {}
    assert run(["video000000"], tmp_path, server)[0]["video000000"].status == "downloaded"


def test_a_line_that_was_cut_off_is_dropped_and_another_file_is_refused(tmp_path, server):
    run(["video000000"], tmp_path, server)
    ledger = tmp_path / "download.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"id": "vid')
    run(["video000000"], tmp_path, server)
    assert ledger.read_bytes() == whole
    ledger.write_text("notes\n")
    with pytest.raises(InputError, match="is not a ledger of downloads"):
        run(["video000000"], tmp_path, server)


def test_ids_of_every_list(tmp_path):
    texts = {
        "vggsound.csv": 'aaaaaaaaaaa,30,"dog, howling",train\nbbbbbbbbbbb,0,rain,test\naaaaaaaaaaa,60,rain,train\n',
        "official.csv": "data/audio/tuba/aaaaaaaaaaa.wav,data/frames/tuba/aaaaaaaaaaa,81\nx/bbbbbbbbbbb.wav,x/b,9\n",
        "list.txt": "aaaaaaaaaaa\n\nbbbbbbbbbbb\n",
        "list.json": json.dumps({"videos": {"tuba": ["aaaaaaaaaaa"], "flute violin": ["bbbbbbbbbbb", "aaaaaaaaaaa"]}}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert read_ids(tmp_path / name) == ["aaaaaaaaaaa", "bbbbbbbbbbb"], name


@pytest.mark.parametrize("text", ["", "\n", "aaa\n../../etc/passwd;\n", "good\n%(id)s\n", "https://x/watch?v=abc\n"])
def test_what_is_no_list_of_ids_is_refused(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=r"list\.txt (is empty|holds '.*', which is not a video id)"):
        read_ids(tmp_path / "list.txt")


def test_an_address_without_a_place_for_the_id_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must hold \{\} once"):
        download(["a"], tmp_path, url="http://127.0.0.1/")
