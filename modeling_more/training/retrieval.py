"""This module retrieves from `--knowledge`, as the options say, to fill the knowledge column of the posts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict, Features, List, Value

from ..posts import Posts
from .arguments import RETRIEVERS, DataArguments
from .checks import MILVUS, check_retrieval

if TYPE_CHECKING:
    from ..knowledge.attach import TextRetriever

logger = logging.getLogger(__name__)

Splits = dict[str, Dataset]
Query = Callable[[dict[str, Any]], str]


def knowledge_column(retrieval: str) -> str | None:
    """Return the column that a kind of retrieval fills and its expert reads, or None for `none`."""
    return None if retrieval == "none" else f"knowledge_{retrieval}"


def add_knowledge(args: DataArguments, splits: Splits) -> tuple[Splits, dict[str, Any]]:
    """Add knowledge from `--knowledge` to the splits; without it, check that they have a knowledge column already.

    Returns:
        the splits with the column, and a report: options, the counts of `AttachReport`, and for some queries the
        number of posts without a caption or predictions.
    """
    check_retrieval(args)
    if args.knowledge:
        retrieve = _by_image if args.retrieval == "image" else _by_text
        return retrieve(args, splits, str(knowledge_column(args.retrieval)))
    for split, data in splits.items():
        check_column(args, split, data.column_names)
    return splits, {}


def check_column(args: DataArguments, split: str, columns: Iterable[str]) -> None:
    """Raise ValueError if posts with these columns lack that of knowledge although nothing is retrieved."""
    check_retrieval(args)
    column = str(knowledge_column(args.retrieval))
    if column not in columns:
        raise ValueError(
            f"--retrieval {args.retrieval} needs knowledge, but the {split} posts have no column {column}: "
            "give --knowledge FILE …, or posts published with their knowledge"
        )


def _by_text(args: DataArguments, splits: Splits, column: str) -> tuple[Splits, dict[str, Any]]:
    from ..knowledge import attach_text_knowledge  # here, because it takes seconds that other runs save
    from ..knowledge.attach import post_text

    query: Query = post_text
    found: dict[str, int] = {}
    if args.query == "caption":
        query, found = _caption_query(str(args.captions), splits)
    elif args.query == "entities":
        query, found = _entity_query(args.entities, splits)
    attached, report = attach_text_knowledge(
        DatasetDict(splits), _text_retriever(args), args.top_k, column, args.cache_dir, query
    )
    return dict(attached), {"retriever": args.retriever, "query": args.query, **found, **asdict(report)}


def _text_retriever(args: DataArguments) -> TextRetriever:
    from ..knowledge import load_knowledge

    if args.knowledge[0].startswith(MILVUS):
        from ..knowledge.milvus import MilvusTextRetriever

        return MilvusTextRetriever(args.knowledge[0])
    corpus = load_knowledge(args.knowledge, args.cache_dir, args.title_in_key)
    if args.title_in_key and not corpus.info.title_in_key:
        raise ValueError(
            f"--title_in_key: {', '.join(args.knowledge)} was saved with keys without the title; build it from files"
        )
    if args.query == "entities":
        from ..knowledge.entities import EntityRetriever

        return EntityRetriever.from_corpus(corpus)
    if args.retriever not in RETRIEVERS:
        found: TextRetriever = _own_class(args.retriever).from_corpus(corpus)
        return found
    from ..knowledge import BM25Retriever

    if args.retriever == "bm25":
        return BM25Retriever.from_corpus(corpus)
    from ..knowledge.dense import DenseRetriever, FusedRetriever

    dense = DenseRetriever.from_corpus(corpus, args.text_model)
    return dense if args.retriever == "dense" else FusedRetriever([BM25Retriever.from_corpus(corpus), dense])


def _own_class(told: str) -> Any:
    """Return the class that `--retriever FILE.py:CLASS` names; its file runs, as the user asked."""
    file, _, name = told.rpartition(":")
    spec = spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None  # of a .py file there always is
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(getattr(module, name, None), "from_corpus"):
        raise ValueError(f"--retriever {told}: {file} has no class {name} with a method from_corpus(corpus)")
    return getattr(module, name)


def _by_image(args: DataArguments, splits: Splits, column: str) -> tuple[Splits, dict[str, Any]]:
    from ..knowledge import ImageEncoder, ImageRetriever, attach_image_knowledge, load_knowledge
    from ..knowledge.attach import ImageSearch
    from ..knowledge.pictures import require_images

    if args.image_dir is not None:  # before the corpus is embedded, which takes long
        ids = {split: list(data["image_id"]) for split, data in splits.items() if "image_id" in data.column_names}
        require_images(args.image_dir, ids)
    encoder = ImageEncoder(args.image_model)
    retriever: ImageSearch
    if args.knowledge[0].startswith(MILVUS):
        from ..knowledge.milvus import MilvusImageRetriever

        retriever = MilvusImageRetriever(args.knowledge[0], encoder)
    else:
        retriever = ImageRetriever.from_corpus(load_knowledge(args.knowledge, args.cache_dir), encoder)
    attached, report = attach_image_knowledge(
        DatasetDict(splits), retriever, args.top_k, column, args.image_dir, args.cache_dir
    )
    return dict(attached), asdict(report)


def _caption_query(file: str, splits: Splits) -> tuple[Query, dict[str, int]]:
    """Return a function from a post to its query, its image's caption (empty if it has none), and counts."""
    from ..knowledge.captions import degenerate_captions, image_key, read_captions

    captions = read_captions(file)
    repeated, shared = degenerate_captions(captions)

    def query(row: dict[str, Any]) -> str:
        return captions.get(image_key(row["image_id"] or ""), "")

    without = 0
    for split, data in splits.items():
        if "image_id" not in data.column_names:
            raise ValueError(f"--query caption: the {split} posts have no column image_id to find their captions by")
        without += sum(not query({"image_id": image}) for image in data["image_id"])
    posts = sum(map(len, splits.values()))
    if without == posts:
        raise ValueError(f"--query caption: {file} has no caption for any of the {posts} posts")
    if without:
        logger.warning("%d of %d posts have no caption in %s and get no knowledge.", without, posts, file)
    counts = {"captions": len(captions), "posts_without_caption": without}
    return query, counts | {"captions_repeating_words": repeated, "captions_shared_by_many": shared}


