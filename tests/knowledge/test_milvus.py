"""Retrieval from Milvus (a local file of milvus-lite) beside the embedded engines; loads that are killed."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from pictures import picture, save_tiny_tower

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus, attach_text_knowledge, milvus
from modeling_more.knowledge.image import ImageEncoder, ImageRetriever
from modeling_more.knowledge.milvus import Database, MilvusImageRetriever, MilvusTextRetriever
from modeling_more.knowledge.milvus_load import LOAD_VERSIONS

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"word{number}" for number in range(40)]


def build(folder: Path, articles: list[tuple[str, str]], **options: Any) -> KnowledgeCorpus:
    rows = [{"id": f"Q{row}", "title": title, "text": text} for row, (title, text) in enumerate(articles)]
    folder.mkdir(exist_ok=True)
    file = folder / "articles.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return KnowledgeCorpus.from_files(file, folder / "cache", **options)


def random_articles(seed: int, count: int = 40) -> list[tuple[str, str]]:
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 9))).capitalize() + "."

    def paragraph() -> str:
        return " ".join(sentence() for _ in range(rng.randint(1, 4)))

    return [(f"Title {row}", "\n".join(paragraph() for _ in range(rng.randint(1, 3)))) for row in range(count)]


def assert_equal_but_for_ties(found: list[list[dict[str, Any]]], expected: list[list[dict[str, Any]]]) -> None:
    """Equal scores place by place; where scores are equal, the same entries but for the lowest, which is cut off."""
    for ours, theirs in zip(found, expected, strict=True):
        assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in theirs], rel=1e-5)
        for score in {entry["score"] for entry in theirs if entry["score"] > theirs[-1]["score"] * (1 + 1e-5)}:
            same = [
                {(e["source"], e["title"], e["text"]) for e in entries if e["score"] == pytest.approx(score, rel=1e-5)}
                for entries in (ours, theirs)
            ]
            assert same[0] == same[1]


def dump(retriever: MilvusTextRetriever) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind in ("paragraphs", "sentences"):
        found = retriever.client.query(retriever.database.collection(kind), filter="id >= 0", output_fields=["*"])
        rows += sorted(({**row} for row in found), key=lambda row: row["id"])
    return rows


def release(file: Path) -> None:
    """Close the local database as the end of the process does."""
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(str(file))


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Database.parse("milvus:a.db") == Database(str(tmp_path / "a.db"), "more")
    assert Database.parse("milvus:http://host:19530#wiki") == Database("http://host:19530", "wiki")
    for spec, message in (
        ("milvus:folder", "neither http://HOST:PORT nor a local file whose name ends in .db"),
        ("milvus:a.db#no-name", "the name 'no-name' should be of letters"),
        ("milvus:https://me:secret@host", r"give it as USER:PASSWORD by \$MILVUS_TOKEN"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            Database.parse(spec)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_embedded_engine(tmp_path: Path, seed: int) -> None:
    corpus = build(tmp_path, random_articles(seed), title_in_key=bool(seed))
    embedded = BM25Retriever.from_corpus(corpus)
    retriever = MilvusTextRetriever.from_corpus(corpus, f"milvus:{tmp_path / 'k.db'}")
    rng = random.Random(seed + 10)
    queries = [" ".join(rng.choices([*WORDS, "unknown"], k=rng.randint(1, 8))) for _ in range(70)]
    queries += ["", "…", "unknown", "word1 word1 WORD1 word2", "word3,word4_word5"]
    for top_k in (1, 10):
        assert_equal_but_for_ties(retriever.search(queries, top_k), embedded.search(queries, top_k))
    everything = retriever.search(["word1 word2 word3"], 1000), embedded.search(["word1 word2 word3"], 1000)
    assert_equal_but_for_ties(*everything)
    assert len(everything[0][0]) > 30
    assert retriever.fingerprint != embedded.fingerprint and corpus.fingerprint in retriever.fingerprint
    with pytest.raises(ValueError, match="At least one result"):
        retriever.search(["word1"], 0)


def test_words_of_all_scripts_equal_the_embedded_engine(tmp_path: Path) -> None:
    texts = [
        "मान एक शब्द है।",
        "मीना एक नाम है।",
        "北京是中国的首都。",
        "上海是一座城市。",
        "Café snake_case.",
        "กรุงเทพ น้ำ",
    ]
    corpus = build(tmp_path, [(f"Title {row}", text) for row, text in enumerate(texts)])
    embedded = BM25Retriever.from_corpus(corpus)
    retriever = MilvusTextRetriever.from_corpus(corpus, f"milvus:{tmp_path / 'k.db'}")
    queries = ["मीना", "मीन", "北京在哪里", "海", "京北", "CAFE\u0301", "snake", "snake_case", "น้ำ", "กรุง", "x636166"]
    found = retriever.search(queries)
    assert [len(entries) for entries in found] == [1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0]
    assert_equal_but_for_ties(found, embedded.search(queries))


def test_a_database_of_before_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, spec = build(tmp_path, [("Oslo", "A city.")]), f"milvus:{tmp_path / 'k.db'}"
    monkeypatch.setitem(LOAD_VERSIONS, "sentences", 1)
    before = MilvusTextRetriever.from_corpus(corpus, spec).fingerprint
    monkeypatch.undo()
    with pytest.raises(ValueError, match="The sentences in .* are of version 1, this one reads 2: drop them, or load"):
        MilvusTextRetriever(spec)
    with pytest.raises(ValueError, match="holds other sentences under the name more"):
        MilvusTextRetriever.from_corpus(corpus, spec)
    assert MilvusTextRetriever.from_corpus(corpus, f"{spec}#again").fingerprint != before


def test_fetches_on_until_k_distinct_paragraphs(tmp_path: Path) -> None:
    long = " ".join("Mercury is hot." for _ in range(50))
    copies = [("Copy", "Mercury is hot and near to the sun, which is hot too.")] * 3
    corpus = build(tmp_path, [("Planet", long), *copies, ("Metal", "Quicksilver is also called mercury.")])
    retriever = MilvusTextRetriever.from_corpus(corpus, f"milvus:{tmp_path / 'k.db'}")
    found = retriever.search(["mercury hot"], 3)[0]
    assert [entry["title"] for entry in found] == ["Planet", "Copy", "Metal"]
    exact = _embedded(corpus, "mercury hot", 3)
    assert found == [{**e, "score": pytest.approx(e["score"], rel=1e-5), "scale": 0} for e in exact]  # not known here
    post = "Mercury is hot and near to the sun which is hot too"
    without = retriever.search([post], 3, posts=[post])[0]
    assert [entry["title"] for entry in without] == ["Planet", "Metal"]


def test_texts_that_stand_twice_take_no_places(tmp_path: Path) -> None:
    """However many of the best paragraphs repeat another."""
    words = ["hot", "cold", "far", "near", "old", "new", "red", "blue", "big", "small", "late", "early"]
    articles = [(word, f"Mercury is {word} in {number * 'very '}many ways.") for number, word in enumerate(words)]
    corpus = build(tmp_path, [article for article in articles for _ in range(3)])
    retriever = MilvusTextRetriever.from_corpus(corpus, f"milvus:{tmp_path / 'k.db'}")
    several = retriever.search(["mercury", "mercury hot", "nothing"], 8)
    assert [len(entries) for entries in several] == [8, 8, 0]
    for query, entries in zip(("mercury", "mercury hot"), several, strict=False):
        assert [e["title"] for e in entries] == [e["title"] for e in _embedded(corpus, query, 8)]


def _embedded(corpus: KnowledgeCorpus, query: str, top_k: int) -> list[dict[str, Any]]:
    return BM25Retriever.from_corpus(corpus).search([query], top_k)[0]


def test_attached_columns_are_equal(tmp_path: Path) -> None:
    articles = [("Oslo", "Oslo is the capital of Norway. It lies by the sea."), ("Ada", "Ada wrote programs.")]
    corpus = build(tmp_path, articles)
    posts = Dataset.from_dict({"tokens": [["Ada", "in", "Oslo"], ["by", "the", "sea"], ["nothing"]]})
    retrievers = BM25Retriever.from_corpus(corpus), MilvusTextRetriever.from_corpus(corpus, f"milvus:{tmp_path}/k.db")
    columns = [attach_text_knowledge(posts, each, cache_dir=tmp_path)[0][:]["knowledge_text"] for each in retrievers]
    assert [len(entries) for entries in columns[1]] == [2, 1, 0]
    for ours, theirs in zip(*columns, strict=True):
        assert [{**entry, "score": round(entry["score"], 4), "scale": 0} for entry in ours] == [
            {**entry, "score": round(entry["score"], 4)} for entry in theirs
        ]


def test_posts_are_published_with_it(tmp_path: Path) -> None:
    from datasets import load_dataset

    from dataset_scripts._publish import main

    raw = tmp_path / "raw"
    raw.mkdir()
    for split in ("train", "valid", "test"):
        (raw / f"{split}.txt").write_text("Ada\tB-PER\nin\tO\nOslo\tB-LOC\n")
    corpus = build(tmp_path, [("Oslo", "Oslo is the capital of Norway."), ("Ada", "Ada wrote programs.")])
    MilvusTextRetriever.from_corpus(corpus, f"milvus:{tmp_path / 'k.db'}#cities")
    arguments = ["--data_dir", str(raw), "--cache_dir", str(tmp_path / "cache"), "--retrieval", "text", "--knowledge"]
    found = []
    for name, spec in (("file", f"{tmp_path}/articles.jsonl"), ("database", f"milvus:{tmp_path}/k.db#cities")):
        assert main("twitter17", [*arguments, spec, "--output_dir", str(tmp_path / name)]) == 0
        found.append(load_dataset(str(tmp_path / name), "text", split="test", cache_dir=str(tmp_path / "hf"))[:])
    ours, theirs = ([(e["title"], round(e["score"], 4)) for e in rows["knowledge_text"][0]] for rows in found)
    assert ours == theirs and {title for title, _ in ours} == {"Ada", "Oslo"}
    card = (tmp_path / "database" / "README.md").read_text()
    assert "from `k.db#cities`: 2 sentences" in card and "--knowledge 'milvus:k.db#cities'" in card
    assert str(tmp_path) not in card


def test_a_killed_load_continues_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = build(tmp_path, random_articles(3))
    monkeypatch.setattr(milvus, "BATCH", 16)
    assert 4 * 16 < corpus.info.paragraphs <= 5 * 16
    whole = dump(MilvusTextRetriever.from_corpus(corpus, f"milvus:{tmp_path / 'whole.db'}"))
    script = f"""
