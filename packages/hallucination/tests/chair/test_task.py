"""The task chair: reading the published forms, faults listed together, figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hallucination_data import REFERENCE, metric, records
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend, Request
from paperhooks.reports import wilson_interval
from paperhooks_evaluation import evaluate, rescore
from paperhooks_hallucination import Chair

CAPTIONS = ["A man with his dogs; a cat and a cat look on.", "A toilet seat.", ""]


def test_chair_reads_coco(coco_folder: Path, tmp_path: Path):
    """All images, a list of them, a drawn sample; the paper's prompt and limits."""
    task = Chair()
    documents = task.documents(str(coco_folder))
    assert [one.id for one in documents] == ["3", "7", "11"]
    assert documents[0].data["categories"] == ["dog", "person"]
    assert documents[0].data["references"] == ["A man walks his puppy.", "Two frisbees."]
    request = Chair(max_new_tokens=64).request(documents[0])
    assert request.max_new_tokens == 64
    assert request.messages[0]["content"][1]["text"] == "Please describe this image in detail."
    for name, text in (("a.jsonl", '{"image_id": 11}\n{"image_id": 3}'), ("a.txt", "11 3"), ("a.json", "[11, 3]")):
        (tmp_path / name).write_text(text)
        assert [one.id for one in Chair(ids=str(tmp_path / name)).documents(str(coco_folder))] == ["11", "3"]
    drawn = {tuple(one.id for one in Chair(sample=2, seed=s).documents(str(coco_folder))) for s in range(12)}
    assert len(drawn) > 1
    assert {len(ids) for ids in drawn} == {2}
    assert [one.id for one in Chair(sample=0).documents(str(coco_folder))] == ["3", "7", "11"]


def test_chair_figures_by_hand(coco_folder: Path):
    """Truth from instances and captions; C_S, C_I, recall, length; the score is 1 for a clean caption."""
    task = Chair()
    documents = task.documents(str(coco_folder))
    made = records(task, documents, CAPTIONS, "official")
    assert [one.score for one in made] == [0.0, 1.0, 1.0]
    assert made[0].parsed.value["truth"] == ["dog", "frisbee", "person"]
    assert made[0].parsed.value["hallucinated"] == [["cat", "cat", 7], ["cat", "cat", 10]]
    assert [one.parsed.fallback for one in made] == [False, False, True]
    assert records(task, documents[:1], ["...!"], "official")[0].parsed.fallback, "marks are no caption"
    summary = task.aggregate(made, "official")
    expected = {"chair_s": (1 / 3, 3), "chair_i": (2 / 5, 5), "recall": (3 / 6, 6), "length": ((14 + 3 + 0) / 3, 3)}
    for name, (value, n) in expected.items():
        found = metric(summary, name)
        assert found.value == pytest.approx(value, rel=1e-12), name
        assert found.n == n
        assert found.low <= found.value <= found.high
    assert (metric(summary, "chair_s").low, metric(summary, "chair_s").high) == wilson_interval(1, 3)
    assert metric(summary, "empty").value == pytest.approx(1 / 3)
    assert not metric(summary, "chair_i").higher_is_better
    assert "POPE" in summary.tables[0].caption


def test_chair_takes_the_published_table(coco_folder: Path, tmp_path: Path):
    """As JSON, or as text in which a second blank stays in front of the word; it is part of what decides the scores."""
    rows = json.loads((REFERENCE / "chair_synonyms.json").read_text())["rows"]
    text = tmp_path / "synonyms.txt"
    text.write_text("\n".join(", ".join(row) for row in rows))
    tasks = [Chair(synonyms=str(REFERENCE / "chair_synonyms.json")), Chair(synonyms=str(text))]
    document = Chair().documents(str(coco_folder))[2]
    for task in tasks:
        assert task.parse(document, "a motor bike and a villager", "official").value["hallucinated"] == [
            ["villager", "person", 5]
        ]
        strict = task.parse(document, "a motor bike and a villager", "strict").value["hallucinated"]
        assert [name for _, name, _ in strict] == ["motorcycle", "person"]
    assert tasks[0].fingerprint() == tasks[1].fingerprint() == Chair().fingerprint()
    assert tasks[0].scoring("strict") == (before := tasks[1].scoring("official")) != Chair().scoring("official")
    text.write_text(text.read_text() + "\n")
    assert tasks[1].scoring("official") == before
    text.write_text(text.read_text().replace("villager", "settler"))
    assert tasks[1].scoring("official") != before
    assert not tasks[1].parse(document, "a villager", "official").value["hallucinated"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no synonym table"):
        Chair(synonyms=str(tmp_path / "empty.txt")).documents(str(coco_folder))
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        Chair(synonyms=str(tmp_path / "none.txt")).documents(str(coco_folder))


def test_chair_lists_all_faults(coco_folder: Path, tmp_path: Path):
    """Unknown and double ids, a missing image, a category without row; and what the folder lacks."""
    (tmp_path / "ids.txt").write_text("3 7 7 99")
    (coco_folder / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
    file = coco_folder / "annotations" / "instances_val2014.json"
    file.write_text(file.read_text().replace('"toilet"', '"throne"'))
    with pytest.raises(DataError) as caught:
        Chair(ids=str(tmp_path / "ids.txt")).documents(str(coco_folder))
    message = str(caught.value)
    assert "image 7: is listed 2 times" in message
    assert "image 99: is not in the annotations" in message
    assert "image 3: the file COCO_val2014_000000000003.jpg is missing" in message
    assert "category 'throne': is in no row of the synonym table" in message
    with pytest.raises(DataError, match=r"is no list of image ids"):
        Chair(ids=str(file.with_name("captions_val2014.json"))).documents(str(coco_folder))
    file.write_text("[]")
    with pytest.raises(DataError, match="is not in COCO's form"):
        Chair().documents(str(coco_folder))
    file.unlink()
    with pytest.raises(DataError, match=r"has no instances_\*\.json"):
        Chair().documents(str(coco_folder))
    with pytest.raises(DataError, match="did you mean 'nltk'"):
        Chair(lemmas="nltkk")


def test_captions_are_scored_again_with_another_table(coco_folder: Path, tmp_path: Path):
    """Lemmas and synonyms change scores only; what decides them is recorded, so that runs are told apart."""
    table = tmp_path / "synonyms.txt"
    rows = json.loads((REFERENCE / "chair_synonyms.json").read_text())["rows"]
    table.write_text("\n".join(", ".join(row) for row in rows))
    calls: list[str] = []

    def answer(request: Request) -> str:
        calls.append(request.metadata["id"])
        return "a villager"

    for name, mentions in (("", 0), (str(table), 3)):
        result = evaluate(
            CallableBackend(answer), None, Chair(synonyms=name), data=coco_folder, out=tmp_path / "run", report=False
        )
        assert result.metric("chair_i").n == mentions
        scoring = json.loads((tmp_path / "run" / "results.json").read_text())["paperhooks"]["modes"]["strict"][
            "scoring"
        ]
        assert scoring == Chair(synonyms=name).scoring("strict")
    assert calls == ["3", "7", "11"]
    assert rescore(tmp_path / "run", Chair(), report=False).metric("chair_i").n == 0
