"""The HTTP door: what programs send and get, and what is turned away."""

import io
import os
import socket
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

import clipsep_jax
from clipsep_jax.errors import InputError
from clipsep_jax.serving import server as server_module
from clipsep_jax.serving import service as service_module
from clipsep_jax.serving.limits import Limits
from clipsep_jax.serving.server import read_token
from clipsep_jax.serving.service import Service
from tests.serving.conftest import running

TOKEN = "a-token-that-nobody-guesses"


def separate(client: httpx.Client, recording: Path, **fields) -> httpx.Response:
    return client.post("/separate", files={"file": (recording.name, recording.read_bytes())}, data=fields)


def test_stems_of_a_recording_add_up_to_it(client, recording):
    answer = separate(client, recording, queries=["buzz", "hum"], without="rain")
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert [stem["title"] for stem in made["stems"]] == ["buzz", "hum", "residual", "mixture"]
    assert (made["rate_hz"], made["channels"], made["seconds"]) == (16_000, 1, 1.25)
    sounds = []
    for stem in made["stems"]:
        file = client.get(stem["url"])
        assert file.headers["content-type"] == "audio/wav"
        sounds.append(soundfile.read(io.BytesIO(file.content))[0])
    np.testing.assert_allclose(sum(sounds[:-1]), sounds[-1], atol=3 / 2**15)
    given, _ = soundfile.read(recording)
    np.testing.assert_allclose(sounds[-1], given, atol=2 / 2**15)
    assert client.get(made["spectrogram"]).content.startswith(b"\x89PNG")


