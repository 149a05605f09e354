"""A mixture's inputs and outputs: what the gate reads of each post, computed once and cached, and predictions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from datasets import Image as ImageFeature
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..files import new_file
from ..mixed_experts import weights_digest
from ..modeling_mixture import MoReMixtureForRelationExtraction, MoReMixtureForTokenClassification, MoReMixtureOutput
from ..pipelines import map_batches
from ..processing_mixture import MoReMixtureProcessor
from ..tagging import spans_to_bioes, tags_to_spans

logger = logging.getLogger(__name__)

Mixture = MoReMixtureForTokenClassification | MoReMixtureForRelationExtraction
Post = Mapping[str, Any]
#: column of a post's knowledge for each expert, in their order
EXPERT_KNOWLEDGE = "expert_knowledge"
CACHE_VERSION = 1
IMAGES_AT_ONCE = 256  # decoded pictures are large


@dataclass
class Features:
    """What the gate reads of the posts of a split, in their order.

    Attributes:
        expert_logits: of each post [Z, N, L] emissions of the experts, or [Z, C] of a relation.
        text: of each post [H], or [N, H] for a gate per word.
        images: float32 [P, D], and [P] whether there is one; None where the gate sees no images.
        expert_log_probs: as `expert_logits`, where other models than the mixture's experts said them.
    """

    expert_logits: list[Tensor]
    text: list[Tensor]
    images: tuple[Tensor, Tensor] | None = None
    expert_log_probs: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.expert_logits)

    def select(self, rows: Sequence[int]) -> Features:
        """Those of some posts."""
        chosen = torch.tensor(rows, dtype=torch.long)
        images = None if self.images is None else (self.images[0][chosen], self.images[1][chosen])
        said = None if self.expert_log_probs is None else [self.expert_log_probs[row] for row in rows]
        return Features([self.expert_logits[row] for row in rows], [self.text[row] for row in rows], images, said)


@dataclass
class MixedPost:
    """What a mixture says of one post: `MoReMixtureOutput` without padding, on the CPU.

    Attributes:
        logits: mixed log-probabilities [N, L], or [C] of a relation.
        expert_weights: [Z], or [N, Z] of a gate per word.
        expert_logits, expert_log_probs: [Z, N, L] or [Z, C].
    """

    logits: Tensor
    expert_weights: Tensor
    expert_logits: Tensor
    expert_log_probs: Tensor

    @property
    def mean_weights(self) -> Tensor:
        """[Z]."""
        return self.expert_weights if self.expert_weights.dim() == 1 else self.expert_weights.mean(0)


# --- experts' outputs


def encode_for_experts(posts: Sequence[Post], processor: MoReMixtureProcessor) -> list[dict[str, Any]]:
    """Each post as every expert reads it, with its own knowledge of `EXPERT_KNOWLEDGE`, and as words alone."""
    encoded: list[dict[str, Any]] = []
    for first in range(0, len(posts), 1000):
        chunk = posts[first : first + 1000]
        words = [post["tokens"] for post in chunk]
        pairs = [(post["head"], post["tail"]) for post in chunk] if processor.markers else None
        knowledge = list(zip(*(post[EXPERT_KNOWLEDGE] for post in chunk), strict=True))
        for row in processor.encode(words, knowledge, pairs):
            encoded.append({"index": len(encoded), **row})
    return encoded


class MixtureCollator:
    """Pads posts of `encode_for_experts`, with labels and images where they have them."""

    def __init__(self, processor: MoReMixtureProcessor):
        self.processor = processor

    def __call__(self, posts: Sequence[Post]) -> dict[str, Any]:
        padded = self.processor.pad(posts)
        # plain dictionaries: that is what moves between devices
        batch: dict[str, Any] = {
            "index": torch.tensor([post["index"] for post in posts]),
            "experts": [dict(inputs) for inputs in padded["experts"]],
            "text_only": dict(padded["text_only"]),
            "word_mask": padded["word_mask"],
        }
        if "labels" in posts[0]:
            batch["labels"] = _pad([torch.tensor(post["labels"]) for post in posts])
        if "image" in posts[0]:
            batch["image_features"] = torch.stack([post["image"] for post in posts])
            batch["image_mask"] = torch.stack([post["has_image"] for post in posts])
        return batch


def expert_features(
    model: Mixture,
    processor: MoReMixtureProcessor,
    posts: Sequence[Post],
    accelerator: Accelerator,
    batch_size: int = 16,
    cache_dir: str | Path | None = None,
    description: str = "experts",
) -> Features:
    """The experts' outputs and the gate's text features; read from the cache where they were computed before.

    Args:
        posts: rows {tokens, expert_knowledge, (head, tail)}.
        cache_dir: of files named by the experts' weights and what they read; None keeps nothing.
    """
    encoded = encode_for_experts(posts, processor)
    file = None
    if cache_dir is not None:
        file = Path(cache_dir) / "mixture" / f"{_digest(model, encoded)}.safetensors"
        # all or none: who computes waits for what the others compute
        if all(gather_object([file.is_file()])):
            return _read(file)

    def compute(batch: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        logits = model.expert_outputs(batch["experts"]).float().cpu()
        text = model.text_features(batch["text_only"]).float().cpu()
        if processor.markers:
            return list(zip(logits, text, strict=True))
        lengths = batch["word_mask"].sum(1).tolist()
        per_word = text.dim() == 3
        return [
            # copies: a view would keep, and gather, the whole batch
            (one[:, :length].clone(), words[:length].clone() if per_word else words)
            for one, words, length in zip(logits, text, lengths, strict=True)
        ]

    model.eval()
    lengths = [sum(len(row) for view in post["experts"] for row in view["input_ids"]) for post in encoded]
    found = map_batches(encoded, lengths, MixtureCollator(processor), compute, accelerator, batch_size, description)
    features = Features([logits for logits, _ in found], [text for _, text in found])
    if file is not None and accelerator.is_main_process:
        _write(file, features)
    accelerator.wait_for_everyone()
    return features


def _digest(model: Mixture, encoded: Sequence[Post]) -> str:
    """Of the experts' weights, of the gate's kind of text features, and of all that the experts read."""
    about = [CACHE_VERSION, model.config.gate, len(encoded), weights_digest(model.experts)]
    digest = hashlib.sha256(json.dumps(about).encode())
    for post in encoded:
        views = [
            [view["input_ids"], view["word_rows"], view["word_positions"]]
            for view in (*post["experts"], post["text_only"])
        ]
        digest.update(json.dumps(views).encode())
    return digest.hexdigest()[:32]


def _write(file: Path, features: Features) -> None:
    tensors: dict[str, Tensor] = {}
    # words first: posts of any length then stand one after the other
    kinds = {
        "expert_logits": [one.transpose(0, 1) if one.dim() == 3 else one for one in features.expert_logits],
        "text": features.text,
    }
    for name, rows in kinds.items():
        per_word = rows[0].dim() == (3 if name == "expert_logits" else 2)
        tensors[name] = torch.cat(rows) if per_word else torch.stack(rows)
        tensors[f"{name}_lengths"] = torch.tensor([len(row) for row in rows] if per_word else [])
    _save(file, tensors)


def _save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    with new_file(file) as beside:
        save_file({name: value.contiguous() for name, value in tensors.items()}, beside)


def _read(file: Path) -> Features:
    tensors = load_file(file)
    rows = {}
    for name in ("expert_logits", "text"):
        lengths: list[int] = tensors[f"{name}_lengths"].int().tolist()
        rows[name] = list(tensors[name].split(lengths)) if lengths else list(tensors[name])
    logits = [one.transpose(0, 1) if one.dim() == 3 else one for one in rows["expert_logits"]]
    return Features(logits, rows["text"])


# --- images


def image_features(
    posts: Dataset, image_dir: str | Path | None, encoder: Any, cache_dir: str | Path | None = None
) -> tuple[Tensor, Tensor]:
    """Embeddings [P, D] of the posts' images and whether each has a usable one [P]; the others are zeros, counted.

    Args:
        posts: with a column `image`, or with `image_id`s that name files of `image_dir`.
        encoder: an `ImageEncoder`.
    """
    from modeling_more.knowledge.pictures import ImageError, find_image, open_image, read_bytes

    if image_dir is None:
        sources = posts.select_columns(["image"]).cast_column("image", ImageFeature(decode=False))
    else:
        sources = posts.select_columns(["image_id"])
    vectors = torch.zeros(len(posts), encoder.dimension)
    usable = torch.zeros(len(posts), dtype=torch.bool)
    reasons: Counter[str] = Counter()
    size = IMAGES_AT_ONCE
    for first in tqdm(range(0, len(posts), size), desc="images", disable=len(posts) < size, leave=False):
        rows = sources.select(range(first, min(first + size, len(posts)))).to_list()
        found = [row["image"] if image_dir is None else find_image(image_dir, row["image_id"] or "") for row in rows]
        file = None
        if cache_dir is not None:
            digest = hashlib.sha256(encoder.fingerprint.encode())
            for source in found:
                try:
                    content = read_bytes(source)
                except ImageError:  # counted below
                    content = b""
                digest.update(hashlib.sha256(content).digest())
            file = Path(cache_dir) / "mixture" / f"images-{digest.hexdigest()[:32]}.safetensors"
        if file is not None and file.is_file():
            tensors = load_file(file)
        else:
            opened = {}
            for row, source in enumerate(found):
                try:
                    opened[row] = open_image(source)
                except ImageError as error:
                    reasons[error.reason] += 1
            tensors = {"vectors": torch.zeros(len(rows), encoder.dimension), "usable": torch.zeros(len(rows))}
            if opened:
                chosen = list(opened)
                tensors["vectors"][chosen] = torch.from_numpy(np.array(encoder.embed(list(opened.values()))))
                tensors["usable"][chosen] = 1.0
            if file is not None:
                _save(file, tensors)
        vectors[first : first + len(rows)] = tensors["vectors"]
        usable[first : first + len(rows)] = tensors["usable"].bool()
    if not usable.all():  # the reasons are known where the images were opened now, not where the cache had them
        told = "".join(f", {count} {reason}" for reason, count in reasons.most_common())
        lacking = len(posts) - int(usable.sum())
        logger.warning("%d of %d posts have no usable image%s: the gate is told so.", lacking, len(posts), told)
    return vectors, usable


# --- the gate over cached outputs


def gate_batch(features: Features, rows: Sequence[int], labels: Sequence[Any] | None = None) -> dict[str, Tensor]:
    """Inputs of a mixture's forward for some posts, from cached outputs: no expert runs.

    Args:
        labels: of all posts: label ids of the words, or the id of the relation.
    """
    chosen = features.select(rows)
    relations = chosen.expert_logits[0].dim() == 2
    batch = {"text_features": _pad(chosen.text)}
    for key, said in (("expert_logits", chosen.expert_logits), ("expert_log_probs", chosen.expert_log_probs)):
        if said is not None and relations:
            batch[key] = torch.stack(said)
        elif said is not None:
            batch[key] = _pad([one.transpose(0, 1) for one in said]).transpose(1, 2)
    if not relations:
        batch["word_mask"] = _pad([torch.ones(one.shape[1], dtype=torch.bool) for one in chosen.expert_logits])
    if chosen.images is not None:
        batch["image_features"], batch["image_mask"] = chosen.images
    if labels is not None:
        found = [labels[row] for row in rows]
        batch["labels"] = torch.tensor(found) if relations else _pad([torch.tensor(one) for one in found])
    return batch


def mix(model: Mixture, features: Features, batch_size: int = 64) -> list[MixedPost]:
    """The mixture's outputs for every post, each without padding and on the CPU, from cached outputs."""
    results: list[MixedPost] = []
    model.eval()
    for first in range(0, len(features), batch_size):
        rows = range(first, min(first + batch_size, len(features)))
        batch = {key: value.to(model.device) for key, value in gate_batch(features, rows).items()}
        with torch.no_grad():
            output = model(**batch)
        for place, row in enumerate(rows):
            length = features.expert_logits[row].shape[1] if "word_mask" in batch else None
            logits, weights, expert_logits, log_probs = (
                output[key][place].cpu() for key in ("logits", "expert_weights", "expert_logits", "expert_log_probs")
            )
            if length is not None:
                logits, expert_logits, log_probs = logits[:length], expert_logits[:, :length], log_probs[:, :length]
                weights = weights[:length] if weights.dim() == 2 else weights
            results.append(MixedPost(logits, weights, expert_logits, log_probs))
    return results


