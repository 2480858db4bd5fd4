import math

import numpy as np
import pytest
import torch
from PIL import Image

from cflow import plot
from cflow.plot.curves import smooth


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_images_are_enlarged_without_blur(tmp_path):
    x = torch.zeros(5, 3, 2, 2)
    x[:, 0] = 1.0  # red
    x[0, :, 0, 0] = torch.tensor([0.0, 0.0, 1.0])  # one blue pixel
    path = plot.images(x, tmp_path / "new" / "grid.png", columns=3)
    assert path == tmp_path / "new" / "grid.png"
    drawn = pixels(path)
    colours = {tuple(colour) for colour in drawn.reshape(-1, 3)[::7].tolist()}
    assert {(255, 0, 0), (0, 0, 255), (255, 255, 255)} <= colours
    # Every cell is square, so a grid of 2 rows by 3 columns has about this shape, and 1/20 of its cells is blue.
    assert drawn.shape[1] / drawn.shape[0] == pytest.approx(1.5, abs=0.1)
    red, blue = ((drawn == colour).all(-1).sum() for colour in ((255, 0, 0), (0, 0, 255)))
    assert blue / (red + blue) == pytest.approx(1 / 20, rel=0.1)


def test_images_clip_and_take_titles(tmp_path):
    x = torch.stack([torch.full((1, 4, 4), -3.0), torch.full((1, 4, 4), 7.0)])
    bare = pixels(plot.images(x, tmp_path / "bare.png"))
    assert (bare == 0).all(-1).any()
    titled = pixels(plot.images(x, tmp_path / "titled.png", titles=["low", "high"]))
    assert titled.shape[0] > bare.shape[0]
    named = pixels(plot.images(x, tmp_path / "named.png", columns=1, rows=["low", "high"]))
    plain = pixels(plot.images(x, tmp_path / "plain.png", columns=1))
    assert named.shape[1] > plain.shape[1]
    assert abs(named.shape[0] - plain.shape[0]) <= 1


def test_trajectory_of_images_has_a_row_per_sample_and_a_column_per_time(tmp_path):
    shades = torch.linspace(0, 1, 4)[:, None] * torch.tensor([1.0, 0.5])
    drawn = pixels(
        plot.image_trajectories(
            shades[:, :, None, None, None].expand(4, 2, 1, 8, 8), tmp_path / "a.png", times=shades[:, 0]
        )
    )
    assert drawn.shape[1] > drawn.shape[0]
    bottom = drawn[-30, :, 0]  # the second sample: up to half grey
    assert [int(bottom[int((k + 0.5) * len(bottom) / 4)]) for k in range(4)] == pytest.approx([0, 43, 85, 128], abs=3)


def test_density_is_drawn_where_it_is_in_chunks_without_a_graph(tmp_path):
    seen = []

    def log_prob(x):
        seen.append((len(x), torch.is_grad_enabled()))
        return torch.distributions.Normal(torch.tensor([2.0, -1.0]), 0.3).log_prob(x).sum(-1)

    path = plot.density(log_prob, tmp_path / "a.png", bounds=((-4, 4), (-2, 2)), resolution=60, chunk=1000)
    assert [count for count, _ in seen] == [1000, 1000, 1000, 600]
    assert not any(enabled for _, enabled in seen)
    drawn = pixels(path)[40:, :-140].astype(int)  # without title and colour bar
    dark = drawn.sum(-1) < 90
    peak = (drawn[..., 1] > 180) & (drawn[..., 2] < 220)  # the bright end of the colours, which is no white
    rows, columns = np.nonzero(peak)
    left, right = np.nonzero(dark.sum(0) > 100)[0][[0, -1]]
    assert (np.median(columns) - left) / (right - left) == pytest.approx(0.75, abs=0.03)  # 2 of [-4, 4]
    top, bottom = np.nonzero(dark.sum(1) > 200)[0][[0, -1]]
    assert (np.median(rows) - top) / (bottom - top) == pytest.approx(0.75, abs=0.05)  # -1 of [-2, 2], from above


def test_every_picture_is_written(tmp_path, generator):
    x = torch.randn(200, 2, generator=generator, requires_grad=True)
    assert plot.scatter(x, tmp_path / "a.png").stat().st_size > 1000
    with_reference = plot.scatter(x, tmp_path / "b.png", reference=x + 1, title="both")
    assert not np.array_equal(pixels(with_reference).shape, (0,))
    assert plot.trajectories(torch.stack([x, x + 1, x + 2]), tmp_path / "c.png").stat().st_size > 1000
    assert plot.scatter(x, tmp_path / "d.pdf").read_bytes()[:4] == b"%PDF"


