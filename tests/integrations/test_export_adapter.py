"""Exported graphs against the flows they were traced from: in a process that never imports cflow, at other batches."""

import json
import logging
import subprocess
import sys
import warnings

import pytest
import torch

import cflow
from cflow import bases, discrete, divergence, fields, guidance, paths, solvers
from cflow.bijections import Dequantise, Logit, Rescale, Standardise
from cflow.integrations import export

FRESH = """
import sys, torch
asked = torch.load(sys.argv[1])
answers = []
with torch.no_grad():
    for path, batches in asked:
        run = torch.export.load(path).module()
        answers.append([run(*inputs) for inputs in batches])
assert "cflow" not in sys.modules
torch.save(answers, sys.argv[1])
"""
# Two programs of one network add the same float32 numbers in different orders. The errors of sums of some 70 products
# in some 40 layers add up as a random walk: sqrt(70 * 40) roundings of the largest value.
ROUNDING = 54 * torch.finfo(torch.float32).eps


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def stirred(module, seed=0):
    """Gives a fresh network weights that do something."""
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(0.3 * torch.randn(each.shape, generator=seeded(seed), dtype=each.dtype))
    return module


def mlp(predict="velocity", **options):
    field = stirred(fields.MLP(2, hidden=(8, 8), **options))
    context_shape = () if "classes" in options else None
    return cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear(predict), context_shape=context_shape)


def unet():
    shape = (1, 8, 8)
    field = stirred(fields.UNet(1, 8, width=8, multipliers=(1,), blocks=1, classes=4))
    flow = cflow.ContinuousFlow(field, bases.Normal(shape), path=paths.Linear("x1"), context_shape=())
    return flow.with_transform(Rescale(shape, 0.0, 16.0))


def nsf():
    return stirred(discrete.nsf(2, layers=2, hidden=(8,), context=3)).with_transform(Standardise(2, 1.0, 2.0))


def empirical():
    return cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Empirical(torch.eye(2)), path=paths.Linear())


def samples(flow, count, context=None, **options):
    """Draws of the base, and the flow's samples of the same draws."""
    z = flow.base.sample((count,), generator=seeded(count))
    shape = (count,) if context is None else ()
    return z, flow.sample(shape, context, generator=seeded(count), **options)


def test_a_fresh_process_without_this_library_gets_the_same_numbers(tmp_path):
    unconditional, labelled, images, spline = mlp(), mlp(classes=3), unet(), nsf()
    stronger, grid = guidance.ClassifierFree(2.0), solvers.Euler(steps=2)
    asked, wanted = [], []

    def ask(name, flow, what, batches, **options):
        asked.append((str(export.save(flow, tmp_path / f"{name}.pt2", what, **options)), [each[0] for each in batches]))
        wanted.append([each[1] for each in batches])

    def velocities(count):
        t, x = torch.rand(count, generator=seeded(1)), torch.randn(count, 2, generator=seeded(2))
        labels = torch.arange(count) % 3
        return (t, x, labels), labelled.velocity(t, x, labels, guidance=stronger)

    def drawn(flow, count, context=None, **options):
        z, x = samples(flow, count, context, **options)
        return (z,) if context is None else (z, context), x

    def densities(count):
        x, context = torch.randn(count, 2, generator=seeded(3)), torch.randn(count, 3, generator=seeded(4))
        return (x, context), spline.log_prob(x, context)

    sizes = (1, 7)
    with torch.no_grad():
        ask("network", labelled, "network", [velocities(n) for n in sizes], guidance=stronger)
        multistep = solvers.UniPC(steps=3)
        batches = [drawn(unconditional, n, solver=multistep) for n in sizes]
        ask("sampler", unconditional, "sampler", batches, solver=multistep)
        options = {"solver": grid, "guidance": stronger}
        ask("images", images, "sampler", [drawn(images, n, torch.arange(n) % 4, **options) for n in sizes], **options)
        contexts = {n: torch.randn(n, 3, generator=seeded(5)) for n in sizes}
        ask("draws", spline, "sampler", [drawn(spline, n, contexts[n]) for n in sizes])
        ask("density", spline, "log_prob", [densities(n) for n in sizes])
    torch.save(asked, tmp_path / "asked")
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "asked")], check=True)
    for (path, _), given, correct in zip(asked, torch.load(tmp_path / "asked"), wanted):
        for one, other in zip(given, correct):
            assert one.shape == other.shape, path
            assert (one - other).abs().max() <= ROUNDING * max(1.0, other.abs().max()), path


def test_the_density_of_a_continuous_flow_by_its_closed_form():
    flow, solver = mlp("x1").double(), solvers.Heun(steps=1)
    run = export.program(flow, "log_prob", solver=solver).module()
    for count in (1, 5):
        x = torch.randn(count, 2, dtype=torch.float64, generator=seeded(count))
        exact = flow.log_prob(x, solver=solver, divergence=divergence.Exact())
        assert torch.allclose(run(x), exact, rtol=1e-10, atol=1e-10)


