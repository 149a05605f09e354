"""Tell what experts read beside a post: what it brings along, what is retrieved for it, and what of it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .encoding import EXPERT_KNOWLEDGE, EncodedPost
from .evidence import LEAST_FOUND
from .predictions import evidence

Post = Mapping[str, Any]
#: (posts with knowledge, place of an expert) -> the entities {text, …} that it finds in each
FirstReading = Callable[[list[dict[str, Any]], int], list[list[dict[str, Any]]]]


class PostKnowledge:
    """The knowledge of posts for an expert, or for each expert of a mixture.

    Args:
        processor: that of the expert or the mixture.
        retrievals: an `OnlineRetrieval` (or None) an expert, for posts that bring no knowledge; default: none.
    """

    def __init__(self, processor: Any, retrievals: Sequence[Any] = ()) -> None:
        self.names: list[str] | None = getattr(processor, "names", None)
        self.processors: list[Any] = getattr(processor, "processors", [processor])
        self.retrievals = list(retrievals) or [None] * len(self.processors)
        if len(self.retrievals) != len(self.processors):
            raise ValueError(
                f"{len(self.retrievals)} retrievals for {len(self.processors)} experts: give one (or None) each"
            )

    def retrieve(self, posts: list[dict[str, Any]], read: FirstReading | None = None) -> list[dict[str, Any]]:
        """Return the posts with the knowledge that is found for those that bring none for an expert.

        Args:
            read: finds the entities that an expert then searches for, where that is how it searches and the post
                brings no `predicted_entities`; it reads the posts with what their words found.
        """
        for place, (processor, retrieval) in enumerate(zip(self.processors, self.retrievals, strict=True)):
            if retrieval is None or processor.knowledge_column is None:
                continue
            lacking = [post for post in posts if self.given(post)[place] is None]
            asked = lacking
            if read is not None and lacking and retrieval.settings.query == "entities":
                asked = self._with_entities(posts, place, read)
            self.add(lacking, retrieval.find(asked, self.searched(place)), place)
        return posts

    def searched(self, place: int) -> int:
        """Return how many entries are searched for an expert: those that it reads, of a mixture's LEAST_FOUND."""
        top_k: int = self.processors[place].top_k
        return top_k if self.names is None else max(top_k, LEAST_FOUND)

    def _with_entities(self, posts: list[dict[str, Any]], place: int, read: FirstReading) -> list[dict[str, Any]]:
        """Return the posts that bring no knowledge for an expert, with the entities that it finds in a first reading.

        The posts themselves stay as they are: each expert of a mixture searches for what it has found itself.
        """
        top_k, column = self.processors[place].top_k, self.processors[place].knowledge_column
        lacking = [number for number, post in enumerate(posts) if self.given(post)[place] is None]
        unread = [number for number in lacking if posts[number].get("predicted_entities") is None]
        found = self.retrievals[place].find([posts[number] for number in unread], top_k)
        first: list[dict[str, Any]] = [{"tokens": []} for _ in posts]  # errors name posts by their places
        for number, entries in zip(unread, found, strict=True):
            first[number] = {**posts[number], column: entries}
        entities = read(first, place) if unread else []
        said = {number: {"predicted_entities": entities[number]} for number in unread}
        return [{**posts[number], **said.get(number, {})} for number in lacking]

    def add(self, posts: Sequence[dict[str, Any]], found: Sequence[Any], place: int) -> None:
        """Add to posts the entries that were found for the expert at a place."""
        for post, entries in zip(posts, found, strict=True):
            if self.names is None:
                post[self.processors[place].knowledge_column] = entries
            else:  # several experts may read the same column, each from its own corpus
                post.setdefault(EXPERT_KNOWLEDGE, [None] * len(self.processors))[place] = entries

    def given(self, post: Post) -> list[Any]:
        """Return the entries that each expert is given of a post, None where there are none."""
        told = (self.names and post.get(EXPERT_KNOWLEDGE)) or [None] * len(self.processors)
        columns = [processor.knowledge_column for processor in self.processors]
        own = [post.get(column) if column else None for column in columns]
        return [one if one is not None else other for one, other in zip(told, own, strict=True)]

    def shown(self, post: Post, encoded: EncodedPost | None) -> dict[str, Any]:
        """Return what was read beside a post as `{"knowledge": […]}`, of a mixture an object by its experts' names.

        Nothing is returned where no expert reads knowledge.

        Args:
            encoded: the encoded post; entries of which nothing fits into max_length are left out. None: of no words.
        """
        if all(processor.knowledge_column is None for processor in self.processors):
            return {}
        views: Sequence[Any] = [encoded or {}] if self.names is None else (encoded or {}).get("experts", ())
        views = views or [{}] * len(self.processors)
        found = [
            [evidence(entries[place]) for place in view.get("read_knowledge", ())] if entries else []
            for entries, view in zip(self.given(post), views, strict=True)
        ]
        return {"knowledge": found[0] if self.names is None else dict(zip(self.names, found, strict=True))}
