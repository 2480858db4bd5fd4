"""Flows on the Hugging Face hub: pushed in the format of :func:`cflow.save`, with a card that describes them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import cflow
from cflow.io import FILE
from cflow.io import load as load_folder
from cflow.io import save as save_folder
from cflow.registry import configuration
from cflow.shapes import shown

__all__ = ["card", "load", "push"]


def push(
    flow: nn.Module,
    repo: str,
    *,
    metrics: Mapping[str, float] | None = None,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    api=None,
) -> str:
    """Pushes a flow to a repository of the hub, which is created if needed; returns the address of the commit.

    The commit contains ``flow.safetensors`` (see :func:`cflow.save`), the card ``README.md`` (see :func:`card`) and, if
    there are metrics, ``metrics.json``.

    Args:
        flow: the flow.
        repo: the repository, ``"name/model"``.
        metrics: results of measurements, by name.
        revision: the branch, which must exist. Default: the main branch.
        private: whether a new repository is private. Default: the setting of the account.
        message: the message of the commit.
        api: a ``huggingface_hub.HfApi`` with a custom address or token. Default: that of the login.

    Raises:
        ValueError: for a flow that cannot be saved, or an invalid name.
        ImportError: if huggingface_hub is not installed.
        OSError: if the hub cannot be reached or refuses.
    """
    hub = _hub("push")
    api = hub.HfApi() if api is None else api
    with tempfile.TemporaryDirectory() as folder:
        files = save_folder(flow, Path(folder, "flow"))
        (files / "README.md").write_text(card(flow, repo, metrics), encoding="utf-8")
        if metrics is not None:
            (files / "metrics.json").write_text(json.dumps(dict(metrics), indent=1) + "\n")
        try:
            api.create_repo(repo_id=repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo, folder_path=str(files), revision=revision,
                commit_message=message or f"{type(flow).__name__}, saved by cflow {cflow.__version__}",
            )  # fmt: skip
        except (OSError, hub.errors.HTTPError) as error:
            raise OSError(
                f"hub.push({repo!r}): the hub refused ({_first_line(error)}); check name and connection, or log in by "
                f"`hf auth login` with a write token."
            ) from error
    return getattr(commit, "commit_url", str(commit))


def load(repo: str, *, revision: str | None = None, device: str | torch.device = "cpu", api=None) -> nn.Module:
    """Loads a flow from a repository of the hub: one file, of which no code is executed (see :func:`cflow.load`).

    A loaded file is kept on disk, so that loading it again does not need the network. A commit never changes; a branch
    may change.

    Args:
        repo: the repository, ``"name/model"``.
        revision: a commit, a tag or a branch. Default: the newest commit of the main branch.
        device: the device of the loaded flow.
        api: a ``huggingface_hub.HfApi`` with a custom address or token. Default: that of the login.

    Raises:
        ValueError: for an invalid name, and as :func:`cflow.load`.
        FileNotFoundError: if the repository does not contain a flow.
        ImportError: if huggingface_hub is not installed.
        OSError: if the repository is not available.
    """
    hub = _hub("load")
    api = hub.HfApi() if api is None else api
    try:
        folder = api.snapshot_download(repo_id=repo, revision=revision, allow_patterns=[FILE])
    except (OSError, hub.errors.HTTPError) as error:
        raise OSError(
            f"hub.load({repo!r}, revision={revision!r}): not available ({_first_line(error)}); check name, revision "
            f"and connection, or log in by `hf auth login`."
        ) from error
    if not Path(folder, FILE).is_file():
        raise FileNotFoundError(
            f"hub.load({repo!r}, revision={revision!r}): the repository has no {FILE}; pass one that hub.push wrote."
        )
    return load_folder(folder, device=device)


def card(flow: nn.Module, repo: str, metrics: Mapping[str, float] | None = None) -> str:
    """Returns the card of a flow in Markdown: a description, the code that loads it, and the metrics.

    Args:
        flow: the flow.
        repo: the repository, ``"name/model"``.
        metrics: results of measurements, by name.

    Example:
        >>> from cflow import discrete
        >>> print(card(discrete.nsf(2, layers=1, hidden=(8,)), "me/moons", {"nats": -3.2}))
        ---
        library_name: cflow
        tags: [cflow, normalizing-flow]
        ---
        <BLANKLINE>
        # me/moons
        ...
        | likelihood | exact |
        ...
        | nats | -3.2 |
        <BLANKLINE>
    """
    kind = "flow-matching" if isinstance(flow, cflow.ContinuousFlow) else "normalizing-flow"
    facts = {"class": type(flow).__name__, "parameters": f"{sum(each.numel() for each in flow.parameters()):,}"}
    if isinstance(flow, cflow.BaseFlow):
        facts["event shape"] = shown(flow.event_shape)
        classes = flow.classes
        reads = "none" if flow.context_shape is None else shown(flow.context_shape)
        facts["context"] = f"a label, 0 to {classes - 1}" if classes else reads
        facts["likelihood"] = flow.likelihood
        facts["transforms"] = ", ".join(type(each).__name__ for each in flow.transform.maps) or "none"
        stated = (
            (name, value) for name, value in configuration(flow).items() if name in ("field", "base", "path", "solver")
        )
        facts |= {name: type(value).__name__ if isinstance(value, nn.Module) else repr(value) for name, value in stated}
    lines = [
        "---", "library_name: cflow", f"tags: [cflow, {kind}]", "---", "",
        f"# {repo}", "", "```python", "import torch", "from cflow.integrations import hub", "",
        f'flow = hub.load("{repo}")', _use(flow), "```", "",
        *_table(facts),
    ]  # fmt: skip
    if metrics:
        lines += ["", "## Measured", "", *_table(metrics)]
    return "\n".join(lines) + "\n"


def _use(flow: nn.Module) -> str:
    """Returns the line of code that draws samples."""
    if getattr(flow, "context_shape", None) is None:
        return "x = flow.sample((16,))"
    if flow.classes:
        return "x = flow.sample((16,), context=torch.tensor(0))"
    return f"x = flow.sample((16,), context=torch.zeros({shown(flow.context_shape)}))"


def _table(rows: Mapping) -> list[str]:
    cell = lambda value: f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")
    return ["| | |", "|---|---|", *(f"| {cell(name)} | {cell(value)} |" for name, value in rows.items())]


def _hub(method: str):
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(f"hub.{method}: huggingface_hub is not installed; pip install huggingface_hub.") from error
    return huggingface_hub


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".:")
