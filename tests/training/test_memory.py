"""Batches that do not fit into memory: --auto_find_batch_size finds some that do, and a step keeps its posts."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook

import re_runs
import run_ner
import run_re
from ner_runs import ROOT, options, posts, read, run_in_two, write_jsonl

FIND = "--auto_find_batch_size"


@contextmanager
def memory_for(fitting, tokens=None, first=0, last=99999):
    """Let training forwards of more rows than are `fitting` (or of more tokens) fail as they do on a GPU.

    But none of the first ones, and all after the last one.
    """
    tried = []

    def before(module, args):
        # of the words, once a forward: other embeddings have no padding
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None and torch.is_grad_enabled():
            rows, width = args[0].shape
            tried.append(rows)
            too_large = rows > fitting or (tokens is not None and rows * width > tokens)
            if (too_large and len(tried) > first) or len(tried) > last:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = register_module_forward_pre_hook(before)
    try:
        yield tried
    finally:
        hook.remove()


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_a_step_keeps_its_posts(task, files, tiny_encoder, tmp_path, caplog):
    """12 posts at once do not fit, nor do 6: 3, four times; weights and scores are those of a run with these sizes."""
    main, given = run_ner.main, options
    if task == "relations":
        main, given, files = run_re.main, re_runs.options, re_runs.write_files(tmp_path)
    asked = ["--per_device_train_batch_size", "12", FIND]
    with memory_for(5):
        found = main(given(files, tiny_encoder("bert"), *asked))
    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    for file in ("all_results.json", "arguments.json"):
        assert sizes.items() <= read(files, file).items()
    assert read(files, "arguments.json")["auto_find_batch_size"] is True
    assert "batches of 12 posts: trying 6, 2 of them" in caplog.text and "trying 3, 4 of them" in caplog.text
    first = weights(files["out"])
    own = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    again = main(given(files, tiny_encoder("bert"), *own, "--overwrite_output_dir"))
    assert same(weights(files["out"]), first)
    assert found["history"][-1]["loss"] == again["history"][-1]["loss"] and found["dev_f1"] == again["dev_f1"]


def test_where_all_fits_nothing_changes(files, tiny_encoder):
    main = run_ner.main
    main(options(files, tiny_encoder("bert")))
    plain = weights(files["out"])
    main(options(files, tiny_encoder("bert"), FIND, "--overwrite_output_dir"))
    assert same(weights(files["out"]), plain)
    assert read(files, "all_results.json")["per_device_train_batch_size"] == 4


def test_memory_that_ends_later_in_the_first_epoch(files, tiny_encoder):
    with memory_for(2, first=4):
        run_ner.main(options(files, tiny_encoder("bert"), FIND))
    assert read(files, "arguments.json")["per_device_train_batch_size"] == 2
    assert [row["epoch"] for row in read(files, "all_results.json")["history"]] == [1, 2]


def test_tokens_of_a_batch_are_halved(files, tiny_encoder):
    with memory_for(99, tokens=100):
        run_ner.main(options(files, tiny_encoder("bert"), "--max_tokens_per_batch", "361", FIND))
    told = read(files, "arguments.json")
    assert (told["max_tokens_per_batch"], told["gradient_accumulation_steps"]) == (90, 4)


def test_one_sentence_where_nothing_helps(files, tiny_encoder):
    with memory_for(0), pytest.raises(SystemExit, match="^error: out of memory even with batches of 1 post: give"):
        run_ner.main(options(files, tiny_encoder("bert"), FIND))
    with memory_for(2), pytest.raises(SystemExit, match=f"^error: out of memory: give {FIND}"):
        run_ner.main(options(files, tiny_encoder("bert"), "--overwrite_output_dir"))


def test_an_epoch_that_is_kept_is_not_trained_again(files, tiny_encoder, tmp_path):
    """A resumed run has the batches of its checkpoint, and goes on as the unbroken one."""
    asked = ["--per_device_train_batch_size", "8", "--num_train_epochs", "3", FIND]
    with memory_for(4) as tried:
        run_ner.main(options(files, tiny_encoder("bert"), *asked))
    whole = weights(files["out"])
    assert tried[0] == 8 and set(tried[1:]) == {4}
    files["out"] = str(tmp_path / "broken")
    given = options(files, tiny_encoder("bert"), *asked)
    # two rehearsals, the first epoch, and two steps of the second
    with memory_for(4, last=2 + 6 + 2), pytest.raises(SystemExit, match="^error: out of memory although its largest"):
        run_ner.main(given)
    with memory_for(4) as tried:
        run_ner.main([*given, "--resume_from_checkpoint", "latest"])
    assert set(tried) == {4} and same(weights(files["out"]), whole)


@pytest.mark.parametrize("damage", ["{", '{"made_of": 3}', "[]", "[" * 100_000, "\0", None])
def test_a_damaged_checkpoint_is_one_sentence(damage, files, tiny_encoder, tmp_path):
    last = tmp_path / "elsewhere" / "last"
    last.mkdir(parents=True)
    if damage is not None:
        (last / "training_state.json").write_text(damage)
    with pytest.raises(SystemExit, match=f"^error: {last}") as ended:
        run_ner.main(options(files, tiny_encoder("bert"), FIND, "--resume_from_checkpoint", str(last)))
    assert len(str(ended.value).splitlines()) == 1 and "training_state.json" in str(ended.value)


LIMITED = """
import resource
import sys
import run_ner
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 900 * 2**20, size + 900 * 2**20))
run_ner.main(sys.argv[1:])
"""


def test_memory_of_this_machine(files, tiny_encoder, tmp_path):
    """With a limit on the address space, the CPU's own allocation fails."""
    long = [{**row, "tokens": row["tokens"] * 90, "tags": row["tags"] * 90} for row in posts(64)]
    write_jsonl(Path(files["train"]), long)
    given = options(files, tiny_encoder("bert"), "--attn_implementation", "eager", "--num_train_epochs", "1", FIND,
                    "--per_device_train_batch_size", "64", "--max_length", "512")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *given, "--max_length", "512"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = read(files, "arguments.json")
    assert 1 <= told["per_device_train_batch_size"] < 64
    assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] == 64


TWO = """
import os
import sys
sys.path[:1] = [sys.argv[1], f"{sys.argv[1]}/.."]
import run_ner
from test_memory import memory_for
with memory_for(2 if os.environ["RANK"] == "1" else 99):
    run_ner.main(sys.argv[2:])
"""


def test_one_process_is_out_of_memory(files, tiny_encoder, tmp_path):
    run_in_two(TWO, tmp_path, Path(__file__).parent, *options(files, tiny_encoder("bert"), FIND))
    assert read(files, "all_results.json")["per_device_train_batch_size"] == 2
