"""Fetching the videos of a list with yt-dlp: one at a time, with pauses, resumable, a ledger line for each."""

import csv
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from clipsep_jax.data_prep.decode.limits import MAX_FILE_BYTES
from clipsep_jax.data_prep.sources import music
from clipsep_jax.data_prep.sources.videos import VIDEO_SUFFIXES
from clipsep_jax.errors import InputError
from clipsep_jax.files import MOST_LIST_BYTES, check_is_file, decode_json, encode_json

DOWNLOAD_LEDGER_NAME = "download.jsonl"
URL = "https://www.youtube.com/watch?v={}"
FORMAT = "b[height<=480][ext=mp4]/b[height<=480]/b"  # one file with sound, so that nothing must be merged
MAX_BLOCKED = 5  # stop after so many refusals in a row

_ID = re.compile(r"[\w-]+")
_GONE = re.compile(
    r"video (is )?(unavailable|private|not available)|private video|(been|was) (removed|terminated|deleted)"
    r"|no longer available|does not exist|HTTP Error (404|410)",
    re.IGNORECASE,
)
_BLOCKED = re.compile(
    r"HTTP Error (403|429|5\d\d)|too many requests|rate.limit|try again later|sign in to confirm|captcha", re.IGNORECASE
)


@dataclass(frozen=True)
class DownloadLine:
    """The outcome of one video: "downloaded", or "failed" with a reason: gone, blocked, or error."""

    id: str
    status: str
    reason: str = ""
    detail: str = ""
    file: str = ""
    num_bytes: int | None = None


def read_ids(path: Path) -> list[str]:
    """The ids of a list, each once: vggsound.csv, a list of MUSIC (.json) or of the official code, or one id per line.

    Raises:
        InputError: the file is missing or holds something that is not an id.
    """
    if path.suffix == ".json":
        ids = [video for _, video in music.read_list(path)]
    elif not path.is_file():
        raise InputError(f"There is no file {path}; give vggsound.csv, a list of MUSIC, or a file of one id per line.")
    else:
        check_is_file(path, MOST_LIST_BYTES)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                first = [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a list of ids in UTF-8 ({error}); give another file.") from error
        ids = [PurePosixPath(word).stem if "/" in word else word for word in first]
    wrong = [id for id in ids if not _ID.fullmatch(id)]
    if wrong or not ids:
        raise InputError(f"{path} holds {wrong[0]!r}, which is not a video id." if wrong else f"{path} is empty.")
    return list(dict.fromkeys(ids))


def download(
    ids: Sequence[str],
    out: Path,
    *,
    url: str = URL,
    pause_seconds: float = 5.0,
    retry_gone: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> list[DownloadLine]:
    """Fetch the videos into `out/ID.mp4` (or another video suffix), and add a line for each to `out/download.jsonl`.

    Videos that are there, or known to be gone, are skipped; a partial download is resumed. Returns the last line of
    each id.

    Args:
        url: address of a video, with {} for its id.
        pause_seconds: pause between two videos.
        retry_gone: also try videos that were gone.

    Raises:
        InputError: yt-dlp is not installed, or the server keeps refusing.
    """
    _check_url(url)
    out.mkdir(parents=True, exist_ok=True)
    known = {line.id: line for line in _read_lines(out / DOWNLOAD_LEDGER_NAME)}
    lines, asked = list[DownloadLine](), False
    with tqdm(ids, unit="video", file=sys.stderr) as progress:
        for id in progress:
            line = _settled(id, out, known.get(id), retry_gone)
            if line is None:
                if asked:
                    sleep(pause_seconds)
                asked = True
                line = _fetch(id, out, url.replace("{}", id))
            if line != known.get(id):
                _append(out / DOWNLOAD_LEDGER_NAME, line)
            lines.append(line)
            progress.set_postfix(failed=sum(line.status == "failed" for line in lines), refresh=False)
            _stop_where_blocked(lines)
    return lines


def _stop_where_blocked(lines: Sequence[DownloadLine]) -> None:
    if [line.reason for line in lines[-MAX_BLOCKED:]] == ["blocked"] * MAX_BLOCKED:
        raise InputError(f"The server refused {MAX_BLOCKED} times in a row ({lines[-1].detail}); try again later.")


def _check_url(url: str) -> None:
    if url.count("{}") != 1:
        raise InputError(f"The address {url!r} must hold {{}} once, in the place of the id.")


def _settled(id: str, out: Path, earlier: DownloadLine | None, retry_gone: bool) -> DownloadLine | None:
    """The line of a video that need not be fetched: it is there, or known to be gone."""
    return _downloaded(id, out) or (earlier if earlier and earlier.reason == "gone" and not retry_gone else None)


def _fetch(id: str, out: Path, url: str) -> DownloadLine:
    try:
        from yt_dlp import YoutubeDL
        from yt_dlp.utils import DownloadError
    except ImportError:
        raise InputError("yt-dlp is not installed; run: pip install 'clipsep-jax[download]'") from None
    options = {
        "format": FORMAT,
        "paths": {"home": str(out)},
        "outtmpl": f"{id}.%(ext)s",
        "max_filesize": MAX_FILE_BYTES,
        "noplaylist": True,
        "retries": 3,
        "retry_sleep_functions": {"http": lambda n: 2**n},
        "socket_timeout": 30,
        "quiet": True,
        "noprogress": True,
        "no_warnings": True,
        "logger": _Silence(),
        "cachedir": False,
    }
    try:
        with YoutubeDL(options) as fetcher:
            fetcher.extract_info(url)
    except DownloadError as error:
        detail = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).removeprefix("ERROR: ").strip()
        return DownloadLine(id, "failed", reason_of(detail), detail)
    return _downloaded(id, out) or DownloadLine(id, "failed", "error", "yt-dlp wrote no video file")


def _downloaded(id: str, out: Path) -> DownloadLine | None:
    paths = [out / f"{id}{suffix}" for suffix in sorted(VIDEO_SUFFIXES)]
    found = [path for path in paths if path.is_file()]
    return DownloadLine(id, "downloaded", file=found[0].name, num_bytes=found[0].stat().st_size) if found else None


def reason_of(detail: str) -> str:
    """What yt-dlp's message means: "gone" for good, "blocked" for now, or another "error"."""
    if _BLOCKED.search(detail):
        return "blocked"
    return "gone" if _GONE.search(detail) else "error"


class _Silence:
    """Discards yt-dlp's messages: what matters is in the ledger."""

    def debug(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...


def _append(ledger: Path, line: DownloadLine) -> None:
    with ledger.open("ab") as file:
        file.write(encode_json(asdict(line)))
        file.flush()
        os.fsync(file.fileno())


def _read_lines(ledger: Path) -> list[DownloadLine]:
    """The lines so far; one that was cut off when its process was killed is dropped."""
    if ledger.exists():
        check_is_file(ledger, MOST_LIST_BYTES)
    data = ledger.read_bytes() if ledger.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(ledger, len(whole))
    otherwise = "is not a ledger of downloads; move it away, or name another folder."
    return [decode_json(line, ledger, otherwise, DownloadLine) for line in whole.splitlines()]
