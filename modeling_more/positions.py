"""Tell how many sub-tokens an encoder can read: no more than its table of positions has rows."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

#: the tables of absolute positions, by the names that transformers gives them; relative positions have others
_TABLE = re.compile(r"(?:^|\.)(?:(?:char_)?position_embeddings?|embed_positions|positions_embed|wpe)$")
#: towers of models that see or hear as well
_NO_TEXT = re.compile(r"vision|visual|image|audio")


def position_limit(encoder: nn.Module) -> int | None:
    """Return the number of sub-tokens, special ones included, that an encoder reads at most.

    It is None where positions are relative or computed, as in T5, ModernBERT, or DeBERTa without
    `position_biased_input`. A table with a padding row counts from the row after it: of the 514 rows of RoBERTa and
    XLM-R 512 can be used.
    """
    limits = []
    for name, module in encoder.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 2 and _TABLE.search(name) and not _NO_TEXT.search(name):
            padding = getattr(module, "padding_idx", None)
            limits.append(len(weight) - (0 if padding is None else padding + 1))
    if not limits:
        return None
    # some tables have rows beside those of the positions
    named = getattr(encoder.config, "max_position_embeddings", None)
    return min([*limits, named] if isinstance(named, int) and named > 0 else limits)


def position_limit_of(config: Any) -> int | None:
    """Return the `position_limit` of the encoder of this configuration, without loading it."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return position_limit(AutoModel.from_config(copy.deepcopy(config)))
