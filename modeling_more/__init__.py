"""MoRe: named entity and relation extraction with multi-modal retrieval.

Importing the package makes the Auto classes of transformers know its models.
"""

from importlib import import_module
from typing import Any

from wrapt import register_post_import_hook

_MODULES = {
    "configuration_more": ("MoReConfig",),
    "configuration_mixture": ("MoReMixtureConfig",),
    "modeling_more": ("MoReForRelationExtraction", "MoReForTokenClassification"),
    "modeling_mixture": ("MoReMixtureForRelationExtraction", "MoReMixtureForTokenClassification"),
    "processing_more": ("MoReProcessor",),
    "processing_mixture": ("MoReMixtureProcessor",),
    "data_collator": ("MoReDataCollator",),
    "pipelines": ("predict",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch takes seconds that `--help` need not wait."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _import_after(trigger: str, module: str) -> None:
    """Import a module of this package as soon as another one is loaded."""
    register_post_import_hook(lambda _: import_module(f"{__name__}.{module}"), trigger)


# each registers its classes at its end; a mixture's module needs that of the experts whole
for _kind in ("configuration", "processing", "modeling"):
    _import_after(f"transformers.models.auto.{_kind}_auto", f"{_kind}_more")
    _import_after(f"{__name__}.{_kind}_more", f"{_kind}_mixture")
