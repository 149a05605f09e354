"""A post's words have the sub-tokens of running text, whatever the tokenizer: those that a word has after a space.

The tokenizers are of the algorithms and pre-tokenizers that real checkpoints have, trained here on a few sentences.
"""

from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from conftest import SENTENCES, tiny_tokenizer
from modeling_more.data.conll import read_conll
from modeling_more.modeling_more import MoReForTokenClassification
from modeling_more.pipelines import predict
from modeling_more.processing_more import MoReProcessor

SPECIAL = {"unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>"}
# special tokens in a post are read as text, which a plain call does not do: test_processing.py has them
POSTS = [sentence.split() for sentence in SENTENCES if "[SEP]" not in sentence] + [
    "The Lakers play in 2017 , don't they ?".split(),
    "# NBA @ Bob_1 3-1 (x) U.S. 10,000 … é 東京".split(),
    ["New York", "\u00a0", "\u200d", "'s", "n't", "...", "a"],
    ["2017"],
]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level(*before: Any, use_regex: bool = True, add_prefix_space: bool = False) -> Tokenizer:
    """A byte-level BPE, with other pre-tokenizers before it."""
    last = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, trainers.BpeTrainer(initial_alphabet=alphabet, **TRAINING))


def metaspace(model: Any, scheme: str) -> Tokenizer:
    """SentencePiece's algorithms: a space is a character `▁`, which is put before a text or not."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer if isinstance(model, models.Unigram) else trainers.BpeTrainer
    return trained(
        tokenizer, trainer(**TRAINING, **({"unk_token": "<unk>"} if trainer is not trainers.BpeTrainer else {}))
    )


def gemma() -> Tokenizer:
    """BPE over a text in which the normalizer has made every space a `▁`."""
    tokenizer = metaspace(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), "never")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def stripping() -> Tokenizer:
    """Byte-level, but a text's first space is lost: no word alone can be read as after a space."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Strip()
    return tokenizer


TRAINING: dict[str, Any] = {"vocab_size": 400, "special_tokens": list(SPECIAL.values()), "show_progress": False}


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def bpe() -> Any:
    return models.BPE(unk_token="<unk>")


GLUED = {  # as `is_split_into_words` reads them
    "byte-level": byte_level,
    "byte-level, digits apart": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "byte-level, GPT-2's pattern": lambda: byte_level(
        pre_tokenizers.Split(Regex(GPT2), behavior="isolated"), use_regex=False
    ),
    "byte-level, Llama 3's pattern": lambda: byte_level(
        pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"), use_regex=False
    ),
    "Metaspace never": lambda: metaspace(bpe(), "never"),
    "Unigram, Metaspace never": lambda: metaspace(models.Unigram(), "never"),
    "Gemma": gemma,
}
WHOLE = {  # they mark the beginning of a word themselves
    "byte-level with prefix space": lambda: byte_level(add_prefix_space=True),
    "Metaspace always": lambda: metaspace(bpe(), "always"),
    "Metaspace first": lambda: metaspace(bpe(), "first"),
    "Unigram": lambda: metaspace(models.Unigram(), "always"),
    "Unigram, Metaspace first": lambda: metaspace(models.Unigram(), "first"),
}
CLASSES = {"bert": True, "xlm-roberta": True, "deberta-v2": True, "roberta": False, "modernbert": False}


def tokenizer_of(name: str) -> Any:
    if name in CLASSES:
        return tiny_tokenizer(name)
    return PreTrainedTokenizerFast(tokenizer_object=(GLUED | WHOLE)[name](), **SPECIAL)


def read(processor: MoReProcessor, post: list[str]) -> tuple[list[int], list[int]]:
    """The sub-tokens of a post without its special tokens, and where its words begin among them."""
    (encoded,) = processor.encode([post])
    return encoded["input_ids"][0][1:-1], [position - 1 for position in encoded["word_positions"]]


