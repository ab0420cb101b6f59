"""Mistakes on the command line: one readable line, exit 2 for usage and 1 for problems, before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paperhooks.testing import tiny_text
from paperhooks_miniplm import byte_tokenizer, write_shards

pytest_plugins = ["paperhooks.testing.site_fixtures"]

#: Words of a command, with names in capitals for what is there; its exit status; and what its one line says.
MISTAKES: list[tuple[str, int, str]] = [
    ("compress MODEL mathneuro:ratio=0.5,ratios=3 --data target=ROWS -o OUT", 2, "ratios"),
    ("compress MODEL mathneuro:ratio=[[[ --data target=ROWS -o OUT", 2, "ratio"),
    ("compress MODEL mathneuro:ratio=-1 --data target=ROWS -o OUT", 2, "ratio"),
    ("compress MODEL mathneur --data target=ROWS -o OUT", 1, "mathneuro"),
    ("describe MODEL -p pyramiddrop:stages={40:0.5}", 1, "40"),
    ("describe MODEL -p pyramiddrop:stages=none", 2, "stages"),
    ("describe NOWHERE -p pyramiddrop", 1, "nowhere"),
    ("select miniplm --corpus NOWHERE --teacher MODEL --reference MODEL --ratio 0.5 -o OUT", 1, "nowhere"),
    ("select miniplm --corpus ROWS --teacher MODEL --reference MODEL --ratio 7 -o OUT", 2, "ratio"),
    ("select miniplm --corpus BAD --teacher MODEL --reference MODEL --ratio 0.5 -o OUT", 1, "bad.jsonl:1"),
    ("select miniplm --corpus ROWS --teacher MODEL --reference MODEL --ratio 0.5 -o FILE", 2, "file"),
    ("evaluate MODEL no-task --data DATA -o OUT", 1, "no-task"),
    ("evaluate MODEL pope --data NOWHERE -o OUT", 1, "nowhere"),
    ("evaluate MODEL pope --data DATA -o OUT --limit -3", 2, "limit"),
    ("evaluate MODEL pope --data DATA -o OUT --batch-size 0", 2, "batch-size"),
    ("evaluate MODEL pope --data DATA -o OUT --option wrong=1", 1, "wrong"),
    ("evaluate MODEL pope --data DATA -o OUT --shard 2/2", 2, "shard"),
    ("evaluate MODEL pope --data DATA -o OUT --group nothing", 1, "nothing"),
    ("rescore NOWHERE", 1, "nowhere"),
    ("compare NOWHERE NOWHERE", 1, "nowhere"),
    ("miniplm score MODEL --corpus NOWHERE -o OUT", 1, "nowhere"),
    ("miniplm score MODEL --corpus CORPUS -o OUT --max-length -1", 2, "max-length"),
    ("miniplm score MODEL --corpus CORPUS -o s3://bucket/out", 2, "address"),
    ("miniplm pack NOWHERE --tokenizer MODEL -o OUT", 1, "nowhere"),
    ("miniplm pack BAD --tokenizer MODEL -o OUT", 1, "bad.jsonl:1"),
    ("miniplm pack ROWS --tokenizer MODEL -o CORPUS", 1, "corpus"),
    ("miniplm diff NOWHERE NOWHERE -o OUT", 1, "nowhere"),
    ("miniplm select BAD --corpus CORPUS --ratio 0.5 -o OUT", 1, "bad.jsonl"),
    ("miniplm convert --corpus CORPUS --from MODEL --to MODEL -o CORPUS", 1, "corpus"),
    ("miniplm export BAD --corpus CORPUS --format index -o OUT", 1, "bad.jsonl"),
    ("mathneuro collect MODEL NOWHERE -o OUT", 1, "nowhere"),
    ("mathneuro collect MODEL BAD -o OUT", 1, "bad.jsonl:1"),
    ("mathneuro collect MODEL ROWS -o OUT --samples -1", 2, "samples"),
    ("claims no-plugin", 1, "no-plugin"),
    ("no-command", 2, "no-command"),
]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the words in capitals stand for; nothing that a command needs is missing."""
    folder = tmp_path_factory.mktemp("mistakes")
    texts = ["A sentence. Another one."]
    tiny_text(layers=2, vocab_size=512).save_pretrained(folder / "model")
    byte_tokenizer(texts).save_pretrained(folder / "model")
    write_shards([[1, 2, 3], [4, 5, 6]], folder / "corpus")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "bad.jsonl").write_text('{"text": \n')
    (folder / "file").write_text("mine")
    (folder / "data").mkdir()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(folder / "data" / "a.png")
    question = {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "no"}
    (folder / "data" / "coco_pope_random.json").write_text(json.dumps(question) + "\n")
    known = {"MODEL": "model", "CORPUS": "corpus", "ROWS": "rows.jsonl", "BAD": "bad.jsonl", "FILE": "file"}
    return {name: folder / path for name, path in {**known, "DATA": "data", "NOWHERE": "nowhere"}.items()}


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every model that is loaded."""
    from transformers import PreTrainedModel

    loaded: list[str] = []
    plain = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: type, name: Any, *args: Any, **kwargs: Any) -> Any:
        loaded.append(str(name))
        return plain(cls, name, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
    return loaded


def worded(words: str, names: dict[str, Path], out: Path) -> list[str]:
    found = []
    for word in words.split():
        for name, path in {**names, "OUT": out}.items():
            word = word.replace(name, str(path)) if word.endswith(name) else word
        found.append(word)
    return found


@pytest.mark.parametrize(("words", "status", "said"), MISTAKES, ids=[words for words, *_ in MISTAKES])
def test_a_mistake_is_one_line_and_no_model_is_loaded_for_it(
    names: dict[str, Path],
    tmp_path: Path,
    cli: Callable[..., Any],
    loads: list[str],
    words: str,
    status: int,
    said: str,
) -> None:
    code, _, errors = cli(*worded(words, names, tmp_path / "out"))
    assert (code, said in errors) == (status, True), errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (len(lines), "Traceback" in errors) == (1, False), errors
    assert not loads, "what is wrong was known before"
    assert not list(tmp_path.rglob("*.safetensors"))


def test_answers_that_are_all_empty_are_said(names: dict[str, Path], tmp_path: Path, cli: Callable[..., Any]) -> None:
    from paperhooks import evaluate
    from paperhooks.generation import CallableBackend

    found = evaluate(CallableBackend(lambda request: ""), None, "pope", data=names["DATA"], out=tmp_path / "run")
    assert found.first.empty == 1
    code, printed, errors = cli("rescore", str(tmp_path / "run"))
    assert code == 1
    assert "empty" in printed + errors
