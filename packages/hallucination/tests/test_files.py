"""Files and images as people have them: marks, separators, endings, entries of other kinds, damage, and links."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hallucination_data import pope_rows, write_image, write_lines
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend, Request, arrange
from paperhooks_evaluation import evaluate
from paperhooks_hallucination import Chair, Mme, Pope
from PIL import Image

BOM = "\ufeff"
ODD = "a\u2028b\u2029c\x85d\x0be\x1cf"


def questions(source: Path) -> list[str]:
    return [one.data["question"] for one in Pope().documents(str(source))]


# -- records -----------------------------------------------------------------------------------------------------------


def csv_text(rows: list[dict[str, Any]], mark: str) -> str:
    lines = [mark.join(rows[0]), *(mark.join(str(value) for value in row.values()) for row in rows)]
    return "\r\n".join(lines) + "\r\n"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("coco_pope_random.json", lambda rows: json.dumps(rows).encode()),
        ("coco_pope_random.JSONL", lambda rows: BOM.encode() + b"\r\n".join(json.dumps(row).encode() for row in rows)),
        ("coco_pope_random.ndjson", lambda rows: b"\n".join(json.dumps(row).encode() for row in rows)),
        ("coco_pope_random.jsonl.gz", lambda rows: gzip.compress(b"\n".join(json.dumps(r).encode() for r in rows))),
        ("coco_pope_random.json.gz", lambda rows: gzip.compress(json.dumps(rows).encode())),
        ("coco_pope_random.csv", lambda rows: (BOM + csv_text(rows, ",")).encode()),
        ("coco_pope_random.tsv", lambda rows: csv_text(rows, "\t").encode()),
    ],
)
def test_pope_reads_the_forms_that_files_have(pope_folder: Path, name: str, make: Any) -> None:
    expected = questions(pope_folder / "coco_pope_random.json")
    for file in pope_folder.glob("*.json"):
        file.unlink()
    (pope_folder / name).write_bytes(make(pope_rows(24)))
    (pope_folder / f"._{name}").write_bytes(b"\x00\x05")
    (pope_folder / ".ipynb_checkpoints").mkdir()
    (pope_folder / ".ipynb_checkpoints" / name).write_bytes(b"{")
    assert questions(pope_folder) == questions(pope_folder / name) == expected


def test_a_question_keeps_the_separators_inside_of_it(pope_folder: Path, mme_folder: Path) -> None:
    rows = pope_rows(2)
    rows[0]["text"] = f"Is {ODD} there?"
    (pope_folder / "coco_pope_random.json").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    assert questions(pope_folder / "coco_pope_random.json")[0] == f"Is {ODD} there?"
    (mme_folder / "count" / "0.txt").write_bytes(f"{BOM}Is {ODD} there?\tYes\r\nIs it b?\tNo\r\n".encode())
    documents = {one.id: one for one in Mme().documents(str(mme_folder))}
    assert documents["count/0.jpg/1"].data["question"] == f"Is {ODD} there?"
    assert documents["count/0.jpg/2"].data["answer"] == "no"


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("label", None, "the label is None; expected 'yes' or 'no'"),
        ("label", True, "the label is True"),
        ("label", 1, "the label is 1"),
        ("label", ["yes"], r"the label is \['yes'\]"),
        ("text", None, "the question is None; expected a text"),
        ("text", 7, "the question is 7"),
        ("text", "  ", "the question is ''"),
        ("image", None, "the image is None"),
        ("image", {"bytes": None}, "the image is {'bytes': None}"),
        ("image", "a\0b", "the image a\0b is missing"),
        ("question_id", None, "the question_id is None"),
        ("question_id", 1.5, "the question_id is 1.5"),
    ],
)
def test_pope_refuses_entries_of_other_kinds_by_row(pope_folder: Path, entry: str, value: Any, said: str) -> None:
    rows = pope_rows(6)
    rows[2][entry] = value
    write_lines(pope_folder / "coco_pope_random.json", rows)
    with pytest.raises(DataError, match=rf"has 1 fault:\n.*coco_pope_random\.json:3: {said}"):
        Pope().documents(str(pope_folder / "coco_pope_random.json"))


@pytest.mark.parametrize(
    ("answers", "kind", "question"),
    [(["Yes", None], "string", "Is it?"), ([True, False], "bool", "Is it?"), ([1, 0], "int64", "Is it?"),
     (["Yes", "No"], "string", None)],
)  # fmt: skip
@pytest.mark.parametrize("task", [Pope(), Mme()])
def test_data_sets_with_entries_of_other_kinds_are_refused_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any, answers: list[Any], kind: str, question: str | None
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {
        "question_id": ["color/a.png"] * 2, "question": [question] * 2, "answer": answers,
        "image_source": ["COCO_a"] * 2, "category": ["color" if isinstance(task, Mme) else "random"] * 2,
        "image": [Image.new("RGB", (4, 4))] * 2,
    }  # fmt: skip
    features = {name: datasets.Value("string") for name in columns} | {
        "answer": datasets.Value(kind),
        "image": datasets.Image(),
    }
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(
        tmp_path / "hub" / "test-0.parquet"
    )
    with pytest.raises(DataError, match=r"hub, record \d: the (answer|label|question) is (None|True|1)"):
        task.documents(str(tmp_path / "hub"))


def test_files_that_cannot_be_read_are_named_with_the_other_faults(pope_folder: Path, mme_folder: Path) -> None:
    (pope_folder / "coco_pope_random.json").write_bytes(b'{"question_id": 1}\n\xff\xfe\n')
    with pytest.raises(DataError, match=r"coco_pope_random\.json:2: is not UTF-8"):
        Pope().documents(str(pope_folder))
    (mme_folder / "count" / "0.txt").write_bytes("Is it?\tYes\nIs it?\tNo".encode("utf-16"))
    (mme_folder / "count" / "1.txt").write_bytes(b"Is it\0?\tYes\n")
    with pytest.raises(DataError, match=r"(?s)0\.txt:1: is not UTF-8: it looks like UTF-16.*1\.txt:1: holds a NUL"):
        Mme().documents(str(mme_folder))


def test_chair_refuses_numbers_and_nulls_where_others_belong(coco_folder: Path, tmp_path: Path) -> None:
    file = coco_folder / "annotations" / "captions_val2014.json"
    whole = json.loads(file.read_text())
    file.write_text(BOM + json.dumps(whole))
    assert len(Chair().documents(str(coco_folder))) == 3
    for change in ({"caption": None}, {"caption": 3}, {"image_id": True}, {"image_id": 1.5}, {"image_id": "x"}):
        annotations = [{**whole["annotations"][0], **change}, *whole["annotations"][1:]]
        file.write_text(json.dumps({**whole, "annotations": annotations}))
        with pytest.raises(DataError, match=r"captions_val2014\.json is not in COCO's form"):
            Chair().documents(str(coco_folder))
    file.write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deep"):
        Chair().documents(str(coco_folder))
    file.write_text(json.dumps(whole))
    for text in ("[1.5]", "[true]", "[null]", '[{"id": 3}]'):
        (tmp_path / "ids.json").write_text(text)
        with pytest.raises(DataError, match="is no list of image ids"):
            Chair(ids=str(tmp_path / "ids.json")).documents(str(coco_folder))
    (tmp_path / "ids.csv").write_text("image_id,x\n3,a\n7,b\n")
    assert [one.id for one in Chair(ids=str(tmp_path / "ids.csv")).documents(str(coco_folder))] == ["3", "7"]


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_image(tmp_path: Path) -> Path:
    """POPE about three images, of which ``a.jpg`` is the odd one."""
    rows = [{"question_id": i, "image": f"{n}.jpg", "text": "Is it?", "label": "no"} for i, n in enumerate("abc")]
    write_lines(tmp_path / "data" / "coco_pope_random.json", rows)
    for name in "abc":
        write_image(tmp_path / "data" / f"{name}.jpg")
    return tmp_path / "data" / "a.jpg"


def shown(folder: Path) -> Image.Image:
    return Pope().request(Pope().documents(str(folder))[0]).images[0].open()


def turned() -> Any:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    return image, exif


def test_images_are_turned_alike_wherever_they_come_from(
    one_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    image, exif = turned()
    image.save(one_image, exif=exif, quality=95)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {"question_id": ["0"], "question": ["Is it?"], "answer": ["no"], "image_source": ["COCO_a"],
               "category": ["random"], "image": [{"bytes": one_image.read_bytes(), "path": None}]}  # fmt: skip
    features = {name: datasets.Value("string") for name in columns} | {"image": datasets.Image()}
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(
        tmp_path / "hub" / "test-0.parquet"
    )
    with Image.open(one_image) as opened:
        laid_out = arrange(Request(prompt="x", images=[opened]), "prepend").images[0]
    for found in (shown(one_image.parent), shown(tmp_path / "hub"), laid_out):
        assert (found.size, found.mode) == ((20, 40), "RGB")
        assert found.getpixel((10, 4))[2] > 200, "blue is above"


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "1", "CMYK", "I;16", "I;16B", "YCbCr"])
def test_images_of_all_modes_become_rgb(one_image: Path, mode: str) -> None:
    one_image.unlink()
    image = Image.new(mode, (8, 8)) if mode != "P" else Image.new("RGBA", (8, 8), (9, 9, 9, 0)).convert("P")
    tif = mode in ("CMYK", "I;16B", "YCbCr")
    image.save(one_image, format="TIFF" if tif else "PNG")
    assert (shown(one_image.parent).mode, shown(one_image.parent).size) == ("RGB", (8, 8))


def test_sixteen_bits_are_not_cut_to_white(one_image: Path) -> None:
    Image.fromarray(np.array([[0, 128 * 257, 65535]], dtype=np.uint16)).save(one_image, format="PNG")
    assert [shown(one_image.parent).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def bomb() -> bytes:
    """A PNG that claims 30,000 x 30,000 pixels."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("kind", ["bomb", "large", "cut", "cut png", "text", "empty", "flipped", "folder"])
