"""Turn a post's words and its knowledge into model inputs, by a processor saved with the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from .configuration_more import MoReConfig
from .files import manifest_kept
from .loading import PLACE, config_of, downloaded, load_processor
from .open_retrieval import open_retrieval
from .positions import check_ids, position_limit, sketched
from .provenance import hub_options, is_own, remember
from .pushing import ManifestKept
from .remote_code import bearer, register_processor
from .retrieval_settings import ENCODER_FILES, ENCODERS, READ_NOTHING, RetrievalSettings
from .sub_tokens import ReadText, SubTokens
from .windows import cut_in_windows, window_around
from .words import SPLITTERS, split_words, words_around

logger = logging.getLogger(__name__)

Entry = Mapping[str, Any]
Span = Sequence[int]  # start, end of words, end exclusive
#: around the subject (head) and the object (tail) of a relation
MARKERS = ("<E>", "</E>", "<O>", "</O>")
#: what a processor, and the configuration beside it, consist of
PROCESSOR_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
#: the same with the encoders of its retrieval that were saved with it
SAVED_FILES = (*PROCESSOR_FILES, *(f"{folder}/{one}" for folder in ENCODERS.values() for one in ENCODER_FILES))
_NEEDED = ("processor_config.json", "tokenizer.json")


class MoReProcessor(ManifestKept, ProcessorMixin):
    """A processor that writes `[words ; separator ; knowledge]` as sub-tokens and keeps where each word begins.

    Every word has the sub-tokens that it has after a space in running text, the first one too.

    Args:
        tokenizer: a fast tokenizer with class and separator tokens.
        knowledge_column: the column that is read, `"knowledge_text"`, `"knowledge_image"` or None (no retrieval).
        top_k: number of entries that are read, in their order.
        min_score: entries of a lower score are not read, but those are whose score is not known (0); default: all are.
        knowledge_words: number of words read of each entry, around its matched sentence; default: all.
        max_length: sub-tokens of a row, special tokens included; lowered where tokenizer or encoder allow fewer.
        overflow: `"cut"` cuts knowledge at its end, `"skip"` leaves out entries that do not fit whole.
        splitter: how raw text becomes words: `"twitter17"`, `"twitter15"` or `"whitespace"` (`words.py`).
        markers: whether to add the tokens `<E>`, `</E>`, `<O>`, `</O>` around both entities of a relation.
        retrieval: how knowledge was retrieved for the training, a `RetrievalSettings` or its dictionary; default:
            unknown, as where posts came with their knowledge.

    Raises:
        ValueError: for a tokenizer or an option that can't be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        knowledge_column: str | None = "knowledge_text",
        top_k: int = 10,
        knowledge_words: int | None = None,
        max_length: int = 512,
        overflow: str = "cut",
        splitter: str = "twitter17",
        markers: bool = False,
        retrieval: RetrievalSettings | Mapping[str, Any] | None = None,
        min_score: float | None = None,
    ):
        super().__init__(tokenizer)
        if overflow not in ("cut", "skip"):
            raise ValueError(f'overflow is {overflow!r}, it must be "cut" or "skip"')
        if splitter not in SPLITTERS:
            raise ValueError(f"splitter is {splitter!r}, it must be one of {', '.join(SPLITTERS)}")
        for name, value, optional in (
            ("top_k", top_k, False), ("max_length", max_length, False), ("knowledge_words", knowledge_words, True)
        ):  # fmt: skip
            if not (optional and value is None) and (type(value) is not int or value < 1):
                raise ValueError(f"{name} is {value!r:.80}, it must be a whole number from 1 on")
        if min_score is not None and (type(min_score) not in (int, float) or not abs(min_score) <= READ_NOTHING):
            raise ValueError(f"min_score is {min_score!r:.80}, it must be a number, or None")
        if knowledge_column is not None and not isinstance(knowledge_column, str):
            raise ValueError(f"knowledge_column is {knowledge_column!r:.80}, it must be the name of a column, or None")
        self._sub_tokens = SubTokens(tokenizer)
        self.knowledge_column = knowledge_column
        self.top_k = top_k
        self.min_score = min_score
        self.knowledge_words = knowledge_words
        self.max_length = max_length
        # a tokenizer without a limit says 10^30
        self.limit_length(tokenizer.model_max_length, "the tokenizer")
        self.overflow = overflow
        self.splitter = splitter
        self.markers = markers
        self.retrieval = None if retrieval is None else RetrievalSettings.from_dict(retrieval)
        if markers:
            # special, or an uncased tokenizer would look for them in lower case
            tokenizer.add_tokens(list(MARKERS), special_tokens=True)

    @classmethod
    def from_encoder_pretrained(
        cls, name_or_path: str, *, tokenizer_options: dict[str, Any] | None = None, **options: Any
    ) -> MoReProcessor:
        """Return a processor for a plain encoder checkpoint; `max_length` is lowered to what that allows."""
        load = {**(tokenizer_options or {}), "trust_remote_code": False, **hub_options(name_or_path)}
        tokenizer = load_processor(AutoTokenizer.from_pretrained, name_or_path, name_or_path, **load)
        encoder, whose = _encoder_of(_config_at(name_or_path, load), name_or_path), f"the encoder {name_or_path}"
        if encoder is not None:  # before markers are added, for which its embeddings will grow
            check_ids(SubTokens(tokenizer).largest_id, encoder, whose)
        processor = cls(tokenizer, **options)
        processor.limit_length(None if encoder is None else position_limit(encoder), whose)
        return processor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load a processor, which is fitted to the encoder of the model beside it, see `fit`."""
        folder = downloaded(pretrained_model_name_or_path, SAVED_FILES, kwargs)
        load = super().from_pretrained
        kwargs |= {"trust_remote_code": False, **hub_options(pretrained_model_name_or_path)}
        if (config := _config_at(folder, kwargs)) is not None:
            kwargs["config"] = config  # transformers does not know it where this code came with a model
        processor: Self = load_processor(load, pretrained_model_name_or_path, folder, _NEEDED, **kwargs)
        if (encoder := _encoder_of(config, folder)) is not None:
            processor.fit(encoder, f"the encoder of {pretrained_model_name_or_path}")
        if processor.retrieval is not None:
            own = is_own(Path(folder) / "processor_config.json")
            processor.retrieval = processor.retrieval.loaded_from(folder, own)
        return processor

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the tokenizer, `processor_config.json`, encoders of the retrieval that lie in folders, the code."""
        saved = bearer(self, "AutoProcessor", save_directory)
        with manifest_kept(save_directory):
            written: list[str] = super(MoReProcessor, saved).save_pretrained(save_directory, push_to_hub, **kwargs)
            if self.retrieval is not None:
                self.retrieval.save_encoders(Path(save_directory))
                remember(Path(save_directory) / "processor_config.json", self.retrieval.encoders)
        return written

    def to_dict(self) -> dict[str, Any]:
        """Return what `processor_config.json` holds: of the retrieval the settings, no folder of this machine."""
        found: dict[str, Any] = super().to_dict()
        found.pop("retrieval", None)
        return found if self.retrieval is None else found | {"retrieval": self.retrieval.saved()}

    def load_retriever(
        self, knowledge: Sequence[str | Path] = (), cache_dir: str | Path | None = None, whose: str = "the model"
    ) -> Any:
        """Return the opened retrieval of the training, or None where there was none or its corpus is not to be had.

        A warning says where it is not to be had, and where it is another corpus than that of the training.

        Args:
            knowledge: what to search instead: files, folders of saved corpora, ids of the Hub.
            whose: the model or expert, for messages.
        """
        if self.knowledge_column is None:
            return None
        if self.retrieval is not None:
            return open_retrieval(self.retrieval, knowledge, cache_dir, whose)
        if knowledge:
            raise ValueError(
                f"{whose} does not tell how its knowledge was retrieved: give the entries that a retriever of "
                f"modeling_more.knowledge finds with the posts, as {self.knowledge_column}"
            )
        return None

    def fit(self, encoder: torch.nn.Module, whose: str = "the encoder") -> None:
        """Lower `max_length` to what an encoder reads, and check that it has embeddings of all sub-tokens.

        Raises:
            ValueError: it has not.
        """
        self.limit_length(position_limit(encoder), whose)
        markers = self.tokenizer.convert_tokens_to_ids(list(MARKERS)) if self.markers else []
        check_ids(max([self._sub_tokens.largest_id, *markers]), encoder, whose)

    def limit_length(self, limit: int | None, whose: str = "the encoder") -> None:
        """Lower `max_length` to this many sub-tokens where it is larger, and log both; None is no limit.

        Raises:
            ValueError: when nothing could be read.
        """
        if limit is not None and self.max_length > limit:
            logger.warning("max_length is lowered from %d to %d: %s reads no more", self.max_length, limit, whose)
            self.max_length = limit
        if self.max_length < 4:
            raise ValueError(f"max_length is {self.max_length}, it must be at least 4")

    def __call__(
        self,
        words: Sequence[str] | Sequence[Sequence[str]] | None = None,
        knowledge: Sequence[Entry] | Sequence[Sequence[Entry]] | None = None,
        text: str | Sequence[str] | None = None,
        pairs: tuple[Span, Span] | Sequence[tuple[Span, Span]] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Return model inputs for one post or several, given as words or as raw text.

        Args:
            words: the words of a post, or of several posts.
            knowledge: the ranked entries {title, text, score} of that post, or of each.
            text: raw text instead of words, split by `self.splitter`.
            pairs: for relations, the spans (head, tail) of words of that post, or of each.
            return_tensors: only `"pt"`.

        Returns:
            input_ids, attention_mask [R, T]; word_positions, word_mask [B, N]; word_rows [B, N] where a post takes
            several rows. With `pairs` N = 2: the opening markers, subject first.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors is {return_tensors!r}, only "pt" is supported')
        if (words is None) == (text is None):
            raise ValueError("give either words or text")
        posts: Any = words
        if text is not None:
            posts = [
                [word for word, _, _ in split_words(one, self.splitter)]
                for one in ([text] if isinstance(text, str) else text)
            ]
        single = isinstance(text, str) or (text is None and bool(posts) and isinstance(posts[0], str))
        entries: Any = [knowledge] if single and knowledge is not None else knowledge
        spans: Any = [pairs] if single and pairs is not None else pairs
        return BatchFeature(self.pad(self.encode([posts] if single and text is None else posts, entries, spans)))

    def encode(
        self,
        words: Sequence[Sequence[str]],
        knowledge: Sequence[Sequence[Entry] | None] | None = None,
        pairs: Sequence[tuple[Span, Span]] | None = None,
        truncate: bool = False,
    ) -> list[dict[str, Any]]:
        """Return sub-tokens of posts, not padded.

        A post whose words alone pass max_length is cut in overlapping windows, one row each (`truncate=False`), or
        after the last word that fits (`truncate=True`, for training). Of a pair in such a post a window around both
        entities is read, whether or not to truncate; where they stand too far apart for one, a window around each.

        Args:
            pairs: spans (head, tail) of words, one pair a post: markers stand around both, and the positions are those
                of `<E>` and `<O>` instead of the words'. Needs `markers`.

        Returns:
            per post: input_ids (rows of ids), word_rows and word_positions (one a kept word), cut_words (words that no
            row holds), cut_knowledge (sub-tokens of knowledge left out; behind the part of a very long entry that
            could be read, words), read_knowledge (places of the entries of which something is read).
        """
        if knowledge is not None and len(knowledge) != len(words):
            raise ValueError(f"{len(words)} posts, but knowledge for {len(knowledge)}")
        for index, post in enumerate(words):
            if not post:
                raise ValueError(f"post {index} has no words")
            if isinstance(post, str) or not all(isinstance(word, str) for word in post):
                raise ValueError(f"post {index} is {post!r:.60}, it must be a list of words; give raw text as text")
        if pairs is not None and not self.markers:
            raise ValueError("pairs need a processor with markers=True")
        truncate = truncate and pairs is None
        # a word has a sub-token at least: those behind these are never read
        units = self._tokenize_words([post[: self.max_length] for post in words] if truncate else words)
        entries = self._tokenize_knowledge(knowledge or [None] * len(words))
        if pairs is not None:
            sums: dict[int, list[int]] = {}  # of a post that many pairs share
            return [
                self._lay_out_pair(post, sums, pair, read)
                for post, pair, read in zip(units, pairs, entries, strict=True)
            ]
        return [
            self._lay_out(post, range(len(whole)), read, truncate)
            for post, whole, read in zip(units, words, entries, strict=True)
        ]

    def pad(self, posts: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return encoded posts as tensors (see `__call__`), as wide as the longest row."""
        rows = [row for post in posts for row in post["input_ids"]]
        batch = {
            "input_ids": padded(rows, self.tokenizer.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
            "word_positions": padded([post["word_positions"] for post in posts], 0),
            "word_mask": padded([[1] * len(post["word_positions"]) for post in posts], 0).bool(),
        }
        if len(rows) > len(posts):
            first = 0
            word_rows = []
            for post in posts:
                word_rows.append([first + row for row in post["word_rows"]])
                first += len(post["input_ids"])
            batch["word_rows"] = padded(word_rows, 0)
        return batch

    def reads(self, entry: Entry) -> bool:
        """Return whether an entry is read by its score, which must reach `min_score` where it is known."""
        score = entry.get("score")
        return self.min_score is None or not score or not score < self.min_score

    def entry_text(self, entry: Entry) -> str:
        """Return an entry as it is read: `[ title ] text`, cut to `knowledge_words` around its matched sentence."""
        text = entry["text"]
        if self.knowledge_words is not None:
            matched = entry.get("match_start") or 0, entry.get("match_end") or 0
            text = words_around(text, *matched, self.knowledge_words)
        title = entry.get("title")
        return f"[ {title} ] {text}" if title else text

    def _tokenize_words(self, words: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        return self._sub_tokens.of_words(words, self.max_length)

    def _tokenize_knowledge(self, knowledge: Sequence[Sequence[Entry] | None]) -> list[list[ReadText]]:
        """Return the sub-tokens of every entry of every post, those of running text; none of an unread one."""
        found = [(post or ())[: self.top_k] for post in knowledge]
        texts = [[self.entry_text(entry) if self.reads(entry) else "" for entry in post] for post in found]
        read = iter(self._sub_tokens.of_texts([text for post in texts for text in post], self.max_length))
        return [[next(read) for _ in post] for post in texts]

    def _mark(
        self, words: list[list[int]], spans: Mapping[int, Span], shift: int = 0
    ) -> tuple[list[list[int]], list[int]]:
        """Return the words' sub-tokens with markers as units of their own, and where the opening ones stand.

        One entity may lie within the other, and they may touch: an entity closes before the next one opens, the inner
        one opens last and closes first.

        Args:
            spans: spans of words by their place in the pair, 0 for the subject.
            shift: number of words before `words`, which the spans count.
        """
        ids = self.tokenizer.convert_tokens_to_ids(list(MARKERS))
        marks = []
        for place, span in spans.items():
            start, end = span[0] - shift, min(span[1] - shift, len(words))
            marks.append((start, 1, -end, ids[2 * place]))
            marks.append((end, 0, -start, ids[2 * place + 1]))
        units: list[list[int]] = []
        places = {}
        last = 0
        for position, _, _, id_ in sorted(marks, key=lambda mark: mark[:3]):
            units += words[last:position]
            last = position
            places[id_] = len(units)
            units.append([id_])
        return units + words[last:], [places[ids[2 * place]] for place in spans]

    def _lay_out_pair(
        self, words: list[list[int]], sums: dict[int, list[int]], pair: tuple[Span, Span], entries: list[ReadText]
    ) -> dict[str, Any]:
        """Return rows of ids with the markers of a pair, and where the opening ones stand in them (see `encode`)."""
        for span in pair:
            if not 0 <= span[0] < span[1] <= len(words):
                raise ValueError(f"span {list(span)} is empty or outside a post of {len(words)} words")
        room = self.max_length - 2
        longest = max(1, room - 3)  # of a word in a window, so that it fits between two markers
        if id(words) not in sums:
            sums[id(words)] = list(accumulate((min(len(word), longest) for word in words), initial=0))
        before = sums[id(words)]
        both = dict(enumerate(pair))
        if before[-1] + len(MARKERS) <= room:
            return self._lay_out(*self._mark(words, both), entries)
        first, last = min(span[0] for span in pair), max(span[1] for span in pair)
        apart = before[last] - before[first] + len(MARKERS) > room
        laid: dict[str, Any] = {"input_ids": [], "word_rows": [], "word_positions": [], "cut_words": 0}
        for spans in [{place: span} for place, span in both.items()] if apart else [both]:
            first, last = min(span[0] for span in spans.values()), max(span[1] for span in spans.values())
            first, last = window_around(before, first, last, room - 2 * len(spans))
            shown = [word[:longest] for word in words[first : max(last, first + 1)]]
            window = self._lay_out(*self._mark(shown, spans, first), [])
            laid["word_rows"] += [len(laid["input_ids"]) + row for row in window["word_rows"]]
            laid["word_positions"] += window["word_positions"]
            laid["input_ids"] += window["input_ids"]
        cut = sum(len(entry.pieces) + entry.behind for entry in entries)
        return laid | {"cut_knowledge": cut, "read_knowledge": []}

    def _lay_out(
        self, words: list[list[int]], wanted: Sequence[int], entries: list[ReadText], truncate: bool = False
    ) -> dict[str, Any]:
        """Return rows of ids, and where the units `wanted` among `words` stand in them (see `encode`)."""
        begin, separator = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        room = self.max_length - 2
        windows = cut_in_windows([min(len(word), room) for word in words], room)
        if truncate:
            windows = windows[:1]
        rows: list[list[int]] = []
        places: dict[int, tuple[int, int]] = {}  # of each unit
        for row, (first, last, kept_from, kept_to) in enumerate(windows):
            if truncate:
                kept_to = last
            ids = [begin]
            for word in range(first, last):
                if kept_from <= word < kept_to:
                    places[word] = row, len(ids)
                ids += words[word][:room]
            rows.append([*ids, separator])

        all_knowledge = sum(len(entry.pieces) + entry.behind for entry in entries)
        read: list[int] = []
        places_read: list[int] = []  # of the entries of which something is read
        if len(windows) == 1 and len(places) == len(words):
            # one more separator closes the row
            free = self.max_length - len(rows[0]) - 1
            for place, (entry, _) in enumerate(entries):
                part = entry[: max(0, free - len(read))]
                if part and (self.overflow == "cut" or len(part) == len(entry)):
                    read += part
                    places_read.append(place)
            if read:
                rows[0] += [*read, separator]
        found = [places[word] for word in wanted if word in places]
        return {
            "input_ids": rows,
            "word_rows": [row for row, _ in found],
            "word_positions": [position for _, position in found],
            "cut_words": len(wanted) - len(found),
            "cut_knowledge": all_knowledge - len(read),
            "read_knowledge": places_read,
        }


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return rows of numbers as one tensor, with a value behind the shorter ones."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _config_at(name_or_path: Any, options: Mapping[str, Any]) -> Any:
    """Return the configuration of the encoder or expert that lies there; None where none does."""
    place = {key: options[key] for key in PLACE if key in options}
    try:
        return config_of(name_or_path, **place)
    except (OSError, ValueError):  # a tokenizer or processor by itself
        return None


def _encoder_of(config: Any, whose: Any) -> torch.nn.Module | None:
    """Return the encoder, or that of the expert, of a configuration, without weights; None where there is none."""
    return None if config is None else sketched(getattr(config, "encoder_config", None) or config, whose)


register_processor(MoReConfig, MoReProcessor)
