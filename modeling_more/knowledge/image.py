"""Search the images of a corpus by inner products of image embeddings (METHOD, section 1)."""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Image as ImageFeature
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from ..files import copy_folder
from ..loading import checked_options, config_of
from ..naming import missing_source
from ..provenance import hub_options
from .corpus import KnowledgeCorpus
from .corpus_info import FAISS_FOLDER, FAISS_META
from .corpus_tables import open_or_build
from .leakage import Entry
from .pictures import THREADS, Source, open_image
from .vectors import (
    COSINE,
    ImageSearcher,
    build_index,
    embed_in_shards,
    index_name,
    load_index,
    read_factory,
    search_distinct,
)

logger = logging.getLogger(__name__)

Pixels = dict[str, torch.Tensor]  # what an image processor makes of a batch

DEFAULT_ENCODER = "openai/clip-vit-base-patch32"
INDEX_VERSION = 1
_SHARD_ROWS = 2048  # images a shard: what a killed run loses at most
_OPEN_PIXELS = 1 << 25  # of the images that a thread has open at once; 64 photos as posts show them have less
_LONGEST = 16  # times the short side: an image thinner than that would be blown up to gigabytes
_SLACK = 2  # results above top_k, so that an article with several images seldom needs a second search


class ImageEncoder:
    """An image encoder made of any image tower in transformers, such as CLIP or SigLIP, whole or vision part.

    ```python
    encoder = ImageEncoder("openai/clip-vit-base-patch32")
    encoder.embed([PIL.Image.open("picture.jpg")])  # float32 [1, 512]
    ```
    """

    def __init__(
        self,
        name_or_path: str | Path = DEFAULT_ENCODER,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 64,
    ) -> None:
        """Load the tower and its image processor.

        Args:
            device: default: the accelerator of this process where there is one.
            dtype: default: bfloat16 on a GPU that has it, else float32; norms are taken in float32.

        Raises:
            FileNotFoundError: no image tower of that name in a folder or on the Hub.
            ValueError: the checkpoint lacks weights of the tower, or its image processor makes what that can't read.
        """
        place = {"revision": revision, "trust_remote_code": False, **hub_options(name_or_path)}
        self.name = str(name_or_path)
        self.batch_size = batch_size
        self.device = torch.device(device) if device is not None else _default_device()
        if dtype is None:
            half = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
            dtype = torch.bfloat16 if half else torch.float32
        self.dtype = dtype
        if reason := missing_source(name_or_path):
            raise FileNotFoundError(f"The image tower {name_or_path} can't be loaded: {reason}")
        try:
            # the Pillow kind: it needs no torchvision, and the same pixels come out on every machine
            self.processor: Any = AutoImageProcessor.from_pretrained(name_or_path, backend="pil", **place)
            model = _load_tower(name_or_path, revision)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FileNotFoundError(f"The image tower {name_or_path} can't be loaded: {reason}") from error
        #: digest of stored weights and preprocessing, not of the device: an index made on a GPU serves a CPU
        self.fingerprint = _digest(model, self.processor)
        self.model: Any = model.to(self.device, dtype).eval()
        self.dimension = self._probed()

    @property
    def label(self) -> str:
        """Return the name for cards, of a folder only the last part."""
        return Path(self.name).name if Path(self.name).is_dir() else self.name

    def _probed(self) -> int:
        """Return the dimension of the embeddings of two pictures of different shapes.

        Raises:
            ValueError: the tower can't read what its image processor makes of them, or reads only a part.
        """
        told = f"The image tower {self.name} can't read what its preprocessor_config.json makes of pictures"
        try:
            pixels = self._pixels([Image.new("RGB", (8, 8)), Image.new("RGB", (12, 8))])
            for name, module in self.model.named_modules():
                size = getattr(module, "image_size", None)
                # a table of positions fits one size; towers that stretch theirs have a parameter instead
                if name.endswith("embeddings") and hasattr(module, "position_embedding") and isinstance(size, int):
                    height, width = pixels["pixel_values"].shape[-2:]
                    if (height, width) != (size, size):
                        right = f"it reads {size} × {size}: set size and crop_size there to {size}"
                        raise ValueError(f"{height} × {width} pixels, {right}")
            return int(self._embed_pixels(pixels).shape[1])
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{told}: {' '.join(str(error).split())[:300]}") from error

    def embed(self, images: Sequence[Source]) -> np.ndarray:
        """Embed images as float32 [images, dimension], L2-normalised.

        Args:
            images: whatever `open_image` opens; threads decode and resize them while the tower computes.

        Raises:
            ImageError: one can't be used.
        """
        vectors = [self._embed_pixels(pixels) for pixels in self._prepare(images)]
        return np.concatenate(vectors) if vectors else np.empty((0, self.dimension), np.float32)

    def _prepare(self, images: Sequence[Source]) -> Iterator[Pixels]:
        """Yield batches of the processor's outputs, a few made ahead."""
        starts = iter(range(0, len(images), self.batch_size))
        ahead: deque[Future[Pixels]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                while True:
                    while len(ahead) <= THREADS and (first := next(starts, None)) is not None:
                        ahead.append(pool.submit(self._pixels, images[first : first + self.batch_size]))
                    if not ahead:
                        return
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _pixels(self, images: Sequence[Source]) -> Pixels:
        parts: list[Pixels] = []
        opened: list[Image.Image] = []
        for number, image in enumerate(images, 1):
            opened.append(_not_too_thin(open_image(image)))
            if number == len(images) or sum(one.width * one.height for one in opened) > _OPEN_PIXELS:
                # said, not guessed: a height of 1 or 3 pixels looks like channels first
                made = self.processor(opened, input_data_format="channels_last", return_tensors="pt")
                # some towers need more than `pixel_values`: those of pictures in patches their mask and shapes
                parts.append({name: torch.as_tensor(value) for name, value in made.items()})
                opened = []
        return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _embed_pixels(self, pixels: Pixels) -> np.ndarray:
        embed = getattr(self.model, "get_image_features", self.model)  # models with a text tower have it
        moved = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in pixels.items()
        }
        with torch.no_grad():
            output = embed(**moved)
        found = (getattr(output, name, None) for name in ("image_embeds", "pooler_output"))
        vectors = next((value for value in found if value is not None), None)
        vectors = output.last_hidden_state[:, 0] if vectors is None else vectors
        vectors = vectors.flatten(1).float()  # the poolers of convolutional towers keep two axes of one pixel
        return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()