def test_an_image_that_cannot_be_read_is_the_error_of_its_document(
    one_image: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = one_image.read_bytes()
    png = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(png)
    flipped = bytearray(png.read_bytes())
    flipped[18], flipped[60] = 0xFF, flipped[60] ^ 0xFF
    data = {"bomb": bomb(), "cut": whole[:300], "cut png": png.read_bytes()[:900], "text": b"hello", "empty": b"",
            "flipped": bytes(flipped)}  # fmt: skip
    if kind == "large":
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 40)
        write_image(one_image.parent / "b.jpg")
        for name in "bc":
            Image.new("RGB", (4, 4)).save(one_image.parent / f"{name}.jpg")
    elif kind == "folder":
        documents = Pope().documents(str(one_image.parent))
        one_image.unlink()
        one_image.mkdir()
        with pytest.raises(DataError, match="cannot be opened as an image"):
            Pope().request(documents[0]).images[0].open()
        return
    else:
        one_image.write_bytes(data[kind])
    result = evaluate(
        CallableBackend(lambda request: "No"), None, Pope(), data=one_image.parent, out=tmp_path / "run", report=False
    )
    assert (list(result.first.failures), len(result.records)) == (["coco-random-0"], 2)
    assert "a.jpg cannot be opened as an image" in result.first.failures["coco-random-0"]


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "{root}/secret.jpg", "link.jpg", "away/secret.jpg", "in/../../secret.jpg"]
)
def test_nothing_outside_of_the_folder_is_opened(one_image: Path, tmp_path: Path, name: str) -> None:
    folder = one_image.parent
    write_image(tmp_path / "secret.jpg")
    (folder / "in").mkdir()
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "away").symlink_to(tmp_path)
    rows = pope_rows(1)
    rows[0]["image"] = name.format(root=tmp_path)
    write_lines(folder / "coco_pope_random.json", rows)
    with pytest.raises(DataError, match=r"is missing \(what a name or a link would find outside of the folder is not"):
        Pope().documents(str(folder))


