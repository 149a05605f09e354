"""From a model and posts to entities or relations: the one loop that scoring, predict mode and library call share."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .data_collator import TEXT_ONLY, MoReDataCollator
from .modeling_more import MoReForTokenClassification
from .positions import position_limit
from .posts import (
    KNOWLEDGE_COLUMNS,
    check_string,
    given_words,
    pair_spans,
    read_knowledge,
    read_words,
    words_with_offsets,
)
from .processing_more import MoReProcessor
from .tagging import Span, bio_to_bioes, spans_to_bioes, tags_to_spans

logger = logging.getLogger(__name__)

EncodedPost = dict[str, Any]
Result = TypeVar("Result")


def encode_posts(
    posts: Sequence[Mapping[str, Any]],
    processor: MoReProcessor,
    label2id: Mapping[str, int] | None = None,
    two_views: bool = False,
    truncate: bool = False,
    use_knowledge: bool = True,
    progress: bool = False,
) -> list[EncodedPost]:
    """Rows {tokens, ner_tags (BIO strings)?, knowledge column?} as the collator's input; of relations, rows {tokens,
    head, tail, relation?, …}.

    Args:
        posts: the rows; those of a training split carry `ner_tags` or `relation`.
        label2id: BIOES label ids, or those of the relations; None leaves the labels out.
        two_views: also encode the words alone, for the second view.
        truncate: cut words that do not fit (training on entities) instead of reading them in windows.
        use_knowledge: False reads the words alone.
    """
    encoded: list[EncodedPost] = []
    column = processor.knowledge_column if use_knowledge else None
    for first in tqdm(range(0, len(posts), 1000), desc="tokenise", disable=not progress, unit_scale=1000):
        chunk = [posts[index] for index in range(first, min(first + 1000, len(posts)))]
        words = [post["tokens"] for post in chunk]
        knowledge = [post.get(column) for post in chunk] if column else None
        pairs = [(post["head"], post["tail"]) for post in chunk] if processor.markers else None
        views = [processor.encode(words, knowledge, pairs, truncate)]
        if two_views:
            views.append(processor.encode(words, None, pairs, truncate))
        for post, *inputs in zip(chunk, *views, strict=True):
            row: EncodedPost = {"index": len(encoded)}
            for prefix, view in zip(("", TEXT_ONLY), inputs, strict=False):
                row |= {prefix + key: value for key, value in view.items()}
                # a third of a list's memory
                row[prefix + "input_ids"] = [array("i", ids) for ids in view["input_ids"]]
            if label2id is not None and processor.markers:
                row["label"] = label2id[post["relation"]]
            elif label2id is not None:
                tags = bio_to_bioes(post["ner_tags"])
                row["labels"] = [label2id[tag] for tag in tags[: len(row["word_positions"])]]
            encoded.append(row)
    return encoded


def predict_tags(
    model: torch.nn.Module,
    encoded: Sequence[EncodedPost],
    processor: MoReProcessor,
    accelerator: Accelerator,
    batch_size: int = 16,
    description: str = "predict",
) -> list[tuple[list[str], list[float]]]:
    """BIOES tags of every post and the probability of each entity that they hold, in the order of `encoded`.

    `model` may be wrapped by accelerate; every process gets the whole result. Words that no row holds are O.
    """
    core: MoReForTokenClassification = accelerator.unwrap_model(model)

    def read(logits: torch.Tensor, mask: torch.Tensor) -> list[tuple[list[str], list[float]]]:
        tags = [[core.config.id2label[label] for label in path] for path in core.decode(logits, mask)]
        spans = [tags_to_spans(row) for row in tags]
        wanted = [[(span.start, span.end, _label_ids(span, core.config.label2id)) for span in row] for row in spans]
        scores = [row.tolist() for row in core.span_scores(logits, mask, wanted)]
        # an unconstrained path may be no valid BIOES: the tags are written as its spans are read
        tags = [spans_to_bioes(row, len(path)) for row, path in zip(spans, tags, strict=True)]
        return list(zip(tags, scores, strict=True))

    found = _read_logits(model, encoded, processor, accelerator, batch_size, description, read)
    return [(tags + ["O"] * post["cut_words"], scores) for post, (tags, scores) in zip(encoded, found, strict=True)]


def predict_relations(
    model: torch.nn.Module,
    encoded: Sequence[EncodedPost],
    processor: MoReProcessor,
    accelerator: Accelerator,
    batch_size: int = 16,
    description: str = "predict",
) -> list[list[float]]:
    """Probabilities of the relations for every pair, in the order of `encoded` and of the model's labels."""

    def read(logits: torch.Tensor, mask: torch.Tensor) -> list[list[float]]:
        rows: list[list[float]] = logits.softmax(-1).tolist()
        return rows

    return _read_logits(model, encoded, processor, accelerator, batch_size, description, read)


