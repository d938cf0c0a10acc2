"""FID of two folders or statistics: python fid_score.py --path1 A --path2 B (see metrics/fid.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from metrics.fid import fid_main

if __name__ == "__main__":
    sys.exit(fid_main())
