"""Read from a mixture's experts what it needs: names, configurations, labels, sizes, digests."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .configuration_mixture import check_labels, label_list
from .crf import LinearChainCRF
from .loading import downloaded
from .provenance import HubName, is_own, of_others
from .retrieval_settings import ENCODER_FILES, ENCODERS, has_weights

logger = logging.getLogger(__name__)


def vocabulary_sizes(experts: Any) -> list[int]:
    """Return the number of tokens that each expert has embeddings of."""
    return [expert.encoder.get_input_embeddings().num_embeddings for expert in experts]


def keep_vocabulary_sizes(config: Any, experts: Any) -> None:
    """Write the sizes of the experts' vocabularies into the mixture's configuration.

    Raises:
        ValueError: for an expert that is only referred to, but whose embeddings were resized.
    """
    for name, saved, size in zip(config.expert_names, config.experts, vocabulary_sizes(experts), strict=False):
        encoder = saved["encoder_config"].get("text_config") or saved["encoder_config"]
        if not config.copy_experts and encoder.get("vocab_size", size) != size:
            raise ValueError(
                f"the embeddings of expert {name} were resized, but a mixture that only refers to it can't save them: "
                "make it with copy_experts=True, or save and resize the expert first"
            )
        encoder["vocab_size"] = size


def default_names(sources: Sequence[str]) -> list[str]:
    """Return the last part of each path or Hub id, numbered where it comes again."""
    names: list[str] = []
    for source in sources:
        name = source.rstrip("/").split("/")[-1]
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def plain_config(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON holds it, without the folders that it and its encoder were loaded from."""
    plain: dict[str, Any] = config.to_dict()
    for part in (plain, plain["encoder_config"]):
        part.pop("_name_or_path", None)
    for name in ("auto_map", "custom_pipelines"):  # the code that came with it, if it did
        plain.pop(name, None)
    return plain


def weights_digest(module: nn.Module) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of a module's weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


@torch.no_grad()
def tempered(
    crf: LinearChainCRF, temperature: float, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> LinearChainCRF:
    """Return a copy of a CRF with its parameters divided by a temperature, for emissions that are divided, too."""
    chain = LinearChainCRF.neutral(crf.num_tags, device or crf.transitions.device)
    chain = chain.to(dtype or crf.transitions.dtype)
    for own, its in zip(chain.parameters(), crf.parameters(), strict=True):
        own.copy_(its.to(own) / temperature)
    return chain


def check_referred(config: Any, experts: Sequence[Any]) -> None:
    """Check that experts that a mixture only refers to are still those of its configuration.

    Raises:
        ValueError: their labels are others; where their weights alone are, a warning says so.
    """
    digests = config.expert_digests or [None] * len(experts)
    for name, expert, saved, digest in zip(config.expert_names, experts, config.experts, digests, strict=True):
        if label_list(plain_config(expert.config)) != label_list(saved):
            check_labels(label_list(plain_config(expert.config)), label_list(saved), name, "this mixture")
            raise ValueError(f"expert {name} has other labels than when the mixture was made")
        # in another precision than the recorded one the bytes differ anyhow
        same_precision = str(expert.dtype) == f"torch.{saved.get('dtype')}"
        if digest and same_precision and weights_digest(expert) != digest:
            logger.warning("expert %s has other weights than when the gate was trained: train the gate again", name)


def resolve_names(config: Any, name_or_path: Any, given: Mapping[str, Any]) -> None:
    """Say where the gate's image tower and the experts lie, but for those that are `given` to `from_pretrained`.

    Raises:
        ValueError: see `distrust`.
    """
    own = is_own(Path(name_or_path) / "config.json")
    if "image_model" not in given:
        find_tower(config, name_or_path, own, given)
    if not own:
        distrust(config, given)


def find_tower(config: Any, name_or_path: Any, own: bool, place: Mapping[str, Any]) -> None:
    """Say where the gate's image tower lies: beside the mixture, or on the Hub alone if somebody else names it.

    Args:
        name_or_path: where the mixture lies, and `place` the options of `from_pretrained` that say so.
        own: whether this user saved the mixture here.
    """
    name, inner = config.image_model, ENCODERS["image_model"]
    if name is None:
        return
    if name == inner:
        folder = Path(downloaded(name_or_path, [f"{inner}/{one}" for one in ENCODER_FILES], place)) / inner
        if has_weights(folder):
            config.image_model = str(folder)
            return
    config.image_model = name if own else HubName(name)  # refused where it is used, if it is a folder


def distrust(config: Any, given: Mapping[str, Any]) -> None:
    """Look up the names in somebody else's configuration at the Hub alone, but for those that are `given` instead.

    Raises:
        ValueError: an expert that is only referred to is a folder: which, whoever made the mixture must not say.
    """
    if config.copy_experts or "expert_sources" in given:
        return
    names = [of_others(source) for source in config.expert_sources]
    if None in names:
        raise ValueError(
            f"this mixture refers to experts at {', '.join(config.expert_sources)}, and was not saved by you here: "
            "give expert_sources=[…] to from_pretrained to say where they are"
        )
    config.expert_sources = names


def align_labels(expert: Any, first: Any, name: str, first_name: str) -> None:
    """Put the expert's labels in the first one's order; raise ValueError where the sets differ."""
    labels, wanted = label_list(plain_config(expert.config)), label_list(plain_config(first.config))
    check_labels(labels, wanted, name, first_name)
    if labels == wanted:
        return
    order = torch.tensor([labels.index(label) for label in wanted], device=expert.device)
    crf = getattr(expert, "crf", None)
    for parameter in (*expert.classifier.parameters(), *(crf.parameters() if crf is not None else ())):
        parameter.data = parameter.data[order]
    if crf is not None:
        crf.transitions.data = crf.transitions.data[:, order]
    if expert.config.class_weights is not None:
        expert.config.class_weights = [expert.config.class_weights[index] for index in order.tolist()]
    expert.config.id2label = dict(enumerate(wanted))
    expert.config.label2id = {label: index for index, label in enumerate(wanted)}
