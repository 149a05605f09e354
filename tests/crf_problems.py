"""Small problems for the CRF, and everything about them from the list of all paths."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_more.crf import LinearChainCRF

NAMES = ("start_transitions", "transitions", "end_transitions")


class Problem(NamedTuple):
    crf: LinearChainCRF
    emissions: Tensor
    mask: Tensor
    tags: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.emissions, *(getattr(self.crf, name) for name in NAMES)

    @property
    def lengths(self) -> list[int]:
        return self.mask.sum(1).tolist()


def make(
    num_tags: int = 4,
    lengths: tuple[int, ...] = (6, 1, 3, 5, 2, 4),
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """Scores uniform within ±scale."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return ((torch.rand(*shape, generator=generator) * 2 - 1) * scale).to(dtype)

    crf = LinearChainCRF(num_tags).to(dtype)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(uniform(*parameter.shape))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    tags = torch.randint(num_tags, mask.shape, generator=generator)
    return Problem(crf, uniform(*mask.shape, num_tags).requires_grad_(), mask, tags)


class Enumeration:
    """Everything about one sentence from the list of all its paths, in float64."""

    def __init__(self, problem: Problem, row: int) -> None:
        self.length = problem.lengths[row]
        emissions = problem.emissions[row, : self.length].double()
        start, transitions, end = (getattr(problem.crf, name).double() for name in NAMES)
        tags = emissions.shape[1]
        self.paths = torch.tensor(list(product(range(tags), repeat=self.length)))
        self.scores = start[self.paths[:, 0]] + end[self.paths[:, -1]]
        self.scores = self.scores + emissions[torch.arange(self.length), self.paths].sum(1)
        self.scores = self.scores + transitions[self.paths[:, :-1], self.paths[:, 1:]].sum(1)
        self.log_z = self.scores.logsumexp(0)
        has = self.paths.unsqueeze(-1) == torch.arange(tags)
        self.log_q = self.scores[:, None, None].masked_fill(~has, float("-inf")).logsumexp(0) - self.log_z
        self.best = torch.argsort(self.scores, descending=True).tolist()

    def log_likelihood(self, tags: Tensor) -> Tensor:
        return self.scores[(self.paths == tags[: self.length]).all(1)].squeeze(0) - self.log_z

    def span(self, start: int, end: int, tag_ids: list[int]) -> Tensor:
        has = (self.paths[:, start:end] == torch.tensor(tag_ids)).all(1)
        return (self.scores[has] - self.log_z).exp().sum()


def rows(problem: Problem) -> Iterator[tuple[int, Enumeration]]:
    for row in range(len(problem.mask)):
        yield row, Enumeration(problem, row)


def gradients(value: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True)


def assert_all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=atol, rtol=0)
