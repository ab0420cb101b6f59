"""One of several processes that train together: ``torchrun distilling_process.py KIND FOLDER``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import golden
import torch
from paperhooks_miniplm import Distil, DistilTerm
from safetensors.torch import save_file
from test_distilling import trained, uneven

KINDS = {"distil": Distil, "distil-term": DistilTerm}


def main(kind: str, reduction: str, folder: Path) -> None:
    """Train on four rows, two a process; the first process leaves weights and log."""
    torch.set_num_threads(1)
    method = KINDS[kind](golden.teacher(), reduction=reduction)
    weights, log = trained(folder / "trainer", method, uneven(), per_device_train_batch_size=2)
    if os.environ["RANK"] == "0":
        save_file({"weights": weights}, folder / "weights.safetensors")
        (folder / "log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
