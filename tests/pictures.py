"""Invented pictures, and a tiny random tower that embeds them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture of coloured blocks, unlike that of any other seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def picture(seed: int) -> Image.Image:
    """A picture of the size that the tiny tower reads."""
    return noise(seed, (32, 32))


def save_tiny_tower(folder: Path, seed: int = 0) -> str:
    """A random CLIP image tower of 8 dimensions, and its image processor."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPVisionConfig(**size, projection_dim=8, image_size=32, patch_size=8)
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=square, crop_size=square).save_pretrained(folder)
    return str(folder)
