"""Fails where the demo's figures are below what the README promises. Usage: demo_holds.py demo/summary.json"""

import json
import sys
from pathlib import Path

AUROC, SHARE_WITHIN_ONE_CELL = 0.95, 0.80

summary = json.loads(Path(sys.argv[1]).read_text())
auroc = summary["evaluation"]["metrics"]["auroc"]["value"]
place = summary["localisation"]
print(
    f"demo: AUROC {auroc:.3f}, peak within one cell {place['share_within_one_cell']:.2f}, by chance {place['share_by_chance']:.2f}"
)
sys.exit(
    0 if auroc > AUROC and place["share_within_one_cell"] >= SHARE_WITHIN_ONE_CELL else "the demo's figures are too low"
)
