import gzip
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cflow.data import cifar10, digits, image_folder, mnist


def write_mnist(folder, *, packed=True, images=(7, 3), labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count in zip(("train", "t10k"), images):
        pixels = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        values = np.arange(count, dtype=np.uint8) if labels is None else np.asarray(labels, dtype=np.uint8)
        parts = {
            f"{split}-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes(),
            f"{split}-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, len(values)) + values.tobytes(),
        }
        for name, raw in parts.items():
            (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(raw) if packed else raw)
    return pixels


def test_digits_are_split_by_class_and_always_alike():
    data = digits()
    assert data.event_shape == (1, 8, 8)
    assert data.levels == 17
    assert data.train.dtype == torch.uint8
    assert int(data.train.max()) == 16
    assert len(data.train) + len(data.test) == 1797
    counts = torch.bincount(data.test_labels) / (torch.bincount(data.test_labels) + torch.bincount(data.train_labels))
    assert torch.allclose(counts, torch.full((10,), 0.2), atol=0.005)
    again, other = digits(), digits(seed=1)
    assert torch.equal(data.test, again.test)
    assert not torch.equal(data.test_labels, other.test_labels)
    images = torch.cat([data.train, data.test]).flatten(1).double()
    assert float(images.mean()) == pytest.approx(4.884165, abs=1e-5)  # nothing lost, nothing twice
    assert digits(0.0).test.shape == (0, 1, 8, 8)
    with pytest.raises(ValueError, match=r"test_fraction=1\.0"):
        digits(1.0)


@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_found_where_it_usually_lies(place, packed, tmp_path):
    pixels = write_mnist(tmp_path / place, packed=packed)
    data = mnist(tmp_path)
    assert data.train.shape == (7, 1, 5, 4)
    assert data.test.tolist() == pixels[:, None].tolist()
    assert data.test_labels.tolist() == [0, 1, 2]
    assert data.test_labels.dtype == torch.int64


def test_mnist_refuses_files_that_do_not_belong_together(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz"):
        mnist(tmp_path)
    write_mnist(tmp_path / "a", labels=[0, 1])
    with pytest.raises(ValueError, match="has 7 images, but"):
        mnist(tmp_path / "a")
    write_mnist(tmp_path / "b", images=(2, 2), labels=[0, 12])
    with pytest.raises(ValueError, match="labels from 0 to 12, but there are 10 classes"):
        mnist(tmp_path / "b")
    write_mnist(tmp_path / "c")
    (tmp_path / "c" / "train-labels-idx1-ubyte.gz").rename(tmp_path / "c" / "train-images-idx3-ubyte.gz")
    with pytest.raises(FileNotFoundError, match="train-labels"):
        mnist(tmp_path / "c")
    (tmp_path / "c" / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 1) + b"\0")
    with pytest.raises(ValueError, match="not uint8 images"):
        mnist(tmp_path / "c")


def test_cifar10_reads_channels_rows_and_columns(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    pixels = {name: rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8) for name in names}
    for name, values in pixels.items():
        raw = b"".join(bytes([k + 3]) + image.tobytes() for k, image in enumerate(values))
        (folder / name).write_bytes(raw)
    data = cifar10(tmp_path)
    assert data.train.shape == (10, 3, 32, 32)
    assert np.array_equal(data.train[2:4].numpy(), pixels["data_batch_2.bin"])
    assert np.array_equal(data.test.numpy(), pixels["test_batch.bin"])
    assert data.train_labels.tolist() == [3, 4] * 5
    assert data.classes[3] == "cat"
    (folder / "data_batch_3.bin").write_bytes(b"\0" * 4000)
    with pytest.raises(ValueError, match="4000 bytes, not a multiple of 3,073"):
        cifar10(tmp_path)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin not found"):
        cifar10(tmp_path)


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)


def test_folders_are_classes(tmp_path):
    for name, value in (("dog", 200), ("cat", 50)):
        for k, suffix in enumerate(("png", "webp", "jpg", "PNG")):
            options = {"lossless": True} if suffix == "webp" else {}
            save(tmp_path / name / f"{k}.{suffix}", np.full((12, 20, 3), value, dtype=np.uint8), **options)
    (tmp_path / "notes.txt").write_text("not a picture")
    data = image_folder(tmp_path, 6, test_fraction=0.25)
    assert data.classes == ("cat", "dog")
    assert data.train.shape == (6, 3, 6, 6)
    assert data.test_labels.tolist() == [0, 1]
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert torch.equal(images.flatten(1).float().mean(1).round(), torch.tensor([50.0, 200.0])[labels])


