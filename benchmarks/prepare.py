"""Speed of `clipsep prepare` without CLIP: videos to records, in one process on one core.

The clips are generated: 256 x 256, H.264 at 10 pictures a second, AAC, 10 s. Shares are those of a second run under the
profiler: `decoding` is the work of FFmpeg's decoders and demuxer, `resampling` brings the sound to 16 kHz, `pictures`
resizes and compresses one picture a second; the rest reads files, checks, hashes and writes.
"""

import argparse
import cProfile
import json
import pstats
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from benchmarks.machine import machine, one_core
from benchmarks.train_step import seconds_of
from clipsep_jax.data_prep.decode import media, pictures, sound
from clipsep_jax.data_prep.sources.videos import find_videos, read_video
from clipsep_jax.data_prep.writer import PoolRunner, write_records

SIDE = 256
RATE_HZ = 44_100
STAGES = {"decoding": media._frames, "resampling": sound.Sound._gather, "pictures": pictures._encode_jpeg}


def moving_pictures(number: int, count: int) -> Iterator[np.ndarray]:
    """Coloured waves that drift behind a moving bright disc, under a little noise: [256, 256, 3]."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE]
    frequency, speed = rng.uniform(0.02, 0.1, (3, 2)), rng.uniform(0.1, 0.5, 3)
    for i in range(count):
        waves = [np.sin(f[0] * x + f[1] * y + s * i) for f, s in zip(frequency, speed, strict=True)]
        picture = 110 + 60 * np.stack(waves, axis=-1)
        centre = SIDE / 2 + 80 * np.array([np.sin(speed[0] * i), np.cos(speed[1] * i)])
        picture[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 30**2] = 230
        yield np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def make_clip(path: Path, number: int, seconds: int, fps: int = 10) -> None:
    """Writes a clip with moving pictures, and a tone in noise in stereo."""
    rng = np.random.default_rng(number)
    time = np.arange(seconds * RATE_HZ) / RATE_HZ
    tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 2000) * time)
    sound = (tone + 0.05 * rng.normal(size=(2, len(time)))).astype(np.float32)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=fps, options={"crf": "23"})
        video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
        audio: Any = container.add_stream("aac", rate=RATE_HZ, layout="stereo")
        audio.bit_rate = 128_000
        for i, picture in enumerate(moving_pictures(number, seconds * fps)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(video.encode(frame))
        for begin in range(0, sound.shape[1], 1024):
            part = np.ascontiguousarray(sound[:, begin : begin + 1024])
            heard = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            heard.sample_rate, heard.pts, heard.time_base = RATE_HZ, begin, Fraction(1, RATE_HZ)
            container.mux(audio.encode(heard))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def stage_seconds(profile: cProfile.Profile) -> dict[str, float]:
    """Cumulative seconds of each of STAGES."""
    functions = pstats.Stats(profile).get_stats_profile().func_profiles
    for function in STAGES.values():
        file_name = functions[function.__name__].file_name
        if file_name != function.__code__.co_filename:
            raise ValueError(f"{file_name} has a function {function.__name__} too")
    return {stage: functions[function.__name__].cumtime for stage, function in STAGES.items()}


def prepare(folder: Path, out: Path) -> None:
    write_records(find_videos(folder), read_video, out, run=PoolRunner(num_workers=0))


def measure(num_clips: int, seconds: int) -> dict[str, Any]:
    """Makes clips, prepares them once for the speed and once more under the profiler for the shares."""
    with TemporaryDirectory() as temporary:
        folder, profile = Path(temporary) / "videos", cProfile.Profile()
        folder.mkdir()
        for number in range(num_clips):
            make_clip(folder / f"{number:04d}.mp4", number, seconds)
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        with one_core():
            prepare(folder, Path(temporary) / "first")  # reads the files into memory, imports
            work = seconds_of(lambda: prepare(folder, Path(temporary) / "timed"))
            profiled = seconds_of(lambda: profile.runcall(prepare, folder, Path(temporary) / "profiled"))
    return {
        "video_seconds_per_second_per_core": round(num_clips * seconds / work, 1),
        "clips_per_second_per_core": round(num_clips / work, 2),
        "share_of_time": {stage: round(spent / profiled, 3) for stage, spent in stage_seconds(profile).items()},
        "clips": num_clips,
        "seconds_of_a_clip": seconds,
        "kilobits_per_second": round(num_bytes * 8 / (num_clips * seconds) / 1000),
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24, help="number of clips")
    parser.add_argument("--seconds", type=int, default=10, help="length of each")
    options = parser.parse_args()
    print(json.dumps(measure(options.clips, options.seconds)))


if __name__ == "__main__":
    main()
