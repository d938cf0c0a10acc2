"""`python -m utils.image_codes`: see data/builders/image_codes.py."""

import sys

from data.builders.image_codes import main

if __name__ == "__main__":
    sys.exit(main())
