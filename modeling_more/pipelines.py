"""This module holds the pipelines from posts to predictions, for experts and mixtures, and `predict`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from .data_collator import TEXT_ONLY, MixtureCollator, MoReDataCollator
from .encoding import EXPERT_KNOWLEDGE, EncodedPost, embed_images, encode_for_experts, encode_posts, map_batches
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
from .processing_mixture import MoReMixtureProcessor
from .processing_more import MoReProcessor
from .tagging import tags_to_spans, valid_tags

logger = logging.getLogger(__name__)

Post = Mapping[str, Any]


@dataclass
class Prediction:
    """A model's prediction for one post, or for one pair of entities.

    Attributes:
        labels: the BIOES tags of the words, or the relation.
        scores: the probability of each entity in the tags, or of each relation in the order of the labels.
        expert_weights: the weight of each expert of a mixture by name; of a gate per word, the mean over the words.
        experts: each expert's own prediction, for a mixture.
    """

    labels: Any
    scores: list[float]
    expert_weights: dict[str, float] | None = None
    experts: dict[str, Prediction] | None = None


class MoRePipeline(ABC):
    """A pipeline from posts to predictions, whose call runs the steps `preprocess`, `forward` and `postprocess`.

        pipeline = EntityPipeline(model, processor)
        pipeline([{"text": "Rivera joins Northfield United"}])

    Each expert of a mixture reads its own knowledge column, or its item of `expert_knowledge`.

    Args:
        model: an expert or a mixture; accelerate may have wrapped it.
        accelerator: an Accelerator to share the work between processes, each of which gets all results; default: one
            process, on the model's own device.
        image_encoder: the `ImageEncoder` with which a mixture's gate sees the `image` of the posts; default: the one
            that the mixture names, loaded if a post has an image.
    """

    key: str  # the key of the predictions in the results

    def __init__(
        self,
        model: Any,
        processor: MoReProcessor | MoReMixtureProcessor,
        accelerator: Accelerator | None = None,
        batch_size: int = 16,
        image_encoder: Any = None,
    ):
        self.model = model
        self.processor: Any = processor
        # the model stays where the caller put it
        self.accelerator = accelerator or Accelerator(cpu=next(model.parameters()).device.type == "cpu")
        self.core: Any = self.accelerator.unwrap_model(model)
        self.batch_size = batch_size
        self.image_encoder = image_encoder
        self.mixed = isinstance(processor, MoReMixtureProcessor)

    def __call__(self, posts: Sequence[Post]) -> list[dict[str, Any]]:
        """Return the model's predictions for each post, see `predict`."""
        self._limit_length()
        prepared = [self._check(post, f"post {number}") for number, post in enumerate(posts)]
        given = sum(post.get("text") is not None for post in posts)
        if others := given - sum("text" in post for post in prepared):
            logger.warning(
                "%d of %d texts do not hold their tokens one after the other, or not at their offsets: these count "
                "the tokens joined by blanks", others, given,
            )  # fmt: skip
        results: list[dict[str, Any]] = [
            {key: post[key] for key in ("id", "text", "tokens") if key in post} | {self.key: []} for post in prepared
        ]
        rows = [(number, row) for number, post in enumerate(prepared) for row in self._rows(post)]
        if rows:
            encoded = self.preprocess([row for _, row in rows])
            for (number, row), prediction in zip(rows, self.forward(encoded), strict=True):
                self._add(results[number], self.postprocess(row, prediction))
        return results

    def preprocess(self, rows: Sequence[Post], use_knowledge: bool = True) -> list[EncodedPost]:
        """Return rows {tokens, knowledge columns, head and tail of pairs, image?} encoded for the collator."""
        if not self.mixed:
            return encode_posts(rows, self.processor, use_knowledge=use_knowledge)
        columns = [one.knowledge_column for one in self.processor.processors]
        knowledge = [row.get(EXPERT_KNOWLEDGE) or [row.get(c) if c else None for c in columns] for row in rows]
        encoded = encode_for_experts(
            [{**row, EXPERT_KNOWLEDGE: one} for row, one in zip(rows, knowledge, strict=True)], self.processor
        )
        if self.core.config.image_dim:
            vectors, usable = embed_images(rows, self.core.config, self.image_encoder)
            for row, vector, one in zip(encoded, vectors, usable, strict=True):
                row |= {"image": vector, "has_image": one}
        return encoded

    def forward(self, encoded: Sequence[EncodedPost], description: str = "predict") -> list[Prediction]:
        """Return the predictions for encoded rows, in their order; every process gets all of them."""

        def compute(batch: dict[str, Any]) -> list[Prediction]:
            batch = {key: value for key, value in batch.items() if key != "labels" and not key.startswith(TEXT_ONLY)}
            return self.read(self.model(**batch), batch["word_mask"])

        self.model.eval()
        collate = MixtureCollator(self.processor) if self.mixed else MoReDataCollator(self.processor)
        return map_batches(encoded, collate, compute, self.accelerator, self.batch_size, description)

    @abstractmethod
    def read(self, output: Any, word_mask: Tensor) -> list[Prediction]:
        """Return the predictions in a model's output, one per row; `word_mask` [B, N] is True at words."""

    @abstractmethod
    def decode(self, logits: Tensor, word_mask: Tensor, decoding: str | None = None) -> list[Any]:
        """Return the labels of each row of the batch from the model's logits, without probabilities."""

    @abstractmethod
    def postprocess(self, row: Post, prediction: Prediction) -> dict[str, Any]:
        """Return a prediction as users see it, with words, text and positions."""

    @abstractmethod
    def _rows(self, post: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a checked post that the model reads, for relations one per pair."""

    @abstractmethod
    def _add(self, result: dict[str, Any], found: dict[str, Any]) -> None:
        """Add the postprocessed prediction of a row to the result of its post."""

    def _limit_length(self) -> None:
        """Lower the processor's max_length if the model reads fewer sub-tokens."""
        pairs = zip(self.processor.processors, self.core.experts, strict=True) if self.mixed else []
        for processor, expert in pairs or [(self.processor, self.core)]:
            processor.limit_length(position_limit(expert.encoder))

    def _check(self, post: Post, where: str) -> dict[str, Any]:
        """Return the post with its words and their offsets in a text, or raise ValueError if it is invalid."""
        if not isinstance(post, Mapping):
            raise ValueError(f'{where} is a {type(post).__name__}, it should be an object with "text" or "tokens"')
        if given_words(post) is None and post.get("text") is None:
            raise ValueError(f"{where} has neither text nor tokens")
        if isinstance(post.get("id"), str):
            check_string(post["id"], where, '"id"')
        rest = {key: value for key, value in post.items() if key not in ("tokens", "token", "text", "offsets")}
        words = read_words(post, where, self.processor.splitter, may_be_empty=True)
        columns = sorted(columns_read(self.processor) | set(KNOWLEDGE_COLUMNS))
        return {**rest, **words, **read_knowledge(post, where, columns)}

    def _add_experts(
        self, predictions: list[Prediction], output: Any, word_mask: Tensor, opinions: Sequence[list[Prediction]]
    ) -> list[Prediction]:
        """Add the experts' weights and their own predictions to the predictions of a mixture."""
        names = self.core.config.expert_names
        for place, prediction in enumerate(predictions):
            weights = output.expert_weights[place]
            if weights.dim() == 2:  # from a gate per word
                weights = weights[word_mask[place]].mean(0)
            prediction.expert_weights = dict(zip(names, weights.tolist(), strict=True))
            prediction.experts = {name: said[place] for name, said in zip(names, opinions, strict=True)}
        return predictions


class EntityPipeline(MoRePipeline):
    """A pipeline that finds the entities of posts."""

    key = "entities"

    def read(self, output: Any, word_mask: Tensor) -> list[Prediction]:
        model = self.core
        said = output if self.mixed else output.logits
        paths = model.decode(output.logits, word_mask)
        predictions = self._scored(paths, lambda spans: model.span_scores(said, word_mask, spans))
        if not self.mixed:
            return predictions

        def opinion(expert: Any, emissions: Tensor) -> list[Prediction]:
            paths = expert.decode(emissions, word_mask)
            return self._scored(paths, lambda spans: expert.span_scores(emissions, word_mask, spans))

        opinions = [opinion(*one) for one in zip(model.experts, output.expert_logits.unbind(1), strict=True)]
        return self._add_experts(predictions, output, word_mask, opinions)

    def decode(self, logits: Tensor, word_mask: Tensor, decoding: str | None = None) -> list[list[str]]:
        more = (decoding,) if self.mixed else ()
        return [self._tags(path) for path in self.core.decode(logits, word_mask, *more)]

    def postprocess(self, row: Post, prediction: Prediction) -> dict[str, Any]:
        place = row["tokens"], row.get("text"), row.get("offsets")
        shown: dict[str, Any] = {"entities": entities(*place, prediction)}
        if prediction.experts is not None:
            experts = {name: entities(*place, said) for name, said in prediction.experts.items()}
            shown |= {"expert_weights": prediction.expert_weights, "experts": experts}
        return shown

    def _tags(self, path: Sequence[int]) -> list[str]:
        return valid_tags([self.core.config.id2label[label] for label in path])

    def _scored(
        self, paths: Sequence[Sequence[int]], span_scores: Callable[..., Sequence[Tensor]]
    ) -> list[Prediction]:
        """Return the predictions for label ids, with `span_scores` of the model that they come from."""
        label2id = self.core.config.label2id
        tags = [self._tags(path) for path in paths]
        ids = [[label2id[tag] for tag in row] for row in tags]
        spans = [
            [(span.start, span.end, labels[span.start : span.end]) for span in tags_to_spans(row)]
            for row, labels in zip(tags, ids, strict=True)
        ]
        return [Prediction(row, found.tolist()) for row, found in zip(tags, span_scores(spans), strict=True)]

    def _rows(self, post: dict[str, Any]) -> list[dict[str, Any]]:
        return [post] if post["tokens"] else []

    def _add(self, result: dict[str, Any], found: dict[str, Any]) -> None:
        result |= found


class RelationPipeline(MoRePipeline):
    """A pipeline that classifies pairs of entities."""

    key = "relations"

    def read(self, output: Any, word_mask: Tensor) -> list[Prediction]:
        if not self.mixed:
            return self._best(output.logits.softmax(-1))
        opinions = [self._best(log_probs.exp()) for log_probs in output.expert_log_probs.unbind(1)]
        return self._add_experts(self._best(output.logits.exp()), output, word_mask, opinions)

    def decode(self, logits: Tensor, word_mask: Tensor, decoding: str | None = None) -> list[str]:
        return [prediction.labels for prediction in self._best(logits)]

    def postprocess(self, row: Post, prediction: Prediction) -> dict[str, Any]:
        place = row.get("text"), row.get("offsets")
        shown = relation(row["tokens"], row["head"], row["tail"], prediction, *place)
        if prediction.experts is not None:
            experts = {name: said.labels for name, said in prediction.experts.items()}
            shown |= {"expert_weights": prediction.expert_weights, "experts": experts}
        return shown

    def _best(self, scores: Tensor) -> list[Prediction]:
        id2label = self.core.config.id2label
        return [Prediction(id2label[max(range(len(row)), key=row.__getitem__)], row) for row in scores.tolist()]

    def _check(self, post: Post, where: str) -> dict[str, Any]:
        prepared = super()._check(post, where)
        characters = given_words(post) is None
        words = words_with_offsets(prepared) if characters else None
        spans = pair_spans(prepared, words, len(post["text"] if characters else prepared["tokens"]), where)
        entities = spans.get("entities")
        pairs = [(spans["head"], spans["tail"])] if entities is None else list(permutations(entities, 2))
        return {**prepared, "pairs": pairs}

    def _rows(self, post: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**post, "head": head, "tail": tail} for head, tail in post["pairs"]]

    def _add(self, result: dict[str, Any], found: dict[str, Any]) -> None:
        result["relations"].append(found)


