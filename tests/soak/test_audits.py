"""A training, its resume, and what is loaded from a Hub run nothing, unpickle nothing and connect to nothing else."""

from pathlib import Path

from audits import audited

from hub_server import LocalHub

RUNS = ("training and push", "resume", "push of a corpus", "load from the Hub")
#: beginnings of the reasons that may be: Python's and other libraries' own ways, and numba's cache
ALLOWED = (
    "an installed module", "numba ", "text is parsed to a tree", "transformers reads", "torch writes",
    "the process's own", "a data class of", "connects to an address that the test allows",
)  # fmt: skip


def test_nothing_but_the_known_is_run_unpickled_started_or_connected_to(tmp_path: Path, hub: LocalHub) -> None:
    found = {one["run"]: one for one in audited(tmp_path, hub, RUNS)}
    assert tuple(found) == RUNS
    for name, one in found.items():
        assert not one["found"], (name, [(event["event"], event["what"]) for event in one["found"]])
        assert one["reasons"] and all(reason.startswith(ALLOWED) for reason in one["reasons"]), name