Tags = tuple[list[str], list[float]]


def mixture_tags(
    model: MoReMixtureForTokenClassification,
    outputs: Sequence[MixedPost],
    decoding: str | None = None,
    scored: bool = True,
) -> list[Tags]:
    """BIOES tags of each post and (`scored`) the probability of each of its entities under the mixture."""

    def scores(output: MixedPost, spans: Any) -> list[float]:
        whole = MoReMixtureOutput(**{key: value[None].to(model.device) for key, value in vars(output).items()})
        mask = torch.ones(1, output.logits.shape[0], dtype=torch.bool, device=model.device)
        found: list[float] = model.span_scores(whole, mask, [spans])[0].tolist()
        return found

    def decode(logits: Tensor, mask: Tensor) -> list[list[int]]:
        return model.decode(logits, mask, decoding)

    return _tags(model, outputs, lambda output: output.logits, decode, scores if scored else None)


def expert_tags(model: MoReMixtureForTokenClassification, outputs: Sequence[MixedPost], number: int) -> list[Tags]:
    """What one expert says by itself, with its own Viterbi and its own probabilities."""
    expert: Any = model.experts[number]

    def scores(output: MixedPost, spans: Any) -> list[float]:
        emissions = output.expert_logits[number][None].to(expert.device)
        mask = torch.ones(emissions.shape[:2], dtype=torch.bool, device=expert.device)
        found: list[float] = expert.span_scores(emissions, mask, [spans])[0].tolist()
        return found

    return _tags(model, outputs, lambda output: output.expert_logits[number], expert.decode, scores)


