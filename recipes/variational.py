"""Variational inference: a flow learns a posterior from the model alone, and is compared with the exact one.

    python recipes/variational.py                              # linear regression, known in closed form, about a minute
    python recipes/variational.py --flow iaf --objective reverse-kl
    python recipes/variational.py --rows 20                    # few patients: a wide posterior with heavy tails
    python recipes/variational.py --flow continuous
    python recipes/variational.py --model logistic             # no closed form: checked by importance sampling

``linear`` regresses the progression of diabetes on ten features (442 patients, from scikit-learn) with a conjugate
prior: posterior, marginals and evidence are known exactly. ``logistic`` separates malignant from benign tumours (569 of
them, ten features); its reference is self-normalised importance sampling around the mode, long enough to be trusted.

The flow starts as independent normals at the mode, with the widths of the Laplace approximation. A continuous flow
starts with the widths of the posterior's slices, so that its field changes slowly and few solver steps are enough.

Writes ``model/``, ``marginals.png``, ``training.png`` and ``metrics.json`` into one folder.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from common import MAIN, claim, end_run, run_folder, say, say_resumed
from torch import Tensor, nn

import cflow
from cflow import bases, bijections, discrete, fields, plot, solvers, training
from cflow.cli import run_recipe
from cflow.metrics import Importance, importance
from cflow.objectives import AlphaDivergence, DoublyReparameterised, ForwardKL, PathDerivative, ReverseKL
from cflow.plot import BLUE, ORANGE, finish, new_figure

WEIGHTED = ("dreg", "alpha", "forward-kl")
NO_NETWORK = ("planar", "radial", "sylvester")
REFERENCE = 200_000  # draws around the mode


@dataclass
class Options:
    """Fits a flow to the posterior of a regression and compares it with the exact posterior, or a reference."""

    model: Literal["linear", "logistic"] = "linear"
    """Linear regression with a conjugate prior, or logistic regression."""
    rows: int | None = None
    """Number of rows of the table to use, drawn at random. Default: all."""
    flow: Literal["continuous", *discrete.PRESETS] = "nsf"
    """The flow: a continuous one, or a classical one by its name."""
    objective: Literal["reverse-kl", "path", "dreg", "forward-kl", "alpha"] = "path"
    """The divergence to minimise, and the gradient that does it."""
    alpha: float = 0.5
    """Order of the divergence, for --objective alpha."""
    samples: int | None = None
    """Draws that are weighted together. Default: 8 for dreg and alpha, all of a step for forward-kl."""
    batch_size: int = 64
    """Draws per step, on each process."""
    steps: int | None = None
    """Training steps. Default: 1000, or 200 for a continuous flow."""
    layers: int = 4
    """Layers of a classical flow."""
    hidden: tuple[int, ...] | None = None
    """Hidden layers of the network. Default: 32 32, or 64 for a continuous flow."""
    lr: float | None = None
    """Peak learning rate. Default: 0.003, or 0.01 for a continuous flow."""
    draws: int | None = None
    """Draws of the flow to measure. Default: 20,000, or 4000 for a continuous flow."""
    out: Path | None = None
    """Where everything is written. Default: runs/variational-<model>."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def table(options: Options) -> tuple[Tensor, Tensor, list[str]]:
    """Reads standardised features with a column of ones before them, the answers, and the names."""
    from sklearn import datasets

    found = datasets.load_diabetes(scaled=False) if options.model == "linear" else datasets.load_breast_cancer()
    x, y = (torch.from_numpy(each).double() for each in (found.data[:, :10], found.target))
    if options.rows is not None:
        if not 2 <= options.rows <= len(x):
            raise ValueError(f"--rows {options.rows}: the table has {len(x)} rows; choose from 2 to that many.")
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(options.seed))[: options.rows]
        x, y = x[rows], y[rows]
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-9)
    y = (y - y.mean()) / y.std() if options.model == "linear" else 2 * y - 1
    names = [str(name).removeprefix("mean ") for name in found.feature_names[:10]]
    return torch.cat([torch.ones(len(x), 1), x], 1), y, ["intercept", *names]