def columns_read(processor: Any) -> set[str]:
    """Return the knowledge columns that an expert or the experts of a mixture read."""
    return {one.knowledge_column for one in getattr(processor, "processors", [processor])} - {None}


def predict(
    model: Any,
    processor: Any,
    posts: Sequence[Mapping[str, Any]],
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    image_encoder: Any = None,
) -> list[dict[str, Any]]:
    """Return the entities of posts {text or tokens, knowledge column?, id?}, or the relations of {…, head, tail} or
    {…, entities}.

    `head`, `tail` and each of `entities` are spans [start, end], end exclusive, in characters of `text` or in words of
    `tokens`, or entities as this function returns them. All ordered pairs of `entities` are classified.

    Args:
        model: an expert, or a mixture, whose experts each read their own knowledge column.
        processor: that saved with it; its max_length is lowered if the model reads fewer sub-tokens.
        batch_size, accelerator, image_encoder: see `MoRePipeline`.

    Returns:
        a dict per post, with its id and text (if any), its tokens, and entities [{type, text, start, end, char_start,
        char_end, score}]: spans in words and in characters, ends exclusive, and the probability of the span. For
        relations, it has relations [{head, tail, head_text, tail_text, relation, score}] instead, with spans in words
        and, if the post has a text, also head_chars and tail_chars. For a mixture, the dict (or each relation) also
        has expert_weights and experts, each expert's own prediction. A post without words has no entities.

        Characters are counted in the post's text or, without one, in the words joined by blanks. Tokens and text may
        be given together, with or without offsets, if the text consists of these words.

    Raises:
        ValueError: if a post has neither text nor tokens, its tokens are no list of words, it holds half a surrogate
            pair, or, for relations, its spans are missing or wrong. The message names the post's position.
    """
    kind = RelationPipeline if processor.markers else EntityPipeline
    return kind(model, processor, accelerator, batch_size, image_encoder)(posts)


