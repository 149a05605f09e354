"""Small corpora and posts for the tests of knowledge by text."""

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus
from ner_runs import write_jsonl

LAKE_ARTICLES = [
    {"id": "a1", "title": "Acme", "text": "Acme makes phones. It makes anvils, too.\nThe company sits in Oslo."},
    {"id": "a2", "title": "Oslo", "text": "Oslo is a city. The harbour town lies by the sea."},
    {"id": "a3", "title": "Lake Constance", "text": "Ada met Charles on the lake. Lindau is an island in it."},
    {"id": "a4", "title": "Lindau (town)", "text": "A town in Bavaria , Germany . It is snowing there today ."},
    {"id": "a5", "title": "Copy", "text": "Oslo is a city. The harbour town lies by the sea.\nMarkers are text."},
    {"id": "a6", "title": "Oslo Bay Oslo", "text": "Water.\nMore water. Cold water."},
]


ARTICLES = [
    {
        "id": "a1",
        "title": "Acme",
        "text": "Acme is a company in Oslo. It was founded by Dr. K. Lund in 1990.\n\nIts anvils are heavy.",
        "aliases": ["Acme Corp"],
        "description": "company",
    },
    {"id": "a2", "title": "Oslo", "text": "Oslo is a city. Oslo lies by the sea.\r\nOslo has a harbour."},
    {"id": "a3", "title": "Nothing", "text": " \n "},
    {"id": "a4", "title": "Zürich", "text": "Zürich ist nicht Oslo! 東京 is far away."},
]


def random_rows(seed: int, articles: int = 60, vocabulary: int = 25) -> list[dict[str, str]]:
    """Articles of few words, so that scores tie often and sentences of one paragraph rank together."""
    rng = random.Random(seed)

    def sentence() -> str:
        words = [f"w{min(rng.randrange(vocabulary), rng.randrange(vocabulary))}" for _ in range(rng.randint(1, 7))]
        return " ".join(words).capitalize() + "."

    rows = []
    for number in range(articles):
        lines = [" ".join(sentence() for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        rows.append({"id": str(number), "title": f"T{number}", "text": "\n".join(lines)})
    return rows


def make(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> BM25Retriever:
    corpus = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "made.jsonl", rows), tmp_path / "cache", **options)
    return BM25Retriever.from_corpus(corpus)


def bm25_scores(keys: list[str], query: str) -> np.ndarray:
    """METHOD's formula of BM25 in float64, by brute force: a score per key."""
    docs = [re.findall(r"\w+", key.lower()) for key in keys]
    average = sum(map(len, docs)) / len(docs)
    scores = np.zeros(len(docs))
    for word in re.findall(r"\w+", query.lower()):
        df = sum(word in doc for doc in docs)
        idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
        for row, doc in enumerate(docs):
            tf = doc.count(word)
            scores[row] += idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * len(doc) / average))
    return scores


def posts(*texts: str, tags: list[list[int]] | None = None) -> Dataset:
    rows = [text.split(" ") for text in texts]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-LOC", "I-LOC"]))})
    return Dataset.from_dict({"tokens": rows, "ner_tags": tags or [[0] * len(row) for row in rows]}, features)
