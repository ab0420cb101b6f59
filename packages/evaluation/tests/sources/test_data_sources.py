"""Rows of folders, files and data sets of the hub, and images that are read when they are opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks_evaluation.sources import DataSource, StoredRow, holds_tables, placed_picture
from PIL import Image

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(colour: int) -> bytes:
    import io

    out = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(out, "PNG")
    return out.getvalue()


def write(file: Path, ids: Sequence[str], images: Sequence[Any] = (), **options: Any) -> Path:
    """A Parquet file of ids and images; an image is a number, a name, or None."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"id": list(ids)}
    if images:
        held = [
            {"bytes": png(one), "path": None} if isinstance(one, int) else one and {"bytes": None, "path": one}
            for one in images
        ]
        columns["image"] = pa.array(held, IMAGE)
    parquet.write_table(pa.table(columns), file, **options)
    return file


def ids(rows: Any) -> list[str]:
    return [row.data["id"] for row in rows]


def read(source: Path | str, **options: Any) -> list[StoredRow]:
    return list(DataSource(str(source), **options).rows(["id"], ["image"]))


def red(place: Mapping[str, Any]) -> int:
    return placed_picture(place).open().getpixel((0, 0))[0]  # type: ignore[index,no-any-return]


# -- forms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        {"test-00000-of-00001.parquet": "ab"},
        {"data/test-00000-of-00002.parquet": "a", "data/test-00001-of-00002.parquet": "b"},
        {"rows.parquet": "ab"},
        {"test/0000.parquet": "ab", "train/0000.parquet": "x"},
        {"default/test/0000.parquet": "ab", "default/partial-train/0000.parquet": "x"},
        {"Design/test-0.parquet": "a", "Design/dev-0.parquet": "x", "Music/test-0.parquet": "b"},
        {"a.parquet": "ab", ".hidden/b.parquet": "x", "._a.parquet": "x"},
    ],
)
def test_a_folder_of_parquet_is_read_by_config_and_split(tmp_path: Path, names: Mapping[str, str]) -> None:
    for name, rows in names.items():
        write(tmp_path / name, list(rows), range(len(rows)))
    assert holds_tables(str(tmp_path)) == any(name.count("/") < 2 for name in names)
    assert ids(read(tmp_path)) == ["a", "b"]


def test_configs_of_a_readme(tmp_path: Path) -> None:
    configs = [
        {"config_name": "z", "data_files": [{"split": "test", "path": "one/t*"}, {"split": "dev", "path": ["two/*"]}]},
        {"config_name": "a", "data_files": [{"split": "test", "path": "two/test-*"}]},
        {"config_name": "absent", "data_files": {"test": "three/*"}},
    ]
    text = f"\n---\nlicense: mit\nconfigs: {json.dumps(configs)}\n---\n# Data\n"
    (tmp_path / "README.md").write_text(text.lstrip())
    write(tmp_path / "one" / "t0.parquet", ["1"])
    write(tmp_path / "one" / "u.parquet", ["x"])
    write(tmp_path / "two" / "test-0.parquet", ["2"])
    assert ids(read(tmp_path)) == ["1", "2"], "in the order of the README"
    assert ids(read(tmp_path, configs=("a",))) == ["2"]
    assert ids(read(tmp_path, configs=("z",), split="dev")) == ["2"]
    assert list(DataSource(str(tmp_path)).files) == ["z", "a"]
    with pytest.raises(DataError, match=r"has no config b; it has z, a$"):
        read(tmp_path, configs=("b",))
    with pytest.raises(DataError, match=r"has no split 'train'; it has dev, test$"):
        read(tmp_path, split="train")
    configs[1]["config_name"] = "default"
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert ids(read(tmp_path)) == ["2"]
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(DataError, match=r"README\.md begins with YAML that cannot be read"):
        read(tmp_path)