class LinearRegression(nn.Module):
    r"""The joint density of the answers, the coefficients and the logarithm of the noise's variance.

    .. math:: y | \beta, \sigma^2 \sim N(X \beta, \sigma^2 I), \quad \beta | \sigma^2 \sim N(0, \sigma^2 I), \quad
              \sigma^2 \sim \mathrm{InvGamma}(a, b)

    The posterior has the same form (normal-inverse-gamma), and the evidence is known.
    """

    a, b = 2.0, 1.0

    def __init__(self, x: Tensor, y: Tensor, names: list[str]):
        super().__init__()
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        self.names = [*names, "log variance"]
        count, features = x.shape
        precision = x.t() @ x + torch.eye(features, dtype=x.dtype)
        self.covariance = torch.linalg.inv(precision)
        self.mean = self.covariance @ (x.t() @ y)
        self.shape = self.a + count / 2
        self.rate = self.b + 0.5 * float(y @ y - self.mean @ precision @ self.mean)
        self.log_evidence = (
            0.5 * float(torch.logdet(self.covariance))
            - count / 2 * math.log(2 * math.pi)
            + self.a * math.log(self.b)
            - self.shape * math.log(self.rate)
            + math.lgamma(self.shape)
            - math.lgamma(self.a)
        )

    def forward(self, unknowns: Tensor) -> Tensor:
        """Computes the joint density of the data and ``[N, D]`` unknowns, ``[N]``."""
        beta, s = unknowns[:, :-1], unknowns[:, -1]
        squares = (self.y - beta @ self.x.t()).square().sum(1) + beta.square().sum(1)
        count = len(self.y) + beta.shape[1]
        normal = -0.5 * (count * (math.log(2 * math.pi) + s) + squares * torch.exp(-s))
        # Of the logarithm s: the density of exp(s) times exp(s).
        prior = self.a * math.log(self.b) - math.lgamma(self.a) - self.a * s - self.b * torch.exp(-s)
        return normal + prior

    def moments(self) -> tuple[Tensor, Tensor]:
        """Returns means and standard deviations of the posterior, ``[D]`` each."""
        shape = torch.tensor([self.shape], dtype=torch.float64)
        spread = (self.covariance.diagonal() * self.rate / (self.shape - 1)).sqrt()
        mean = torch.cat([self.mean, math.log(self.rate) - torch.digamma(shape)])
        return mean, torch.cat([spread, torch.polygamma(1, shape).sqrt()])

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws from the posterior, ``[count, D]``."""
        from numpy.random import default_rng

        seed = int(torch.randint(2**62, (), generator=generator))
        gamma = torch.from_numpy(default_rng(seed).gamma(self.shape, size=count))
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        variance = self.rate / gamma
        beta = self.mean + variance.sqrt()[:, None] * noise @ torch.linalg.cholesky(self.covariance).t()
        return torch.cat([beta, variance.log()[:, None]], 1)

    def marginal(self, index: int, grid: Tensor) -> Tensor:
        """Computes the exact density of one unknown: Student-t for coefficients, inverse gamma for the variance."""
        from scipy import stats

        if index == len(self.mean):
            density = stats.invgamma(self.shape, scale=self.rate).pdf(grid.exp().numpy())
            return torch.from_numpy(density) * grid.exp()
        scale = math.sqrt(self.rate / self.shape * float(self.covariance[index, index]))
        return torch.from_numpy(stats.t(2 * self.shape, float(self.mean[index]), scale).pdf(grid.numpy()))


class LogisticRegression(nn.Module):
    """The joint density of answers (one or minus one) and coefficients, whose prior is a standard normal."""

    def __init__(self, x: Tensor, y: Tensor, names: list[str]):
        super().__init__()
        self.register_buffer("signed", x * y[:, None])
        self.names = names

    def forward(self, beta: Tensor) -> Tensor:
        """Computes the joint density of the data and ``[N, D]`` coefficients, ``[N]``."""
        prior = -0.5 * (beta.square().sum(1) + beta.shape[1] * math.log(2 * math.pi))
        return nn.functional.logsigmoid(beta @ self.signed.t()).sum(1) + prior


def mode(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Computes the mode of the posterior and the covariance of the Laplace approximation there."""
    point = torch.zeros(1, len(model.names), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([point], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -model(point)[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    hessian = torch.autograd.functional.hessian(lambda each: -model(each[None])[0], point.detach()[0])
    return point.detach()[0], torch.linalg.inv(hessian)


def around(model: nn.Module, count: int, generator: torch.Generator) -> tuple[Tensor, Importance]:
    """Weights draws of a wide Student-t distribution around the mode: a reference that does not use the flow."""
    centre, covariance = mode(model)
    noise = torch.randn(count, len(centre), generator=generator, dtype=torch.float64)
    df = 10
    chi = torch.randn(count, df, generator=generator, dtype=torch.float64).square().sum(1) / df
    root = torch.linalg.cholesky(covariance)
    x = centre + noise / chi.sqrt()[:, None] @ root.t()
    squares = (noise.square().sum(1) / chi) / df
    features = len(centre)
    log_q = math.lgamma((df + features) / 2) - math.lgamma(df / 2) - 0.5 * features * math.log(df * math.pi)
    log_q = log_q - float(root.diagonal().log().sum()) - 0.5 * (df + features) * torch.log1p(squares)
    return x, importance(torch.cat([model(part) for part in x.split(4096)]) - log_q)


def build(options: Options, model: nn.Module):
    """Builds the flow over the unknowns, which starts as independent normals at the mode."""
    features = len(model.names)
    centre, covariance = mode(model)
    scale = covariance.diagonal().sqrt()
    if options.flow == "continuous" and options.objective != "forward-kl":  # weights need a wide start
        scale = torch.linalg.inv(covariance).diagonal().rsqrt()  # the deviation of each unknown given all others
    torch.manual_seed(options.seed)  # the network's initial weights
    if options.flow == "continuous":
        field = fields.MLP(features, hidden=options.hidden or (64,))
        # On a grid, training would exploit the error of the log-determinant: the loss falls below the log-evidence.
        adaptive = options.objective == "reverse-kl"
        solver = solvers.Dopri5(rtol=1e-4, atol=1e-4) if adaptive else solvers.RK4(steps=4)
        flow = cflow.ContinuousFlow(field, bases.Normal(features), solver=solver)
    else:
        network = {} if options.flow in NO_NETWORK else {"hidden": options.hidden or (32, 32)}
        flow = discrete.PRESETS[options.flow](features, layers=options.layers, **network)
    return flow.with_transform(bijections.Standardise(features, centre.float(), scale.float()))


def objective_of(options: Options, model: nn.Module):
    """Builds the objective, and returns it with the number of its items per step."""
    weighted = options.objective in WEIGHTED
    for option, read in (("samples", weighted), ("alpha", options.objective == "alpha")):
        value = getattr(options, option)
        if not read and value != getattr(Options(), option):
            raise ValueError(
                f"--objective {options.objective} --{option} {value}: this objective has no {option}; omit --{option}."
            )
    samples = options.samples or (options.batch_size if options.objective == "forward-kl" else 8)
    if weighted and not 2 <= samples <= options.batch_size:
        raise ValueError(
            f"--samples {samples} --batch-size {options.batch_size}: these draws are weighted together; pass from 2 to "
            f"the batch size."
        )
    match options.objective:
        case "reverse-kl":
            return ReverseKL(model), options.batch_size
        case "path":
            return PathDerivative(model), options.batch_size
        case "dreg":
            return DoublyReparameterised(model, samples), options.batch_size // samples
        case "alpha":
            return AlphaDivergence(model, options.alpha, samples), options.batch_size // samples
    return ForwardKL(model, samples, path=True), options.batch_size // samples


@torch.no_grad()
def measure(flow, model: nn.Module, count: int, generator: torch.Generator) -> tuple[dict, Tensor, Tensor | None]:
    """Compares the flow with the exact posterior: ``(report, draws of the flow, resampled reference or None)``."""
    chunks = [min(2000, count - start) for start in range(0, count, 2000)]
    drawn = [flow.sample_and_log_prob((each,), generator=generator) for each in chunks]
    x, log_q = (torch.cat(each) for each in zip(*drawn))
    log_joint = torch.cat([model(each) for each in x.split(2000)])
    found = importance(log_joint - log_q)
    report = {
        "log_evidence": found.log_evidence.value,
        "log_evidence_standard_error": found.log_evidence.standard_error,
    }
    if isinstance(model, LinearRegression):
        (mean, spread), reference, evidence = model.moments(), None, model.log_evidence
        report["log_evidence_exact"] = evidence
        exact = model.sample(count, generator)
        forward = torch.cat([model(each) - flow.log_prob(each) for each in exact.split(2000)]) - evidence
        report |= {"kl_forward": float(forward.mean()), "kl_forward_standard_error": error_of(forward)}
    else:
        proposed, judged = around(model, REFERENCE, generator)
        mean, spread = moments(proposed, judged.weights)
        evidence, reference = judged.log_evidence.value, judged.resample(proposed, count, generator=generator)
        report["log_evidence_reference"] = evidence
        report["log_evidence_reference_standard_error"] = judged.log_evidence.standard_error
        report["pareto_k_reference"] = judged.pareto_k
    reverse = log_q - log_joint + evidence
    report |= {"kl_reverse": float(reverse.mean()), "kl_reverse_standard_error": error_of(reverse)}
    report |= {"pareto_k": found.pareto_k, "effective_share": found.effective_sample_size / len(x)}
    equal = torch.full_like(found.weights, 1 / len(x))
    for name, weights in (("", equal), ("_weighted", found.weights)):
        own_mean, own_spread = moments(x, weights)
        report[f"error_of_means{name}"] = float(((own_mean - mean) / spread).abs().max())
        report[f"error_of_deviations{name}"] = float((own_spread / spread - 1).abs().max())
    return report, x, reference


def moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Computes weighted means and standard deviations, ``[D]`` each."""
    mean = weights @ x
    return mean, (weights @ (x - mean).square()).sqrt()


def error_of(values: Tensor) -> float:
    """Computes the standard error of a mean."""
    return float(values.std()) / len(values) ** 0.5


def lines(report: dict) -> list[str]:
    """Formats the report as lines: estimates with their standard errors."""
    found = []
    for key, value in report.items():
        if key.endswith("_standard_error"):
            continue
        error = report.get(f"{key}_standard_error")
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        shown += "" if error is None else f" ± {error:.4f}"
        found.append(f"  {key:28s} {shown}")
    return found


def picture(model: nn.Module, x: Tensor, reference: Tensor | None, path: Path) -> None:
    """Draws the marginal of every unknown: the flow's histogram, and the exact density or the reference's histogram."""
    columns = 4
    lines = math.ceil(len(model.names) / columns)
    figure = new_figure(2.3 * columns, 1.7 * lines + 0.3)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for index, (axis, name) in enumerate(zip(axes, model.names)):
        own = x[:, index]
        low, high = (float(each) for each in torch.quantile(own, torch.tensor([0.001, 0.999], dtype=own.dtype)))
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
        edges = torch.linspace(low, high, 51, dtype=torch.float64).numpy()
        axis.hist(own.numpy(), edges, density=True, color=BLUE, alpha=0.45, label="flow")
        if reference is None:
            grid = torch.linspace(low, high, 300, dtype=torch.float64)
            axis.plot(grid, model.marginal(index, grid), color=ORANGE, lw=1.6, label="exact")
        else:
            drawn = reference[:, index].numpy()
            axis.hist(drawn, edges, density=True, histtype="step", color=ORANGE, lw=1.3, label="reference")
        axis.set_title(name, fontsize=9)
        axis.set_yticks([])
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(labelsize=7)
        axis.margins(x=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    for axis in axes[len(model.names) :]:
        axis.set_visible(False)
    handles = figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=2, fontsize=9, frameon=False)
    for handle in handles.legend_handles:
        handle.set_alpha(1.0)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    finish(figure, path)


def main(options: Options) -> None:
    started = time.perf_counter()
    name = options.model + ("" if options.rows is None else f"-{options.rows}-rows")
    out = run_folder(options.out, f"variational-{name}", name, options.resume)
    model = (LinearRegression if options.model == "linear" else LogisticRegression)(*table(options))
    objective, items = objective_of(options, model)
    flow = build(options, model)
    model.float()
    steps = options.steps or (200 if options.flow == "continuous" else 1000)
    say(f"{options.model}: {len(model.names)} unknowns; {options.flow} by {options.objective}; writing to {out}/")
    claim(out, name)
    run = training.fit(
        flow,
        objective,
        steps=steps,
        batch_size=items,
        lr=options.lr or (1e-2 if options.flow == "continuous" else 3e-3),
        schedule=training.Cosine(warmup=50),
        ema=training.EMA(0.98),
        checkpoint_every=max(1, steps // 4),
        seed=options.seed,
        out=out,
        resume=options.resume,
        progress=True,
    )
    if options.resume:
        say_resumed(run)
    if not MAIN:
        return
    bound = "loss: minus the bound on the log-evidence, nats" if options.objective in ("reverse-kl", "path") else ""
    plot.training(run, out / "training.png", title=bound)
    flow = flow.cpu().eval()
    if options.flow == "continuous":  # trained on a grid; from here on without its error
        flow.solver = solvers.Dopri5(rtol=1e-5, atol=1e-6)
        cflow.save(flow, out / "model")
    # The exact values have many digits: the comparison is in float64.
    model = type(model)(*table(options))
    count = options.draws or (4000 if options.flow == "continuous" else 20_000)
    report, x, reference = measure(flow.double(), model, count, torch.Generator().manual_seed(options.seed + 1))
    picture(model, x, reference, out / "marginals.png")
    report |= {"steps": run.steps, "training_seconds": run.seconds}
    for line in lines(report):
        say(line)
    report["columns"] = model.names  # for cflow sample
    more = f"more draws: cflow sample {out} --num 1000 --output more.csv"
    end_run(out, report, started, ["marginals.png", "training.png"], more)


if __name__ == "__main__":
    run_recipe(main, Options, "variational.py")
