"""``paperhooks miniplm ...`` on files, from documents to rows for a student, and with several processes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from paperhooks import DataError
from paperhooks.testing import commands_of, run_python, tiny_text
from paperhooks_miniplm import Difference, Scores, ScoringWarning, Shards, convert, read_index
from paperhooks_miniplm.plugin import PLUGIN

TOKENIZERS = {name: str(golden.FOLDER / name) for name in ("tok_a", "tok_b")}
MODELS = {name: str(golden.FOLDER / name) for name in ("teacher", "ref")}
STORED = golden.scores()


@pytest.fixture(scope="module")
def invoke():
    with commands_of(PLUGIN) as run:
        yield run


@pytest.fixture(scope="module")
def says(invoke):
    """What a command prints; it must succeed."""

    def run(*words) -> str:
        result = invoke(*words)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    return run


@pytest.fixture(scope="module")
def worked(says, tmp_path_factory):
    """The corpus of the reference, packed, scored by both models, and their differences; and what was printed."""
    folder = tmp_path_factory.mktemp("run")
    said = {
        "pack": says(
            "pack", golden.CORPUS, "--tokenizer", TOKENIZERS["tok_a"], "-o", folder / "packed", "--max-length", 64,
            "--domain-field", "label", "--drop-tail",
        )
    }  # fmt: skip
    corpus = "--corpus", folder / "packed", "--max-length", 64
    said["plan"] = says(
        "plan", "--teacher", MODELS["teacher"], "--reference", MODELS["ref"], *corpus, "--student", 1000, "--workers", 2
    )
    for name in ("teacher", "ref"):
        said[name] = says("score", MODELS[name], *corpus, "-o", folder / name, "--unit-rows", 500, "--name", name)
    said["again"] = says("score", MODELS["ref"], *corpus, "-o", folder / "ref", "--unit-rows", 500)
    said["diff"] = says("diff", folder / "teacher", folder / "ref", "-o", folder / "difference")
    return folder, said


def test_every_stage_gives_the_stored_values(worked) -> None:
    folder, said = worked
    assert "142 documents, 1506 rows" in said["pack"]
    assert "boilerplate" in said["pack"]
    rows = Shards(folder / "packed").read(range(1506))
    assert [row.ids.tolist() for row in rows] == golden.packing()["a_no_bos"]["chunks"]
    for name, key in (("teacher", "teacher_nll"), ("ref", "ref_nll")):
        np.testing.assert_allclose(Scores.load(folder / name).values(), STORED[key].numpy(), atol=2e-5)
        assert "1506 rows, 0 without a score" in said[name]
    found = Difference.load(folder / "difference.safetensors")
    np.testing.assert_allclose(found.values, STORED["diff"].numpy(), atol=4e-5)
    assert "1506 rows, 0 without a difference" in said["diff"]


def test_what_it_costs_is_said_before_it_begins(worked) -> None:
    _, said = worked
    assert "2 workers" in said["plan"]
    for word in ("teacher:", "reference:", "tokens/s", "FLOPs", "training one student"):
        assert word in said["plan"], word
    assert said["teacher"].index("tokens/s") < said["teacher"].index("without a score")
    assert "tokens/s" not in said["again"], "a run that goes on was announced already"


def test_selecting_and_exporting(worked, says, tmp_path: Path) -> None:
    folder, _ = worked
    corpus, tokenizer = ("--corpus", folder / "packed"), ("--tokenizer", TOKENIZERS["tok_a"])
    difference = folder / "difference.safetensors"
    text = says("select", difference, *corpus, "--ratio", 0.5, "-o", tmp_path / "half", *tokenizer)
    assert "kept 753 of 1506 rows" in text
    index = tmp_path / "half" / "selection.safetensors"
    chosen = read_index(index, Shards(folder / "packed"))
    stored = set(golden.stable_indices("0.5"))
    assert len(stored ^ set(chosen.tolist())) <= 4  # rows within rounding of the cut
    assert (tmp_path / "half" / "report.html").stat().st_size > 10_000
    says("export", index, *corpus, "--format", "shards", "-o", tmp_path / "shards", *tokenizer)
    rows = Shards(tmp_path / "shards").read(range(753))
    assert [row.ids.tolist() for row in rows] == [golden.chunks()[row].tolist() for row in chosen]
    says("export", index, *corpus, "--format", "jsonl", "-o", tmp_path / "rows.jsonl", *tokenizer)
    scores = [json.loads(line)["score"] for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert scores == Difference.load(difference).values[chosen].tolist()
    first = json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (first["row"], first["text"][:8]) == (chosen[0], golden.tokenizer().decode(first["input_ids"])[:8])
    says("export", index, *corpus, "--format", "bitmap", "-o", tmp_path / "bits")
    assert read_index(tmp_path / "bits.safetensors").tolist() == chosen.tolist()


def test_selecting_again_changes_nothing_and_other_corpora_are_refused(worked, says, invoke, tmp_path: Path) -> None:
    folder, _ = worked
    words = "select", folder / "difference.safetensors", "--ratio", 0.5, "-o", tmp_path / "half"
    says(*words, "--corpus", folder / "packed")
    index = tmp_path / "half" / "selection.safetensors"
    before = index.stat().st_mtime_ns
    says(*words, "--corpus", folder / "packed")
    assert index.stat().st_mtime_ns == before
    assert (folder / "difference.duplicates.safetensors").exists()
    result = invoke(*words[:-1], tmp_path / "other", "--corpus", golden.SHARDS)
    assert "the scores are of another corpus" in str(result.exception)
    assert not (tmp_path / "other").exists()


def test_ways_to_select(worked, says, tmp_path: Path) -> None:
    folder, _ = worked
    rows, difference = Shards(folder / "packed"), folder / "difference.safetensors"

    def chosen(name: str, *options) -> np.ndarray:
        says("select", difference, "--corpus", folder / "packed", "-o", tmp_path / name, *options)
        return read_index(tmp_path / name / "selection.safetensors")

    assert len(chosen("count", "--count", 7)) == 7
    assert int(rows.lengths()[chosen("tokens", "--tokens", 1000)].sum()) <= 1000
    noise = rows.domains() == "noise"
    assert noise[chosen("quota", "--ratio", 0.5, "--quota", "domain")].sum() == noise.sum() // 2
    given = chosen("given", "--ratio", 0.5, "--quota", "noise=0.1,licence=1")
    share = {
        name: float((rows.domains()[given] == name).sum() / (rows.domains() == name).sum())
        for name in ("noise", "licence", "python")
    }
    assert share == {"noise": pytest.approx(0.1, abs=0.01), "licence": 1.0, "python": pytest.approx(0.5, abs=0.01)}
    drawn = [
        chosen(f"drawn{n}", "--count", 50, "--temperature", 1.0, "--seed", seed) for n, seed in enumerate((1, 1, 2))
    ]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    ids = {row.ids.tobytes() for row in rows.read(range(len(rows)))}
    assert len(chosen("unique", "--ratio", 1.0, "--drop-duplicates")) == len(ids)
    assert len(chosen("upper", "--ratio", 1.0, "--upper", 0.1)) == 1506 - 150


@pytest.mark.parametrize(
    "options", [("--row-by-row",), ("--repack", "--no-join"), ("--row-by-row", "--no-bos")], ids=str
)
def test_converting(worked, says, tmp_path: Path, options) -> None:
    folder, _ = worked
    difference = folder / "difference.safetensors"
    says("select", difference, "--corpus", folder / "packed", "--count", 40, "-o", tmp_path / "few")
    index = tmp_path / "few" / "selection.safetensors"
    text = says(
        "convert", "--corpus", folder / "packed", "--from", TOKENIZERS["tok_a"], "--to", TOKENIZERS["tok_b"],
        "--selection", index, "--max-length", 64, "-o", tmp_path / "new", *options,
    )  # fmt: skip
    assert "40 rows in" in text
    wanted = convert(
        folder / "packed", golden.tokenizer(), golden.tokenizer("tok_b"), rows=read_index(index), max_length=64,
        repack="--repack" in options, join="--no-join" not in options, bos=False if "--no-bos" in options else None,
    )  # fmt: skip
    found = Shards(tmp_path / "new")
    assert [row.ids.tolist() for row in found.read(range(len(found)))] == [row.ids.tolist() for row in wanted]


def test_the_same_command_again_changes_nothing(worked, says, invoke, tmp_path: Path) -> None:
    folder, said = worked
    pack = "pack", golden.CORPUS, "--tokenizer", TOKENIZERS["tok_a"], "-o", folder / "packed", "--max-length", 64
    before = {file: file.stat().st_mtime_ns for file in (folder / "packed").iterdir()}
    text = says(*pack, "--domain-field", "label", "--drop-tail")
    assert text.replace("\n", "") in said["pack"].replace("\n", "")
    assert {file: file.stat().st_mtime_ns for file in (folder / "packed").iterdir()} == before
    other = invoke(*pack, "--domain-field", "label")
    assert "settings.flush_tail = False, not True" in str(other.exception)
    words = (
        "--corpus",
        folder / "packed",
        "--from",
        TOKENIZERS["tok_a"],
        "--to",
        TOKENIZERS["tok_b"],
        "--max-length",
        64,
    )
    assert len({says("convert", *words, "-o", tmp_path / "new").splitlines()[-1] for _ in range(2)}) == 1
    swapped = "--from", TOKENIZERS["tok_b"], "--to", TOKENIZERS["tok_a"]
    refused = invoke("convert", "--corpus", folder / "packed", *swapped, "-o", tmp_path / "other")
    assert "was packed with the tokenizer" in str(refused.exception)
    assert not (tmp_path / "other").exists()


def test_files_that_are_left_out_are_told_of(says, invoke, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("a.txt", "b.rst", "c.rst", "d.html"):
        (tmp_path / "docs" / name).write_text("Some text.")
    text = says("pack", tmp_path / "docs", "--tokenizer", TOKENIZERS["tok_a"], "-o", tmp_path / "packed")
    assert "read 1 files; left out are 1 .html, 2 .rst" in text
    for command in ("pack", "export", "convert"):
        words = {
            "pack": ("pack", tmp_path / "docs", "--tokenizer", "nowhere"),
            "export": ("export", tmp_path / "none", "--corpus", tmp_path / "packed", "--format", "shards"),
            "convert": ("convert", "--corpus", tmp_path / "packed", "--from", "nowhere", "--to", "nowhere"),
        }[command]
        assert "s3://bucket/out is an address" in str(invoke(*words, "-o", "s3://bucket/out").exception)


def test_a_stream_is_scored_without_reading_it_twice_to_its_end(says, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps({"body": {"text": f"Row {n}. It is short."}}) + "\n" for n in range(40))
    text = says(
        "score",
        MODELS["ref"],
        "--corpus",
        file,
        "-o",
        tmp_path / "out",
        "--max-length",
        64,
        "--text-field",
        "body.text",
    )
    assert "is a stream of unknown length; of its first rows:\n16 rows" in text
    assert "40 rows, 0 without a score" in text
    assert (Scores.load(tmp_path / "out").n_bytes > 0).all()


def test_models_and_tokenizers_without_an_end(says, tmp_path: Path) -> None:
    tiny_text(layers=1, vocab_size=512, eos_token_id=None).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    tokenizer = golden.tokenizer().__class__.from_pretrained(TOKENIZERS["tok_a"])
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"input_ids": [5, 6, 7]}\n')
    words = tmp_path / "model", "--corpus", tmp_path / "rows.jsonl", "--max-length", 64
    text = says("score", *words, "-o", tmp_path / "out", "--count-after-end")
    assert "1 rows, 0 without a score, 0 cut" in text


def test_rows_that_a_model_was_trained_on_are_warned_of(worked, says, tmp_path: Path) -> None:
    folder, _ = worked
    corpus = "--corpus", folder / "packed", "--max-length", 64, "-o", tmp_path / "out", "--unit-rows", 800
    with pytest.warns(ScoringWarning, match="which the model was trained on"):
        assert "1506 rows" in says("score", MODELS["ref"], *corpus, "--trained-on", folder / "packed")


def test_a_process_of_a_launch_says_that_others_have_units_to_do(worked, says, tmp_path: Path, monkeypatch) -> None:
    folder, _ = worked
    corpus = "--corpus", folder / "packed", "--max-length", 64, "-o", tmp_path / "out", "--unit-rows", 800
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "the units of this process are done; others are missing" in says("score", MODELS["ref"], *corpus)
    monkeypatch.setenv("RANK", "1")
    assert "1506 rows" in says("score", MODELS["ref"], *corpus)


def test_a_corpus_in_parts_is_scored_and_merged(worked, says, tmp_path: Path) -> None:
    """The folder is that of a plain run, and takes its place in a difference and a selection of the packed rows."""
    folder, _ = worked
    parts, scores = tmp_path / "parts", f"memory://{tmp_path.name}/scores"
    text = says("parts", folder / "packed", "-o", parts, "--unit-rows", 500, "--part-units", 2)
    assert "1506 rows in 4 units of 500 rows" in text
    words = "score", MODELS["ref"], "--parts", parts, "-o", scores, "--max-length", 64, "--name", "ref"
    text = says(*words)
    assert "4 of 4 units are to be scored" in text
    assert f"paperhooks miniplm merge {scores} --parts {parts} -o FOLDER" in text
    assert "0 of 4 units are to be scored" in says(*words)
    text = says("merge", scores, "--parts", parts, "-o", tmp_path / "merged")
    assert "1506 rows, 0 without a score, 0 cut, 0 stood twice and agree" in text
    plain = folder / "ref" / "scores.safetensors"
    assert (tmp_path / "merged" / "scores.safetensors").read_bytes() == plain.read_bytes()
    says("diff", folder / "teacher", tmp_path / "merged", "-o", tmp_path / "difference")
    chosen = "--corpus", folder / "packed", "-o", tmp_path / "chosen", "--ratio", "0.5"
    assert "kept 753 of 1506 rows" in says("select", tmp_path / "difference.safetensors", *chosen)


def test_the_scaling_law(says, tmp_path: Path) -> None:
    table = says("fit-scaling")
    assert table.count("\n") == 10
    assert "3.350" in table or "3.35" in table
    points = [[10.0**n, 2.5 + 1e7 / 10.0 ** (0.4 * n)] for n in range(17, 23)]
    (tmp_path / "points.json").write_text(json.dumps(points))
    assert "L(C) = 2.5" in says("fit-scaling", tmp_path / "points.json")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("score", "MODEL", "--corpus", "PACKED", "-o", "s3://bucket/out"), 2, "is an address"),
        (("score", "MODEL", "-o", "OUT"), 2, "by --corpus or by --parts"),
        (("score", "MODEL", "--corpus", "PACKED", "--parts", "PACKED", "-o", "OUT"), 2, "by --corpus or by --parts"),
        (("score", "MODEL", "--corpus", "PACKED", "-o", "OUT", "--on", "ray"), 2, "share out --parts"),
        (("score", "MODEL", "--parts", "PACKED", "-o", "OUT", "--workers", "2"), 2, "--workers 2 needs an engine"),
        (("score", "MODEL", "--parts", "PACKED", "-o", "OUT", "--unit-rows", "2"), 2, "are of a --corpus"),
        (("score", "MODEL", "--parts", "PACKED", "-o", "OUT"), 1, "holds no parts.json"),
        (("merge", "PACKED", "--parts", "PACKED", "-o", "OUT"), 1, "run.json is not there"),
        (("parts", "nothing.jsonl", "-o", "OUT"), 1, "nothing.jsonl"),
        (("select", "DIFF", "--corpus", "PACKED", "-o", "OUT", "--ratio", "0.5", "--quota", "a=b"), 2, "--quota is"),
        (("select", "DIFF", "--corpus", "PACKED", "-o", "OUT", "--ratio", "7"), 1, "ratio is 7.0"),
        (("select", "DIFF", "--corpus", "PACKED", "-o", "OUT"), 1, "not by none"),
        (("pack", "CORPUS", "--tokenizer", "nowhere", "-o", "OUT"), 1, "'nowhere' has no tokenizer"),
        (("pack", "CORPUS", "--tokenizer", "TOKENIZER", "-o", "PACKED"), 1, "holds a corpus"),
        (("diff", "PACKED", "PACKED", "-o", "OUT"), 1, "expected the manifest of likelihoods"),
        (("diff", "TEACHER", "REF", "-o", "OUT", "--normalize", "median"), 2, "'median' is not one of"),
        (("fit-scaling", "CORPUS"), 1, "holds no JSON list of"),
        (("export", "DIFF", "--corpus", "PACKED", "-o", "OUT", "--format", "index"), 1, "and no selection of rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(worked, invoke, tmp_path: Path, words, status: int, message: str) -> None:
    folder, _ = worked
    names = {
        "MODEL": MODELS["ref"], "PACKED": folder / "packed", "OUT": tmp_path / "out", "CORPUS": golden.CORPUS,
        "DIFF": folder / "difference.safetensors", "TOKENIZER": TOKENIZERS["tok_a"], "TEACHER": folder / "teacher",
        "REF": folder / "ref",
    }  # fmt: skip
    result = invoke(*(names.get(word, word) for word in words))
    if status == 2:
        assert (result.exit_code, message in result.output) == (2, True), result.output
    else:
        assert isinstance(result.exception, DataError), result.exception
        assert message in str(result.exception)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_share_the_units(worked, tmp_path: Path, launcher: str) -> None:
    folder, _ = worked
    launch = {
        "torchrun": ("torch.distributed.run", "--nproc-per-node", "2"),
        # --cpu would start a single process
        "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
    }
    done = run_python(
        "-m", *launch[launcher], "-m", "paperhooks.cli", "miniplm", "score", MODELS["ref"], "--corpus",
        folder / "packed", "-o", tmp_path / "out", "--max-length", "64", "--unit-rows", "500",
        environment={"PET_STANDALONE": "1"},  # torchrun's --standalone: its store takes a free port itself
    )  # fmt: skip
    assert done.stdout.count(f"{tmp_path / 'out'}: ") == 2, "each of the two says what it did"
    assert np.array_equal(Scores.load(tmp_path / "out").nll, Scores.load(folder / "ref").nll)
    made = {file.name for file in (tmp_path / "out" / "units").iterdir()}
    assert made == {f"unit-{n:06d}.safetensors" for n in range(4)}
