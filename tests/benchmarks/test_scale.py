"""docs/scale.md shows the plan that follows from the saved figures."""

import json
from pathlib import Path

import pytest
from scale import BEGIN, END, PAGE, amount, duration, plan, with_plan


def test_the_page_is_what_the_figures_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_plan(page, plan()) == page, "run python benchmarks/scale.py --plan"


def test_rows_are_multiplied(tmp_path: Path) -> None:
    step = {"step": "index", "rows": 1000, "rows/s": 500.0, "of": "sentences: a few"}
    costs = {"bytes a row on disk": 10.0, "bytes a row in memory": "", "ms a query": 0.5}
    lite = {"rows": 1000, "values": 500, "queries/s": 100, "load rows/s": 1000}
    disk = {"disk bytes a row": 100, "disk bytes a value": 200}
    (tmp_path / "scale.json").write_text(json.dumps({"rows": [{**step, **costs}]}))
    (tmp_path / "milvus.json").write_text(json.dumps({"rows": [{**lite, **disk}]}))
    assert plan(tmp_path) == [
        {
            "step": "index",
            "rows": "200 million",
            "disk": "2 GB",
            "memory while made": "",
            "made by one core in": "4.63 days",
            "a query on one core": "100 s",
        },
        {
            "step": "milvus-lite, the texts",
            "rows": "200 million",
            "disk": "40 GB",
            "memory while made": "",
            "made by one core in": "3.47 days",
            "a query on one core": "33.3 min",
        },
    ]


def test_words_for_amounts() -> None:
    assert [amount(size) for size in (12, 3.4e6, 2e9, 1.5e12)] == ["12 bytes", "3.4 MB", "2 GB", "1.5 TB"]
    assert [duration(s) for s in (0.01, 5, 600, 9000, 4e5)] == ["10 ms", "5 s", "10 min", "2.5 h", "4.63 days"]
    with pytest.raises(ValueError, match="lacks the lines"):
        with_plan(f"{END} {BEGIN}"[:10], [])
