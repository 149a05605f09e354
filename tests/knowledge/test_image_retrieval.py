"""Image towers, the index over a corpus's images, and attaching what the posts' images find."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hub_server import local_hub
from modeling_more.knowledge import (
    KNOWLEDGE_FEATURE,
    ImageAttachReport,
    ImageEncoder,
    ImageError,
    ImageRetriever,
    KnowledgeCorpus,
    attach_image_knowledge,
)
from modeling_more.knowledge import image as image_module
from pictures import encoded, noise

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {**{k: v for k, v in VISION.items() if "_size" not in k}, "hidden_size": 32, "vocab_size": 50}


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of one tiny random CLIP in every layout that it comes in, and of a SigLIP."""
    folder = tmp_path_factory.mktemp("towers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        full = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24))
        siglip = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
    vision = full.config.vision_config
    vision.projection_dim = 24
    projected = CLIPVisionModelWithProjection(vision)
    projected.vision_model.load_state_dict(full.vision_model.state_dict())
    projected.visual_projection.load_state_dict(full.visual_projection.state_dict())
    bare = CLIPVisionModel(vision)
    bare.load_state_dict(full.vision_model.state_dict())
    clip_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    siglip_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    models = {"clip": full, "clip projected": projected, "clip bare": bare}
    models |= {"siglip": siglip, "siglip vision": siglip.vision_model}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        (siglip_processor if "siglip" in name else clip_processor).save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


@pytest.fixture(scope="session")
def encoder(towers: dict[str, str]) -> ImageEncoder:
    return ImageEncoder(towers["clip"], batch_size=4)


def write_corpus(folder: Path, count: int = 11, rows: list[dict[str, Any]] | None = None) -> Path:
    """`count` articles, each with a picture of its own, in a JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise(number).save(folder / f"{number}.png")
    file = folder / "k.jsonl"
    made = [{"id": f"Q{n}", "title": f"T{n}", "text": f"Thing {n} is one.", "image": f"{n}.png"} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made + (rows or [])))
    return file


def make(tmp_path: Path, encoder: ImageEncoder, **options: Any) -> ImageRetriever:
    corpus = KnowledgeCorpus.from_files(write_corpus(tmp_path / "k"), tmp_path / "cache")
    return ImageRetriever.from_corpus(corpus, encoder, **options)


# ---------------------------------------------------------------- towers


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


# ---------------------------------------------------------------- retrieval


def test_exact_search_equals_brute_force(tmp_path: Path, encoder: ImageEncoder) -> None:
    retriever = make(tmp_path, encoder)
    keys = encoder.embed([noise(number) for number in range(11)])
    queries = [noise(number).rotate(5) for number in range(11)]
    products = encoder.embed(queries) @ keys.T
    for top_k in (1, 4, 11, 50):
        for row, entries in enumerate(retriever.search(queries, top_k)):
            best = np.argsort(-products[row], kind="stable")[:top_k]
            assert [entry["source"] for entry in entries] == [f"Q{n}" for n in best]
            assert np.allclose([entry["score"] for entry in entries], products[row][best], atol=1e-6)
    entry = retriever.search([noise(3)], 1)[0][0]
    assert entry.pop("score") == pytest.approx(1, abs=1e-5)
    assert entry == {"title": "T3", "text": "Thing 3 is one.", "source": "Q3", "match_start": 0, "match_end": 0}
    found = retriever.search([None, noise(3), None], 2)
    assert found[0] == found[2] == [] and found[1][0]["source"] == "Q3"
    assert retriever.search([]) == []
    with pytest.raises(ValueError, match="At least one result"):
        retriever.search([noise(3)], 0)


def test_one_entry_an_article(tmp_path: Path, encoder: ImageEncoder) -> None:
    more = [{"id": "Q0", "title": "T0", "text": "Thing 0 is one.", "image": f"{n}.png"} for n in range(1, 9)]
    more += [{"id": "R1", "title": "T1", "text": "Thing 1 is one.", "image": "10.png"}]  # the same of another source
    corpus = KnowledgeCorpus.from_files(write_corpus(tmp_path / "k", 11, more), tmp_path / "cache")
    assert corpus.info.images == 20
    retriever = ImageRetriever.from_corpus(corpus, encoder)
    for top_k in (1, 3, 11, 30):
        for entries in retriever.search([noise(number) for number in range(11)], top_k):
            assert len({entry["title"] for entry in entries}) == len(entries) == min(top_k, 11)


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW8", "IVF2,PQ4x3", "PCA8,IVF2,Flat"])
def test_approximate_indices(tmp_path: Path, encoder: ImageEncoder, factory: str) -> None:
    retriever = make(tmp_path, encoder, string_factory=factory)
    assert retriever.factory == factory
    queries = [noise(number) for number in range(11)]
    found = [[entry["source"] for entry in entries] for entries in retriever.search(queries, 3)]
    assert all(len(set(row)) == 3 for row in found)
    if "PQ" not in factory and "PCA" not in factory:  # those keep less than the vectors
        assert [row[0] for row in found] == [f"Q{number}" for number in range(11)]
    exact = make(tmp_path, encoder)
    assert exact.fingerprint != retriever.fingerprint  # and the vectors were not computed again
    narrow = make(tmp_path, encoder, string_factory="IVF4,Flat", search_parameters="nprobe=1")
    assert "nprobe=1" in narrow.fingerprint


def test_bad_indices_are_named(tmp_path: Path, encoder: ImageEncoder, towers: dict[str, str]) -> None:
    retriever = make(tmp_path, encoder)
    corpus, folder = retriever.corpus, retriever.index_dir
    with pytest.raises(ValueError, match="can't build 'IVF,nonsense' over 11 vectors of 24 numbers"):
        make(tmp_path, encoder, string_factory="IVF,nonsense")
    with pytest.raises(ValueError, match="can't be searched with 'nonsense=1'"):
        make(tmp_path, encoder, search_parameters="nonsense=1")
    with pytest.raises(FileNotFoundError, match="holds no image index"):
        ImageRetriever(corpus, encoder, tmp_path)
    with pytest.raises(ValueError, match=f"is of encoder {encoder.fingerprint}, not"):
        ImageRetriever(corpus, ImageEncoder(towers["clip bare"]), folder)
    other = KnowledgeCorpus.from_files(write_corpus(tmp_path / "less", 10), tmp_path / "cache")
    with pytest.raises(ValueError, match="is of images .*build it again"):
        ImageRetriever(other, encoder, folder)
    text = tmp_path / "text.jsonl"
    text.write_text('{"id": "1", "title": "T", "text": "Words."}\n')
    with pytest.raises(ValueError, match="has no images"):
        ImageRetriever.from_corpus(KnowledgeCorpus.from_files(text, tmp_path / "cache"), encoder)
    smaller = ImageRetriever.from_corpus(other, encoder).index_dir
    content = (folder / "index.faiss").read_bytes()
    (folder / "index.faiss").write_bytes((smaller / "index.faiss").read_bytes())
    with pytest.raises(ValueError, match="10 elements while the dataset has 11"):
        ImageRetriever(corpus, encoder, folder)
    (folder / "index.faiss").write_bytes(content[:100])
    with pytest.raises(ValueError, match="is not a FAISS index"):
        ImageRetriever(corpus, encoder, folder)
    (folder / "index.faiss").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks its file index\.faiss"):
        ImageRetriever(corpus, encoder, folder)


def test_a_saved_corpus_carries_its_image_indices(
    tmp_path: Path, encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = make(tmp_path, encoder)
    make(tmp_path, encoder, string_factory="HNSW8")
    folder = retriever.corpus.save_pretrained(tmp_path / "saved")
    loaded = KnowledgeCorpus.from_pretrained(folder, tmp_path / "new cache")
    monkeypatch.setattr(image_module, "embed_in_shards", None)  # the saved indices must do
    again = ImageRetriever.from_corpus(loaded, encoder)
    assert again.index_dir.parent == folder / "faiss" and again.fingerprint == retriever.fingerprint
    queries = [noise(number).rotate(4) for number in range(11)]
    assert again.search(queries) == retriever.search(queries)
    assert ImageRetriever.from_corpus(loaded, encoder, string_factory="HNSW8").factory == "HNSW8"
    card = (folder / "README.md").read_text()
    assert "HNSW8, images embedded by `clip`" in card and str(tmp_path) not in card
    saved_again = loaded.save_pretrained(tmp_path / "again")
    assert len(list(saved_again.glob("faiss/*/index.faiss"))) == 2
    assert not list(saved_again.glob("faiss/**/*.arrow"))
    (exact,) = saved_again.glob("faiss/*-Flat")
    shutil.rmtree(exact)  # what is published of a large corpus: the approximate index alone
    large = KnowledgeCorpus.from_pretrained(saved_again, tmp_path / "new cache")
    assert ImageRetriever.from_corpus(large, encoder).factory == "HNSW8"
    retriever.save(tmp_path / "copy")
    assert ImageRetriever(loaded, encoder, tmp_path / "copy").search(queries) == retriever.search(queries)


KILLED = """
import os, signal, sys
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus

class Killed(ImageEncoder):
    calls = 0
    def embed(self, images):
        Killed.calls += 1
        if Killed.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(images)

tower, folder, index = sys.argv[1:]
ImageRetriever.from_corpus(KnowledgeCorpus(folder), Killed(tower, batch_size=4), index, shard_rows=2)
"""


def run(script: str, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_embedding_continues_with_the_same_index(
    tmp_path: Path, encoder: ImageEncoder, towers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = make(tmp_path, encoder, index_dir=tmp_path / "unbroken", shard_rows=2)
    process = run(KILLED, towers["clip"], unbroken.corpus.folder, tmp_path / "broken")
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    shards = sorted((tmp_path / "broken" / "embeddings").glob("*.arrow"))
    assert len(shards) == 3
    shards[1].write_bytes(shards[1].read_bytes()[:100])  # and one was damaged since
    calls: list[int] = []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda images: calls.append(len(images)) or embed(images))
    continued = make(tmp_path, encoder, index_dir=tmp_path / "broken", shard_rows=2)
    assert calls == [2, 2, 2, 1]  # the damaged one, and those from the fourth on
    files = [next(path.glob("*/index.faiss")).read_bytes() for path in (tmp_path / "broken", tmp_path / "unbroken")]
    assert files[0] == files[1]
    assert continued.search([noise(2)]) == unbroken.search([noise(2)])
    assert not list(tmp_path.glob("broken/**/*.lock")) + list(tmp_path.glob("broken/**/*.tmp*"))


SHARED = """
import sys, time
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus

class Slow(ImageEncoder):
    calls = 0
    def embed(self, images):
        Slow.calls += 1
        time.sleep(0.3)
        return super().embed(images)

tower, folder, index = sys.argv[1:]
ImageRetriever.from_corpus(KnowledgeCorpus(folder), Slow(tower, batch_size=4), index, shard_rows=1)
print(Slow.calls)
"""


def test_processes_share_the_embedding(tmp_path: Path, encoder: ImageEncoder, towers: dict[str, str]) -> None:
    alone = make(tmp_path, encoder, index_dir=tmp_path / "alone", shard_rows=1)
    arguments = towers["clip"], alone.corpus.folder, tmp_path / "shared"
    processes = [run(SHARED, *arguments, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum(int(output) for output, _ in outputs) == 11, outputs  # each image once
    files = [next(path.glob("*/index.faiss")).read_bytes() for path in (tmp_path / "shared", tmp_path / "alone")]
    assert files[0] == files[1]


# ---------------------------------------------------------------- attaching


def posts(*images: Any, ids: list[str] | None = None) -> Dataset:
    """Posts with an Image column, or with image ids."""
    tokens = [["Look", "at", "this", str(number)] for number in range(len(ids or images))]
    features = {"id": Value("string"), "tokens": List(Value("string"))}
    rows: dict[str, Any] = {"id": [f"p{number}" for number in range(len(tokens))], "tokens": tokens}
    if ids is not None:
        return Dataset.from_dict({**rows, "image_id": ids}, Features({**features, "image_id": Value("string")}))
    contents = [None if image is None else {"bytes": image, "path": None} for image in images]
    return Dataset.from_dict({**rows, "image": contents}, Features({**features, "image": ImageFeature()}))


def test_attach_adds_the_column_and_counts(
    tmp_path: Path, encoder: ImageEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = make(tmp_path, encoder)
    good = [encoded(noise(number), "JPEG", quality=90) for number in range(3)]
    splits = DatasetDict(
        {
            "train": posts(good[0], None, good[1], good[1][:200], b"<html>"),
            "test": posts(good[2]),
        }
    )
    options: dict[str, Any] = {"top_k": 2, "cache_dir": tmp_path / "attached", "shard_size": 2}
    attached, report = attach_image_knowledge(splits, retriever, **options)
    counts = {"missing": 1, "truncated": 1, "not_an_image": 1}
    assert report == ImageAttachReport(posts=6, entries=6, without_knowledge=3, **counts)
    assert attached["train"].features["knowledge_image"] == KNOWLEDGE_FEATURE
    assert attached["train"].features["image"] == ImageFeature()
    found = [[entry["source"] for entry in row] for row in attached["train"]["knowledge_image"]]
    assert [row[:1] for row in found] == [["Q0"], [], ["Q1"], [], []]
    assert attached["test"][0]["knowledge_image"][0]["text"] == "Thing 2 is one."
    assert "3 post's images can't be used: 1 missing (p1); 1 truncated (p3); 1 not an image (p4)" in caplog.text
    again, report = attach_image_knowledge(splits, retriever, **options)
    assert report == ImageAttachReport(posts=6, entries=6, without_knowledge=3, cached=6, **counts)
    assert again["train"]["knowledge_image"][:] == attached["train"]["knowledge_image"][:]
    with pytest.raises(ValueError, match="have a column knowledge_image already"):
        attach_image_knowledge(attached, retriever, **options)
    with pytest.raises(ValueError, match="no column image, only id, tokens: give image_dir"):
        attach_image_knowledge(splits["test"].remove_columns("image"), retriever, **options)


def test_posts_without_images_are_refused_and_a_half_without_is_said(
    tmp_path: Path, encoder: ImageEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    """An expert "for images" that never saw one must not be trained."""
    retriever = make(tmp_path, encoder)
    options: dict[str, Any] = {"top_k": 1, "cache_dir": tmp_path / "attached"}
    good, folder = encoded(noise(0)), tmp_path / "posts"
    folder.mkdir()
    (folder / "1.png").write_bytes(good)
    (folder / "2.png").write_bytes(b"<html>404</html>")
    with pytest.raises(
        ValueError, match=r"no image of the 3 training posts can be used \(2 missing, 1 not an image\)"
    ):
        attach_image_knowledge(DatasetDict(train=posts(None, None, b"<html>"), test=posts(good)), retriever, **options)
    with pytest.raises(ValueError, match=r"no image of the 2 posts can be used \(2 missing\)"):
        attach_image_knowledge(posts(None, None), retriever, **options)
    with pytest.raises(ValueError, match="no image of the 2 posts can be used .1 missing, 1 not an image."):
        attach_image_knowledge(posts(ids=["2", "3"]), retriever, image_dir=folder, **options)
    with pytest.raises(ValueError, match="posts holds the image of none of the 2 posts"):
        attach_image_knowledge(posts(ids=["7", "8"]), retriever, image_dir=folder, **options)

    caplog.clear()
    splits = DatasetDict(
        train=posts(ids=["1", "1", "3"]), test=posts(ids=["1", "2", "3"]), validation=posts(ids=["3"])
    )
    for _ in range(2):  # told when all is cached, too
        caplog.clear()
        attach_image_knowledge(splits, retriever, image_dir=folder, **options)
        assert "2 of 3 test posts have no image that can be used (1 missing, 1 not an image)" in caplog.text
        assert "1 of 1 validation posts have no image that can be used (1 missing)" in caplog.text
        assert "train posts have no image" not in caplog.text


def test_attach_from_a_folder(tmp_path: Path, encoder: ImageEncoder) -> None:
    retriever = make(tmp_path, encoder)
    folder = tmp_path / "posts"
    folder.mkdir()
    noise(4).save(folder / "17.png")
    noise(5).save(folder / "18_06.jpg")
    noise(6).save(tmp_path / "outside.png")
    rows = posts(ids=["17", "18_06.jpg", "19", "../outside"])
    options: dict[str, Any] = {"top_k": 1, "image_dir": folder, "cache_dir": tmp_path / "attached"}
    attached, report = attach_image_knowledge(rows, retriever, **options)
    assert [[entry["source"] for entry in row] for row in attached["knowledge_image"]] == [["Q4"], ["Q5"], [], []]
    assert report.missing == 2 and report.posts == 4
    noise(7).save(folder / "17.png")  # another picture under the same name
    changed, report = attach_image_knowledge(rows, retriever, **options)
    assert changed["knowledge_image"][0][0]["source"] == "Q7" and report.cached == 0
    shuffled, _ = attach_image_knowledge(rows.select([3, 1, 0, 2]), retriever, **options)
    assert shuffled["image_id"][:] != rows["image_id"][:]
    sources = {row["image_id"]: [entry["source"] for entry in row["knowledge_image"]] for row in shuffled}
    assert sources == {"17": ["Q7"], "18_06.jpg": ["Q5"], "19": [], "../outside": []}
    empty, report = attach_image_knowledge(rows.select([]), retriever, **options)
    assert report == ImageAttachReport() and empty.features["knowledge_image"] == KNOWLEDGE_FEATURE
    with pytest.raises(ValueError, match="no column image_id"):
        attach_image_knowledge(rows.remove_columns("image_id"), retriever, **options)
    with pytest.raises(FileNotFoundError, match="none of the posts' images does not exist"):
        attach_image_knowledge(rows, retriever, image_dir=tmp_path / "none")


def test_labels_change_no_entry_and_leaks_are_dropped(tmp_path: Path, encoder: ImageEncoder) -> None:
    text = "One post whose very own words stand in an article"
    leak = {"id": "L", "title": "Leak", "text": f"It says: {text}.", "image": "0.png"}
    corpus = KnowledgeCorpus.from_files(write_corpus(tmp_path / "k", 11, [leak]), tmp_path / "cache")
    retriever = ImageRetriever.from_corpus(corpus, encoder)
    image = {"bytes": encoded(noise(0)), "path": None}
    features = Features({"tokens": List(Value("string")), "image": ImageFeature(), "label": Value("int64")})
    found = []
    for label, words in ((0, text), (1, text), (0, "other words")):
        rows = {"tokens": [words.split()], "image": [image], "label": [label]}
        attached, report = attach_image_knowledge(
            Dataset.from_dict(rows, features), retriever, top_k=12, cache_dir=tmp_path / f"{label}"
        )
        found.append([entry["source"] for entry in attached[0]["knowledge_image"]])
        assert report.dropped_as_leak == (words == text)
    assert found[0] == found[1] and "L" not in found[0] and len(found[0]) == 11
    assert "L" in found[2]


ATTACHED = """
import os, signal, sys
from datasets import load_from_disk
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus, attach_image_knowledge

class Killed(ImageRetriever):
    calls = 0
    def search(self, images, top_k=10):
        Killed.calls += 1
        if Killed.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().search(images, top_k)

tower, folder, index, cache, dataset = sys.argv[1:]
retriever = Killed(KnowledgeCorpus(folder), ImageEncoder(tower, batch_size=4), index)
attach_image_knowledge(load_from_disk(dataset), retriever, cache_dir=cache, shard_size=2)
"""


def test_a_killed_run_continues_with_the_same_result(
    tmp_path: Path, encoder: ImageEncoder, towers: dict[str, str]
) -> None:
    retriever = make(tmp_path, encoder)
    rows = posts(*(encoded(noise(number)) for number in range(9)))
    rows.save_to_disk(tmp_path / "posts")
    unbroken, _ = attach_image_knowledge(rows, retriever, cache_dir=tmp_path / "unbroken", shard_size=2)
    process = run(
        ATTACHED, towers["clip"], retriever.corpus.folder, retriever.index_dir, tmp_path / "broken", tmp_path / "posts"
    )
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    continued, report = attach_image_knowledge(rows, retriever, cache_dir=tmp_path / "broken", shard_size=2)
    assert (report.posts, report.cached) == (9, 4)
    assert continued["knowledge_image"][:] == unbroken["knowledge_image"][:]


# ---------------------------------------------------------------- the Hub

PUSHED = """
import sys
from pathlib import Path
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus, load_knowledge

tower, file, cache, new_cache = sys.argv[1:]
encoder = ImageEncoder(tower)
built = KnowledgeCorpus.from_files(file, cache)
queries = [Path(file).parent / f"{number}.png" for number in range(11)]
found = ImageRetriever.from_corpus(built, encoder).search(queries)
built.push_to_hub("ORG/pictures", license="cc0-1.0", date="20231101")
loaded = load_knowledge(["ORG/pictures"], new_cache)
assert loaded.info == built.info
retriever = ImageRetriever.from_corpus(loaded, encoder)
assert "snapshots" in str(retriever.index_dir), retriever.index_dir
assert retriever.search(queries) == found
"""


def test_push_to_hub_and_load_again(tmp_path: Path, towers: dict[str, str]) -> None:
    file = write_corpus(tmp_path / "k")
    with local_hub(tmp_path / "hub") as hub:
        process = run(PUSHED, towers["clip"], file, tmp_path / "cache", tmp_path / "new", **hub.env)
        _, error = process.communicate()
        assert process.returncode == 0, error
        names = hub.files("ORG/pictures", "dataset")
    assert any(name.endswith("index.faiss") for name in names) and "bm25/index.json" in names
    assert any(name.startswith("images/train-") for name in names)
    assert not any(name.endswith(".arrow") or name.endswith(".lock") for name in names)
