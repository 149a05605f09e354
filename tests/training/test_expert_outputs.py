"""What the gate reads of the posts, and the images that it can't see."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Features as Features_
from datasets import Image as ImageFeature
from hostile_files import DAMAGES, damage
from PIL import Image

from dataset_scripts.demo_tower import make_tower, save_tower
from modeling_more.knowledge import ImageEncoder
from modeling_more.training import expert_outputs
from modeling_more.training.expert_outputs import Features, gate_batch, image_features


def test_features_are_padded_and_chosen():
    features = Features([torch.ones(2, n, 3) * n for n in (1, 3)], [torch.ones(4), torch.zeros(4)])
    batch = gate_batch(features, [1, 0], labels=[[2], [0, 1, 2]])
    assert batch["expert_logits"].shape == (2, 2, 3, 3) and batch["word_mask"].sum(1).tolist() == [3, 1]
    assert batch["labels"].tolist() == [[0, 1, 2], [2, 0, 0]] and batch["text_features"].tolist()[0] == [0.0] * 4


def test_unusable_images_are_counted_with_and_without_the_cache(tmp_path, caplog):
    """No image, one that lies nowhere, a broken one: zeros and False; the cached second call says so as well."""
    picture = Image.fromarray(np.full((20, 24, 3), 90, dtype=np.uint8))
    picture.save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    images = [{"bytes": good}, None, {"path": str(tmp_path / "gone.png")}, {"bytes": b"broken"}]
    rows = [image and {"bytes": image.get("bytes"), "path": image.get("path")} for image in images]
    posts = Dataset.from_dict({"image": rows}, Features_({"image": ImageFeature()}))
    encoder = ImageEncoder(save_tower(make_tower(1), tmp_path / "tower"))
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        caplog.clear()
        vectors, usable = image_features(posts, None, encoder, cache)
        assert usable.tolist() == [True, False, False, False] and not vectors[1:].any()
        assert torch.allclose(vectors[0], torch.from_numpy(encoder.embed([picture]))[0], atol=1e-6)
        assert "3 of 4 posts have no usable image" in caplog.text
    assert len(list((tmp_path / "cache" / "mixture").glob("images-*"))) == 1


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_features_are_computed_again(how, tmp_path, caplog):
    """Of the experts' outputs and of images: noticed, said with the file's name, and nothing ends."""
    file = tmp_path / "features.safetensors"
    features = Features([torch.randn(2, n, 3) for n in (1, 3)], [torch.ones(4), torch.zeros(4)])
    expert_outputs._write(file, features)
    again, _ = expert_outputs._read(file, 2)
    assert all(torch.equal(one, other) for one, other in zip(again, features.expert_logits, strict=True))
    assert expert_outputs._read(file, 3) is None and "is of 2 posts, not of 3" in caplog.text
    damage(file, DAMAGES[how])
    assert expert_outputs._read(file, 2) is None and f"{file} is damaged" in caplog.text

    encoder = ImageEncoder(save_tower(make_tower(1), tmp_path / "tower"))
    picture = {"bytes": None, "path": str(tmp_path / "good.png")}
    Image.fromarray(np.full((20, 24, 3), 90, dtype=np.uint8)).save(tmp_path / "good.png")
    posts = Dataset.from_dict({"image": [picture]}, Features_({"image": ImageFeature()}))
    expected, _ = image_features(posts, None, encoder, tmp_path)
    (cached,) = (tmp_path / "mixture").glob("images-*.safetensors")
    damage(cached, DAMAGES[how])
    assert torch.equal(image_features(posts, None, encoder, tmp_path)[0], expected)
    assert f"{cached} is damaged" in caplog.text
