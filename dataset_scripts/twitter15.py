"""Twitter-2015.

python dataset_scripts/twitter15.py --data_dir DATA --retrieval text --knowledge FILE... --output_dir OUT
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_scripts._common import NerBuilder


class Builder(NerBuilder):
    """Twitter-2015."""

    NAME = "twitter15"
    ARCHIVE = "twitter2015"
    TITLE = "Twitter-2015"
    CREDIT = ""
    TYPES = ("PER", "LOC", "ORG", "OTHER")
    ROWS = (4000, 1000, 3257)


if __name__ == "__main__":
    from dataset_scripts._publish import main

    sys.exit(main("twitter15"))
