"""Make batches: a collator that pads encoded posts, and a sampler of posts of like length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .processing_mixture import MoReMixtureProcessor
from .processing_more import MoReProcessor

TEXT_ONLY = "text_only_"


class MoReDataCollator:
    """A collator that pads encoded posts, with `labels` and a second view (`text_only_*`) where they have them.

    A post has `labels`, one a word, or the `label` of its relation. `index` [B], the row of each post in its data set,
    travels along, so that results can be put in order again.
    """

    def __init__(self, processor: MoReProcessor):
        self.processor = processor

    def __call__(self, posts: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.processor.pad(posts)
        batch["index"] = torch.tensor([post["index"] for post in posts])
        if "label" in posts[0]:
            batch["labels"] = torch.tensor([post["label"] for post in posts])
        elif "labels" in posts[0]:
            labels = torch.zeros_like(batch["word_positions"])
            for row, post in enumerate(posts):
                labels[row, : len(post["labels"])] = torch.tensor(post["labels"])
            batch["labels"] = labels
        if TEXT_ONLY + "input_ids" in posts[0]:
            fields = ("input_ids", "word_rows", "word_positions")
            view = self.processor.pad([{field: post[TEXT_ONLY + field] for field in fields} for post in posts])
            for field in ("input_ids", "attention_mask", "word_positions", "word_rows"):
                if field in view:
                    batch[TEXT_ONLY + field] = view[field]
        return batch


class MixtureCollator:
    """A collator that pads posts of `encode_for_experts`, with labels and images where they have them."""

    def __init__(self, processor: MoReMixtureProcessor):
        self.processor = processor

    def __call__(self, posts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        padded = self.processor.pad(posts)
        # plain dictionaries: that is what moves between devices
        batch: dict[str, Any] = {
            "index": torch.tensor([post["index"] for post in posts]),
            "experts": [dict(inputs) for inputs in padded["experts"]],
            "alone": [dict(inputs) for inputs in padded["alone"]],
            "text_only": dict(padded["text_only"]),
            **{key: padded[key] for key in ("word_mask", "search_evidence", "title_words")},
        }
        if "labels" in posts[0]:
            batch["labels"] = pad_rows([torch.tensor(post["labels"]) for post in posts])
        if "image" in posts[0]:
            batch["image_features"] = torch.stack([post["image"] for post in posts])
            batch["image_mask"] = torch.stack([post["has_image"] for post in posts])
        return batch


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Return rows [n, …] of different n as one tensor, zeros behind; rows of one shape are stacked."""
    if rows[0].dim() == 0 or len({row.shape for row in rows}) == 1:
        return torch.stack(list(rows))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


class BatchShare(NamedTuple):
    """A batch's share in its optimizer step.

    Attributes:
        rows: number of rows in the batch.
        posts: number of rows that count: none, where the batch only evens out the processes.
        scale: factor of the batch's mean loss, with which the mean over the step's batches is that over its posts.
    """

    rows: int
    posts: int
    scale: float

    def check(self, index: torch.Tensor) -> None:
        """Raise RuntimeError where a batch with these rows is another one than was planned."""
        if len(index) != self.rows:
            raise RuntimeError("the batches are dealt out in another way than planned: use make_accelerator")


class LengthBatchSampler(Sampler[list[int]]):
    """A batch sampler that puts rows of like length together, in an order that depends on seed and epoch alone.

    The rows are shuffled, sorted by length inside pools of `pool` batches, cut in batches, and the batches shuffled.

    Args:
        lengths: number of sub-tokens of each row.
        batch_size: rows of a batch, unless `max_tokens` is given.
        max_tokens: padded sub-tokens of a batch (rows × longest row); a longer row is a batch of its own.
        seed: seed of the order.
        by_length: whether to sort by length at all; if not, rows are shuffled and cut.
        pool: number of batches that are sorted together.
        multiple_of: number of processes: batches are repeated until each has as many.
    """

    # what accelerate asks of a batch sampler. No fixed size: it would hold back, and lose, a short batch that stands
    # before the end when it deals the batches out to several processes
    drop_last = False
    batch_size = None

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        max_tokens: int | None = None,
        seed: int = 0,
        by_length: bool = True,
        pool: int = 50,
        multiple_of: int = 1,
    ):
        if not lengths:
            raise ValueError("there are no rows to make batches of")
        self.lengths = lengths
        self.rows_per_batch = batch_size
        self.max_tokens = max_tokens
        self.seed = seed
        self.by_length = by_length
        self.pool = pool
        self.multiple_of = multiple_of
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Make the batches of this epoch."""
        self.epoch = epoch
        self.batches = self._make_batches(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def batches_in(self, epochs: int) -> list[int]:
        """Return the number of batches of each of the first `epochs` epochs, which differ under a token budget."""
        if self.max_tokens is None:
            return [len(self)] * epochs
        return [len(self._make_batches(epoch)) for epoch in range(epochs)]

    def shares(self, per_step: int) -> list[BatchShare]:
        """Return the share of each batch of this epoch, where `per_step` batches in a row make an optimizer step."""
        once = len(self.batches) - self.repeated
        found = []
        for first in range(0, len(self.batches), per_step):
            batches = self.batches[first : first + per_step]
            posts = [len(batch) if first + place < once else 0 for place, batch in enumerate(batches)]
            # exactly 1 for equal batches: nothing is rounded there
            scales = [number * per_step / sum(posts) for number in posts]
            found += [BatchShare(len(b), n, s) for b, n, s in zip(batches, posts, scales, strict=True)]
        return found

    def _make_batches(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.by_length:
            size = self.pool * self.rows_per_batch
            pools = [order[i : i + size] for i in range(0, len(order), size)]
            order = [row for pool in pools for row in sorted(pool, key=lambda row: self.lengths[row])]
        batches = self._cut(order)
        if self.by_length:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        lacking = -len(batches) % self.multiple_of
        self.repeated = lacking
        return batches + [batches[number % len(batches)] for number in range(lacking)]

    def _cut(self, order: list[int]) -> list[list[int]]:
        if self.max_tokens is None:
            return [order[i : i + self.rows_per_batch] for i in range(0, len(order), self.rows_per_batch)]
        batches: list[list[int]] = []
        longest = 0
        for row in order:
            longest = max(longest, self.lengths[row])
            if batches and longest * (len(batches[-1]) + 1) <= self.max_tokens:
                batches[-1].append(row)
            else:
                batches.append([row])
                longest = self.lengths[row]
        return batches
