"""The commands on files, the plugin's description, the demo's pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from paperhooks.cli import main
from paperhooks.io import UnitStore
from paperhooks.reports import RunFolder
from paperhooks.testing import tiny_text
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A tiny model on disk, and texts of three kinds as token ids."""
    folder = tmp_path_factory.mktemp("files")
    tiny_text(layers=2).save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(0)
    for name, low in (("maths", 3), ("prose", 40), ("code", 70)):
        rows = [[1, *torch.randint(low, low + 20, (8,), generator=generator).tolist()] for _ in range(24)]
        lines = (json.dumps({"input_ids": row, "answer_start": 2}) for row in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["mathneuro", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_the_stages_one_after_another(files: Path, tmp_path: Path, capsys) -> None:
    model = files / "model"
    for name in ("maths", "prose", "code"):
        code, out, err = run(
            capsys, "collect", model, files / f"{name}.jsonl", "--out", tmp_path / name, "--samples", 12, "--name", name
        )
        assert code == 0, err
        assert "12 " + name in out
        assert "100.00%" in out
    code, out, err = run(
        capsys, "select", model, "--target", tmp_path / "maths", "--reference", f"prose={tmp_path / 'prose'}",
        "--reference", f"code={tmp_path / 'code' / 'statistics.safetensors'}", "--ratio", 0.05, "--ratio", 0.1,
        "--masks", "--out", tmp_path / "sets",
    )  # fmt: skip
    assert code == 0, err
    assert "target - (prose | code) @ 0.1" in out
    assert sorted(f.name for f in (tmp_path / "sets").iterdir()) == [
        "masks-0.05.safetensors", "masks-0.1.safetensors", "selection-0.05.safetensors", "selection-0.1.safetensors",
    ]  # fmt: skip
    selection = tmp_path / "sets" / "selection-0.1.safetensors"
    code, out, err = run(capsys, "compare", model, selection, tmp_path / "sets" / "masks-0.1.safetensors")
    assert code == 0, err
    assert "Jaccard 1.000" in out
    assert "down_proj" in out

    code, out, err = run(capsys, "apply", model, selection, "--scale", 0, "--out", tmp_path / "edited")
    assert code == 0, err
    plain, edited = (AutoModelForCausalLM.from_pretrained(f) for f in (model, tmp_path / "edited"))
    zeros = sum(int((p == 0).sum()) for p in edited.parameters()) - sum(int((p == 0).sum()) for p in plain.parameters())
    assert f"{zeros} entries times 0" in out
    code, _, err = run(capsys, "apply", model, selection, "--out", tmp_path / "edited")
    assert code == 1
    assert "is not empty; choose a new folder" in err
    code, _, err = run(capsys, "apply", tmp_path / "edited", selection, "--out", tmp_path / "twice")
    assert code == 1
    assert "has other values" in err
    assert not (tmp_path / "twice").exists()
    code, out, err = run(capsys, "undo", tmp_path / "edited", "--out", tmp_path / "restored")
    assert code == 0, err
    restored = AutoModelForCausalLM.from_pretrained(tmp_path / "restored")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), restored.parameters(), strict=True))

    code, out, err = run(
        capsys, "evaluate", model, selection, "--target", files / "maths.jsonl",
        "--reference", f"prose={files / 'prose.jsonl'}", "--scale", 0, "--scale", 1.1,
        "--no-controls", "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    assert len(json.loads((tmp_path / "run" / "effects.json").read_text())["edited"]) == 2
    assert (tmp_path / "run" / "report.html").exists()


def test_a_study_in_one_command(files: Path, tmp_path: Path, capsys) -> None:
    code, out, err = run(
        capsys, "study", files / "model", "--target", files / "maths.jsonl", "--reference", files / "prose.jsonl",
        "--samples", 8, "--items", 6, "--ratio", 0.1, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "report.html" in out
    code, again, err = run(capsys, "report", tmp_path)
    assert (code, again) == (0, out), err
    code, _, err = run(
        capsys, "study", files / "model", "--target", files / "maths.jsonl", "--reference", files / "prose.jsonl",
        "--samples", 20, "--items", 6, "--out", tmp_path / "more",
    )  # fmt: skip
    assert (code, "target has 24 texts; 26 are needed" in err) == (1, True)


def test_mistakes_are_one_sentence(files: Path, tmp_path: Path, capsys) -> None:
    code, _, err = run(capsys, "collect", files / "model", files / "missing.jsonl", "--out", tmp_path)
    assert (code, "missing.jsonl does not exist" in err) == (1, True)
    code, _, err = run(capsys, "report", tmp_path)
    assert (code, "holds no finished study" in err) == (1, True)
    code, _, err = run(
        capsys, "select", files / "model", "--target", "a", "--reference", "b", "--reference", "c", "--out", tmp_path
    )
    assert code == 1
    code, _, err = run(capsys, "collect", files / "model", files / "maths.jsonl", "--out", tmp_path, "--scope", "some")
    assert (code, "'some' is not one of" in err) == (2, True)
    assert "Traceback" not in err


def test_what_is_cheap_is_checked_before_a_model_is_loaded(files: Path, tmp_path: Path, capsys) -> None:
    maths, prose, table = files / "maths.jsonl", files / "prose.jsonl", tmp_path / "table.csv"
    table.write_text("question,answer\na,b,c\n")
    (tmp_path / "text.safetensors").write_text("none")
    with UnitStore(tmp_path / "other", "likelihoods").begin({}), RunFolder(tmp_path / "another") as other:
        other.start("compress", inputs={})
        other.finish()
    study = ("study", "nowhere", "--target", maths, "--reference", prose, "--out")
    for code, words, *arguments in (
        (1, "table.csv:2: has 3 cells", "collect", "nowhere", table, "--out", tmp_path),
        (1, "must hold {question}", "collect", "nowhere", maths, "--out", tmp_path, "--template", "x"),
        (1, "is no manifest of mathneuro-statistics", "collect", "nowhere", maths, "--out", tmp_path / "other"),
        (1, "a run of 'compress'", *study, tmp_path / "another"),
        (2, "regular expression", "collect", "nowhere", maths, "--out", tmp_path, "--include", "("),
        (1, "is an address", "select", "nowhere", "--target", "a", "--reference", "b", "--out", "s3://a/b"),
        (1, "is an address", "apply", "nowhere", "a", "--out", "s3://a/b"),
        (1, "table.csv is not empty", "apply", "nowhere", "a", "--out", table),
        (1, "target has 24 texts; 148 are needed", *study, tmp_path / "study"),
        (2, "ratio is 2.0", *study, tmp_path / "study", "--ratio", 2),
        (2, "scale is nan", *study, tmp_path / "study", "--scale", "nan"),
        (1, "must hold {question}", *study, tmp_path / "study", "--template", "x"),
        (1, "text.safetensors", "apply", "nowhere", tmp_path / "text.safetensors", "--out", tmp_path / "edited"),
        (1, "text.safetensors", "compare", "nowhere", *2 * [tmp_path / "text.safetensors"]),
        (1, "missing", "select", "nowhere", "--target", "missing", "--reference", "b", "--out", tmp_path),
        (2, "ratio is 0.0", "select", "nowhere", "--target", "a", "--reference", "b", "--ratio", 0, "--out", tmp_path),
        (1, "text.safetensors", "evaluate", "nowhere", tmp_path / "text.safetensors", "--target", maths, "--reference",
         prose, "--out", tmp_path),
    ):  # fmt: skip
        found, _, err = run(capsys, *arguments)
        assert (found, words in " ".join(err.split())) == (code, True), err
        assert "nowhere" not in err
    assert not (tmp_path / "study").exists()


def test_two_evaluations_do_not_share_a_folder(files: Path, tmp_path: Path, capsys) -> None:
    from paperhooks.io import FolderLock

    stages = [
        ("collect", files / "model", files / f"{side}.jsonl", "--out", tmp_path / side) for side in ("maths", "prose")
    ]
    stages.append(
        (
            "select",
            files / "model",
            "--target",
            tmp_path / "maths",
            "--reference",
            tmp_path / "prose",
            "--out",
            tmp_path,
        )
    )
    for stage in stages:
        code, _, err = run(capsys, *stage)
        assert code == 0, err
    with FolderLock(tmp_path / "run"):
        code, _, err = run(
            capsys, "evaluate", files / "model", tmp_path / "selection-0.05.safetensors", "--target",
            files / "maths.jsonl", "--reference", files / "prose.jsonl", "--out", tmp_path / "run",
        )  # fmt: skip
    assert (code, "is used by another run (process" in err) == (1, True), err


def test_compress_on_the_command_line(files: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(
            ["compress", str(files / "model"), "mathneuro:ratio=0.1,samples=8",
             "--data", f"target={files / 'maths.jsonl'}", "--data", f"reference={files / 'prose.jsonl'}",
             "--out", str(tmp_path)]
        )  # fmt: skip
    assert not end.value.code, capsys.readouterr().err
    assert (tmp_path / "artefact.safetensors").exists()
    assert (tmp_path / "selection.safetensors").exists()
    assert (tmp_path / "target" / "statistics.safetensors").exists()


def test_the_description_is_light_and_true() -> None:
    from paperhooks.plugins import catalog

    status = next(one for one in catalog().healthy if one.name == "mathneuro")
    assert status.info.paper.arxiv == "2410.16930"
    assert catalog().create_method("mathneuro", ratio=0.1).ratio == 0.1
