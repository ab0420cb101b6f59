"""On SmolLM2-135M-Instruct and real text: scores are those of its own logits in float64. Takes a minute."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from paperhooks_miniplm import LogLikelihood, ScoringWarning, TextRecord
from paperhooks_miniplm.corpus.packer import pack_rows, packer_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LENGTH, ROWS = 128, 13


def test_scores_are_those_of_the_models_own_logits() -> None:
    testbed = pytest.importorskip("paperhooks_testbed")
    model, tokenizer = testbed.load_smollm2()
    tokenizer.eos_token = "<|endoftext|>"
    texts = (TextRecord(one.text[:900], one.domain) for one in testbed.documents(min_chars=300))
    packer = packer_of(tokenizer, max_length=LENGTH)
    rows = [row.ids for row in itertools.islice(pack_rows(texts, tokenizer, packer), ROWS)]
    rows[3] = rows[3][:40]  # rows of one length would need no padding
    end = tokenizer.eos_token_id
    assert any((row[:-1] == end).any() for row in rows), "no row holds the end of a document"
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScoringWarning)  # the head must be proven
        found = LogLikelihood(model, end, LENGTH).score(rows)
    for row, nll, count in zip(rows, found.nll, found.count, strict=True):
        ids = torch.from_numpy(row)
        with torch.no_grad():
            logits = model(input_ids=ids[None, :-1]).logits[0].double()
        losses = logits.logsumexp(-1) - logits.gather(-1, ids[1:, None])[:, 0]
        counted = ids[:-1] != end
        assert count == int(counted.sum())
        assert nll / count == pytest.approx(float(losses[counted].mean()), abs=2e-4)
    assert np.isfinite(found.nll).all()
    assert 1.0 < found.nll.sum() / found.count.sum() < 4.0, "real text has a loss of some nats under a trained model"