def entities(
    words: Sequence[str], text: str | None, offsets: Sequence[Sequence[int]] | None, prediction: Prediction
) -> list[dict[str, Any]]:
    """Return the entities of one post, with spans in words and in characters of `text` (None: the joined words)."""
    if text is None or offsets is None:
        text, offsets = " ".join(words), []
        for word in words:
            begin = offsets[-1][1] + 1 if offsets else 0
            offsets.append((begin, begin + len(word)))
    found = []
    for span, score in zip(tags_to_spans(prediction.labels), prediction.scores, strict=True):
        begin, end = offsets[span.start][0], offsets[span.end - 1][1]
        found.append(
            {"type": span.type, "text": text[begin:end], "start": span.start, "end": span.end,
             "char_start": begin, "char_end": end, "score": score}
        )  # fmt: skip
    return found


def relation(
    words: Sequence[str],
    head: Sequence[int],
    tail: Sequence[int],
    prediction: Prediction,
    text: str | None = None,
    offsets: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the relation of a pair of word spans and, if the post has a text, their characters in it."""
    spans = {"head": list(head), "tail": list(tail)}
    found: dict[str, Any] = {**spans}
    if text is None or offsets is None:
        found |= {f"{name}_text": " ".join(words[start:end]) for name, (start, end) in spans.items()}
    else:
        chars = {name: [offsets[start][0], offsets[end - 1][1]] for name, (start, end) in spans.items()}
        found |= {f"{name}_chars": place for name, place in chars.items()}
        found |= {f"{name}_text": text[start:end] for name, (start, end) in chars.items()}
    return {**found, "relation": prediction.labels, "score": max(prediction.scores)}
