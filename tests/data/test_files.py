import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from cflow.data import read_idx


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
        (lambda raw: raw + b"xy", "more bytes follow the data"),
        (lambda raw: raw[:9], "ends after 9 bytes"),
        (lambda raw: b"\x89PNG" + raw, "starts with 89 50 4e 47"),
        (lambda raw: b"", "starts with no bytes"),
        (lambda raw: b"\0\0\x0a" + raw[3:], "starts with 00 00 0a"),
        (lambda raw: gzip.compress(raw)[:-9], "gzip stream is damaged"),
    ],
)
def test_damaged_idx_says_what_is_wrong(damage, message, tmp_path):
    raw = idx_bytes(np.zeros((3, 4), dtype=np.uint8))
    (tmp_path / "bad").write_bytes(damage(raw))
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "bad")


def test_missing_file_names_folder_and_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"nothing.idx not found in {tmp_path}"):
        read_idx(tmp_path / "nothing.idx")


def test_what_a_file_announces_is_compared_with_its_size_before_memory_is_taken(tmp_path):
    """Gigabytes in files of some kilobytes: by the header, or packed."""
    head = lambda *shape: struct.pack(f">4B{len(shape)}I", 0, 0, 0x0E, len(shape), *shape)
    zeros = gzip.compress(bytes(50_000_000), 9)
    for name, content, message in (
        ("plain", head(2**30, 2**30) + bytes(100), "it is truncated"),
        ("packed", gzip.compress(head(2**20, 2**10) + bytes(100)), "it is truncated"),
        ("zeros", zeros, "starts with 00 00 00 00"),
        ("follow", gzip.compress(head(3)) + zeros, "more bytes follow"),
        ("many", struct.pack(">4B", 0, 0, 8, 65) + bytes(4 * 65), "65 dimensions, more than 64"),
        ("none", head(0, *[2**32 - 1] * 3), "is not possible|shape"),
    ):
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"{name}.*({message})"):
            read_idx(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2e6, name
    (tmp_path / "most").write_bytes(struct.pack(">4B64I", 0, 0, 8, 64, *[1] * 64) + b"\7")
    assert read_idx(tmp_path / "most").flatten().tolist() == [7]
