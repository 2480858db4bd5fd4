"""Files that are written completely or not at all."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from cflow.storage import is_part, read_json, read_tensors, write_json, write_tensors, written


def test_a_file_appears_whole_and_nothing_else_is_seen_before(tmp_path):
    file = tmp_path / "deep" / "note.txt"
    with written(file) as part:
        part.write_text("half")
        (part.parent / ".tmp1234").write_text("what a writer makes for itself")
        assert all(is_part(each.name) for each in file.parent.iterdir())
        part.write_text("whole")
    assert [each.name for each in file.parent.iterdir()] == ["note.txt"]
    assert file.read_text() == "whole"

    def fail():
        with written(file) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert file.read_text() == "whole"
    assert [each.name for each in file.parent.iterdir()] == ["note.txt"]


def test_others_may_read_what_they_may_read_of_any_file(tmp_path):
    before = os.umask(0o022)
    try:
        write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)}, {})
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o644}


def test_what_dead_writers_left_goes_and_what_living_ones_write_stays(tmp_path):
    file = tmp_path / "x.json"
    host = os.uname().nodename.replace(".", "-")
    dead, living, far = (
        tmp_path / f".x.json.{where}.aa.part" for where in (f"{host}.4194305", f"{host}.1", "far.4194305")
    )
    other = tmp_path / f".another.json.{host}.4194305.aa.part"  # of a file that nobody writes again
    for each in (dead, living, far, other):
        each.mkdir()
        (each / "x.json").touch()
    (tmp_path / ".other.json.part").mkdir()
    write_json(file, {})
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        [living.name, far.name, ".other.json.part", "x.json"]
    )


def test_equal_contents_have_equal_bytes(tmp_path):
    tensors = {name: torch.randn(3) for name in "zab"}
    for name in ("one", "two"):
        write_tensors(tmp_path / name, tensors, {"b": 1, "a": [2.5, None]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 3), torch.tensor(2.5), torch.tensor([True, False]), torch.arange(3, dtype=torch.int8),
        torch.randn(4, 2).T, torch.randn(3, dtype=torch.complex64), torch.randn(3).bfloat16(), torch.randn(3).double(),
    ],
)  # fmt: skip
def test_tensors_of_every_kind_come_back(tmp_path, tensor):
    write_tensors(tmp_path / "x", {"x": tensor.contiguous()}, {"n": float("nan")})
    found, note = read_tensors(tmp_path / "x")
    assert found["x"].dtype == tensor.dtype
    assert torch.equal(found["x"], tensor)
    assert note["n"] != note["n"]


def test_documents_are_checked(tmp_path):
    file = tmp_path / "note.json"
    write_json(file, {"a": 1, "b": [1.5, "x"], "c": {"d": None}})
    assert read_json(file) == {"a": 1, "b": [1.5, "x"], "c": {"d": None}}
    whole = file.read_text()
    for bad in ("", "[]", "3", whole[:-4], whole.replace("1.5", "2.5"), json.dumps({"a": 1}), "[" * 100_000, "\x00"):
        file.write_text(bad)
        with pytest.raises(ValueError, match="note.json is damaged"):
            read_json(file)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_files_of_others_are_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"foreign is damaged: not a safetensors file with a note"):
        read_tensors(tmp_path / "foreign")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path)
