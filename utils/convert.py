"""`python -m utils.convert`: see models/weights/convert.py."""

import sys

from models.weights.convert import main

if __name__ == "__main__":
    sys.exit(main())
