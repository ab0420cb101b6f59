"""A synthetic data set of JMMMU's form, for tests and demos: no question of the benchmark is in it."""

from __future__ import annotations

import io
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from paperhooks.errors import DataError, did_you_mean, require
from paperhooks.io import atomic_path, write_text

from paperhooks_jmmmu.data.editions import ENGLISH
from paperhooks_jmmmu.data.option_lists import LETTERS, parse_options
from paperhooks_jmmmu.data.placeholders import SLOTS
from paperhooks_jmmmu.data.rows import CHOICE, OPEN
from paperhooks_jmmmu.data.sample_pictures import Painter
from paperhooks_jmmmu.data.subjects import SUBJECTS

__all__ = ["SampleKind", "make_sample"]

log = logging.getLogger(__name__)

#: JMMMU, its English twin with the same ids, or JMMMU-Pro (configs ``standard`` and ``vision``).
SampleKind: TypeAlias = Literal["japanese", "english", "pro"]
_EXTRA: Final = "paperhooks-jmmmu[data]"
_ROW_GROUP: Final = 100  # as the library datasets writes images
_WORDS: Final = (
    ("富士山", "mountain"), ("浮世絵", "woodcut"), ("茶碗", "tea bowl"), ("電流", "current"), ("利益", "profit"),
    ("細胞", "cell"), ("橋", "bridge"), ("薬", "medicine"), ("楽譜", "score"), ("地図", "map"), ("城", "castle"),
    ("歯車", "gear"), ("酸素", "oxygen"), ("市場", "market"),
)  # fmt: skip
_Row: TypeAlias = dict[str, Any]


def make_sample(
    folder: str | Path, per_subject: int = 5, seed: int = 0, *, kind: SampleKind = "japanese", font: str = ""
) -> bool:
    """Write a synthetic set as Parquet with a README that lists the configs, as on the hub.

    Questions with one picture, with two of which one is mentioned twice, with pictures as options, with an open number,
    without picture, and with nine options, in turn. The same arguments give the same bytes, with the same versions of
    pillow and pyarrow.

    :param folder: where to write; files of an earlier sample are written anew.
    :param per_subject: questions of each of the 28 subjects; the English twin has the 24 that are translated.
    :param font: the file of a font with Japanese characters, where those of Debian's fonts-ipafont-gothic and
        fonts-vlgothic are not there.
    :returns: whether there was such a font; without one, pictures are drawn without text, and a warning says so.
    :raises DataError: an unknown kind, no question, or a font that cannot be read.
    :raises MissingExtra: without pillow or pyarrow.
    """
    if kind not in get_args(SampleKind):
        raise DataError(f"there is no kind of sample {kind!r}; {did_you_mean(kind, get_args(SampleKind))}")
    if isinstance(per_subject, bool) or not isinstance(per_subject, int) or per_subject < 1:
        raise DataError(f"per_subject = {per_subject!r} must be a whole number of at least 1")
    painter = Painter(font)
    if not painter.writes:
        log.warning(
            "no font with Japanese characters was found: the pictures in %s are without text; install Debian's "
            "fonts-ipafont-gothic, or name the file of a font (font=, --font)",
            folder,
        )
    path, split = Path(folder), "validation" if kind == "english" else "test"
    subjects = ENGLISH.subjects if kind == "english" else tuple(SUBJECTS)
    by_subject = {name: list(_rows(name, per_subject, seed, kind, painter)) for name in subjects}
    configs = by_subject
    if kind == "pro":
        whole = [row for rows in by_subject.values() for row in rows]
        configs = {"standard": whole, "vision": [_vision_row(row, painter) for row in whole]}
    for config, rows in configs.items():
        columns = _columns(kind, vision=config == "vision")
        _write(path / config / f"{split}-00000-of-00001.parquet", rows, columns)
    write_text(path / "README.md", _readme(list(configs), split))
    return painter.writes


# -- questions ---------------------------------------------------------------------------------------------------------


def _rows(subject: str, count: int, seed: int, kind: SampleKind, painter: Painter) -> Iterator[_Row]:
    """The rows of a subject; each draws from a generator of its own, so that more rows change none."""
    translated = SUBJECTS[subject].subset == "CA"
    start = list(SUBJECTS).index(subject)
    for number in range(1, count + 1):
        generator = random.Random(f"jmmmu sample {seed} {subject} {number}")
        make = _MAKERS[(start + number) % len(_MAKERS)]
        if make is _open and (kind == "pro" or not translated):
            make = _one  # there are no open questions on culture, nor in JMMMU-Pro
        # A picture of MMMU that needed no translation is the same in both languages.
        original = translated and generator.random() < 0.5
        row = make(generator, kind == "english", painter, original)
        split = "validation" if translated else "test"
        yield {
            "id": f"{split}_{subject}_{number}",
            "explanation": "",
            "topic_difficulty": generator.choice(("Easy", "Medium", "Hard")),
            "subfield": subject.replace("_", " "),
            "img_type": "['Diagrams']",
            "subject": subject,
            **_rights(row, original if translated else None),
            **row,
        }


def _rights(row: Mapping[str, Any], original: bool | None) -> _Row:
    found: _Row = {}
    for slot in SLOTS:
        there = slot in row
        found |= {f"{slot}_license": "CC0-1.0" if there else None, f"{slot}_attribution": "" if there else None}
        found[f"{slot}_use_original_mmmu"] = original if there else None
    return found


def _choice(generator: random.Random, question: str, right: str, options: list[str], pictures: Sequence[bytes]) -> _Row:
    generator.shuffle(options)
    answer = LETTERS[options.index(right)]
    return _row(question, str(options), answer, CHOICE, pictures)


