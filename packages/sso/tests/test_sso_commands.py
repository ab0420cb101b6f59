"""The command line, the plan of a loop, and stages alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_models import PROMPTS, CountingBackend, quick, tokenizer
from paperhooks import DataError
from paperhooks.io import model_digest
from paperhooks.testing import commands_of, fingerprint
from paperhooks_sso import align
from paperhooks_sso.data import read_lines, write_lines
from paperhooks_sso.loop import filter_file, plan_loop, train_file
from paperhooks_sso.plugin import PLUGIN
from sso_models import drawn_pairs, record_of, tiny
from transformers import AutoModelForCausalLM


@pytest.fixture
def invoke() -> Iterator[Callable[..., Any]]:
    with commands_of(PLUGIN) as run:
        yield run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with its tokenizer, prompts, and a file of principles."""
    found = tmp_path_factory.mktemp("command")
    tiny().save_pretrained(found / "model")
    tokenizer().save_pretrained(found / "model")
    (found / "prompts.jsonl").write_text("".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in PROMPTS[:4]))
    quick(found)
    return found


def words(folder: Path, out: Path, *more: object) -> list[object]:
    return [
        folder / "model", folder / "prompts.jsonl", "--out", out, "--max-new-tokens", 12, "--seed", 5,
        "--set", "features=['Plain']", "--set", "concision=0.0",
        "--set", f"principles=['{folder / 'principles.toml'}']",
        "--set", "keep_cut=true", "--set", "drop_leaks=false", *more,
    ]  # fmt: skip


ALARMS = [word for name in ("cut", "same", "gap_kept", "margin_fall") for word in ("--alarm", f"{name}=none")]