def average_tags(
    model: MoReMixtureForTokenClassification, outputs: Sequence[MixedPost], decoding: str | None = None
) -> list[Tags]:
    """Tags under the plain average of the experts' marginals (without probabilities)."""
    return _tags(model, outputs, average, lambda logits, mask: model.decode(logits, mask, decoding), None)


def average(output: MixedPost) -> Tensor:
    """Log of the experts' mean probabilities [N, L] (or [C])."""
    found: Tensor = output.expert_log_probs.logsumexp(0) - np.log(len(output.expert_log_probs))
    return found


def predict_mixture(
    model: Any,
    processor: MoReMixtureProcessor,
    posts: Sequence[Post],
    accelerator: Accelerator,
    batch_size: int = 16,
    image_encoder: Any = None,
) -> tuple[list[Any], list[dict[str, float]], list[dict[str, Any]]]:
    """What the mixture says of posts {tokens, knowledge columns, (head, tail), image?}, and how it comes to that.

    An expert reads the post's knowledge column that it was trained with, or `expert_knowledge`, a list over experts.

    Returns:
        tags with span scores of each post, or probabilities of the relations; the (mean) weight of each expert by its
        name; and what each expert says by itself, in the form of the first.

    Raises:
        ValueError: posts with images whose tower is not known or gives other features than the gate reads.
    """
    columns = [one.knowledge_column for one in processor.processors]
    rows = [
        {**post, EXPERT_KNOWLEDGE: post.get(EXPERT_KNOWLEDGE) or [post.get(c) if c else None for c in columns]}
        for post in posts
    ]
    features = expert_features(model, processor, rows, accelerator, batch_size)
    if model.config.image_dim:
        features.images = _own_images(posts, model.config, image_encoder)
    outputs = mix(model, features, batch_size)
    names = model.config.expert_names
    weights = [dict(zip(names, output.mean_weights.tolist(), strict=True)) for output in outputs]
    if processor.markers:
        opinions = [dict(zip(names, output.expert_log_probs.exp().tolist(), strict=True)) for output in outputs]
        return [output.logits.exp().tolist() for output in outputs], weights, opinions
    by_expert = [expert_tags(model, outputs, number) for number in range(len(names))]
    opinions = [dict(zip(names, tags, strict=True)) for tags in zip(*by_expert, strict=True)]
    return mixture_tags(model, outputs), weights, opinions


