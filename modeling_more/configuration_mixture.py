"""Configure a mixture: its experts' configurations and the gate that weighs them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .remote_code import ConfigWithCode, register_config
from .retrieval_settings import ENCODERS

GATES = ("post", "word")
GATE_INPUTS = ("text", "image", "scores", "confidence")
DECODINGS = ("viterbi", "word")
ALONE = "_alone"  # ends the name of an expert's reading of the words without knowledge
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class MoReMixtureConfig(ConfigWithCode):
    """The configuration of several experts, each a whole MoRe model, and of a gate that weighs them.

    Args:
        experts: the experts' configurations, `MoReConfig.to_dict()` of each; the gate reads the first one's states.
        expert_names: short and unique, in the same order; the processor's folders are named after them.
        expert_sources: where each expert comes from: a Hub id or a folder (of copied experts its name only).
        expert_digests: `weights_digest` of each expert that is only referred to, so that loading notices a change.
        copy_experts: whether a checkpoint holds the experts' weights; if not, it refers to `expert_sources`.
        gate: whether an expert has one weight for a whole `"post"` (the paper) or for each `"word"` (entities only).
        gate_inputs: what the gate reads: the post's `"text"` and `"image"` (the paper), the `"scores"` of what each
            expert's search found, the `"confidence"` of what it says (`evidence`); nothing makes weights that are the
            same for all posts.
        gate_hidden: width of the gate's hidden layer over text and image; 0 makes the gate linear.
        image_dim: dimension of the image features; 0 shows the gate no image.
        image_model: the image tower that makes these features: a Hub id, or a folder, which is saved with the mixture.
        image_dropout: probability with which a post's image is hidden from the gate in training, so that the vector
            that stands for a missing image is learned.
        load_balancing: weight of Z · Σ_z (mean over the batch of g_z)², which is 1 where all experts are used alike.
            Where experts are trained along and an optimizer step has several batches, each of these is evened out.
        entropy: weight of the mean entropy of g, in nats: above 0 the gate decides sooner, below 0 later. The means
            are over posts, with a gate per word over those of their words.
        alone: numbers of the experts that also read the words without knowledge, for `"confidence"` and `abstain`:
            all that read knowledge, or none.
        abstain: whether these readings are mixed, too, so that the gate can do without an expert's knowledge.
        temperatures: by which the scores of each expert are divided; default: 1 for all.
        train_experts: whether to train the experts with the gate; if not, they are frozen and in eval mode.
        decoding: how entities are decoded, by `"viterbi"` over the mixture's log-probabilities under the BIOES
            constraints, or by the best label of each `"word"` (the paper).
        id2label: BIOES labels or relations, the same for all experts; default: the first expert's.

    Raises:
        ValueError: for an unknown option, a value out of its range, names that are no names or not unique, or experts
            whose labels differ.
    """

    model_type = "more-mixture"
    modeling = "modeling_mixture"

    experts: list[dict] | None = None
    expert_names: list[str] | None = None
    expert_sources: list[str] | None = None
    expert_digests: list[str] | None = None
    copy_experts: bool = True
    gate: str = "post"
    gate_inputs: list[str] | None = None
    gate_hidden: int = 0
    image_dim: int = 0
    image_model: str | None = None
    image_dropout: float = 0.1
    load_balancing: float = 0.0
    entropy: float = 0.0
    alone: list[int] | None = None
    abstain: bool = False
    temperatures: list[float] | None = None
    train_experts: bool = False
    decoding: str = "viterbi"

    def __post_init__(self, **kwargs: Any) -> None:
        self.experts = self.experts or []
        if self.expert_names is None:
            self.expert_names = [f"expert-{index}" for index in range(len(self.experts))]
        self.expert_sources = self.expert_sources or []
        if self.gate not in GATES:
            raise ValueError(f"gate is {self.gate!r}, it must be one of {', '.join(GATES)}")
        if self.decoding not in DECODINGS:
            raise ValueError(f"decoding is {self.decoding!r}, it must be one of {', '.join(DECODINGS)}")
        for name in ("gate_inputs", "alone", "temperatures"):
            if not isinstance(getattr(self, name), list | tuple | None):
                raise ValueError(f"{name} is {getattr(self, name)!r:.80}, it must be a list")
        self.gate_inputs = ["text", "image"] if self.gate_inputs is None else list(self.gate_inputs)
        if unknown := [one for one in self.gate_inputs if one not in GATE_INPUTS]:
            raise ValueError(f"gate_inputs hold {unknown[0]!r:.80}, they must be some of {', '.join(GATE_INPUTS)}")
        for name in ("gate_hidden", "image_dim", "load_balancing"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must not be below 0")
        if not 0 <= self.image_dropout < 1:
            raise ValueError(f"image_dropout is {self.image_dropout}, it must lie between 0 and 1")
        if self.train_experts and not self.copy_experts:
            raise ValueError("train_experts needs copy_experts: experts that are only referred to can't be saved")
        check_names(self.expert_names, len(self.experts))
        self._check_readings()
        if not self.copy_experts and len(self.expert_sources) != len(self.experts):
            raise ValueError(f"{len(self.experts)} experts are referred to by {len(self.expert_sources)} sources")
        labels = [label_list(expert) for expert in self.experts]
        for name, other in zip(self.expert_names[1:], labels[1:], strict=True):
            check_labels(other, labels[0], name, self.expert_names[0])
            if other != labels[0]:
                raise ValueError(f"expert {name} has the labels of {self.expert_names[0]} in another order")
        if labels and not self.id2label:
            self.id2label = dict(enumerate(labels[0]))
        super().__post_init__(**kwargs)
        own = {int(index): str(label) for index, label in (self.id2label or {}).items()}
        self.label2id = {label: index for index, label in own.items()}
        if labels and [own[index] for index in sorted(own)] != labels[0]:
            raise ValueError("id2label of the mixture is not that of its experts")

    @property
    def readers(self) -> list[str]:
        """Return the names of what is mixed: the experts and, with `abstain`, those that read the words alone."""
        names, alone = self.expert_names or [], self.alone or []
        return names + ([f"{names[place]}{ALONE}" for place in alone] if self.abstain else [])

    def _check_readings(self) -> None:
        number = len(self.experts or ())
        alone = self.alone = list(self.alone or ())
        if any(type(one) is not int or not 0 <= one < number for one in alone) or len(set(alone)) < len(alone):
            raise ValueError(f"alone is {alone!r:.80}, it must hold numbers of the {number} experts")
        if self.abstain and not alone:
            raise ValueError("abstain needs alone: the experts that also read the words without knowledge")
        if self.abstain:
            check_names(self.readers, number + len(alone))
        told = self.temperatures or [1.0] * number
        if len(told) != number or not all(isinstance(one, float | int) and 0 < one < float("inf") for one in told):
            raise ValueError(f"temperatures are {told!r:.80}, they must be {number} numbers above 0")

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds: of an image tower in a folder the name that it has beside the mixture."""
        found: dict[str, Any] = super().to_diff_dict()
        if isinstance(tower := found.get("image_model"), str) and Path(tower).is_dir():
            found["image_model"] = ENCODERS["image_model"]
        return found


def check_names(names: Sequence[str], number: int) -> None:
    """Raise ValueError unless these are unique names of so many experts, each fit to name a folder."""
    if len(names) != number:
        raise ValueError(f"{len(names)} names ({', '.join(names)}) for {number} experts")
    if len(set(names)) != number:
        raise ValueError(f"the names of the experts must differ: {', '.join(names)}")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} can't name an expert: use letters, digits and . _ -")


def label_list(config: Mapping[str, Any]) -> list[str]:
    """Return the labels of an expert's configuration in the order of their ids."""
    return [
        label for _, label in sorted((int(index), label) for index, label in (config.get("id2label") or {}).items())
    ]


def check_labels(labels: Sequence[str], wanted: Sequence[str], name: str, first: str) -> None:
    """Raise ValueError with the labels that only one of two experts has, where there are any."""
    surplus, lacking = sorted(set(labels) - set(wanted)), sorted(set(wanted) - set(labels))
    if surplus or lacking:
        parts = [f"{who} alone has {', '.join(which)}" for who, which in ((name, surplus), (first, lacking)) if which]
        raise ValueError(f"the label sets of experts {first} and {name} differ: {'; '.join(parts)}")


register_config(MoReMixtureConfig)
