"""Tiny image towers and a corpus of pictures, for the tests of knowledge by image."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus
from pictures import noise

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {**{k: v for k, v in VISION.items() if "_size" not in k}, "hidden_size": 32, "vocab_size": 50}


def save_towers(folder: Path) -> dict[str, str]:
    """Folders of one tiny random CLIP in every layout that it comes in, and of a SigLIP."""
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


def run(script: str, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
