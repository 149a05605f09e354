"""Words and knowledge become inputs: nothing of the post is lost for knowledge, and text never becomes a marker."""

import pytest
import torch

from conftest import ENCODER_KINDS
from modeling_more.processing_more import MoReProcessor
from modeling_more.windows import cut_in_windows

ENTRIES = [
    {"title": "Lindau", "text": "Lindau is a town in Bavaria .", "score": 2.0},
    {"title": "", "text": "It lies on Lake Constance .", "score": 1.0},
]


@pytest.fixture(params=ENCODER_KINDS)
def processor(request, tiny_encoder):
    return MoReProcessor.from_encoder_pretrained(tiny_encoder(request.param), max_length=128)


@pytest.fixture
def bert(tiny_encoder):
    return MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), max_length=128)


def test_layout(processor):
    """[class] words [separator] knowledge [separator], each word's position at its first sub-token."""
    tokenizer = processor.tokenizer
    words = ["Ada", "in", "Lindau"]
    (post,) = processor.encode([words], [ENTRIES])
    (alone,) = processor.encode([words])
    ids = post["input_ids"][0]
    pieces = processor._tokenize_words([words])[0]
    flat = [piece for word in pieces for piece in word]
    knowledge = [
        piece
        for text in ("[ Lindau ] Lindau is a town in Bavaria .", "It lies on Lake Constance .")
        for piece in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    separator = tokenizer.sep_token_id
    assert ids == [tokenizer.cls_token_id, *flat, separator, *knowledge, separator]
    assert alone["input_ids"][0] == [tokenizer.cls_token_id, *flat, separator]
    assert post["word_positions"] == alone["word_positions"]
    assert [ids[p] for p in post["word_positions"]] == [word[0] for word in pieces]
    assert post["cut_words"] == post["cut_knowledge"] == 0


def test_special_tokens_in_text_stay_text(processor):
    tokenizer = processor.tokenizer
    hostile = ["[SEP]", "</s>", "<E>", tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token, "<s>", "[PAD]"]
    entry = {"title": tokenizer.sep_token, "text": " ".join(hostile), "score": 1.0}
    (post,) = processor.encode([hostile], [[entry]])
    ids = post["input_ids"][0]
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id}
    assert [index for index, id_ in enumerate(ids) if id_ in special] == [
        0,
        ids.index(tokenizer.sep_token_id),
        len(ids) - 1,
    ]
    assert len(post["word_positions"]) == len(hostile)


def test_invisible_words_keep_their_place(processor):
    """Variation selectors and joiners are words of the data; a tokenizer may give no sub-token for them."""
    words = ["Ada", "\ufe0f", "\u200d", "\u200b", "\u00ad", "\u00a0", "Oslo"]
    (post,) = processor.encode([words])
    assert len(set(post["word_positions"])) == len(words) and post["cut_words"] == 0
    (plain,) = processor.encode([["Ada", "Oslo"]])
    first, last = post["word_positions"][0], post["word_positions"][-1]
    assert post["input_ids"][0][first] == plain["input_ids"][0][plain["word_positions"][0]]
    assert post["input_ids"][0][last] == plain["input_ids"][0][plain["word_positions"][1]]


def test_a_word_without_subtokens_is_one_unknown_token(bert):
    pieces = bert._tokenize_words([["Ada", "\ufe0f"]])[0]
    assert pieces[1] == [bert.tokenizer.unk_token_id]


def test_a_word_reads_alike_at_every_place(processor):
    pieces = processor._tokenize_words([["Lindau", "Lindau", "x", "Lindau"]])[0]
    assert pieces[0] == pieces[1] == pieces[3]


def test_knowledge_is_cut_at_its_end_and_the_post_never(bert):
    words = ["Ada", "in", "Lindau"]
    (whole,) = bert.encode([words], [ENTRIES])
    full = whole["input_ids"][0]
    for length in range(8, len(full) + 1):
        bert.max_length = length
        (post,) = bert.encode([words], [ENTRIES])
        ids = post["input_ids"][0]
        assert len(ids) <= length and len(post["word_positions"]) == 3 and post["cut_words"] == 0
        if len(post["input_ids"]) == 1 and len(ids) > whole["word_positions"][-1] + 4:
            assert ids[:-1] == full[: len(ids) - 1]
            assert post["cut_knowledge"] == len(full) - len(ids)


def test_skip_leaves_out_whole_entries(bert):
    words = ["Ada"]
    lengths = [len(entry.pieces) for entry in bert._tokenize_knowledge([ENTRIES])[0]]
    (alone,) = bert.encode([words])
    bert.overflow = "skip"
    bert.max_length = len(alone["input_ids"][0]) + 1 + lengths[1]
    assert lengths[0] > lengths[1]
    (post,) = bert.encode([words], [ENTRIES])  # the first does not fit, the second does
    assert len(post["input_ids"][0]) == bert.max_length and post["cut_knowledge"] == lengths[0]


