"""Define the task models: an encoder that reads a post with its knowledge, and a head over its words."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from .configuration_more import MoReConfig
from .crf import LinearChainCRF
from .files import manifest_kept
from .loading import OWN_CONFIGS, config_of, load_whole
from .model_inputs import lacking, refuse
from .positions import position_limit, rows_at_once
from .pushing import ManifestKept
from .remote_code import named_class, register_models
from .tagging import allowed_transitions


@dataclass
class MoReTokenClassifierOutput(ModelOutput):
    """The output of `MoReForTokenClassification` for B posts of N words and L labels.

    Attributes:
        loss: scalar, when labels are given.
        logits: emissions [B, N, L] of the view that `input_ids` holds.
        text_only_logits: emissions [B, N, L] of the words alone, when `text_only_input_ids` is given.
        nll_loss: scalar, the likelihood terms of the one or two views.
        kl_loss: scalar, the KL term between the views, before its weight.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    text_only_logits: Tensor | None = None
    nll_loss: Tensor | None = None
    kl_loss: Tensor | None = None


class MoRePreTrainedModel(ManifestKept, PreTrainedModel):
    """The base of the task models: it builds the encoder, loads it from a checkpoint, initialises the head."""

    config: Any  # a MoReConfig; its fields are optional in transformers' own annotations
    config_class = MoReConfig
    base_model_prefix = "encoder"
    classifier: nn.Linear
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is the mean over a batch, which Trainer is not to scale again
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # scores of a path are sums over words: the CRF stays in float32 also in a half-precision model
    _keep_in_fp32_modules_strict = ["crf"]

    def __init__(self, config: MoReConfig):
        super().__init__(config)
        self.encoder: Any = AutoModel.from_config(config.encoder_config, **_no_pooler(config.encoder_config))
        self._limited: tuple[Any, int | None] = None, None  # an encoder and its position_limit

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LinearChainCRF):
            module.reset_parameters()
        elif module is getattr(self, "classifier", None):
            # torch's own range for a linear layer, as in the reference: with the encoder's small learning rate a
            # narrower one would still be felt epochs later
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @classmethod
    def from_encoder_pretrained(
        cls, name_or_path: str, *, encoder_options: dict[str, Any] | None = None, num_tokens: int = 0, **config: Any
    ) -> Self:
        """Return a task model with a fresh head on a pretrained encoder (a folder or a Hub id).

        Args:
            name_or_path: checkpoint of any `AutoModel` encoder, with or without a task head.
            encoder_options: passed to `AutoModel.from_pretrained` (`revision`, `token`, `dtype` (default float32) …).
            num_tokens: size of a tokenizer to which tokens were added: the embeddings grow to it.
            config: fields of `MoReConfig` (`id2label`, `two_views` …).

        Raises:
            ValueError: when the checkpoint lacks weights of the encoder.
        """
        options: dict[str, Any] = {"dtype": torch.float32} | (encoder_options or {})
        options |= _no_pooler(config_of(name_or_path, **options))
        # a pooler is never used, and the checkpoint may have a head
        encoder = load_whole(AutoModel.from_pretrained, name_or_path, unused=["pooler"], surplus=True, **options)
        if num_tokens > encoder.get_input_embeddings().num_embeddings:
            # before the configuration is made: it keeps the new size of the vocabulary
            encoder.resize_token_embeddings(num_tokens)
        # without it the new model would choose again, for the encoder too
        config.setdefault("attn_implementation", encoder.config._attn_implementation)
        model = cls(MoReConfig(encoder_config=encoder.config, **config))
        model.encoder = encoder
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved task model, from safetensors alone.

        Raises:
            ValueError: weights are missing, of another shape, surplus or not finite, or a file asks for more.
        """
        if (named := named_class(cls, kwargs.get("config"))) is not cls:
            return named.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return load_whole(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Return encoder states [B, N, H] at the sub-tokens `positions` [B, N] of `rows` [B, N] of `input_ids` [R, T].

        Without `rows`, post b is row b; a post cut in windows names the row of each of its words. Without gradients
        the encoder reads a few rows at once (`rows_at_once`), so that its memory does not grow with a post's length.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self._check_width(input_ids)
        if rows is None:
            rows = torch.arange(len(positions), device=positions.device)[:, None]
        rows = rows.expand_as(positions)
        at_once = len(input_ids) if torch.is_grad_enabled() else rows_at_once(self.encoder, *input_ids.shape)
        found: Any = None
        for first in range(0, len(input_ids), at_once):
            part = slice(first, first + at_once)
            states = self.encoder(input_ids=input_ids[part], attention_mask=attention_mask[part]).last_hidden_state
            if at_once >= len(input_ids):
                return states[rows, positions]
            here = (rows >= first) & (rows < first + at_once)
            found = states.new_zeros(*positions.shape, states.shape[-1]) if found is None else found
            found[here] = states[rows[here] - first, positions[here]]
        return found

    def _check_width(self, input_ids: Tensor) -> None:
        """Raise ValueError for rows with more sub-tokens than the encoder reads: they end the process on a GPU."""
        if torch.compiler.is_compiling():  # a graph may have any width
            return
        if self._limited[0] is not self.encoder:  # looked up once: it takes a walk through all modules
            self._limited = self.encoder, position_limit(self.encoder)
        limit = self._limited[1]
        if limit is not None and input_ids.shape[1] > limit:
            raise ValueError(
                f"a row has {input_ids.shape[1]} sub-tokens, the encoder reads at most {limit}: give the processor "
                f"max_length={limit}"
            )

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the embeddings, and write the size into the encoder's configuration too."""
        embeddings: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        self._keep_vocabulary_size()
        return embeddings

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model, also where the encoder was resized by itself."""
        self._keep_vocabulary_size()
        with manifest_kept(save_directory):
            super().save_pretrained(save_directory, *args, **kwargs)

    def _keep_vocabulary_size(self) -> None:
        size = self.encoder.get_input_embeddings().num_embeddings
        for config in (self.encoder.config, self.config.encoder_config):
            config.get_text_config().vocab_size = size


class MoReForTokenClassification(MoRePreTrainedModel):
    """A model of named entities that tags a post's words, read with its knowledge, by a CRF (or a softmax).

        processor = MoReProcessor.from_pretrained("ORG/NAME")
        model = MoReForTokenClassification.from_pretrained("ORG/NAME")
        predict(model, processor, [{"text": "Ada in Paris", "knowledge_text": entries}])

    Source: Wang et al. 2022, section 3.3 (task model) and 3.4 (two views).
    """

    def __init__(self, config: MoReConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(self.config.encoder_config.hidden_size, self.config.num_labels)
        self.crf = LinearChainCRF(self.config.num_labels) if config.head == "crf" else None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_positions: Tensor | None = None,
        word_mask: Tensor | None = None,
        word_rows: Tensor | None = None,
        labels: Tensor | None = None,
        text_only_input_ids: Tensor | None = None,
        text_only_attention_mask: Tensor | None = None,
        text_only_word_positions: Tensor | None = None,
        text_only_word_rows: Tensor | None = None,
        **others: Any,
    ) -> MoReTokenClassifierOutput:
        """Return emissions of every word and, with labels, the loss.

        Args:
            input_ids, attention_mask: [R, T] sub-tokens; R = B unless posts are cut in windows.
            word_positions: [B, N] position of each word's first sub-token in its row.
            word_mask: [B, N] True where there is a word, a prefix of each row.
            word_rows: [B, N] row of each word; default: post b is row b.
            labels: [B, N] label ids; values under `word_mask` False are ignored.
            text_only_…: the same posts without knowledge (view o); a model with two views adds its terms to the loss.
            others: None, as wrappers of a model pass arguments that they do not use.

        Raises:
            ValueError: when word positions, the mask or, in training, the second view is missing.
        """
        if word_positions is None or word_mask is None:
            raise lacking(self, "word_positions and word_mask", "MoReProcessor")
        refuse(others)
        logits = self._emissions(input_ids, attention_mask, word_positions, word_rows)
        output = MoReTokenClassifierOutput(logits=logits)
        if text_only_input_ids is not None:
            if text_only_word_positions is None:
                raise ValueError("text_only_input_ids needs text_only_word_positions")
            output.text_only_logits = self._emissions(
                text_only_input_ids, text_only_attention_mask, text_only_word_positions, text_only_word_rows
            )
        if labels is None:
            return output

        labels = labels.masked_fill(~word_mask, 0)
        output.nll_loss = -self._log_likelihood(logits, labels, word_mask).mean()
        output.loss = output.nll_loss
        if self.config.two_views == "off":
            return output
        if output.text_only_logits is None:
            if self.training:
                raise ValueError("two views are on, but the batch holds only one: text_only_input_ids is missing")
            return output
        output.nll_loss = output.nll_loss - self._log_likelihood(output.text_only_logits, labels, word_mask).mean()
        output.kl_loss = self._kl_loss(logits, output.text_only_logits, word_mask)
        output.loss = self.config.nll_weight * output.nll_loss + (1 - self.config.nll_weight) * output.kl_loss
        return output

    def _emissions(
        self, input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        words = self.dropout(self.encode(input_ids, attention_mask, positions, rows))
        if self.training and self.config.word_dropout > 0:
            kept = torch.rand(words.shape[:2], device=words.device) >= self.config.word_dropout
            words = words * kept.unsqueeze(-1)
        # float32 here, once: the gradients of the losses on it are then summed in float32 too
        return _float32(self.classifier(words))

    def _log_likelihood(self, emissions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return log p(y|x) [B]."""
        if self.crf is not None:
            return self.crf.log_likelihood(emissions, labels, mask)
        scores = _log_softmax(emissions).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return (scores * mask).sum(1)

    def _kl_loss(self, target_emissions: Tensor, emissions: Tensor, mask: Tensor) -> Tensor:
        """Return KL(q_r || q_o) · T², summed over words, mean over posts (METHOD, L_KL)."""
        if self.crf is not None and self.config.two_views == "crf_kl":
            with torch.set_grad_enabled(self.config.kl_target_transitions and torch.is_grad_enabled()):
                target = self.crf.log_marginals(target_emissions.detach(), mask)
            log_q = self.crf.log_marginals(emissions, mask)
        else:
            target, log_q = _log_softmax(target_emissions.detach()), _log_softmax(emissions)
        divergence = softened_kl(target, log_q, self.config.kl_temperature)
        return divergence.masked_fill(~mask, 0.0).sum(1).mean()

    def log_marginals(self, logits: Tensor, word_mask: Tensor) -> Tensor:
        """Return log q(y_i) [B, N, L] of each word, from emissions [B, N, L]."""
        return self.crf.log_marginals(logits, word_mask) if self.crf is not None else _log_softmax(logits)

    @torch.no_grad()
    def decode(self, logits: Tensor, word_mask: Tensor, constrained: bool | None = None) -> list[list[int]]:
        """Return the best label ids of each post by Viterbi over emissions [B, N, L].

        BIOES constrains them where `constrained` (default: `config.constrained_decoding`).
        """
        constrained = self.config.constrained_decoding if constrained is None else constrained
        allowed: Any = None
        if constrained:
            labels = [self.config.id2label[index] for index in range(self.config.num_labels)]
            allowed = tuple(torch.tensor(part, device=logits.device) for part in allowed_transitions(labels))
        paths, _ = self.chain().viterbi(logits, word_mask, allowed)
        lengths = word_mask.sum(1).tolist()
        return [path[:length] for path, length in zip(paths.tolist(), lengths, strict=True)]

    @torch.no_grad()
    def span_scores(
        self, logits: Tensor, word_mask: Tensor, spans: Sequence[Sequence[tuple[int, int, Sequence[int]]]]
    ) -> list[Tensor]:
        """Return the probability of each span (start, end exclusive, label ids of its words), one tensor a post."""
        return self.chain().span_scores(logits, word_mask, spans)

    def chain(self) -> LinearChainCRF:
        """Return the CRF to decode with; a softmax head is one whose transitions are all 0."""
        if self.crf is not None:
            return self.crf
        return LinearChainCRF.neutral(self.config.num_labels, self.device)


