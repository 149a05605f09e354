"""What importing the package does: the Auto classes know its models, in any order of imports and in threads."""

import subprocess
import sys

import pytest
import torch

import modeling_more
from modeling_more import MoReForTokenClassification, MoReMixtureForTokenClassification
from modeling_more.tagging import bioes_labels
from ner_runs import ROOT

CHECK = """
from transformers import AutoConfig, AutoModelForTokenClassification, AutoProcessor
assert [AutoConfig.for_model(name).model_type for name in ("more", "more-mixture")] == ["more", "more-mixture"]
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
for mapping in (AutoModelForTokenClassification._model_mapping, PROCESSOR_MAPPING):
    assert {one.model_type for one in mapping._extra_content} >= {"more", "more-mixture"}
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
def use(number):
    from transformers import AutoModelForTokenClassification, AutoProcessor
    return getattr(modeling_more, modeling_more.__all__[number])
assert all(ThreadPoolExecutor(4).map(use, range(4)))
"""


@pytest.mark.parametrize(
    "code",
    [
        "import modeling_more\n" + CHECK,
        "import transformers, torch\n" + CHECK.splitlines()[1] + "\nimport modeling_more\n" + CHECK,
        "from modeling_more import *\nassert predict and MoReConfig\n" + CHECK,
        "import modeling_more.training.command_line\n" + CHECK,
        "import modeling_more\n" + THREADS + CHECK,
    ],
    ids=["first", "last", "star", "part", "threads"],
)
def test_the_auto_classes_know_the_models(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    assert all(getattr(modeling_more, name) for name in modeling_more.__all__)


def test_decoding_draws_no_random_numbers(tiny_encoder, tmp_path):
    """Else what is scored between two epochs, and in which batches, would change the training."""
    labels = bioes_labels(["PER", "LOC"])
    expert = MoReForTokenClassification.from_encoder_pretrained(
        tiny_encoder("bert"), id2label=dict(enumerate(labels)), head="softmax"
    )
    expert.save_pretrained(tmp_path)
    mixture = MoReMixtureForTokenClassification.from_experts([tmp_path, tmp_path])
    logits, mask = torch.randn(2, 5, len(labels)), torch.ones(2, 5, dtype=torch.bool)
    before = torch.get_rng_state()
    assert mixture.decode(logits, mask) and expert.decode(logits, mask)
    expert.span_scores(logits, mask, [[(0, 1, [1])], []])
    assert torch.equal(torch.get_rng_state(), before)
