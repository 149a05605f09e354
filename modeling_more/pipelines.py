"""This module holds the pipelines from posts to predictions, for experts and mixtures, and `predict`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from numbers import Integral
from typing import Any

from torch import Tensor

from .data_collator import TEXT_ONLY, MixtureCollator, MoReDataCollator
from .encoding import (
    EXPERT_KNOWLEDGE,
    BatchError,
    EncodedPost,
    OneProcess,
    embed_images,
    encode_for_experts,
    encode_posts,
    gate_tower,
    map_batches,
)
from .post_knowledge import PostKnowledge
from .posts import (
    KNOWLEDGE_COLUMNS,
    MAX_PAIRS,
    MAX_WORDS,
    check_entries,
    check_found,
    check_string,
    given_words,
    pair_spans,
    read_knowledge,
    read_words,
    words_with_offsets,
)
from .predictions import Prediction, entities, relation
from .processing_mixture import MoReMixtureProcessor
from .processing_more import MoReProcessor
from .tagging import tags_to_spans, valid_tags
from .words import has_more_words

try:
    from accelerate import Accelerator
except ImportError:  # see encoding: one process needs none
    pass

logger = logging.getLogger(__name__)

Post = Mapping[str, Any]
Results = list[dict[str, Any]]

APART = "stand too far apart for one window of max_length: the entities are read in a window each"
ROWS_AT_ONCE, WORDS_AT_ONCE = 4096, 1_000_000  # encoded at once: memory is not to grow with the number of posts


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
        max_words: words of the longest post that is read.
        max_pairs: pairs of entities of a post that are classified at most.
        retrievals: an `OnlineRetrieval` (or None) per expert, which searches the knowledge of posts that bring none;
            see `MoReProcessor.load_retriever`.
    """

    key: str  # the key of the predictions in the results

    def __init__(
        self,
        model: Any,
        processor: MoReProcessor | MoReMixtureProcessor,
        accelerator: Accelerator | None = None,
        batch_size: int = 16,
        image_encoder: Any = None,
        max_words: int = MAX_WORDS,
        max_pairs: int = MAX_PAIRS,
        retrievals: Sequence[Any] = (),
    ):
        self.model = model
        self.processor: Any = processor
        # the model stays where the caller put it
        self.accelerator: Any = accelerator or OneProcess(next(model.parameters()).device)
        self.core: Any = self.accelerator.unwrap_model(model)
        self.batch_size = batch_size
        self.image_encoder = image_encoder
        self.max_words, self.max_pairs = max_words, max_pairs
        self.mixed = hasattr(processor, "processors")  # its class may be of code that came with the model
        self.knowledge = PostKnowledge(processor, retrievals)

    def __call__(self, posts: Iterable[Post], first: int = 0) -> Results:
        """Return the model's predictions for each post, see `predict`.

        Args:
            first: number of the first post, in errors.
        """
        if isinstance(posts, Mapping | str | bytes) or not isinstance(posts, Iterable):
            raise ValueError(f"posts are given as a {type(posts).__name__}, they should be a list of objects")
        posts = list(posts)
        prepared = self._retrieve(self.check(posts, first), first)
        given = sum(post.get("text") is not None for post in posts)
        if others := given - sum("text" in post for post in prepared):
            logger.warning(
                "%d of %d texts do not hold their tokens one after the other, or not at their offsets: these count "
                "the tokens joined by blanks", others, given,
            )  # fmt: skip
        results: Results = [
            {key: post[key] for key in ("id", "text", "tokens") if key in post} | {self.key: []} for post in prepared
        ]
        for result, post in zip(results, prepared, strict=True):
            result |= self.knowledge.shown(post, None)
        apart = rows = 0
        for part in _parts((number, row) for number, post in enumerate(prepared) for row in self._rows(post)):
            encoded = self.preprocess([row for _, row in part])
            try:
                predictions = self.forward(encoded)
            except BatchError as error:
                places = [name_of(part[row][1], first + part[row][0]) for row in error.index]
                raise ValueError(f"{', '.join(places)}: the model can't read it: {error.reason}") from error
            for (number, row), prediction in zip(part, predictions, strict=True):
                self._add(results[number], self.postprocess(row, prediction))
            for (number, row), one in zip(part, encoded, strict=True):
                results[number] |= self.knowledge.shown(row, one)
            apart, rows = apart + self.count_apart(encoded), rows + len(part)
        if apart:
            logger.warning("%d of %d pairs %s", apart, rows, APART)
        return results

    def check(self, posts: Iterable[Post], first: int = 0) -> list[dict[str, Any]]:
        """Return posts with their words and offsets, or raise ValueError that names the post at fault."""
        self._fit()
        return [self._check(post, name_of(post, number)) for number, post in enumerate(posts, first)]

    def count_apart(self, encoded: Sequence[EncodedPost]) -> int:
        """Return how many encoded pairs stand too far apart for one window; entities are no pairs."""
        views = ((post["experts"] if self.mixed else [post]) for post in encoded) if self.processor.markers else ()
        return sum(any(len(set(view["word_rows"])) > 1 for view in of_post) for of_post in views)

    def preprocess(self, rows: Sequence[Post], use_knowledge: bool = True) -> list[EncodedPost]:
        """Return rows {tokens, knowledge columns, head and tail of pairs, image?} encoded for the collator."""
        if not self.mixed:
            return encode_posts(rows, self.processor, use_knowledge=use_knowledge)
        given = [{**row, EXPERT_KNOWLEDGE: self.knowledge.given(row)} for row in rows]
        encoded = encode_for_experts(given, self.processor)
        if self.core.gate.image_dim:
            self.image_encoder = self.image_encoder or gate_tower(self.core.config, rows)  # loaded once
            vectors, usable = embed_images(rows, self.core.config, self.image_encoder)
            for row, vector, one in zip(encoded, vectors, usable, strict=True):
                row |= {"image": vector, "has_image": one}
        return encoded

    def forward(self, encoded: Sequence[EncodedPost], description: str = "predict") -> list[Prediction]:
        """Return the predictions for encoded rows, in their order; every process gets all of them."""

        def compute(batch: dict[str, Any]) -> list[Prediction]:
            batch = {key: value for key, value in batch.items() if key != "labels" and not key.startswith(TEXT_ONLY)}
            output = self.model(**batch)
            if bool(output.logits.isnan().any()):
                raise ValueError("its scores are no numbers (NaN): the model's weights are damaged")
            return self.read(output, batch["word_mask"])

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

    def _retrieve(self, posts: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
        """Return checked posts with the knowledge that is found for those that bring none."""
        return self.knowledge.retrieve(posts)

    @abstractmethod
    def _rows(self, post: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a checked post that the model reads, for relations one per pair."""

    @abstractmethod
    def _add(self, result: dict[str, Any], found: dict[str, Any]) -> None:
        """Add the postprocessed prediction of a row to the result of its post."""

    def _fit(self) -> None:
        """Fit the processor to the model, or those of the experts to them, see `MoReProcessor.fit`."""
        pairs = zip(self.processor.processors, self.core.experts, strict=True) if self.mixed else []
        for processor, expert in pairs or [(self.processor, self.core)]:
            processor.fit(expert.encoder)

    def _check(self, post: Post, where: str) -> dict[str, Any]:
        """Return the post with its words and their offsets in a text, or raise ValueError if it is invalid."""
        if not isinstance(post, Mapping):
            raise ValueError(f'{where} is a {type(post).__name__}, it should be an object with "text" or "tokens"')
        if given_words(post) is None and post.get("text") is None:
            raise ValueError(f"{where} has neither text nor tokens")
        own = ("tokens", "token", "text", "offsets", "pairs")
        rest = {key: value for key, value in post.items() if key not in own}
        check_found(post.get("predicted_entities"), where)
        if post.get("id") is not None:
            rest["id"] = _check_id(post["id"], where)
        text, splitter = post.get("text"), self.processor.splitter
        long = given_words(post) is None and isinstance(text, str) and has_more_words(text, self.max_words, splitter)
        words = {} if long else read_words(post, where, splitter, may_be_empty=True)
        if long or len(words["tokens"]) > self.max_words:
            raise ValueError(f"{where} has more than {self.max_words} words: split it, or raise max_words")
        if self.mixed and (knowledge := post.get(EXPERT_KNOWLEDGE)) is not None:
            rest[EXPERT_KNOWLEDGE] = self._check_expert_knowledge(knowledge, where)
        columns = sorted(columns_read(self.processor) | set(KNOWLEDGE_COLUMNS))
        return {**rest, **words, **read_knowledge(post, where, columns)}

    def _check_expert_knowledge(self, knowledge: Any, where: str) -> list[Any]:
        names = self.core.config.expert_names
        if not isinstance(knowledge, list | tuple) or len(knowledge) != len(names):
            raise ValueError(
                f'{where}: "{EXPERT_KNOWLEDGE}" should be a list with the entries (or null) of {", ".join(names)}'
            )
        return [None if one is None else check_entries(one, EXPERT_KNOWLEDGE, where) for one in knowledge]

    def _add_experts(
        self, predictions: list[Prediction], output: Any, word_mask: Tensor, opinions: Sequence[list[Prediction]]
    ) -> list[Prediction]:
        """Add the experts' weights and their own predictions to the predictions of a mixture."""
        names = self.core.config.readers
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

        def opinion(expert: Any, emissions: Tensor, chain: Any, scores: Tensor) -> list[Prediction]:
            paths = expert.decode(emissions, word_mask)
            return self._scored(paths, lambda spans: chain.span_scores(scores, word_mask, spans))

        said = output.expert_logits
        readers = zip(model.readers, said.unbind(1), model.chains(said), strict=True)
        opinions = [opinion(expert, emissions, *at) for expert, emissions, at in readers]
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

    def _retrieve(self, posts: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
        def read(given: list[dict[str, Any]], place: int) -> list[list[dict[str, Any]]]:
            model = self.core.experts[place] if self.mixed else self.model
            processor = self.knowledge.processors[place]
            alone = EntityPipeline(model, processor, self.accelerator, self.batch_size, max_words=self.max_words)
            return [one[self.key] for one in alone(given, first)]

        return self.knowledge.retrieve(posts, read)

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
        given = post.get("entities") if isinstance(post, Mapping) else None
        sized: Any = given if isinstance(given, list | tuple) or hasattr(given, "tolist") else ()
        number = len(sized)
        if number * (number - 1) > self.max_pairs and all(
            post.get(name) is None for name in ("head", "h", "tail", "t")
        ):
            raise ValueError(
                f'{where}: {number} "entities" make {number * (number - 1)} pairs, at most {self.max_pairs} are '
                'classified: give fewer, or one pair as "head" and "tail", or raise max_pairs'
            )
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


def name_of(post: Any, number: int) -> str:
    """Return how errors name a post: by its number and, where it has one, by its id."""
    id_ = post.get("id") if isinstance(post, Mapping) else None
    return f"post {number}" if id_ is None else f"post {number} (id {_short(id_)})"


def _short(value: Any) -> str:
    told = str(value).encode("unicode_escape").decode() if isinstance(value, str) else repr(value)
    return told if len(told) <= 60 else f"{told[:57]}..."


def _check_id(value: Any, where: str) -> Any:
    """Return an id that can be written as JSON."""
    if isinstance(value, str):
        return check_string(value, where, '"id"')
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():  # of a frame in which some are missing
        return int(value)
    raise ValueError(f'{where}: "id" should be a string or a whole number, not a {type(value).__name__}')


def _parts(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yield the rows of posts in parts that are encoded at once."""
    part: list[tuple[int, dict[str, Any]]] = []
    words = 0
    for number, row in rows:
        part.append((number, row))
        words += len(row["tokens"])
        if len(part) == ROWS_AT_ONCE or words >= WORDS_AT_ONCE:
            yield part
            part, words = [], 0
    if part:
        yield part


def columns_read(processor: Any) -> set[str]:
    """Return the knowledge columns that an expert or the experts of a mixture read."""
    return {one.knowledge_column for one in getattr(processor, "processors", [processor])} - {None}


def predict(
    model: Any,
    processor: Any,
    posts: Iterable[Mapping[str, Any]],
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    image_encoder: Any = None,
    max_words: int = MAX_WORDS,
    max_pairs: int = MAX_PAIRS,
) -> Results:
    """Return the entities of posts {text or tokens, knowledge column?, id?}, or the relations of {…, head, tail} or
    {…, entities}.

    `head`, `tail` and each of `entities` are spans [start, end], end exclusive, in characters of `text` or in words of
    `tokens`, or entities as this function returns them. All ordered pairs of `entities` are classified.

    Args:
        model: an expert, or a mixture, whose experts each read their own knowledge column.
        processor: that saved with it; its max_length is lowered if the model reads fewer sub-tokens.
        batch_size, accelerator, image_encoder, max_words, max_pairs: see `MoRePipeline`.

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
            pair, has more words or pairs than are read, or, for relations, its spans are missing or wrong. The message
            names the post by its position and its id.
    """
    kind = RelationPipeline if processor.markers else EntityPipeline
    return kind(model, processor, accelerator, batch_size, image_encoder, max_words, max_pairs)(posts)
