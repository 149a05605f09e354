"""Turn a post's words and each expert's knowledge into a mixture's inputs, by the experts' own processors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi
from transformers import BatchFeature, ProcessorMixin

from .configuration_mixture import MoReMixtureConfig, check_names
from .configuration_more import MoReConfig
from .evidence import of_search
from .files import manifest_kept
from .loading import config_of, downloaded
from .open_retrieval import by_expert
from .positions import sketched
from .processing_more import SAVED_FILES, Entry, MoReProcessor, Span, padded
from .pushing import keep_manifest
from .remote_code import bearer, register_processor, without_code
from .words import split_words

#: of an encoded post: the rows of each expert, the words alone, and what the experts' searches tell
EncodedMixturePost = dict[str, Any]


class MixtureFeature(BatchFeature):
    """The inputs of a mixture, whose `.to(device)` reaches nested ones too."""

    def to(self, *args: Any, **kwargs: Any) -> MixtureFeature:
        """Move the tensors, those of each expert too, and return these inputs."""
        super().to(*args, **kwargs)
        for inputs in (*self["experts"], *self["alone"], self["text_only"]):
            inputs.to(*args, **kwargs)
        return self


class MoReMixtureProcessor(ProcessorMixin):
    """A processor that holds each expert's own, with its tokenizer, knowledge column and `max_length`.

        processor = MoReMixtureProcessor.from_pretrained("ORG/MIXTURE")
        model(**processor(text="Ada in Paris", knowledge=[text_entries, image_entries]))

    Args:
        processors: one an expert, in the model's order; the first one also writes the gate's words and splits text.
        names: short unique names of the experts; each is saved as `experts/<name>/`.
        alone: whether experts that read knowledge also read the words without it, as `MoReMixtureConfig.alone` says.

    Raises:
        ValueError: for names that do not fit, or processors of which only some have markers.
    """

    def __init__(self, processors: Sequence[MoReProcessor], names: Sequence[str] | None = None, alone: bool = False):
        super().__init__()
        self.alone = alone
        self.processors = list(processors)
        self.names = [f"expert-{index}" for index in range(len(self.processors))] if names is None else list(names)
        if not self.processors:
            raise ValueError("a mixture's processor needs at least one expert's")
        check_names(self.names, len(self.processors))
        if len({processor.markers for processor in self.processors}) > 1:
            marked = [name for name, processor in zip(self.names, self.processors, strict=True) if processor.markers]
            raise ValueError(f"only {', '.join(marked)} of the experts {', '.join(self.names)} have relation markers")

    @property
    def knowledge_columns(self) -> list[str | None]:
        """Return the column of a data set that each expert reads."""
        return [processor.knowledge_column for processor in self.processors]

    @property
    def alone_places(self) -> list[int]:
        """Return the numbers of the experts that also read the words without knowledge."""
        return [place for place, column in enumerate(self.knowledge_columns) if column is not None and self.alone]

    @property
    def markers(self) -> bool:
        """Return whether the experts classify relations."""
        return self.processors[0].markers

    @property
    def splitter(self) -> str:
        """Return how raw text becomes words."""
        return self.processors[0].splitter

    def __call__(
        self,
        words: Sequence[str] | Sequence[Sequence[str]] | None = None,
        knowledge: Sequence[Sequence[Entry] | None] | Sequence[Sequence[Sequence[Entry] | None] | None] | None = None,
        text: str | Sequence[str] | None = None,
        pairs: tuple[Span, Span] | Sequence[tuple[Span, Span]] | None = None,
        return_tensors: str | None = "pt",
    ) -> MixtureFeature:
        """Return model inputs for one post or several, as `MoReProcessor` makes them.

        Args:
            knowledge: one item an expert: the ranked entries of that post, or of each; None reads without.

        Returns:
            experts: the inputs of each; alone: the words without knowledge for some; text_only: the words that the
            gate reads; word_mask [B, N]; search_evidence, title_words: see `evidence.of_search`.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors is {return_tensors!r}, only "pt" is supported')
        if (words is None) == (text is None):
            raise ValueError("give either words or text")
        posts: Any = words
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            posts = [[word for word, _, _ in split_words(one, self.splitter)] for one in texts]
        single = isinstance(text, str) or (text is None and bool(posts) and isinstance(posts[0], str))
        if not single:
            return MixtureFeature(self.pad(self.encode(posts, knowledge, pairs)))  # type: ignore[arg-type]
        entries: Any = None if knowledge is None else [None if item is None else [item] for item in knowledge]
        spans: Any = None if pairs is None else [pairs]
        return MixtureFeature(self.pad(self.encode([posts] if text is None else posts, entries, spans)))

    def encode(
        self,
        words: Sequence[Sequence[str]],
        knowledge: Sequence[Sequence[Sequence[Entry] | None] | None] | None = None,
        pairs: Sequence[tuple[Span, Span]] | None = None,
    ) -> list[EncodedMixturePost]:
        """Return sub-tokens of posts, not padded; no word is cut, so that all experts read the same.

        Args:
            knowledge: one item an expert: the entries of every post, or None.
            pairs: spans (head, tail) of words, one pair a post. The gate reads the words without markers.

        Returns:
            per post: experts (what `MoReProcessor.encode` returns, one an expert), alone, text_only,
            search_evidence and title_words.
        """
        if knowledge is None:
            knowledge = [None] * len(self.processors)
        if len(knowledge) != len(self.processors):
            raise ValueError(f"knowledge for {len(knowledge)} experts, there are {', '.join(self.names)}")
        read = [
            processor.encode(words, entries, pairs)
            for processor, entries in zip(self.processors, knowledge, strict=True)
        ]
        text_only = self.processors[0].encode(words)
        alone = [self.processors[place].encode(words, None, pairs) for place in self.alone_places]
        found = []
        for row, post in enumerate(words):
            experts = [one[row] for one in read]
            searched = [
                of_search(post, None if one is None else one[row], of_expert["read_knowledge"])
                for one, of_expert in zip(knowledge, experts, strict=True)
            ]
            found.append(
                {
                    "experts": experts,
                    "alone": [one[row] for one in alone],
                    "text_only": text_only[row],
                    "search_evidence": [values for values, _ in searched],
                    "title_words": [flags for _, flags in searched],
                }
            )
        return found

    def pad(self, posts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return encoded posts as tensors: the arguments of a mixture's `forward`."""
        experts = [
            BatchFeature(processor.pad([post["experts"][index] for post in posts]))
            for index, processor in enumerate(self.processors)
        ]
        alone = [
            BatchFeature(self.processors[place].pad([post["alone"][index] for post in posts]))
            for index, place in enumerate(self.alone_places)
        ]
        text_only = BatchFeature(self.processors[0].pad([post["text_only"] for post in posts]))
        flags = [padded([post["title_words"][place] for post in posts], 0) for place in range(len(experts))]
        return {
            "experts": experts,
            "alone": alone,
            "text_only": text_only,
            "word_mask": experts[0]["word_mask"],
            "search_evidence": torch.tensor([post["search_evidence"] for post in posts]),
            "title_words": torch.stack(flags, 1).bool(),
        }

    def load_retrievers(
        self,
        knowledge: Sequence[str | Path] | Mapping[str, Sequence[str | Path]] = (),
        cache_dir: str | Path | None = None,
    ) -> list[Any]:
        """Return the opened retrieval of each expert, None where it reads none or its corpus is not to be had.

        Args:
            knowledge: what to search instead, see `MoReProcessor.load_retriever`: one for all experts that retrieve,
                or one each by their names.
        """
        given = by_expert(knowledge, self.names)
        return [
            processor.load_retriever(one, cache_dir, f"expert {name}")
            for name, processor, one in zip(self.names, self.processors, given, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return what `processor_config.json` holds; the experts' own settings lie in their folders."""
        told = {"names": self.names, "alone": self.alone, "processor_class": type(self).__name__}
        return told | ({"auto_map": self.auto_map} if hasattr(self, "auto_map") else {})

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write `experts/<name>/`, a whole `MoReProcessor` each, `processor_config.json`, code, and a tokenizer.

        The tokenizer of the first expert lies beside too: `AutoTokenizer` looks nowhere else.
        """
        saved = bearer(self, "AutoProcessor", save_directory)
        with manifest_kept(save_directory):
            with without_code():
                for name, processor in zip(self.names, self.processors, strict=True):
                    processor.save_pretrained(Path(save_directory) / "experts" / name)
            written: list[str] = super(MoReMixtureProcessor, saved).save_pretrained(save_directory)
            written += self.processors[0].tokenizer.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return written

    def push_to_hub(  # transformers' own uploads folders one level deep only
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Upload what `save_pretrained` writes to the model repository `repo_id`, made where there is none."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            keep_manifest(Path(folder), repo_id, revision, token)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload processor",
                revision=revision,
                create_pr=create_pr,
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load a saved processor; each expert's is fitted to its encoder in the mixture beside it."""
        patterns = ("processor_config.json", "config.json", *(f"experts/*/{one}" for one in SAVED_FILES))
        folder = downloaded(pretrained_model_name_or_path, patterns, kwargs)
        saved, _ = cls.get_processor_dict(folder, **kwargs)
        names = saved.get("names")
        if not isinstance(names, list):
            raise ValueError(f"{pretrained_model_name_or_path} holds no mixture's processor: it names no experts")
        check_names(names, len(names))  # they become paths
        processors = [MoReProcessor.from_pretrained(Path(folder) / "experts" / name) for name in names]
        found = cls(processors, names, bool(saved.get("alone")))
        try:
            config: Any = config_of(folder)
        except (OSError, ValueError):  # a processor by itself
            return found
        if (alone := getattr(config, "alone", [])) != found.alone_places:
            raise ValueError(
                f"{pretrained_model_name_or_path} is damaged: its experts {alone} read the words alone, its processor "
                f"makes those inputs for {found.alone_places}"
            )
        experts = dict(zip(getattr(config, "expert_names", ()), getattr(config, "experts", ()), strict=True))
        for name, processor in zip(names, processors, strict=True):
            if name in experts:
                processor.fit(sketched(MoReConfig(**experts[name]).encoder_config), f"the encoder of expert {name}")
        return found


register_processor(MoReMixtureConfig, MoReMixtureProcessor)