def test_links_that_stay_inside_and_folders_that_are_named_are_fine(one_image: Path, tmp_path: Path) -> None:
    folder = one_image.parent
    (folder / "d.jpg").symlink_to(folder / "b.jpg")
    rows = pope_rows(1)
    rows[0]["image"] = "d.jpg"
    write_lines(folder / "coco_pope_random.json", rows)
    assert shown(folder).size == (8, 8)
    (tmp_path / "linked").symlink_to(folder)
    assert shown(tmp_path / "linked").size == (8, 8)
    write_image(tmp_path / "elsewhere" / "d.jpg", (0, 255, 0))
    assert Pope(images=str(tmp_path / "elsewhere")).documents(str(folder))


def test_a_download_of_the_hub_is_all_links_and_is_read(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "123"
    write_lines(snapshot / "coco_pope_random.json", [{**pope_rows(1)[0], "image": "a.jpg"}])
    write_image(tmp_path / "datasets--a--b" / "blobs" / "f00.jpg")
    (snapshot / "a.jpg").symlink_to(tmp_path / "datasets--a--b" / "blobs" / "f00.jpg")
    assert shown(snapshot).size == (8, 8)


def test_data_that_are_moved_go_on(tmp_path: Path, pope_folder: Path, mme_folder: Path, coco_folder: Path) -> None:
    """Also the folder of images that is named beside them; the files of a run tell no place."""
    images = tmp_path / "images"
    (coco_folder / "val2014").rename(images)
    (tmp_path / "moved").mkdir()
    asked: list[str] = []

    def answer(request: Request) -> str:
        asked.append(request.metadata["id"])
        return "No"

    for task, folder in ((Pope, pope_folder), (Mme, mme_folder), (partial(Chair, images=str(images)), coco_folder)):
        out = tmp_path / "runs" / folder.name
        evaluate(CallableBackend(answer), None, task(), data=folder, out=out, report=False, limit=2)
        whole = len(task().documents(str(folder)))
        folder.rename(moved := tmp_path / "moved" / folder.name)
        if folder == coco_folder:
            task = partial(Chair, images=str(images.rename(tmp_path / "moved" / "images")))
        asked.clear()
        evaluate(CallableBackend(answer), None, task(), data=moved, out=out, report=False)
        assert len(asked) == whole - 2
        assert str(tmp_path) not in (out / "documents.jsonl").read_text()
