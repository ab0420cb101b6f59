"""`paperhooks new`: the generated project is clean, importable and works."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from paperhooks.authoring.template import create_project
from paperhooks.errors import DataError
from paperhooks.plugins.installed import Catalog
from paperhooks.testing import run_python

pytest_plugins = ["paperhooks.testing.site_fixtures"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    """A generated project whose source is on the path."""
    folder = create_project("my-method", tmp_path)
    monkeypatch.syspath_prepend(str(folder / "src"))
    yield folder
    for name in [name for name in sys.modules if name.startswith("paperhooks_my_method")]:
        del sys.modules[name]


def test_the_project_names_itself_everywhere(project: Path) -> None:
    assert project.name == "paperhooks-my-method"
    data = tomllib.loads((project / "pyproject.toml").read_text())
    assert data["project"]["name"] == "paperhooks-my-method"
    assert data["project"]["entry-points"]["paperhooks.plugins"] == {"my-method": "paperhooks_my_method.plugin:PLUGIN"}
    files = {p.relative_to(project).as_posix() for p in project.rglob("*") if p.is_file()}
    sources = {f"src/paperhooks_my_method/{name}" for name in ("py.typed", "__init__.pyi", "algorithm.py", "method.py")}
    assert sources | {"README.md", "tests/test_method.py", ".gitignore"} <= files
    for file in files:
        assert "$" not in (project / file).read_text()


def test_the_code_is_clean_for_ruff(project: Path) -> None:
    config = Path(__file__).parents[3] / "ruff.toml"
    settings = ["--config", str(config)] if config.is_file() else ["--isolated"]
    for command in (["check", "--no-cache", *settings], ["format", "--check", "--no-cache", *settings]):
        run_python("-m", "ruff", *command, ".", cwd=project)


def test_listing_the_plugin_imports_no_torch(project: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(project / 'src')!r})\n"
        "from paperhooks_my_method.plugin import PLUGIN\n"
        "print(PLUGIN.name, 'torch' in sys.modules)\n"
    )
    assert run_python("-c", code).stdout.split() == ["my-method", "False"]


def test_the_method_attaches_and_changes_the_model(project: Path, own_catalog: Catalog) -> None:
    import paperhooks
    import torch
    from paperhooks_my_method.plugin import PLUGIN
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(6)[None]
    own_catalog.register(PLUGIN)
    with torch.no_grad():
        before = model(ids, output_hidden_states=True).hidden_states
        with paperhooks.attach(model, own_catalog.create_method("my-method", factor=0.5, first_layer=1)):
            inside = model(ids, output_hidden_states=True).hidden_states
        after = model(ids).logits
        assert torch.equal(after, model(ids).logits)
    assert torch.equal(inside[1], before[1])
    assert torch.allclose(inside[2], before[2] * 0.5)


def test_its_own_tests_pass(project: Path) -> None:
    pytest.importorskip("paperhooks.testing")
    words = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", project)
    run_python(*words, cwd=project, environment={"PYTHONPATH": _with(project / "src")})


def _with(folder: Path) -> str:
    return ":".join([str(folder), *(entry for entry in sys.path if entry)])


@pytest.mark.parametrize("name", ["My", "a b", "../evil", "", "class", "-a", "a_b"])
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="kebab-case"):
        create_project(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_touched(tmp_path: Path) -> None:
    folder = tmp_path / "paperhooks-mine"
    folder.mkdir()
    (folder / "work.py").write_text("precious")
    with pytest.raises(DataError, match="already there"):
        create_project("mine", tmp_path)
    assert [p.name for p in folder.iterdir()] == ["work.py"]
