import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clipsep_jax.errors import InputError
from clipsep_jax.files import (
    atomic_write,
    encode_json,
    move_all,
    read_json,
    read_json_lines,
    staged_folder,
    write_csv,
    write_json,
    write_json_lines,
)


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
        with pytest.raises(InputError, match=r"values\.json is damaged"):
            read_json(path, "is damaged.", dict)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing", "is damaged.", dict)


def test_lines_of_json_come_back(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_json_lines(path, [{"a": 1}, {"b": "é"}])
    assert path.read_bytes() == encode_json({"a": 1}) + encode_json({"b": "é"})
    assert read_json_lines(path, "is damaged.", dict) == [{"a": 1}, {"b": "é"}]
    path.write_bytes(b'{"a": 1}\n3\n')
    with pytest.raises(InputError, match="is damaged"):
        read_json_lines(path, "is damaged.", dict)


@dataclass(frozen=True)
class Line:
    name: str
    size: int


def test_lines_of_json_become_objects_or_the_sentence_tells(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_json_lines(path, [{"name": "a", "size": 2}])
    assert read_json_lines(path, "is damaged.", Line) == [Line("a", 2)]
    write_json_lines(path, [{"name": "a", "size": 2}, {"name": "a", "size": "2"}])
    with pytest.raises(InputError, match=r"lines\.jsonl, line 2, is damaged \(size is '2', not a whole number\)\.$"):
        read_json_lines(path, "is damaged.", Line)


def test_json_has_a_largest_size_and_depth(tmp_path):
    path = tmp_path / "values.json"
    for text in ("[" * 65 + "]" * 65, '{"a":' * 100 + "1" + "}" * 100):
        path.write_text(text)
        with pytest.raises(InputError, match="within each other"):
            read_json(path, "is damaged.", Any)
    with path.open("wb") as file:
        file.truncate(40 * 2**30)
    with pytest.raises(InputError, match="larger than 16 MiB"):
        read_json(path, "is damaged.", Any)
    with pytest.raises(InputError, match="line 1, is damaged"):
        read_json_lines(path, "is damaged.", Any)


def test_json_is_read_from_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="is a folder, a pipe or a device"):
            read_json(path, "is damaged.", dict)
        with pytest.raises(InputError, match="is a folder, a pipe or a device"):
            read_json_lines(path, "is damaged.", dict)


def test_a_staged_folder_gives_its_files_and_folders(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    with staged_folder(tmp_path / "out") as staging:
        (staging / "file").write_text("new")
        (staging / "folder").mkdir()
        (staging / "folder" / "inner").write_text("inner")
        assert (tmp_path / "out" / "file").read_text() == "old"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["file", "folder"]
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert (tmp_path / "out" / "folder" / "inner").read_text() == "inner"


def test_all_files_of_a_folder_move_and_the_last_one_after_the_others(tmp_path, monkeypatch):
    work, moved, replace = tmp_path / "work", [], os.replace
    work.mkdir()
    for name in ("first", "second", "third"):
        (work / name).write_text(name)
    (work / "torn.partial").write_text("half")  # what a killed process left

    def fail_at_the_second(old: Path, new: Path) -> None:
        if len(moved) == 1:
            raise KeyboardInterrupt
        moved.append(old.name)
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            move_all(work, tmp_path, last="first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["second", "work"]
    move_all(work, tmp_path, last="first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second", "third", "work"]
    assert [path.name for path in work.iterdir()] == ["torn.partial"]
    assert (tmp_path / "first").read_text() == "first"


def test_cells_of_a_table_are_no_formulas(tmp_path):
    names = ["=1+1", "+a", "-b", "@c", "\t=d", "\r=e", "f=g", "", "\udcff"]
    write_csv(tmp_path / "table.csv", ["label", "number"], [[name, -1.5] for name in names])
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["label", "number"]
    assert [row[0] for row in rows[1:]] == [f"'{name}" for name in names[:6]] + names[6:]
    assert {row[1] for row in rows[1:]} == {"-1.5"}
