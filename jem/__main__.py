"""`python -m jem`: the same as the `jem` command."""

import sys

from jem.cli import main

if __name__ == "__main__":
    sys.exit(main())
