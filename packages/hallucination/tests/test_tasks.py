"""The tasks pope, mme and chair: reading published forms, faults listed together, figures, runs end to end."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend
from paperhooks.plugins import import_target
from paperhooks.reports import wilson_interval
from paperhooks_evaluation import Document, Metric, Record, Summary, Task, evaluate, rescore
from paperhooks_hallucination import Chair, Mme, Pope
from paperhooks_hallucination.chair import objects as chair_objects
from paperhooks_hallucination.mme import metrics as mme
from paperhooks_hallucination.mme.task import INSTRUCTION
from paperhooks_hallucination.plugin import TASKS
from paperhooks_hallucination.pope import SPLITS, SUFFIX
from paperhooks_hallucination.pope import metrics as pope
from paperhooks_hallucination.pope.task import CAUTION
from PIL import Image

REFERENCE = Path(__file__).parent / "reference"


def write_image(file: Path, colour: tuple[int, int, int] = (200, 30, 30)) -> None:
    """A small image of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(file)


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, as the published files are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def records(task: Task, documents: Sequence[Document], responses: Sequence[str], mode: str) -> list[Record]:
    """What the engine makes of responses."""
    made = []
    for document, response in zip(documents, responses, strict=True):
        parsed = task.parse(document, response, mode)
        made.append(Record(document, response, parsed, task.score(document, parsed)))
    return made


def metric(summary: Summary, name: str, group: str = "") -> Metric:
    """The metric of that name and group; there is exactly one."""
    (found,) = [one for one in summary.metrics if (one.name, one.group) == (name, group)]
    return found


def test_the_list_of_tasks_leads_to_the_classes():
    """Names, targets and needs; every task can be pickled and has a fingerprint of its options."""
    assert [info.name for info in TASKS] == ["pope", "chair", "mme"]
    for info in TASKS:
        task = import_target(info.task)()
        assert isinstance(task, Task)
        assert info.needs == ("text", "image")
        assert pickle.loads(pickle.dumps(task)) == task
        assert task.modes == ("official", "strict")
        assert type(task)(max_new_tokens=3).fingerprint() != task.fingerprint()


@pytest.mark.parametrize("value", [0, "64", None])
@pytest.mark.parametrize("kind", [Pope, Mme, Chair])
def test_length_limits_are_checked(kind: Callable[..., Task], value: Any):
    """A whole number of at least 1."""
    with pytest.raises(DataError, match="max_new_tokens is"):
        kind(max_new_tokens=value)


# POPE


def pope_rows(n: int, offset: int = 0) -> list[dict[str, Any]]:
    """Six questions an image, as published: yes, yes, yes, no, no, no."""
    return [
        {
            "question_id": i,
            "image": f"COCO_val2014_{offset + i // 6:012d}.jpg",
            "text": f"Is there a thing{i} in the image?",
            "label": "yes" if i % 6 < 3 else "no",
        }
        for i in range(n)
    ]


@pytest.fixture
def pope_folder(tmp_path: Path) -> Path:
    """Three splits over the same images, those in val2014/."""
    folder = tmp_path / "pope"
    for split in SPLITS:
        write_lines(folder / f"coco_pope_{split}.json", pope_rows(24))
    for i in range(4):
        write_image(folder / "val2014" / f"COCO_val2014_{i:012d}.jpg")
    return folder


def test_pope_reads_the_published_files(pope_folder: Path):
    """Documents in order, grouped by source and split; the request shows the image and the paper's prompt."""
    task = Pope()
    documents = task.documents(str(pope_folder))
    assert [one.id for one in documents[:2]] == ["coco-adversarial-0", "coco-adversarial-1"]
    assert {one.group for one in documents} == {f"coco-{split}" for split in SPLITS}
    assert len(documents) == 72
    request = task.request(documents[0])
    shown, text = request.messages[0]["content"]
    assert shown == {"type": "image"}
    assert text["text"] == "Is there a thing0 in the image?\nAnswer the question using a single word or phrase."
    assert request.images[0].size == (8, 8)
    assert request.max_new_tokens == 128
    assert task.unit(documents[0]) == task.unit(documents[5]) != task.unit(documents[6])
    short = Pope(instruction="", max_new_tokens=4).request(documents[0])
    assert short.messages[0]["content"][1]["text"] == "Is there a thing0 in the image?"


