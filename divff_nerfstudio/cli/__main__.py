"""``python -m divff_nerfstudio.cli`` is ``divff``."""

import sys

from divff_nerfstudio.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