class _ClipTower(CLIPVisionModelWithProjection):
    """A CLIP image tower that loads from a whole CLIP without warnings on its text tower."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", "^logit_scale$"]


class ImageRetriever(ImageSearcher):
    """A retriever that finds the articles whose image lies nearest to the query's.

    ```python
    retriever = ImageRetriever.from_corpus(corpus, ImageEncoder())
    retriever.search([PIL.Image.open("picture.jpg")], top_k=3)[0][0]["title"]
    ```
    """

    def __init__(
        self, corpus: KnowledgeCorpus, encoder: ImageEncoder, index_dir: str | Path, search_parameters: str = ""
    ) -> None:
        """Open a saved index.

        Args:
            search_parameters: of an approximate index, see `load_index`.

        Raises:
            FileNotFoundError: `index_dir` holds no index.
            ValueError: the corpus has no images; or the index is of others, of another tower or version, or damaged.
        """
        images = _images(corpus)
        self.corpus = corpus
        self.encoder = encoder
        self.index_dir = Path(index_dir)
        expected = {"images": corpus.info.image_fingerprint, "encoder": encoder.fingerprint, "rows": len(images)}
        meta = self.index_dir / FAISS_META
        self.factory = read_factory(meta, "image index", INDEX_VERSION, "factory", expected)
        self.table = images.remove_columns("image")
        self.search_parameters, self.index_digest = load_index(
            self.table, self.index_dir, FAISS_META, encoder.dimension, corpus.cache_dir, search_parameters
        )

    @property
    def fingerprint(self) -> str:
        """Return what the results depend on besides queries and `top_k`."""
        index = f"{INDEX_VERSION}-{self.factory}-{self.search_parameters}-{self.index_digest[:16]}"
        return f"image-{index}-{self.encoder.fingerprint}-{self.corpus.info.image_fingerprint}"

    @classmethod
    def from_corpus(
        cls,
        corpus: KnowledgeCorpus,
        encoder: ImageEncoder,
        index_dir: str | Path | None = None,
        string_factory: str | None = None,
        search_parameters: str = "",
        shard_rows: int = _SHARD_ROWS,
    ) -> "ImageRetriever":
        """Open the index of corpus and encoder; where there is none, embed the images, build and save it first.

        The vectors are kept in shards, from which a killed run or one with another kind of index continues, and which
        the processes of `accelerate launch` share.

        Args:
            index_dir: a folder for the indices and shards; default: the indices saved with the corpus, else a folder
                beside its tables in the cache, from where `save_pretrained` takes them.
            string_factory: a FAISS index for large corpora, such as "IVF4096,PQ64" or "HNSW32"; default: of those
                saved with the corpus the exact one, else another; where there is none, exact search.
        """
        images = _images(corpus)
        if index_dir is None and (saved := _saved_index(corpus.faiss_dir, encoder.fingerprint, string_factory)):
            return cls(corpus, encoder, saved, search_parameters)
        factory = string_factory or "Flat"
        name = index_name(encoder.fingerprint, factory)
        home = Path(index_dir) if index_dir is not None else corpus.folder / FAISS_FOLDER

        def build(is_good: Callable[[], bool]) -> None:
            raw = images.cast_column("image", ImageFeature(decode=False))
            digest = hashlib.sha256(f"{corpus.info.image_fingerprint} {encoder.fingerprint}".encode()).hexdigest()[:16]

            def embed(first: int, last: int) -> np.ndarray:
                return encoder.embed(raw[first:last]["image"])

            vectors = embed_in_shards(
                home / "embeddings", digest, len(images), encoder.dimension, embed, shard_rows, "images"
            )
            meta = {
                "version": INDEX_VERSION,
                "images": corpus.info.image_fingerprint,
                "encoder": encoder.fingerprint,
                "encoder_name": encoder.label,
                "rows": len(images),
                "dimension": encoder.dimension,
                "factory": factory,
            }
            build_index(vectors, home / name, factory, FAISS_META, meta, is_good)

        def read() -> ImageRetriever:
            return cls(corpus, encoder, home / name, search_parameters)

        return open_or_build(home / name, FAISS_META, read, build)

    def save(self, folder: str | Path) -> None:
        """Copy the index (without the shards of vectors) into a folder."""
        copy_folder(self.index_dir, Path(folder))

    def search_vectors(self, vectors: np.ndarray, top_k: int = 10) -> list[list[Entry]]:
        """Search as `search` does, by embeddings, float32 [queries, dimension]."""
        if top_k < 1:
            raise ValueError(f"At least one result must be asked for, not {top_k}.")
        entries_of = partial(self._entries, top_k=top_k)
        return search_distinct(self.table, vectors, entries_of, top_k, top_k + _SLACK)

    def _entries(self, rows: np.ndarray, scores: np.ndarray, top_k: int) -> Iterator[list[Entry]]:
        distinct, place = np.unique(rows[rows >= 0], return_inverse=True)
        read = self.table[distinct] if len(distinct) else {}
        at = np.full(rows.shape, -1)
        at[rows >= 0] = place
        for found, ranked in zip(at.tolist(), scores.tolist(), strict=True):
            entries: list[Entry] = []
            seen = set()
            for number, score in zip(found, ranked, strict=True):
                if number < 0 or len(entries) == top_k:
                    break
                article, title, value = (read[name][number] for name in ("id", "title", "value"))
                if article in seen or (title, value) in seen:  # the same article from another source, too
                    continue
                seen |= {article, (title, value)}
                entry = {"title": title, "text": value, "score": score, "scale": COSINE, "source": article}
                entries.append({**entry, "match_start": 0, "match_end": 0, "image": int(distinct[number])})
            yield entries


def _saved_index(folder: Path | None, encoder: str, factory: str | None) -> Path | None:
    """Return the saved index of that kind; if none is asked for, the exact one before any other."""
    if folder is None:
        return None
    names = [index_name(encoder, factory or "Flat")]
    if factory is None:
        names += sorted(found.name for found in folder.glob(f"{index_name(encoder, '')}*"))
    return next((folder / name for name in names if (folder / name / FAISS_META).is_file()), None)


def _images(corpus: KnowledgeCorpus) -> Any:
    if corpus.images is None:
        raise ValueError(
            f"The knowledge corpus in {corpus.folder} has no images: build it from files with a column image."
        )
    return corpus.images


def _default_device() -> torch.device:
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device("cpu")
    return torch.device(found.type, int(os.environ.get("LOCAL_RANK", 0)))


def _load_tower(name: str | Path, revision: str | None) -> Any:
    config = config_of(name, revision=revision)
    options: dict[str, Any] = {"revision": revision, "dtype": torch.float32, "output_loading_info": True}
    options |= checked_options(name, pickled=True, revision=revision)
    if config.model_type not in ("clip", "clip_vision_model"):
        model, info = AutoModel.from_pretrained(name, **options)
        if info["missing_keys"] and all(key.startswith("pooler.") for key in info["missing_keys"]):
            # a classifier's checkpoint has no pooler: the first token stands for the picture
            with suppress(TypeError):  # of a tower that can't be without: its pooler is used
                model, info = AutoModel.from_pretrained(name, add_pooling_layer=False, **options)
        _check_weights(name, info)
        return model.vision_model if config.model_type == "siglip" else model  # its text tower is not needed
    vision = config if isinstance(config, CLIPVisionConfig) else config.vision_config
    vision.projection_dim = config.projection_dim  # the vision part's may be a default
    tower: Any = _ClipTower
    model, info = tower.from_pretrained(name, config=vision, **options)
    if info["missing_keys"] == {"visual_projection.weight"}:  # CLIP's image tower saved without its projection
        tower = CLIPVisionModel
        model, info = tower.from_pretrained(name, config=vision, **options)
    _check_weights(name, info)
    return model


def _check_weights(name: str | Path, info: dict[str, Any]) -> None:
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"The image tower {name} lacks {len(missing)} of its weights, such as {missing[0]}.")


def _digest(model: torch.nn.Module, processor: Any) -> str:
    settings = {
        key: value
        for key, value in json.loads(processor.to_json_string()).items()
        # the names of classes differ between the kinds that give the same pixels
        if value is not None and not key.endswith(("_type", "_class"))
    }
    digest = hashlib.sha256(json.dumps([INDEX_VERSION, settings], sort_keys=True).encode())
    for key, weight in sorted(model.state_dict().items()):
        if not key.endswith("position_ids"):  # a list of numbers that older checkpoints hold
            digest.update(f"{key} {list(weight.shape)}".encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _not_too_thin(image: Image.Image) -> Image.Image:
    """Crop an image that is more than 16 times as long as wide to its middle."""
    width, height = image.size
    across, down = min(width, _LONGEST * height), min(height, _LONGEST * width)
    if (across, down) == image.size:
        return image
    left, top = (width - across) // 2, (height - down) // 2
    return image.crop((left, top, left + across, top + down))
