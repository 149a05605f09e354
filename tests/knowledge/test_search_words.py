"""The words that BM25 and the leakage guard compare: every script, every spelling of the same letters."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from knowledge_rows import ARTICLES, make, posts
from modeling_more.knowledge import (
    BM25Retriever,
    EntityRetriever,
    KnowledgeCorpus,
    attach_text_knowledge,
    entity_query,
    load_knowledge,
)
from modeling_more.knowledge.attach import AttachReport
from modeling_more.knowledge.leakage import Post
from modeling_more.knowledge.search_words import (
    _USUAL,
    _any_normal_form,
    normal_form,
    split_letters,
    split_query,
    split_text,
)
from modeling_more.words import split_words
from ner_runs import write_jsonl


def finds(query: str, text: str) -> bool:
    return not set(split_query(query)).isdisjoint(split_text(text))


# what the article says, what the post says: the same word written otherwise
SPELLINGS = {
    "decomposed": ("Caf\u00e9", "cafe\u0301"),
    "decomposed article": ("Cafe\u0301", "caf\u00e9"),
    "full width": ("ＡＣＭＥ９", "acme9"),
    "ligature": ("ﬁle oﬃce", "file"),
    "dotted capital I": ("\u0130zmir", "i\u0307zmir"),
    "Turkish capitals": ("\u0130ZM\u0130R", "izmir"),
    "sharp s": ("Straße", "STRASSE"),
    "capital sharp s": ("STRAẞE", "straße"),
    "final sigma": ("Οδυσσευς", "ΟΔΥΣΣΕΥΣ"),
    "tatweel": ("محـــمد", "محمد"),
    "harakat": ("كِتَابٌ", "كتاب"),
    "Arabic presentation forms": ("ﻛﺘﺎﺏ", "كتاب"),
    "Hebrew points": ("שָׁלוֹם", "שלום"),
    "Hebrew presentation forms": ("שׁלום", "שלום"),
    "joiner": ("क्\u200dष", "क्ष"),
    "non-joiner": ("می\u200cخواهم", "میخواهم"),
    "soft hyphen": ("Donau\u00addampf", "Donaudampf"),
    "direction marks": ("\u200eAcme\u200f", "acme"),
    "trade mark": ("Acme™", "acme"),
    "half-width kana": ("ｶﾞｽ", "ガス"),
    "decomposed kana": ("か\u3099く", "がく"),
    "decomposed Hangul": ("\u1112\u1161\u11ab\u1100\u116e\u11a8", "한국"),
    "compatibility ideograph": ("\uf96a引", "索引"),
    "Thai zero-width space": ("กรุง\u200bเทพ", "กรุงเทพ"),
    "blanks between ideographs": ("北京大学", "北 京 大 学"),
    "styled letters": ("𝐀𝐜𝐦𝐞", "acme"),
    "half": ("4½", "4 1/2"),
    "Cyrillic stress": ("Толсто\u0301й", "ТОЛСТОЙ"),
}


@pytest.mark.parametrize(("article", "post"), SPELLINGS.values(), ids=SPELLINGS)
def test_a_word_is_found_however_it_is_written(article: str, post: str) -> None:
    assert finds(post, f"{article}.") and finds(article, f"{post}.")


# words of one first letter that differ in a combining mark: cut at the mark they would find each other
MARKED = {
    "Devanagari": ["मान", "मीना", "मुनि"],
    "Bengali": ["কলা", "কুল", "কাল"],
    "Tamil": ["கல்", "கால்", "கூல்"],
    "Sinhala": ["මල", "මාල", "මූල"],
    "Sorani and Urdu": ["کاله", "کلۆ", "کوله"],
    "Latin": ["m\u0331n", "m\u0324n", "mn"],
    "Chakma": ["𑄇𑄧𑄣", "𑄇𑄨𑄣", "𑄇𑄪𑄣"],
    "Tibetan": ["བོད", "བུད", "བེད"],
}


@pytest.mark.parametrize("words", MARKED.values(), ids=MARKED)
def test_combining_marks_belong_to_their_word(words: list[str]) -> None:
    for word in words:
        assert [other for other in words if finds(word, f"{other}!")] == [word]


# article, what finds it, what doesn't
UNSPACED = {
    "Chinese": ("北京是中国的首都。", "北京在哪里", "东京"),
    "Japanese": ("東京タワーは高い。", "昨日、タワーに行った", "大阪"),
    "Japanese with Latin": ("iPhone15を買う。", "iphone15", "iPhone"),
    "Japanese after Latin": ("新しいiPhone15が発売。", "発売日", "売発"),
    "Thai": ("กรุงเทพเป็นเมืองหลวง", "ไปเมืองหลวง", "น้ำ"),
    "Lao": ("ວຽງຈັນແມ່ນນະຄອນຫຼວງ", "ນະຄອນ", "ປາ"),
    "Khmer": ("ភ្នំពេញជារាជធានី", "រាជធានី", "ឆ្មា"),
    "Myanmar": ("ရန်ကုန်မြို့ကြီး", "မြို့ကြီး", "ငါး"),
    "rare ideographs": ("\U00020bb7野家\U00030000", "\U00020bb7野", "野\U00020bb7"),
    "one character": ("水是生命之源。", "水", "火"),
    "one Thai character with marks": ("น้ำ", "น้ำ", "ม้า"),
    "one character as the text": ("水", "水", "水库"),
    "names": ("卡尔·马克思", "马克思", "尔马"),
    "iteration mark": ("佐々木さん", "佐々木", "佐木"),
}


@pytest.mark.parametrize(("article", "found_by", "not_by"), UNSPACED.values(), ids=UNSPACED)
def test_scripts_without_blanks_are_searched(article: str, found_by: str, not_by: str) -> None:
    assert finds(found_by, article) and not finds(not_by, article)
    for text in (article, found_by, not_by):  # a post is searched for by its words
        assert split_query(" ".join(word.word for word in split_words(text))) == split_query(text)


def test_pieces_overlap() -> None:
    assert (
        split_query("北京在哪里") == split_query("北 京\u3000在\u200b哪\u00a0里") == ["北京", "京在", "在哪", "哪里"]
    )
    assert split_text("iPhone15を買う。水") == ["iphone15", "を買", "買う", "を", "買", "う", "水"]
    assert split_query("ที่นี่") == ["ที่นี่"] and split_text("ที่นี่") == ["ที่นี่", "ที่", "นี่"]


def test_words_with_blanks_stay_whole() -> None:
    assert split_query("한국은 대한민국 #Oslo rock'n'roll snake_case 3,5") == (
        ["한국은", "대한민국", "oslo", "rock", "n", "roll", "snake_case", "3", "5"]
    )
    assert split_query("\U0001f1f3\U0001f1f4 \u2764\ufe0f \U0001f468\u200d\U0001f469 \u0301 \u200d") == []


LETTERS = st.text(
    st.sampled_from("aAéÉe\u0301İi\u0307ıßẞΣςͅЖи\u0301가\u1112\u1161か\u3099ｶﾞ京น้ำक्\u200d½™５_ \u200b.'مـَשּׁ\ufe0f")
    | st.characters()
)


@given(LETTERS)
def test_words_are_in_their_normal_form(text: str) -> None:
    for split in (split_letters, split_query):
        words = split(text)
        assert [normal_form(word) for word in words] == words
    assert split_letters(" ".join(split_letters(text))) == split_letters(text)
    assert set(split_query(text)) <= set(split_text(text))


@given(st.text(st.sampled_from(_USUAL) | st.characters(max_codepoint=0x7F)))
def test_the_short_way_gives_the_same_words(text: str) -> None:
    expected = re.findall(r"\w+", text.lower())
    assert split_text(text) == expected == re.findall(r"\w+", _any_normal_form(text))


def test_the_shared_cases_are_found(shared_data: Path, tmp_path: Path) -> None:
    cases = shared_data.parent / "cases" / "scripts"
    if not cases.is_dir():
        pytest.skip(f"no {cases}")
    for name, query, title in (("khi2", "मीना", "मीना"), ("kzh2", "北京在哪里", "北京")):
        corpus = load_knowledge([cases / f"{name}.jsonl"], tmp_path)
        found = BM25Retriever.from_corpus(corpus).search([query])[0]
        assert [entry["title"] for entry in found] == [title]


def test_the_best_of_several_articles_comes_first(tmp_path: Path) -> None:
    texts = [
        "上海是一座城市。",
        "北京是中国的首都，也是一座城市。",
        "北海是一个湖。",
        "मान एक शब्द है।",
        "मीना एक नाम है।",
    ]
    retriever = make(tmp_path, [{"id": str(n), "title": str(n), "text": text} for n, text in enumerate(texts)])
    queries = ["中国的北京", "海", "मीना", "मीन"]
    assert [[entry["title"] for entry in found] for found in retriever.search(queries)] == [
        ["1"], ["2", "0"], ["4"], []
    ]  # fmt: skip


# ---------------------------------------------------------------- titles


@pytest.mark.parametrize(
    ("title", "entities"), [("水", ["水", "火"]), ("北京", ["北 京"]), ("मीना", ["मीना"]), ("Café", ["CAFE\u0301"])]
)
def test_titles_are_searched_alike(tmp_path: Path, title: str, entities: list[str]) -> None:
    rows = [{"id": "1", "title": "मान", "text": "x."}, {"id": "2", "title": title, "text": "y."}]
    corpus = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "cache")
    found = EntityRetriever.from_corpus(corpus).search([entity_query("zzz", entities)])[0]
    assert [entry["title"] for entry in found] == [title]


# ---------------------------------------------------------------- the leakage guard


def leaks(post: str, text: str, title: str = "T") -> bool:
    return Post(post).leaks_into({"title": title, "text": text})


LONG = "今天我们去北京天安门广场看升旗仪式"  # 17 characters


def test_the_guard_knows_the_same_words() -> None:
    assert leaks("Café in Oslo", "CAFE\u0301 IN OSLO!") and leaks("ﬁne Straße", "fine STRASSE.")
    assert leaks("e\u0301 2 3 4 5 6 7 8", "0 \u00c9 2 3 4 5 6 7 8 9") and not leaks("e\u0301 2 3", "0 \u00c9 2 3 4")
    assert leaks("मीना एक", "मीना, एक।") and not leaks("मान", "मीना")
    assert leaks(LONG, f"昨天他说：{LONG}。很好") and leaks(" ".join(LONG), f"昨天他说：{LONG}。很好")
    assert leaks("北 京 在 哪 里 ？", "北京在哪里")
    assert not leaks(LONG[:12], f"昨天他说：{LONG}。很好")  # 12 characters are some six words: a name may be as long
    assert not leaks(" ".join(LONG[:12]), f"昨天他说：{LONG}。很好")
    assert not leaks(LONG, LONG[:-1]) and not leaks(LONG, LONG[::-1])
    assert leaks("one two three four five six seven 水", "Zero one two three four five six seven 水库 nine")


# ---------------------------------------------------------------- nothing found


def nothing(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "find nothing" in r.getMessage()
    ]


def test_posts_that_find_nothing_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    retriever = make(tmp_path, ARTICLES)
    few = DatasetDict({"train": posts(*["Oslo"] * 10, "nothing"), "test": posts(*["Oslo"] * 9, "by sea")})
    attach_text_knowledge(few, retriever, cache_dir=tmp_path / "cache")
    assert nothing(caplog) == []
    some = DatasetDict({"train": posts(*["Oslo"] * 40), "test": posts(*["Oslo"] * 9, "…")})
    for _ in range(2):  # from the cache too
        caplog.clear()
        _, report = attach_text_knowledge(some, retriever, cache_dir=tmp_path / "cache", shard_size=4)
        assert isinstance(report, AttachReport) and report.without_knowledge == 1
        (message,) = nothing(caplog)
        assert message.startswith("1 of 10 test posts find nothing in the knowledge")
    caplog.clear()
    attach_text_knowledge(posts("nowhere"), retriever, cache_dir=tmp_path / "cache")
    assert nothing(caplog)[0].startswith("1 of 1 posts find nothing")
    caplog.clear()
    attach_text_knowledge(posts("nowhere").select([]), retriever, cache_dir=tmp_path / "cache")
    assert nothing(caplog) == []


# ---------------------------------------------------------------- indices of before


def age(folder: Path) -> None:
    """Make an index one that an earlier version wrote: other words, and the version of then."""
    file = folder / "index.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({**meta, "version": 1}))
    vocabulary = folder / "vocab.index.json"
    vocabulary.write_text(json.dumps({f"old{word}": row for word, row in json.loads(vocabulary.read_text()).items()}))


def test_an_old_index_in_the_cache_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = make(tmp_path, ARTICLES).corpus
    expected = EntityRetriever.from_corpus(corpus).search([entity_query("harbour", ["Oslo"])])
    for name in ("bm25", "bm25_titles"):
        age(corpus.folder / name)
    caplog.set_level(logging.INFO)
    again = EntityRetriever.from_corpus(corpus)
    assert again.search([entity_query("harbour", ["Oslo"])]) == expected
    assert caplog.text.count("is of version 1") == 2


def test_an_old_index_saved_with_its_corpus_is_built_again_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = make(tmp_path, ARTICLES).corpus.save_pretrained(tmp_path / "saved")
    age(saved / "bm25")
    before = {file: file.read_bytes() for file in saved.rglob("*") if file.is_file()}
    shutil.rmtree(tmp_path / "cache")
    corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "cache")
    caplog.set_level(logging.INFO)
    retriever = BM25Retriever.from_corpus(corpus)
    assert retriever.search(["harbour"])[0][0]["title"] == "Oslo"
    assert retriever.index_dir.parent == corpus.folder and "is of version 1" in caplog.text
    assert {file: file.read_bytes() for file in saved.rglob("*") if file.is_file()} == before
    again = corpus.save_pretrained(tmp_path / "again")
    assert BM25Retriever(KnowledgeCorpus.from_pretrained(again, tmp_path / "cache"), again / "bm25").search(["sea"])[0]


def test_an_old_index_named_by_the_caller_is_refused(tmp_path: Path) -> None:
    retriever = make(tmp_path, ARTICLES)
    retriever.save(tmp_path / "mine")
    age(tmp_path / "mine")
    for opened in (BM25Retriever, BM25Retriever.from_corpus):
        with pytest.raises(ValueError, match=r"mine.index\.json is of version 1, not 2: build it again"):
            opened(retriever.corpus, tmp_path / "mine")


# ---------------------------------------------------------------- faiss


NO_FAISS = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from datasets import Dataset, Features, List, Value
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus, vectors
BM25Retriever.from_corpus(KnowledgeCorpus(sys.argv[1])).search(["Oslo"])
assert "faiss" not in sys.modules
features = Features({"embedding": List(Value("float32"), length=2)})
table = Dataset.from_dict({"embedding": [[1.0, 0.0]]}, features)
vectors.build_index(table, vectors.Path(sys.argv[2]), "Flat", "meta.json", {})
assert "faiss" in sys.modules
"""


def test_no_faiss_where_no_vectors_are_searched(tmp_path: Path) -> None:
    corpus = make(tmp_path, ARTICLES).corpus
    command = [sys.executable, "-c", NO_FAISS, str(corpus.folder), str(tmp_path / "index")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "faiss" not in done.stderr and "ModuleNotFoundError" not in done.stderr
