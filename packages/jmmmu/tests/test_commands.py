"""``paperhooks jmmmu ...``, and the toolkit's commands on its tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exam_runs import backend, canned, quick
from paperhooks_jmmmu import Jmmmu, MmmuPaired
from paperhooks_jmmmu.data import DOMAINS, ENGLISH, JAPANESE, SUBJECTS, read_questions
from prompt_data import write_rows

pytest_plugins = ["paperhooks.testing.site_fixtures"]


def words(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("kind", "tasks", "n"),
    [("japanese", ["jmmmu"], 28), ("english", ["mmmu-paired"], 24), ("pro", ["jmmmu-pro", "jmmmu-verified"], 28)],
)
def test_a_sample_that_is_made_can_be_read(cli, tmp_path: Path, kind: str, tasks: list[str], n: int) -> None:
    folder = tmp_path / "sample"
    code, out, err = cli("jmmmu", "make-sample", str(folder), "--per-subject", "1", "--seed", "3", "--kind", kind)
    assert (code, f"wrote {folder}" in words(out)) == (0, True), err
    for task in tasks:
        code, out, err = cli("jmmmu", "check", str(folder), "--task", task)
        assert (code, f"{n} questions of {n} subjects" in out) == (0, True), err
        assert "Design: 29 fewer than in the whole set" in out
        assert ("World_History: 149 fewer than in the whole set" in out) == (kind != "english")


def test_samples_of_another_size_are_refused(cli, tmp_path: Path) -> None:
    assert cli("jmmmu", "make-sample", str(tmp_path / "x"), "--per-subject", "0")[0] == 2
    assert cli("jmmmu", "make-sample", str(tmp_path / "x"), "--kind", "german")[0] == 2
    assert not (tmp_path / "x").exists()


def test_check_lists_all_faults(cli, tmp_path: Path) -> None:
    good = {"question": "何か。", "options": "['能面', '皿']", "answer": "A", "question_type": "multiple-choice"}
    rows = [
        {**good, "id": "validation_Design_1"},
        {**good, "id": "validation_Design_2", "options": "['能面'"},
        {**good, "id": "validation_Design_3", "answer": "C"},
        {**good, "id": "validation_Design_4", "question": "<image 2>", "image_1": "1.png"},
        {**good, "id": "validation_Design_1"},
        {**good, "id": "validation_Desing_5"},
        {**good, "id": "Design6"},
        {**good, "id": "validation_Design_7", "options": "['皿', '皿']"},
        {**good, "id": "validation_Math_1", "question_type": "open", "options": "[]", "answer": ""},
        {**good, "id": "validation_Design_8", "image_1": "gone.png", "question": "<image 1>"},
    ]
    code, out, err = cli("jmmmu", "check", str(write_rows(tmp_path, rows)))
    assert (code, out) == (1, "")
    told = words(err)
    for fault in (
        "has 9 faults", "validation_Design_2: the options are", "validation_Design_3: the answer is 'C'",
        "validation_Design_4: shows image_2, which the row does not have", "validation_Design_1: occurs twice, in",
        "there is no subject 'Desing'; did you mean 'Design'", "Design6: the id 'Design6' names no subject",
        "validation_Design_7: has the option '皿' several times", "validation_Math_1: the answer is ''",
        "validation_Design_8: the file gone.png of image_1 is not there",
    ):  # fmt: skip
        assert fault in told, fault


def test_check_decodes_the_pictures(cli, tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    good = {"question": "<image 1>は何か。", "options": "['能面', '皿']", "answer": "A"}
    rows = [{**good, "id": f"validation_Design_{n}", "image_1": f"{n}.png"} for n in (1, 2, 3)]
    folder = write_rows(tmp_path, rows)
    Image.new("RGB", (40, 40)).save(folder / "1.png")
    Image.effect_noise((40, 40), 90).save(folder / "2.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:600])
    (folder / "3.png").write_bytes(b"no picture")
    code, out, err = cli("jmmmu", "check", str(folder))
    assert (code, out) == (1, "")
    assert "has 2 faults" in words(err)
    assert "validation_Design_2: image_1: " in words(err)
    assert "validation_Design_3: image_1: " in words(err)
    code, out, err = cli("jmmmu", "check", str(folder), "--no-pictures")
    assert (code, "3 questions of 1 subjects" in out) == (0, True), err


def test_check_says_what_it_does_not_know(cli, japanese: Path, tmp_path: Path) -> None:
    code, _, err = cli("jmmmu", "check", str(japanese), "--task", "mmmu")
    assert (code, "expected one of jmmmu, jmmmu-verified, jmmmu-pro, mmmu-paired" in words(err)) == (2, True)
    code, _, err = cli("jmmmu", "check", str(tmp_path / "nothing"))
    assert (code, "nothing" in err) == (1, True)


def test_controls_need_no_model(cli, japanese: Path) -> None:
    code, out, err = cli("jmmmu", "controls", str(japanese))
    assert code == 0, err
    lines = dict(line.rsplit(": ", 1) for line in out.splitlines())
    documents = read_questions(str(japanese), JAPANESE).documents
    expected = sum(1 / len(one.data["options"]) for one in documents if one.data["options"]) / 56
    assert lines["random"] == f"{expected:.2%}"
    assert lines["always A"] == f"{sum(one.data['answer'] == 'A' for one in documents) / 56:.2%}"
    assert any(name.startswith("most frequent (") for name in lines)
    draws = {cli("jmmmu", "controls", str(japanese), "--seed", str(seed))[1] for seed in (0, 1, 2)}
    assert len(draws) > 1


def test_paired_tells_the_difference_by_domain(cli, japanese: Path, english: Path, tmp_path: Path) -> None:
    for task, edition, data in ((MmmuPaired(), ENGLISH, english), (Jmmmu(), JAPANESE, japanese)):
        replies = canned(read_questions(str(data), edition).documents)
        quick(backend(replies), None, task, data=data, out=tmp_path / task.name, modes=["robust-wrong"])
    runs = str(tmp_path / "mmmu-paired"), str(tmp_path / "jmmmu")
    code, out, err = cli("jmmmu", "paired", *runs, "--out", str(tmp_path / "report"))
    assert code == 0, err
    assert "n = 48" in out
    assert "robust-wrong" in out
    for domain in DOMAINS:
        assert f"domain={domain}: " in out
    assert {"translated=original", "translated=translated"} <= {line.partition(":")[0] for line in out.splitlines()}
    assert (tmp_path / "report" / "report.html").exists()
    code, _, err = cli("jmmmu", "paired", *runs[::-1])
    assert (code, "give a run of 'mmmu-paired', then one of 'jmmmu'" in words(err)) == (1, True)


def test_rotations_are_taken_together(cli, japanese: Path, tmp_path: Path) -> None:
    for number in range(4):
        task = Jmmmu(rotation=number)
        replies = {one.id: "A" for one in task.documents(str(japanese))}
        quick(backend(replies), None, task, data=japanese, out=tmp_path / str(number), groups=["CS"])
    runs = [str(tmp_path / str(number)) for number in range(4)]
    code, out, err = cli("jmmmu", "rotations", *runs, "--out", str(tmp_path / "report"))
    assert code == 0, err
    assert "right in all rotations 0.0%" in words(out)
    assert (tmp_path / "report" / "report.html").exists()
    code, _, err = cli("jmmmu", "rotations", runs[0])
    assert (code, "expected those of 0 to k - 1" in words(err)) == (1, True)


def test_a_harness_is_given_the_task_and_its_replies_come_back(cli, japanese: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    code, out, err = cli("jmmmu", "export", str(japanese), "--to", "lm-eval", "--out", str(folder))
    assert (code, str(folder) in words(out)) == (0, True), err
    assert list(folder.rglob("*.yaml"))
    replies = canned(read_questions(str(japanese), JAPANESE).documents)
    lines = [json.dumps({"doc": {"id": name}, "resps": [[text]]}) for name, text in replies.items()]
    (tmp_path / "samples_jmmmu.jsonl").write_text("\n".join(lines))
    code, out, err = cli("jmmmu", "import", str(tmp_path / "samples_jmmmu.jsonl"), "--data", str(japanese),
                         "--out", str(tmp_path / "run"))  # fmt: skip
    own = quick(backend(replies), None, Jmmmu(), data=japanese, out=tmp_path / "own")
    assert (code, f"{own.headline.value:.1%}" in out) == (0, True), err
    code, _, err = cli("jmmmu", "export", str(japanese), "--to", "helm", "--out", str(folder))
    assert (code, "lmms-eval" in err) == (2, True)
    code, _, err = cli("jmmmu", "import", "x", "--data", "y", "--out", str(tmp_path / "z"), "--task", "mmmu")
    assert (code, "expected one of jmmmu, jmmmu-verified" in words(err)) == (2, True)


def test_the_toolkit_s_commands_know_the_tasks(cli, japanese: Path, tmp_path: Path) -> None:
    offered = {one["name"] for one in json.loads(cli("tasks", "--json")[1])}
    assert {"jmmmu", "jmmmu-verified", "jmmmu-pro", "mmmu-paired"} <= offered
    replies = canned(read_questions(str(japanese), JAPANESE).documents)
    file = tmp_path / "samples.jsonl"
    file.write_text(
        "".join(json.dumps({"doc": {"id": name}, "resps": [[text]]}) + "\n" for name, text in replies.items())
    )
    run = str(tmp_path / "run")
    asked = ("evaluate", "some-model", "jmmmu", "--data", str(japanese), "--out", run, "--replay", str(file),
             "--mode", "official-per-question", "--mode", "robust-wrong")  # fmt: skip
    code, out, err = cli(*asked, "--limit", "12")
    assert (code, "n = 12" in out) == (0, True), err
    own = quick(backend(replies), None, Jmmmu(), data=japanese, out=tmp_path / "own", limit=12)
    assert f"{own.headline.value:.1%}" in out
    code, out, err = cli("rescore", run, "--option", "parser=robust", "--option", "fallback=expected",
                         "--mode", "robust-expected")  # fmt: skip
    assert (code, f"{own.metric(mode='robust-expected').value:.1%}" in out) == (0, True), err
    code, out, err = cli(*asked, "--group", "subset=CS", "--limit", "3", "--option", "seed=4")
    assert (code, "n = 3" in out) == (0, True), err
    code, _, err = cli(*asked, "--option", "rotation=1")
    assert (code, "inputs.options.rotation = 0, not 1" in words(err)) == (1, True)
    assert len(SUBJECTS) == 28
