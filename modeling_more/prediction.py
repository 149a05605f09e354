"""From a model and posts to entities: the one loop that scoring, predict mode and the library call share."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .data_collator import TEXT_ONLY, MoReDataCollator
from .modeling_more import MoReForTokenClassification
from .processing_more import MoReProcessor
from .tagging import Span, bio_to_bioes, spans_to_bioes, tags_to_spans
from .words import split_words

EncodedPost = dict[str, Any]


def encode_posts(
    posts: Sequence[Mapping[str, Any]],
    processor: MoReProcessor,
    label2id: Mapping[str, int] | None = None,
    two_views: bool = False,
    truncate: bool = False,
    use_knowledge: bool = True,
    progress: bool = False,
) -> list[EncodedPost]:
    """Rows {tokens, ner_tags (BIO strings)?, knowledge column?} as the collator's input.

    Args:
        posts: the rows; those of a training split carry `ner_tags`.
        label2id: BIOES label ids; None leaves the labels out.
        two_views: also encode the words alone, for the second view.
        truncate: cut words that do not fit (training) instead of reading them in windows.
        use_knowledge: False reads the words alone.
    """
    encoded: list[EncodedPost] = []
    column = processor.knowledge_column if use_knowledge else None
    for first in tqdm(range(0, len(posts), 1000), desc="tokenise", disable=not progress, unit_scale=1000):
        chunk = [posts[index] for index in range(first, min(first + 1000, len(posts)))]
        words = [post["tokens"] for post in chunk]
        knowledge = [post.get(column) for post in chunk] if column else None
        views = [processor.encode(words, knowledge, truncate=truncate)]
        if two_views:
            views.append(processor.encode(words, truncate=truncate))
        for post, *inputs in zip(chunk, *views, strict=True):
            row: EncodedPost = {"index": len(encoded)}
            for prefix, view in zip(("", TEXT_ONLY), inputs, strict=False):
                row |= {prefix + key: value for key, value in view.items()}
                # a third of a list's memory
                row[prefix + "input_ids"] = [array("i", ids) for ids in view["input_ids"]]
            if label2id is not None:
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
    by_length = sorted(encoded, key=lambda post: -sum(map(len, post["input_ids"])))
    # not through the accelerator, whose checkpoints would keep a sampler for every evaluation
    loader = prepare_data_loader(
        DataLoader(by_length, batch_size=batch_size, collate_fn=MoReDataCollator(processor)),  # type: ignore[arg-type]
        accelerator.device,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        put_on_device=True,
    )
    model.eval()
    found: dict[int, tuple[list[str], list[float]]] = {}
    for batch in tqdm(loader, desc=description, disable=not accelerator.is_main_process, leave=False):
        index, mask = batch.pop("index").tolist(), batch["word_mask"]
        batch = {key: value for key, value in batch.items() if key != "labels" and not key.startswith(TEXT_ONLY)}
        with torch.no_grad():
            logits = model(**batch).logits
        tags = [[core.config.id2label[label] for label in path] for path in core.decode(logits, mask)]
        spans = [tags_to_spans(row) for row in tags]
        wanted = [[(span.start, span.end, _label_ids(span, core.config.label2id)) for span in row] for row in spans]
        scores = [row.tolist() for row in core.span_scores(logits, mask, wanted)]
        # an unconstrained path may be no valid BIOES: the tags are written as its spans are read
        tags = [spans_to_bioes(row, len(path)) for row, path in zip(spans, tags, strict=True)]
        rows = list(zip(index, tags, scores, strict=True))
        for row, row_tags, row_scores in accelerator.gather_for_metrics(rows, use_gather_object=True):
            found[row] = (row_tags, row_scores)
    results = []
    for post in encoded:
        tags_, scores_ = found[post["index"]]
        results.append((tags_ + ["O"] * post["cut_words"], scores_))
    return results


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
    model: MoReForTokenClassification,
    processor: MoReProcessor,
    posts: Sequence[Mapping[str, Any]],
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
) -> list[dict[str, Any]]:
    """Entities of posts {text or tokens, knowledge column?, id?}.

    Returns:
        per post: the post's id (if any), tokens, and entities [{type, text, start, end, char_start, char_end, score}]
        with spans in words and in characters, ends exclusive; score is the probability of the span.

    Raises:
        ValueError: for a post with neither text nor tokens, or without words.
    """
    prepared = [_with_tokens(post, index, processor.splitter) for index, post in enumerate(posts)]
    results: list[dict[str, Any]] = [
        {"id": post["id"], "tokens": post["tokens"], "entities": []} if "id" in post
        else {"tokens": post["tokens"], "entities": []}
        for post in prepared
    ]  # fmt: skip
    read = [index for index, post in enumerate(prepared) if post["tokens"]]
    if read:
        encoded = encode_posts([prepared[index] for index in read], processor)
        found = predict_tags(model, encoded, processor, accelerator or _plain_accelerator(model), batch_size)
        for index, (tags, scores) in zip(read, found, strict=True):
            post = prepared[index]
            results[index]["entities"] = entities(post["tokens"], tags, scores, post.get("text"), post.get("offsets"))
    return results


def _with_tokens(post: Mapping[str, Any], index: int, splitter: str) -> dict[str, Any]:
    if post.get("tokens") is not None:
        return dict(post)  # text counts only with the offsets of the words in it
    if post.get("text") is None:
        raise ValueError(f"post {index} has neither text nor tokens")
    words = split_words(post["text"], splitter)
    return {**post, "tokens": [word for word, _, _ in words], "offsets": [(start, end) for _, start, end in words]}


def _plain_accelerator(model: torch.nn.Module) -> Accelerator:
    # the model stays where the caller put it
    return Accelerator(cpu=next(model.parameters()).device.type == "cpu")
