"""The public surface: every name is there, nothing heavy is imported before it is used."""

from __future__ import annotations

from pathlib import Path

import paperhooks_testbed
import pytest
from paperhooks.testing import run_python


def test_every_public_name_can_be_had():
    for name in paperhooks_testbed.__all__:
        assert getattr(paperhooks_testbed, name) is not None


def test_importing_loads_neither_torch_nor_transformers():
    code = "import sys, paperhooks_testbed; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="attribute nothing"):
        _ = paperhooks_testbed.nothing


def test_no_name_is_also_a_module():
    # Importing such a module would put the module in the place of the name.
    modules = {path.stem for path in Path(paperhooks_testbed.__file__).parent.glob("*.py")}
    assert not modules & set(paperhooks_testbed.__all__)
