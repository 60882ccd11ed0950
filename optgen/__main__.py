"""`python -m optgen` is `optgen`."""

import sys

from optgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