def test_flat_folder_is_cropped_about_its_centre(tmp_path):
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = (10, 20, 30)  # only the central square
    save(tmp_path / "wide.png", wide)
    data = image_folder(tmp_path, 4, test_fraction=0.0)
    assert data.classes == (tmp_path.name,)
    assert data.train[0, :, 1, 1].tolist() == [10, 20, 30]
    assert (data.train[0] == data.train[0, :, :1, :1]).all()
    grey = image_folder(tmp_path, (4, 12), channels=1, test_fraction=0.0)
    assert grey.train.shape == (1, 1, 4, 12)
    assert grey.train[0, 0, 0, 0] == 0
    assert grey.train[0, 0, 0, 5] > 0


def test_camera_orientation_is_applied(tmp_path):
    tall = np.zeros((8, 4, 3), dtype=np.uint8)
    tall[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    save(tmp_path / "a.png", tall, exif=exif)
    image = image_folder(tmp_path, (8, 4), test_fraction=0.0).train[0, 0]
    assert image[0, 0] == 0
    assert image[-1, 0] == 255


def test_folder_errors_name_what_is_wrong(tmp_path):
    (tmp_path / "full.csv").write_text("1,2\n")
    with pytest.raises(NotADirectoryError, match="this is a file; pass a folder"):
        image_folder(tmp_path / "full.csv", 8)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        image_folder(tmp_path / "none", 8)
    with pytest.raises(FileNotFoundError, match="no .jpeg, .jpg"):
        image_folder(tmp_path, 8)
    save(tmp_path / "a" / "fine.png", np.zeros((8, 8, 3), dtype=np.uint8))
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    save(tmp_path / "a" / "deep.png", np.zeros((8, 8), dtype=np.uint16))
    with pytest.raises(ValueError, match=r"(?s)2 of 3 images cannot be read.*broken.png.*deep.png.*8 bits") as told:
        image_folder(tmp_path, 8)
    assert str(told.value).endswith(
        "Remedy: repair or remove them, or reduce to 8 bits, with ImageMagick: magick IN.png -depth 8 OUT.png"
    )
    (tmp_path / "a" / "broken.png").unlink()
    with pytest.raises(ValueError, match=r"channel\). Remedy: reduce to 8 bits, with ImageMagick"):
        image_folder(tmp_path, 8)
    save(tmp_path / "beside.png", np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="1 images are next to"):
        image_folder(tmp_path, 8)
    with pytest.raises(ValueError, match="channels=2"):
        image_folder(tmp_path, 8, channels=2)


def png(width, height, bits, data, kind=2):
    """A PNG file of colours whose header says so much and whose data are these."""
    chunk = lambda name, held: struct.pack(">I", len(held)) + name + held + struct.pack(">I", zlib.crc32(name + held))
    header = struct.pack(">2I5B", width, height, bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", [0, 2, 4, 6])
def test_sixteen_bits_are_refused_in_grey_and_in_colour(tmp_path, kind):
    (tmp_path / "deep.png").write_bytes(png(4, 2, 16, 2 * (b"\0" + bytes(4 * 2 * (1, 0, 3, 0, 2, 0, 4)[kind])), kind))
    with pytest.raises(ValueError, match="deep.png .*more than 8 bits per channel"):
        image_folder(tmp_path, 4)


@pytest.mark.parametrize("side", [9_000, 12_000, 40_000])
def test_pictures_larger_than_their_files_are_refused_before_they_are_read(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, bytes(1000)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="bomb.png .*pixels"):
        image_folder(tmp_path, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_real_mnist(real_data):
    if not (real_data / "mnist").is_dir():
        pytest.skip("CFLOW_DATA has no mnist")
    data = mnist(real_data / "mnist")
    assert data.train.shape == (60_000, 1, 28, 28)
    assert data.test.shape == (10_000, 1, 28, 28)
    assert float(data.train.float().mean()) / 255 == pytest.approx(0.1307, abs=1e-4)
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_real_cifar10(real_data):
    if not (real_data / "cifar10").is_dir():
        pytest.skip("CFLOW_DATA has no cifar10")
    data = cifar10(real_data)
    assert data.train.shape == (50_000, 3, 32, 32)
    assert torch.bincount(data.train_labels).tolist() == [5_000] * 10
    means = data.test.float().mean((0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.494, 0.485, 0.450]), atol=2e-3)