def _read_logits(
    model: torch.nn.Module,
    encoded: Sequence[EncodedPost],
    processor: MoReProcessor,
    accelerator: Accelerator,
    batch_size: int,
    description: str,
    read: Callable[[torch.Tensor, torch.Tensor], list[Result]],
) -> list[Result]:
    """What `read(logits, word_mask)` makes of each batch, in the order of `encoded`."""

    def compute(batch: dict[str, Any]) -> list[Result]:
        batch = {key: value for key, value in batch.items() if key != "labels" and not key.startswith(TEXT_ONLY)}
        return read(model(**batch).logits, batch["word_mask"])

    model.eval()
    lengths = [sum(map(len, post["input_ids"])) for post in encoded]
    return map_batches(encoded, lengths, MoReDataCollator(processor), compute, accelerator, batch_size, description)


def map_batches(
    encoded: Sequence[EncodedPost],
    lengths: Sequence[int],
    collate: Callable[[Sequence[EncodedPost]], dict[str, Any]],
    compute: Callable[[dict[str, Any]], list[Result]],
    accelerator: Accelerator,
    batch_size: int,
    description: str,
) -> list[Result]:
    """What `compute(batch)` makes of each post, without gradients, gathered from all processes.

    Args:
        encoded: posts with their `index`.
        lengths: of each; posts of like length share a batch, the longest come first.
        collate: makes a batch, which holds `index`; `compute` gets it without.

    Returns:
        a result for each post, in the order of `encoded`.
    """
    by_length = [encoded[row] for row in sorted(range(len(encoded)), key=lambda row: -lengths[row])]
    # not through the accelerator, whose checkpoints would keep a sampler for every evaluation
    loader = prepare_data_loader(
        DataLoader(by_length, batch_size=batch_size, collate_fn=collate),  # type: ignore[arg-type]
        accelerator.device,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        put_on_device=True,
    )
    found: dict[int, Result] = {}
    for batch in tqdm(loader, desc=description, disable=not accelerator.is_main_process, leave=False):
        index = batch.pop("index").tolist()
        with torch.no_grad():
            results = compute(batch)
        rows = list(zip(index, results, strict=True))
        found |= dict(accelerator.gather_for_metrics(rows, use_gather_object=True))
    return [found[post["index"]] for post in encoded]


def _label_ids(span: Span, label2id: Mapping[str, int]) -> list[int]:
    length = span.end - span.start
    return [label2id[tag] for tag in spans_to_bioes([(0, length, span.type)], length)]


