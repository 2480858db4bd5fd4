import gzip
import struct

import numpy as np
import pytest
import torch

from cflow.data import read_array, read_idx


def idx_bytes(array):
    code = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_of_every_type(kind, packed, tmp_path):
    array = np.array([[0, 1, 2], [3, 100, 7]], dtype=kind) - np.array(0 if kind == "u1" else 5, dtype=kind)
    raw = idx_bytes(array)
    (tmp_path / "some").write_bytes(gzip.compress(raw) if packed else raw)
    read = read_idx(tmp_path / "some")
    assert torch.equal(read, torch.from_numpy(array))
    assert read.dtype == torch.from_numpy(array).dtype


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw + b"xy", "2 trailing bytes"),
        (lambda raw: raw[:9], "ends after 9 bytes"),
        (lambda raw: b"\x89PNG" + raw, "begins with 89 50 4e 47"),
        (lambda raw: b"", "begins with nothing"),
        (lambda raw: b"\0\0\x0a" + raw[3:], "begins with 00 00 0a"),
        (lambda raw: gzip.compress(raw)[:-9], "gzip stream is damaged"),
    ],
)
def test_damaged_idx_says_what_is_wrong(damage, message, tmp_path):
    raw = idx_bytes(np.zeros((3, 4), dtype=np.uint8))
    (tmp_path / "bad").write_bytes(damage(raw))
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "bad")


def test_missing_file_names_folder_and_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"looked for nothing.idx in {tmp_path}"):
        read_idx(tmp_path / "nothing.idx")


def test_arrays_come_back_as_saved(tmp_path):
    for dtype in (bool, np.uint8, np.int16, np.int64, np.float32, np.float64, ">f4", np.complex64):
        array = np.array([[0, 1], [1, 0]], dtype=dtype)
        np.save(tmp_path / "a.npy", array)
        assert torch.equal(
            read_array(tmp_path / "a.npy"), torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        )
    np.save(tmp_path / "wide.npy", np.array([65_535], dtype=np.uint16))
    assert read_array(tmp_path / "wide.npy").tolist() == [65_535]
    np.save(tmp_path / "scalar.npy", np.array(2.5))
    assert read_array(tmp_path / "scalar.npy").shape == ()
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert read_array(tmp_path / "fortran.npy").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_npz_needs_a_key_only_where_there_is_a_choice(tmp_path):
    np.savez(tmp_path / "one.npz", x=np.arange(3))
    np.savez_compressed(tmp_path / "two.npz", x=np.arange(3), y=np.arange(4))
    assert read_array(tmp_path / "one.npz").tolist() == [0, 1, 2]
    assert read_array(tmp_path / "two.npz", "y").tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="holds x, y; pass one"):
        read_array(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="key='z', but the file holds x"):
        read_array(tmp_path / "one.npz", "z")
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(ValueError, match="leave out key"):
        read_array(tmp_path / "a.npy", "x")


def test_what_is_no_plain_array_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickled objects are refused"):
        read_array(tmp_path / "objects.npy")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(ValueError, match="torch cannot hold"):
        read_array(tmp_path / "words.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(ValueError, match="not a readable"):
        read_array(tmp_path / "text.npy")
    np.savez(tmp_path / "cut.npz", x=np.arange(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:600])
    with pytest.raises(ValueError, match="not a readable"):
        read_array(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError, match=r"looked for none\.npy"):
        read_array(tmp_path / "none.npy")
