"""The part of the page that shows a result, and the examples that it offers."""

import numpy as np
import pytest
import soundfile

import clipsep_jax
from clipsep_jax.errors import InputError
from clipsep_jax.serving.examples import read_examples
from clipsep_jax.serving.limits import DEFAULT_LIMITS
from clipsep_jax.serving.page import _status
from clipsep_jax.serving.results import peaks, show_result
from clipsep_jax.serving.service import Asked, Service, Upload


def test_peaks_are_those_of_the_sound_in_a_bounded_number(tmp_path):
    sound = np.zeros((100_000, 2), np.float32)
    sound[50_000, 1] = -0.75
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    found = peaks(tmp_path / "a.wav")
    assert len(found) == 400
    assert found.max() == pytest.approx(0.75)
    assert found.argmax() == 200
    assert np.count_nonzero(found) == 1


def test_what_a_client_writes_is_text_on_the_page(trained, recording, tmp_path):
    service = Service(clipsep_jax.load(trained), DEFAULT_LIMITS, tmp_path / "root")
    try:
        query = '<script>alert("1")</script>'
        result = service.submit(Asked(Upload(recording, "a'\"<b>.wav"), (query,))).future.result(60)
        shown = show_result(service, result)
    finally:
        service.close()
    assert "<script" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count("<clipsep-player") == 2


@pytest.mark.parametrize(("place", "share", "words"), [(3, None, "3 before yours"), (0, 0.5, 'value="0.50"')])
def test_who_waits_is_told_how_long(place, share, words):
    assert words in _status(place, share)
    assert 'role="status"' in _status(place, share)


def test_examples_are_files_beside_their_table(tmp_path):
    table = tmp_path / "examples.csv"
    (tmp_path / "a.wav").touch()
    table.write_text("file,query\na.wav,bell\n")
    (example,) = read_examples(table)
    assert (example.recording, example.query) == (tmp_path / "a.wav", "bell")
    for line, words in (("../b.wav,bell", "not a path below"), ("b.wav,bell", "there is no file")):
        table.write_text(f"file,query\n{line}\n")
        with pytest.raises(InputError, match=words):
            read_examples(table)
    table.write_text("file,query\n" + "a.wav,bell\n" * 21)
    with pytest.raises(InputError, match="21 examples"):
        read_examples(table)