def _own_images(posts: Sequence[Post], config: Any, encoder: Any) -> tuple[Tensor, Tensor]:
    """As `image_features`, of the `image` that posts carry themselves."""
    vectors, usable = torch.zeros(len(posts), config.image_dim), torch.zeros(len(posts), dtype=torch.bool)
    given = [row for row, post in enumerate(posts) if post.get("image") is not None]
    if not given:
        return vectors, usable
    from modeling_more.knowledge.pictures import ImageError, open_image

    if encoder is None:
        from modeling_more.knowledge.image import ImageEncoder

        if config.image_model is None:
            raise ValueError("the mixture does not tell by which tower its gate sees images: give an image_encoder")
        encoder = ImageEncoder(config.image_model)
    if encoder.dimension != config.image_dim:
        raise ValueError(
            f"the gate reads {config.image_dim} image features, {encoder.label} gives {encoder.dimension}: "
            f"the tower must be {config.image_model or 'that of the training'}"
        )
    # all pairs of a post share its image; of different ones only so many are open at once
    rows_of: dict[Any, list[int]] = {}
    for row in given:
        image = posts[row]["image"]
        rows_of.setdefault(image if isinstance(image, str | Path) else id(image), []).append(row)
    same = list(rows_of.values())
    for first in tqdm(range(0, len(same), IMAGES_AT_ONCE), desc="images", disable=len(same) < IMAGES_AT_ONCE):
        opened, pictures = [], []
        for rows in same[first : first + IMAGES_AT_ONCE]:
            try:
                pictures.append(open_image(posts[rows[0]]["image"]))
                opened.append(rows)
            except ImageError as error:
                logger.warning("the image of post %s can't be used: %s", posts[rows[0]].get("id", rows[0]), error)
        if opened:
            for rows, vector in zip(opened, torch.from_numpy(np.array(encoder.embed(pictures))), strict=True):
                vectors[rows], usable[rows] = vector, True
    return vectors, usable