def test_stages_by_commands_are_the_loop_by_one(folder: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    given = words(folder, out)
    training = ["--batch", 4, "--learning-rate", 1e-3, "--iterations", 1]
    plan = invoke("align", *given, *training, "--plan")
    assert plan.exit_code == 0, plan.output
    assert "4 prompts, in 1 round of sampling and training" in plan.output
    assert not out.exists()
    done = invoke("align", *given, *training, *ALARMS, "--alarm", "min_pairs=1")
    assert done.exit_code == 0, done.output
    assert "1 of 1 iteration is done" in done.output
    checkpoint = out / "iteration-1" / "checkpoint"
    wanted = align(
        tiny(), PROMPTS[:4], out=tmp_path / "called", iterations=1, **quick(folder, batch=4, features=["Plain"])
    )  # fmt: skip
    assert model_digest(AutoModelForCausalLM.from_pretrained(checkpoint)) == model_digest(wanted.model)
    exported = invoke("export", out / "iteration-1", "--out", tmp_path / "export")
    assert exported.exit_code == 0, exported.output
    assert "bad on purpose" in exported.output.replace("\n", " ")
    assert len(read_lines(tmp_path / "export" / "preferences.jsonl")) == 4
    again = invoke("report", out)
    assert again.exit_code == 0, again.output
    assert invoke("report", out / "iteration-1").exit_code == 0


def test_pairs_are_made_of_what_was_sampled(folder: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    sampled = invoke("sample", *words(folder, out))
    assert sampled.exit_code == 0, sampled.output
    replies = (out / "iteration-1" / "samples" / "replies.jsonl").read_bytes()
    assert not (out / "iteration-1" / "pairs.jsonl").exists()
    made = invoke("pairs", *words(folder, out))
    assert made.exit_code == 0, made.output
    assert (out / "iteration-1" / "samples" / "replies.jsonl").read_bytes() == replies
    assert "4 of 4 prompts gave a pair" in made.output
    assert not (out / "iteration-1" / "checkpoint").exists()
    pairs = out / "iteration-1"
    kept = invoke("filter", folder / "model", pairs, "--out", tmp_path / "kept.jsonl")
    assert kept.exit_code == 0, kept.output
    assert "4 pairs" in kept.output
    trained = invoke("train", folder / "model", pairs, "--out", tmp_path / "trained", "--learning-rate", 1e-3)
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "trained" / "checkpoint" / "model.safetensors").is_file()
    assert "## Training" in (tmp_path / "trained" / "report.md").read_text()


def test_an_alarm_ends_with_a_status_of_its_own(
    folder: Path, tmp_path: Path, invoke: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    stopped = invoke("align", *words(folder, tmp_path / "out"), "--iterations", 1)
    assert stopped.exit_code == 3
    told = [message for message in caplog.messages if "prompts gave a pair" in message]
    assert len(told) == 1
    assert told[0].startswith("stopped: 4 of 4 prompts gave a pair, and 8 are wanted")
    text = " ".join(stopped.output.split())
    assert "0 of 1 iteration is done" in text
    assert "with other options it wants another folder" in text


def test_a_file_of_principles_that_is_not_there_is_told_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, invoke: Callable[..., Any]
) -> None:
    given = ["align", folder / "no model", folder / "prompts.jsonl", "--out", tmp_path / "out"]
    found = invoke(*given, "--set", "principles=nowhere.toml")
    assert isinstance(found.exception, DataError)
    assert str(found.exception).startswith("nowhere.toml: cannot be read")


def test_a_filter_that_keeps_nothing_says_so(folder: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    write_lines(tmp_path / "pairs.jsonl", [record_of(pair) for pair in drawn_pairs(1)])
    done = invoke("filter", folder / "model", tmp_path / "pairs.jsonl", "--out", tmp_path / "kept.jsonl")
    assert done.exit_code == 0, done.output
    assert "none is left" in done.output
    assert (tmp_path / "kept.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--set", "feature=random"], "there is no 'feature'"),
        (["--set", "features"], "not of the form NAME=VALUE"),
        (["--set", "batch=3"], "give --batch"),
        (["--alarm", "lenght_growth=3"], "there is no 'lenght_growth'"),
        (["--alarm", "cut=-1"], "cut is -1"),
        (["--set", "features=all"], "features is 'all'"),
        (["--set", "principles=3"], "principles is 3; expected TOML files"),
    ],
)
@pytest.mark.parametrize("model", ["model", "no model"])
def test_options_that_cannot_be_meant_are_errors_of_usage(
    folder: Path, tmp_path: Path, invoke: Callable[..., Any], more: list[str], told: str, model: str
) -> None:
    """Also where there is no such model: options are looked at first."""
    found = invoke("align", folder / model, folder / "prompts.jsonl", "--out", tmp_path / "out", *more)
    assert found.exit_code == 2, found.output
    assert told in re.sub(r"[│\s]+", " ", found.output)
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_what_a_loop_then_takes(tmp_path: Path) -> None:
    model, options = tiny(), quick(tmp_path)
    before = fingerprint(model)
    given = {name: value for name, value in options.items() if name not in ("limits", "report")}
    plan = plan_loop(model, PROMPTS, iterations=2, **given)
    assert fingerprint(model) == before
    assert (plan.prompts, plan.too_long, plan.rounds) == (8, 0, 2)
    assert plan.new_tokens == 2 * 8 * 3 * 12
    align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, **options)
    read = sampled = disk = 0
    for number in (1, 2):
        results = json.loads((tmp_path / "out" / f"iteration-{number}" / "result.json").read_text())["results"]
        read, sampled = read + results["prompts"]["tokens"], sampled + results["samples"]["tokens"]
    assert plan.prompt_tokens == read
    assert 0.5 * plan.new_tokens < sampled <= plan.new_tokens
    rows = 2 * 3 * 2 * 8 * 12 + 2 * read
    assert plan.trained_tokens == rows
    disk = sum(f.stat().st_size for f in (tmp_path / "out").rglob("*.safetensors"))
    assert plan.disk > 0.9 * disk
    assert plan.sample_seconds is not None
    assert plan.sample_seconds > 0
    assert len(list(plan.lines())) == 4
    unmeasured = plan_loop(model, PROMPTS, iterations=2, measure=False, **given)
    assert unmeasured.train_seconds is None
    assert len(list(unmeasured.lines())) == 3


