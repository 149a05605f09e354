"""The demo's image tower: learns without labels, is loaded as the real CLIP is, finds distorted flags."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_scripts.demo_tower import make_tower, save_tower, train_tower
from modeling_more.knowledge import ImageEncoder, open_image
from pictures import noise


def recall(encoder: ImageEncoder, queries: list[Image.Image], pictures: list[Image.Image], k: int) -> float:
    products = encoder.embed(queries) @ encoder.embed(pictures).T
    better = (products > np.diag(products)[:, None]).sum(axis=1)
    return float((better < k).mean())


def test_training_needs_no_labels_and_helps(tmp_path: Path) -> None:
    pictures = [noise(seed, (64, 48)) for seed in range(48)]
    grey = Image.new("RGB", (64, 48), (110, 110, 110))
    queries = [
        Image.blend(picture.rotate(12).crop((8, 3, 64, 44)), grey.crop((8, 3, 64, 44)), 0.4) for picture in pictures
    ]
    folder = train_tower(pictures, tmp_path / "trained", seed=1, steps=30, batch_size=48)
    trained, untrained = ImageEncoder(folder), ImageEncoder(save_tower(make_tower(1), tmp_path / "untrained"))
    assert type(trained.processor).__name__ == "CLIPImageProcessorPil"
    before, after = (recall(encoder, queries, pictures, 1) for encoder in (untrained, trained))
    assert after > before and after >= 0.9, (before, after)


def test_a_seed_gives_one_tower(tmp_path: Path) -> None:
    pictures = [noise(seed) for seed in range(6)]
    towers = [
        ImageEncoder(train_tower(pictures, tmp_path / name, seed, steps=2)).fingerprint
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert towers[0] == towers[1] != towers[2]
    with pytest.raises(ValueError, match="give at least 2, not 1"):
        train_tower(pictures[:1], tmp_path / "d")


def test_distorted_flags_are_found(tmp_path: Path, shared_data: Path) -> None:
    """A short training is enough for R@10 above 0.95; benchmarks/images.py measures the whole recipe."""
    distinct = {}
    for file in sorted((shared_data / "images" / "flags").glob("*.png")):
        picture = open_image(file)
        distinct.setdefault((picture.size, picture.tobytes()), picture)
    pictures = list(distinct.values())
    assert len(pictures) == 239
    queries = []
    for number, picture in enumerate(pictures):
        rng = np.random.default_rng(number)
        left, top = (int(rng.uniform(0, 0.12 * side)) for side in picture.size)
        turned = picture.rotate(rng.uniform(-10, 10), fillcolor=(128, 128, 128))
        cut = turned.crop((left, top, left + int(0.88 * picture.width), top + int(0.88 * picture.height)))
        stream = io.BytesIO()
        cut.save(stream, "JPEG", quality=30)
        queries.append(open_image(stream.getvalue()))
    encoder = ImageEncoder(train_tower(pictures, tmp_path / "tower", seed=1, steps=40))
    assert recall(encoder, queries, pictures, 10) >= 0.95