def _tags(
    model: MoReMixtureForTokenClassification,
    outputs: Sequence[MixedPost],
    emissions_of: Callable[[MixedPost], Tensor],
    decode: Callable[[Tensor, Tensor], list[list[int]]],
    scores_of: Callable[[MixedPost, Any], list[float]] | None,
    batch_size: int = 64,
) -> list[Tags]:
    id2label, label2id = model.config.id2label, model.config.label2id
    found: list[Tags] = []
    for first in range(0, len(outputs), batch_size):
        chunk = outputs[first : first + batch_size]
        emissions = [emissions_of(output) for output in chunk]
        mask = _pad([torch.ones(len(one), dtype=torch.bool) for one in emissions])
        paths = decode(_pad(emissions).to(model.device), mask.to(model.device))
        for output, path in zip(chunk, paths, strict=True):
            spans = tags_to_spans([id2label[label] for label in path])
            wanted = [
                (start, end, [label2id[tag] for tag in spans_to_bioes([(0, end - start, type_)], end - start)])
                for start, end, type_ in spans
            ]
            scores = scores_of(output, wanted) if scores_of is not None and wanted else []
            found.append((spans_to_bioes(spans, len(path)), scores))
    return found


def _pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows [n, …] of different n as one tensor, zeros behind; rows of one shape are stacked."""
    if rows[0].dim() == 0 or len({row.shape for row in rows}) == 1:
        return torch.stack(list(rows))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