def test_pope_reads_other_layouts(pope_folder: Path, tmp_path: Path):
    """Other sources, files in folders of their own, images elsewhere, a single file."""
    write_lines(pope_folder / "aokvqa" / "aokvqa_pope_seem_random.json", pope_rows(6))
    write_lines(pope_folder / "gqa" / "gqa_pope_popular.json", pope_rows(6))
    groups = {one.group for one in Pope().documents(str(pope_folder))}
    assert groups == {*(f"coco-{split}" for split in SPLITS), "aokvqa-random", "gqa-popular"}
    alone = tmp_path / "alone" / "coco_pope_random.json"
    write_lines(alone, pope_rows(6))
    elsewhere = Pope(images=str(pope_folder / "val2014")).documents(str(alone))
    assert elsewhere[0].data["picture"] == str(pope_folder / "val2014" / "COCO_val2014_000000000000.jpg")


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
    assert "coco-random-0 (coco_pope_random.json): the label is 'maybe'; expected 'yes' or 'no'" in message
    assert "coco-random-7 (coco_pope_random.json): the image gone.jpg is missing" in message
    assert "coco-random-2: occurs twice" in message
    assert "coco_pope_random.json:25: is no JSON object" in message
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
            rows = [
                (r, d.data["label"]) for r, d in zip(responses, documents, strict=True) if d.group == f"coco-{split}"
            ]
            scores = pope.pope_scores(*zip(*rows, strict=True), mode=mode)
            by_split.append(scores)
            for name in ("accuracy", "f1", "precision", "recall", "yes_ratio"):
                assert metric(summary, name, f"coco-{split}").value == pytest.approx(getattr(scores, name), rel=1e-12)
            found = metric(summary, "accuracy", f"coco-{split}")
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
        return Document(f"coco-random-{i}", "coco-random", data)

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
    perfect = metric(summary, "f1", "coco-random")
    assert (perfect.low, perfect.high, perfect.interval) == (*wilson_interval(4, 4), "wilson over clusters")
    assert metric(summary, "accuracy").low == wilson_interval(4, 4)[0]
    half = metric(summary, "yes_ratio")
    assert (half.value, half.low, half.interval) == (0.5, None, "")


def test_pope_means_by_source(pope_folder: Path):
    """With several sources there is a mean for each of them and one over everything."""
    write_lines(pope_folder / "gqa" / "gqa_pope_random.json", pope_rows(6))
    task = Pope()
    documents = task.documents(str(pope_folder))
    responses = ["Yes" if one.data["source"] == "gqa" else one.data["label"].capitalize() for one in documents]
    summary = task.aggregate(records(task, documents, responses, "official"), "official")
    assert metric(summary, "accuracy", "coco").value == 1.0
    assert metric(summary, "accuracy", "gqa").value == metric(summary, "accuracy", "gqa-random").value == 0.5
    assert metric(summary, "accuracy").value == pytest.approx((3 * 1.0 + 0.5) / 4)


