"""The method in core's ``select``, the plan, the report: what a user sees."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import paperhooks
import pytest
import torch
from paperhooks import DataError
from paperhooks.testing import tiny_text
from paperhooks_miniplm import (
    MemoryRows,
    MiniPLM,
    Row,
    ScoringWarning,
    diff,
    duplicates_of,
    open_rows,
    pack,
    plan,
    report,
    score,
    select,
)
from paperhooks_miniplm.reports import kept_by_domain
from paperhooks_miniplm.scoring.cost import forward_flops

CHUNKS = golden.packing()["a_no_bos"]["chunks"]
LABELS = [document["label"] for document in golden.corpus()]


def test_select_in_one_call_is_the_official_selection(tmp_path: Path) -> None:
    records = [{"input_ids": list(row)} for row in CHUNKS[:300]]
    chosen = paperhooks.select(
        MiniPLM(max_length=64, end=0), corpus=records, ratio=0.5, out=tmp_path, teacher=golden.fresh("teacher"),
        reference=golden.fresh("ref"),
    )  # fmt: skip
    difference = golden.scores()["diff"].numpy()[:300]
    wanted = select(difference, ratio=0.5).rows.tolist()
    near = np.flatnonzero(np.abs(difference - np.sort(difference)[-150]) < 8e-5).tolist()
    assert set(chosen.rows.tolist()) ^ set(wanted) <= set(near)
    assert len(chosen.rows) == 150
    assert len((tmp_path / "selected.jsonl").read_text().splitlines()) == 150


def test_select_by_name_on_texts(tmp_path: Path) -> None:
    texts = [document["text"][:200] for document in golden.corpus()[:12]]
    tokenizer = golden.tokenizer()
    chosen = paperhooks.select(
        "miniplm", corpus=texts, ratio=0.5, out=tmp_path, teacher=golden.fresh("teacher"),
        reference=golden.fresh("ref"), tokenizer=tokenizer,
    )  # fmt: skip
    assert len(chosen.rows) == 6
    likelihood = {}
    for name in ("teacher", "ref"):
        model, sums = golden.fresh(name), []
        for text in texts:
            ids = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], 0]])
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)
            picked = [float(logprobs[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1) if ids[0, t] != 0]
            sums.append(sum(picked) / len(picked))
        likelihood[name] = np.array(sums)
    wanted = np.argsort(-(likelihood["teacher"] - likelihood["ref"]), kind="stable")[:6]
    assert sorted(wanted.tolist()) == chosen.rows.tolist()


def test_one_call_and_the_stages_give_the_same(tmp_path: Path) -> None:
    """Also from sources that only the stages read, and with one model in both roles."""
    texts, tokenizer = [document["text"][:200] for document in golden.corpus()[:12]], golden.tokenizer()
    models = {"teacher": golden.fresh("teacher"), "reference": golden.fresh("ref")}
    staged = {
        role: score(model, texts, tmp_path / role, tokenizer=tokenizer, max_length=256, progress=False)
        for role, model in models.items()
    }
    wanted = diff(staged["teacher"], staged["reference"])
    at_once = paperhooks.score(models, texts, "miniplm", out=tmp_path / "one", tokenizer=tokenizer)
    np.testing.assert_allclose(at_once.numpy(), wanted.values, atol=1e-5)
    pack(golden.corpus()[:12], tokenizer, tmp_path / "packed", max_length=64)
    rows = open_rows(tmp_path / "packed")
    chosen = paperhooks.select(MiniPLM(max_length=64), corpus=rows, ratio=0.5, out=tmp_path / "two", **models)
    assert len(chosen.rows) == len(rows) // 2
    first = json.loads(chosen.file.read_text().splitlines()[0])
    row = rows.read([int(chosen.rows[0])])[0]
    assert (first["input_ids"], first["n_bytes"]) == (row.ids.tolist(), row.n_bytes)
    with pytest.raises(DataError, match="can only be read in order"):
        paperhooks.score(models, open_rows(iter(texts), tokenizer), "miniplm", out=tmp_path / "stream")
    with pytest.warns(ScoringWarning, match="the same model"):
        paperhooks.score({"teacher": models["teacher"], "reference": models["teacher"]}, texts[:2], "miniplm",
                         out=tmp_path / "same", tokenizer=tokenizer)  # fmt: skip


def test_byte_counts_may_be_missing(tmp_path: Path) -> None:
    models = {"teacher": golden.fresh("teacher"), "reference": golden.fresh("ref")}
    records = [{"input_ids": [1, 2, 3], "n_bytes": None}, {"input_ids": [4, 5, 6]}]
    assert paperhooks.score(models, records, MiniPLM(end=0), out=tmp_path / "a").isfinite().all()
    with pytest.raises(DataError, match="has no byte count"):
        paperhooks.score(models, records, MiniPLM(end=0, normalize="per_byte"), out=tmp_path / "b")


def test_roles_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass reference= a model"):
        paperhooks.select(
            MiniPLM(end=0), corpus=[{"input_ids": [1, 2]}], ratio=1.0, out=tmp_path, teacher=golden.fresh("ref")
        )
    with pytest.raises(DataError, match="there is no tokenizer"):
        paperhooks.select(
            MiniPLM(end=0), corpus=["text"], ratio=1.0, out=tmp_path / "b", teacher=golden.fresh("ref"),
            reference=golden.fresh("ref"),
        )  # fmt: skip


def test_a_plan_counts_what_a_profiler_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_text(layers=2, attn_implementation="eager")
    rows = MemoryRows([np.arange(3, 43)] * 6)
    found = plan({"teacher": model, "reference": model}, rows, max_length=64, sample_rows=3, workers=2, student=1000)
    assert (found.rows, found.tokens) == (6, 6 * 39)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(3, 42)[None])
    attention = 2 * 2 * 2 * 32 * 39**2  # eager attention computes both halves
    wanted = 6 * (counter.get_total_flops() - attention / 2)
    assert found.models[0].flops == pytest.approx(wanted, rel=0.02)
    assert found.models[0].tokens_per_second > 0
    assert found.hours == pytest.approx(sum(m.hours for m in found.models) / 2)
    assert found.student_flops == 6 * 1000 * 0.5 * found.tokens
    text = str(found)
    for word in ("6 rows, 234 tokens, 2 workers", "FLOPs", "tokens/s", "training one student takes"):
        assert word in text
    assert "not measured" in str(plan({"m": model}, rows, max_length=64, sample_rows=0))


def test_a_plan_of_split_rows_and_of_a_sample() -> None:
    models = {"ref": golden.fresh("ref")}
    rows = MemoryRows([np.arange(3, 203)] * 3)
    cut, split = (plan(models, rows, max_length=64, over_long=over_long) for over_long in ("truncate", "split"))
    assert (cut.tokens, split.tokens) == (3 * 64, 3 * 199)
    assert 3.0 < split.flops / cut.flops < 3.2
    assert "time not measured" in str(plan(models, rows, max_length=64, sample_rows=0))
    texts = [document["text"][:60] for document in golden.corpus()] * 10
    about = plan(models, texts, tokenizer=golden.tokenizer(), max_length=64, sample_rows=2)
    exact = int(np.minimum(open_rows(texts, golden.tokenizer()).lengths() - 1, 64).sum())
    assert about.estimated
    assert "about" in str(about)
    assert about.tokens == pytest.approx(exact, rel=0.05)


def test_a_mixture_counts_the_experts_that_a_token_meets() -> None:
    from paperhooks import ModelView

    two = tiny_text("mixtral", layers=1, num_local_experts=4, num_experts_per_tok=2)
    four = tiny_text("mixtral", layers=1, num_local_experts=4, num_experts_per_tok=4)
    lengths = np.array([11])
    experts = sum(p.numel() for p in two.parameters() if p.ndim == 3)
    less = forward_flops(ModelView.from_model(four), lengths) - forward_flops(ModelView.from_model(two), lengths)
    assert less == pytest.approx(2 * 10 * experts / 2)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The stored corpus with labels as domains, scored and cut in half."""
    folder = tmp_path_factory.mktemp("scores")
    from paperhooks_miniplm import TextRecord
    from paperhooks_miniplm.corpus.packer import pack_rows, packer_of

    documents = [TextRecord(d["text"], d["label"]) for d in golden.corpus()]
    rows = MemoryRows(list(pack_rows(documents, golden.tokenizer(), packer_of(golden.tokenizer(), max_length=64))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("teacher", "ref"):
            score(golden.fresh(name), rows, folder / name, end=0, max_length=64, progress=False)
    difference = diff(folder / "teacher", folder / "ref")
    return rows, difference, select(difference, ratio=0.5)


def test_noise_is_dropped_and_repetition_kept(scored) -> None:
    rows, difference, selection = scored
    kept = {one.domain: one for one in kept_by_domain(selection, difference, rows)}
    assert set(kept) == set(LABELS)
    assert kept["noise"].share < 0.02
    assert kept["boilerplate"].share > 0.8
    assert kept["repeat"].share > 0.9
    assert sum(one.kept_rows for one in kept.values()) == len(selection)
    assert sum(one.tokens for one in kept.values()) == int(rows.lengths().sum())


def test_the_report_shows_what_was_kept(scored, tmp_path: Path) -> None:
    rows, difference, selection = scored
    html = report(tmp_path, selection, difference, rows, tokenizer=golden.tokenizer(), duplicates=duplicates_of(rows))
    text = (tmp_path / "report.md").read_text()
    assert html.exists()
    for word in ("exact duplicates", "boilerplate", "At the cut", "look at the duplicates"):
        assert word in text
    assert 'class="columns"><div><h4>Kept</h4>' in html.read_text()
    for name in ("scores", "models", "domains"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    result = json.loads((tmp_path / "result.json").read_text())
    shares = {one["domain"]: one["share"] for one in result["results"]["kept"]}
    assert shares["noise"] < 0.02
    with pytest.raises(DataError, match="the selection is of"):
        report(tmp_path / "b", selection, difference, MemoryRows([[1]]))


def test_reports_without_domains_and_without_scores(tmp_path: Path) -> None:
    rows = MemoryRows([Row(np.array([1, 2, 3]))] * 4)
    from paperhooks_miniplm import Difference

    values = np.array([1.0, np.nan, 0.5, 2.0], dtype=np.float32)
    difference = Difference(values, values.astype(float), values.astype(float))
    report(tmp_path, select(difference, ratio=1.0), difference, rows)
    text = (tmp_path / "report.md").read_text()
    assert "1 rows have no score and are never kept. 4 rows were asked for, 3 can be taken." in text
    assert "## Domains" not in text