def test_training_on_a_file_goes_on_and_leaves_the_model_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", map(record_of, drawn_pairs(6)))
    model = tiny()
    before = fingerprint(model)
    given = {"tokenizer": tokenizer(), "out": tmp_path / "out", "batch": 3, "learning_rate": 1e-3, "report": False}
    trained = train_file(model, tmp_path / "pairs.jsonl", **given)
    assert fingerprint(model) == before
    steps = read_lines(tmp_path / "out" / "steps.jsonl")
    assert [step["step"] for step in steps] == [1, 2]
    written = (tmp_path / "out" / "steps.jsonl").stat().st_mtime_ns
    again = train_file(model, tmp_path / "pairs.jsonl", **given)
    assert model_digest(again) == model_digest(trained) != model_digest(model)
    assert (tmp_path / "out" / "steps.jsonl").stat().st_mtime_ns == written
    with pytest.raises(DataError, match=r"inputs\.options\.batch = 3, not 2"):
        train_file(model, tmp_path / "pairs.jsonl", **{**given, "batch": 2})
    write_lines(tmp_path / "pairs.jsonl", map(record_of, drawn_pairs(5)))
    with pytest.raises(DataError, match=r"inputs\.prompts"):
        train_file(model, tmp_path / "pairs.jsonl", **given)
    write_lines(tmp_path / "pairs.jsonl", [])
    with pytest.raises(DataError, match="holds no pair"):
        train_file(model, tmp_path / "pairs.jsonl", **{**given, "out": tmp_path / "other"})
    write_lines(tmp_path / "pairs.jsonl", map(record_of, drawn_pairs(5)))
    with pytest.raises(ValueError, match=r"trainer is \{'epochs': 3\}"):
        train_file(model, tmp_path / "pairs.jsonl", **{**given, "out": tmp_path / "third", "trainer": {"epochs": 3}})


def test_the_filter_keeps_what_the_loop_keeps(tmp_path: Path) -> None:
    options = quick(tmp_path, filter=True)
    found = align(tiny(), PROMPTS, out=tmp_path / "filtered", until="pairs", **options)
    told = json.loads((tmp_path / "filtered" / "iteration-1" / "result.json").read_text())["results"]["pairs"]
    align(tiny(), PROMPTS, out=tmp_path / "whole", until="pairs", **{**options, "filter": False})
    report = filter_file(tiny(), tmp_path / "whole" / "iteration-1", tmp_path / "kept.jsonl")
    assert (told["filter"]["given"], told["filter"]["ordered"]) == (report.given, report.ordered)
    assert told["kept"] == report.apart < report.given
    assert told["dropped"]["filtered"] == report.given - report.apart
    kept = (tmp_path / "kept.jsonl").read_bytes()
    assert kept == (tmp_path / "filtered" / "iteration-1" / "pairs.jsonl").read_bytes()
    assert found.iterations == 0


def test_features_are_asked_and_principles_written_by_the_model(tmp_path: Path) -> None:
    CountingBackend.asked.clear()
    CountingBackend.log = CountingBackend.fails_at = None
    options = quick(tmp_path, features="asked", generated=True, make_backend=CountingBackend, feature_number=1)
    align(tiny(), PROMPTS[:2], out=tmp_path / "out", until="samples", **options)
    kinds = sorted(key.partition("/")[2].partition("/")[0] for key in CountingBackend.asked)
    assert kinds == sorted(["features", "principle", "y+", "y-", "yo"] * 2)
    asked = read_lines(tmp_path / "out" / "iteration-1" / "asked.jsonl")
    assert {principle["source"] for each in asked for principle in each["principles"]} <= {
        "bank", "principles.toml", "generated",
    }  # fmt: skip
    align(tiny(), PROMPTS[:2], out=tmp_path / "out", until="samples", **options)
    assert set(CountingBackend.asked.values()) == {1}
