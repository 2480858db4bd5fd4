import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy
import pytest
import torch
import tyro
from PIL import Image

import cflow
from cflow import bases, discrete, fields, objectives, paths, solvers, training
from cflow.bijections import Dequantise, Rescale, Standardise
from cflow.cli import main
from cflow.cli.commands import plain_help
from cflow.cli.runs import labels_of
from cflow.data import read_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    toys = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear(), solver=solvers.Heun(steps=3))
    cflow.save(toys, folder / "toys" / "model")
    (folder / "toys" / "metrics.json").write_text('{"wasserstein2": 0.25}')
    (folder / "toys" / "history.csv").write_text("step,loss,validation\n1,2.0,\n50,0.5,0.75\n")
    shape = (1, 8, 8)
    field = fields.UNet(1, 8, width=8, blocks=1, classes=4)
    images = cflow.ContinuousFlow(field, bases.Normal(shape), path=paths.Linear(), context_shape=())
    cflow.save(images.with_transform(Dequantise(shape, 17), Rescale(shape)), folder / "images" / "model")
    vector = cflow.ContinuousFlow(fields.MLP(3, context=2), bases.Normal(3), context_shape=2)
    cflow.save(vector, folder / "vector")
    cflow.save(discrete.nsf(2, classes=3, layers=1, hidden=(8,)), folder / "coupling" / "model")
    (folder / "stopped" / "checkpoints").mkdir(parents=True)
    return folder


def test_samples_are_written_in_every_format(runs, tmp_path, capsys):
    arguments = ["sample", str(runs / "toys"), "--num", "7", "--seed", "3", "--output"]
    for ending in ("npy", "npz", "csv", "png"):
        main([*arguments, str(tmp_path / f"x.{ending}")])
    assert "7 samples" in capsys.readouterr().out
    array = numpy.load(tmp_path / "x.npy")
    assert array.shape == (7, 2)
    assert numpy.array_equal(numpy.load(tmp_path / "x.npz")["samples"], array)
    assert (tmp_path / "x.csv").read_text().startswith("x0,x1\n")
    assert numpy.array_equal(read_table(tmp_path / "x.csv").values.float().numpy(), array)
    exact = cflow.load(runs / "toys" / "model").sample((7,), generator=torch.Generator().manual_seed(3))
    assert numpy.array_equal(array, exact.numpy())


def test_a_label_is_drawn_with_guidance_in_portions(runs, tmp_path):
    options = ["--num", "10", "--solver", "heun", "--steps", "2", "--label", "3", "--batch", "4", "--seed", "1"]
    main(["sample", str(runs / "images"), *options, "--output", str(tmp_path / "deep" / "x.png")])
    assert Image.open(tmp_path / "deep" / "x.png").size[0] > 50
    main(["sample", str(runs / "images"), *options, "--output", str(tmp_path / "x.npy")])
    assert set(numpy.unique(numpy.load(tmp_path / "x.npy"))) <= set(range(17))


def test_a_label_of_a_discrete_time_flow_is_drawn(tmp_path, capsys):
    cflow.save(discrete.nsf(2, classes=3, layers=1), tmp_path / "model")
    main(["sample", str(tmp_path), "--num", "5", "--label", "2", "--output", str(tmp_path / "x.npy")])
    assert numpy.load(tmp_path / "x.npy").shape == (5, 2)
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path), "--label", "3", "--output", str(tmp_path / "x.npy")])
    assert "the classes of this flow are 0 to 2" in capsys.readouterr().err


def test_noise_of_a_chosen_strength(runs, tmp_path):
    options = ["--num", "3", "--steps", "4", "--diffusion", "0.5", "--seed", "2", "--output", str(tmp_path / "x.npy")]
    main(["sample", str(runs / "toys"), *options])
    flow, generator = cflow.load(runs / "toys" / "model"), torch.Generator().manual_seed(2)
    exact = flow.sample((3,), solver=solvers.EulerMaruyama(4, diffusion=0.5), generator=generator)
    assert numpy.array_equal(numpy.load(tmp_path / "x.npy"), exact.numpy())


def test_batches_are_replayed_from_graphs(runs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "solvers")
    from recorder import Machine  # in the place of a GPU

    from cflow.solvers.capture import cuda_graph

    monkeypatch.setattr(cuda_graph, "_machine", machine := Machine())
    arguments = ["sample", str(runs / "toys"), "--num", "10", "--batch", "4", "--seed", "3", "--output"]
    main([*arguments, str(tmp_path / "graph.npy"), "--cuda-graph"])
    main([*arguments, str(tmp_path / "eager.npy")])
    assert (len(machine.operations), machine.replays) == (2, 3)  # graphs of 4 and of 2 samples; 4, 4 and 2 drawn
    assert numpy.array_equal(numpy.load(tmp_path / "graph.npy"), numpy.load(tmp_path / "eager.npy"))


