"""Benchmarks' figures reach docs/results.md only from their files, and the page in the repository is up to date."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report import BEGIN, END, main, read_results

from _common import write_result

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_in_the_repository_is_what_the_files_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr


def test_write_report_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "results", tmp_path / "docs" / "results.md"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    options = ["--results_dir", str(results), "--output", str(page), "--readme", str(readme)]
    rows = [{"system": "ours", "F1": 83.456, "runs": 3}, {"system": "theirs", "F1": None, "runs": 1}]
    write_result(
        "b_scores", "Twitter-2017 (test)", rows, note="Three seeds.", command="python x.py", results_dir=results
    )
    write_result("demo", "The demo", [{"system": "text", "F1": 90.0}], command="python y.py", results_dir=results)
    path = write_result("a_speed", "Speed", [{"queries/s": 856.0}], results_dir=results)
    assert main([*options, "--check"]) == 1
    assert main(options) == 0
    assert main([*options, "--check"]) == 0
    text = page.read_text()
    assert text.index("## Speed") < text.index("## Twitter-2017 (test)")
    assert "(#twitter-2017-test)" in text
    assert "| ours | 83.46 | 3 |\n| theirs | – | 1 |" in text
    assert "Three seeds." in text and "```bash\npython x.py\n```" in text
    written = json.loads(path.read_text())
    assert written["machine"] in text and f"commit {written['commit']}" in text
    assert written["versions"]["torch"].startswith("2.") and "cores" in written["machine"]
    shown = readme.read_text()
    assert shown.startswith("before\n") and shown.endswith("after\n") and "| text | 90.00 |" in shown
    assert "old" not in shown and "Speed" not in shown
    assert sorted(results.iterdir()) == [results / f"{name}.json" for name in ("a_speed", "b_scores", "demo")]
    path.write_text(json.dumps(written | {"rows": [{"queries/s": 857.0}]}))
    assert main([*options, "--check"]) == 1
    assert "stale" in capsys.readouterr().err


def test_bad_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no rows"):
        write_result("x", "X", [], results_dir=tmp_path)
    with pytest.raises(ValueError, match="Row 1"):
        write_result("x", "X", [{"a": 1}, {"b": 1}], results_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bad.json").write_text('{"benchmark": "bad",\n oops}')
    with pytest.raises(ValueError, match=r"bad\.json, line 2"):
        read_results(tmp_path)
    assert main(["--results_dir", str(tmp_path), "--output", str(tmp_path / "page.md")]) == 2
    assert "bad.json" in capsys.readouterr().err and not (tmp_path / "page.md").exists()
