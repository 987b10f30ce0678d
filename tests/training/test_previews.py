"""Pictures and sounds in TensorBoard."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from clipsep_jax.data.batches import Batches
from clipsep_jax.data.tfrecord import FRAMING_BYTES, unframed
from clipsep_jax.training.loop import train
from clipsep_jax.training.timing import KINDS
from tests.small import make_records, small_config


def values_of(workdir: Path) -> dict[tuple[str, int], object]:
    """What TensorBoard would show, by tag and step."""
    values = {}
    for path in (workdir / "tensorboard").iterdir():
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(unframed(data[place : place + length + FRAMING_BYTES], length))
            values |= {(value.tag, event.step): value for value in event.summary.value}
            place += length + FRAMING_BYTES
    return values


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Of a run of 4 steps that is validated at 2 and 4 and shows one mixture."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(make_records(folder / "records"), board_mixtures=1)
    with pytest.MonkeyPatch.context() as patch:
        reads, read = [], Batches.__getitem__
        patch.setattr(Batches, "__getitem__", lambda batches, step: reads.append(step) or read(batches, step))
        train(config, folder / "run")
    # By image and by text; what is shown is not read again, so that a damaged record is met once a validation.
    assert len(reads) == 2 * 2 * config.train.validation_batches
    return config, values_of(folder / "run")


@pytest.mark.slow
def test_scalars_come_with_the_shares_of_time(shown):
    _, values = shown
    for step in (1, 2, 3, 4):
        assert values["loss", step].simple_value > 0
        assert sum(values[kind, step].simple_value for kind in KINDS) == pytest.approx(1, abs=1e-5)
        assert values["steps_per_second", step].simple_value > 0


def test_each_validation_shows_masks_and_plays_sounds(shown):
    config, values = shown
    length = config.spectrogram.num_samples
    for step in (2, 4):
        picture = Image.open(BytesIO(values["mixture_0", step].image.encoded_image_string))
        assert picture.width > 5 * picture.height / 2  # mixture, two targets, two masks, noise masks
        names = ("mixture", "source_1", "source_2", "estimate_1", "estimate_2")
        sounds = {}
        for name in names:
            audio = values[f"mixture_0/{name}", step].audio
            sounds[name], rate = soundfile.read(BytesIO(audio.encoded_audio_string))
            assert (len(sounds[name]), rate) == (length, config.spectrogram.sample_rate_hz)
            assert sounds[name].any()
        np.testing.assert_allclose(sounds["source_1"] + sounds["source_2"], sounds["mixture"], atol=1e-4)
        assert not np.array_equal(sounds["estimate_1"], sounds["mixture"])
    assert ("mixture_0", 1) not in values
    assert ("mixture_1", 2) not in values
