import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from cflow import plot


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def blue(drawn):
    return (drawn[..., 2] > drawn[..., 0] + 40).sum()


def orange(drawn):
    return (drawn[..., 0] > drawn[..., 2] + 40).sum()


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, in order."""
    saved, write = [], Figure.savefig

    def savefig(figure, *arguments, **options):
        saved.append(figure)
        return write(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def test_every_feature_and_every_pair_has_a_panel(tmp_path, generator, figures):
    samples = torch.randn(400, 4, generator=generator, requires_grad=True)
    path = tmp_path / "new" / "a.png"
    figure = plot.corner(samples, path, names=["a", "b", "c", "a name that is far too long"])
    assert figure is figures[0]
    panels = [axis for axis in figures[0].axes if axis.get_visible()]
    assert len(panels) == 4 + 6
    assert [axis.get_xlabel() for axis in panels[-4:]] == ["a", "b", "c", "a name that is far t..."]
    assert [axis.get_ylabel() for axis in panels if axis.get_ylabel()] == ["b", "c", "a name that is far t..."]
    assert orange(pixels(path)) == 0  # no reference, nothing in its colour


def test_histograms_hold_the_mass_in_view(tmp_path, generator, figures):
    samples = torch.cat([torch.randn(2000, 1, generator=generator), torch.full((1, 1), 1e6)])
    plot.corner(samples, tmp_path / "a.png", reference=torch.randn(500, 1, generator=generator), bins=30)
    (axis,) = figures[0].axes
    assert max(axis.get_xlim()) < 10  # the outlier does not set the axis
    heights = [patch.get_xy()[:, 1] for patch in axis.patches]
    assert len(heights) == 2
    for height, total in zip(heights, (1.0, 2000 / 2001)):  # every bin makes two corners of the outline
        assert height.max() <= 1
        assert height.sum() / 2 == pytest.approx(total, abs=0.01)


def test_contours_hold_the_mass_they_name(tmp_path, generator, figures):
    """Against a normal, where half of the mass lies within 1.18 of the middle and 90 % within 2.15."""
    plot.corner(torch.randn(20_000, 2, generator=generator), tmp_path / "a.png")
    (axis,) = (each for each in figures[0].axes if each.collections)
    half = axis.collections[-1].get_paths()[0].vertices
    region = axis.collections[1].get_paths()[0].vertices
    assert np.linalg.norm(half, axis=1).mean() == pytest.approx(np.sqrt(-2 * np.log(0.5)), rel=0.06)
    assert np.linalg.norm(region, axis=1).max() == pytest.approx(np.sqrt(-2 * np.log(0.1)), rel=0.12)


def test_a_reference_and_marks_are_drawn_and_kept_in_view(tmp_path, generator, figures):
    samples = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    marks = torch.tensor([[0.0, 9.0, 0.0]])
    path = tmp_path / "b.png"
    plot.corner(samples, path, reference=samples + 1, marks=marks, labels=("flow", "data"))
    assert min(blue(pixels(path)), orange(pixels(path))) > 1000
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["flow", "data"]
    assert figures[0].axes[4].get_xlim()[1] > 9  # the second feature's histogram
    assert figures[0].axes[4].lines  # one mark has a line
    assert figures[0].legends[0].get_title().get_text() == "contours and regions hold 50% and 90%\nof the points"
    plot.corner(samples, path, reference=samples[:99])  # too few for regions
    assert figures.pop(1).legends[0].get_title().get_text().startswith("contours hold 50%")
    plot.corner(samples, path, marks=marks, mark_label="the least likely")
    assert [text.get_text() for text in figures.pop(1).legends[0].get_texts()] == ["the least likely"]
    plot.corner(samples, tmp_path / "c.pdf", marks=torch.zeros(2, 3), title="two marks")
    assert not figures[1].axes[4].lines
    assert (tmp_path / "c.pdf").read_bytes()[:4] == b"%PDF"


def test_constant_features_few_points_and_one_feature(tmp_path, generator, figures):
    samples = torch.randn(300, 3, generator=generator)
    samples[:, 1] = 7.0
    plot.corner(samples, tmp_path / "a.png")
    low, high = figures[0].axes[4].get_xlim()
    assert low < 7 < high
    plot.corner(samples[:3], tmp_path / "b.png", reference=samples[:99])
    assert all(len(axis.collections) == 2 for axis in figures[1].axes if axis.collections)  # dots, no contours
    plot.corner(samples[:, :1], tmp_path / "c.png", reference=samples[:, :1], title="one")
    assert len(figures[2].axes) == 1


def test_bad_input_is_refused(tmp_path):
    path, x = tmp_path / "a.png", torch.zeros(5, 3)
    with pytest.raises(ValueError, match="one column per feature"):
        plot.corner(torch.zeros(5), path)
    with pytest.raises(ValueError, match="at least one"):
        plot.corner(torch.zeros(0, 3), path)
    with pytest.raises(ValueError, match=r"pass \[N, 3\], as the samples are"):
        plot.corner(x, path, reference=torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"marks of shape \[3\]"):
        plot.corner(x, path, marks=torch.zeros(3))
    with pytest.raises(ValueError, match="78 pairs"):
        plot.corner(torch.zeros(5, 13), path)
    with pytest.raises(ValueError, match="2 names for 3 features"):
        plot.corner(x, path, names=["a", "b"])
    with pytest.raises(ValueError, match="at least 2 bins"):
        plot.corner(x, path, bins=1)
    x[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 5 rows hold NaN or infinity"):
        plot.corner(x, path)
    assert not path.exists()


def test_samples_far_out_set_neither_the_axes_nor_the_contours(tmp_path, generator, figures):
    """A hundred and fifty of 20,000 samples are a thousand deviations away."""
    samples = torch.randn(20_000, 2, generator=generator)
    samples[:150] *= 1000
    plot.corner(samples, tmp_path / "a.png", reference=torch.randn(500, 2, generator=generator))
    axis = figures[0].axes[2]
    assert max(map(abs, (*axis.get_xlim(), *axis.get_ylim()))) < 5
    half = max(axis.collections[-1].get_paths()[1].to_polygons(), key=len)
    assert np.linalg.norm(half, axis=1).mean() == pytest.approx(np.sqrt(-2 * np.log(0.5)), rel=0.08)


def test_several_sets_have_a_colour_and_a_name_each_and_contours_say_what_they_hold(tmp_path, generator, figures):
    x = torch.randn(300, 2, generator=generator)
    plot.corner({"prior": x, "posterior": x / 2}, tmp_path / "a.png")
    legend = figures[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["posterior", "prior"]
    assert legend.get_title().get_text() == "contours\nhold 50% and 90%\nof the points"
    assert len({patch.get_facecolor() for patch in legend.get_patches()}) == 2
    plot.corner({"prior": x, "posterior": x / 2}, tmp_path / "b.png", reference=x + 9)
    assert len({patch.get_facecolor() for patch in figures[1].legends[0].get_patches()}) == 3
    plot.corner(x[:50], tmp_path / "c.png")
    assert not figures[2].legends  # dots alone
    with pytest.raises(ValueError, match=r"second of shape \[300, 1\].*as the samples are"):
        plot.corner({"first": x, "second": x[:, :1]})
    with pytest.raises(ValueError, match="9 sets of samples.*colours; pass fewer"):
        plot.corner({str(k): x for k in range(9)})
    with pytest.raises(ValueError, match="no samples were given"):
        plot.corner({})


@pytest.mark.parametrize("features", [1, 2, 3, 5])
def test_the_legend_covers_no_panel(features, generator):
    samples, reference = torch.randn(2, 500, features, generator=generator)
    figure = plot.corner(samples, reference=reference, marks=samples[:1], mark_label="truth")
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    panels = [axis.get_window_extent() for axis in figure.axes if axis.get_visible()]
    assert not any(box.overlaps(panel) for panel in panels)


def test_the_offset_of_ticks_is_part_of_the_name(generator):
    samples = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    offset = torch.tensor([1_126_259_462.4, 0.0], dtype=torch.float64)
    figure = plot.corner(samples * 0.03 + offset, names=["time", "mass"])
    panel = figure.axes[2]
    assert panel.get_xlabel() == "time (+1.126259462e9)"
    assert not panel.xaxis.get_offset_text().get_visible()
    assert panel.get_ylabel() == "mass"
