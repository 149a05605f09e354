"""Build SNAP: tweets with images, entities PER, LOC, ORG and MISC; the larger copy behind Twitter-2017.

python dataset_scripts/snap.py --data_dir DATA --retrieval text --knowledge FILE... --output_dir OUT
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_scripts._builders import NerBuilder


class Builder(NerBuilder):
    """A builder of SNAP, with configurations none, text and image."""

    NAME = "snap"
    ARCHIVE = "snap"
    TITLE = "SNAP"
    CREDIT = (
        "Lu, Neves, Carvalho, Zhang and Ji, ACL 2018. Bring your own copy or the authors' archive; what you "
        "publish of it needs the consent of its providers."
    )
    TYPES = ("PER", "LOC", "ORG", "MISC")
    ROWS = (4290, 1432, 1459)


if __name__ == "__main__":
    from dataset_scripts._publish import main

    sys.exit(main("snap"))