def test_a_readme_leads_to_no_file_outside_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "secret.parquet", ["x"])
    folder = tmp_path / "data"
    write(folder / "test.parquet", ["a"])
    (folder / "link.parquet").symlink_to(tmp_path / "secret.parquet")
    for pattern in ("../*.parquet", str(tmp_path / "*.parquet"), "link.parquet"):
        configs = [{"config_name": "a", "data_files": [pattern, "test.parquet"]}]
        (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
        assert ids(read(folder)) == ["a"]


def test_rows_of_text_files_name_their_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(7))
    rows = [
        {"id": "a", "image": "a.png"}, {"id": "b", "image": {"path": "images/a.png", "bytes": None}}, {"id": "c"},
        {"id": "d", "image": "../a.png"}, {"id": "e", "image": 3}, {"id": "f", "image": ""},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "LICENSE.txt").write_text("free")
    for source in (tmp_path, tmp_path / "rows.jsonl"):
        found = list(DataSource(str(source)).rows(["id", "more"], ["image"], digests=True))
        assert [row.data for row in found] == [{"id": one} for one in "abcdef"]
        assert [dict(row.missing) for row in found] == [{}, {}, {}, {"image": "../a.png"}, {"image": "3"}, {}]
        assert [red(row.places["image"]) for row in found if row.places] == [7, 7]
        assert found[0].digests == {"image": hashlib.sha256(png(7)).hexdigest()}
        assert found[0].where.endswith("rows.jsonl:1")
    (tmp_path / "rows.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: is a list; expected an object"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "nowhere is neither a folder or file here nor the name of a hub data set"),
        ("", "has no files with rows; expected some that end in .parquet, .*jsonl"),
    ],
)
def test_a_source_without_rows_is_named(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path / name)


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 100])
def test_images_are_read_when_they_are_opened(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By row group, in any order; a moved file is named."""
    (tmp_path / "f.png").write_bytes(png(99))
    file = write(tmp_path / "a.parquet", "abcde", [0, 1, None, "f.png", 4], row_group_size=size)
    rows = read(tmp_path)
    assert [set(row.places) for row in rows] == [{"image"}, {"image"}, set(), {"image"}, {"image"}]
    assert rows[0].data == {"id": "a"}
    for row, colour in ((4, 4), (0, 0), (3, 99), (1, 1)):
        assert red(rows[row].places["image"]) == colour
    with_digests = list(DataSource(str(file)).rows(["id"], ["image"], digests=True))
    expected = [hashlib.sha256(png(one)).hexdigest() for one in (0, 1, 99, 4)]
    assert [row.digests["image"] for row in with_digests if row.digests] == expected
    assert [placed_picture(row.places["image"]).digest for row in rows if row.places] == expected
    (tmp_path / "f.png").unlink()
    with pytest.raises(
        DataError, match=r"row 3 of a\.parquet, image.*: has no bytes of an image, and the file 'f\.png'"
    ):
        red(rows[3].places["image"])
    file.rename(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is not there any more; put the data back"):
        red(rows[0].places["image"])


def test_no_bytes_of_images_are_read_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pyarrow is asked for, without digests: the paths alone."""
    write(tmp_path / "a.parquet", "ab", [0, None])
    asked: list[Any] = []
    whole = parquet.ParquetFile.iter_batches

    def iter_batches(self: Any, *args: Any, **options: Any) -> Any:
        asked.append(options["columns"])
        return whole(self, *args, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    assert len(read(tmp_path)) == 2
    assert sorted(asked) == [["id"], ["image.path"]]


def test_other_columns_of_images(tmp_path: Path) -> None:
    """Bytes alone, names alone, and what is neither."""
    (tmp_path / "x.png").write_bytes(png(5))
    table = pa.table({"id": ["a", "b"], "image": [png(1), None], "named": ["x.png", None], "number": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    first, second = DataSource(str(tmp_path)).rows(["id"], ["image", "named", "absent"], digests=True)
    assert [red(place) for place in first.places.values()] == [1, 5]
    assert (second.places, second.missing) == ({}, {})
    with pytest.raises(DataError, match=r"a\.parquet has in the column number values of type int64; expected images"):
        list(DataSource(str(tmp_path)).rows(["id"], ["number"]))
    with pytest.raises(DataError, match="has none of the columns question; it has id, image, named, number"):
        list(DataSource(str(tmp_path)).rows(["question"]))


def test_a_file_that_others_count_is_missed(tmp_path: Path) -> None:
    write(tmp_path / "a" / "test-00001-of-00003.parquet", ["a"])
    write(tmp_path / "b" / "test-00000-of-00001.parquet", ["b"])
    assert ids(read(str(tmp_path), configs=("b",))) == ["b"]
    with pytest.raises(DataError, match="lacks test-00000-of-00003, test-00002-of-00003, which"):
        read(str(tmp_path))
    for number in (0, 2):
        write(tmp_path / "a" / f"test-0000{number}-of-00003.parquet", [str(number)])
    assert ids(read(str(tmp_path))) == ["0", "a", "2", "b"]


def test_numbered_files_may_have_names_of_their_own(tmp_path: Path) -> None:
    """Each with a hash, as older versions of the library wrote them; in endings of either case; counted from 1."""
    for number, ending in enumerate(("a25dbe3b.parquet", "7d22c7f1.PARQUET")):
        write(tmp_path / "hub" / "data" / f"test-0000{number}-of-00002-{ending}", [str(number)])
        write(tmp_path / "own" / f"test-0000{number + 1}-of-00002.parquet", [str(number)])
    assert ids(read(str(tmp_path / "hub"))) == ids(read(str(tmp_path / "own"))) == ["0", "1"]
    for part in "ab":  # each folder has one of two
        write(tmp_path / "parts" / "data" / part / f"test-0000{'ab'.index(part)}-of-00002.parquet", [part])
    with pytest.raises(DataError, match="lacks test-00001-of-00002, test-00000-of-00002"):
        read(str(tmp_path / "parts"))


def test_files_of_another_form_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "test.parquet", ["a"])
    (tmp_path / "test.jsonl").write_text('{"id": "b"}')
    (tmp_path / "settings.json").write_text("{}")
    assert ids(read(str(tmp_path))) == ["a"]
    assert caplog.messages == [f"{tmp_path}: test.parquet is read, and files of another form are not: test.jsonl"]


def test_a_picture_that_was_changed_is_told(tmp_path: Path) -> None:
    file = tmp_path / "1.png"
    Image.new("RGB", (2, 2)).save(file)
    place = {"picture": str(file)}
    digest = placed_picture(place).digest
    assert placed_picture(place, digest).size == (2, 2)
    Image.new("RGB", (3, 3)).save(file)
    with pytest.raises(DataError, match=r"1\.png is another picture than when the data were read"):
        placed_picture(place, digest)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [str(i) for i in range(400)], list(range(200)) * 2)
    whole = bytearray(file.read_bytes())
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read: .*; copy it again"):
        read(tmp_path)
    whole[200:2000] = bytes(1800)
    file.write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read: .*; copy it again"):
        list(DataSource(str(tmp_path)).rows(["id"], ["image"], digests=True))


# -- the hub -----------------------------------------------------------------------------------------------------------

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of an earlier download of owner/name, in two revisions, with the network off."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "datasets--owner--name"
    for number, (revision, commit) in enumerate(COMMITS.items()):
        blob = write(home / "blobs" / f"{number}", [revision], [number])
        other = write(home / "blobs" / f"other{number}", [f"other {revision}"])
        for config, target in (("one", blob), ("two", other)):
            link = home / "snapshots" / commit / config / "test-00000-of-00001.parquet"
            link.parent.mkdir(parents=True)
            link.symlink_to(target)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / revision).write_text(commit)
    return home


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("owner/name", {}, ["main", "other main"]),
        ("owner/name@v2", {}, ["v2", "other v2"]),
        ("owner/name", {"revision": "v2", "configs": ("one",)}, ["v2"]),
        (f"owner/name@{COMMITS['v2']}:one:test", {"revision": "main", "split": "x"}, ["v2"]),
        ("owner/name:two", {}, ["other main"]),
    ],
)
def test_a_download_of_the_hub_is_read(cache: Path, source: str, options: Any, expected: list[str]) -> None:
    assert holds_tables(source)
    rows = read(source, **options)
    assert ids(rows) == expected
    assert [red(row.places["image"]) for row in rows if row.places] == [int("v2" in expected)] * (rows[0].places != {})


