"""This module computes and caches what a mixture's gate reads: the experts' outputs and the image embeddings."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from datasets import Image as ImageFeature
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..data_collator import MixtureCollator, pad_rows
from ..encoding import IMAGES_AT_ONCE, encode_for_experts, map_batches
from ..files import new_file, remove_strays_of
from ..knowledge.corpus_tables import claim
from ..knowledge.pictures import ImageError, image_file, open_image, or_error, read_bytes
from ..mixed_experts import weights_digest
from ..modeling_mixture import MoReMixtureForRelationExtraction, MoReMixtureForTokenClassification, MoReMixtureOutput
from ..processing_mixture import MoReMixtureProcessor

logger = logging.getLogger(__name__)

Mixture = MoReMixtureForTokenClassification | MoReMixtureForRelationExtraction
Post = Mapping[str, Any]
CACHE_VERSION = 3  # 2: with a digest; 3: with readings of the words alone
_DIGEST = "sha256"  # of the tensors, in the metadata of a file


@dataclass
class Features:
    """A gate's inputs for the posts of a split, in their order.

    Attributes:
        expert_logits: the logits of all readings (`MoReMixturePreTrainedModel.readings`) of each post, [Z, N, L], or
            [Z, C] for relations.
        text: the text features of each post, [H], or [N, H] for a gate per word.
        images: float32 embeddings [P, D] and whether each is usable [P]; None for a gate without images.
        expert_log_probs: log-probabilities shaped like `expert_logits`, if they come from other models than the
            mixture's experts.
        confidence: those of other models, likewise: [E], or [N, E] for a gate per word.
        search: `search_evidence` [experts, 7] and `title_words` [experts, N] of each post; None where not known.
    """

    expert_logits: list[Tensor]
    text: list[Tensor]
    images: tuple[Tensor, Tensor] | None = None
    expert_log_probs: list[Tensor] | None = None
    confidence: list[Tensor] | None = None
    search: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.expert_logits)

    def select(self, rows: Sequence[int]) -> Features:
        """Return the features of some posts."""
        chosen = torch.tensor(rows, dtype=torch.long)
        images = None if self.images is None else (self.images[0][chosen], self.images[1][chosen])
        lists = (self.expert_logits, self.text, self.expert_log_probs, self.confidence, self.search)
        logits, text, said, sure, search = (None if one is None else [one[row] for row in rows] for one in lists)
        return Features(logits, text, images, said, sure, search)  # type: ignore[arg-type]


def expert_features(
    model: Mixture,
    processor: MoReMixtureProcessor,
    posts: Sequence[Post],
    accelerator: Accelerator,
    batch_size: int = 16,
    cache_dir: str | Path | None = None,
    description: str = "experts",
) -> Features:
    """Return the experts' outputs and the gate's text features, from the cache if they were computed before.

    Args:
        posts: rows {tokens, expert_knowledge, (head, tail)}.
        cache_dir: the folder of the cache, whose file names are digests of weights and inputs; None caches nothing.
    """
    encoded = encode_for_experts(posts, processor)
    search = [(torch.tensor(one["search_evidence"]), torch.tensor(one["title_words"])) for one in encoded]
    file = None
    if cache_dir is not None:
        file = Path(cache_dir) / "mixture" / f"{_digest(model, encoded)}.safetensors"
        # all processes or none: computing gathers from all of them
        cached = _read(file, len(encoded))
        if all(gather_object([cached is not None])) and cached is not None:
            return Features(*cached, search=search)

    def compute(batch: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        logits = model.expert_outputs(batch["experts"], batch["alone"]).float().cpu()
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
    found = map_batches(encoded, MixtureCollator(processor), compute, accelerator, batch_size, description)
    features = Features([logits for logits, _ in found], [text for _, text in found], search=search)
    if file is not None and accelerator.is_main_process:
        _write(file, features)
    accelerator.wait_for_everyone()
    return features


def _digest(model: Mixture, encoded: Sequence[Post]) -> str:
    """Return a digest of the experts' weights, the kind of gate, and all their inputs."""
    about = [CACHE_VERSION, model.config.gate, model.config.alone, len(encoded), weights_digest(model.experts)]
    digest = hashlib.sha256(json.dumps(about).encode())
    for post in encoded:
        inputs = ("input_ids", "word_rows", "word_positions")
        views = [[view[name] for name in inputs] for view in (*post["experts"], *post["alone"], post["text_only"])]
        digest.update(json.dumps(views).encode())
    return digest.hexdigest()[:32]


def _write(file: Path, features: Features) -> None:
    tensors: dict[str, Tensor] = {}
    # words first, so that posts of any length can be concatenated
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
    plain = {name: value.contiguous() for name, value in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with claim(file, wait=True):
        remove_strays_of(file)
        try:
            with new_file(file) as beside:
                save_file(plain, beside, {_DIGEST: _tensors_digest(plain)})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"{file} can't be written: {error}") from None


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load(file: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file of the cache, or None where they must be computed (again), which is logged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            told = (opened.metadata() or {}).get(_DIGEST)
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}
        if _tensors_digest(tensors) == told:
            return tensors
    except (SafetensorError, OSError, ValueError, RuntimeError):
        pass
    logger.warning("%s is damaged: what it held is computed again.", file)  # not by us: writing is atomic
    return None


