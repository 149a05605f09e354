"""All targets of the fuzzer, by name."""

from fuzz_files import FILES
from fuzz_folders import FOLDERS
from fuzz_verdict import Target

TARGETS: dict[str, Target] = {**FILES, **FOLDERS}
