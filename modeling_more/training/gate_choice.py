"""This module chooses, by cross-validation on the gate's posts, what weighs a mixture's experts, and fits it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data_collator import pad_rows
from ..gate import Gate
from ..metrics import paired_bootstrap, standard_error
from .expert_outputs import Features, Mixture, mixed

logger = logging.getLogger(__name__)

FOLDS = 5
#: prior deviations of what a group of inputs adds to a log-weight, be they few or many
SPREADS = (0.3, 1.0, 3.0, 10.0)
CERTAIN = 1e4  # a log-weight below the others' by which a weight becomes exactly 0
EVIDENCE = ("scores", "confidence")

AVERAGE, BEST, TEMPERATURES = "average", "best expert", "average at temperatures"

#: of the mixture as it is, for some of the gate's posts: the counts of right, predicted and gold labels [posts, 3],
#: and the negative log-likelihood of their labels together, in nats
Score = Callable[[Sequence[int]], tuple[np.ndarray, float]]


@dataclass
class Candidate:
    """A way to weigh the experts, and how well it does on posts that it was not fitted to.

    Attributes:
        name: what the card calls it.
        inputs: what its gate reads; nothing for weights that are the same for all posts.
        f1: micro F1 in percent over all folds, each read by what was fitted to the others.
        nll: mean negative log-likelihood of a post there, in nats.
        spread: the prior deviation of its gate, one of `SPREADS`, by `nll`.
        minus_average: its F1 minus that of the plain average.
        behind: how far it lies behind the best candidate, and `standard_error` of that.
        chosen: whether it is what acts.
    """

    name: str
    inputs: tuple[str, ...] = ()
    f1: float = 0.0
    nll: float = 0.0
    spread: float | None = None
    minus_average: float = 0.0
    behind: float = 0.0
    standard_error: float = 0.0
    chosen: bool = False


def candidates_of(inputs: Sequence[str], images: bool, readers: int, temperatures: bool = True) -> list[Candidate]:
    """Return what is compared, the simplest first: the average, the best expert, and gates.

    Args:
        inputs: what `--gate_inputs` names, or `auto` for every choice.
        images: whether the gate may see images.
        temperatures: whether the experts read the gate's posts themselves, so that temperatures can be fitted.
    """
    if readers < 2:
        return [Candidate(AVERAGE)]
    paper = ("text", "image") if images else ("text",)
    choices = [("scores",), ("confidence",), EVIDENCE, paper, (*paper, *EVIDENCE)]
    if "auto" not in inputs:
        choices = [tuple(one for one in inputs if images or one != "image")]
    simple = [AVERAGE, BEST, *([TEMPERATURES] if temperatures else [])]
    return [*map(Candidate, simple), *(Candidate(f"gate: {', '.join(one)}", one) for one in choices)]


@dataclass
class GatePosts:
    """The posts that a gate is fitted to: what it reads of them, and how likely their labels are, padded.

    Attributes:
        inputs: by name, `text`, `scores` and `confidence`, [P, …] or, for a gate per word, [P, N, …].
        images: embeddings [P, D] and whether a post has one [P]; None without.
        likelihood: log q_z(y*_i) of each reader, [P, N, Z]; a relation counts as one word.
        mask: [P, N], True where there is a word.
        per_word: whether each word has weights of its own.
    """

    inputs: dict[str, Tensor]
    images: tuple[Tensor, Tensor] | None
    likelihood: Tensor
    mask: Tensor
    per_word: bool

    def select(self, rows: Sequence[int]) -> GatePosts:
        """Return some of the posts."""
        images = None if self.images is None else (self.images[0][rows], self.images[1][rows])
        inputs = {name: one[rows] for name, one in self.inputs.items()}
        return replace(self, inputs=inputs, images=images, likelihood=self.likelihood[rows], mask=self.mask[rows])

    def evidence(self, read: Sequence[str]) -> Tensor | None:
        """Return the evidence that a gate with these inputs reads."""
        parts = [self.inputs[name] for name in EVIDENCE if name in read]
        return torch.cat(parts, -1) if parts else None

    def standardise(self, gate: Gate, read: Sequence[str]) -> None:
        """Give the gate the means and deviations of what it reads of these posts."""
        given = [self.inputs["text"] if "text" in read else None, self.evidence(read)]
        text, evidence = (one[self.mask] if one is not None and self.per_word else one for one in given)
        gate.standardise(text, None if self.images is None else self.images[0][self.images[1]], evidence)

    def loss(self, gate: Gate, read: Sequence[str]) -> Tensor:
        """Return the mean over the posts of − Σ_i log Σ_z g_z q_z(y*_i)."""
        images = self.images if self.images is not None and "image" in read else (None, None)
        shape = self.mask.shape if self.per_word else self.mask.shape[:1]
        weights = gate(self.inputs["text"] if "text" in read else None, *images, self.evidence(read), shape)
        weights = weights if self.per_word else weights.unsqueeze(1)
        return -(weights + self.likelihood).logsumexp(-1).masked_fill(~self.mask, 0.0).sum(1).mean()


def known_of(model: Mixture, features: Features, labels: Sequence[Any]) -> tuple[GatePosts, Features]:
    """Return what gates read of posts, and the features with what the experts say, which is then computed once.

    Args:
        labels: for every post the label ids of its words, or the id of its relation.
    """
    number = len(model.config.readers)
    model.set_gate(EVIDENCE)
    said: list[Tensor] = []
    told: list[Tensor] = []
    for output, mask in mixed(model, features):
        assert output.evidence is not None
        lengths = mask.sum(1).tolist()
        for log_probs, evidence, length in zip(output.readings.cpu(), output.evidence.cpu(), lengths, strict=True):
            said.append(log_probs[:, :length] if log_probs.dim() == 3 else log_probs)
            told.append(evidence[:length] if evidence.dim() == 2 else evidence)
    dims = list(model.evidence_dims)
    scores, confidence = zip(*(one.split(dims, -1) for one in told), strict=True)
    rows = [
        one[:number, torch.arange(one.shape[1]), torch.tensor(label)].T
        if one.dim() == 3
        else one[None, :number, label]
        for one, label in zip(said, labels, strict=True)
    ]
    inputs = {"text": features.text, "scores": scores, "confidence": confidence}
    known = GatePosts(
        {name: pad_rows(one) for name, one in inputs.items()},
        features.images,
        pad_rows(rows),
        pad_rows([torch.ones(len(one), dtype=torch.bool) for one in rows]),
        model.config.gate == "word",
    )
    return known, replace(features, expert_log_probs=said, confidence=list(confidence))


def shuffled(known: GatePosts, features: Features, seed: int) -> tuple[GatePosts, Features]:
    """Return both with another post's evidence for each post: a control, in which evidence tells nothing."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).tolist()
    inputs = {name: one[order] if name in EVIDENCE else one for name, one in known.inputs.items()}
    lists = (features.search, features.confidence)
    search, confidence = (None if one is None else [one[row] for row in order] for one in lists)
    changed = replace(features, search=search, confidence=confidence)
    return replace(known, inputs=inputs), changed


