"""The public names: exactly ``__all__``, all of them there, and none hidden by a submodule."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import paperhooks
import pytest
from paperhooks.errors import LibraryBroken, MissingExtra, require
from paperhooks.testing import run_python


@pytest.mark.parametrize("name", paperhooks.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(paperhooks, name)
    assert name in dir(paperhooks)
    assert not inspect.ismodule(value)


def test_names_are_sorted_and_unique_and_star_import_gives_them() -> None:
    assert len(set(paperhooks.__all__)) == len(paperhooks.__all__)
    scope: dict[str, object] = {}
    exec("from paperhooks import *", scope)
    assert set(paperhooks.__all__) <= set(scope)


def test_no_submodule_takes_the_name_of_a_public_function() -> None:
    folder = Path(paperhooks.__file__).parent
    for file in folder.iterdir():
        if file.suffix == ".py" or (file / "__init__.py").is_file():
            importlib.import_module(f"paperhooks.{file.stem}".removesuffix(".__init__"))
    for name in {"evaluate", "compress", "select", "score", "attach"} & set(paperhooks.__all__):
        assert callable(getattr(paperhooks, name))


WITHOUT_TOOLKIT = """
import sys
sys.modules["paperhooks_evaluation"] = None  # as where it is not installed
from paperhooks import *
import paperhooks
assert "attach" in paperhooks.__all__ and "evaluate" not in paperhooks.__all__
try:
    paperhooks.evaluate
except paperhooks.MissingExtra as error:
    print(error)
"""


def test_without_the_toolkit_its_names_say_which_extra_they_come_with() -> None:
    assert "pip install 'paperhooks[evaluation]'" in run_python("-c", WITHOUT_TOOLKIT).stdout


def test_a_library_that_is_there_and_broken_is_not_called_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "clashing_library.py").write_text("raise AttributeError('built for another numpy')")
    (tmp_path / "needy_library.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LibraryBroken, match=r"is installed and cannot be imported: AttributeError: built for another"):
        require("clashing_library", "paperhooks[x]", "to test")
    with pytest.raises(LibraryBroken, match=r"No module named 'no_such_module'"):
        require("needy_library", "paperhooks[x]", "to test")
    with pytest.raises(MissingExtra, match=r"other-library is needed to test; install it with: pip"):
        require("other_library.part", "paperhooks[x]", "to test")


def test_unknown_names_raise_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = paperhooks.nonsense
