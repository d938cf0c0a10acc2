"""Inception score of a folder: python inception_score.py --path1 A (see metrics/fid.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from metrics.fid import inception_score_main

if __name__ == "__main__":
    sys.exit(inception_score_main())
