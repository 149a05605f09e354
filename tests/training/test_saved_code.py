"""The code that travels with a model is of the run that wrote it, and of nothing else in its folder."""

import json
from pathlib import Path

import run_ner
from modeling_more import MoReForTokenClassification, MoReProcessor
from modeling_more.files import code_names
from modeling_more.training.results import OLDER, published
from modeling_more.training.run_record import recorded
from ner_runs import told, training


def code_in(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.py"))


def test_a_run_leaves_the_code_of_its_model_once_and_publishes_it(here):
    for folder in ("plain", "several"):
        own = [name for name in code_in(folder) if "/" not in name]
        assert {"configuration_more.py", "modeling_more.py", "processing_more.py", "pipelines.py"} <= set(own)
        assert set(own) <= set(code_names()) & set(recorded(Path(folder))) & set(published(Path(folder), False))
        assert set(own) <= set(OLDER)  # what an older version left on the Hub goes
        # the models of several seeds are whole models; what trainings keep to go on is none
        inner = {name.split("/")[0] for name in code_in(folder) if "/" in name}
        assert inner == ({"seed-1", "seed-2"} if folder == "several" else set())
    assert (Path("plain") / "checkpoints" / "best" / "model.safetensors").is_file()
    for name in own:
        assert Path("several", name).read_text() == Path("several/seed-1", name).read_text()


def test_code_is_not_read_where_the_package_is(here):
    Path("plain/words.py").write_text("raise RuntimeError('run')\n")
    Path("plain/crf.py").unlink()
    score = ["--model_name_or_path", "plain", "--no_do_train", "--test_file", here["other"], "--use_cpu"]
    assert "test_f1" in run_ner.main(score)
    assert "crf.py" not in json.loads(Path("plain/manifest.json").read_text())["files"]


def test_a_file_of_the_user_with_the_name_of_code_is_found_before_the_training(here, capsys):
    Path("mine").mkdir()
    Path("mine/words.py").write_text("mine = 1\n")
    assert "mine/words.py is of no run" in told(capsys, training(here, "mine"))
    assert code_in("mine") == ["words.py"]


def test_a_model_that_no_run_saved_is_replaced_with_its_code(here):
    MoReForTokenClassification.from_pretrained("plain").save_pretrained("saved")
    MoReProcessor.from_pretrained("plain").save_pretrained("saved")
    Path("saved/words.py").write_text("# of an older version\n")
    assert not Path("saved/manifest.json").exists()
    run_ner.main(training(here, "saved", "--overwrite_output_dir"))
    assert Path("saved/words.py").read_bytes() == Path("plain/words.py").read_bytes()