def entities(
    words: Sequence[str],
    tags: Sequence[str],
    scores: Sequence[float],
    text: str | None = None,
    offsets: Sequence[tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """The entities of one post: word span, character span in `text` (default: the words joined by spaces)."""
    if text is None or offsets is None:
        text, offsets = " ".join(words), []
        for word in words:
            begin = offsets[-1][1] + 1 if offsets else 0
            offsets.append((begin, begin + len(word)))
    found = []
    for span, score in zip(tags_to_spans(tags), scores, strict=True):
        begin, end = offsets[span.start][0], offsets[span.end - 1][1]
        found.append(
            {"type": span.type, "text": text[begin:end], "start": span.start, "end": span.end,
             "char_start": begin, "char_end": end, "score": score}
        )  # fmt: skip
    return found


def predict(
    model: Any,
    processor: Any,
    posts: Sequence[Mapping[str, Any]],
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    image_encoder: Any = None,
) -> list[dict[str, Any]]:
    """Entities of posts {text or tokens, knowledge column?, id?}, or relations of {…, head, tail} or {…, entities}.

    `head`, `tail` and each of `entities` are spans [start, end], end exclusive: characters of `text`, or words of
    `tokens`; an entity as this function returns it will do. Of `entities` all ordered pairs are classified.

    Args:
        model: an expert, or a mixture, whose experts each read their own knowledge column.
        processor: the one saved with it; its max_length is lowered where the model reads fewer sub-tokens.
        image_encoder: an `ImageEncoder`, with which a mixture's gate sees the `image` of the posts; default: the one
            that the mixture names, loaded where a post has an image.

    Returns:
        per post: the post's id and text (if any), tokens, and entities [{type, text, start, end, char_start, char_end,
        score}] with spans in words and in characters, ends exclusive; score is the probability of the span. Of
        relations: relations [{head, tail, head_text, tail_text, relation, score}], spans in words, score its
        probability, and where the post has a text also head_chars and tail_chars. Of a mixture also expert_weights and
        experts, what each says by itself (of relations, each pair's). A post without a word has no entities.

        Characters are those of the post's text; of a post that is given as words, of the words joined by blanks.
        Tokens and text may be given together, with or without offsets, where the text is these words.

    Raises:
        ValueError: for a post with neither text nor tokens, tokens that are no list of words, half a surrogate pair;
            or, for relations, without spans or with wrong ones. Names the post by its place.
    """
    relations = processor.markers
    mixed = hasattr(processor, "processors")
    if mixed:
        from .training.expert_outputs import predict_mixture  # which reads with this module's loop
    read = _with_pairs if relations else _with_tokens
    columns = {one.knowledge_column for one in getattr(processor, "processors", [processor])} - {None}
    columns |= set(KNOWLEDGE_COLUMNS)
    prepared = [read(post, index, processor.splitter, sorted(columns)) for index, post in enumerate(posts)]
    given = sum(post.get("text") is not None for post in posts)
    if others := given - sum("text" in post for post in prepared):
        logger.warning(
            "%d of %d texts do not hold their tokens one after the other, or not at their offsets: these count the "
            "tokens joined by blanks",
            others,
            given,
        )
    accelerator = accelerator or _plain_accelerator(model)
    core: Any = accelerator.unwrap_model(model)
    for own, expert in zip(processor.processors, core.experts, strict=True) if mixed else [(processor, core)]:
        own.limit_length(position_limit(expert.encoder))
    results: list[dict[str, Any]] = [
        {key: post[key] for key in ("id", "text", "tokens") if key in post}
        | {"relations" if relations else "entities": []}
        for post in prepared
    ]
    if relations:
        pairs = [(index, *pair) for index, post in enumerate(prepared) for pair in post["pairs"]]
        if pairs:
            rows = [{**prepared[index], "head": head, "tail": tail} for index, head, tail in pairs]
            if mixed:
                scores, weights, opinions = predict_mixture(
                    model, processor, rows, accelerator, batch_size, image_encoder
                )
            else:
                scores = predict_relations(model, encode_posts(rows, processor), processor, accelerator, batch_size)
            for place, ((index, head, tail), row) in enumerate(zip(pairs, scores, strict=True)):
                post, id2label = prepared[index], model.config.id2label
                found = relation(post["tokens"], head, tail, row, id2label, post.get("text"), post.get("offsets"))
                if mixed:
                    experts = {
                        name: relation(post["tokens"], head, tail, own, id2label)["relation"]
                        for name, own in opinions[place].items()
                    }
                    found |= {"expert_weights": weights[place], "experts": experts}
                results[index]["relations"].append(found)
        return results
    filled = [index for index, post in enumerate(prepared) if post["tokens"]]
    if filled:
        rows = [prepared[index] for index in filled]
        if mixed:
            tagged, weights, opinions = predict_mixture(model, processor, rows, accelerator, batch_size, image_encoder)
        else:
            tagged = predict_tags(model, encode_posts(rows, processor), processor, accelerator, batch_size)
        for place, (index, (tags, span_scores)) in enumerate(zip(filled, tagged, strict=True)):
            post = prepared[index]
            shown = post.get("text"), post.get("offsets")
            if mixed:
                results[index]["expert_weights"] = weights[place]
                results[index]["experts"] = {
                    name: entities(post["tokens"], own_tags, own_scores, *shown)
                    for name, (own_tags, own_scores) in opinions[place].items()
                }
            results[index]["entities"] = entities(post["tokens"], tags, span_scores, *shown)
    return results


def relation(
    words: Sequence[str],
    head: Sequence[int],
    tail: Sequence[int],
    scores: Sequence[float],
    id2label: Mapping[int, str],
    text: str | None = None,
    offsets: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The most probable relation of a pair of word spans; of a post with a text also their characters in it."""
    best = max(range(len(scores)), key=scores.__getitem__)
    spans = {"head": list(head), "tail": list(tail)}
    found: dict[str, Any] = {**spans}
    if text is None or offsets is None:
        found |= {f"{name}_text": " ".join(words[start:end]) for name, (start, end) in spans.items()}
    else:
        chars = {name: [offsets[start][0], offsets[end - 1][1]] for name, (start, end) in spans.items()}
        found |= {f"{name}_chars": place for name, place in chars.items()}
        found |= {f"{name}_text": text[start:end] for name, (start, end) in chars.items()}
    return {**found, "relation": id2label[best], "score": scores[best]}


def _with_pairs(post: Mapping[str, Any], index: int, splitter: str, columns: Sequence[str]) -> dict[str, Any]:
    """The post with its words, and under `pairs` the (head, tail) that are asked for."""
    prepared = _with_tokens(post, index, splitter, columns)
    characters = given_words(post) is None
    words = words_with_offsets(prepared) if characters else None
    spans = pair_spans(prepared, words, len(post["text"] if characters else prepared["tokens"]), f"post {index}")
    entities = spans.get("entities")
    pairs = [(spans["head"], spans["tail"])] if entities is None else list(permutations(entities, 2))
    return {**prepared, "pairs": pairs}


def _with_tokens(post: Mapping[str, Any], index: int, splitter: str, columns: Sequence[str]) -> dict[str, Any]:
    """The post with its words and, where it has a text, their offsets: the check of the rows of files."""
    where = f"post {index}"
    if not isinstance(post, Mapping):
        raise ValueError(f'{where} is a {type(post).__name__}, it should be an object with "text" or "tokens"')
    if given_words(post) is None and post.get("text") is None:
        raise ValueError(f"{where} has neither text nor tokens")
    if isinstance(post.get("id"), str):
        check_string(post["id"], where, '"id"')
    rest = {key: value for key, value in post.items() if key not in ("tokens", "token", "text", "offsets")}
    words = read_words(post, where, splitter, may_be_empty=True)
    return {**rest, **words, **read_knowledge(post, where, columns)}


def _plain_accelerator(model: torch.nn.Module) -> Accelerator:
    # the model stays where the caller put it
    return Accelerator(cpu=next(model.parameters()).device.type == "cpu")
