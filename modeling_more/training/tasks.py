"""What tells the two tasks from each other: their data, models and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from ..data.sources import Posts, Schema
from ..modeling_more import MoRePreTrainedModel
from ..pipelines import EncodedPost
from ..processing_more import MoReProcessor
from .arguments import DataArguments, ModelArguments

Prediction = Any  # what a task predicts for a post: tags with span scores, or probabilities of relations


class Task(ABC):
    """What tells a task from the other: its data, its model and its scores."""

    script: str
    pipeline_tag: str
    schema: Schema
    model_class: type[MoRePreTrainedModel]
    mixture_class: Any
    markers = False
    #: scores that are logged at the end, besides dev_f1 and test_f1
    shown: tuple[str, ...] = ()

    @abstractmethod
    def labels(self, types: Sequence[str], data: DataArguments) -> list[str]:
        """The model's labels, in their order."""

    @abstractmethod
    def model_options(
        self, args: ModelArguments, data: DataArguments, posts: Posts, labels: list[str]
    ) -> dict[str, Any]:
        """Fields of the configuration besides those that both tasks have; `posts` are those of the training split."""

    @abstractmethod
    def read_posts(self, path: str, splitter: str, column: str, columns: Sequence[int] | None = None) -> Posts:
        """Posts without labels, to predict on; knowledge that belongs to no column by name goes to `column`.

        `columns` are those of words and labels in CoNLL, see `read_conll`.
        """

    @abstractmethod
    def predict(
        self, model: torch.nn.Module, encoded: Sequence[EncodedPost], processor: MoReProcessor,
        accelerator: Accelerator, batch_size: int, description: str,
    ) -> list[Prediction]:  # fmt: skip
        """A prediction for every encoded post, in their order."""

    @abstractmethod
    def score(self, model: Any, found: Sequence[Prediction], posts: Posts, data: DataArguments) -> dict[str, Any]:
        """Scores of these predictions; `f1` chooses the epoch."""

    @abstractmethod
    def counts(self, model: Any, found: Sequence[Prediction], posts: Posts, data: DataArguments) -> Any:
        """int [posts, 3]: what is right, predicted, and in the reference, for the bootstrap."""

    @abstractmethod
    def record(self, model: Any, found: Prediction, post: dict[str, Any]) -> dict[str, Any]:
        """The row of a post in the predictions file, without `gold` where its labels are hidden."""