def _entity_query(files: list[str], splits: Splits) -> tuple[Query, dict[str, int]]:
    """Return a function from a post to its query, its words and its predicted entities (for titles), and counts."""
    from ..knowledge.attach import post_text
    from ..knowledge.entities import entity_query, read_predictions

    predictions = read_predictions(files)

    def query(row: dict[str, Any]) -> str:
        found = predictions.get(row["id"])
        return entity_query(post_text(row), found.entities if found else [])

    without = entities = 0
    for split, data in splits.items():
        if "id" not in data.column_names:
            raise ValueError(f"--query entities: the {split} posts have no column id to find their predictions by")
        for post, tokens in zip(data["id"], data["tokens"], strict=True):
            found = predictions.get(post)
            if found and found.tokens is not None and found.tokens != tokens:
                raise ValueError(f"{found.where}: these are not the words of {split} post {post}; whose file is it?")
            without += found is None
            entities += len(found.entities) if found else 0
    for split, data in splits.items():
        if len(data) and not any(post in predictions for post in data["id"]):
            raise ValueError(
                f"--query entities: {', '.join(files)} has predictions for none of the {len(data)} {split} posts; all "
                "splits need them, those of training by models that did not train on them"
            )
    posts = sum(map(len, splits.values()))
    if without:
        logger.warning("%d of %d posts have no predicted entities: their words alone are searched.", without, posts)
    return query, {"predicted_entities": entities, "posts_without_predictions": without}


def searchable(posts: Posts, columns: Container[str] | None = None) -> Dataset:
    """Return what retrieval may see of rows, never labels: words, and the ids among `columns` (default: all)."""
    names = [name for name in ("id", "image_id") if columns is None or name in columns]
    kinds = {name: Value("string") for name in names} | {"tokens": List(Value("string"))}
    return Dataset.from_dict({name: [post[name] for post in posts] for name in kinds}, Features(kinds))


def retrieved(data: DataArguments, posts: Posts) -> list[Any]:
    """Return the knowledge that `--retrieval` finds for posts without labels; a post without words gets none."""
    filled = [post for post in posts if post["tokens"]]
    if not filled:
        return [[] for _ in posts]
    attached, _ = add_knowledge(data, {"predict": searchable(filled)})
    found = iter(attached["predict"][str(knowledge_column(data.retrieval))])
    return [next(found) if post["tokens"] else [] for post in posts]
