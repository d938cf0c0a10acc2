"""COCO caption scores: python coco_eval.py RESULT.json ANNOTATIONS.json [OUT.json] (see metrics/coco_caption.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from metrics.coco_caption import main

if __name__ == "__main__":
    main()
