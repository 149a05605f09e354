"""Tell which sub-tokens an encoder can read, and how many: in a row no more than it has positions, and at once."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from .loading import readable

#: the tables of absolute positions, by the names that transformers gives them; relative positions have others
_TABLE = re.compile(r"(?:^|\.)(?:(?:char_)?position_embeddings?|embed_positions|positions_embed|wpe)$")
#: towers of models that see or hear as well
_NO_TEXT = re.compile(r"vision|visual|image|audio")

TOKENS_AT_ONCE = 32_768  # padded sub-tokens that an encoder reads at once when no gradient is needed


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


def sketched(config: Any, name: Any = "the configuration") -> nn.Module:
    """Return the encoder of this configuration without weights, to ask how much it reads.

    Raises:
        ValueError: no encoder can be made of it; the message names the model.
    """
    with readable(name), torch.random.fork_rng(devices=[]), torch.device("meta"):
        encoder: nn.Module = AutoModel.from_config(copy.deepcopy(config))
    for module in encoder.modules():
        if hasattr(module, "position_embeddings") and getattr(module, "padding_idx", 0) is None:
            raise ValueError(
                f"{name} can't be used: its positions count from a padding token, its pad_token_id is None"
            )
    return encoder


def embeddings_of(encoder: Any) -> int | None:
    """Return the number of ids of sub-tokens that an encoder has embeddings of; None if it does not tell."""
    try:
        number = encoder.get_input_embeddings().num_embeddings
    except (NotImplementedError, AttributeError):
        return None
    return int(number)


def check_ids(largest: int, encoder: Any, whose: str = "the encoder") -> None:
    """Raise ValueError if a tokenizer gives ids that an encoder has no embeddings of: on a GPU they end the process.

    Args:
        largest: the largest id that the tokenizer gives.
    """
    number = embeddings_of(encoder)
    if number is not None and largest >= number:
        raise ValueError(
            f"the tokenizer gives ids up to {largest}, {whose} has {number} embeddings: use the tokenizer that was "
            f"saved with the model, or give the model more by resize_token_embeddings({largest + 1}) and train them"
        )


def rows_at_once(encoder: nn.Module, rows: int, width: int) -> int:
    """Return how many of some rows with `width` sub-tokens an encoder should read at once, without gradients.

    All, where processes share its weights (FSDP, DeepSpeed): they must run it equally often, or wait for ever.
    """
    some = max(1, TOKENS_AT_ONCE // width)
    if rows <= some:
        return rows
    wrapped = any(name in type(module).__name__ for module in encoder.modules() for name in ("FSDP", "FullySharded"))
    return rows if wrapped or any(hasattr(one, "ds_id") for one in encoder.parameters()) else some
