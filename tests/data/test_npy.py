import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from cflow.data import TableFile, read_array


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
    with pytest.raises(ValueError, match="the file has x, y; pass one"):
        read_array(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="key='z'.: the file has x"):
        read_array(tmp_path / "one.npz", "z")
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(ValueError, match="omit key"):
        read_array(tmp_path / "a.npy", "x")


def test_what_is_no_plain_array_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickled objects are refused"):
        read_array(tmp_path / "objects.npy")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(ValueError, match="torch does not have"):
        read_array(tmp_path / "words.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(ValueError, match="not a readable"):
        read_array(tmp_path / "text.npy")
    np.savez(tmp_path / "cut.npz", x=np.arange(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:600])
    with pytest.raises(ValueError, match="not a readable"):
        read_array(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError, match=r"none\.npy not found"):
        read_array(tmp_path / "none.npy")


def npy(shape, dtype="<f8", follow=b""):
    """A .npy file whose header claims an array."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + follow


def lying(archive, old, new):
    """Replaces a size of 4 bytes in both headers of an archive."""
    return archive.replace(struct.pack("<I", old), struct.pack("<I", new))


def packed(content, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("x.npy", content)
    return file.getvalue()


BOMBS = {
    "huge.npy": (npy("(1000000, 1000000)", follow=bytes(64)), "follow the header"),
    "negative.npy": (npy("(-1, -8)", follow=bytes(64)), "follow the header"),
    "follows.npy": (npy("(2,)", follow=bytes(24)), "needs 16 bytes, but 24 follow"),
    "cut.npy": (npy("(4,)", follow=bytes(24)), "needs 32 bytes, but 24 follow"),
    "empty.npy": (npy("(0, 1000000000000000000, 1000)"), "not a readable"),
    "deep.npy": (npy("(" + "1, " * 70 + ")", follow=bytes(8)), "not a readable"),
    "objects.npy": (npy("(1000000,)", "|O", bytes(64)), "pickled objects are refused"),
    "code.npy": (npy("__import__('os')", follow=bytes(8)), "not a readable"),
    "huge.npz": (packed(npy("(1000000, 1000000)", follow=bytes(64))), "follow the header"),
    "stored.npz": (lying(packed(npy("(8,)", follow=bytes(64)), zipfile.ZIP_STORED), 192, 2**31), "claims"),
    "deflated.npz": (lying(packed(npy("(8,)", follow=bytes(64))), 192, 2**31), "claims 2,147,483,648 bytes"),
    "bzip2.npz": (packed(npy("(8,)", follow=bytes(64)), zipfile.ZIP_BZIP2), "compressed by method 12"),
    "lzma.npz": (packed(npy("(8,)", follow=bytes(64)), zipfile.ZIP_LZMA), "compressed by method 14"),
    "text.npz": (packed(b"hello"), "not a readable"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_a_file_claims_is_compared_with_its_size_before_memory_is_taken(tmp_path, name):
    content, message = BOMBS[name]
    (tmp_path / name).write_bytes(content)
    for read in (read_array, TableFile):
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            read(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2e6
