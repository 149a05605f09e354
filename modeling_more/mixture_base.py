"""Define what both mixtures share: a gate that weighs what each expert says of a post, loading and saving."""

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
from .evidence import NAN, SEARCH, of_words_searched
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
from .provenance import remember
from .pushing import ManifestKept
from .remote_code import named_class
from .retrieval_settings import ENCODERS, save_encoder

Inputs = Mapping[str, Tensor]
#: options of `from_pretrained` that also hold for experts that are only referred to
_SHARED_OPTIONS = ("dtype", "attn_implementation", "token", "cache_dir", "local_files_only", "force_download")


@dataclass
class MoReMixtureOutput(ModelOutput):
    """The output of a mixture for B posts, Z readers (its experts, see `readers`), N words, L labels, C relations.

    Attributes:
        loss: scalar, when labels are given.
        logits: log-probabilities of the mixture, [B, N, L] of entities, [B, C] of relations.
        expert_weights: the gate, rows sum to 1: [B, Z], or [B, N, Z] with a gate per word.
        expert_logits: what each reader says: emissions [B, Z, N, L], or logits [B, Z, C].
        expert_log_probs: the same as log-probabilities: log-marginals of the CRF, or log-softmax.
        readings: log-probabilities of all readings, of those too that are not mixed (see `config.alone`).
        evidence: what the gate reads of the searches and of the readers' confidence, [B, E] or [B, N, E], if it does.
    """

    loss: Tensor | None = None
    # always there; ModelOutput wants defaults
    logits: Tensor = None  # type: ignore[assignment]
    expert_weights: Tensor = None  # type: ignore[assignment]
    expert_logits: Tensor = None  # type: ignore[assignment]
    expert_log_probs: Tensor = None  # type: ignore[assignment]
    readings: Tensor = None  # type: ignore[assignment]
    evidence: Tensor | None = None


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
        self.gate = self._new_gate()
        self.post_init()
        # after it: nothing may initialise them again. Experts that are only referred to come with from_pretrained
        if experts is not None:
            self.experts = nn.ModuleList(experts)
        self._freeze()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Gate):
            for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                (init.ones_ if name.endswith("scale") else init.zeros_)(value)
            for layer in (module.output, module.evidence):
                for value in layer.parameters() if layer is not None else ():
                    init.zeros_(value)
            if module.missing_image is not None:
                init.normal_(module.missing_image, std=0.02)
        elif module not in (self.gate.output, self.gate.evidence):
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
            model.experts = nn.ModuleList(experts).to(model.gate.device)
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

    @property
    def readings(self) -> list[Any]:
        """Return the module of each reading: the experts, and again those that also read the words alone."""
        return [*self.experts, *(self.experts[place] for place in self.config.alone)]

    @property
    def readers(self) -> list[Any]:
        """Return the module of each reading that is mixed: all of them with `abstain`, else the experts'."""
        return self.readings[: len(self.config.readers)]

    @property
    def temperatures(self) -> list[float]:
        """Return by what the scores of each reading are divided."""
        told = self.config.temperatures or [1.0] * len(self.experts)
        return [*told, *(told[place] for place in self.config.alone)]

    def set_gate(self, inputs: Sequence[str], image_dim: int = 0) -> Gate:
        """Replace the gate by a new one that reads these `gate_inputs`, and return it."""
        self.config.gate_inputs, self.config.image_dim = list(inputs), image_dim
        device = self.gate.device
        self.gate = self._new_gate()
        self.gate.apply(self._init_weights)
        self.gate.to(device).train(self.training)
        return self.gate

    def _new_gate(self) -> Gate:
        config, read = self.config, self.config.gate_inputs
        encoder: Any = MoReConfig(**config.experts[0]).encoder_config
        text, image = encoder.hidden_size * ("text" in read), config.image_dim * ("image" in read)
        more = config.gate_hidden, config.image_dropout, sum(self.evidence_dims)
        return Gate(text, image, len(config.readers), *more)

    @property
    def evidence_dims(self) -> tuple[int, int]:
        """Return how many numbers the gate reads of all searches, and of all readers' confidence."""
        read = self.config.gate_inputs
        confidence = len(self.config.readers) * self._confidence_dim
        return len(SEARCH) * len(self.config.experts) * ("scores" in read), confidence * ("confidence" in read)

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
        alone: Sequence[Inputs] | None = None,
        search_evidence: Tensor | None = None,
        title_words: Tensor | None = None,
        confidence: Tensor | None = None,
        **others: Any,
    ) -> MoReMixtureOutput:
        """Return the mixture's log-probabilities and, with labels, the loss; MoReMixtureProcessor makes the inputs.

        Args:
            experts: each expert's inputs, as its `MoReProcessor.pad` makes them, of the same posts and words.
            text_only: the words without knowledge, for the first expert: what a gate over text reads.
            word_mask: [B, N] True where there is a word; default: that of the first expert's inputs.
            image_features: [B, D]; default: no post has an image.
            image_mask: [B], False where the image is missing; default: every post has one.
            labels: [B, N] label ids (values under `word_mask` False are ignored), or [B] relations.
            expert_logits: [B, Z, N, L] or [B, Z, C] of `expert_outputs`, instead of `experts` and `alone`.
            text_features: [B, H] or, with a gate per word, [B, N, H] of `text_features()`, instead of `text_only`.
            expert_log_probs: of the shape of `expert_logits`, of other models (crossfit); default: made of the logits.
            alone: the words without knowledge for each expert that `config.alone` names.
            search_evidence: `evidence.SEARCH` of each expert, [B, experts, 7]; default: not known.
            title_words: [B, experts, N], True for words that stand in the title of an entry read, likewise.
            confidence: how sure readers are, [B, E] or [B, N, E], of other models (crossfit); default: of these.

        Raises:
            ValueError: when inputs are missing or do not fit each other.
        """
        config, per_word = self.config, self.config.gate == "word"
        if expert_logits is None:
            if experts is None:
                raise lacking(self, "experts (the inputs of each) or expert_logits", "MoReMixtureProcessor")
            expert_logits = self.expert_outputs(experts, alone)
            word_mask = experts[0].get("word_mask") if word_mask is None else word_mask
        if text_features is None and self.gate.text_dim:
            if text_only is None:
                raise ValueError("the gate needs text_only (the first expert's inputs) or text_features")
            text_features = self.text_features(text_only)
        refuse(others)
        if expert_logits.shape[1] != len(config.experts) + len(config.alone):
            told = f" and {len(config.alone)} readings without knowledge" if config.alone else ""
            raise ValueError(f"expert_logits hold {expert_logits.shape[1]} experts, not {len(config.experts)}{told}")
        if text_features is not None and text_features.dim() != (3 if per_word else 2):
            raise ValueError(f"text_features {tuple(text_features.shape)} do not fit a gate per {config.gate}")

        said = expert_log_probs
        if said is None:
            said = self.expert_log_probs(expert_logits, word_mask)
        evidence = None
        if self.gate.evidence_dim:
            evidence = self._evidence(expert_logits, said, word_mask, search_evidence, title_words, confidence)
        shape = expert_logits[:, 0, :, 0].shape if per_word else expert_logits.shape[:1]
        log_weights = self.gate(text_features, image_features, image_mask, evidence, shape)
        weights = log_weights.exp()
        log_probs = said[:, : len(config.readers)]
        # an expert whose weight has become 0 adds nothing, however unlikely the others find a label
        logits = mix(log_probs, log_weights.masked_fill(weights == 0, float("-inf")))
        loss = None
        if labels is not None:
            loss = -self._log_likelihood(logits, labels, word_mask).mean() + self._gate_loss(log_weights, word_mask)
        mixed_logits = expert_logits[:, : len(config.readers)]
        return MoReMixtureOutput(loss, logits, weights, mixed_logits, log_probs, said, evidence)

    def _evidence(
        self, logits: Tensor, said: Tensor, word_mask: Tensor | None, search: Tensor | None, titles: Tensor | None,
        confidence: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return what the gate reads of the searches and of the readers' confidence, [B, E], per word [B, N, E]."""
        config, batch, number = self.config, len(logits), len(self.config.readers)
        rows = logits.shape[2:3] if config.gate == "word" else ()
        parts = []
        if "scores" in config.gate_inputs:
            if search is None:
                search = said.new_full((batch, len(config.experts), len(SEARCH)), NAN)
            parts.append((of_words_searched(search, titles, *rows) if rows else search).reshape(batch, *rows, -1))
        if "confidence" in config.gate_inputs:
            if confidence is None:
                alone = torch.full_like(said[:, :number], NAN)
                for place, expert in enumerate(config.alone):
                    alone[:, expert] = said[:, len(config.experts) + place]
                found = self._confidence(logits[:, :number], said[:, :number], alone, word_mask)
                confidence = (found.transpose(1, 2) if rows else found).reshape(batch, *rows, -1)
            parts.append(confidence)
        return torch.cat([part.to(said) for part in parts], -1)

    @property
    def _confidence_dim(self) -> int:
        """Return how many numbers tell how sure a reader is of a post, or of a word."""
        raise NotImplementedError

    def _confidence(self, expert_logits: Tensor, log_probs: Tensor, alone: Tensor, word_mask: Tensor | None) -> Tensor:
        """Return how sure each reader is, [B, Z, F] or, with a gate per word, [B, Z, N, F]."""
        raise NotImplementedError

    def expert_outputs(self, experts: Sequence[Inputs], alone: Sequence[Inputs] | None = None) -> Tensor:
        """Return what every expert says, in float32: emissions [B, Z, N, L] or logits [B, Z, C].

        Behind them stands what those say that `config.alone` names, reading the words alone.
        """
        if len(experts) != len(self.experts):
            raise ValueError(f"inputs for {len(experts)} experts, the mixture has {len(self.experts)}")
        places = list(self.config.alone)
        if len(alone or ()) != len(places):
            raise ValueError(
                f"the words alone are given for {len(alone or ())} experts, {len(places)} of the mixture read them: "
                f"its processor makes them, with alone={bool(places)}"
            )
        names = self.config.expert_names + [self.config.expert_names[place] for place in places]
        experts = [*experts, *(alone or ())]
        first = experts[0]["word_mask"]
        for name, inputs in zip(names, experts, strict=True):
            if inputs["word_mask"].shape != first.shape or not bool((inputs["word_mask"] == first).all()):
                raise ValueError(f"expert {name} reads other words than {self.config.expert_names[0]}: cut no words")
        with torch.set_grad_enabled(self.config.train_experts and torch.is_grad_enabled()):
            return torch.stack(
                [expert(**inputs).logits for expert, inputs in zip(self.readings, experts, strict=True)], 1
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
