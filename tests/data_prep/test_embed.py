import numpy as np
import pytest

from clipsep_jax.data.record import Record, decode_frame
from clipsep_jax.data_prep.embed import Encoder, embed_records, label_table
from clipsep_jax.errors import InputError
from tests.data_prep.fakes import FakeEncoder, jpeg


def make_records(counts: list[int]) -> list[Record]:
    return [
        Record(str(n), "", np.zeros(4, np.int16), tuple(jpeg(40 * n + 3 * i) for i in range(count)))
        for n, count in enumerate(counts)
    ]


def test_the_fake_is_an_encoder():
    assert isinstance(FakeEncoder(), Encoder)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_each_picture_gets_the_embedding_of_its_stored_pixels(batch_size):
    records, encoder = make_records([3, 1, 4]), FakeEncoder()
    for record, embedded in zip(records, embed_records(records, encoder, batch_size), strict=True):
        wanted = [decode_frame(picture).mean(axis=(0, 1), dtype=np.float32) for picture in record.frames]
        np.testing.assert_allclose(embedded.frame_embeddings, wanted, rtol=1e-5)
        assert (embedded.id, embedded.frames) == (record.id, record.frames)
    assert encoder.shapes == {(batch_size, 224, 224, 3)}


def test_nothing_to_embed():
    assert embed_records([], FakeEncoder()) == []


def test_label_table_embeds_the_prompts():
    table = label_table(["dog", "owl"], FakeEncoder(), "hear {}")
    np.testing.assert_array_equal(table.lookup("owl"), [len("hear owl"), 1, 1])
    with pytest.raises(InputError, match="must hold"):
        label_table(["dog"], FakeEncoder(), "hear")
