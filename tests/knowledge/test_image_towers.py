"""Image towers: every layout of CLIP, SigLIP and others; their fingerprints; odd pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from image_knowledge import TEXT, VISION
from modeling_more.knowledge import ImageEncoder, ImageError
from pictures import encoded, noise


def test_every_layout_of_clip_gives_the_same_tower(towers: dict[str, str]) -> None:
    images = [noise(seed) for seed in range(5)]
    full, projected, bare = (ImageEncoder(towers[name]) for name in ("clip", "clip projected", "clip bare"))
    model = CLIPModel.from_pretrained(towers["clip"]).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(towers["clip"])(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels)
    expected = torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1).numpy()
    vectors = full.embed(images)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 24) == (5, full.dimension)
    assert np.allclose(vectors, expected, atol=1e-6) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (projected.embed(images) == vectors).all() and projected.fingerprint == full.fingerprint
    assert bare.dimension == 32 and bare.fingerprint != full.fingerprint
    assert full.embed([]).shape == (0, 24)


def test_siglip_embeds_by_its_pooler(towers: dict[str, str]) -> None:
    images = [noise(seed) for seed in range(3)]
    whole, vision = ImageEncoder(towers["siglip"]), ImageEncoder(towers["siglip vision"])
    model = SiglipModel.from_pretrained(towers["siglip"]).eval()
    pixels = SiglipImageProcessorPil.from_pretrained(towers["siglip"])(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels)
    expected = torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1).numpy()
    assert np.allclose(whole.embed(images), expected, atol=1e-6)
    assert (vision.embed(images) == whole.embed(images)).all() and vision.fingerprint == whole.fingerprint


def test_other_towers(tmp_path: Path) -> None:
    """Pictures in patches with their mask (SigLIP 2), a classifier without a pooler (ViT), a pooler of its own."""
    images = [noise(seed) for seed in range(3)]
    siglip = Siglip2Model(
        Siglip2Config(text_config=TEXT, vision_config={**VISION, "num_patches": 16, "patch_size": 8})
    )
    vit = ViTForImageClassification(ViTConfig(**VISION))
    dino = Dinov2Model(Dinov2Config(**VISION))
    square = {"height": 32, "width": 32}
    processors = [
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16), ViTImageProcessorPil(size=square),
        BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
    ]  # fmt: skip
    for model, processor in zip((siglip, vit, dino), processors, strict=True):
        folder = tmp_path / type(model).__name__
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
        inputs = processor(images, return_tensors="pt")
        with torch.no_grad():
            if model is siglip:
                expected = model.get_image_features(**inputs).pooler_output
            elif model is vit:
                expected = model.vit(**inputs).last_hidden_state[:, 0]
            else:
                expected = model(**inputs).pooler_output
        found = ImageEncoder(folder).embed(images)
        assert np.allclose(found, torch.nn.functional.normalize(expected, dim=-1).numpy(), atol=1e-6), folder.name


def test_weights_and_preprocessing_make_the_fingerprint(towers: dict[str, str], tmp_path: Path) -> None:
    encoder = ImageEncoder(towers["clip"])
    assert ImageEncoder(towers["clip"], batch_size=1).fingerprint == encoder.fingerprint
    # where it was computed does not matter: the index of a GPU serves a CPU
    assert ImageEncoder(towers["clip"], dtype=torch.bfloat16).fingerprint == encoder.fingerprint
    model = CLIPVisionModelWithProjection.from_pretrained(towers["clip projected"])
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 0.001
    model.save_pretrained(tmp_path / "moved")
    encoder.processor.save_pretrained(tmp_path / "moved")
    assert ImageEncoder(tmp_path / "moved").fingerprint != encoder.fingerprint
    model = CLIPVisionModelWithProjection.from_pretrained(towers["clip projected"])
    model.save_pretrained(tmp_path / "other")
    CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "other"
    )
    assert ImageEncoder(tmp_path / "other").fingerprint != encoder.fingerprint


def test_bad_towers_are_named(towers: dict[str, str], tiny_encoder: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="image tower .*nowhere can't be loaded"):
        ImageEncoder(tmp_path / "nowhere")
    model = CLIPVisionModelWithProjection.from_pretrained(towers["clip projected"])
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp" not in k}
    model.save_pretrained(tmp_path / "cut", state_dict=state)
    CLIPImageProcessorPil().save_pretrained(tmp_path / "cut")
    with pytest.raises(ValueError, match="lacks 4 of its weights"):
        ImageEncoder(tmp_path / "cut")


def test_odd_shapes_and_bad_images(encoder: ImageEncoder) -> None:
    shapes = [(1, 1), (3, 1), (1, 3), (3, 50), (9000, 1), (1, 9000), (40, 30)]
    vectors = encoder.embed([noise(1, shape) for shape in shapes])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    red, blue = (Image.new("RGB", (1, 1), colour) for colour in ("red", "blue"))
    one, other, large = encoder.embed([red, blue, red.resize((50, 50))])
    assert one @ large > 0.9999 and one @ other < 0.9999  # three channels of one pixel, not one of three
    with pytest.raises(ImageError, match="not an image"):
        encoder.embed([red, b"text"])


def test_batches_and_sources_change_nothing(towers: dict[str, str], encoder: ImageEncoder) -> None:
    images = [noise(seed) for seed in range(10)]
    vectors = encoder.embed(images)
    assert np.allclose(ImageEncoder(towers["clip"], batch_size=3).embed(images), vectors, atol=1e-6)
    assert (encoder.embed([encoded(image) for image in images]) == vectors).all()
