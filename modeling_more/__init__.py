"""MoRe: named entity and relation extraction with multi-modal retrieval.

Importing the package makes the Auto classes of transformers know its models.
"""

import sys
from pathlib import Path

# A script that reads its arguments first says so, and imports afterwards what it needs, as does the command `more`:
# its help then waits for no library. All others get everything at once: imports on first use would fail where threads
# use the package together.
_ARGUMENTS_FIRST = Path(sys.argv[0] if sys.argv else "").stem == "more"
if not getattr(sys.modules["__main__"], "ARGUMENTS_FIRST", _ARGUMENTS_FIRST):
    from .auto_pipelines import MoReNerPipeline, MoReRePipeline
    from .configuration_mixture import MoReMixtureConfig
    from .configuration_more import MoReConfig
    from .data_collator import MoReDataCollator
    from .modeling_mixture import MoReMixtureForRelationExtraction, MoReMixtureForTokenClassification
    from .modeling_more import MoReForRelationExtraction, MoReForTokenClassification
    from .pipelines import predict
    from .processing_mixture import MoReMixtureProcessor
    from .processing_more import MoReProcessor

__all__ = [
    "MoReConfig",
    "MoReDataCollator",
    "MoReForRelationExtraction",
    "MoReForTokenClassification",
    "MoReMixtureConfig",
    "MoReMixtureForRelationExtraction",
    "MoReMixtureForTokenClassification",
    "MoReMixtureProcessor",
    "MoReNerPipeline",
    "MoReProcessor",
    "MoReRePipeline",
    "predict",
]
