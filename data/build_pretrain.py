"""`python -m data.build_pretrain`: see data/builders/pretrain.py."""

import sys

from data.builders.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
