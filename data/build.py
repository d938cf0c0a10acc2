"""`python -m data.build`: see data/builders/build.py."""

import sys

from data.builders.build import main

if __name__ == "__main__":
    sys.exit(main())