class Choice:
    """The choice of what weighs the experts of a mixture, by its gate's posts.

    Args:
        known: what gates read of the posts, see `known_of`.
        folds: the fold of each post, which all rows of one post share.
        score: scores the mixture as it is on some of the posts.
        temperatures: fits a temperature for each expert to some of the posts.
        seed: of the vector that stands for a missing image.
    """

    def __init__(
        self, model: Mixture, known: GatePosts, folds: Sequence[int], score: Score,
        temperatures: Callable[[Sequence[int]], list[float]], seed: int,
    ) -> None:  # fmt: skip
        self.model, self.known, self.score, self.temperatures, self.seed = model, known, score, temperatures, seed
        self.number = len(folds)
        self.parts = [[row for row, one in enumerate(folds) if one == fold] for fold in sorted(set(folds))]

    def run(self, candidates: Sequence[Candidate], progress: bool = True) -> Candidate:
        """Return the simplest candidate whose F1 on held-out folds is the best one's within a standard error.

        The model keeps it, fitted to all posts. Breiman et al., Classification and Regression Trees, 1984, section
        3.4.3, have the one-standard-error rule. Every process does the same here.

        Args:
            candidates: the simplest first, the plain average at the beginning; what is found is written into them.
        """
        if len(self.parts) < 2:
            logger.warning("%d posts are too few to choose what weighs the experts: it is their average", self.number)
            candidates[0].chosen = True
            self.set(candidates[0], range(self.number))
            return candidates[0]
        counts = [self._cross_validate(one) for one in tqdm(candidates, desc="gates", disable=not progress)]
        best = max(range(len(candidates)), key=lambda place: candidates[place].f1)
        chosen = best
        for place in reversed(range(len(candidates))):
            one = candidates[place]
            one.minus_average = one.f1 - candidates[0].f1
            one.behind, low, high = paired_bootstrap(counts[best], counts[place])
            one.standard_error = standard_error(low, high)
            if place < best and one.behind <= one.standard_error:
                chosen = place
        candidates[chosen].chosen = True
        self.set(candidates[chosen], range(self.number))
        return candidates[chosen]

    def _cross_validate(self, candidate: Candidate) -> np.ndarray:
        """Fill in how a candidate does on each part when it is fitted to the others, and return the counts."""
        found: list[tuple[float, float | None, np.ndarray]] = []
        for spread in SPREADS if candidate.inputs else (None,):
            candidate.spread = spread
            nll, counts = 0.0, np.zeros((self.number, 3), dtype=np.int64)
            for part in self.parts:
                self.set(candidate, [row for other in self.parts if other is not part for row in other])
                counts[part], its = self.score(part)
                nll += its / self.number
            found.append((nll, spread, counts))
        candidate.nll, candidate.spread, rows = min(found, key=lambda one: one[0])
        candidate.f1 = _f1(rows)
        return rows

    def set(self, candidate: Candidate, rows: Iterable[int]) -> None:
        """Give the model what a candidate weighs by, fitted to some of the posts."""
        rows, model, images = list(rows), self.model, self.known.images
        torch.manual_seed(self.seed)
        model.config.temperatures = None
        seen = images[0].shape[1] if images is not None and "image" in candidate.inputs else 0
        gate = model.set_gate(candidate.inputs, seen)
        if candidate.inputs:
            fit_gate(gate, self.known.select(rows), candidate.inputs, model.evidence_dims, candidate.spread or 1.0)
        elif candidate.name == TEMPERATURES:
            model.config.temperatures = self.temperatures(rows)
        elif candidate.name == BEST:
            scores = []
            for place in range(len(gate.bias)):
                _only(gate, place)
                scores.append(_f1(self.score(rows)[0]))
            _only(gate, int(np.argmax(scores)))


