"""Serve the page of MoRe, from a checkout or as a Space; its code is modeling_more/page.py.

python spaces/more/app.py --model FOLDER_OR_ID
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
if (ROOT / "modeling_more").is_dir():  # run by its path in a checkout
    sys.path.insert(0, str(ROOT))
ARGUMENTS_FIRST = True  # the package then imports no library yet: help and mistyped options are answered at once

from modeling_more.page import main  # noqa: E402

if __name__ == "__main__":
    main()
