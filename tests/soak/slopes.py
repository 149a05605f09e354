"""Measure whether memory and open files grow over many training steps and many calls of a pipeline.

python tests/soak/slopes.py --steps 2000 --calls 20000
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402

SAMPLES = 100  # measurements of a run
WARM = 0.25  # share of a run in which caches fill


class Growth:
    """The resident memory (KB) and the open files of this process, by how far it has come."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []

    def measure(self, done: int) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.rows.append((done, pages * os.sysconf("SC_PAGE_SIZE") // 1024, len(os.listdir("/proc/self/fd"))))

    def summary(self) -> dict[str, Any]:
        """Return the slope of the memory over all but the beginning, KB per 1,000, and by how much open files grew."""
        done, memory, files = np.array(self.rows, dtype=np.float64).T
        late = done >= WARM * done[-1]
        slope = np.polyfit(done[late], memory[late], 1)[0] * 1000 if late.sum() > 1 else 0.0
        return {
            "done": int(done[-1]), "kb_per_1000": round(float(slope), 1),
            "mb": [round(float(value) / 1024) for value in (memory[0], memory[-1])],
            "files": int(files[-1] - files[late][0]),
        }  # fmt: skip


def expert(folder: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Return a tiny model for entities, its processor, and posts."""
    import ner_runs
    from conftest import save_tiny_encoder
    from modeling_more import MoReForTokenClassification, MoReProcessor
    from modeling_more.tagging import bioes_labels

    save_tiny_encoder("bert", folder / "encoder")
    labels = dict(enumerate(bioes_labels(["PER", "LOC"])))
    model = MoReForTokenClassification.from_encoder_pretrained(str(folder / "encoder"), id2label=labels)
    processor = MoReProcessor.from_encoder_pretrained(str(folder / "encoder"), max_length=48)
    return model, processor, [{**post, "ner_tags": post["tags"]} for post in ner_runs.posts(20)]


def training(steps: int) -> dict[str, Any]:
    """Train for about so many steps, with evaluation and checkpoints, and measure after each epoch."""
    from accelerate import Accelerator

    from modeling_more.encoding import encode_posts
    from modeling_more.pipelines import EntityPipeline
    from modeling_more.training.arguments import TrainingArguments
    from modeling_more.training.loop import train

    growth = Growth()
    with tempfile.TemporaryDirectory() as folder:
        model, processor, posts = expert(Path(folder))
        encoded = encode_posts(posts, processor, model.config.label2id, truncate=True)
        each = max(1, steps // SAMPLES // 5)  # five steps an epoch of the posts once
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=max(1, steps // (5 * each)),
            per_device_train_batch_size=4,
            use_cpu=True,
        )
        accelerator = Accelerator(cpu=True)
        done = 0

        def evaluate(wrapped: Any) -> float:
            nonlocal done
            done += 5 * each
            EntityPipeline(accelerator.unwrap_model(wrapped), processor, accelerator)(posts[:4])
            growth.measure(done)
            return float(done)  # each epoch is the best so far, and saved

        train(accelerator, model, processor, encoded * each, evaluate, arguments)
    return growth.summary()


def predicting(calls: int) -> dict[str, Any]:
    """Call a pipeline so many times, on posts of all kinds, one at a time."""
    from modeling_more.pipelines import EntityPipeline

    growth = Growth()
    with tempfile.TemporaryDirectory() as folder:
        model, processor, _ = expert(Path(folder))
        pipeline = EntityPipeline(model.eval(), processor)
        every = max(1, calls // SAMPLES)
        for call in range(1, calls + 1):
            entry = {"title": f"T{call}", "text": f"Number {call} is a place .", "score": 1.0}
            words = f"Ada {call} met in Lindau " + "today " * (call % 40)
            pipeline([{"text": words, "knowledge_text": [entry]}])
            if call % every == 0:
                growth.measure(call)
    return growth.summary()


MEASURED: dict[str, Callable[[int], dict[str, Any]]] = {"training": training, "predicting": predicting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--calls", type=int, default=20_000, help="calls of the pipeline")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    for name, count in (("training", args.steps), ("predicting", args.calls)):
        print(json.dumps({"measured": name, **MEASURED[name](count)}), flush=True)


if __name__ == "__main__":
    main()
