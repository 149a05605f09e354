"""Build Twitter-2017: tweets with images, entities PER, LOC, ORG and MISC.

python dataset_scripts/twitter17.py --data_dir DATA --retrieval text --knowledge FILE... --output_dir OUT
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_scripts._builders import NerBuilder


class Builder(NerBuilder):
    """A builder of Twitter-2017, with configurations none, text and image."""

    NAME = "twitter17"
    ARCHIVE = "twitter2017"
    TITLE = "Twitter-2017"
    CREDIT = (
        "Lu, Neves, Carvalho, Zhang and Ji, ACL 2018; raw files as in jefferyYu/UMT. No licence is stated: "
        "using the tweets means accepting the copyrights of Twitter and of the data set's providers."
    )
    TYPES = ("PER", "LOC", "ORG", "MISC")
    ROWS = (3373, 723, 723)


if __name__ == "__main__":
    from dataset_scripts._publish import main

    sys.exit(main("twitter17"))
