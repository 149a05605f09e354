"""Define the mixtures, in which a gate over a post's text, image and evidence weighs what each expert says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_mixture import MoReMixtureConfig
from .crf import LinearChainCRF
from .evidence import CHAINS, CLASSES, WORDS, of_chains, of_classes, of_words
from .mixed_experts import tempered
from .mixture_base import MoReMixtureOutput, MoReMixturePreTrainedModel
from .modeling_more import MoReForRelationExtraction, MoReForTokenClassification
from .remote_code import register_models
from .tagging import allowed_transitions


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
        marginals = [chain.log_marginals(scores, word_mask) for chain, scores in self.chains(expert_logits)]
        return torch.stack(marginals, 1)

    def chains(self, expert_logits: Tensor) -> list[tuple[Any, Tensor]]:
        """Return what reads the emissions [B, N, L] of each expert, and these, both at the expert's temperature."""
        found: list[tuple[Any, Tensor]] = []
        for expert, emissions, temperature in zip(
            self.readings, expert_logits.unbind(1), self.temperatures, strict=False
        ):
            chain = expert if temperature == 1 else tempered(expert.chain(), temperature)
            found.append((chain, emissions if temperature == 1 else emissions / temperature))
        return found

    @property
    def _confidence_dim(self) -> int:
        return len(WORDS if self.config.gate == "word" else CHAINS)

    def _confidence(self, expert_logits: Tensor, log_probs: Tensor, alone: Tensor, word_mask: Tensor | None) -> Tensor:
        assert word_mask is not None
        outside = self.config.label2id["O"]
        if self.config.gate == "word":
            return of_words(log_probs, alone, outside)
        with torch.no_grad():
            best = torch.stack([_best_path(*one, word_mask) for one in self.chains(expert_logits)], 1)
        begins = [number for label, number in self.config.label2id.items() if label[:2] in ("B-", "S-")]
        return of_chains(log_probs, alone, best, word_mask, outside, begins)

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
            chain.span_scores(scores, word_mask, spans) for chain, scores in self.chains(output.expert_logits)
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
        temperatures = expert_logits.new_tensor(self.temperatures[: expert_logits.shape[1]]).unsqueeze(-1)
        scores = expert_logits.to(torch.promote_types(expert_logits.dtype, torch.float32))
        return (scores / temperatures).log_softmax(-1)

    @property
    def _confidence_dim(self) -> int:
        return len(CLASSES)

    def _confidence(self, expert_logits: Tensor, log_probs: Tensor, alone: Tensor, word_mask: Tensor | None) -> Tensor:
        return of_classes(log_probs, alone)

    def _log_likelihood(self, logits: Tensor, labels: Tensor, word_mask: Tensor | None) -> Tensor:
        return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _best_path(chain: Any, emissions: Tensor, word_mask: Tensor) -> Tensor:
    """Return the log-probability of each post's best sequence of labels [B], by an expert or a CRF."""
    chain = chain.chain() if hasattr(chain, "chain") else chain
    score: Tensor = chain.viterbi(emissions, word_mask)[1]
    return score - chain.log_partition(emissions, word_mask)


register_models(MoReMixtureConfig, MoReMixtureForTokenClassification, MoReMixtureForRelationExtraction)
