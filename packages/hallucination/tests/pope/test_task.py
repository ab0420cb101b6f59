"""The task pope: reading the published forms, faults listed together, figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hallucination_data import metric, parquet, png_files, pope_rows, records, write_lines
from paperhooks.errors import DataError
from paperhooks.reports import wilson_interval
from paperhooks_evaluation import Document, evaluate
from paperhooks_hallucination import Pope
from paperhooks_hallucination.pope import SPLITS, SUFFIX
from paperhooks_hallucination.pope import metrics as pope
from paperhooks_hallucination.pope.task import CAUTION


def test_pope_reads_the_published_files(pope_folder: Path):
    """Documents in order, grouped by source and split; the request shows the image and the paper's prompt."""
    task = Pope()
    documents = task.documents(str(pope_folder))
    assert [one.id for one in documents[:2]] == ["coco-adversarial-0", "coco-adversarial-1"]
    assert {one.groups["split"] for one in documents} == set(SPLITS)
    assert {one.groups["source"] for one in documents} == {"coco"}
    assert len(documents) == 72
    request = task.request(documents[0])
    shown, text = request.messages[0]["content"]
    assert shown == {"type": "image"}
    assert text["text"] == "Is there a thing0 in the image?\nAnswer the question using a single word or phrase."
    assert request.images[0].open().size == (8, 8)
    assert request.max_new_tokens == 128
    assert task.unit(documents[0]) == task.unit(documents[5]) != task.unit(documents[6])
    short = Pope(instruction="", max_new_tokens=4).request(documents[0])
    assert short.messages[0]["content"][1]["text"] == "Is there a thing0 in the image?"


def test_pope_reads_other_layouts(pope_folder: Path, tmp_path: Path):
    """Other sources, files in folders of their own, images elsewhere, a single file."""
    write_lines(pope_folder / "aokvqa" / "aokvqa_pope_seem_random.json", pope_rows(6))
    write_lines(pope_folder / "gqa" / "gqa_pope_popular.json", pope_rows(6))
    groups = {(one.groups["source"], one.groups["split"]) for one in Pope().documents(str(pope_folder))}
    assert groups == {*(("coco", split) for split in SPLITS), ("aokvqa", "random"), ("gqa", "popular")}
    alone = tmp_path / "alone" / "coco_pope_random.json"
    write_lines(alone, pope_rows(6))
    elsewhere = Pope(images=str(pope_folder / "val2014")).documents(str(alone))
    assert elsewhere[0].place["picture"] == str(pope_folder / "val2014" / "COCO_val2014_000000000000.jpg")


def test_pope_reads_the_question_file_of_llava(pope_folder: Path):
    """Questions with the prompt inside, the split as category, and no labels: those are beside it."""
    rows = pope_rows(24)
    asked = [
        {"question_id": 24 * k + i, "image": row["image"], "text": row["text"] + SUFFIX, "category": split}
        for k, split in enumerate(SPLITS)
        for i, row in enumerate(rows)
    ]
    file = pope_folder / "llava_pope_test.jsonl"
    write_lines(file, asked)
    documents = Pope().documents(str(file))
    assert [one.data["label"] for one in documents] == [row["label"] for row in rows] * 3
    assert documents[30].id == "coco-popular-30"
    assert documents[30].data["question"] == rows[6]["text"]
    write_lines(file, [{**row, "label": "no"} for row in asked])
    assert {one.data["label"] for one in Pope().documents(str(file))} == {"no"}
    assert len(Pope().documents(str(pope_folder))) == 72, "the folder's own files are read once"


def test_pope_lists_all_faults(pope_folder: Path):
    """A missing image, a label, a double id, a broken line, a category: one error."""
    rows = pope_rows(24)
    rows[0]["label"] = "maybe"
    rows[3]["question_id"] = 2
    rows[7]["image"] = "gone.jpg"
    write_lines(pope_folder / "coco_pope_random.json", rows)
    with (pope_folder / "coco_pope_random.json").open("a") as handle:
        handle.write('{"question_id": 9')
    write_lines(pope_folder / "x.jsonl", [{**rows[1], "category": "populr"}])
    with pytest.raises(DataError) as caught:
        Pope().documents(str(pope_folder))
    message = str(caught.value)
    assert "it has 4 faults" in message
    assert "coco_pope_random.json:1: the label is 'maybe'; expected 'yes' or 'no'" in message
    assert "coco_pope_random.json:8: the image gone.jpg is missing" in message
    assert "coco-random-2: occurs twice" in message
    assert "coco_pope_random.json:25: is not JSON" in message
    with pytest.raises(DataError, match="the category is 'populr'; did you mean 'popular'"):
        Pope().documents(str(pope_folder / "x.jsonl"))


