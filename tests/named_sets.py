"""Data sets as a run loads them by their names."""

from typing import Any

from datasets import Dataset, DatasetDict

from modeling_more.data.tasks import ENTITIES, Task
from modeling_more.training.arguments import DataArguments
from modeling_more.training.posts import load_posts

Rows = list[dict[str, Any]]


def load_set(splits: dict[str, Dataset], schema: Task = ENTITIES, **options: Any) -> dict[str, Rows]:
    """The rows of a named set as a run loads them."""

    def load(name: str, retrieval: str, **more: Any) -> DatasetDict:
        return DatasetDict(splits)

    return load_posts(DataArguments(dataset="own", **options), schema, load, ["own"])[0]
