"""Exported folders: what is in them, what their functions give, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend, Request
from paperhooks_evaluation import Document, evaluate, export_task
from quiz_task import Quiz, quiz_reply, write_quiz

HARNESSES = ("lm-eval", "lmms-eval")


@dataclass(frozen=True)
class Odd(Quiz):
    """A quiz with something that a harness cannot be told."""

    odd: str = ""

    def request(self, document: Document) -> Request:
        request = super().request(document)
        if self.odd == "limit" and document.id == "Music-1":
            return dataclasses.replace(request, max_new_tokens=99)
        if self.odd == "messages":
            system = {"role": "system", "content": "Be brief."}
            return dataclasses.replace(request, messages=[system, *request.messages])
        if self.odd == "prompt":
            return Request(prompt="<img>?", images=request.images, max_new_tokens=16)
        if self.odd == "literal":
            content = [*request.messages[0]["content"], {"type": "text", "text": " <image>"}]
            return dataclasses.replace(request, messages=[{"role": "user", "content": content}])
        return request

    def parse(self, document: Document, response: str, mode: str) -> Any:
        if self.odd == "empty" and not response:
            raise ValueError("nothing to read")
        return super().parse(document, response, mode)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_quiz(tmp_path / "data")


def functions(folder: Path) -> Any:
    """The module of an exported folder, as a harness imports it."""
    spec = importlib.util.spec_from_file_location(f"exported_{folder.name}", folder / "functions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_yaml(file: Path) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: f"!{node.value}")
    return yaml.load(file.read_text(encoding="utf-8"), Loader)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (line for file in folder.glob("documents/*.jsonl") for line in file.read_text("utf-8").splitlines())
    return {row["id"]: row for row in map(json.loads, lines)}


@pytest.mark.parametrize("to", HARNESSES)
def test_files_for_a_harness(data: Path, tmp_path: Path, to: str) -> None:
    written = export_task(Quiz(), data=data, to=to, out=tmp_path / "out")
    assert (written.name, written.tasks, written.mode) == ("paperhooks_color_quiz", 4, "wrong")
    assert "not drawn" in str(written)
    assert "--tasks paperhooks_color_quiz" in str(written)
    files = {file.stem: read_yaml(file) for file in written.path.glob("*.yaml")}
    assert {one["task"] for one in files.values() if "include" in one} == {
        f"paperhooks_color_quiz_{each}" for each in ("Art", "Music", "Math", "歴史_1")
    }
    assert files["paperhooks_color_quiz_Arts"]["task"] == ["paperhooks_color_quiz_Art", "paperhooks_color_quiz_Music"]
    assert files["paperhooks_color_quiz"]["task"] == ["paperhooks_color_quiz_A", "paperhooks_color_quiz_B"]
    assert all(metric["weight_by_size"] for metric in files["paperhooks_color_quiz"]["aggregate_metric_list"])
    for one in files.values():
        if "include" in one:
            assert (written.path / one["dataset_kwargs"]["data_files"]["test"]).is_file()
    base = read_yaml(written.path / "base.yml")
    assert base["generation_kwargs"]["until"] == []
    assert [metric["metric"] for metric in base["metric_list"]] == ["accuracy", "unparsable"]
    module = functions(written.path)
    called = {value[1:] for value in _leaves(base) if isinstance(value, str) and value.startswith("!")}
    assert called
    assert all(callable(getattr(module, name.removeprefix("functions."))) for name in called)
    text = "".join(file.read_text("utf-8") for file in written.path.rglob("*") if file.is_file())
    assert not any(word in text for word in ("Which color", "何色", 'answer":'))  # nothing of the data but ids, groups


def _leaves(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if inner is None else [leaf for each in inner for leaf in _leaves(each)]


def test_lm_eval_gets_a_placeholder_for_each_picture(data: Path, tmp_path: Path) -> None:
    folder = export_task(Quiz(), data=data, to="lm-eval", out=tmp_path / "out", layout="interleave").path
    module, row = functions(folder), {"id": "Art-1"}
    assert module.doc_to_text(row) == "1. <image> is not <image>. 何色ですか、<image>は? (Art)"
    assert [picture.width for picture in module.doc_to_image(row)] == [9, 8, 9]
    prepended = export_task(Quiz(), data=data, to="lm-eval", out=tmp_path / "two", max_pixels=12).path
    assert functions(prepended).doc_to_text(row).startswith("<image><image>1. <image 2> is not")
    assert all(one.width * one.height <= 12 for one in functions(prepended).doc_to_image(row))
    found = module.dataset(data_files={"test": "documents/paperhooks_color_quiz_Art.jsonl"}, version="1")
    assert [each["id"] for each in found["test"]] == ["Art-0", "Art-1", "Art-2"]


def test_lmms_eval_gets_messages_and_for_its_simple_models_a_text(data: Path, tmp_path: Path) -> None:
    folder = export_task(Odd(odd="messages"), data=data, to="lmms-eval", out=tmp_path / "a", layout="interleave").path
    module, row = functions(folder), {"id": "Art-0"}
    system, user = module.doc_to_messages(row)
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert [part["type"] for part in user["content"]] == ["text", "image", "text"]
    assert user["content"][1]["url"].size == (8, 6)
    assert module.doc_to_text(row).startswith("Be brief.\n\n0. Which color has <image>?")
    prepended = functions(export_task(Quiz(), data=data, to="lmms-eval", out=tmp_path / "b").path)
    assert prepended.doc_to_text(row).startswith("0. Which color has <image 1>?")
    assert [part["type"] for part in prepended.doc_to_messages(row)[0]["content"]] == ["image", "text"]
    assert [one.width for one in prepended.doc_to_visual({"id": "Art-1"})] == [8, 9]


@pytest.mark.parametrize("layout", ["joined", "text-only"])
@pytest.mark.parametrize("to", HARNESSES)
def test_other_layouts(data: Path, tmp_path: Path, to: str, layout: str) -> None:
    folder = export_task(Quiz(), data=data, to=to, out=tmp_path / "out", layout=layout).path
    module, row, called = functions(folder), {"id": "Art-1"}, {"lm-eval": "image", "lmms-eval": "visual"}[to]
    pictures = getattr(module, f"doc_to_{called}")(row)
    assert [one.width for one in pictures] == ([17] if layout == "joined" else [])
    # Without pictures lm-eval's text models may run it.
    assert (f"doc_to_{called}" in read_yaml(folder / "base.yml")) == (layout == "joined")
    assert module.doc_to_text(row).count("<image>") == (layout == "joined" and to == "lm-eval")


@pytest.mark.parametrize("to", HARNESSES)
def test_scores_are_those_of_a_run(data: Path, tmp_path: Path, to: str) -> None:
    folder = export_task(Quiz(), data=data, to=to, out=tmp_path / "out").path
    module, documents = functions(folder), {one.id: one for one in Quiz().documents(str(data))}
    replies = {key: quiz_reply(dict(one.data)) for key, one in documents.items()}
    backend = CallableBackend(lambda request: replies[request.metadata["id"]].strip())  # as backends of models do
    task = Known()
    result = evaluate(backend, None, task, data=data, out=tmp_path / "run", modes=["wrong"], report=False)
    assert {record.parsed.rule for record in result.records} == {"first", "fallback"}
    lines = (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()
    hashes = {row["id"]: row["doc_hash"] for row in map(json.loads, lines)}
    for record in result.records:
        found = module.process_results({"id": record.document.id}, [replies[record.document.id]])
        assert found["accuracy"] == record.score
        assert found["unparsable"] == {
            "id": record.document.id, "doc_hash": hashes[record.document.id], "value": record.parsed.value,
            "rule": record.parsed.rule, "fallback": record.parsed.fallback,
        }  # fmt: skip
    assert module.process_results({"id": "Art-0"}, [None])["unparsable"]["fallback"]
    assert module.unparsable_share([{"fallback": True}, {"fallback": False}]) == 0.5


class Known(Quiz):
    """Tells a function which document is asked."""

    def request(self, document: Document) -> Request:
        return dataclasses.replace(super().request(document), metadata={"id": document.id})


def test_data_and_folder_move_together(data: Path, tmp_path: Path) -> None:
    folder = export_task(Quiz(), data=data, to="lm-eval", out=tmp_path / "out").path
    assert json.loads((folder / "export.json").read_text())["data"]["path"] == "../data"
    (tmp_path / "new").mkdir()
    for each in (folder, data):
        shutil.move(each, tmp_path / "new" / each.name)
    assert "Which color" in functions(tmp_path / "new" / "out").doc_to_text({"id": "Art-0"})
    elsewhere = export_task(Quiz(), data=tmp_path / "new" / "data", to="lm-eval", out=tmp_path / "far" / "out").path
    assert json.loads((elsewhere / "export.json").read_text())["data"]["path"] == str(tmp_path / "new" / "data")


def test_other_data_than_were_exported_are_refused(data: Path, tmp_path: Path) -> None:
    folder = export_task(Quiz(), data=data, to="lm-eval", out=tmp_path / "out").path
    changed = (data / "questions.json").read_text("utf-8").replace("Which color", "What color")
    (data / "questions.json").write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match=r"the data of .* changed since the export"):
        functions(folder).doc_to_text({"id": "Art-0"})
    record = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**record, "options": {"limit": 3}}))
    with pytest.raises(DataError, match=r"the task of .* changed since the export"):
        functions(folder).doc_to_text({"id": "Art-0"})
    del record["mode"]
    (folder / "export.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="damaged"):
        functions(folder).doc_to_text({"id": "Art-0"})


@pytest.mark.parametrize(
    ("odd", "to", "told"),
    [
        ("limit", "lm-eval", "'Music-1' is asked with max_new_tokens = 99"),
        ("limit", "lmms-eval", "'Music-1' is asked with max_new_tokens = 99"),
        ("messages", "lm-eval", "'Music-1' has 2 messages"),
        ("literal", "lm-eval", "'Music-1' has <image> in its text"),
        ("prompt", "lm-eval", "'Music-1' has a finished prompt with pictures"),
        ("prompt", "lmms-eval", "'Music-1' has a finished prompt with pictures"),
    ],
)
def test_what_a_harness_cannot_be_told_is_named(data: Path, tmp_path: Path, odd: str, to: str, told: str) -> None:
    module = functions(export_task(Odd(odd=odd), data=data, to=to, out=tmp_path / "out").path)
    with pytest.raises(DataError, match=told):
        module.doc_to_text({"id": "Music-1"})
    if odd == "limit":
        same = export_task(Odd(odd=odd), data=data, to=to, out=tmp_path / "out", max_new_tokens=9, stop=["\n"]).path
        assert "Music" in functions(same).doc_to_text({"id": "Music-1"})
        assert '{until: ["\\n"], ' in (same / "base.yml").read_text("utf-8")


def test_a_mode_that_looks_at_all_responses_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in the mode 'drawn' depends on the responses of the whole run.*: wrong"):
        export_task(Quiz(), data=data, to="lm-eval", out=tmp_path / "out", mode="drawn")
    with pytest.raises(DataError, match="no mode 'wrnog'"):
        export_task(Quiz(), data=data, to="lm-eval", out=tmp_path / "out", mode="wrnog")
    assert export_task(Quiz(), data=data, to="lm-eval", out=tmp_path / "out", mode="wrong").passed_over == ()
    assert export_task(Odd(odd="empty"), data=data, to="lm-eval", out=tmp_path / "new").mode == "drawn"


def test_what_is_exported_again_leaves_nothing_of_before(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_task(Quiz(), data=data, to="lm-eval", out=out)
    questions = [row for row in json.loads((data / "questions.json").read_text("utf-8")) if row["subject"] != "Math"]
    (data / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    export_task(Quiz(), data=data, to="lmms-eval", out=out)
    assert not list(out.rglob("*Math*"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds files that are no export"):
        export_task(Quiz(), data=data, to="lm-eval", out=tmp_path / "full")


def test_other_refusals(data: Path, tmp_path: Path) -> None:
    class Local(Quiz):
        pass

    with pytest.raises(DataError, match="cannot be imported by a harness"):
        export_task(Local(), data=data, to="lm-eval", out=tmp_path / "out")
    with pytest.raises(DataError, match="no harness 'lmeval'"):
        export_task(Quiz(), data=data, to="lmeval", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
