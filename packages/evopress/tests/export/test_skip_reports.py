"""What readers print of weights that a skip list leaves out on purpose."""

from __future__ import annotations

import logging
from pathlib import Path

import paperhooks
import torch
from paperhooks.testing import tiny_llama
from paperhooks_evopress import EvoPress
from paperhooks_evopress.export import load_skipped, skip_list


def test_reading_a_skip_list_is_quiet_and_other_loading_is_not(tmp_path: Path) -> None:
    model = tiny_llama(layers=3)
    generator = torch.Generator().manual_seed(0)
    data = [torch.randint(3, 90, (20,), generator=generator).tolist() for _ in range(4)]
    search = EvoPress(schedule="quick", generations=0, check_model=False, finalists=0)
    artefact = paperhooks.compress(model, search, data=data, target="depth=1", progress=False)
    folder = skip_list(model, artefact, tmp_path / "out")
    logger, said = logging.getLogger("transformers.modeling_utils"), []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Collector()
    logger.addHandler(handler)
    filters = list(logger.filters)
    try:
        load_skipped(folder)
        assert not any("MISSING" in text for text in said)
        assert logger.filters == filters
        type(model).from_pretrained(folder)
        assert any("MISSING" in text for text in said)
    finally:
        logger.removeHandler(handler)