import os, signal
from pymilvus import MilvusClient
from modeling_more.knowledge import KnowledgeCorpus, milvus
insert, calls = MilvusClient.insert, []
def killed(self, name, rows):
    insert(self, name, rows[:5] if len(calls) == 8 else rows)  # the last one in part, as on a cluster
    calls.append(name)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
MilvusClient.insert = killed
milvus.BATCH = 16
milvus.MilvusTextRetriever.from_corpus(KnowledgeCorpus({str(corpus.folder)!r}), "milvus:{tmp_path}/broken.db")
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    spec = f"milvus:{tmp_path / 'broken.db'}"
    with pytest.raises(ValueError, match="was not finished: continue by python -m modeling_more.knowledge.milvus"):
        MilvusTextRetriever(spec)
    inserted: list[int] = []
    client = type(Database.parse(spec).connect())
    insert = client.insert
    monkeypatch.setattr(
        client, "insert", lambda self, name, rows: inserted.append(len(rows)) or insert(self, name, rows)
    )
    continued = MilvusTextRetriever.from_corpus(corpus, spec)
    assert dump(continued) == whole
    # inserted before the kill: the note on the load, the paragraphs in five parts, two parts of sentences and a bit
    assert sum(inserted) == len(corpus) - (2 * 16 + 5) and inserted[0] == 16 - 5
    release(tmp_path / "broken.db")
    assert dump(MilvusTextRetriever(spec)) == whole


