"""Train a tiny CLIP image tower in seconds, without labels, on the pictures it is to tell apart.

Two random augmentations of a picture must lie nearer to each other than to those of other pictures (InfoNCE:
van den Oord, Li and Vinyals, arXiv 1807.03748; SimCLR: Chen et al., arXiv 2002.05709).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

SIDE = 32  # pixels of the tower's input
STORED = 48  # pixels of the pictures that augmentations are cut from
MEAN = STD = 0.5
TEMPERATURE = 0.07


def make_tower(seed: int) -> CLIPVisionModelWithProjection:
    """Make the untrained tower: 2 layers over one patch, the whole picture, as training is to take seconds."""
    config = CLIPVisionConfig(
        image_size=SIDE,
        patch_size=SIDE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModelWithProjection(config)


def save_tower(model: CLIPVisionModelWithProjection, folder: str | Path) -> Path:
    """Save a tower with its image processor, which takes in the whole picture; `ImageEncoder` loads the folder."""
    model.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3
    ).save_pretrained(folder)
    return Path(folder)


def train_tower(
    pictures: Sequence[Image.Image],
    folder: str | Path,
    seed: int = 0,
    steps: int = 200,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> Path:
    """Train a tower on pictures and save it; the same seed gives the same tower on the same machine.

    Args:
        pictures: each a thing of its own; twins would be pushed apart.
        batch_size: pictures a step, each seen twice.

    Returns:
        `folder`, which `ImageEncoder` loads.

    Raises:
        ValueError: fewer than two pictures.
    """
    if len(pictures) < 2:
        raise ValueError(f"A tower learns to tell pictures apart: give at least 2, not {len(pictures)}.")
    stored = torch.stack([_pixels(picture) for picture in pictures])
    model = make_tower(seed).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    batch_size = min(batch_size, len(pictures))
    with tqdm(total=steps, desc="Training the image tower", unit="steps", disable=None) as bar:
        for step in range(steps):
            rate = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate
            rows = torch.randperm(len(pictures), generator=generator)[:batch_size]
            views = torch.cat([_augment(stored[rows], generator) for _ in range(2)])
            one, other = F.normalize(model(pixel_values=views).image_embeds, dim=-1).chunk(2)
            scores = one @ other.T / TEMPERATURE
            target = torch.arange(len(rows))
            loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return save_tower(model.eval(), folder)


def _pixels(picture: Image.Image) -> torch.Tensor:
    """Return float32 [3, STORED, STORED] from 0 to 1."""
    small = picture.convert("RGB").resize((STORED, STORED), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255


def _augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cut, turn, blur, recolour and grain pictures: [n, 3, STORED, STORED] -> [n, 3, SIDE, SIDE], normalised."""
    n = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    angle, share = uniform(-0.2, 0.2), uniform(0.75, 1.0)
    cos, sin = share * angle.cos(), share * angle.sin()
    left, top = (uniform(-1, 1) * (1 - share) for _ in range(2))
    matrix = torch.stack([cos, -sin, left, sin, cos, top], dim=1).view(n, 2, 3)
    grid = F.affine_grid(matrix, [n, 3, SIDE, SIDE], align_corners=False)
    fill = uniform(0, 1, 3)[:, :, None, None]  # what shows behind a turned picture
    views = F.grid_sample(pictures - fill, grid, align_corners=False) + fill
    blurred = F.avg_pool2d(F.pad(views, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    views = torch.lerp(views, blurred, uniform(0, 1, 1, 1, 1))
    grey = views.mean(dim=1, keepdim=True)
    views = torch.lerp(grey, views, uniform(0.5, 1.5, 1, 1, 1))  # saturation
    views = (views - 0.5) * uniform(0.7, 1.3, 1, 1, 1) + 0.5 + uniform(-0.15, 0.15, 3, 1, 1)
    views = views + torch.randn(views.shape, generator=generator) * uniform(0, 0.05, 1, 1, 1)
    return (views.clamp(0, 1) - MEAN) / STD