def natural(tokenizer: Any, post: list[str], space: str) -> list[int]:
    return tokenizer(space + " ".join(post), add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("name", [*GLUED, *WHOLE, *CLASSES])
def test_words_read_as_in_running_text(name: str) -> None:
    tokenizer = tokenizer_of(name)
    processor = MoReProcessor(tokenizer)
    space = " " if name in GLUED or CLASSES.get(name) is False else ""
    for post in POSTS:
        # the others' normalizers drop invisible characters and part a word at its space: lists of words differ there
        shown = [word for word in post if space or (word.strip("\u00a0\u200d\ufe0f") and " " not in word)]
        ids, positions = read(processor, shown)
        assert ids == natural(tokenizer, shown, space)
        assert positions == sorted(set(positions)) and len(positions) == len(shown)


@pytest.mark.parametrize("name", [*WHOLE, *(name for name, whole in CLASSES.items() if whole)])
def test_others_stay_as_they_were(name: str) -> None:
    tokenizer = tokenizer_of(name)
    processor = MoReProcessor(tokenizer)
    for post in POSTS:
        encoded = tokenizer(post, is_split_into_words=True, add_special_tokens=False)
        words = [
            [i for i, w in zip(encoded["input_ids"], encoded.word_ids(), strict=True) if w == n]
            for n in range(len(post))
        ]
        assert read(processor, post)[0] == [i for word in words for i in (word or [tokenizer.unk_token_id])]


@pytest.mark.parametrize("name", ["byte-level", "Gemma", "roberta", "modernbert"])
def test_knowledge_spells_a_name_as_the_post_does(name: str) -> None:
    processor = MoReProcessor(tokenizer_of(name), max_length=200)
    entries = [
        {"title": "", "text": "Today Northfield United won ."},
        {"title": "Northfield United", "text": "A club ."},
    ]
    (encoded,) = processor.encode([["Northfield", "United"]], [entries])
    row = encoded["input_ids"][0]
    name_ids = read(processor, ["Northfield", "United"])[0]
    found = [at for at in range(len(row)) if row[at : at + len(name_ids)] == name_ids]
    assert len(found) == 1 + len(entries)


@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_training_prediction_and_reload_read_alike(kind: str, tiny_encoder: Any, tmp_path: Any) -> None:
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder(kind))
    processor.save_pretrained(tmp_path)
    again = MoReProcessor.from_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tiny_encoder(kind))
    for post in POSTS:
        ids = read(processor, post)[0]
        assert ids == read(again, post)[0] == natural(plain, post, " ")
        assert ids == processor.encode([post], truncate=True)[0]["input_ids"][0][1:-1]
    labels = dict(enumerate(["O", "B-PER", "I-PER", "E-PER", "S-PER"]))
    model = MoReForTokenClassification.from_encoder_pretrained(tiny_encoder(kind), id2label=labels)
    first, second = (predict(model, one, [{"tokens": POSTS[2]}]) for one in (processor, again))
    assert first == second


def test_a_tokenizer_that_cannot_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="^TokenizersBackend can't be used: .*running text$"):
        MoReProcessor(PreTrainedTokenizerFast(tokenizer_object=stripping(), **SPECIAL))


def test_twitter17_reads_as_running_text(shared_data: Any) -> None:
    """All words of the real test posts, with a byte-level tokenizer trained on the training posts."""
    posts = [row["tokens"] for row in read_conll(shared_data / "twitter2017" / "test.txt")]
    texts = [" ".join(row["tokens"]) for row in read_conll(shared_data / "twitter2017" / "train.txt")]
    tokenizer = tiny_tokenizer("roberta").train_new_from_iterator(texts, 2000, show_progress=False)
    processor = MoReProcessor(tokenizer)
    encoded = processor.encode(posts)
    assert sum(len(post["word_positions"]) for post in encoded) == 11330
    for post, row in zip(posts, encoded, strict=True):
        assert row["input_ids"][0][1:-1] == natural(tokenizer, post, " ")


def test_a_tokenizer_that_wants_more_than_words_is_named(tmp_path: Any) -> None:
    from transformers import LayoutXLMTokenizer

    letters = [(piece, -1.0) for piece in ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]]
    with pytest.raises(ValueError, match="^LayoutXLMTokenizer can't be used"):
        MoReProcessor(LayoutXLMTokenizer(vocab=letters))
