"""`python -m data.demo`: see digits/__main__.py."""

import sys

from digits.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