def parquet(folder: Path, columns: Mapping[str, Sequence[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set as on the hub: parquet files in data/, images inside."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.parent / "cache")
    table = datasets.Dataset.from_dict(dict(columns)).cast_column("image", datasets.Image())
    (folder / "data").mkdir(parents=True)
    table.to_parquet(folder / "data" / "test-00000-of-00001.parquet")


def png_files(folder: Path, n: int) -> list[str]:
    """Images of different colours."""
    for i in range(n):
        write_image(folder / f"{i}.png", (10 * i, 0, 0))
    return [str(folder / f"{i}.png") for i in range(n)]


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
    assert task.request(documents[3]).images[0].getpixel((0, 0)) == (30, 0, 0)
    parquet(tmp_path / "lacking", {"question": ["a"], "image": files[:1]}, monkeypatch)
    with pytest.raises(DataError, match="has no column question_id, answer, image_source, category"):
        task.documents(str(tmp_path / "lacking"))


def test_an_unreachable_hub_name_is_one_sentence():
    """A name that is neither a folder nor can be loaded."""
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="nobody/nothing is no folder here and its split 'test' cannot be loaded"):
        Pope().documents("nobody/nothing")


# MME


@pytest.fixture
def mme_folder(tmp_path: Path) -> Path:
    """The release's two layouts: images/ beside questions_answers_YN/, and images beside text files."""
    folder = tmp_path / "MME_Benchmark"
    for category in ("existence", "count", "position", "color"):
        for i in range(3):
            write_image(folder / category / f"{i}.jpg")
            lines = f"Is it {i}? Please answer yes or no.\tYes\nIs it {i + 1}? Please answer yes or no.\tNo\n"
            (folder / category / f"{i}.txt").write_text(lines)
    write_image(folder / "OCR" / "images" / "a.png")
    (folder / "OCR" / "questions_answers_YN").mkdir()
    (folder / "OCR" / "questions_answers_YN" / "a.txt").write_text("Is it a?\tYes\n\nIs it b?\tNo")
    return folder


def test_mme_reads_the_release(mme_folder: Path):
    """Both layouts, in MME's order of categories, also one folder further up; the prompt is LLaVA's."""
    task = Mme()
    documents = task.documents(str(mme_folder))
    assert list(dict.fromkeys(one.group for one in documents)) == ["existence", "count", "position", "color", "OCR"]
    assert [one.id for one in documents[-2:]] == ["OCR/a.png/1", "OCR/a.png/2"]
    assert len(documents) == 26
    assert [one.id for one in task.documents(str(mme_folder.parent))] == [one.id for one in documents]
    request = task.request(documents[0])
    assert request.messages[0]["content"][1]["text"] == f"Is it 0?{INSTRUCTION}"
    own = Mme(instruction="").request(documents[0])
    assert own.messages[0]["content"][1]["text"] == "Is it 0? Please answer yes or no."


def test_mme_lists_all_faults(mme_folder: Path):
    """An unknown category, a line without tab, an answer, an image with one question, a missing image."""
    write_image(mme_folder / "colour" / "a.jpg")
    (mme_folder / "colour" / "a.txt").write_text("Is it?\tYes\nIs it not?\tNo")
    (mme_folder / "count" / "0.txt").write_text("Is it? Yes\nIs it?\tNo")
    (mme_folder / "color" / "1.txt").write_text("Is it?\tPerhaps\nIs it?\tNo")
    (mme_folder / "existence" / "2.jpg").unlink()
    with pytest.raises(DataError) as caught:
        Mme().documents(str(mme_folder))
    message = str(caught.value)
    assert "colour: is no category; did you mean 'color'" in message
    assert "count/0.txt:1: has no tab between question and answer" in message
    assert "color/1.jpg/1: the answer is 'Perhaps'" in message
    assert "existence/2: the image is missing" in message
    assert "count/0.jpg: has 1 readable questions; expected 2" in message
    with pytest.raises(DataError, match="expected folders such as existence/"):
        Mme().documents(str(mme_folder / "count"))


def test_mme_figures_agree_with_the_pure_functions(mme_folder: Path):
    """Categories, the hallucination subset, n, scales and intervals."""
    task, generator = Mme(), np.random.default_rng(1)
    documents = task.documents(str(mme_folder))
    responses = generator.choice(["Yes", "No.", "nothing", "Well, yes"], size=len(documents)).tolist()
    for mode in task.modes:
        summary = task.aggregate(records(task, documents, responses, mode), mode)
        rows = [(d.group, d.data["image"], r, d.data["answer"]) for d, r in zip(documents, responses, strict=True)]
        scores = mme.mme_scores(rows, mode=mode)
        assert [one.name for one in summary.metrics if not one.group] == ["hallucination"]
        whole = metric(summary, "hallucination")
        assert whole.value == pytest.approx(scores.total(mme.HALLUCINATION), rel=1e-12)
        assert (whole.n, whole.scale, whole.interval) == (12, 800.0, "bootstrap")
        assert whole.low <= whole.value <= whole.high
        for name, known in scores.categories.items():
            found = metric(summary, "score", name)
            assert found.value == pytest.approx(known.score, rel=1e-12)
            assert (found.n, found.scale) == (known.n, 200.0)
            assert metric(summary, "accuracy", name).value == pytest.approx(known.accuracy / 100)
            assert metric(summary, "accuracy_plus", name).value == pytest.approx(known.accuracy_plus / 100)
            assert metric(summary, "unparsable", name).n == 2 * known.n


def test_mme_leaves_out_half_answered_images_and_says_so(mme_folder: Path):
    """Under a limit an image may lack its second answer."""
    task = Mme()
    documents = task.documents(str(mme_folder))[:5]
    responses = [one.data["answer"] for one in documents]
    summary = task.aggregate(records(task, documents, responses, "official"), "official")
    assert metric(summary, "score", "existence").value == 200.0
    assert metric(summary, "score", "existence").n == 2
    assert metric(summary, "total").scale == 200.0
    assert summary.extra["pictures_left_out"] == 1
    assert "only one of their two questions was answered: 1" in summary.tables[0].caption
    half = task.aggregate(records(task, documents[:1], responses[:1], "official"), "official")
    assert (half.metrics[0].value, half.metrics[0].n) == (None, 0)


def test_mme_reads_hub_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The columns of lmms-lab/MME, in which the questions of an image share their id."""
    files = png_files(tmp_path / "png", 4)
    columns = {
        "question_id": ["code_reasoning/0020.png"] * 2 + ["count/1.jpg"] * 2,
        "question": ["Is it a? Please answer yes or no."] * 4,
        "answer": ["Yes", "No", "No", "Yes"],
        "category": ["code_reasoning"] * 2 + ["count"] * 2,
        "image": files,
    }
    parquet(tmp_path / "hub", columns, monkeypatch)
    documents = Mme().documents(str(tmp_path / "hub"))
    names = ["code_reasoning/0020.png/1", "code_reasoning/0020.png/2", "count/1.jpg/1", "count/1.jpg/2"]
    assert [one.id for one in documents] == names
    assert Mme().unit(documents[2]) == "count/1.jpg"
    assert Mme().request(documents[2]).images[0].getpixel((0, 0)) == (20, 0, 0)


# CHAIR


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Three images with instances and captions in COCO's files."""
    folder = tmp_path / "coco"
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (3, 7, 11)]
    for image in images:
        write_image(folder / "val2014" / str(image["file_name"]))
    categories = [{"id": i + 1, "name": row[0]} for i, row in enumerate(chair_objects.COCO_OBJECTS)]
    numbers = {row["name"]: row["id"] for row in categories}
    objects = [(3, "dog"), (3, "dog"), (3, "person"), (7, "toilet")]
    instances = [{"image_id": image, "category_id": numbers[name]} for image, name in objects]
    captions = [(3, "A man walks his puppy."), (3, "Two frisbees."), (7, "A bathroom."), (11, "A pizza on a table")]
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val2014.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": instances})
    )
    texts = [{"image_id": image, "caption": caption} for image, caption in captions]
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": texts}))
    return folder


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
    assert made[2].parsed.fallback
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
    """As JSON, or as text in which a second blank stays in front of the word; it is part of the fingerprint."""
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
    before = tasks[1].fingerprint()
    text.write_text(text.read_text() + "\n")
    assert tasks[1].fingerprint() == before
    text.write_text(text.read_text().replace("villager", "settler"))
    assert tasks[1].fingerprint() != before
    assert not tasks[1].parse(document, "a villager", "official").value["hallucinated"]
    with pytest.raises(DataError, match="holds no synonym table"):
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


