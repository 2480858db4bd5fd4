"""An autoregressive transformer on the same tokens, next to which ``text.py`` shows its flow."""

import torch
from torch import Tensor
from torch.nn import functional as F

import cflow


@cflow.register("recipes.Autoregressive")
class Autoregressive(cflow.BaseFlow):
    """Predicts every token from those before it; its likelihood is exact.

    Args:
        network: a causal network on tokens, with one state more than the vocabulary: the start of a row.

    Cost: one evaluation of the network for a likelihood, and one for each token of a row for samples.
    """

    likelihood = "exact"
    options = {"sample": ("temperature",), "log_prob": ()}

    def __init__(self, network: torch.nn.Module):
        super().__init__(network.event_shape)
        self.network = network

    def preprocess(self, x: Tensor, context=None, *, generator=None) -> tuple[Tensor, float]:
        """Returns tokens as int64."""
        return x.long(), 0.0

    def logits(self, x: Tensor) -> Tensor:
        """Computes the logits of each token of ``x [B, L]`` given those before it, ``[B, L, K]``."""
        shifted = F.pad(x[:, :-1], (1, 0), value=self.network.vocabulary)
        return self.network(torch.zeros((), device=x.device), shifted)

    def _log_prob(self, x, context, generator):
        x = x.long()
        return self.logits(x).log_softmax(-1).gather(-1, x.unsqueeze(-1)).flatten(1).sum(1)

    def _sample(self, count, context, generator, *, temperature=1.0):
        x = torch.zeros((count, *self.model_shape), dtype=torch.int64, device=self.device)
        for place in range(x.shape[1]):
            probs = (self.logits(x)[:, place].double() / temperature).softmax(-1)
            x[:, place] = torch.multinomial(probs, 1, generator=generator).squeeze(1)
        return x
