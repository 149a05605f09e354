"""This module retrieves from `--knowledge`, as the options say, to fill the knowledge column of the posts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from ..posts import Posts
from ..provenance import HubName, remember_places
from ..retrieval_settings import ENCODERS, SEARCHES, RetrievalSettings
from .arguments import DataArguments
from .checks import check_retrieval

logger = logging.getLogger(__name__)

Splits = dict[str, Dataset]
Query = Callable[[dict[str, Any]], str]
GIVEN = "given_entities"  # column of the entities of pairs, in what retrieval sees


def knowledge_column(retrieval: str) -> str | None:
    """Return the column that a kind of retrieval fills and its expert reads, or None for `none`."""
    return None if retrieval == "none" else f"knowledge_{retrieval}"


def makes_predictions(args: DataArguments) -> bool:
    """Return whether a run by `run_ner.py` has to predict itself the entities that it searches for."""
    return args.query == "entities" and not args.entities


def wanted(args: DataArguments, fingerprint: str = "") -> RetrievalSettings:
    """Return the settings of the retrieval that the options ask for; `fingerprint` is that of the corpus searched."""
    dense = args.retrieval == "text" and args.retriever in ("dense", "both")
    own = args.retriever if args.retriever in SEARCHES else Path(args.retriever).name
    return RetrievalSettings(
        kind=args.retrieval,
        corpora=list(args.knowledge),
        fingerprint=fingerprint,
        retriever=own,
        query=args.query,
        title_in_key=args.title_in_key,
        text_model=args.text_model if dense else None,
        image_model=args.image_model if args.retrieval == "image" else None,
    )


def retrieval_of_run(args: DataArguments, report: Mapping[str, Any]) -> RetrievalSettings | None:
    """Return the settings of a run's retrieval, which its model keeps; None if posts came with their knowledge.

    Where the corpus lies on this machine is remembered: the model tells its fingerprint alone.

    Args:
        report: what `add_knowledge` returned.
    """
    if "corpus" not in report:
        return None
    settings = wanted(args, report["corpus"])
    if not any(isinstance(one, HubName) for one in args.knowledge):  # else somebody else says where it lies
        remember_places(settings.fingerprint, args.knowledge)
    return settings


def options_of(settings: RetrievalSettings, data: DataArguments) -> DataArguments | None:
    """Return the options that retrieve as a saved model was trained; None where its corpus is not known here.

    Args:
        data: options of this run; those of the retrieval that it gives come first.
    """
    sources = settings.sources(data.knowledge)
    if sources is None:
        return None
    encoders = {name: getattr(settings, name) for name in ENCODERS if getattr(settings, name) is not None}
    given = {name: getattr(data, name) for name in encoders if getattr(data, name) != getattr(DataArguments, name)}
    searched = {name: getattr(settings, name) for name in ("retriever", "query", "title_in_key")}
    if settings.query == "caption" and data.captions is None:
        raise ValueError("the expert searched by caption: give those of these posts by --captions FILE")
    if (own := searched["retriever"]) not in SEARCHES:
        if Path(data.retriever).name != own:
            raise ValueError(f"the expert searched by code of its own: give --retriever {own}, with the file's place")
        searched["retriever"] = data.retriever
    return replace(data, retrieval=settings.kind, knowledge=sources, **searched, **encoders | given)


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
    from ..knowledge.online import corpus_fingerprint, open_text_retriever

    query: Query = post_text
    found: dict[str, int] = {}
    if args.query == "caption":
        query, found = _caption_query(str(args.captions), splits)
    elif args.query == "entities":
        query, found = _entity_query(args.entities, splits) if args.entities else (_given_query(splits), {})
    own_class = None if args.retriever in SEARCHES else _own_class(args.retriever)
    retriever = open_text_retriever(wanted(args), args.knowledge, args.cache_dir, own_class)
    attached, report = attach_text_knowledge(DatasetDict(splits), retriever, args.top_k, column, args.cache_dir, query)
    told = {"corpus": corpus_fingerprint(retriever), "retriever": args.retriever, "query": args.query}
    return dict(attached), {**told, **found, **asdict(report)}


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
    from ..knowledge import attach_image_knowledge
    from ..knowledge.online import corpus_fingerprint, open_image_retriever
    from ..knowledge.pictures import require_images

    if args.image_dir is not None:  # before the corpus is embedded, which takes long
        ids = {split: list(data["image_id"]) for split, data in splits.items() if "image_id" in data.column_names}
        require_images(args.image_dir, ids)
    retriever = open_image_retriever(wanted(args), args.knowledge, args.cache_dir)
    attached, report = attach_image_knowledge(
        DatasetDict(splits), retriever, args.top_k, column, args.image_dir, args.cache_dir
    )
    return dict(attached), {"corpus": corpus_fingerprint(retriever), **asdict(report)}


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


def _given_query(splits: Splits) -> Query:
    """Return a function from a post to its query, its words and the entities whose relation is asked (for titles)."""
    from ..knowledge.attach import post_text
    from ..knowledge.entities import entity_query

    if not all(GIVEN in data.column_names for data in splits.values()):
        raise ValueError(
            "--query entities: nothing is trained here that could predict them: give --entities FILE …, or, to "
            "predict with a model that searches so, leave out --retrieval and --query"
        )
    return lambda row: entity_query(post_text(row), row[GIVEN])


def searchable(posts: Posts, columns: Container[str] | None = None) -> Dataset:
    """Return what retrieval may see of rows, never labels: words, and the ids among `columns` (default: all).

    Of pairs it also sees the entities whose relation is asked.
    """
    from ..knowledge.entities import given_entities

    names = [name for name in ("id", "image_id") if columns is None or name in columns]
    kinds = {name: Value("string") for name in names} | {"tokens": List(Value("string"))}
    seen = {name: [post[name] for post in posts] for name in kinds}
    given = [given_entities(post) for post in posts]
    if None not in given:
        kinds, seen = kinds | {GIVEN: List(Value("string"))}, seen | {GIVEN: given}
    return Dataset.from_dict(seen, Features(kinds))


def retrieved(data: DataArguments, posts: Posts) -> list[Any]:
    """Return the knowledge that `--retrieval` finds for posts without labels; a post without words gets none."""
    return retrieved_with_report(data, posts)[0]


def retrieved_with_report(data: DataArguments, posts: Posts) -> tuple[list[Any], dict[str, Any]]:
    """Return the same with the report of `add_knowledge`, which is empty where no post has words."""
    filled = [post for post in posts if post["tokens"]]
    if not filled:
        return [[] for _ in posts], {}
    attached, report = add_knowledge(data, {"predict": searchable(filled)})
    found = iter(attached["predict"][str(knowledge_column(data.retrieval))])
    return [next(found) if post["tokens"] else [] for post in posts], report
