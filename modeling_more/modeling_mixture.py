"""Define the mixtures, in which a gate over a post's text and image weighs what each expert says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from .configuration_mixture import MoReMixtureConfig, check_names
from .configuration_more import MoReConfig
from .crf import LinearChainCRF
from .files import manifest_kept
from .gate import Gate, mix
from .loading import config_of, load_whole
from .mixed_experts import (
    align_labels,
    check_referred,
    default_names,
    keep_vocabulary_sizes,
    plain_config,
    resolve_names,
    vocabulary_sizes,
    weights_digest,
)
from .model_inputs import lacking, refuse
from .modeling_more import MoReForRelationExtraction, MoReForTokenClassification
from .provenance import remember
from .pushing import ManifestKept
from .remote_code import named_class, register_models
from .retrieval_settings import ENCODERS, save_encoder
from .tagging import allowed_transitions

Inputs = Mapping[str, Tensor]
#: options of `from_pretrained` that also hold for experts that are only referred to
_SHARED_OPTIONS = ("dtype", "attn_implementation", "token", "cache_dir", "local_files_only", "force_download")


@dataclass
class MoReMixtureOutput(ModelOutput):
    """The output of a mixture for B posts, Z experts, N words, L labels, C relations.

    Attributes:
        loss: scalar, when labels are given.
        logits: log-probabilities of the mixture, [B, N, L] of entities, [B, C] of relations.
        expert_weights: the gate, rows sum to 1: [B, Z], or [B, N, Z] with a gate per word.
        expert_logits: what each expert says: emissions [B, Z, N, L], or logits [B, Z, C].
        expert_log_probs: the same as log-probabilities: log-marginals of the CRF, or log-softmax.
    """

    loss: Tensor | None = None
    # always there; ModelOutput wants defaults
    logits: Tensor = None  # type: ignore[assignment]
    expert_weights: Tensor = None  # type: ignore[assignment]
    expert_logits: Tensor = None  # type: ignore[assignment]
    expert_log_probs: Tensor = None  # type: ignore[assignment]


class MoReMixturePreTrainedModel(ManifestKept, PreTrainedModel):
    """The base of both mixtures: it holds the experts and the gate over them, and saves and loads both."""

    config: Any  # a MoReMixtureConfig
    experts: Any  # a ModuleList of `expert_class`
    config_class = MoReMixtureConfig
    expert_class: ClassVar[Any]
    accepts_loss_kwargs = False  # see `MoRePreTrainedModel`
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # the gate is tiny, and in half precision its weights would not sum to 1
    _keep_in_fp32_modules_strict = ["crf", r"^gate\."]

    def __init__(self, config: MoReMixtureConfig, experts: Sequence[nn.Module] | None = None):
        """Take `experts` that are already loaded, or build new ones from the configuration."""
        if not config.experts:
            raise ValueError("a mixture needs at least one expert")
        attention = config._attn_implementation
        super().__init__(config)
        configs = [MoReConfig(**expert) for expert in config.experts]
        built = []
        if experts is None and config.copy_experts:
            for expert_config in configs:
                # not the precision in which the expert was saved, but the one in which the mixture is built
                expert_config.dtype = expert_config.encoder_config.dtype = None  # type: ignore[union-attr]
                # "sdpa" is what every encoder that has it chooses by itself
                if attention not in (None, "sdpa"):
                    expert_config._attn_implementation = attention
                built.append(self.expert_class(expert_config))
        self.experts = nn.ModuleList(built)
        text_dim = configs[0].encoder_config.hidden_size  # type: ignore[union-attr]
        self.gate = Gate(text_dim, config.image_dim, len(configs), config.gate_hidden, config.image_dropout)
        self.post_init()
        # after it: nothing may initialise them again. Experts that are only referred to come with from_pretrained
        if experts is not None:
            self.experts = nn.ModuleList(experts)
        self._freeze()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Gate):
            init.zeros_(module.output.weight)
            init.zeros_(module.output.bias)
            init.zeros_(module.center)
            init.ones_(module.scale)
            if module.missing_image is not None:
                init.normal_(module.missing_image, std=0.02)
        elif module is not self.gate.output:
            super()._init_weights(module)

    @classmethod
    def from_experts(
        cls,
        names_or_paths: Sequence[str | Path],
        names: Sequence[str] | None = None,
        *,
        expert_options: dict[str, Any] | None = None,
        **config: Any,
    ) -> Self:
        """Return a mixture of saved experts with a fresh gate, which weighs them all alike.

        Args:
            names_or_paths: folders or Hub ids of saved experts.
            names: short unique names; default: the last parts of the sources.
            expert_options: passed to the experts' `from_pretrained` (`dtype`, `attn_implementation`, `token` …).
            config: fields of `MoReMixtureConfig` (`gate`, `image_dim`, `copy_experts` …).

        Raises:
            ValueError: for experts of another task, with different labels, or in different precision.
            FileNotFoundError: for an expert that is neither a folder nor on the Hub.
        """
        # absolute: a checkpoint that refers to a folder may be loaded from elsewhere
        sources = [str(Path(source).resolve()) if Path(source).is_dir() else str(source) for source in names_or_paths]
        names = list(names) if names is not None else default_names(sources)
        check_names(names, len(sources))  # before minutes of loading
        experts = cls._load_experts(sources, names, expert_options or {})
        precisions = {str(expert.dtype) for expert in experts}
        if len(precisions) > 1:
            raise ValueError(f"the experts differ in precision ({', '.join(sorted(precisions))}): name one dtype")
        configs = [plain_config(expert.config) for expert in experts]
        if config.get("copy_experts", True):  # the folders of this machine mean nothing to those who load it
            sources = [Path(source).name if Path(source).is_dir() else source for source in sources]
        else:
            config["expert_digests"] = [weights_digest(expert) for expert in experts]
        return cls(
            MoReMixtureConfig(experts=configs, expert_names=names, expert_sources=sources, **config), experts=experts
        ).eval()

    @classmethod
    def _load_experts(cls, sources: Sequence[str], names: Sequence[str], options: dict[str, Any]) -> list[Any]:
        """Return the experts, all with the labels of the first one in its order."""
        experts: list[Any] = []
        for source, name in zip(sources, names, strict=True):
            shared = {key: value for key, value in options.items() if key not in ("dtype", "attn_implementation")}
            try:
                config = config_of(source, **shared)
            except OSError as error:
                raise FileNotFoundError(
                    f"expert {name} is not at {source}: it must be a folder or a Hub id of a saved expert"
                ) from error
            found = (config.architectures or [config.model_type])[0]
            if found != cls.expert_class.__name__:
                raise ValueError(
                    f"expert {name} at {source} is a {found}, this mixture takes {cls.expert_class.__name__}"
                )
            expert = cls.expert_class.from_pretrained(source, **options)
            if experts:
                align_labels(expert, experts[0], name, names[0])
            experts.append(expert)
        return experts

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a mixture, with experts that are only referred to from their sources.

        The experts are frozen and in eval mode again, unless `train_experts`.

        Raises:
            FileNotFoundError: when an expert that is referred to is gone.
            ValueError: when it has changed in kind since (where its weights alone have, a warning says so), or is a
                folder that somebody else's mixture names; weights are not those of the model, see `load_whole`.
        """
        if (named := named_class(cls, kwargs.get("config"))) is not cls:
            return named.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        options = {key: kwargs[key] for key in _SHARED_OPTIONS if key in kwargs}
        loaded = load_whole(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        config = model.config
        resolve_names(config, pretrained_model_name_or_path, given=kwargs)
        if not config.copy_experts:
            experts = cls._load_experts(config.expert_sources, config.expert_names, options)
            check_referred(config, experts)
            model.experts = nn.ModuleList(experts).to(model.gate.output.weight.device)
        model._freeze()
        model.eval()
        return loaded

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """Save the mixture; without `copy_experts` the gate alone is written.

        Raises:
            ValueError: for experts that are only referred to, but whose embeddings were resized.
        """
        keep_vocabulary_sizes(self.config, self.experts)
        if not self.config.copy_experts:
            weights = self.state_dict() if state_dict is None else state_dict
            state_dict = {key: value for key, value in weights.items() if not key.startswith("experts.")}
        with manifest_kept(save_directory):
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
            if is_main_process:
                save_encoder(self.config.image_model, Path(save_directory) / ENCODERS["image_model"])
        names = (self.config.image_model, *(self.config.expert_sources or ()))
        if is_main_process:
            remember(Path(save_directory) / "config.json", names)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the embeddings of every expert and return the first one's.

        Raises:
            ValueError: for experts with vocabularies of different sizes, and for those that are only referred to.
        """
        sizes = vocabulary_sizes(self.experts)
        if len(set(sizes)) > 1:
            raise ValueError(
                f"the experts' vocabularies hold {', '.join(map(str, sizes))} tokens: resize each by itself, with "
                "experts[i].resize_token_embeddings"
            )
        embeddings: list[nn.Embedding] = [expert.resize_token_embeddings(*args, **kwargs) for expert in self.experts]
        keep_vocabulary_sizes(self.config, self.experts)
        return embeddings[0]

    def _freeze(self) -> None:
        self.experts.requires_grad_(bool(self.config.train_experts))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen experts stay in eval mode."""
        super().train(mode)
        if not self.config.train_experts:
            self.experts.eval()
        return self

    def forward(
        self,
        experts: Sequence[Inputs] | None = None,
        text_only: Inputs | None = None,
        word_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        image_mask: Tensor | None = None,
        labels: Tensor | None = None,
        expert_logits: Tensor | None = None,
        text_features: Tensor | None = None,
        expert_log_probs: Tensor | None = None,
        **others: Any,
    ) -> MoReMixtureOutput:
        """Return the mixture's log-probabilities and, with labels, the loss; MoReMixtureProcessor makes the inputs.

        Args:
            experts: each expert's inputs, as its `MoReProcessor.pad` makes them, of the same posts and words.
            text_only: the words without knowledge, for the first expert: what the gate reads.
            word_mask: [B, N] True where there is a word; default: that of the first expert's inputs.
            image_features: [B, D]; default: no post has an image.
            image_mask: [B], False where the image is missing; default: every post has one.
            labels: [B, N] label ids (values under `word_mask` False are ignored), or [B] relations.
            expert_logits: [B, Z, N, L] or [B, Z, C] of `expert_outputs`, instead of `experts`.
            text_features: [B, H] or, with a gate per word, [B, N, H] of `text_features()`, instead of `text_only`.
            expert_log_probs: of the shape of `expert_logits`, of other models (crossfit); default: made of the logits.

        Raises:
            ValueError: when inputs are missing or do not fit each other.
        """
        if expert_logits is None:
            if experts is None:
                raise lacking(self, "experts (the inputs of each) or expert_logits", "MoReMixtureProcessor")
            expert_logits = self.expert_outputs(experts)
            word_mask = experts[0].get("word_mask") if word_mask is None else word_mask
        if text_features is None:
            if text_only is None:
                raise ValueError("the gate needs text_only (the first expert's inputs) or text_features")
            text_features = self.text_features(text_only)
        refuse(others)
        if expert_logits.shape[1] != len(self.config.experts):
            raise ValueError(f"expert_logits hold {expert_logits.shape[1]} experts, not {len(self.config.experts)}")
        if text_features.dim() != (3 if self.config.gate == "word" else 2):
            raise ValueError(f"text_features {tuple(text_features.shape)} do not fit a gate per {self.config.gate}")

        log_probs = expert_log_probs
        if log_probs is None:
            log_probs = self.expert_log_probs(expert_logits, word_mask)
        log_weights = self.gate(text_features, image_features, image_mask)
        weights = log_weights.exp()
        # an expert whose weight has become 0 adds nothing, however unlikely the others find a label
        logits = mix(log_probs, log_weights.masked_fill(weights == 0, float("-inf")))
        loss = None
        if labels is not None:
            loss = -self._log_likelihood(logits, labels, word_mask).mean() + self._gate_loss(log_weights, word_mask)
        return MoReMixtureOutput(loss, logits, weights, expert_logits, log_probs)

    def expert_outputs(self, experts: Sequence[Inputs]) -> Tensor:
        """Return what every expert says, in float32: emissions [B, Z, N, L] or logits [B, Z, C]."""
        if len(experts) != len(self.experts):
            raise ValueError(f"inputs for {len(experts)} experts, the mixture has {len(self.experts)}")
        first = experts[0]["word_mask"]
        for name, inputs in zip(self.config.expert_names, experts, strict=True):
            if inputs["word_mask"].shape != first.shape or not bool((inputs["word_mask"] == first).all()):
                raise ValueError(f"expert {name} reads other words than {self.config.expert_names[0]}: cut no words")
        with torch.set_grad_enabled(self.config.train_experts and torch.is_grad_enabled()):
            return torch.stack(
                [expert(**inputs).logits for expert, inputs in zip(self.experts, experts, strict=True)], 1
            )

    def text_features(self, text_only: Inputs) -> Tensor:
        """Return the first expert's states at the words, [B, N, H] with a gate per word, else their mean [B, H]."""
        with torch.set_grad_enabled(self.config.train_experts and torch.is_grad_enabled()):
            inputs = {key: text_only.get(key) for key in ("input_ids", "attention_mask")}
            states = self.experts[0].encode(
                **inputs, positions=text_only["word_positions"], rows=text_only.get("word_rows")
            )
            states = states.float()
            if self.config.gate == "word":
                return states
            mask = text_only["word_mask"].unsqueeze(-1)
            return states.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)

    def expert_log_probs(self, expert_logits: Tensor, word_mask: Tensor | None = None) -> Tensor:
        """Return log-probabilities of each expert, of the shape of its logits."""
        raise NotImplementedError

    def _log_likelihood(self, logits: Tensor, labels: Tensor, word_mask: Tensor | None) -> Tensor:
        """Return log p(y|x) [B]."""
        raise NotImplementedError

    def _gate_loss(self, log_weights: Tensor, word_mask: Tensor | None) -> Tensor:
        """Return load_balancing · Z Σ_z (mean g_z)² + entropy · mean H(g), means over posts (of their words)."""
        weights = log_weights.exp()
        # not entr(weights): its gradient is infinite at a weight that has become 0
        entropy = -(weights * log_weights).sum(-1)
        if weights.dim() == 3:
            assert word_mask is not None
            parts = word_mask / word_mask.sum(1, keepdim=True)
            weights, entropy = (weights * parts.unsqueeze(-1)).sum(1), (entropy * parts).sum(1)
        balance = weights.shape[-1] * weights.mean(0).square().sum()
        return self.config.load_balancing * balance + self.config.entropy * entropy.mean()