def test_the_database_says_what_it_holds(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a", [("Oslo", "A city.")]), build(tmp_path / "b", [("Ada", "A name.")])
    spec = f"milvus:{tmp_path / 'k.db'}"
    with pytest.raises(FileNotFoundError, match="holds no sentences: load them by"):
        MilvusTextRetriever(spec)
    MilvusTextRetriever.from_corpus(first, spec)
    with pytest.raises(ValueError, match="holds other sentences under the name more"):
        MilvusTextRetriever.from_corpus(second, spec)
    other = MilvusTextRetriever.from_corpus(second, f"{spec}#other")
    assert other.search(["a name"])[0][0]["title"] == "Ada"
    assert MilvusTextRetriever(spec).search(["a city"])[0][0]["source"] == "Q0"


def test_a_local_file_that_another_process_holds(tmp_path: Path) -> None:
    (tmp_path / "k.db").mkdir()
    with open(tmp_path / "k.db" / "LOCK", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConnectionError, match="k.db can't be opened .* does another process hold it?"):
            MilvusTextRetriever(f"milvus:{tmp_path / 'k.db'}")


def test_over_long_texts_are_cut_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filler = "ä" * 200
    long = " ".join([filler] * 200) + ". Zebra stripes."
    corpus = build(tmp_path, [("Long", long), ("Short", "Nothing.")])
    retriever = MilvusTextRetriever.from_corpus(corpus, f"milvus:{tmp_path / 'k.db'}")
    assert "is cut to the 65535 that Milvus holds" in caplog.text
    entry = retriever.search(["zebra"])[0][0]
    assert entry["title"] == "Long" and len(entry["text"].encode()) <= 65535
    assert entry["match_start"] == entry["match_end"] == len(entry["text"])


def test_the_command_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, [("Oslo", "Oslo is a city.")])
    spec = f"milvus:{tmp_path / 'k.db'}#cities"
    milvus.main([spec, "--knowledge", str(tmp_path / "articles.jsonl"), "--cache_dir", str(tmp_path / "cache")])
    assert capsys.readouterr().out.startswith("1 sentences, milvus-")
    assert MilvusTextRetriever(spec).search(["Oslo"])[0][0]["text"] == "Oslo is a city."