def test_players_may_ask_for_a_part_of_a_file(client, recording):
    url = separate(client, recording, queries="buzz").json()["stems"][0]["url"]
    whole = client.get(url).content
    part = client.get(url, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole[100:200]


def test_all_stems_come_in_one_archive(client, recording):
    answer = separate(client, recording, queries="buzz", reply="zip", format="flac")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = {"street_buzz.flac", "street_residual.flac", "street_mixture.flac", "street_spectrogram.png"}
        assert set(archive.namelist()) == names


def test_pictures_are_queries_under_their_own_names(client, recording):
    picture = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(picture, "PNG")
    files = [("file", ("a.wav", recording.read_bytes())), ("images", ("bell.png", picture.getvalue()))]
    made = client.post("/separate", files=files).json()
    assert made["stems"][0]["title"] == "bell"
    assert made["stems"][0]["url"].endswith("/a_bell.wav")


def test_a_recording_whose_stems_would_fill_the_disk_is_refused(start, tmp_path):
    long = tmp_path / "long.wav"
    with soundfile.SoundFile(long, "w", 48_000, 8, "PCM_U8", format="WAV") as file:
        file.write(np.zeros((48_000 * 130, 8), np.float32))
    client = start(limits=Limits(keep_gigabytes=1))
    answer = separate(client, long, queries=["a"] * 4)
    assert answer.status_code == 400
    assert "long.wav would take 0.6 GB, more than the 0.5 GB" in answer.json()["error"]


def test_a_picture_of_too_many_pixels_is_refused(client, recording):
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0\xc4\x37\x1b\xd8"
    files = [("file", ("a.wav", recording.read_bytes())), ("images", ("bomb.png", bomb))]
    answer = client.post("/separate", files=files)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("bomb.png ")


def test_it_tells_what_it_is(client):
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    (model,) = client.get("/models").json()
    assert model["takes"] == ["queries", "images"]
    assert "/separate" in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("page.wav", b"<html><script>alert(1)</script></html>", "page.wav cannot be read as sound"),
        ("../../etc/x.wav", b"nothing", "x.wav cannot be read as sound"),
        ("..\\..\\x.wav", b"", "x.wav cannot be read as sound"),
        ("a\x1b[31m.wav", b"RIFF\xff\xff\xff\xffWAVEfmt ", "cannot be read as sound"),
        (
            "x.wav",
            b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\xff\xff\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data\0\0\0\0",
            "x.wav",
        ),
        ("x.zip", b"PK\x03\x04" + bytes(100), "x.zip cannot be read as sound"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "list.m3u8 cannot be read as sound"),
    ],
)
def test_what_is_no_sound_is_refused_in_a_sentence(client, name, content, words):
    answer = client.post("/separate", files={"file": (name, content)}, data={"queries": "buzz"})
    assert answer.status_code == 400
    sentence = answer.json()["error"]
    assert words in sentence
    assert "clipsep-serve" not in sentence
    assert sentence.isprintable()
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "file"),
        ({"queries": ["a"] * 9}, "at most 8"),
        ({"queries": "a" * 501}, "500 letters"),
        ({"queries": "a", "without": ["b"] * 16}, "17 sounds"),
        ({"queries": " + ".join("abcdefghijklmnopq")}, "17 sounds"),
        ({"queries": "a", "reply": "tar"}, "reply"),
        ({"queries": "a", "format": "exe"}, "format"),
    ],
)
def test_what_is_asked_wrongly_is_told(client, recording, fields, words):
    answer = separate(client, recording, **fields) if fields else client.post("/separate", data={"queries": "a"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_query_is_asked_for(client, recording):
    answer = separate(client, recording)
    assert answer.status_code == 400
    assert "query" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/results/x/y", "/nothing", f"/results/x/{'y' * 300}"])
def test_nothing_but_results_can_be_fetched(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    ["KEY/../secret", "KEY%2f..%2fsecret/x", "../secret/x", "%2e%2e/secret", "KEY/%2e%2e%2fsecret", "KEY/..%5csecret"],
)
def test_no_way_leads_out_of_the_results(trained, recording, tmp_path, monkeypatch, path):
    """Bytes as they are, since clients would tidy the path; files named `secret` lie beside the result and above it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with running(trained) as address, httpx.Client(base_url=address, timeout=60) as client:
        key = separate(client, recording, queries="buzz").json()["stems"][0]["url"].split("/")[2]
        (root,) = tmp_path.glob("clipsep-serve-*")
        for place in (root, root / "results"):
            (place / "secret").write_text("secret")
        server = urlsplit(address)
        with socket.create_connection((server.hostname, server.port), timeout=10) as connection:
            asked = f"GET /results/{path.replace('KEY', key)} HTTP/1.1"
            connection.sendall(f"{asked}\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(4_096), b""))
    assert b" 404 " in answer.split(b"\r\n")[0]
    assert not answer.endswith(b"secret")


def test_who_asks_for_nothing_is_hung_up_on(start, monkeypatch):
    monkeypatch.setattr(server_module, "_SECONDS_TO_ASK", 0.2)
    client = start()
    url = urlsplit(str(client.base_url))
    whole = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for said in (b"", whole[:30], whole + b"GET /"):
        with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
            connection.sendall(said)
            while connection.recv(4_096):  # until the other end is closed
                pass


def test_connections_are_kept_for_the_next_request(client):
    assert "close" not in client.get("/health").headers.get("connection", "")


def test_a_fault_of_ours_is_told_without_its_insides(client, recording, monkeypatch, capfd):
    monkeypatch.setattr(service_module, "separate_file", lambda *_: 1 / 0)
    answer = separate(client, recording, queries="buzz")
    assert answer.status_code == 500
    assert answer.json() == {"error": service_module.FAULT}
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_uploads_go_when_they_are_separated_and_everything_when_the_server_ends(
    trained, recording, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with running(trained) as address, httpx.Client(base_url=address, timeout=60) as client:
        url = separate(client, recording, queries="buzz").json()["stems"][0]["url"]
        (root,) = tmp_path.glob("clipsep-serve-*")
        assert (root / url.lstrip("/")).is_file()
        assert not any((root / "uploads").iterdir())
    assert not root.exists()


def test_large_bodies_are_refused_before_they_are_read(start, tmp_path):
    client = start(limits=Limits(upload_megabytes=1))
    url = urlsplit(str(client.base_url))
    with socket.create_connection((url.hostname, url.port)) as connection:
        head = "POST /separate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        connection.sendall((head + "Content-Length: 1000000000\r\n\r\n").encode())
        assert b" 413 " in connection.recv(1_000)

    def without_end():
        while True:
            yield bytes(100_000)

    try:
        answer = client.post(
            "/separate", content=without_end(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code in (400, 413)
    except httpx.WriteError:  # the server closed its end
        pass
    assert client.get("/health").status_code == 200


def test_slow_senders_are_cut_off(start):
    client = start(limits=Limits(upload_seconds=1))
    url = urlsplit(str(client.base_url))
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        head = "POST /separate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        connection.sendall((head + "Content-Length: 1000\r\n\r\n--x\r\n").encode())
        assert b" 408 " in connection.recv(1_000)
        assert client.get("/health").status_code == 200


def test_twenty_at_once_are_all_served(client, recording):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: separate(client, recording, queries="buzz").status_code, range(20)))
    assert answers == [200] * 20


def test_more_than_may_wait_are_told_to_come_again(start, recording, monkeypatch):
    client = start(limits=Limits(waiting=1))
    gate = threading.Event()
    plain = service_module.separate_file
    monkeypatch.setattr(service_module, "separate_file", lambda *given: gate.wait() and plain(*given))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(separate, client, recording, queries="buzz") for _ in range(2)]
        while client.get("/health").json()["waiting"] < 2:
            time.sleep(0.01)
        answer = separate(client, recording, queries="buzz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
        gate.set()
        assert [each.result().status_code for each in waiting] == [200, 200]


def test_who_hangs_up_is_not_waited_for(start, recording, monkeypatch):
    client = start()

    def endless(separator, recording, job, progress):
        while True:
            progress(0.0, None)
            time.sleep(0.01)

    monkeypatch.setattr(service_module, "separate_file", endless)
    with pytest.raises(httpx.ReadTimeout):
        client.post(
            "/separate",
            files={"file": recording.read_bytes()},
            data={"queries": "buzz"},
            timeout=httpx.Timeout(30, read=0.5),
        )
    end = time.monotonic() + 10
    while client.get("/health").json()["waiting"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_token_is_asked_for_where_others_can_come(start, trained, tmp_path):
    client = start(token=TOKEN)
    answer = client.get("/health")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert client.get("/health", headers={"Authorization": "Bearer wrong"}).status_code == 401
    for wrong in (b"Basic %%%", b"Basic \xe9", b"Bearer \xe9", b"Basic"):
        assert client.get("/health", headers={b"Authorization": wrong}).status_code == 401
    assert client.get("/health", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/health", auth=("anyone", TOKEN)).status_code == 200


def test_no_other_host_without_a_token(trained):
    with pytest.raises(InputError, match="--token-file"), running(trained, host="0.0.0.0"):
        pass


def test_a_port_that_is_taken_is_told(trained):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} "), running(trained, port=port):
            pass


def test_tokens_are_read_and_short_ones_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"  {TOKEN}\n")
    assert read_token(path) == TOKEN
    for wrong in ("short", "ä" * 20, "ab\nc" * 10):
        path.write_text(wrong)
        with pytest.raises(InputError, match="fewer than 16 letters"):
            read_token(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_pages_of_other_sites_have_no_way_in(client):
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 421
    assert client.post("/separate", headers={"Origin": "https://evil.example"}).status_code == 403
    own = str(client.base_url).rstrip("/")
    assert client.get("/health", headers={"Origin": own}).status_code == 200
    assert "frame-ancestors 'none'" in client.get("/health").headers["content-security-policy"]


def test_old_results_are_removed_and_the_oldest_where_there_is_too_much(trained, tmp_path):
    service = Service(clipsep_jax.load(trained), Limits(keep_minutes=1, keep_gigabytes=1), tmp_path / "root")
    try:
        now = time.time()
        for name, age in (("old", 100), ("a", 30), ("b", 20), ("c", 10)):
            folder = service.results / name
            folder.mkdir()
            with (folder / "stem.wav").open("wb") as file:
                file.truncate(4 * 10**8)
            for path in (folder / "stem.wav", folder):
                os.utime(path, (now - age, now - age))
        waiting, example = service.uploads / "waiting", service.page_uploads / "example"
        for path in (waiting, example):
            path.touch()
            os.utime(path, (now - 100, now - 100))
        service._for_ever, service._in_use[waiting] = frozenset({example}), 1
        service._tidy()
        assert {path.name for path in service.results.iterdir()} == {"b", "c"}
        assert waiting.exists()
        assert example.exists()
        service._let_go([waiting])
        service._tidy()
        assert not waiting.exists()
    finally:
        service.close()
