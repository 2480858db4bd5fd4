"""Meshes in files: the two formats, polygons, negative numbers, and files that are not valid."""

import math

import pytest
import torch

from cflow import data, manifolds

PYRAMID = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 1]])
FACES = torch.tensor([[0, 3, 2], [0, 2, 1], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])

OBJ = """# a pyramid
mtllib other.mtl
v 0 0 0
v 1 0 0 0.5 0.5 0.5
v 1 1 0
v 0 1 0
vt 0 0
vn 0 0 1
f 1 4 3 2
v .5 .5 1
f 1/1 2/1 5/1
f 2//1 3//1 5//1
f -3/1/1 -2/1/1 -1/1/1
s off
f 4 1 5
"""
OFF = """OFF
# counts
5 5 0
0 0 0
1 0 0  # a comment
1 1 0
0 1 0
0.5 0.5 1

4 0 3 2 1
3 0 1 4
3 1 2 4 255 0 0
3 2 3 4
3 3 0 4
"""


@pytest.mark.parametrize(("name", "text"), [("p.obj", OBJ), ("p.OFF", OFF), ("q.off", OFF.replace("OFF\n", "OFF "))])
def test_both_formats_have_the_same_triangles(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    points, faces = data.read_mesh(tmp_path / name)
    assert torch.equal(points, PYRAMID)
    assert torch.equal(faces, FACES)
    assert manifolds.Mesh(points, faces).log_volume == pytest.approx(math.log(1 + 5**0.5))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.stl", OBJ, "ends in '.stl'"),
        ("p.obj", OBJ.replace("v 1 1 0", "v 1 one 0"), "line 5"),
        ("p.obj", OBJ.replace("f 4 1 5", "f 4 1"), "line 15"),
        ("p.obj", OBJ.replace("f 4 1 5", "f 4 1 6"), "corner 5, and there are 5"),
        ("p.obj", "v 0 0 0\n", "no faces"),
        ("p.off", OFF.replace("OFF", "OOF"), "line 1"),
        ("p.off", OFF.replace("3 3 0 4\n", ""), "line 1 "),
        ("p.off", "OFF\n", "line 1"),
    ],
)
def test_files_that_are_not_valid_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.read_mesh(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        data.read_mesh(tmp_path / "missing.obj")


def test_the_cow_is_one_closed_surface(real_data):
    points, faces = data.read_mesh(real_data / "mesh" / "spot.obj")
    mesh = manifolds.Mesh(points, faces, eigenpairs=1)
    assert (len(mesh.vertices), len(mesh.faces)) == (2930, 5856)
    assert mesh.log_volume == pytest.approx(math.log(5.7095), abs=1e-4)
    assert int((mesh._face == torch.arange(len(faces)).repeat_interleave(3)).sum()) == 0  # no boundary
