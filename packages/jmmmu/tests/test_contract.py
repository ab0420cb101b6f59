"""The contract that every task keeps, on the four tasks of the package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from paperhooks.testing import TaskContract
from paperhooks_jmmmu import Jmmmu, JmmmuPro, JmmmuVerified, MmmuPaired
from paperhooks_jmmmu.data import make_sample

_OTHERS = {"stop": "lmms-eval", "revision": "a" * 40, "pictures": "blank", "parser": "robust", "fallback": "expected"}


def some_subjects(folder: Path, **kind: Any) -> Path:
    """The last twelve subjects of a sample; with the README, all that it lists would have to be there."""
    make_sample(folder, per_subject=1, **kind)
    (folder / "README.md").unlink()
    for subject in sorted(path for path in folder.iterdir() if path.is_dir())[:-12]:
        shutil.rmtree(subject)
    return folder


class TestJmmmu(TaskContract):
    others = _OTHERS
    replies = ("正解は（Ｃ）です。", "C", "D", "12", "約３万円", "申し訳ありませんが、お答えできません。", "AとB", "Z")

    def make(self) -> Jmmmu:
        return Jmmmu()

    def source(self, folder: Path) -> Path:
        return some_subjects(folder)


class TestMmmuPaired(TestJmmmu):
    replies = ("The answer is (C).", "C", "D", "12", "about 3,000", "I'm sorry, I can't help with that.", "A and B")

    def make(self) -> MmmuPaired:
        return MmmuPaired()

    def source(self, folder: Path) -> Path:
        return some_subjects(folder, kind="english")


class TestJmmmuVerified(TestJmmmu):
    others = {**_OTHERS, "answer": "cot"}

    def make(self) -> JmmmuVerified:
        return JmmmuVerified()

    def source(self, folder: Path) -> Path:
        make_sample(folder, per_subject=1, kind="pro")
        return folder


class TestJmmmuPro(TestJmmmuVerified):
    def make(self) -> JmmmuPro:
        return JmmmuPro()
