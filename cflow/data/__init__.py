"""Readers of tables, arrays, images, meshes, snapshots and sequences; alphabets; two-dimensional toy distributions."""

from cflow.data import toys
from cflow.data.alphabets import Alphabet, Bytes, Characters
from cflow.data.files import read_idx
from cflow.data.images import ImageData, cifar10, digits, image_folder, mnist
from cflow.data.meshes import read_mesh
from cflow.data.npy import read_array
from cflow.data.sequences import lengths, padded, read_fasta, windows
from cflow.data.snapshots import Snapshots, read_snapshots
from cflow.data.tables import Table, TableFile, read_table
from cflow.data.word_pieces import WordPieces

__all__ = [
    "Alphabet",
    "Bytes",
    "Characters",
    "ImageData",
    "Snapshots",
    "Table",
    "TableFile",
    "WordPieces",
    "cifar10",
    "digits",
    "image_folder",
    "lengths",
    "mnist",
    "padded",
    "read_array",
    "read_fasta",
    "read_idx",
    "read_mesh",
    "read_snapshots",
    "read_table",
    "toys",
    "windows",
]
