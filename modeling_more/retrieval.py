"""From `--knowledge` and its options to the knowledge column of the posts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from datasets import Dataset, DatasetDict

from .arguments import DataArguments


def knowledge_column(retrieval: str) -> str | None:
    """The column that a retrieval fills and an expert reads."""
    return None if retrieval == "none" else f"knowledge_{retrieval}"


def add_knowledge(args: DataArguments, splits: dict[str, Dataset]) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Retrieve from `--knowledge` where it is given; else the splits must hold the column already."""
    column = str(knowledge_column(args.retrieval))
    if args.knowledge:
        # here, because it takes seconds that other runs need not wait
        from .knowledge import BM25Retriever, attach_text_knowledge, load_knowledge

        if args.retrieval == "image":
            raise ValueError(
                "--knowledge is searched by text so far: for --retrieval image give posts with the column"
            )
        retriever = BM25Retriever.from_corpus(load_knowledge(args.knowledge, cache_dir=args.cache_dir))
        attached, report = attach_text_knowledge(
            DatasetDict(splits), retriever, top_k=args.top_k, column=column, cache_dir=args.cache_dir
        )
        return dict(attached), asdict(report)
    for split, data in splits.items():
        if column not in data.column_names:
            raise ValueError(
                f"--retrieval {args.retrieval} needs knowledge, but the {split} posts have no column {column}: "
                "give --knowledge FILE …, or posts published with their knowledge"
            )
    return splits, {}
