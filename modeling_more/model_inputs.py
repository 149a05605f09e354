"""Say what is wrong with the arguments of a model's `forward`, which a plain tokenizer does not make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lacking(model: Any, names: str, processor: str) -> ValueError:
    """Return the error for inputs that are missing, which says who makes them, and which pipeline does all of it."""
    found, task = ("relations", "more-re") if "Relation" in type(model).__name__ else ("entities", "more-ner")
    return ValueError(
        f'{names} are needed: {processor} makes them; to find {found} in a text, use pipeline("{task}", model=…)'
    )


def refuse(others: Mapping[str, Any]) -> None:
    """Raise TypeError for arguments that a model does not know; wrappers such as peft's pass some that are None."""
    if unknown := sorted(name for name, value in others.items() if value is not None):
        raise TypeError(f"forward() does not know the argument {', '.join(unknown)}")
