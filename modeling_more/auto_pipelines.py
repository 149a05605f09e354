"""Use a saved expert or mixture in one line, by transformers' pipelines `more-ner` and `more-re`.

import modeling_more
from transformers import pipeline

pipe = pipeline("more-ner", model="ORG/NAME")
pipe("Rivera joins Northfield United")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, Pipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .open_retrieval import by_expert
from .pipelines import EntityPipeline, MoRePipeline, RelationPipeline
from .posts import KNOWLEDGE_COLUMNS
from .remote_code import REMOTE

BATCH_SIZE = 16
AT_ONCE = 512  # posts of a list that are searched and read at once
#: options of the pipeline and of each call
_CALL = {"retrieve", "knowledge", "top_k", "min_score", "threshold", "batch_size"}
_OPTIONS = _CALL | {"cache_dir", "image_encoder", "max_words", "max_pairs"}
_PAIR = {"head", "h", "tail", "t", "entities"}  # of these a post for relations has some

Post = str | Mapping[str, Any]
Result = dict[str, Any]


class PostPipeline(Pipeline):
    """A pipeline of transformers over posts, which searches their knowledge as the model's was for its training.

    A post is a text, or a dictionary {text or tokens, image?, id?, knowledge_text?, knowledge_image?, caption?,
    predicted_entities?}: an image is a path, a PIL image or its bytes; knowledge that is given is read instead of
    being searched: a list of entries {title, text} or of texts. A model that was trained to search for entities reads
    a post twice: first with what its words find, then with what the entities find that it has found, or those given
    as predicted_entities (at training these were found by models of words alone). A list of posts gives a list, any
    other iterable (a generator, a column of a data set) an iterator that reads `batch_size` posts at once.

    Args:
        knowledge: what to search instead of the corpus of the training: files, folders of saved corpora, ids of the
            Hub; of a mixture one for all experts, or a dictionary by their names.
        retrieve: whether to search knowledge; if not, posts are read alone or with what they bring.
        top_k: entries searched and read; default: as many as in training.
        min_score: entries of a lower score are not read; default: as the model was saved. Not of a mixture, whose
            experts bring their own.
        threshold: leaves out entities or relations of a lower probability.
        batch_size: posts of a batch.
        cache_dir: the folder of corpora and indices.
        image_encoder, max_words, max_pairs: see `MoRePipeline`.
    """

    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_video_processor: Any = False
    reader_class: type[MoRePipeline]
    processor: Any

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any) -> None:
        if processor is None:
            raise ValueError("give the processor that was saved with the model as processor=…")
        own = {name: kwargs.pop(name) for name in _OPTIONS & kwargs.keys()}
        self._options = {name: own.pop(name) for name in _CALL & own.keys()}
        self._cache_dir = own.pop("cache_dir", None)
        self._retrievals: dict[tuple[str, ...], Any] = {}  # opened, by expert and what was given to be searched
        super().__init__(model=model, processor=processor, **kwargs)
        self._checked({})
        if processor.markers != (self.reader_class is RelationPipeline):
            found, wanted = ("relations", "more-re") if processor.markers else ("entities", "more-ner")
            raise ValueError(f"this model finds {found}: use the pipeline {wanted}")
        self.reader = self.reader_class(self.model, processor, **own)

    def __call__(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        """Return the entities or relations of a post, or of several, with the knowledge that was read beside them.

        Args:
            inputs: a post, or several, see the class.
            options: `retrieve`, `knowledge`, `top_k`, `min_score`, `threshold` and `batch_size` of this call.

        Returns:
            what `predict` returns for a post; a list or an iterator of it for several.

        Raises:
            ValueError: a post is invalid, which names it by its position; an option is unknown or out of its range.
        """
        chosen = self._checked(options)
        if isinstance(inputs, str | Mapping):
            return self._run([inputs], 0, chosen)[0]
        if isinstance(inputs, list | tuple):
            return [one for part, first in _parts(inputs, AT_ONCE) for one in self._run(part, first, chosen)]
        parts = _parts(inputs, chosen["batch_size"])
        return (one for part, first in parts for one in self._run(part, first, chosen))

    # transformers' signatures speak of tensors; its calls hand on whatever the step before returned
    def preprocess(self, input_: Any, **options: Any) -> Any:
        """Return posts as dictionaries, and knowledge that they bring as entries."""
        return {"posts": [_as_post(post) for post in input_]}

    def _forward(self, input_tensors: Any, **options: Any) -> Any:
        with self.reading(**{name: options[name] for name in _CALL}) as reader:
            return {"results": reader(input_tensors["posts"], options["first"])}

    @contextmanager
    def reading(self, **options: Any) -> Iterator[MoRePipeline]:
        """Give the block the pipeline that reads posts {text or tokens, …}, set by the options of a call."""
        chosen, reader = self._checked(options), self.reader
        reader.batch_size = chosen["batch_size"]
        reader.knowledge.retrievals = self._opened(chosen)
        processors = reader.knowledge.processors
        before = [(processor.top_k, processor.min_score) for processor in processors]
        try:
            for processor in processors:
                processor.top_k = chosen["top_k"] or processor.top_k
                if chosen["min_score"] is not None:
                    processor.min_score = chosen["min_score"]
            yield reader
        finally:
            for processor, own in zip(processors, before, strict=True):
                processor.top_k, processor.min_score = own

    def postprocess(self, model_outputs: Any, **options: Any) -> Any:
        """Return the results without the entities or relations below the threshold."""
        key, least = self.reader.key, options["threshold"]
        return [{**one, key: [it for it in one[key] if it["score"] >= least]} for one in model_outputs["results"]]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the model and its processor, from which `pipeline` is loaded again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        self._checked(kwargs)
        return {}, {}, {}

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a call, those of the pipeline where the call gives none."""
        if unknown := sorted(options.keys() - _CALL):
            raise ValueError(f"{unknown[0]!r} is no option of this pipeline: there are {', '.join(sorted(_OPTIONS))}")
        found: dict[str, Any] = {"retrieve": True, "knowledge": (), "top_k": None, "min_score": None, "threshold": 0.0}
        found |= self._options | options
        found["batch_size"] = found.get("batch_size") or BATCH_SIZE
        for name, optional in (("batch_size", False), ("top_k", True)):
            if not (optional and found[name] is None) and (type(found[name]) is not int or found[name] < 1):
                raise ValueError(f"{name} is {found[name]!r:.80}, it must be a whole number from 1 on")
        if (least := found["min_score"]) is not None:
            if type(least) not in (int, float) or least != least:
                raise ValueError(f"min_score is {least!r:.80}, it must be a number")
            if hasattr(self.processor, "processors"):
                raise ValueError("min_score is for one expert: those of a mixture bring their own")
        if not isinstance(found["threshold"], int | float) or not 0 <= found["threshold"] <= 1:
            raise ValueError(f"threshold is {found['threshold']!r:.80}, it must lie between 0 and 1")
        return found

    def _run(self, posts: Sequence[Post], first: int, options: dict[str, Any]) -> list[Result]:
        """Return the results of some posts, the first of which has this number in errors."""
        found: list[Result] = self.run_single(posts, {}, {**options, "first": first}, options)
        return found

    def _opened(self, options: Mapping[str, Any]) -> list[Any]:
        """Return the retrieval of each expert, opened where it is used first."""
        experts = self.reader.knowledge
        if not options["retrieve"]:
            return [None] * len(experts.processors)
        names = experts.names or [""]
        found = []
        for name, processor, one in zip(
            names, experts.processors, by_expert(options["knowledge"], names), strict=True
        ):
            given = [one] if isinstance(one, str | Path) else list(one)
            key = name, *map(str, given)
            if key not in self._retrievals:
                whose = f"expert {name}" if name else "the model"
                self._retrievals[key] = processor.load_retriever(given, self._cache_dir, whose)
            found.append(self._retrievals[key])
        return found


