"""Turn words and texts into sub-tokens, in linear time: of very long ones no more is read than a row can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

#: of a word or text far longer than a row only a beginning is tokenised: so many characters for each sub-token that is
#: wanted, and more where these give too few
CHARACTERS = 16
BUILT_WITH = ("cls_token", "sep_token", "pad_token", "unk_token")  # the special tokens of a row
UNSURE = 64  # sub-tokens at the end of a beginning that may depend on what follows
# words on which tokenizers differ: capitals, digits, punctuation at either end and inside, letters beyond ASCII
_PROBE = "the The Lakers play in 2017 , don't they ? @NBA #3 a1 U.S. (x) 3-1 Zürich Москва".split()


class ReadText(NamedTuple):
    """The sub-tokens of a text, or the first of them, and how much is left out: sub-tokens, or words not tokenised."""

    pieces: list[int]
    behind: int


class SubTokens:
    """A reader of words and texts by a fast tokenizer; nothing in them is a special token.

    Raises:
        ValueError: for a tokenizer that can't be used.
    """

    def __init__(self, tokenizer: Any):
        _check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.space = _word_space(tokenizer)
        self._largest = 0, 0  # number of tokens, and their largest id

    @property
    def largest_id(self) -> int:
        """Return the largest id that words and texts get; of the special tokens a row holds those it is built with."""
        if len(self.tokenizer) != self._largest[0]:  # tokens may be added; listing all takes a while
            built_with = (f"{name}_id" for name in BUILT_WITH)
            never = set(self.tokenizer.all_special_ids) - {getattr(self.tokenizer, name) for name in built_with}
            self._largest = len(self.tokenizer), max(set(self.tokenizer.get_vocab().values()) - never)
        return self._largest[1]

    def of_words(self, words: Sequence[Sequence[str]], most: int) -> list[list[list[int]]]:
        """Return the sub-tokens of every word of every post; a word without any is one unknown token.

        They are those that the word has after a space in running text, for the first word too: a name is spelt alike
        wherever it stands in a post, and as in the knowledge.

        Args:
            most: sub-tokens of a word that are wanted.
        """
        posts = {id(post): post for post in words}  # all pairs of a post share its words
        reach = CHARACTERS * most
        encoded = _encode_words(
            self.tokenizer, [[word[:reach] for word in post] for post in posts.values()], self.space
        )
        found = {}
        for index, (key, post) in enumerate(posts.items()):
            pieces: list[list[int]] = [[] for _ in post]
            for id_, place in zip(encoded["input_ids"][index], encoded.word_ids(index), strict=True):
                if place is not None:
                    pieces[place] += self._as_text.get(id_, (id_,))
            for place, word in enumerate(post):
                if len(word) > reach:
                    pieces[place] = self._beginning(word, most, self._of_word).pieces
            found[key] = [one or [self.tokenizer.unk_token_id] for one in pieces]
        return [found[id(post)] for post in words]

    def of_texts(self, texts: Sequence[str], most: int) -> list[ReadText]:
        """Return the sub-tokens of texts, `most` of them of a text that has far more."""
        short = list({text: None for text in texts if len(text) <= CHARACTERS * most})  # each once
        found = dict(zip(short, self._of_whole_texts(short), strict=True))
        return [
            ReadText(found[text], 0) if text in found else self._beginning(text, most, self._of_text) for text in texts
        ]

    @cached_property
    def _as_text(self) -> dict[int, list[int]]:
        """Return the characters of each special token, as ordinary sub-tokens.

        SentencePiece vocabularies hold `</s>` as a piece like any other, so a post that contains it would get the
        real token in spite of `split_special_tokens`.
        """
        unknown = self.tokenizer.unk_token_id
        special = {id_: self.tokenizer.convert_ids_to_tokens(id_) for id_ in self.tokenizer.all_special_ids}
        return {
            id_: self.tokenizer.convert_tokens_to_ids(list(token)) for id_, token in special.items() if id_ != unknown
        }

    def _of_word(self, word: str) -> list[int]:
        return self._plain(_encode_words(self.tokenizer, [[word]], self.space)["input_ids"][0])

    def _of_text(self, text: str) -> list[int]:
        return self._of_whole_texts([text])[0]

    def _of_whole_texts(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        return [self._plain(ids) for ids in encoded["input_ids"]]

    def _plain(self, ids: Sequence[int]) -> list[int]:
        return [piece for id_ in ids for piece in self._as_text.get(id_, (id_,))]

    def _beginning(self, text: str, most: int, tokenize: Callable[[str], list[int]]) -> ReadText:
        reach = CHARACTERS * most
        while reach < len(text):
            # up to a blank, where words end for every tokenizer, unless there is none for long
            places = range(reach, min(2 * reach, len(text)))
            end = next((place for place in places if text[place].isspace()), reach)
            pieces = tokenize(text[:end])
            if len(pieces) >= most + UNSURE:
                return ReadText(pieces[:most], len(pieces) - most + len(text[end:].split()))
            reach *= 2
        return ReadText(tokenize(text), 0)


def _encode_words(tokenizer: Any, words: Sequence[Sequence[str]], space: str) -> Any:
    """Tokenise posts given as words, with `space` before each word; nothing in them is a special token."""
    return tokenizer(
        [[space + word for word in post] for post in words],
        is_split_into_words=True,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )


def _word_space(tokenizer: Any) -> str:
    """Return what must stand before a word so that it gets the sub-tokens that it has in running text.

    Nothing for WordPiece, for SentencePiece and wherever else the tokenizer marks the beginning of a word itself; a
    space for byte-level and other tokenizers that know a word by the space before it, and glue words without it. Which
    of the two holds is decided by the tokenizer's backend, not by its class or options, so it is tried out.

    Raises:
        ValueError: for a tokenizer that reads words in neither way as in running text.
    """
    for space in ("", " "):
        try:
            text = tokenizer(
                space + " ".join(_PROBE), add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            words = _encode_words(tokenizer, [_PROBE], space)
        except (TypeError, ValueError) as error:  # tokenizers of layouts want boxes
            reason = f"it can't read words without more ({error})"
            break
        if words["input_ids"][0] == text["input_ids"]:
            return space
    else:
        reason = "it gives words other sub-tokens one by one than in running text"
    raise ValueError(f"{type(tokenizer).__name__} can't be used: {reason}")


def _check_tokenizer(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: words can't be aligned with sub-tokens")
    lacking = [name for name in BUILT_WITH if getattr(tokenizer, f"{name}_id") is None]
    if lacking:
        raise ValueError(f"{type(tokenizer).__name__} has no {', '.join(lacking)}, which MoRe's input is built with")
