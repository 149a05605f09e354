"""Build MNRE (version 2): pairs of entities in tweets with images, 22 relations and None.

python dataset_scripts/mnre.py --data_dir DATA --retrieval text --knowledge FILE... --output_dir OUT
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_scripts._builders import RelationBuilder


class Builder(RelationBuilder):
    """A builder of MNRE, with configurations none, text and image."""

    NAME = "mnre"
    ARCHIVE = "mnre"
    TITLE = "MNRE"
    CREDIT = (
        "Zheng, Feng, Fu, Cai, Li and Wang, ACM Multimedia 2021; raw files as in thecharm/MNRE, version 2. No licence "
        "is stated: using the tweets means accepting the copyrights of Twitter and of the data set's providers."
    )
    LABELS = (
        "None",
        "/per/per/peer",
        "/per/org/member_of",
        "/loc/loc/contain",
        "/per/misc/present_in",
        "/org/loc/locate_at",
        "/per/loc/place_of_residence",
        "/misc/loc/held_on",
        "/org/org/subsidiary",
        "/per/per/alternate_names",
        "/per/per/couple",
        "/per/misc/nationality",
        "/misc/misc/part_of",
        "/org/org/alternate_names",
        "/per/loc/place_of_birth",
        "/per/misc/awarded",
        "/per/per/charges",
        "/per/per/parent",
        "/per/per/siblings",
        "/per/per/alumi",
        "/per/per/neighbor",
        "/per/misc/race",
        "/per/misc/religion",
    )
    ROWS = (12247, 1624, 1614)


if __name__ == "__main__":
    from dataset_scripts._publish import main

    sys.exit(main("mnre"))
