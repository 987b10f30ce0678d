"""What real collections hold, and worse: each file gets its reason or is accepted rightly; no other is opened."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipsep_jax.data.record import decode_frame
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.ledger import read_ledger
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.sources.videos import read_video
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from tests.data_prep.bad_files import make_corpus, watched_file
from tests.data_prep.made_media import grey_pictures, make_video, tone


@contextmanager
def watched_server() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_every_file_gets_its_reason_or_is_accepted(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    with watched_server() as (url, asked), watched_file(folder / "secret.ts") as opened:
        reasons = make_corpus(folder, url)
        assert len(reasons) >= 30
        inputs = [Input(name, folder / name, "", "train") for name in reasons]
        write_records(inputs, read_video, out, run=PoolRunner(2, 60.0), max_rejected=1.0)
        assert not opened.is_set()
        assert asked == []
    ledger = read_ledger(out / "ledger.jsonl")
    assert {line.input: line.reason for line in ledger} == reasons
    assert all(line.detail for line in ledger if line.status == "rejected")
    records = RecordSet(out)
    num_accepted = sum(reason == "" for reason in reasons.values())
    assert records.manifest.counts == {
        "inputs": len(reasons),
        "accepted": num_accepted,
        "rejected": len(reasons) - num_accepted,
    }
    accepted = list(records.split("train"))
    assert [record.id for record in accepted] == [name for name, reason in reasons.items() if not reason]
    for record in accepted:
        assert 16_000 <= len(record.audio) <= 16_000 * 5
        assert all(decode_frame(jpeg).shape == (224, 224, 3) for jpeg in record.frames)
        assert len(record.frames) >= 1


@pytest.mark.slow
def test_the_watchers_would_notice(tmp_path):
    """With FFmpeg's own behaviour, the playlists of the corpus are followed."""
    import av

    with watched_server() as (url, asked):
        make_corpus(tmp_path, url)
        with pytest.raises(av.FFmpegError):
            av.open(str(tmp_path / "ffconcat-url.mp4"), options={"safe": "0", "protocol_whitelist": "file,http,tcp"})
    assert asked
    with watched_file(tmp_path / "secret.ts") as opened:
        reader = threading.Thread(target=_open, args=(tmp_path / "ffconcat-local.mp4",))
        reader.start()
        assert opened.wait(10)
        reader.join()


def _open(path: Path) -> None:
    import av

    with pytest.raises(av.FFmpegError):
        av.open(str(path))


def test_a_codec_that_is_not_listed_is_refused_before_it_decodes(tmp_path):
    path = make_video(tmp_path / "a.mkv", tone(2.0), grey_pictures(20), audio_codec="pcm_s16be")
    outcome = read_video(Input("a", path, "", "train"))
    assert len(outcome.audio) == 32_000
    path = make_video(tmp_path / "b.avi", tone(2.0), grey_pictures(20), audio_codec="wmav2")
    outcome = read_video(Input("b", path, "", "train"))
    assert (outcome.reason, outcome.detail) == ("undecodable", "its audio codec wmav2 is not supported")