def test_pope_says_what_it_cannot_find(tmp_path: Path):
    """No folder, no files in it."""
    with pytest.raises(DataError, match="neither a folder or file here nor the name of a hub data set"):
        Pope().documents(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"expected names such as coco_pope_random\.json"):
        Pope().documents(str(tmp_path))


def test_pope_figures_agree_with_the_pure_functions(pope_folder: Path):
    """Every split by hand, their mean, Wilson's intervals, the unparsable share; the caution is in the report."""
    task, generator = Pope(), np.random.default_rng(0)
    documents = task.documents(str(pope_folder))
    responses = generator.choice(["Yes", "No", "NO", "I cannot tell", "Yes, there is."], size=len(documents)).tolist()
    for mode in task.modes:
        summary = task.aggregate(records(task, documents, responses, mode), mode)
        by_split = []
        for split in SPLITS:
            pairs = zip(responses, documents, strict=True)
            rows = [(response, one.data["label"]) for response, one in pairs if one.groups["split"] == split]
            scores = pope.pope_scores(*zip(*rows, strict=True), mode=mode)
            by_split.append(scores)
            for name in ("accuracy", "f1", "precision", "recall", "yes_ratio"):
                assert metric(summary, name, split).value == pytest.approx(getattr(scores, name), rel=1e-12)
            found = metric(summary, "accuracy", split)
            assert (found.low, found.high) == wilson_interval(scores.tp + scores.tn, 24)
            assert (found.n, found.interval) == (24, "wilson")
        for name in ("accuracy", "f1", "recall"):
            found = metric(summary, name)
            assert found.value == pytest.approx(np.mean([getattr(one, name) for one in by_split]), rel=1e-12)
            assert found.low <= found.value <= found.high
            assert (found.n, found.interval) == (72, "bootstrap")
        unclear = [
            response
            for response in responses
            if response not in (("Yes", "No", "NO") if mode == "strict" else ("Yes", "No"))
        ]
        plain = [response for response in unclear if mode == "strict" or not response.startswith("Yes")]
        assert metric(summary, "unparsable").value == pytest.approx(len(plain) / 72)
        assert summary.metrics[0].name == "accuracy"
        assert CAUTION in summary.tables[0].caption
        assert [row[0] for row in summary.tables[0].rows][-1] == "mean over splits"


