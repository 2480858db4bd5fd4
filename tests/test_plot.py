import io
import math
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import cflow
from cflow import bases, discrete, fields, metrics, objectives, paths, plot, solvers, training
from cflow.plot.curves import smooth


def pixels(drawn):
    """Gives the pixels of a file, or of a figure as it would be written."""
    if isinstance(drawn, Figure):
        drawn, figure = io.BytesIO(), drawn
        figure.savefig(drawn, bbox_inches="tight", pad_inches=0.05)
    return np.asarray(Image.open(drawn).convert("RGB"))


def test_images_are_enlarged_without_blur(tmp_path):
    x = torch.zeros(5, 3, 2, 2)
    x[:, 0] = 1.0  # red
    x[0, :, 0, 0] = torch.tensor([0.0, 0.0, 1.0])  # one blue pixel
    figure = plot.images(x, tmp_path / "new" / "grid.png", columns=3)
    drawn = pixels(tmp_path / "new" / "grid.png")
    assert np.array_equal(drawn, pixels(figure))
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


def test_tokens_have_a_row_per_step_and_a_colour_per_state():
    states = torch.tensor([[3, 3, 3, 3], [3, 1, 3, 0], [2, 0, 3, 0], [2, 0, 1, 0]])
    figure = plot.tokens(states, mask=3, times=[0, 0.3, 0.6, 1], symbols="abc")
    (axis,) = figure.axes
    colours = np.asarray(axis.images[0].get_array())
    kinds = {
        name: tuple(colours[place]) for name, place in {"hidden": (0, 0), "other": (1, 1), "final": (3, 3)}.items()
    }
    assert len(set(kinds.values())) == 3
    expected = [
        ["hidden"] * 4,
        ["hidden", "other", "hidden", "final"],
        ["final", "final", "hidden", "final"],
        ["final"] * 4,
    ]
    for row, names in enumerate(expected):
        assert [tuple(colours[row, k]) for k in range(4)] == [kinds[name] for name in names]
    letters = {(int(x), int(y)): text.get_text() for text in axis.texts for x, y in [text.get_position()]}
    assert letters == {
        (int(column), int(row)): "abc"[states[row, column]] for row, column in (states != 3).nonzero().tolist()
    }
    assert [each.get_text() for each in axis.get_yticklabels()] == ["t = 0.00", "t = 0.30", "t = 0.60", "t = 1.00"]
    long = plot.tokens(torch.zeros(3, 500, dtype=torch.uint8), symbols="a")
    assert not long.axes[0].texts  # no room for letters


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
    plot.scatter(x, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    with_reference = plot.scatter(x, tmp_path / "b.png", reference=x + 1, title="both")
    assert not np.array_equal(pixels(with_reference).shape, (0,))
    plot.trajectories(torch.stack([x, x + 1, x + 2]), tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000
    plot.scatter(x, tmp_path / "d.pdf")
    assert (tmp_path / "d.pdf").read_bytes()[:4] == b"%PDF"


def test_training_curves(tmp_path):
    history = [{"step": k, "loss": math.exp(-k / 20), "lr": 1e-3, "grad_norm": 1.0 + k} for k in range(100)]
    history[50]["loss"] = math.nan
    history.append({"step": 100, "validation": 0.5})
    full = pixels(plot.training(history, tmp_path / "a.png", title="run"))
    bare = pixels(plot.training([{"step": 1, "loss": 2.0}, {"step": 2, "loss": -1.0}], tmp_path / "b.png"))
    assert full.shape[0] > bare.shape[0]  # learning rate and gradient norm have their own axes


def test_the_step_whose_weights_were_kept_is_marked():
    history = [{"step": k, "loss": 1 / k, "validation": 1 / k} for k in range(1, 10)]
    for best, marked in ((5, ["weights kept, step 5"]), (None, [])):
        axis = plot.training(training.Run(9, 1.0, history, None, best_step=best)).axes[0]
        lines = [line for line in axis.lines if "kept" in str(line.get_label())]
        assert [line.get_label() for line in lines] == marked
        assert all(list(line.get_xdata()) == [best, best] for line in lines)


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
    drawn = drawn[: -len(drawn) // 5]  # without the legend
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
    with pytest.raises(ValueError, match="expected points in the plane"):
        plot.scatter(torch.zeros(3, 3), path)
    with pytest.raises(ValueError, match=r"\[T, B, 2\]"):
        plot.trajectories(torch.zeros(1, 3, 2), path)
    with pytest.raises(ValueError, match=r"\[T, B, C, H, W\]"):
        plot.image_trajectories(torch.zeros(3, 1, 4, 4), path)
    with pytest.raises(ValueError, match=r"the states of one sequence are integers \[T, L\]"):
        plot.tokens(torch.zeros(3, 1, 4, dtype=torch.int64), path)
    with pytest.raises(ValueError, match="2 times for 3 rows"):
        plot.tokens(torch.zeros(3, 4, dtype=torch.int64), path, times=[0.0, 1.0])
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
    with pytest.raises(ValueError, match="2 names for 3 rows"):
        plot.image_trajectories(torch.zeros(2, 3, 1, 4, 4), path, rows=["a", "b"])
    with pytest.raises(ValueError, match="each entry is a row"):
        plot.images({"a": torch.zeros(2, 1, 4, 4), "b": torch.zeros(3, 1, 4, 4)}, path)
    with pytest.raises(ValueError, match="no more names than images"):
        plot.images(torch.zeros(2, 1, 4, 4), path, columns=["a", "b", "c"])
    with pytest.raises(FileNotFoundError, match="there is no history.csv; pass the folder of fit"):
        plot.training(tmp_path, path)
    assert not path.exists()


def test_densities_side_by_side_say_what_is_in_view(tmp_path):
    normal = lambda scale: lambda x: -0.5 * (x / scale).square().sum(-1) - math.log(2 * math.pi * scale**2)
    named = {"narrow": normal(0.5), "wide": normal(4.0)}
    plot.densities(named, tmp_path / "all.png", reference=torch.randn(50, 2), columns=3, resolution=80)
    masses = {name: plot.grid(each, resolution=80).mass for name, each in named.items()}
    inside = math.erf(4 / (4 * math.sqrt(2))) ** 2
    assert masses == {"narrow": pytest.approx(1, abs=1e-3), "wide": pytest.approx(inside, abs=1e-3)}
    drawn = pixels(tmp_path / "all.png")
    assert drawn.shape[1] > 2 * drawn.shape[0]  # three panels in a row
    with pytest.raises(ValueError, match="no densities"):
        plot.densities({}, tmp_path / "none.png")
    with pytest.raises(ValueError, match="wide: log_prob is NaN"):
        plot.densities({"wide": lambda x: x[:, 0] * math.nan}, tmp_path / "none.png")


def flow():
    field = fields.MLP(2, hidden=(8,))
    return cflow.ContinuousFlow(field, bases.Normal(2, 3.0), path=paths.Linear(), solver=solvers.Euler(2))


def test_flows_are_drawn_from_and_evaluated(tmp_path):
    conditional = discrete.nsf(2, context=3, layers=1)
    plot.scatter(flow(), reference=bases.Normal(2))
    near = plot.scatter(flow()).axes[0].collections[0].get_offsets()
    assert len(near) == 2000
    assert near.mean() == pytest.approx(3.0, abs=0.1)  # of 4000 numbers with a deviation of one: six of theirs
    assert len(plot.trajectories(flow(), paths_shown=50).axes[0].collections[0].get_paths()) == 50
    given = conditional(torch.zeros(3))
    assert plot.grid(given, resolution=40).mass == pytest.approx(1, abs=0.02)
    assert plot.density(given, resolution=40, title="given 0").axes[0].get_title().startswith("given 0\nprobability in")
    assert "probability inside this plot: 0.0%" in plot.density(flow(), bounds=(-9, -5)).axes[0].get_title()
    assert len(plot.corner({"a": flow(), "b": torch.randn(200, 2)}).legends[0].get_texts()) == 2
    with pytest.raises(ValueError, match="the context is missing"):
        plot.scatter(conditional)


def test_panels_of_ones_own_axis(tmp_path, generator):
    x = torch.randn(100, 2, generator=generator)
    figure = plot.new_figure(8, 8)
    axes = figure.subplots(2, 2).flatten()
    own = [
        plot.scatter(x, ax=axes[0], names=("mass", "spin")),
        plot.trajectories(torch.stack([x, x + 1]), ax=axes[1], title="paths"),
        plot.density(bases.Normal(2), ax=axes[2], resolution=20, samples=x),
        plot.training([{"step": k, "loss": 1.0, "lr": 1.0} for k in range(3)], ax=axes[3]),
    ]
    assert all(each is figure for each in own)
    assert (axes[0].get_xlabel(), axes[0].get_ylabel(), axes[1].get_title()) == ("mass", "spin", "paths")
    assert len(figure.axes) == 4
    plot.finish(figure, tmp_path / "own.png")
    assert (tmp_path / "own.png").stat().st_size > 1000


def test_histories_of_runs_of_folders_and_of_lists_are_the_same_curve(tmp_path):
    x = torch.randn(64, 2)
    run = training.fit(flow(), objectives.FlowMatching(), x, steps=6, batch_size=16, log_every=2, out=tmp_path / "run")
    curves = [plot.training(source).axes[0].lines[0].get_xydata() for source in (run, run.history, tmp_path / "run")]
    assert len(curves[0]) == 3
    np.testing.assert_allclose(curves[1], curves[0])
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-5)


def test_a_learning_rate_is_drawn_as_it_is():
    history = [{"step": k, "loss": 1.0, "lr": 10.0**-k, "grad_norm": 10.0**k} for k in range(5)]
    _, rate, norm = plot.training(history).axes
    assert (rate.get_yscale(), norm.get_yscale()) == ("linear", "log")
    assert rate.get_ylim()[0] == 0


def test_rows_and_columns_of_images_have_names():
    x = torch.rand(3, 1, 8, 8)
    figure = plot.images({"once": x, "twice": x}, columns=["a", "b", "c"])
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", "", "", ""]
    assert [axis.texts[0].get_text() for axis in figure.axes if axis.texts] == ["once", "twice"]
    figure = plot.image_trajectories(x.expand(4, 3, 1, 8, 8), rows=["p", "q", "r"])
    assert [axis.texts[0].get_text() for axis in figure.axes if axis.texts] == ["p", "q", "r"]


def test_results_of_calibration_are_taken_as_they_are(generator):
    draws, truth = torch.randn(50, 300, 1, generator=generator), torch.randn(300, 1, generator=generator)
    ranked = metrics.simulation_based_calibration(draws, truth)
    figure = plot.calibration(ranked, names=["mass"])
    assert figure.axes[0].get_title() == "mass"
    assert figure.axes[0].get_ylabel() == "number of truths"
    figure = plot.calibration(ranked, coverage={"flow": torch.rand(20)}, words=("row", "samples"))
    assert figure.axes[0].get_xlabel() == "rank of the row among samples"
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["number of rows", "share of rows inside"]


def test_a_figure_shows_itself_in_a_notebook(tmp_path):
    figure = plot.training([{"step": k, "loss": 1 / k} for k in range(1, 20)], tmp_path / "curve.png")
    shown = figure._repr_png_()
    assert shown.startswith(b"\x89PNG")
    assert len(shown) < len((tmp_path / "curve.png").read_bytes())


def test_letters_that_a_font_lacks_come_from_another(tmp_path, monkeypatch, caplog):
    """The stand-in for a font of another script is one that comes with matplotlib and has letters of its own."""
    x, name = torch.arange(12.0).reshape(6, 2), "\u2312"
    with monkeypatch.context() as patch:
        patch.setattr("cflow.plot.inline.FALLBACKS", ("No Such Font",))
        with pytest.warns(UserWarning, match="missing from font"):
            boxes = pixels(plot.corner(x, tmp_path / "boxes.png", names=(name, "b")))
    monkeypatch.setattr("cflow.plot.inline.FALLBACKS", ("No Such Font", "STIXGeneral"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        letters = pixels(plot.corner(x, tmp_path / "letters.png", names=(name, "b")))
    assert boxes.shape != letters.shape or not np.array_equal(boxes, letters)
    assert not [each for each in caplog.records if "No Such Font" in each.getMessage()]


def test_the_legend_of_the_coverage_covers_no_curve(generator):
    figure = plot.calibration(torch.rand(99, 5, generator=generator), coverage={"nsf": torch.rand(99)})
    figure.canvas.draw()
    panel = figure.axes[5]
    assert not panel.get_legend().get_window_extent().overlaps(panel.get_window_extent())
