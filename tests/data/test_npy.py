import numpy as np
import pytest
import torch

from cflow.data import read_array


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