# ---------------------------------------------------------------- images


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> list[ImageEncoder]:
    folder = tmp_path_factory.mktemp("towers")
    return [ImageEncoder(save_tiny_tower(folder / str(seed), seed), device="cpu") for seed in range(2)]


@pytest.fixture
def gallery(tmp_path: Path) -> KnowledgeCorpus:
    """Thirty images of ten articles."""
    rows = []
    for number in range(30):
        picture(number).save(tmp_path / f"{number}.png")
        article = number % 10
        row = {"id": f"Q{article}", "title": f"Title {article}", "text": f"Article {article}." if number < 10 else ""}
        rows.append({**row, "lead": f"Article {article}.", "image": f"{number}.png"})
    file = tmp_path / "gallery.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return KnowledgeCorpus.from_files(file, tmp_path / "cache")


def test_images_equal_the_embedded_engine(
    tmp_path: Path, gallery: KnowledgeCorpus, towers: list[ImageEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"milvus:{tmp_path / 'k.db'}"
    embedded = ImageRetriever.from_corpus(gallery, towers[0])
    retriever = MilvusImageRetriever.from_corpus(gallery, towers[0], spec)
    queries = [picture(3), None, picture(100), picture(27)]
    for top_k in (1, 4, 10, 50):
        found, exact = (each.search(queries, top_k) for each in (retriever, embedded))
        assert found[1] == [] and len(found[0]) == min(top_k, 10)
        assert_equal_but_for_ties(found, exact)
    assert found[3][0]["title"] == "Title 7" and found[3][0]["score"] == pytest.approx(1, abs=1e-5)
    assert {key: value for key, value in found[0][0].items() if key != "score"} == {
        "title": "Title 3",
        "text": "Article 3.",
        "source": "Q3",
        "scale": 1.0,
        "match_start": 0,
        "match_end": 0,
    }
    with pytest.raises(
        ValueError, match="were embedded by .*: give that image model, or load them under another name"
    ):
        MilvusImageRetriever(spec, towers[1])
    approximate = MilvusImageRetriever.from_corpus(
        gallery, towers[0], f"{spec}#hnsw", {"index_type": "HNSW", "params": {"M": 8, "efConstruction": 64}}
    )
    assert approximate.search([picture(3)], 1)[0][0]["title"] == "Title 3"
    assert len({each.fingerprint for each in (embedded, retriever, approximate)}) == 3
    text = KnowledgeCorpus.from_files(_text_only(tmp_path), tmp_path / "cache")
    with pytest.raises(ValueError, match="has no images"):
        MilvusImageRetriever.from_corpus(text, towers[0], spec)


def _text_only(tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    file.write_text('{"id": "1", "title": "A", "text": "B."}')
    return file


def test_a_killed_load_of_images_continues(
    tmp_path: Path, gallery: KnowledgeCorpus, towers: list[ImageEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus, "_IMAGES", 8)
    whole = MilvusImageRetriever.from_corpus(gallery, towers[0], f"milvus:{tmp_path / 'whole.db'}")
    embedded: list[int] = []
    embed = ImageEncoder.embed

    def counting(self: ImageEncoder, images: Any) -> np.ndarray:
        embedded.append(len(images))
        if len(embedded) == 3:
            raise KeyboardInterrupt
        return embed(self, images)

    monkeypatch.setattr(ImageEncoder, "embed", counting)
    spec = f"milvus:{tmp_path / 'broken.db'}"
    with pytest.raises(KeyboardInterrupt):
        MilvusImageRetriever.from_corpus(gallery, towers[0], spec)
    release(tmp_path / "broken.db")
    continued = MilvusImageRetriever.from_corpus(gallery, towers[0], spec)
    assert embedded == [8, 8, 8, 8, 6]
    rows = [
        sorted(each.client.query("more_images", filter="id >= 0", output_fields=["*"]), key=lambda row: row["id"])
        for each in (whole, continued)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 30
