"""`python -m diptych` is `diptych`."""

import sys

from diptych.cli import main

if __name__ == "__main__":
    sys.exit(main())