class MoReNerPipeline(PostPipeline):
    """The pipeline `more-ner`, which finds the entities of posts."""

    reader_class = EntityPipeline


class MoReRePipeline(PostPipeline):
    """The pipeline `more-re`, which classifies the relations between two entities of a post.

    A post gives `head` and `tail`, or `entities`, of which all ordered pairs are classified: spans in words of
    `tokens` or characters of `text`, or entities as `more-ner` returns them. Where it gives none, `entity_model` finds
    them; pairs without a relation are then left out.

    Args:
        entity_model: a pipeline `more-ner`, or the folder or id of a model for one.
        none_relation: the relation of pairs that have none.
    """

    reader_class = RelationPipeline

    def __init__(
        self, model: Any, processor: Any = None, entity_model: Any = None, none_relation: str = "None", **kwargs: Any
    ) -> None:
        super().__init__(model, processor, **kwargs)
        self.none_relation = none_relation
        if isinstance(entity_model, str | Path):
            if REMOTE:  # the flag was given for this model's code alone
                raise ValueError(
                    'without the package give entity_model=pipeline("more-ner", model=…, trust_remote_code=True)'
                )
            load: Any = pipeline
            entity_model = load("more-ner", model=str(entity_model), device=self.device)
        self.entity_pipeline = entity_model

    def _forward(self, input_tensors: Any, **options: Any) -> Any:
        posts = list(input_tensors["posts"])
        pairless = [row for row, post in enumerate(posts) if isinstance(post, dict) and not post.keys() & _PAIR]
        found: list[Result] = []
        if pairless and self.entity_pipeline is not None:
            shared = {name: options[name] for name in ("retrieve", "batch_size")}
            found = self.entity_pipeline([posts[row] for row in pairless], **shared)
            for row, one in zip(pairless, found, strict=True):
                posts[row] = {**posts[row], "entities": one["entities"]}
        results = super()._forward({"posts": posts}, **options)["results"]
        for row, one in zip(pairless, found, strict=False):
            kept = [pair for pair in results[row]["relations"] if pair["relation"] != self.none_relation]
            results[row] = {**results[row], "entities": one["entities"], "relations": kept}
        return {"results": results}


def _as_post(post: Any) -> Any:
    if isinstance(post, str):
        return {"text": post}
    if not isinstance(post, Mapping):
        return post  # refused by the reader, with its position
    found = dict(post)
    for column in KNOWLEDGE_COLUMNS:
        given = found.get(column)
        given = [given] if isinstance(given, str) else given
        if isinstance(given, list | tuple):
            found[column] = [{"text": one} if isinstance(one, str) else one for one in given]
    return found


def _parts(posts: Iterable[Post], size: int) -> Iterator[tuple[list[Post], int]]:
    """Yield the posts in parts, each with the number of its first post."""
    rest, first = iter(posts), 0
    while part := list(islice(rest, size)):
        yield part, first
        first += len(part)


TASKS: dict[str, tuple[type[PostPipeline], Any]] = {
    "more-ner": (MoReNerPipeline, AutoModelForTokenClassification),
    "more-re": (MoReRePipeline, AutoModelForSequenceClassification),
}
for _task, (_class, _model) in TASKS.items() if not REMOTE else ():  # code of the Hub is found by its model alone
    PIPELINE_REGISTRY.register_pipeline(_task, pipeline_class=_class, pt_model=_model, type="text")