class MoReMixtureForTokenClassification(MoReMixturePreTrainedModel):
    """A mixture of experts on named entities.

        mixture = MoReMixtureForTokenClassification.from_experts(["runs/text", "runs/image"], image_dim=512)
        mixture.save_pretrained("mixture")
        AutoModelForTokenClassification.from_pretrained("mixture")

    Position by position, p(y_i) = Σ_z g_z q_z(y_i) with q_z the marginals of expert z's CRF, and
    L = − mean over the batch of Σ_i log Σ_z g_z q_z(y*_i). Source: Wang et al. 2022, section 3.5; METHOD, section 4.
    """

    expert_class = MoReForTokenClassification

    def expert_log_probs(self, expert_logits: Tensor, word_mask: Tensor | None = None) -> Tensor:
        """Return log-marginals [B, Z, N, L] from emissions [B, Z, N, L]."""
        if word_mask is None:
            raise ValueError("word_mask is needed with expert_logits of entities")
        marginals = [
            expert.log_marginals(emissions, word_mask)
            for expert, emissions in zip(self.experts, expert_logits.unbind(1), strict=True)
        ]
        return torch.stack(marginals, 1)

    def _log_likelihood(self, logits: Tensor, labels: Tensor, word_mask: Tensor | None) -> Tensor:
        assert word_mask is not None
        labels = labels.masked_fill(~word_mask, 0)
        return (logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) * word_mask).sum(1)

    @torch.no_grad()
    def decode(self, logits: Tensor, word_mask: Tensor, decoding: str | None = None) -> list[list[int]]:
        """Return the label ids of each post from log-probabilities [B, N, L].

        `"word"` takes the best of each word, `"viterbi"` the best sequence under BIOES. Default: `config.decoding`.
        """
        decoding = decoding or self.config.decoding
        if decoding == "word":
            paths = logits.argmax(-1)
        elif decoding == "viterbi":
            labels = [self.config.id2label[index] for index in range(self.config.num_labels)]
            allowed: Any = tuple(torch.tensor(part, device=logits.device) for part in allowed_transitions(labels))
            paths, _ = LinearChainCRF.neutral(len(labels), logits.device).viterbi(logits, word_mask, allowed)
        else:
            raise ValueError(f'decoding is {decoding!r}, it must be "viterbi" or "word"')
        lengths = word_mask.sum(1).tolist()
        return [path[:length] for path, length in zip(paths.tolist(), lengths, strict=True)]

    @torch.no_grad()
    def span_scores(
        self, output: MoReMixtureOutput, word_mask: Tensor, spans: Sequence[Sequence[tuple[int, int, Sequence[int]]]]
    ) -> list[Tensor]:
        """Return the probability of each span (start, end exclusive, label ids of its words), one tensor a post.

        It is Σ_z g_z p_z(span) with a gate per post, and the product of the words' probabilities with one per word.
        """
        if self.config.gate == "word":
            scores = []
            for row, found in zip(output.logits, spans, strict=True):
                terms = [
                    row[torch.arange(start, end, device=row.device), torch.tensor(labels, device=row.device)].sum()
                    for start, end, labels in found
                ]
                scores.append(torch.stack(terms).exp() if terms else row.new_zeros(0))
            return scores
        by_expert = [
            expert.span_scores(emissions, word_mask, spans)
            for expert, emissions in zip(self.experts, output.expert_logits.unbind(1), strict=True)
        ]
        return [
            (torch.stack(scores, -1) * weights).sum(-1)
            for *scores, weights in zip(*by_expert, output.expert_weights, strict=True)
        ]


class MoReMixtureForRelationExtraction(MoReMixturePreTrainedModel):
    """A mixture of experts on relations: p(y) = Σ_z g_z p_z(y), p_z the softmax of expert z.

        mixture = MoReMixtureForRelationExtraction.from_experts(["runs/text", "runs/image"], image_dim=512)

    The loss is L = − mean log p(y*). Source: Wang et al. 2022, section 3.5; METHOD, section 4.
    """

    expert_class = MoReForRelationExtraction

    def __init__(self, config: MoReMixtureConfig, experts: Sequence[nn.Module] | None = None):
        if config.gate != "post":
            raise ValueError('a relation belongs to a post: its gate is "post"')
        super().__init__(config, experts)

    def expert_log_probs(self, expert_logits: Tensor, word_mask: Tensor | None = None) -> Tensor:
        """Return log-probabilities [B, Z, C] from logits [B, Z, C]."""
        return expert_logits.to(torch.promote_types(expert_logits.dtype, torch.float32)).log_softmax(-1)

    def _log_likelihood(self, logits: Tensor, labels: Tensor, word_mask: Tensor | None) -> Tensor:
        return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


register_models(MoReMixtureConfig, MoReMixtureForTokenClassification, MoReMixtureForRelationExtraction)