def test_large_arguments_are_shown_by_their_shape(tmp_path, capsys):
    flow = cflow.ContinuousFlow(
        fields.MLP(2, outputs=2), bases.Empirical(torch.rand(50, 2)), path=paths.BrownianBridge()
    )
    main(["info", str(cflow.save(flow, tmp_path / "bridge"))])
    assert "Empirical(samples=tensor of shape [50, 2])" in capsys.readouterr().out


def test_every_class_in_turn_is_the_default(runs, tmp_path):
    options = ["--num", "6", "--solver", "euler", "--steps", "1", "--output", str(tmp_path / "x.npz")]
    main(["sample", str(runs / "images"), *options])
    assert numpy.load(tmp_path / "x.npz")["labels"].tolist() == [0, 1, 2, 3, 0, 1]


def test_contexts_are_numbers_or_rows_of_a_table(runs, tmp_path):
    """Every row of the table is drawn for in turn; the numbers drawn for stand beside the samples."""
    flow = cflow.load(runs / "vector")
    seeded = lambda: torch.Generator().manual_seed(3)
    options = ["--seed", "3", "--output", str(tmp_path / "x.csv")]
    main(["sample", str(runs / "vector"), "--context", "1.5,-2", "--num", "5", *options])
    drawn = read_table(tmp_path / "x.csv")
    assert drawn.names == ("x0", "x1", "x2", "c0", "c1")
    assert drawn.values[:, 3:].unique(dim=0).tolist() == [[1.5, -2.0]]
    context = torch.tensor([[1.5, -2.0]]).expand(5, 2)
    assert torch.equal(drawn.values[:, :3].float(), flow.sample((), context, generator=seeded()))
    (tmp_path / "c.csv").write_text("c1,more,c0\n1,x,0\n2,y,1\n3,z,2\n")
    main(["sample", str(runs / "vector"), "--context", str(tmp_path / "c.csv"), *options])
    drawn = read_table(tmp_path / "x.csv").values
    assert drawn[:, 3:].tolist() == [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    main(["sample", str(runs / "vector"), "--context", str(tmp_path / "c.csv"), "--num", "5", *options])
    assert read_table(tmp_path / "x.csv").values[:, 3].tolist() == [0, 1, 2, 0, 1]
    main(["sample", str(runs / "vector"), "--context", "1,2", "--seed", "3", "--output", str(tmp_path / "x.npz")])
    assert numpy.load(tmp_path / "x.npz")["context"].shape == (64, 2)
    before = (tmp_path / "c.csv").read_bytes()
    with pytest.raises(SystemExit):
        main(["sample", str(runs / "vector"), "--context", str(tmp_path / "c.csv"), "-o", str(tmp_path / "c.csv")])
    assert (tmp_path / "c.csv").read_bytes() == before


def test_a_class_is_named_by_its_name_or_number(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "images", "run")
    Path("run", "metrics.json").write_text('{"classes": ["cat", "dog", "3", "hen"]}')
    flow = cflow.load("run/model")
    for label, number in (("dog", 1), ("1", 1), ("3", 2), ("2", 2)):  # a name goes before a number
        assert labels_of(flow, label, 2, ["cat", "dog", "3", "hen"]).tolist() == [number] * 2
    main(["sample", "run", "--num", "1", "--steps", "1", "--label", "dog", "-o", "x.npy"])
    for label in ("7", "cow"):
        with pytest.raises(SystemExit):
            main(["sample", "run", "--label", label])
        said = f"--label {label}: the classes of this flow are 0 to 3 (cat, dog, 3, hen); pass one"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("first", [1_234_567.0, 0.123456789])
def test_values_on_coarse_steps_keep_every_digit(first, tmp_path):
    flow = cflow.ContinuousFlow(fields.MLP(1), bases.Normal(1), path=paths.Linear()).double()
    flow = flow.with_transform(Standardise(1, 0.0, 1e9))
    cflow.save(flow, tmp_path / "model")
    (tmp_path / "metrics.json").write_text(json.dumps({"columns": ["n"], "dequantised": {"n": [first, 1e7]}}))
    main(["sample", str(tmp_path), "--num", "20", "--seed", "0", "--output", str(tmp_path / "x.csv")])
    values = read_table(tmp_path / "x.csv").values.double().flatten()
    exact = first + 1e7 * ((values - first) / 1e7).round()
    assert torch.allclose(values, exact, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("num", "columns"), [(4, 4), (64, 8), (400, 20), (2, 2)])
def test_pictures_are_nearly_square_with_one_class_per_column(num, columns, runs, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(cflow.plot, "images", lambda pixels, path, columns: drawn.update(columns=columns))
    options = ["--num", str(num), "--solver", "euler", "--steps", "1", "--output", str(tmp_path / "x.png")]
    main(["sample", str(runs / "images"), *options])  # four classes
    assert drawn["columns"] == columns


def test_labels_and_whole_numbers_in_text(runs, tmp_path):
    options = ["--num", "6", "--solver", "euler", "--steps", "1", "--output", str(tmp_path / "x.csv")]
    main(["sample", str(runs / "images"), *options])
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[0].endswith("x62,x63,label")
    assert [line.split(",")[-1] for line in lines[1:]] == ["0", "1", "2", "3", "0", "1"]
    assert all(each.isdecimal() for line in lines[1:] for each in line.split(","))


def test_the_solver_and_names_of_the_run_are_the_default(tmp_path, capsys):
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
    torch.nn.init.normal_(flow.field.output.weight, generator=torch.Generator().manual_seed(0))
    cflow.save(flow, tmp_path / "model")
    report = '{"sampler": {"solver": "euler", "steps": 3}, "columns": ["mass", "n"], "dequantised": {"n": [0.5, 0.25]}}'
    (tmp_path / "metrics.json").write_text(report)
    exact = flow.sample((9,), solver=solvers.Euler(3), generator=torch.Generator().manual_seed(3))
    for run in (tmp_path, tmp_path / "model"):
        main(["sample", str(run), "--num", "9", "--seed", "3", "--output", str(tmp_path / "x.csv")])
        assert "Euler(steps=3)" in capsys.readouterr().out
        drawn = read_table(tmp_path / "x.csv")
        assert drawn.names == ("mass", "n")
        assert torch.equal(drawn.values[:, 0].float(), exact[:, 0])
        assert torch.equal(drawn.values[:, 1].float(), 0.5 + 0.25 * ((exact[:, 1] - 0.5) / 0.25).round())
    main(["sample", str(tmp_path), "--num", "9", "--steps", "2", "--output", str(tmp_path / "x.csv")])
    assert "Euler(steps=2)" in capsys.readouterr().out
    main(["sample", str(tmp_path), "--num", "9", "--rtol", "1e-2", "--output", str(tmp_path / "x.csv")])
    assert "Dopri5(rtol=0.01" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_on_steps_are_written_with_the_digits_of_the_step(dtype, tmp_path):
    flow = cflow.ContinuousFlow(fields.MLP(1), bases.Normal(1), path=paths.Linear()).to(dtype)
    cflow.save(flow, tmp_path / "model")
    (tmp_path / "metrics.json").write_text('{"columns": ["n"], "dequantised": {"n": [14.13, 0.01]}}')
    main(["sample", str(tmp_path), "--num", "50", "--seed", "0", "--output", str(tmp_path / "x.csv")])
    values = (tmp_path / "x.csv").read_text().splitlines()[1:]
    assert max(len(value.lstrip("-")) for value in values) <= 4


def test_what_has_no_picture_is_written_as_text(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["sample", str(runs / "vector"), "--context", "1,2", "--num", "3"])
    main(["sample", str(runs / "toys"), "--num", "3"])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["samples.csv", "samples.png"]


def test_version_and_module(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"cflow {cflow.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "cflow", "info", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("cflow: nowhere: no saved flow")


def test_every_option_of_every_command_is_explained(capsys):
    """Under the name of the argument: tyro finds no help under the option's, where the two differ."""
    from cflow.cli import COMMANDS

    for module in COMMANDS:
        function = vars(module)[module.__name__.rpartition(".")[2]]
        explained = re.findall(r"^ {8}(\w+): [A-Z]", function.__doc__, re.MULTILINE)
        assert explained == list(inspect.signature(function).parameters), module
    with pytest.raises(SystemExit):
        main(["reflow", "--help"])
    shown = capsys.readouterr().out
    assert "Distil the flow of the last round" in shown
    assert "--guidance FLOAT" in shown
    assert "--evaluations INT ..." in shown
    assert "None" not in shown
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "explains a command" in " ".join(capsys.readouterr().out.split())


def test_the_help_of_a_recipe_shows_no_none(capsys):
    @dataclass
    class Options:
        hidden: tuple[int, ...] | None = None
        """Layers. Default: two."""
        kind: Literal["a", "b"] | None = None
        """Kind. Default: a."""
        name: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
        """Name."""
        steps: int = 7
        """Steps."""

    with pytest.raises(SystemExit):
        tyro.cli(plain_help(Options), args=["--help"])
    shown = capsys.readouterr().out
    for part in ("--hidden INT ...", "--kind {a,b}", "--name NAME", "--steps INT", "(default: 7)"):
        assert part in shown
    assert "None" not in shown
    found = tyro.cli(Options, args=["--hidden", "3", "4", "--kind", "b"])
    assert (found.hidden, found.kind, found.name, found.steps) == ((3, 4), "b", None, 7)


def test_info_shows_flow_training_and_metrics(runs, capsys):
    main(["info", str(runs / "toys")])
    said = capsys.readouterr().out
    for part in ("22,370 parameters", "Linear(predict='velocity')", "Heun(steps=3", "validation 0.75", "wasserstein2"):
        assert part in said
    main(["info", str(runs / "images")])
    assert "Dequantise, Rescale" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "nowhere"), "no saved flow"),
        (("info", "stopped"), "--resume"),
        (("sample", "toys", "--label", "1"), "without classes"),
        (("sample", "images", "--label", "4"), "0 to 3"),
        (("sample", "toys", "--solver", "hun", "--steps", "2"), "did you mean 'heun'"),
        (("sample", "toys", "--solver", "heun"), "the number of steps is missing; pass for example --steps 20"),
        (("sample", "toys", "--output", "x.jpg"), ".png, .npy, .npz, .csv"),
        (("sample", "toys", "--num", "0"), "at least 1"),
        (("sample", "vector"), "the condition of this flow is 2 numbers (c0, c1); pass --context 1.5,1.5"),
        (
            ("sample", "vector", "--context", "1,2", "--output", "a.png"),
            "samples of shape (3,) have no picture; choose .npy, .npz, .csv.",
        ),
        (("sample", "vector", "--context", "1"), "got 1 numbers; pass 2 (c0, c1)"),
        (("sample", "vector", "--context", "1,x"), "neither numbers separated by commas nor a file"),
        (("sample", "vector", "--context", "nowhere.csv"), "nowhere.csv"),
        (("sample", "toys", "--context", "1"), "the condition of this flow is not numbers; omit the option"),
        (("sample", "images", "--context", "1"), "choose a class by --label"),
        (("bespoke", "vector"), "no option for"),
        (("sample", "toys", "--guidance", "3"), "trained without classes; omit the option"),
        (("sample", "coupling", "--guidance", "3"), "has no guidance"),
        (("sample", "toys", "--seed", "-1"), "0 or more"),
        (("sample", "toys", "--device", "nonsense"), "not available ("),
        (("sample", "toys", "--output", "toys/metrics.json/x.npy"), "metrics.json"),
        (("sample", "toys", "--solver", "dopri5", "--steps", "3"), "steps"),
        (("sample", "toys", "--cuda-graph"), "only GPU kernels can be captured"),
        (
            ("sample", "toys", "--cuda-graph", "--steps", "2", "--diffusion", "1"),
            "it draws noise from the generator",
        ),
    ],
)
def test_mistakes_end_in_one_line(runs, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("cflow: ")
    assert len(said.strip().splitlines()) == 1


def test_a_misspelt_option_names_the_right_one(runs, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(runs / "toys"), "--stpes", "3"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "--steps" in captured.err + captured.out


def test_a_flow_of_discrete_time_is_drawn_from_and_has_no_solver(tmp_path, capsys):
    flow = discrete.nsf(2, layers=2, hidden=(8,))
    cflow.save(flow, tmp_path / "model")
    main(["info", str(tmp_path)])
    assert "2 Coupling + 1 LULinear" in capsys.readouterr().out
    main(["sample", str(tmp_path), "--num", "5", "-o", str(tmp_path / "x.npy")])
    assert numpy.load(tmp_path / "x.npy").shape == (5, 2)
    for command in (
        ["sample", str(tmp_path), "--steps", "4", "-o", str(tmp_path / "y.npy")],
        ["bespoke", str(tmp_path)],
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert "has no solver" in capsys.readouterr().err


def test_an_interrupted_run_is_shown_drawn_from_and_scored(tmp_path, capsys):
    def interrupt(step, flow, row):
        if step == 7:
            raise KeyboardInterrupt

    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
    options = {"steps": 20, "batch_size": 16, "out": tmp_path / "run", "callbacks": [interrupt]}
    with pytest.raises(KeyboardInterrupt):
        training.fit(flow, objectives.FlowMatching(), torch.randn(64, 2), **options)
    (tmp_path / "x.csv").write_text("0.5,1.0\n")
    place = tmp_path / "run" / "checkpoints" / "step-000007"
    for run in (tmp_path / "run", place):
        main(["info", str(run)])
        assert f"in {place}" in (said := capsys.readouterr().out)
        assert "a checkpoint: the flow at that step of the run" in said
        main(["sample", str(run), "--num", "3", "--seed", "0", "--output", str(tmp_path / "x.npy")])
        drawn = flow.sample((3,), generator=torch.Generator().manual_seed(0))
        assert numpy.array_equal(numpy.load(tmp_path / "x.npy"), drawn.numpy())
        main(["score", str(run), str(tmp_path / "x.csv"), "--output", str(tmp_path / "scores.csv")])
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path)])
    assert "no saved flow" in capsys.readouterr().err
