"""Build WikiDiverse: Wikinews captions with images; entities of the types that its training split has.

python dataset_scripts/wikidiverse.py --data_dir DATA --retrieval text --knowledge FILE... --output_dir OUT
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_scripts._builders import NerBuilder


class Builder(NerBuilder):
    """A builder of WikiDiverse, with configurations none, text and image."""

    NAME = "wikidiverse"
    ARCHIVE = "WikiDiverseNER"
    TITLE = "WikiDiverse"
    CREDIT = (
        "Wang et al., ACL 2022 (wangxw5/wikiDiverse); texts from Wikinews under its CC BY licence, each "
        "image under its own."
    )
    TYPES = None
    ROWS = (6312, 755, 757)
    MENTIONS = (13205, 1552, 1570)


if __name__ == "__main__":
    from dataset_scripts._publish import main

    sys.exit(main("wikidiverse"))