def test_pope_intervals_follow_the_images():
    """Answers that hang together within an image widen the interval; splits share images."""
    task = Pope()

    def document(i: int) -> Document:
        data = {"label": "yes" if i % 2 else "no", "image": f"{i // 20}.jpg", "source": "coco", "question": ""}
        return Document(f"coco-random-{i}", {"split": "random", "source": "coco"}, data)

    documents = [document(i) for i in range(400)]
    right = [one.data["label"].capitalize() for one in documents]
    wrong = ["No" if response == "Yes" else "Yes" for response in right]
    clustered = [right[i] if i // 20 % 2 else wrong[i] for i in range(400)]
    order = np.random.default_rng(0).permutation(400)
    mixed = [right[i] if order[i] % 2 else wrong[i] for i in range(400)]
    widths = []
    for responses in (clustered, mixed):
        found = metric(task.aggregate(records(task, documents, responses, "official"), "official"), "f1")
        assert found.value == pytest.approx(0.5, abs=0.05)
        widths.append(found.high - found.low)
    assert widths[0] > 3 * widths[1]


def test_perfect_answers_are_no_certainty(pope_folder: Path):
    """Where every resample is alike, Wilson's interval over images stands in, or none."""
    task = Pope()
    documents = task.documents(str(pope_folder))
    responses = [one.data["label"].capitalize() for one in documents]
    summary = task.aggregate(records(task, documents, responses, "official"), "official")
    perfect = metric(summary, "f1", "random")
    assert (perfect.low, perfect.high, perfect.interval) == (*wilson_interval(4, 4), "wilson over clusters")
    assert metric(summary, "accuracy").low == wilson_interval(4, 4)[0]
    half = metric(summary, "yes_ratio")
    assert (half.value, half.low, half.interval) == (0.5, None, "")


def test_pope_means_by_source(pope_folder: Path):
    """With several sources there is a mean of each of them, of each split, and one over everything."""
    write_lines(pope_folder / "gqa" / "gqa_pope_random.json", pope_rows(6))
    task = Pope()
    documents = task.documents(str(pope_folder))
    responses = ["Yes" if one.data["source"] == "gqa" else one.data["label"].capitalize() for one in documents]
    summary = task.aggregate(records(task, documents, responses, "official"), "official")
    assert metric(summary, "accuracy", "coco").value == 1.0
    assert metric(summary, "accuracy", "gqa").value == metric(summary, "accuracy", "gqa-random").value == 0.5
    assert metric(summary, "accuracy").value == pytest.approx((3 * 1.0 + 0.5) / 4)
    assert metric(summary, "accuracy", "random").value == pytest.approx((1.0 + 0.5) / 2)
    assert (metric(summary, "accuracy", "random").n, metric(summary, "accuracy", "popular").value) == (30, 1.0)
    parts = list(dict.fromkeys(one.part for one in summary.metrics))
    assert parts == [
        *("", "source=coco", "source=gqa", "split=adversarial", "split=popular", "split=random"),
        *(f"source_split={name}" for name in ("coco-adversarial", "coco-popular", "coco-random", "gqa-random")),
    ]


def test_pope_reads_hub_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The columns of lmms-lab/POPE; images are decoded when they are asked for."""
    files = png_files(tmp_path / "png", 4)
    columns = {
        "question_id": ["1", "2", "1", "2"],
        "question": ["Is there a dog in the image?"] * 4,
        "answer": ["yes", "no", "no", "yes"],
        "image_source": ["COCO_val2014_000000000001"] * 2 + ["COCO_val2014_000000000002"] * 2,
        "category": ["adversarial", "adversarial", "random", "random"],
        "image": files,
    }
    parquet(tmp_path / "hub", columns, monkeypatch)
    task = Pope()
    documents = task.documents(str(tmp_path / "hub"))
    assert [one.id for one in documents] == [
        "coco-adversarial-1",
        "coco-adversarial-2",
        "coco-random-1",
        "coco-random-2",
    ]
    assert [one.data["label"] for one in documents] == columns["answer"]
    assert task.request(documents[3]).images[0].open().getpixel((0, 0)) == (30, 0, 0)
    parquet(tmp_path / "lacking", {"question": ["a"], "image": files[:1]}, monkeypatch)
    with pytest.raises(DataError, match="has no column question_id, answer, image_source, category"):
        task.documents(str(tmp_path / "lacking"))


def test_an_unreachable_hub_name_is_one_sentence():
    """A name that is neither a folder nor can be loaded."""
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="nobody/nothing is no folder here and its split 'test' cannot be loaded"):
        Pope().documents("nobody/nothing")


def test_the_test_bed_sees_what_is_there(tmp_path: Path):
    """POPE on the test bed: rendered scenes as a published folder, the trained model, figures as counted directly."""
    testbed = pytest.importorskip("paperhooks_testbed")
    folder = tmp_path / "scenes"
    for split in ("random", "adversarial"):
        rows = []
        for i, question in enumerate(testbed.pope_questions("test", split, 12)):
            name = f"scene_{question.scene_index}.png"
            if not (folder / "images" / name).exists():
                (folder / "images").mkdir(parents=True, exist_ok=True)
                question.image().save(folder / "images" / name)
            rows.append({"question_id": i, "image": name, "text": question.text, "label": question.answer})
        write_lines(folder / f"scenes_pope_{split}.json", rows)
    model, processor = testbed.load_vlm()
    task = Pope(instruction="", max_new_tokens=2)
    result = evaluate(model, processor, task, data=str(folder), out=tmp_path / "run", batch_size=4)
    questions = [q for split in ("adversarial", "random") for q in testbed.pope_questions("test", split, 12)]
    said = testbed.answer(model, processor, [q.image() for q in questions], [testbed.prompt(q) for q in questions])
    assert [one.response for one in result.first.records] == said
    expected = pope.pope_scores(said[:12], [question.answer for question in questions[:12]])
    assert metric(result.summary, "accuracy", "adversarial").value == pytest.approx(expected.accuracy)
    assert metric(result.summary, "f1", "adversarial").value == pytest.approx(expected.f1)
    assert metric(result.summary, "accuracy").value > 0.8
    strict = result.modes["strict"].summary
    assert metric(strict, "accuracy").value == metric(result.summary, "accuracy").value
    assert metric(strict, "unparsable").value == 0.0


@pytest.mark.parametrize(
    "response", ["I am not sure.", "no idea", "There is no way to tell", "maybe", "", "NO", "Yes, no"]
)
def test_what_is_no_plain_answer_is_reported_whatever_it_counts_as(response: str):
    """The published reading takes a word that says nothing for a denial; it is counted as unparsable all the same."""
    document = Document("a", data={"label": "no"})
    found = Pope().parse(document, response, "official")
    assert (found.value, found.fallback) == (pope.parse_official(response), True)
    assert Pope().parse(document, response, "strict").fallback == (response != "NO")
    for plain in ("No", "no, there is not", "Yes", "Yes, there is."):
        assert not Pope().parse(document, plain, "official").fallback
