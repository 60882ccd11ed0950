"""`python -m optgen` is `optgen`."""

import sys

from optgen.cli import main

if __name__ == "__main__":
    sys.exit(main())
