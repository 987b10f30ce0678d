import numpy as np
import pytest
from safetensors.numpy import save_file

from clipsep_jax.errors import InputError
from clipsep_jax.queries.prompts import PROMPT_ENSEMBLE, prompt_for
from clipsep_jax.queries.table import EmbeddingTable


def make_table() -> EmbeddingTable:
    return EmbeddingTable(("dog", "acoustic guitar", "café"), np.arange(6, dtype=np.float32).reshape(3, 2))


def test_prompts_hold_the_label():
    assert prompt_for("dog") == "a photo of dog"
    assert prompt_for("a {} in braces", "hear {}!") == "hear a {} in braces!"
    assert [prompt_for("dog", template) for template in PROMPT_ENSEMBLE] == [
        "a photo of dog.",
        "a photo of the small dog.",
        "a low resolution photo of a dog.",
        "a photo of many dog.",
    ]


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{label}", ""])
def test_a_template_without_one_place_for_the_label_is_an_input_error(template):
    with pytest.raises(InputError, match=r"must hold \{\} once"):
        prompt_for("dog", template)


def test_lookup_gives_the_labels_row():
    np.testing.assert_array_equal(make_table().lookup("acoustic guitar"), [2, 3])


def test_lookup_of_an_unknown_label_lists_the_nearest_first():
    with pytest.raises(InputError, match="'acustic guitar'; the nearest are acoustic guitar"):
        make_table().lookup("acustic guitar")


def test_table_round_trip(tmp_path):
    table = make_table()
    table.save(tmp_path / "table.safetensors")
    loaded = EmbeddingTable.load(tmp_path / "table.safetensors")
    assert loaded.labels == table.labels
    np.testing.assert_array_equal(loaded.vectors, table.vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["table.safetensors"]


def test_labels_must_match_the_vectors():
    for labels in (("dog",), ("dog", "dog")):
        with pytest.raises(ValueError, match="one vector for each"):
            EmbeddingTable(labels, np.zeros((2, 3), np.float32))


def test_other_files_are_input_errors(tmp_path):
    path = tmp_path / "table.safetensors"
    with pytest.raises(InputError, match="no table of embeddings"):
        EmbeddingTable.load(path)
    path.write_bytes(b"garbage")
    with pytest.raises(InputError, match="make it again"):
        EmbeddingTable.load(path)
    save_file({"vectors": np.zeros((1, 2), np.float32)}, path)
    with pytest.raises(InputError, match="labels"):
        EmbeddingTable.load(path)
    save_file({"vectors": np.zeros((1, 2), np.float64)}, path, metadata={"labels": '["dog"]'})
    with pytest.raises(InputError, match="make it again"):
        EmbeddingTable.load(path)