@dataclass
class MoReRelationOutput(ModelOutput):
    """The output of `MoReForRelationExtraction` for B pairs of entities and C relations.

    Attributes:
        loss: scalar, when labels are given.
        logits: [B, C] of the view that `input_ids` holds.
        text_only_logits: [B, C] of the words alone, when `text_only_input_ids` is given.
        nll_loss: scalar, the cross-entropy of the one or two views.
        kl_loss: scalar, the KL term between the views.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    text_only_logits: Tensor | None = None
    nll_loss: Tensor | None = None
    kl_loss: Tensor | None = None


class MoReForRelationExtraction(MoRePreTrainedModel):
    """A model of relations that tells which one holds between two marked entities of a post.

        processor = MoReProcessor.from_pretrained("ORG/NAME")
        model = MoReForRelationExtraction.from_pretrained("ORG/NAME")
        predict(model, processor, [{"text": "Ada in Paris", "head": [0, 3], "tail": [7, 12]}])

    A pair is read from the states at the opening markers, `[h(<E>) ; h(<O>)]`, the subject first whatever their order
    in the post. Source: Wang et al. 2022, section 3.3; METHOD, section 3.
    """

    def __init__(self, config: MoReConfig):
        if config.two_views == "crf_kl":
            raise ValueError('relations have no CRF: their two_views is "kl" or "off"')
        super().__init__(config)
        width = 2 * self.config.encoder_config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(width, self.config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_positions: Tensor | None = None,
        word_mask: Tensor | None = None,
        word_rows: Tensor | None = None,
        labels: Tensor | None = None,
        text_only_input_ids: Tensor | None = None,
        text_only_attention_mask: Tensor | None = None,
        text_only_word_positions: Tensor | None = None,
        text_only_word_rows: Tensor | None = None,
        mean_class_weight: float | None = None,
        **others: Any,
    ) -> MoReRelationOutput:
        """Return logits of every relation and, with labels, the loss.

        Args:
            input_ids, attention_mask: [R, T] sub-tokens; R = B unless posts are cut in windows.
            word_positions: [B, 2] positions of `<E>` and `<O>` in their rows.
            word_mask: not read; the processor's batches hold it.
            word_rows: [B, 2] row of each marker; default: pair b is row b.
            labels: [B] relation ids.
            text_only_…: the same posts without knowledge (view o); a model with two views adds its terms to the loss.
            mean_class_weight: mean of `config.class_weights` over all training pairs; default: over the batch.
            others: None, as wrappers of a model pass arguments that they do not use.

        Raises:
            ValueError: when the positions or, in training, the second view is missing.
        """
        if word_positions is None:
            raise lacking(self, "word_positions", "MoReProcessor, from pairs,")
        refuse(others)
        logits = self._classify(self.encode(input_ids, attention_mask, word_positions, word_rows))
        output = MoReRelationOutput(logits=logits)
        if text_only_input_ids is not None:
            if text_only_word_positions is None:
                raise ValueError("text_only_input_ids needs text_only_word_positions")
            states = self.encode(
                text_only_input_ids, text_only_attention_mask, text_only_word_positions, text_only_word_rows
            )
            output.text_only_logits = self._classify(states)
        if labels is None:
            return output

        output.nll_loss = self._cross_entropy(logits, labels, mean_class_weight)
        output.loss = output.nll_loss
        if self.config.two_views == "off":
            return output
        if output.text_only_logits is None:
            if self.training:
                raise ValueError("two views are on, but the batch holds only one: text_only_input_ids is missing")
            return output
        output.nll_loss = output.nll_loss + self._cross_entropy(output.text_only_logits, labels, mean_class_weight)
        output.kl_loss = softened_kl(_log_softmax(logits.detach()), _log_softmax(output.text_only_logits),
                                     self.config.kl_temperature).mean()  # fmt: skip
        # the method adds the three terms as they are, which is lambda = 0.5
        weight = 2 * self.config.nll_weight
        output.loss = weight * output.nll_loss + (2 - weight) * output.kl_loss
        return output

    def _classify(self, markers: Tensor) -> Tensor:
        """Return logits [B, C] from the states [B, 2, H] at the markers."""
        return _float32(self.classifier(self.dropout(self.norm(markers.flatten(1)))))

    def _cross_entropy(self, logits: Tensor, labels: Tensor, mean_class_weight: float | None) -> Tensor:
        weights = self.config.class_weights
        if weights is None:
            return nn.functional.cross_entropy(logits, labels)
        weights = logits.new_tensor(weights)
        if mean_class_weight is None:
            return nn.functional.cross_entropy(logits, labels, weights)
        return nn.functional.cross_entropy(logits, labels, weights, reduction="none").mean() / mean_class_weight


def softened_kl(log_target: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    """Return KL(target || q) · T² over the last dimension, both softened by softmax(log p / T)."""
    target, log_q = _log_softmax(log_target / temperature), _log_softmax(log_q / temperature)
    return (target.exp() * (target - log_q)).sum(-1) * temperature**2


def _no_pooler(encoder_config: Any) -> dict[str, bool]:
    """Return `add_pooling_layer=False` for encoders that take it: the pooler is never used and breaks DDP."""
    if type(encoder_config) not in MODEL_MAPPING or encoder_config.model_type in OWN_CONFIGS:
        raise ValueError(f"a {encoder_config.model_type} is no plain encoder: load a saved expert by from_pretrained")
    model_class: Any = MODEL_MAPPING[type(encoder_config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}


def _float32(scores: Tensor) -> Tensor:
    """Return scores in at least float32; float64 stays."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _log_softmax(scores: Tensor) -> Tensor:
    return _float32(scores).log_softmax(-1)


register_models(MoReConfig, MoReForTokenClassification, MoReForRelationExtraction)
