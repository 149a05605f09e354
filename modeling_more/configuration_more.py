"""Configure one MoRe expert: an encoder and a task head."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .remote_code import ConfigWithCode, register_config

HEADS = ("crf", "softmax")
TWO_VIEWS = ("off", "crf_kl", "kl")


class MoReConfig(ConfigWithCode):
    """The configuration of one expert: an encoder that reads `[words ; separator ; knowledge]`, and a task head.

    Args:
        encoder_config: configuration of the encoder (an object or its dictionary).
        head: how entities are scored, by a `"crf"` over the words or a `"softmax"` of each word; relations always
            have a softmax.
        two_views: loss between the view with knowledge and the view without: `"crf_kl"` (KL of the CRF's
            marginals), `"kl"` (KL of the softmax of the emissions) or `"off"`. Paper, section 3.4.
        kl_temperature: T, which softens both distributions of the KL term.
        nll_weight: lambda, the weight of the likelihood terms; the KL term weighs 1 - lambda.
        kl_target_transitions: whether the KL term moves the transitions through its target too (authors' code).
        head_dropout: dropout on the word representations.
        word_dropout: probability with which a word's whole representation is zeroed in training.
        constrained_decoding: whether decoding excludes the tag sequences that BIOES forbids.
        class_weights: weight of each relation in the loss; default: all alike.
        id2label: BIOES labels `{0: "O", 1: "B-PER", …}`, or relations `{0: "None", …}`.

    Raises:
        ValueError: for an unknown head or two-view loss, or a value out of its range.
    """

    model_type = "more"
    modeling = "modeling_more"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(AutoConfig, model_type="xlm-roberta")}

    encoder_config: dict | PreTrainedConfig | None = None
    head: str = "crf"
    two_views: str = "off"
    kl_temperature: float = 1.0
    nll_weight: float = 0.5
    kl_target_transitions: bool = False
    head_dropout: float = 0.0
    word_dropout: float = 0.0
    constrained_decoding: bool = True
    class_weights: list[float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r}, it must be one of {', '.join(HEADS)}")
        if self.two_views not in TWO_VIEWS:
            raise ValueError(f"two_views is {self.two_views!r}, it must be one of {', '.join(TWO_VIEWS)}")
        if self.two_views == "crf_kl" and self.head != "crf":
            raise ValueError('two_views="crf_kl" needs head="crf"; with a softmax head choose "kl"')
        if self.kl_temperature <= 0:
            raise ValueError(f"kl_temperature is {self.kl_temperature}, it must be above 0")
        if not 0 <= self.nll_weight <= 1:
            raise ValueError(f"nll_weight is {self.nll_weight}, it must lie between 0 and 1")
        super().__post_init__(**kwargs)
        if self.class_weights is not None and self.id2label and len(self.class_weights) != len(self.id2label):
            raise ValueError(f"{len(self.class_weights)} class_weights for {len(self.id2label)} labels")
        if self.id2label:
            self.label2id = {str(label): int(index) for index, label in self.id2label.items()}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds, without the folders that model and encoder were loaded from."""
        found: dict[str, Any] = super().to_diff_dict()
        for part in (found, found.get("encoder_config") or {}):
            part.pop("_name_or_path", None)
        return found


register_config(MoReConfig)
