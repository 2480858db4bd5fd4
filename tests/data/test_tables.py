import numpy as np
import pytest
import torch

from cflow.data import TableFile, read_table


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,2\n3,4.5\n", ("a", "b")),
        ("1,2\n3,4.5\n", None),
        ('"a";"b"\n1;2\n3;4.5', ("a", "b")),
        ("a\tb\r\n1\t2\r\n3\t4.5\r\n", ("a", "b")),
        (",a,b\n0,1,2\n1,3,4.5\n", ("a", "b")),
        ("\ufeffa, b\n\n1, 2\n# a remark\n 3 ,4.5\n\n", ("a", "b")),
        ("# a remark, of no use\n1,2\n3,4.5\n", None),
    ],
)
def test_text_of_every_kind_is_read(tmp_path, text, names):
    values, found = read_table(write(tmp_path / "a.csv", text))
    assert torch.equal(values, torch.tensor([[1.0, 2.0], [3.0, 4.5]], dtype=torch.float64))
    assert found == names


def test_columns_are_chosen_by_name_and_number(tmp_path):
    path = write(tmp_path / "a.csv", "a,b,c\n1,x,3\n4,y,6\n")
    values, names = read_table(path, columns=["c", 0])
    assert values.tolist() == [[3.0, 1.0], [6.0, 4.0]]
    assert names == ("c", "a")
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert read_table(tmp_path / "a.npy", columns=["2", 1])[0].tolist() == [[2.0, 1.0], [5.0, 4.0]]
    headed = write(tmp_path / "years.csv", "2001,2002\n1,2\n")
    assert len(read_table(headed)[0]) == 2
    assert read_table(headed, header=True)[1] == ("2001", "2002")
    assert read_table(headed, header=True, columns=["2002"])[0].tolist() == [[2.0]]


def test_bad_rows_keep_their_places_and_are_named(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n1,2\n3\n5,x\n7,nan\n\n9,10\n11,\n1,2,3\n")
    chunks = list(TableFile(path).chunks(3))
    assert [len(chunk.values) for chunk in chunks] == [3, 3, 1]
    assert [place for chunk in chunks for place in chunk.places] == [2, 3, 4, 5, 7, 8, 9]
    assert chunks[0].bad == {1: "1 fields, where there are 2 columns", 2: "column b holds 'x', no number"}
    assert chunks[1].bad == {0: "NaN or infinity", 2: "column b is empty"}
    assert chunks[2].bad == {0: "3 fields, where there are 2 columns"}
    assert chunks[0].values[0].tolist() == [1.0, 2.0]
    assert chunks[1].values[1].tolist() == [9.0, 10.0]
    assert bool(chunks[0].values[1:].isnan().all())
    with pytest.raises(ValueError, match=r"5 rows are not numbers.*line 3: 1 fields.*and 2 more\)"):
        read_table(path)


def test_arrays_are_mapped_and_flattened(tmp_path):
    array = np.random.default_rng(0).normal(size=(25, 2, 2)).astype(np.float32)
    array[7, 0, 0] = np.inf
    np.save(tmp_path / "a.npy", array)
    file = TableFile(tmp_path / "a.npy")
    assert isinstance(file._array.base, np.memmap) or isinstance(file._array, np.memmap)
    chunks = list(file.chunks(10))
    assert [len(chunk.values) for chunk in chunks] == [10, 10, 5]
    assert chunks[0].bad == {7: "NaN or infinity"}
    assert list(chunks[1].places) == list(range(10, 20))
    assert np.array_equal(chunks[2].values.numpy(), array[20:].reshape(5, 4))
    assert file.unit == "row"
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.zeros((2, 2)))
    assert read_table(tmp_path / "a.npz", key="x")[0].tolist() == [[0.0], [1.0], [2.0]]


def test_a_long_text_is_read_in_memory_of_one_chunk(tmp_path):
    import tracemalloc

    path = write(tmp_path / "a.csv", "a,b\n" + "1.5,2.5\n" * 20_000)
    peaks = []
    for size in (200, 20_000):
        tracemalloc.start()
        total = sum(len(chunk.values) for chunk in TableFile(path).chunks(size))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == 20_000
    assert peaks[0] < peaks[1] / 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"1,2\n", "ending in '.txt' is not read"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"a,b\n", "no rows in it"),
        ("a.csv", b"\xff\xfe\x00,\x81\n", "no text in UTF-8"),
        ("a.npy", b"not an array", "not a readable .npy"),
        ("a.csv", b"a,b\n1,2\n", "no column 'c'; the file has the columns a, b"),
        ("b.csv", b"1,2\n", "no column 'c'; the file has 2 columns without names, 0 to 1"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name, columns=["c"] if "'c'" in message else None)


def test_arrays_without_numbers_and_missing_files_are_refused(tmp_path):
    for array in (np.array(["a", "b"]), np.zeros((0, 2)), np.array(1.0), np.ones(2, complex)):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match="a table of real numbers is wanted"):
            read_table(tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        read_table(tmp_path / "nowhere.csv")
