"""Weigh the experts of a mixture by a gate, and mix what they say."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """A gate that gives log g(x, I) over the experts, from normalised text and image features side by side.

    Its last layer begins at 0, so that training begins at the plain average of the experts. Encoder states share most
    of their mean, which would push all posts towards the same expert at every step: `standardise` takes it away.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, text_dim: int, image_dim: int, num_experts: int, hidden: int = 0, image_dropout: float = 0.0):
        super().__init__()
        self.image_dim = image_dim
        self.image_dropout = image_dropout
        self.text_norm = nn.LayerNorm(text_dim)
        self.image_norm = nn.LayerNorm(image_dim) if image_dim else None
        self.missing_image = nn.Parameter(torch.empty(image_dim)) if image_dim else None
        width = text_dim + image_dim
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.output = nn.Linear(hidden or width, num_experts)

    def forward(self, text: Tensor, image: Tensor | None = None, image_mask: Tensor | None = None) -> Tensor:
        """Return log-weights [B, Z] for text [B, H], or [B, N, Z] for [B, N, H], in the parameters' precision.

        `image` is [B, D], and `image_mask` [B] is True where a post has one; without `image` no post has.
        """
        dtype = self.output.weight.dtype
        with torch.autocast(device_type=text.device.type, enabled=False):
            center, scale = self.center, self.scale
            features = (self.text_norm(text.to(dtype)) - center[: text.shape[-1]]) / scale[: text.shape[-1]]
            if self.image_norm is not None:
                seen = self._image(image, image_mask, len(text), features)
                if features.dim() == 3:
                    seen = seen.unsqueeze(1).expand(-1, features.shape[1], -1)
                features = torch.cat([features, seen], -1)
            elif image is not None:
                raise ValueError("image_features are given, but this gate sees no image (image_dim is 0)")
            if self.hidden is not None:
                features = nn.functional.gelu(self.hidden(features))
            return self.output(features).log_softmax(-1)

    @torch.no_grad()
    def standardise(self, text: Tensor, image: Tensor | None = None) -> None:
        """From now on, subtract the mean of these features and divide by their deviation; both are saved.

        Args:
            text: features [P, H] of posts or of their words.
            image: features [I, D] of the posts that have an image.
        """
        parts = [self.text_norm(text.to(self.center))]
        if self.image_norm is not None:
            # without images the learned vector stands for all: nothing to measure
            empty = self.center.new_zeros(1, self.image_dim)
            parts.append(self.image_norm(image.to(self.center)) if image is not None and len(image) > 1 else empty)
        self.center.copy_(torch.cat([part.mean(0) for part in parts]))
        deviations = [part.std(0) if len(part) > 1 else torch.ones_like(part[0]) for part in parts]
        # a feature that never changes stays as it is
        self.scale.copy_(torch.cat([one.masked_fill(one < 1e-6, 1.0) for one in deviations]))

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


def mix(log_probs: Tensor, log_weights: Tensor) -> Tensor:
    """Return log Σ_z g_z p_z [B, …] for log_probs [B, Z, …] and log_weights [B, Z] or, per word, [B, N, Z].

    A weight of 0 is -inf; with all the weight on one expert its log-probabilities come back bit for bit.
    """
    if log_weights.dim() == 3:
        log_weights = log_weights.transpose(1, 2)
    missing = log_probs.dim() - log_weights.dim()
    return (log_probs + log_weights.reshape(log_weights.shape + (1,) * missing)).logsumexp(1)
