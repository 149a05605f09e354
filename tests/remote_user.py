"""What somebody runs who has transformers, torch and Pillow alone: the models of a plan, by their own code.

    python remote_user.py PLAN.json FOUND.json

The plan is a list of {name, where, auto_class, task, posts, inputs}, the last those of the processor; what came out is
written as JSON.
"""

import importlib
import json
import sys
from pathlib import Path

FORBIDDEN = ("modeling_more", "accelerate", "datasets", "faiss", "peft", "evaluate", "pyarrow")


def main(plan: list[dict], scratch: Path) -> dict:
    there = []
    for name in FORBIDDEN:
        try:
            importlib.import_module(name)
            there.append(name)
        except ModuleNotFoundError:
            pass

    import torch
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    models = {}
    for row in plan:
        where, loader = row["where"], getattr(transformers, row["auto_class"])
        told: dict = {}
        try:
            loader.from_pretrained(where)
        except ValueError as error:
            told["without the flag"] = str(error)
        loaded = {
            kind: getattr(transformers, kind).from_pretrained(where, trust_remote_code=True)
            for kind in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", row["auto_class"])
        }
        told["classes"] = {kind: f"{type(one).__module__}.{type(one).__name__}" for kind, one in loaded.items()}
        model, processor = loaded[row["auto_class"]].eval(), loaded["AutoProcessor"]
        told["tokens"] = loaded["AutoTokenizer"].tokenize("Ada in Lindau")
        told["max_length"] = [one.max_length for one in getattr(processor, "processors", [processor])]
        with torch.no_grad():
            told["logits"] = model(**processor(**row["inputs"])).logits.tolist()
        predict = get_class_from_dynamic_module("pipelines.predict", where)
        told["predictions"] = predict(model, processor, row["posts"])
        piped = transformers.pipeline(row["task"], model=where, trust_remote_code=True)
        told["piped"] = piped(row["posts"])
        try:
            predict(model, processor, [{**row["posts"][0], "image": "picture.jpg"}])
        except ModuleNotFoundError as error:
            told["image"] = str(error)
        again = scratch / row["name"]
        model.save_pretrained(again)
        processor.save_pretrained(again)
        loader.from_pretrained(again, trust_remote_code=True)
        told["saved again"] = sorted(path.relative_to(again).as_posix() for path in again.rglob("*.py"))
        models[row["name"]] = told
    return {"there": there, "models": models}


if __name__ == "__main__":
    given, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(main(json.loads(given.read_text()), out.parent / "again")))