def test_training_curves(tmp_path):
    history = [{"step": k, "loss": math.exp(-k / 20), "lr": 1e-3, "grad_norm": 1.0 + k} for k in range(100)]
    history[50]["loss"] = math.nan
    history.append({"step": 100, "validation": 0.5})
    full = pixels(plot.training(history, tmp_path / "a.png", title="run"))
    bare = pixels(plot.training([{"step": 1, "loss": 2.0}, {"step": 2, "loss": -1.0}], tmp_path / "b.png"))
    assert full.shape[0] > bare.shape[0]  # learning rate and gradient norm have their own axes


def test_smoothing_does_not_lag_and_skips_what_is_missing():
    line = np.arange(200.0)
    assert np.allclose(smooth(line)[20:-20], line[20:-20])
    line[100] = np.nan
    assert np.isfinite(smooth(line)).all()
    assert np.allclose(smooth([3.0] * 15), 3.0)


def test_nothing_touches_pyplot(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, torch; from cflow import plot; assert 'matplotlib' not in sys.modules;"
        f"plot.scatter(torch.zeros(3, 2), {str(tmp_path / 'a.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sets_of_samples_side_by_side_share_their_frame(tmp_path, generator):
    true = torch.rand(300, 2, generator=generator)
    sets = {"same": true, "far": true + 100, "again": true}
    drawn = pixels(plot.scatters(sets, tmp_path / "sets.png", reference=true, columns=3)).astype(int)
    blue = (drawn[..., 2] - drawn[..., 0]) > 60
    thirds = [part.sum() for part in np.array_split(blue, 3, axis=1)]
    assert thirds[1] == 0  # beyond the frame of the reference
    assert min(thirds[0], thirds[2]) > 100
    with pytest.raises(ValueError, match="no samples were given"):
        plot.scatters({}, tmp_path / "none.png", reference=true)
    with pytest.raises(ValueError, match=r"plot.scatters: wide\(points of shape"):
        plot.scatters({"wide": torch.zeros(3, 3)}, tmp_path / "none.png", reference=true)


def test_bad_input_is_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        plot.images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), path)
    with pytest.raises(ValueError, match="1 or 3"):
        plot.images(torch.zeros(3, 2, 4, 4), path)
    with pytest.raises(ValueError, match="1 titles for 3 images"):
        plot.images(torch.zeros(3, 1, 4, 4), path, titles=["a"])
    with pytest.raises(ValueError, match="1 names for 2 rows"):
        plot.images(torch.zeros(3, 1, 4, 4), path, columns=2, rows=["a"])
    with pytest.raises(ValueError, match="points in the plane"):
        plot.scatter(torch.zeros(3, 3), path)
    with pytest.raises(ValueError, match=r"\[T, B, 2\]"):
        plot.trajectories(torch.zeros(1, 3, 2), path)
    with pytest.raises(ValueError, match=r"\[T, B, C, H, W\]"):
        plot.image_trajectories(torch.zeros(3, 1, 4, 4), path)
    with pytest.raises(ValueError, match="2 times for 3 columns"):
        plot.image_trajectories(torch.zeros(3, 1, 1, 4, 4), path, times=[0.0, 1.0])
    with pytest.raises(ValueError, match="low < high"):
        plot.density(lambda x: x[:, 0], path, bounds=(1.0, 1.0))
    with pytest.raises(ValueError, match="one value per point"):
        plot.density(lambda x: x, path)
    with pytest.raises(ValueError, match="NaN at 40000"):
        plot.density(lambda x: x[:, 0] * math.nan, path)
    with pytest.raises(ValueError, match="every entry needs a step"):
        plot.training([], path)
    assert not path.exists()


def test_densities_side_by_side_say_what_is_in_view(tmp_path):
    normal = lambda scale: lambda x: -0.5 * (x / scale).square().sum(-1) - math.log(2 * math.pi * scale**2)
    named = {"narrow": normal(0.5), "wide": normal(4.0)}
    masses = plot.densities(named, tmp_path / "all.png", reference=torch.randn(50, 2), columns=3, resolution=80)
    inside = math.erf(4 / (4 * math.sqrt(2))) ** 2
    assert masses == {"narrow": pytest.approx(1, abs=1e-3), "wide": pytest.approx(inside, abs=1e-3)}
    drawn = pixels(tmp_path / "all.png")
    assert drawn.shape[1] > 2 * drawn.shape[0]  # three panels in a row
    with pytest.raises(ValueError, match="no densities"):
        plot.densities({}, tmp_path / "none.png")
    with pytest.raises(ValueError, match="wide: log_prob is NaN"):
        plot.densities({"wide": lambda x: x[:, 0] * math.nan}, tmp_path / "none.png")
