"""`python -m hpcrl`: the same as the console script."""

import sys

from hpcrl.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