def test_what_is_beside_a_file_tells_how_to_run_it(tmp_path):
    flow = mlp("x1", classes=3).train()
    path = export.save(flow, tmp_path / "deep" / "net.pt2", "network", batch=2)
    assert json.loads((tmp_path / "deep" / "net.pt2.json").read_text()) == {
        "format": "cflow export 1",
        "what": "network",
        "inputs": [
            {"name": "t", "shape": [2], "dtype": "float32"},
            {"name": "x", "shape": [2, 2], "dtype": "float32"},
            {"name": "context", "shape": [2], "dtype": "int64"},
        ],
        "output": {"name": "v", "shape": [2, 2], "dtype": "float32"},
        "time": "t = 0 is the base, t = 1 is the data; velocities point from base to data",
        "base": {"bases.Normal": {"event_shape": [2], "loc": 0.0, "scale": 1.0}},
        "options": {},
        "device": "cpu",
        "cflow": cflow.__version__,
        "torch": torch.__version__,
        "interval": list(flow.interval),
        "classes": 3,
    }
    assert flow.training
    assert all(each.requires_grad for each in flow.parameters())
    # A time outside of what an x1 prediction bears is answered at its end.
    run, x, labels = torch.export.load(path).module(), torch.randn(2, 2), torch.tensor([0, 3])
    assert torch.allclose(run(torch.ones(2), x, labels), flow.eval().velocity(1.0, x, labels), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("flow", "options", "message"),
    [
        (mlp(), {"what": "flow"}, "choose from network, sampler, log_prob"),
        (torch.nn.Linear(2, 2), {}, "not supported; pass a ContinuousFlow"),
        (mlp(), {}, "its number of steps is not fixed"),
        (mlp(), {"what": "sampler", "solver": solvers.EulerMaruyama(4)}, "it draws noise"),
        (mlp(), {"what": "sampler", "solver": solvers.Picard(steps=4)}, "reads its progress on the host"),
        (mlp(), {"what": "sampler", "solver": solvers.CudaGraph(solvers.Euler(4))}, "it is captured already"),
        (mlp(), {"what": "network", "solver": solvers.Euler(4)}, "does not use it"),
        (mlp(), {"what": "network", "batch": 0}, "an integer of at least 1"),
        (nsf(), {"what": "network"}, "has no velocity"),
        (empirical(), {"what": "log_prob", "solver": solvers.Euler(4)}, "has no density"),
        (nsf(), {"what": "sampler", "solver": solvers.Euler(4)}, "does not use it"),
        (unet(), {"what": "log_prob", "solver": solvers.Euler(1)}, "cannot use the other divergences"),
        (nsf().with_transform(Logit(2)), {"what": "log_prob"}, "cannot contain Logit"),
        (nsf().with_transform(Dequantise(2)), {"what": "log_prob"}, "cannot contain Dequantise"),
    ],
)
def test_what_no_graph_holds_is_refused_with_the_reason(flow, options, message):
    with pytest.raises(ValueError, match=message):
        export.program(flow, **options)


def test_a_field_whose_python_depends_on_more_than_tensors_is_refused():
    def build(move):
        field = fields.Adapted(torch.nn.Linear(2, 2), lambda net, t, x, context: move(net(x)), event_shape=2)
        return cflow.ContinuousFlow(field, bases.Normal(2))

    with pytest.raises(ValueError, match=r"cannot trace this ContinuousFlow .* remove Python code"):
        export.program(build(lambda v: v if len(v) > 3 else 2 * v), "network")
    with pytest.raises(ValueError, match="return different numbers"):
        export.program(build(lambda v: v + torch.rand_like(v)), "network")


def test_a_weak_flow_of_a_guidance_is_traced_with_the_good_one():
    weak, solver = mlp().train(), solvers.Euler(steps=1)
    stronger = guidance.AutoGuidance(weak, 2.0)
    stirred(weak.field, seed=1)
    z, drawn = samples(mlp(), 5, solver=solver, guidance=stronger)
    run = export.program(mlp(), solver=solver, guidance=stronger).module()
    assert torch.allclose(run(z), drawn, atol=1e-6)
    assert weak.training


def test_onnx_gives_the_same_numbers(tmp_path, capfd):
    pytest.importorskip("onnxscript", reason="ONNX models are made by onnx and onnxscript: pip install onnx onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX models are run by onnxruntime")
    labelled, solver = mlp(classes=3), solvers.Heun(steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = runtime.InferenceSession(export.save(labelled, tmp_path / "network.onnx", "network"))
    messages = [capfd.readouterr().err, *(str(each.message) for each in caught)]
    assert not [each for each in messages if "torchvision" in each or "LeafSpec" in each]
    sampler = runtime.InferenceSession(export.save(mlp(), tmp_path / "sampler.onnx", "sampler", solver=solver))
    for count in (1, 7):
        t, x, labels = torch.rand(count), torch.randn(count, 2), torch.arange(count) % 3
        (v,) = network.run(["v"], {"t": t.numpy(), "x": x.numpy(), "context": labels.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(v), labelled.velocity(t, x, labels), rtol=1e-5, atol=1e-6)
        z, drawn = samples(mlp(), count, solver=solver)
        (given,) = sampler.run(["x"], {"z": z.numpy()})
        assert torch.allclose(torch.from_numpy(given), drawn, rtol=1e-5, atol=1e-6)
    linear = discrete.NormalizingFlow(discrete.LULinear(2), bases.Normal(2))
    with pytest.raises(ValueError, match=r"operation of the sampler \(.*solve_triangular.*write a .pt2 program"):
        export.save(linear, tmp_path / "draws.onnx", "sampler")


def test_only_messages_without_use_are_omitted(caplog):
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings(record=True) as caught, export._quiet():
            logger.warning("torchvision is not installed. Skipping %s", "torchvision::nms")
            logger.warning("a decomposition is missing")
            warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use ...", FutureWarning, stacklevel=1)
            warnings.warn("another deprecation", FutureWarning, stacklevel=1)
        logger.warning("torchvision is not installed. Skipping it")
    finally:
        logger.removeHandler(caplog.handler)
    assert {each.getMessage() for each in caplog.records} == {
        "a decomposition is missing",
        "torchvision is not installed. Skipping it",
    }
    assert [str(each.message) for each in caught] == ["another deprecation"]


def test_endings_and_missing_packages_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"choose .pt2 or .onnx"):
        export.save(mlp(), tmp_path / "network.pt")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript, or write a .pt2 program"):
        export.save(mlp(), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())
