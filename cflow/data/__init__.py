"""Readers of tables, arrays, images and snapshots, and two-dimensional toy distributions."""

from cflow.data import toys
from cflow.data.files import read_idx
from cflow.data.images import ImageData, cifar10, digits, image_folder, mnist
from cflow.data.npy import read_array
from cflow.data.snapshots import Snapshots, read_snapshots
from cflow.data.tables import Table, TableFile, read_table

__all__ = [
    "ImageData",
    "Snapshots",
    "Table",
    "TableFile",
    "cifar10",
    "digits",
    "image_folder",
    "mnist",
    "read_array",
    "read_idx",
    "read_snapshots",
    "read_table",
    "toys",
]
