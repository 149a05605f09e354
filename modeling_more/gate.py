"""Weigh the experts of a mixture by a gate, and mix what they say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FAR = 5.0  # deviations from the mean, behind which evidence counts no further


class Gate(nn.Module):
    """A gate that gives log g(x, I) over the readers, linear in what it reads side by side.

    It may read normalised text and image features (through a hidden layer, if there is one), and evidence of each
    reader (`evidence`); without any of them its weights are the same for all posts. Its last layers begin at 0, so
    that training begins at the plain average. Encoder states share most of their mean, which would push all posts
    towards the same expert at every step: `standardise` takes it away, and brings evidence to one scale.

    Args:
        text_dim, image_dim: dimensions of the features; 0 where they are not read.
        evidence_dim: number of features of the evidence of all readers together, likewise.
    """

    center: Tensor
    scale: Tensor
    evidence_center: Tensor
    evidence_scale: Tensor

    def __init__(
        self,
        text_dim: int,
        image_dim: int,
        num_experts: int,
        hidden: int = 0,
        image_dropout: float = 0.0,
        evidence_dim: int = 0,
    ):
        super().__init__()
        self.text_dim, self.image_dim, self.evidence_dim = text_dim, image_dim, evidence_dim
        self.image_dropout = image_dropout
        self.text_norm = nn.LayerNorm(text_dim) if text_dim else None
        self.image_norm = nn.LayerNorm(image_dim) if image_dim else None
        self.missing_image = nn.Parameter(torch.empty(image_dim)) if image_dim else None
        width = text_dim + image_dim
        self.hidden = nn.Linear(width, hidden) if hidden and width else None
        self.output = nn.Linear(hidden or width, num_experts) if width else None
        if width:
            self.register_buffer("center", torch.zeros(width))
            self.register_buffer("scale", torch.ones(width))
        else:
            self.bias = nn.Parameter(torch.zeros(num_experts))
        self.evidence = nn.Linear(evidence_dim, num_experts, bias=False) if evidence_dim else None
        if evidence_dim:
            self.register_buffer("evidence_center", torch.zeros(evidence_dim))
            self.register_buffer("evidence_scale", torch.ones(evidence_dim))

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device

    def forward(
        self,
        text: Tensor | None = None,
        image: Tensor | None = None,
        image_mask: Tensor | None = None,
        evidence: Tensor | None = None,
        shape: Sequence[int] = (),
    ) -> Tensor:
        """Return log-weights [B, Z] for text [B, H], or [B, N, Z] for [B, N, H], in the parameters' precision.

        Args:
            image: [B, D], and `image_mask` [B] is True where a post has one; without `image` no post has.
            evidence: [B, E] or [B, N, E], NaN where it is not known.
            shape: [B] or [B, N], needed where neither text nor evidence is read.
        """
        dtype = next(self.parameters()).dtype
        given = text if self.text_dim else evidence if self.evidence_dim else None
        if given is None and (self.text_dim or self.evidence_dim):
            raise ValueError(f"the gate reads {'text' if self.text_dim else 'evidence'}, and none is given")
        shape = shape if given is None else given.shape[:-1]
        with torch.autocast(device_type=self.device.type, enabled=False):
            parts = []
            if self.output is not None:
                parts.append(self.output(self._features(text, image, image_mask, shape, dtype)))
            elif image is not None:
                raise ValueError("image_features are given, but this gate sees no image (image_dim is 0)")
            if self.evidence is not None:
                if evidence is None:
                    raise ValueError("the gate reads evidence, and none is given")
                parts.append(self.evidence(self.standardised(evidence.to(dtype))))
            if self.output is None:
                parts.append(self.bias.expand(*shape, -1))
            return torch.stack(parts).sum(0).log_softmax(-1)

    def standardised(self, evidence: Tensor) -> Tensor:
        """Return evidence as the gate reads it: minus its mean, over its deviation, 0 where it is not known."""
        return ((evidence - self.evidence_center) / self.evidence_scale).clamp(-FAR, FAR).nan_to_num(0.0)

    def _features(
        self, text: Tensor | None, image: Tensor | None, mask: Tensor | None, shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """Return normalised text and image features side by side, through the hidden layer if there is one."""
        parts = []
        if self.text_norm is not None and text is not None:
            center, scale = self.center[: self.text_dim], self.scale[: self.text_dim]
            parts.append((self.text_norm(text.to(dtype)) - center) / scale)
        if self.image_norm is not None:
            seen = self._image(image, mask, shape[0], self.center.to(dtype))
            parts.append(seen.unsqueeze(1).expand(-1, shape[1], -1) if len(shape) == 2 else seen)
        elif image is not None:
            raise ValueError("image_features are given, but this gate sees no image (image_dim is 0)")
        features = torch.cat(parts, -1)
        return features if self.hidden is None else nn.functional.gelu(self.hidden(features))

    @torch.no_grad()
    def standardise(
        self, text: Tensor | None = None, image: Tensor | None = None, evidence: Tensor | None = None
    ) -> None:
        """Subtract, from now on, the mean of these features and divide by their deviation; both are saved.

        Args:
            text: features [P, H] of posts or of their words.
            image: features [I, D] of the posts that have an image.
            evidence: [P, E] of posts or of their words; what is not known (NaN) is not counted.
        """
        parts = []
        if self.text_norm is not None and text is not None:
            parts.append(self.text_norm(text.to(self.center)))
        if self.image_norm is not None:
            # without images the learned vector stands for all: nothing to measure
            empty = self.center.new_zeros(1, self.image_dim)
            parts.append(self.image_norm(image.to(self.center)) if image is not None and len(image) > 1 else empty)
        if parts:
            self.center.copy_(torch.cat([part.mean(0) for part in parts]))
            deviations = [part.std(0) if len(part) > 1 else torch.ones_like(part[0]) for part in parts]
            self.scale.copy_(_or_one(torch.cat(deviations)))
        if self.evidence is not None and evidence is not None:
            values = evidence.to(self.evidence_center)
            known = ~values.isnan()
            number = known.sum(0)
            self.evidence_center.copy_(values.nansum(0) / number.clamp_min(1))
            squares = (values - self.evidence_center).square().nansum(0)
            self.evidence_scale.copy_(_or_one((squares / (number - 1).clamp_min(1)).sqrt()))

    def _image(self, image: Tensor | None, mask: Tensor | None, batch: int, like: Tensor) -> Tensor:
        """Return normalised features [B, D], or the learned vector where the image is missing or dropped."""
        assert self.image_norm is not None and self.missing_image is not None
        if image is None:
            image = like.new_zeros(batch, self.image_dim)
            mask = torch.zeros(batch, dtype=torch.bool, device=like.device)
        if image.shape != (batch, self.image_dim):
            raise ValueError(f"image_features must be {(batch, self.image_dim)}, not {tuple(image.shape)}")
        mask = torch.ones(batch, dtype=torch.bool, device=like.device) if mask is None else mask.bool()
        if self.training and self.image_dropout > 0:
            mask = mask & (torch.rand(batch, device=like.device) >= self.image_dropout)
        # whatever stands for a missing image must not reach the norm's gradient either
        seen = self.image_norm(image.to(like.dtype).masked_fill(~mask.unsqueeze(-1), 0.0))
        seen = (seen - self.center[-self.image_dim :]) / self.scale[-self.image_dim :]
        return torch.where(mask.unsqueeze(-1), seen, self.missing_image)


def _or_one(deviations: Tensor) -> Tensor:
    """Return deviations with 1 for a feature that never changes, which so stays as it is."""
    return deviations.masked_fill(deviations < 1e-6, 1.0)


def mix(log_probs: Tensor, log_weights: Tensor) -> Tensor:
    """Return log Σ_z g_z p_z [B, …] for log_probs [B, Z, …] and log_weights [B, Z] or, per word, [B, N, Z].

    A weight of 0 is -inf; with all the weight on one expert its log-probabilities come back bit for bit.
    """
    if log_weights.dim() == 3:
        log_weights = log_weights.transpose(1, 2)
    missing = log_probs.dim() - log_weights.dim()
    return (log_probs + log_weights.reshape(log_weights.shape + (1,) * missing)).logsumexp(1)