def test_the_commit_of_a_download_is_told(cache: Path, tmp_path: Path) -> None:
    assert DataSource("owner/name").commit == COMMITS["main"]
    assert DataSource("owner/name@v2:one").commit == COMMITS["v2"]
    write(tmp_path / "here" / "test-0.parquet", ["a"])
    assert DataSource(str(tmp_path / "here")).commit == ""


def test_what_is_not_downloaded_is_named(cache: Path) -> None:
    for source in ("owner/other", "owner/name@v3"):
        with pytest.raises(DataError, match=rf"{source} is no folder here and its split 'test' cannot be loaded"):
            read(source)


def test_only_what_is_wanted_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    configs = [
        {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}-*"} for s in ("dev", "test")]}
        for name in ("one", "two")
    ]
    write(tmp_path / "one" / "test-0.parquet", ["a"])
    asked: list[Any] = []

    def snapshot_download(name: str, *, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, repo_type, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert ids(read("owner/name@abc", configs=("one",))) == ["a"]
    assert asked[1][3][1:3] == ["*.parquet", "*.parquet.gz"], "without a README all that could be read"
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    asked.clear()
    assert ids(read("owner/name@abc", configs=("one",))) == ["a"]
    assert asked == [
        ("owner/name", "dataset", "abc", ["README.md"]),
        ("owner/name", "dataset", "abc", ["README.md", "one/test-*"]),
    ]
