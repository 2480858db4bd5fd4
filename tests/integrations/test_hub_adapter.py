"""Flows on a hub that is a folder: the calls are held to the signatures of the real one, and nothing is sent."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cflow
from cflow import bases, discrete, fields, paths
from cflow.bijections import Dequantise, Rescale
from cflow.integrations import hub

huggingface_hub = pytest.importorskip("huggingface_hub", reason="an extra: pip install huggingface_hub")


REAL = huggingface_hub.HfApi


class Folder:
    """Takes the place of ``HfApi``: a revision is a folder of a repository's."""

    def __init__(self, root):
        self.root, self.calls = Path(root), []

    def _called(self, name, options):
        inspect.signature(getattr(REAL, name)).bind(self, **options)  # raises for what it cannot take
        self.calls.append((name, options))

    def create_repo(self, **options):
        self._called("create_repo", options)
        self.root.joinpath(options["repo_id"]).mkdir(parents=True, exist_ok=options["exist_ok"])

    def upload_folder(self, **options):
        self._called("upload_folder", options)
        to = self.root / options["repo_id"] / (options["revision"] or "main")
        shutil.copytree(options["folder_path"], to, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"hub/{options['repo_id']}/commit/1")

    def snapshot_download(self, **options):
        self._called("snapshot_download", options)
        source = self.root / options["repo_id"] / (options["revision"] or "main")
        if not source.is_dir():
            raise FileNotFoundError("Repository Not Found for url: /api/models.\nPlease make sure of the name.")
        to = self.root / "cache"
        for pattern in options["allow_patterns"]:
            for each in source.glob(pattern):
                to.mkdir(exist_ok=True)
                shutil.copy(each, to)
        return str(to)


@pytest.fixture
def api(tmp_path):
    return Folder(tmp_path / "hub")


def labelled():
    shape = (1, 8, 8)
    field = fields.UNet(1, 8, width=8, blocks=1, classes=4)
    flow = cflow.ContinuousFlow(field, bases.Normal(shape), path=paths.Cosine("x1"), context_shape=())
    return flow.with_transform(Dequantise(shape, 17), Rescale(shape))


def test_a_flow_comes_back_as_it_was(api, tmp_path):
    flow = discrete.nsf(2, layers=2, hidden=(8,)).double().eval()
    metrics = {"nats": -3.25, "note": "first|try"}
    assert hub.push(flow, "me/moons", metrics=metrics, api=api) == "hub/me/moons/commit/1"
    again = hub.load("me/moons", api=api)
    x = torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    assert not again.training
    pushed = tmp_path / "hub" / "me" / "moons" / "main"
    assert sorted(each.name for each in pushed.iterdir()) == ["README.md", "flow.safetensors", "metrics.json"]
    assert json.loads((pushed / "metrics.json").read_text()) == metrics
    assert (pushed / "README.md").read_text() == hub.card(flow, "me/moons", metrics)
    # Only what a flow is made of is fetched: what else a repository holds stays there.
    assert api.calls[-1][1]["allow_patterns"] == ["flow.safetensors"]


def test_options_reach_the_hub(api):
    flow = discrete.nsf(2, layers=1, hidden=(8,))
    hub.push(flow, "me/moons", revision="tiny", private=True, message="second", api=api)
    assert api.calls[0] == ("create_repo", {"repo_id": "me/moons", "private": True, "exist_ok": True})
    assert (api.calls[1][1]["revision"], api.calls[1][1]["commit_message"]) == ("tiny", "second")
    assert isinstance(hub.load("me/moons", revision="tiny", api=api), discrete.NormalizingFlow)
    with pytest.raises(OSError, match=r"revision=None\): not available \(Repository Not Found .*hf auth login"):
        hub.load("me/moons", api=api)


def test_the_card_tells_what_a_flow_is_and_its_code_runs(api, monkeypatch):
    told = hub.card(labelled(), "me/digits", {"distance": 1.0123456789})
    for row in (
        "| class | ContinuousFlow |",
        "| event shape | (1, 8, 8) |",
        "| context | a label, 0 to 3 |",
        "| likelihood | bound |",
        "| transforms | Dequantise, Rescale |",
        "| field | UNet |",
        "| path | Cosine(predict='x1') |",
        "| distance | 1.01235 |",
        "tags: [cflow, flow-matching]",
    ):
        assert row in told
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    for flow, shape in (
        (discrete.nsf(2, layers=1, hidden=(8,)), (16, 2)),
        (discrete.nsf(2, layers=1, hidden=(8,), context=3), (16, 2)),
        (cflow.ContinuousFlow(fields.MLP(2, hidden=(8,), classes=3), bases.Normal(2), context_shape=()), (16, 2)),
    ):
        hub.push(flow, "me/any")
        code = hub.card(flow, "me/any").split("```python\n")[1].split("```")[0]
        exec(code, names := {})
        assert names["x"].shape == shape


def test_repositories_without_a_flow_are_named(api, tmp_path):
    (tmp_path / "hub" / "me" / "text" / "main").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"has no flow.safetensors; pass one"):
        hub.load("me/text", api=api)


def test_a_hub_out_of_reach_is_told(tmp_path, monkeypatch):
    nowhere = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    flow = discrete.nsf(2, layers=1, hidden=(8,))
    with pytest.raises(OSError, match=r"hub.push\('me/moons'\): the hub refused"):
        hub.push(flow, "me/moons", api=nowhere)
    with pytest.raises(
        OSError, match=r"hub.load\('me/moons', revision=None\): not available .*and connection"
    ):
        hub.load("me/moons", api=nowhere)
    with pytest.raises(ValueError, match="me/two words"):
        hub.load("me/two words", api=nowhere)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"hub.load: .* pip install huggingface_hub"):
        hub.load("me/moons")
    with pytest.raises(ImportError, match="hub.push"):
        hub.push(discrete.nsf(2), "me/moons")