def _row(question: str, options: str, answer: str, kind: str, pictures: Sequence[bytes]) -> _Row:
    shown = {f"image_{number}": picture for number, picture in enumerate(pictures, 1)}
    return {"question": question, "options": options, "answer": answer, "question_type": kind, **shown}


def _one(generator: random.Random, english: bool, painter: Painter, original: bool, options: int = 4) -> _Row:
    words = generator.sample(_WORDS, options)
    question = "Which word does <image 1> stand for?" if english else "<image 1> が表す言葉はどれですか。"
    picture = painter.picture(words[0][english or original])
    return _choice(generator, question, words[0][english], [word[english] for word in words], [picture])


def _two(generator: random.Random, english: bool, painter: Painter, original: bool) -> _Row:
    words = generator.sample(_WORDS, 4)
    question = (
        "Compare <image 2> with <image 1>. Which word does <image 2> stand for?"
        if english
        else "<image 2>と<image 1>を比べ、<image 2>が表す言葉を選びなさい。"
    )
    pictures = [painter.picture(word[english or original]) for word in words[:2]]
    return _choice(generator, question, words[1][english], [word[english] for word in words], pictures)


def _pictures(generator: random.Random, english: bool, painter: Painter, original: bool) -> _Row:
    words = generator.sample(_WORDS, 4)
    right = generator.randrange(4)
    word = words[right][english]
    question = f"Which picture stands for '{word}'?" if english else f"「{word}」を表す図はどれですか。"
    pictures = [painter.picture(each[english or original]) for each in words]
    return _row(question, str([f"<image {n}>" for n in range(1, 5)]), LETTERS[right], CHOICE, pictures)


def _open(generator: random.Random, english: bool, painter: Painter, original: bool) -> _Row:
    length, times = generator.randrange(10, 99), generator.randrange(2, 9)
    question = (
        f"What is the length in <image 1>, taken {times} times, in metres?"
        if english
        else f"<image 1> の長さの{times}倍は何メートルですか。"
    )
    picture = painter.picture(f"{length / 10} m")
    return _row(question, "[]", f"{length * times / 10:g}", OPEN, [picture])


def _none(generator: random.Random, english: bool, painter: Painter, original: bool) -> _Row:
    words = generator.sample(_WORDS, 4)
    word = words[0][english]
    question = f"What is '{word}' in Japanese?" if english else f"「{word}」は英語でどれですか。"
    return _choice(generator, question, words[0][not english], [each[not english] for each in words], [])


def _nine(generator: random.Random, english: bool, painter: Painter, original: bool) -> _Row:
    return _one(generator, english, painter, original, options=9)


_MAKERS: Final[tuple[Callable[..., _Row], ...]] = (_one, _two, _pictures, _open, _none, _nine)


def _vision_row(row: _Row, painter: Painter) -> _Row:
    """A row of JMMMU-Pro's vision setting: question, options and pictures in one picture."""
    lines = [row["question"], *(f"{letter}. {text}" for letter, text in zip(LETTERS, parse_options(row["options"])))]
    picture = painter.page(lines, [row[slot] for slot in SLOTS if slot in row])
    kept = ("id", "options", "answer", "question_type", "subject")
    return {name: row[name] for name in kept} | {"image": picture}


# -- files -------------------------------------------------------------------------------------------------------------


def _write(file: Path, rows: Sequence[_Row], columns: Mapping[str, str]) -> None:
    pa = require("pyarrow", _EXTRA, "to write Parquet files")
    parquet = require("pyarrow.parquet", _EXTRA, "to write Parquet files")
    types = {"string": pa.string(), "bool": pa.bool_()}
    types["image"] = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = {name: pa.array([_stored(row.get(name)) for row in rows], types[kind]) for name, kind in columns.items()}
    table = pa.table(arrays).replace_schema_metadata(_features(columns))
    out = io.BytesIO()
    parquet.write_table(table, out, row_group_size=_ROW_GROUP)
    with atomic_path(file) as temporary:
        temporary.write_bytes(out.getvalue())


def _columns(kind: SampleKind, *, vision: bool) -> dict[str, str]:
    """Columns with their types, as on the hub."""
    subject = ("subject",) if kind == "pro" else ()
    if vision:
        return dict.fromkeys(("id", "options", "answer", "question_type", *subject), "string") | {"image": "image"}
    found = dict.fromkeys(("id", "question", "options", "explanation", *subject), "string")
    for slot in SLOTS:
        found[slot] = "image"
        if kind != "english":
            found |= dict.fromkeys((f"{slot}_license", f"{slot}_attribution"), "string")
            found[f"{slot}_use_original_mmmu"] = "bool"
    more = ("img_type", "answer", "topic_difficulty", "question_type", "subfield")
    return found | dict.fromkeys(more, "string")


def _features(columns: Mapping[str, str]) -> dict[str, str]:
    """What tells the library datasets which columns hold images."""
    features = {
        name: {"_type": "Image"} if kind == "image" else {"dtype": kind, "_type": "Value"}
        for name, kind in columns.items()
    }
    return {"huggingface": json.dumps({"info": {"features": features}})}


def _stored(value: Any) -> Any:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value


def _readme(configs: Sequence[str], split: str) -> str:
    lines = ["---", "configs:"]
    for name in configs:
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {name}/{split}-*"]
    return "\n".join([*lines, "---", "", "A synthetic data set of the form of JMMMU; no question of it is real.", ""])