# The engine


def test_runs_end_to_end_without_a_model(coco_folder: Path, mme_folder: Path, pope_folder: Path, tmp_path: Path):
    """Every task through the engine, with reports; scoring again gives the same figures."""
    sources = {"pope": pope_folder, "chair": coco_folder, "mme": mme_folder}
    for info in TASKS:
        answer = CallableBackend(lambda request: "Yes" if request.metadata["id"].endswith(("1", "2")) else "No")
        out = tmp_path / "runs" / info.name
        result = evaluate(answer, None, info, data=str(sources[info.name]), out=out)
        text = (out / "report.md").read_text()
        assert "POPE" in text
        assert (out / "report.html").exists()
        assert list(out.glob("*.svg"))
        again = rescore(out, info, report=False)
        assert list(again.summary.metrics) == list(result.summary.metrics)


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
    assert metric(result.summary, "accuracy", "scenes-adversarial").value == pytest.approx(expected.accuracy)
    assert metric(result.summary, "f1", "scenes-adversarial").value == pytest.approx(expected.f1)
    assert metric(result.summary, "accuracy").value > 0.8
    strict = result.modes["strict"].summary
    assert metric(strict, "accuracy").value == metric(result.summary, "accuracy").value
    assert metric(strict, "unparsable").value == 0.0
