import pytest

from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write, encode_json, read_json, read_json_lines, write_json


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_and_what_is_none_is_told_in_one_sentence(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path, "is damaged.", dict) == {"a": [1, None]}
    for text in ("", "{", "[1]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match=r"values\.json is damaged\.$"):
            read_json(path, "is damaged.", dict)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing", "is damaged.", dict)


def test_lines_of_json_come_back(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(encode_json({"a": 1}) + encode_json({"b": "é"}))
    assert read_json_lines(path, "is damaged.") == [{"a": 1}, {"b": "é"}]
    path.write_bytes(b'{"a": 1}\n3\n')
    with pytest.raises(InputError, match="is damaged"):
        read_json_lines(path, "is damaged.")
