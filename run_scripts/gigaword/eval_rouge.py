"""ROUGE F1 of summaries: python eval_rouge.py RESULT.json (see metrics/rouge.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from metrics.rouge import main

if __name__ == "__main__":
    main()
