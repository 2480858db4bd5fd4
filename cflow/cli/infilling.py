"""Sentences with blanks, as the tokens that ``flow.infill`` takes."""

from __future__ import annotations

import itertools
import sys

import torch
from torch import Tensor

from cflow.cli.outputs import alphabet_of
from cflow.data.faults import counted

__all__ = ["sentence_of"]


def sentence_of(flow, text: str, blank: str, device: str) -> tuple[Tensor, Tensor]:
    """Encodes a sentence with blanks: ``(tokens [L], fixed [L])``. A blank is one token.

    A sentence that is shorter than the samples of the flow gets blanks at its end, which is printed.

    Args:
        flow: a flow with an alphabet.
        text: the sentence.
        blank: the character that marks a blank.
        device: the device of the tokens.

    Raises:
        ValueError: for a flow without an alphabet, a character outside the alphabet, a sentence that is too long, and
            one without blanks.
    """
    alphabet, shown = alphabet_of(flow), text if len(text) <= 40 else text[:37] + "..."
    if alphabet is None or len(flow.event_shape) != 1:
        raise ValueError(f"--infill {shown!r}: this flow has no alphabet for texts; call flow.infill in Python.")
    if len(blank) != 1:
        raise ValueError(f"--blank {blank!r}: a blank is marked by one character; pass one, such as _.")
    for place, each in enumerate(text):
        if each != blank and not _is_known(alphabet, each):
            advice = f"write {each.swapcase()!r}" if _is_known(alphabet, each.swapcase()) else "replace it"
            raise ValueError(
                f"--infill {shown!r}: {each!r} at position {place} is not in the alphabet of this flow (see `cflow "
                f"info`); {advice}."
            )
    parts = [torch.empty(0, dtype=torch.int64)]
    for marked, run in itertools.groupby(text, lambda each: each == blank):
        run = "".join(run)
        parts.append(torch.full((len(run),), -1) if marked else alphabet.encode(run))
        if not marked and (again := alphabet.decode(parts[-1])) != run:
            print(f"--infill: the alphabet of this flow changes {run!r} to {again!r}", file=sys.stderr)
    tokens, (length,) = torch.cat(parts), flow.event_shape
    more = length - len(tokens)
    if more < 0:
        raise ValueError(
            f"--infill {shown!r}: these are {len(tokens)} tokens, and the samples of this flow have {length}; shorten "
            f"the sentence."
        )
    if more:
        said = f"the sentence has {counted(len(tokens), 'token')}, and the samples {length}: {counted(more, 'blank')} "
        print(f"--infill: {said}{'is' if more == 1 else 'are'} added at the end", file=sys.stderr)
    tokens = torch.cat([tokens, torch.full((more,), -1)])
    fixed = tokens >= 0
    if fixed.all():
        raise ValueError(f"--infill {shown!r}: there are no blanks to fill; mark each by {blank} (or see --blank).")
    return tokens.clamp(min=0).to(device), fixed.to(device)


def _is_known(alphabet, text: str) -> bool:
    try:
        alphabet.encode(text)
    except ValueError:
        return False
    return True
