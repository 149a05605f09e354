"""Measure whether an expert can be trusted: what its search found, and how sure it is of what it says.

The formulas are those of METHOD, section 4 ("evidence"). What is not known is NaN, never a silent 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: of what an expert's search found for a post: entries that are read; the best score, its lead over the second, its
#: share of the score that the query can reach at most; share of the post's words that stand in a title; whether
#: nothing was found; whether the entries came without scores
SEARCH = ("entries", "best_score", "lead", "share_of_scale", "words_in_titles", "nothing_found", "without_scores")
#: of what an expert says of a post's words; see `of_chains`
CHAINS = ("entropy", "entity_entropy", "entity_maximum", "expected_entities", "best_path", "to_mean", "to_alone")
#: of what it says of one word
WORDS = ("entropy", "maximum", "entity_mass", "to_mean", "to_alone")
#: of what it says of a relation
CLASSES = ("entropy", "maximum", "to_mean", "to_alone")

NAN = float("nan")
LEAST_FOUND = 2  # entries that are searched at least, so that a lead is known where an expert reads one alone
_WORD = re.compile(r"\w+")


def of_search(
    words: Sequence[str], entries: Sequence[Mapping[str, Any]] | None, read: Sequence[int]
) -> tuple[list[float], list[bool]]:
    """Return `SEARCH` of an expert and post, and of each word whether it stands in the title of an entry read.

    Args:
        entries: the ranked entries that were found for the expert; None where it was given no list at all.
        read: the places of those of which something is read.
    """
    if entries is None:
        return [NAN] * len(SEARCH), [False] * len(words)
    found = [entries[place] for place in read]
    titles = {part for entry in found for part in _WORD.findall((entry.get("title") or "").casefold())}
    parts = [_WORD.findall(word.casefold()) for word in words]
    named = [bool(one) and titles.issuperset(one) for one in parts]
    spoken = sum(map(bool, parts))
    in_titles = sum(named) / spoken if spoken else 0.0
    # an entry that came without a score is stored with 0, which no search gives
    scores = [score for entry in found if (score := entry.get("score") or 0.0) != 0]
    best = max(scores, default=NAN)
    # what the best one leads before may have been found, but not be read
    others = sorted((entry.get("score") or 0.0 for entry in entries), reverse=True)
    scale = max((entry.get("scale") or 0.0 for entry in found), default=0.0)
    told = {
        "entries": float(len(found)),
        "best_score": best,
        "lead": best - others[1] if len(others) > 1 and others[1] != 0 else NAN,
        "share_of_scale": best / scale if scale > 0 else NAN,
        "words_in_titles": in_titles,
        "nothing_found": float(not found),
        "without_scores": float(bool(found) and not scores),
    }
    return [told[name] for name in SEARCH], named


def of_words_searched(search: Tensor, titles: Tensor | None, words: int) -> Tensor:
    """Return `SEARCH` of each word, [B, N, Z, 7], from that of posts [B, Z, 7]: a word stands in a title or not.

    Args:
        titles: [B, Z, N], True for words in the title of an entry read; default: not known.
    """
    found = search.unsqueeze(1).repeat(1, words, 1, 1)
    flags = NAN if titles is None else titles.transpose(1, 2).to(found.dtype)
    # of an expert that was given nothing, nothing is known of its words either
    found[..., SEARCH.index("words_in_titles")] = torch.where(found[..., 0].isnan(), NAN, flags)
    return found


def of_chains(
    log_probs: Tensor, alone: Tensor, best_path: Tensor, word_mask: Tensor, outside: int, begins: Sequence[int]
) -> Tensor:
    """Return `CHAINS` [B, Z, 7] of readings of the same posts.

    With q the marginals of a reading, H their entropy and m = 1 − q(O) the mass of entities at a word: the mean of H
    over the words, H and the highest q weighted by m, the expected number of entities, the log-probability of the best
    path, and the sums over the words of the Jensen–Shannon divergence to the mean of all readings and to the same
    expert's reading of the words alone.

    Args:
        log_probs: log q of each reading, [B, Z, N, L].
        alone: log q of the same experts without knowledge; NaN where they have no such reading.
        best_path: log-probability of each reading's best path, [B, Z].
        word_mask: [B, N], True where there is a word.
        outside: the label id of O; `begins`: those of labels with which an entity begins.
    """
    words = of_words(log_probs, alone, outside)
    entropy, maximum, mass, to_mean, to_alone = words.masked_fill(~word_mask[:, None, :, None], 0.0).unbind(-1)
    total = mass.sum(2)
    number = word_mask.sum(1, keepdim=True)
    starts = log_probs.exp()[..., list(begins)].sum(-1).masked_fill(~word_mask.unsqueeze(1), 0.0)
    weighted = [(mass * one).sum(2) / total.clamp_min(1e-6) for one in (entropy, maximum)]
    parts = [entropy.sum(2) / number, *weighted, starts.sum(2), best_path, to_mean.sum(2), to_alone.sum(2)]
    return torch.stack(parts, -1)


def of_words(log_probs: Tensor, alone: Tensor, outside: int) -> Tensor:
    """Return `WORDS` [B, Z, N, 5] of what readings say of each word, see `of_chains`."""
    entropy, maximum, to_mean, to_alone = of_classes(log_probs, alone).unbind(-1)
    return torch.stack([entropy, maximum, 1 - log_probs[..., outside].exp(), to_mean, to_alone], -1)


def of_classes(log_probs: Tensor, alone: Tensor) -> Tensor:
    """Return `CLASSES` [B, Z, …, 4] of distributions [B, Z, …, C]: entropy, highest probability, divergences."""
    probs = log_probs.exp()
    mean = (log_probs.logsumexp(1, keepdim=True) - torch.tensor(log_probs.shape[1]).log()).expand_as(log_probs)
    parts = [-_expected(probs, log_probs), probs.amax(-1), divergence(log_probs, mean), divergence(log_probs, alone)]
    return torch.stack(parts, -1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence, in nats, of distributions given as log-probabilities [..., C]."""
    log_middle = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
    # a label that is impossible in both has -inf - -inf
    left, right = (_expected(one.exp(), one - log_middle) for one in (log_p, log_q))
    return (left + right) / 2


def _expected(probs: Tensor, values: Tensor) -> Tensor:
    """Return Σ p · value over the last dimension, where what is impossible adds nothing."""
    return (probs * values.masked_fill(probs == 0, 0.0)).sum(-1)