def test_top_k(bert):
    bert.top_k = 1
    (one,) = bert.encode([["Ada"]], [ENTRIES])
    (same,) = bert.encode([["Ada"]], [ENTRIES[:1]])
    assert one == same


def test_knowledge_words_are_centred_on_the_match(bert):
    text = "a b c d e f g h i j"
    entry = {
        "title": "T",
        "text": text,
        "score": 1.0,
        "match_start": text.index("h"),
        "match_end": text.index("h") + 1,
    }
    bert.knowledge_words = 3
    assert bert.entry_text(entry) == "[ T ] g h i"
    assert bert.entry_text({**entry, "match_start": 0, "match_end": 1}) == "[ T ] a b c"
    assert bert.entry_text({**entry, "match_start": len(text) - 1, "match_end": len(text)}) == "[ T ] h i j"
    assert bert.entry_text({"title": "T", "text": text, "score": 1.0}) == "[ T ] a b c"  # no match known
    assert bert.entry_text({**entry, "match_start": text.index("c"), "match_end": text.index("h")}) == "[ T ] c d e"
    bert.knowledge_words = 20
    assert bert.entry_text(entry) == f"[ T ] {text}"


def test_windows_cover_every_word_once():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        room = int(torch.randint(5, 30, (1,), generator=generator))
        lengths = torch.randint(
            1, min(6, room) + 1, (int(torch.randint(1, 80, (1,), generator=generator)),), generator=generator
        )
        windows = cut_in_windows(lengths.tolist(), room)
        kept = [word for _, _, kept_from, kept_to in windows for word in range(kept_from, kept_to)]
        assert kept == list(range(len(lengths)))
        for first, last, kept_from, kept_to in windows:
            assert first <= kept_from < kept_to <= last and sum(lengths[first:last]) <= room
        for before, after in zip(windows, windows[1:], strict=False):
            overlap = sum(lengths[after[0] : before[1]])
            assert overlap <= room // 4


def test_long_posts_are_windowed_or_cut(bert):
    bert.max_length = 20
    words = [f"word{i}" for i in range(30)]
    (post,) = bert.encode([words], [ENTRIES])
    assert len(post["input_ids"]) > 1 and len(post["word_positions"]) == 30 and post["cut_words"] == 0
    assert all(len(row) <= 20 for row in post["input_ids"])
    assert post["cut_knowledge"] > 0  # no row has room for it, and that is counted
    (cut,) = bert.encode([words], [ENTRIES], truncate=True)
    assert len(cut["input_ids"]) == 1 and cut["cut_words"] == 30 - len(cut["word_positions"]) > 0
    assert cut["input_ids"][0] == post["input_ids"][0]


def test_a_word_longer_than_a_row_is_kept(bert):
    bert.max_length = 8
    (post,) = bert.encode([["Ada", "x" * 60, "Oslo"]])
    assert len(post["word_positions"]) == 3 and all(len(row) <= 8 for row in post["input_ids"])


def test_call_takes_text_words_one_or_many(bert):
    one = bert(words=["Ada", "in", "Oslo"])
    text = bert(text="Ada in Oslo")
    many = bert(words=[["Ada", "in", "Oslo"], ["Oslo"]], knowledge=[ENTRIES, []])
    assert all(torch.equal(one[key], text[key]) for key in one)
    assert many["word_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert many["attention_mask"].sum(1).tolist()[1] == bert(words=["Oslo"])["input_ids"].shape[1]
    for bad, message in (
        ({}, "either words or text"),
        ({"words": [[]]}, "post 0 has no words"),
        ({"words": [["a"], ["b"]], "knowledge": [ENTRIES]}, "2 posts, but knowledge for 1"),
        ({"words": ["a"], "return_tensors": "np"}, "pt"),
    ):
        with pytest.raises(ValueError, match=message):
            bert(**bad)


def test_a_string_is_no_list_of_words(bert):
    for words in ("Ada x", [["Ada"], "Bob x"], [["Ada", 1]]):
        with pytest.raises(ValueError, match="must be a list of words"):
            bert(words=words)


def test_options_are_saved_and_checked(bert, tmp_path, tiny_encoder):
    options = {"top_k": 3, "knowledge_words": 30, "max_length": 99, "overflow": "skip", "splitter": "whitespace"}
    processor = MoReProcessor.from_encoder_pretrained(
        tiny_encoder("bert"), knowledge_column="knowledge_image", **options
    )
    processor.save_pretrained(tmp_path)
    again = MoReProcessor.from_pretrained(tmp_path)
    assert {key: getattr(again, key) for key in options} == options and again.knowledge_column == "knowledge_image"
    for bad in ({"overflow": "drop"}, {"splitter": "x"}, {"max_length": 2}):
        with pytest.raises(ValueError):
            MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), **bad)


def test_max_length_follows_the_tokenizer(tiny_encoder):
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), max_length=4096)
    assert processor.max_length == processor.tokenizer.model_max_length == 512