def _f1(counts: np.ndarray) -> float:
    right, predicted, gold = counts.sum(0)
    return float(200 * right / max(1, predicted + gold))


@torch.no_grad()
def _only(gate: Gate, place: int) -> None:
    """Give all the weight to one reader."""
    gate.bias.fill_(-CERTAIN)
    gate.bias[place] = 0.0


def fit_gate(gate: Gate, posts: GatePosts, read: Sequence[str], dims: Sequence[int], spread: float) -> None:
    """Minimise the mixture's loss under a normal prior of the weights.

    A group of F inputs has the prior deviation spread / √F, so that what it adds to a log-weight varies alike whatever
    their number is.
    """
    device = gate.device
    gate.cpu()  # where the posts are; it takes seconds
    posts.standardise(gate, read)
    weights = [one for name, one in gate.named_parameters() if "_norm." not in name]
    groups = _groups(gate, dims)
    optimizer = torch.optim.LBFGS(weights, max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")
    gate.eval()

    def closure() -> float:
        optimizer.zero_grad()
        prior = torch.stack([number * part().square().sum() for number, part in groups]).sum()
        loss = posts.loss(gate, read) + prior / (2 * spread**2 * len(posts.mask))
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    if not all(bool(one.isfinite().all()) for one in weights):
        raise FloatingPointError("the gate's weights became NaN or infinite: are the experts' outputs finite?")
    gate.to(device)


def _groups(gate: Gate, dims: Sequence[int]) -> list[tuple[int, Callable[[], Tensor]]]:
    """Return the groups of weights, each with its number of inputs."""
    if gate.output is None:
        groups: list[tuple[int, Callable[[], Tensor]]] = [(1, lambda: gate.bias)]
    else:
        output = gate.output
        bounds = [output.in_features] if gate.hidden is not None else [gate.text_dim, gate.image_dim]
        groups = [(1, lambda: output.bias), *_columns(output.weight, bounds)]
    if gate.hidden is not None:
        groups += _columns(gate.hidden.weight, [gate.text_dim, gate.image_dim])
    if gate.evidence is not None:
        groups += _columns(gate.evidence.weight, dims)
    return groups


def _columns(weight: Tensor, numbers: Sequence[int]) -> list[tuple[int, Callable[[], Tensor]]]:
    """Return groups of so many columns each, those of none left out."""
    firsts = [sum(numbers[:place]) for place in range(len(numbers))]
    return [
        (number, lambda a=first, b=first + number: weight[:, a:b])  # type: ignore[misc]
        for first, number in zip(firsts, numbers, strict=True)
        if number
    ]
