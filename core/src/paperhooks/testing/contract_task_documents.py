"""The task contract's checks of documents, requests and options."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from paperhooks.errors import PaperhooksError
from paperhooks.generation import Layout, arrange
from paperhooks.io import Picture, plain
from paperhooks.testing.contract_task_material import TaskMaterial
from paperhooks.testing.processes import run_python

__all__ = ["DocumentChecks"]

#: Reads documents, parses and scores in a process of its own, and prints which heavy libraries that has loaded.
_LIGHT: Final = """
import importlib, json, sys
folder, module, name, options, source = json.loads(sys.argv[1])
sys.path.insert(0, folder)
task = getattr(importlib.import_module(module), name)(**options)
for document in task.documents(source)[:3]:
    for mode in task.modes:
        task.score(document, task.parse(document, "A", mode))
print(json.dumps([name for name in ("torch", "transformers") if name in sys.modules]))
"""


class DocumentChecks(TaskMaterial):
    """What holds before a model is asked."""

    def test_documents_are_the_same_at_every_call(self, tmp_path: Path) -> None:
        """Two fresh tasks, and one asked twice, give the same documents in the same order."""
        source = str(self.written(tmp_path / "data"))
        task = self.make()
        first = _shown(task.documents(source))
        assert first, f"there are no documents in {source}"
        assert _shown(task.documents(source)) == first, "the second call gives other documents than the first"
        assert _shown(self.make().documents(source)) == first, "a second task gives other documents"

    def test_ids_are_unique_texts(self, tmp_path: Path) -> None:
        """No two documents share an id, and an id is a text that files can hold."""
        _, documents = self.material(tmp_path)
        ids = [document.id for document in documents]
        wrong = [one for one in ids if not _is_text(one)]
        assert wrong == [], f"ids that are no text for a file: {wrong}"
        double = sorted({one for one in ids if ids.count(one) > 1})
        assert double == [], f"several documents share an id: {double}"

    def test_groups_are_texts_by_grouping(self, tmp_path: Path) -> None:
        """Groupings are names as of a variable, groups are texts."""
        _, documents = self.material(tmp_path)
        pairs = {pair for document in documents for pair in document.groups.items()}
        wrong = [(key, group) for key, group in pairs if not (_is_text(key) and key.isidentifier() and _is_text(group))]
        assert wrong == [], f"groupings that are no names, or groups that are no texts: {sorted(wrong, key=repr)}"

    def test_data_are_plain_json(self, tmp_path: Path) -> None:
        """Data come back from JSON as they were, tuples as lists."""
        _, documents = self.material(tmp_path)
        for document in documents:
            try:
                written = json.dumps(document.data)
            except (TypeError, ValueError) as error:
                pytest.fail(f"the data of {document.id!r} are no JSON: {error}")
            same = repr(json.loads(written)) == repr(_listed(document.data))
            assert same, f"the data of {document.id!r} come back from JSON otherwise: a key is no text"

    def test_data_know_no_place(self, tmp_path: Path) -> None:
        """Neither id, groups nor data hold the folder of the source; that belongs into ``Document.place``."""
        _, documents = self.material(tmp_path)
        for document in documents:
            told = json.dumps([document.id, dict(document.groups), plain(document.data)], ensure_ascii=False)
            assert str(tmp_path) not in told, f"{document.id!r} tells where the data lie, outside of Document.place"

    def test_data_may_be_moved(self, tmp_path: Path) -> None:
        """The same files in another folder give the same documents and requests."""
        first, second = tmp_path / "first", tmp_path / "second"
        source = self.written(first)
        task = self.make()
        before = task.documents(str(source))
        asked = [self.asked(task, document) for document in before]
        shutil.move(first, second)
        moved = str(source).replace(str(first), str(second))
        after = self.make().documents(moved)
        assert _shown(after) == _shown(before), "other documents, although the data were only moved"
        assert [self.asked(task, one) for one in after] == asked, "other requests, although the data were only moved"

    def test_requests_are_the_same_at_every_call(self, tmp_path: Path) -> None:
        """A request depends on its document alone: asked again, in another order, of another task."""
        task, documents = self.material(tmp_path)
        first = [self.asked(task, document) for document in documents]
        again = [self.asked(task, document) for document in reversed(documents)][::-1]
        assert again == first, "the second request of a document is another one than the first"
        other = self.make()
        assert [self.asked(other, document) for document in documents] == first, "a second task asks otherwise"

    def test_requests_hold_pictures(self, tmp_path: Path) -> None:
        """Images are unopened ``paperhooks.io.Picture``, or PIL images."""
        from PIL.Image import Image

        task, documents = self.material(tmp_path)
        for document in documents:
            for image in task.request(document).images:
                assert isinstance(image, Picture | Image), (
                    f"the request of {document.id!r} has an image of the kind {type(image).__name__}; expected "
                    "paperhooks.io.Picture, or an image of PIL"
                )

    @pytest.mark.parametrize("layout", get_args(Layout))
    def test_layouts(self, layout: str, tmp_path: Path) -> None:
        """Every layout works, or is refused by an error of paperhooks; the task's own works."""
        task, documents = self.material(tmp_path)
        for document in documents:
            request = task.request(document)
            try:
                arrange(request, layout, opened=False)
            except PaperhooksError as error:
                if layout == task.layout:
                    pytest.fail(f"the task's own layout {layout!r} does not work: {error}")
            except Exception as error:
                pytest.fail(f"the layout {layout!r} fails with {type(error).__name__}: {error}")

    # -- options -------------------------------------------------------------------------------------------------------

    def test_options_that_change_replies_are_told_from_those_that_change_scores(self, tmp_path: Path) -> None:
        """The fingerprint changes with the former alone; the latter, and places, change no request."""
        task, documents = self.material(tmp_path)
        fingerprint, few = task.fingerprint(), self.some(documents)
        asked = [self.asked(task, document) for document in few]
        for name, changed in self._changed(task):
            if name in (*task.scoring_options, *self.places):
                assert changed.fingerprint() == fingerprint, f"{name} changes no reply, and yet the fingerprint"
                assert [self.asked(changed, one) for one in few] == asked, f"{name} changes the request"
            else:
                assert changed.fingerprint() != fingerprint, f"the fingerprint does not know the option {name}"
                assert name in task.options(), f"options() leaves {name} out, and places does not name it"

    def _changed(self, task: Any) -> Iterator[tuple[str, Any]]:
        """The task with one option after the other changed, without those whose other value it refuses."""
        for each in dataclasses.fields(task) if dataclasses.is_dataclass(task) else ():
            value = getattr(task, each.name)
            if each.name in self.others:
                yield each.name, dataclasses.replace(task, **{each.name: self.others[each.name]})
            elif isinstance(value, int):
                try:
                    other = dataclasses.replace(
                        task, **{each.name: not value if isinstance(value, bool) else value + 1}
                    )
                except PaperhooksError:
                    continue
                yield each.name, other
            else:
                pytest.fail(f"others does not say another value of the option {each.name!r}, which is {value!r}")

    def test_a_task_goes_to_another_process(self) -> None:
        """It can be pickled, and made again from its options as they are recorded: what comes out asks the same."""
        task = self.make()
        try:
            copy = ForkingPickler.loads(bytes(ForkingPickler.dumps(task)))
        except Exception as error:
            pytest.fail(f"the task cannot be pickled: {error}")
        again = type(task)(**json.loads(json.dumps(_options(task))))
        for what, other in (("its pickle", copy), ("its recorded options", again)):
            assert other.fingerprint() == task.fingerprint(), f"{what} give a task with another fingerprint"

    def test_reading_documents_and_replies_loads_no_torch(self, tmp_path: Path) -> None:
        """In a fresh process ``documents``, ``parse`` and ``score`` load neither torch nor transformers."""
        task = self.make()
        folder = str(Path(inspect.getfile(type(task))).parent)
        names = type(task).__module__, type(task).__qualname__
        given = json.dumps([folder, *names, _options(task), str(self.written(tmp_path / "data"))])
        loaded = json.loads(run_python("-c", _LIGHT, given).stdout.splitlines()[-1])
        assert loaded == [], f"documents, parse and score of {names[1]} load {' and '.join(loaded)}"


def _options(task: Any) -> dict[str, Any]:
    """All options as they are recorded; a task that is no dataclass has none."""
    fields = dataclasses.fields(task) if dataclasses.is_dataclass(task) else ()
    return {each.name: plain(getattr(task, each.name)) for each in fields if each.init}


def _listed(value: Any) -> Any:
    """Tuples as lists, all else as it is."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _shown(documents: Any) -> list[str]:
    return [json.dumps([one.id, dict(one.groups), plain(one.data)]) for one in documents]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and value.encode(errors="replace").decode() == value