def _read(file: Path, posts: int) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return the logits and text features of a file of the cache, or None where they must be computed."""
    tensors = _load(file)
    if tensors is None:
        return None
    rows = {}
    for name in ("expert_logits", "text"):
        lengths: list[int] = tensors[f"{name}_lengths"].int().tolist()
        rows[name] = list(tensors[name].split(lengths)) if lengths else list(tensors[name])
    logits = [one.transpose(0, 1) if one.dim() == 3 else one for one in rows["expert_logits"]]
    if len(logits) != posts or len(rows["text"]) != posts:
        logger.warning("%s is of %d posts, not of %d: it is computed again.", file, len(logits), posts)
        return None
    return logits, rows["text"]


def image_features(
    posts: Dataset, image_dir: str | Path | None, encoder: Any, cache_dir: str | Path | None = None
) -> tuple[Tensor, Tensor]:
    """Return embeddings [P, D] of the posts' images, zeros without a usable one, and whether each is usable [P].

    Args:
        posts: a data set with a column `image`, or `image_id`, which names files in `image_dir`.
    """
    sources = posts.select_columns(["image_id" if image_dir is not None else "image"])
    if image_dir is None:
        sources = sources.cast_column("image", ImageFeature(decode=False))
    vectors, usable = torch.zeros(len(posts), encoder.dimension), torch.zeros(len(posts), dtype=torch.bool)
    reasons: Counter[str] = Counter()
    size = IMAGES_AT_ONCE
    for first in tqdm(range(0, len(posts), size), desc="images", disable=len(posts) <= size, leave=False):
        rows = sources.select(range(first, min(first + size, len(posts)))).to_list()
        found = [
            row["image"] if image_dir is None else or_error(partial(image_file, image_dir), row["image_id"])
            for row in rows
        ]
        file = None
        if cache_dir is not None:
            digest = hashlib.sha256(f"{CACHE_VERSION} {encoder.fingerprint}".encode())
            for source in found:
                try:
                    content = read_bytes(source)
                except ImageError:  # counted below
                    content = b""
                digest.update(hashlib.sha256(content).digest())
            file = Path(cache_dir) / "mixture" / f"images-{digest.hexdigest()[:32]}.safetensors"
        tensors = _load(file) if file is not None else None
        if tensors is None:
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
    if not usable.all():  # the reasons are only known for images that were not cached
        told = "".join(f", {count} {reason}" for reason, count in reasons.most_common())
        lacking = len(posts) - int(usable.sum())
        logger.warning("%d of %d posts have no usable image%s: the gate is told so.", lacking, len(posts), told)
    return vectors, usable


def gate_batch(features: Features, rows: Sequence[int], labels: Sequence[Any] | None = None) -> dict[str, Tensor]:
    """Return the inputs of a mixture's forward for some posts, from stored outputs: no expert runs.

    Args:
        labels: for every post of `features`, the label ids of its words, or the id of its relation.
    """
    chosen = features.select(rows)
    relations = chosen.expert_logits[0].dim() == 2
    batch = {"text_features": pad_rows(chosen.text)}
    for key, said in (("expert_logits", chosen.expert_logits), ("expert_log_probs", chosen.expert_log_probs)):
        if said is not None and relations:
            batch[key] = torch.stack(said)
        elif said is not None:
            batch[key] = pad_rows([one.transpose(0, 1) for one in said]).transpose(1, 2)
    if not relations:
        batch["word_mask"] = pad_rows([torch.ones(one.shape[1], dtype=torch.bool) for one in chosen.expert_logits])
    if chosen.search is not None:
        batch["search_evidence"] = torch.stack([values for values, _ in chosen.search])
        batch["title_words"] = pad_rows([flags.T for _, flags in chosen.search]).transpose(1, 2)
    if chosen.confidence is not None:
        batch["confidence"] = pad_rows(chosen.confidence)
    if chosen.images is not None:
        batch["image_features"], batch["image_mask"] = chosen.images
    if labels is not None:
        found = [labels[row] for row in rows]
        batch["labels"] = torch.tensor(found) if relations else pad_rows([torch.tensor(one) for one in found])
    return batch


def mixed(
    model: Mixture, features: Features, batch_size: int = 64, labels: Sequence[Any] | None = None
) -> Iterator[tuple[MoReMixtureOutput, Tensor]]:
    """Yield a mixture's outputs for stored features, batch by batch, with the mask of the words [B, N].

    Args:
        labels: for every post, see `gate_batch`; the outputs then have a loss.
    """
    model.eval()
    for first in range(0, len(features), batch_size):
        rows = range(first, min(first + batch_size, len(features)))
        batch = {key: value.to(model.device) for key, value in gate_batch(features, rows, labels).items()}
        if not model.gate.image_dim:
            batch = {key: value for key, value in batch.items() if not key.startswith("image_")}
        with torch.no_grad():
            output = model(**batch)
        mask = batch.get("word_mask")
        yield output, torch.ones(len(rows), 1, dtype=torch.bool, device=model.device) if mask is None else mask
