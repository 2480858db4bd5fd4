import json

import pytest
import torch

import cflow
from cflow import bases, discrete, fields, paths, solvers
from cflow.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    field = fields.MLP(2, hidden=(8, 8), classes=3)
    torch.nn.init.normal_(field.output.weight, generator=torch.Generator().manual_seed(0))
    labelled = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear(), context_shape=())
    cflow.save(labelled, folder / "labelled" / "model")
    (folder / "labelled" / "metrics.json").write_text('{"guidance": 1.5}')
    solvers.Bespoke.of(solvers.Euler(2)).write(folder / "labelled" / "model.bespoke.json")
    cflow.save(discrete.nsf(2, layers=1, hidden=(8,)), folder / "spline" / "model")
    return folder


def test_a_sampler_with_the_guidance_of_its_run(runs, tmp_path, capsys):
    path = tmp_path / "new" / "sampler.pt2"
    main(["export", str(runs / "labelled"), "--solver", "heun", "--steps", "2", "-o", str(path)])
    assert "sampler.pt2.json" in capsys.readouterr().out
    description = json.loads(path.with_name("sampler.pt2.json").read_text())
    assert description["options"]["solver"] == "Heun(steps=2)"
    assert "scale=1.5" in description["options"]["guidance"]
    flow, labels = cflow.load(runs / "labelled" / "model"), torch.tensor([0, 1, 2, 0])
    seeded = lambda: torch.Generator().manual_seed(1)
    exact = flow.sample(
        (), labels, solver=solvers.Heun(2), guidance=cflow.guidance.ClassifierFree(1.5), generator=seeded()
    )
    with torch.no_grad():
        drawn = torch.export.load(path).module()(flow.base.sample((4,), generator=seeded()), labels)
    assert torch.allclose(drawn, exact, atol=1e-6)


def test_other_parts(runs, tmp_path):
    main(["export", str(runs / "spline"), "--what", "log_prob", "-o", str(tmp_path / "d.pt2")])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    flow = cflow.load(runs / "spline" / "model")
    with torch.no_grad():
        assert torch.allclose(torch.export.load(tmp_path / "d.pt2").module()(x), flow.log_prob(x), atol=1e-6)
    options = ["--solver", "bespoke", "--guidance", "1", "--batch", "2"]
    main(["export", str(runs / "labelled"), *options, "-o", str(tmp_path / "s.pt2")])
    assert json.loads((tmp_path / "s.pt2.json").read_text())["inputs"][0]["shape"] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("labelled", "-o", "x.pt"), "choose .pt2 or .onnx"),
        (("labelled", "-o", "x.pt2"), "its number of steps is not fixed"),
        (("labelled", "-o", "x.pt2", "--what", "network", "--steps", "2"), "takes no steps"),
        (("labelled", "-o", "x.pt2", "--what", "log_prob", "--guidance", "2"), "a log-density has no guidance"),
        (("labelled", "-o", "x.pt2", "--steps", "2", "--batch", "0"), "at least 1"),
        (("spline", "-o", "x.pt2", "--steps", "2"), "no solver and no steps"),
        (("spline", "-o", "x.pt2", "--what", "network"), "has no velocity"),
        (("nowhere", "-o", "x.pt2"), "no saved flow"),
    ],
)
def test_mistakes_end_in_one_line(runs, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("cflow: ")
    assert len(said.strip().splitlines()) == 1
    assert not (runs / "x.pt2").exists()
