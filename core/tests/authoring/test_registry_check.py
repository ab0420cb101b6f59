"""registry.toml: the schema, and agreement with packages."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from paperhooks.authoring import check_registry, update_registry
from paperhooks.errors import RegistryError
from paperhooks.plugins import load_registry, plugin_table_markdown, replace_between_markers
from paperhooks.plugins.registry import find_registry, install_hint
from paperhooks.testing.fake_site import METHOD

pytest_plugins = ["paperhooks.testing.site_fixtures"]

REGISTRY = """
schema = 1

[core]
distribution = "paperhooks"
path = "core"
hook_api = 1

[[plugin]]
name = "t-one"
distribution = "dist-one"
path = "packages/one"
summary = "Scales layers."
hooks = ["post_layer"]
hook_api = 1
models = ["llama"]
status = "stable"
devices = ["cpu"]
dtypes = ["float32"]
attention = ["eager", "sdpa"]
parallel = []

[plugin.paper]
title = "A | title"
authors = "A and B"
year = 2024
arxiv = "2401.00001"

[plugin.evidence]
summary = "Nothing yet."
command = "pytest"

[plugin.supports]
training = true
compile = false
beams = false
assisted = false
static_cache = false
chunked_prefill = false
"""

PYPROJECT = """
[project]
name = "dist-one"
requires-python = ">=3.11"
dependencies = ["paperhooks>=0.1,<2", "numpy"]

[project.entry-points."paperhooks.plugins"]
t-one = "registry_one:PLUGIN"
"""

INFO = """
from paperhooks import Paper, PluginInfo

PLUGIN = PluginInfo(
    name="t-one", api=1, summary="Scales layers.", methods={"t-one": "registry_one_method:Scale"},
    paper=Paper(arxiv="2401.00001", title="A | title", year=2024),
)
"""


@pytest.fixture
def repository(site, tmp_path: Path) -> Path:
    """A repository of one plugin whose registry is right."""
    package = tmp_path / "packages" / "one"
    (package / "tests").mkdir(parents=True)
    (package / "pyproject.toml").write_text(PYPROJECT)
    (package / "tests" / "test_it.py").write_text("FAMILIES = ['llama']\n")
    (site.root / "registry_one.py").write_text(INFO)
    (site.root / "registry_one_method.py").write_text(textwrap.dedent(METHOD))
    (tmp_path / "registry.toml").write_text(REGISTRY)
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    """Replace one piece of a file that must be there."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def line(file: Path, start: str) -> int:
    """1-based number of the line that begins with ``start``."""
    return next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text.startswith(start))


def test_a_right_registry_has_no_problem(repository: Path) -> None:
    assert check_registry(repository) == []
    assert check_registry(repository / "registry.toml") == []


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("summary = ", "sumary = ", "sumary", "unknown key 'sumary'; did you mean 'summary'"),
        ("hook_api = 1\nmodels", "models", "[[plugin]]", "lacks 'hook_api'"),
        ('status = "stable"', 'status = "great"', "status", "must be one of experimental, stable, deprecated, broken"),
        ('name = "t-one"', 'name = "T One"', "name", "does not have the form"),
        ('arxiv = "2401.00001"', 'arxiv = "24.1"', "arxiv", "does not have the form"),
        ("training = true", 'training = "yes"', "training", "must be true or false"),
        ('summary = "Scales layers."', f'summary = "{"x" * 100}"', "summary", "at most 99"),
        ('path = "packages/one"\n', "", "[[plugin]]", "needs either path"),
        ("[plugin.evidence]", "[plugin.evidenze]", "[plugin.evidenze]", "did you mean 'evidence'"),
    ],
)
def test_faults_of_the_file_come_with_line_and_value(repository: Path, old: str, new: str, at: str, said: str) -> None:
    file = repository / "registry.toml"
    change(file, old, new)
    problems = check_registry(repository)
    problem = next(p for p in problems if said in p.message)
    if not at.startswith("[plugin."):
        assert problem.line == line(file, at)
    assert str(problem).startswith(f"{file}:")
    with pytest.raises(RegistryError):
        load_registry(file)


BENCHMARK = """
[[plugin]]
name = "t-exam"
distribution = "dist-exam"
repository = "https://example.org/exam"
kind = "benchmark"
summary = "Asks."
hooks = ["evaluation_tasks"]
hook_api = 1
status = "experimental"

[plugin.paper]
title = "An exam"
authors = "Someone"
year = 2025
arxiv = "2501.00001"
"""


def test_a_benchmark_may_have_a_paper_and_needs_none_and_a_toolkit_has_none(repository: Path) -> None:
    file = repository / "registry.toml"
    before = file.read_text()
    for entry in (BENCHMARK, BENCHMARK.partition("[plugin.paper]")[0]):
        file.write_text(before + entry)
        assert check_registry(repository) == []
    file.write_text(before + BENCHMARK.replace('"benchmark"', '"toolkit"'))
    assert [p.message.partition(";")[0] for p in check_registry(repository)] == [
        "plugin 't-exam' has the unknown key 'paper'"
    ]
    file.write_text(before + BENCHMARK.replace("2501.00001", "25.1"))
    (problem,) = check_registry(repository)
    assert "does not have the form" in problem.message


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("training = true", "training = false", "training", "supports.training is False, Traits say True"),
        ("beams = false", "beams = true", "beams", "Traits say False"),
        ('attention = ["eager", "sdpa"]', 'attention = ["eager"]', "attention", "Traits say ['eager', 'sdpa']"),
        ('devices = ["cpu"]', 'devices = ["cuda"]', "devices", "Traits say ['cpu']"),
        ("parallel = []", 'parallel = ["tp"]', "parallel", "parallel is ['tp'], Traits say []"),
        ("parallel = []", "parallel = []\nshared_work = true", "shared_work", "shared_work is True, Traits say False"),
        ('models = ["llama"]', 'models = ["llama", "gpt2"]', "models", "'gpt2'"),
        ('title = "A | title"', 'title = "Another"', "title", "PluginInfo says 'A | title'"),
        ('summary = "Scales layers."', 'summary = "Other."', "summary", "PluginInfo says 'Scales layers.'"),
        ('path = "packages/one"', 'path = "packages/two"', 'path = "packages/two"', "there is no pyproject.toml"),
        ("hook_api = 1\n\n[[", "hook_api = 3\n\n[[", "", "the core says 1"),
    ],
)
def test_contradictions_with_the_package_are_found(repository: Path, old: str, new: str, at: str, said: str) -> None:
    file = repository / "registry.toml"
    change(file, old, new)
    problem = next(p for p in check_registry(repository) if said in p.message)
    assert problem.line == (line(file, at) if at else 0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("paperhooks>=0.1,<2", "paperhooks==0.1", "give a range"),
        ('"paperhooks>=0.1,<2", ', "", "does not depend on paperhooks"),
        ('requires-python = ">=3.11"\n', "", "lacks requires-python"),
        ("t-one = ", "t-two = ", "no entry point 't-one'"),
        ("registry_one:PLUGIN", "registry_gone:PLUGIN", "pip install -e packages/one"),
        ('"numpy"', '"not a requirement!"', "is malformed"),
    ],
)
def test_faults_of_the_package_metadata_are_found(repository: Path, old: str, new: str, said: str) -> None:
    change(repository / "packages/one/pyproject.toml", old, new)
    assert any(said in problem.message for problem in check_registry(repository))


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ('hooks="nowhere_at_all:X"', "the process-wide hooks (nowhere_at_all:X) cannot be imported"),
        ('demo="registry_one:run"', "the demo (registry_one:run) cannot be imported"),
        ('claims="claims.toml"', "claims.toml: cannot be read"),
    ],
)
def test_what_the_plugin_names_must_be_there(repository: Path, site, field: str, said: str) -> None:
    change(site.root / "registry_one.py", "paper=", f"{field}, paper=")
    (problem,) = check_registry(repository)
    assert said in problem.message


def test_a_plugin_must_not_depend_on_another(repository: Path) -> None:
    second = REGISTRY[REGISTRY.index("[[plugin]]") :].replace("t-one", "t-two").replace("dist-one", "dist-two")
    second = second.replace('path = "packages/one"', 'repository = "https://example.org/two"')
    (repository / "registry.toml").write_text(REGISTRY + second)
    assert check_registry(repository) == []
    change(repository / "packages/one/pyproject.toml", '"numpy"', '"dist-two"')
    assert any("depends on the plugin dist-two" in p.message for p in check_registry(repository))


def test_every_package_folder_is_listed_except_the_test_bed(repository: Path) -> None:
    for name in ("testbed", "forgotten"):
        (repository / "packages" / name).mkdir()
        (repository / "packages" / name / "pyproject.toml").write_text("[project]\nname='x'\n")
    (problem,) = check_registry(repository)
    assert "packages/forgotten is not listed" in problem.message


def test_names_and_distributions_are_unique(repository: Path) -> None:
    (repository / "registry.toml").write_text(REGISTRY + REGISTRY[REGISTRY.index("[[plugin]]") :])
    messages = [p.message for p in check_registry(repository)]
    assert len(messages) == 3
    first = line(repository / "registry.toml", "name = ")
    assert f"name = 't-one' is already used in line {first}" in messages


def test_unreadable_files_are_problems_not_tracebacks(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    assert "cannot be read" in str(check_registry(file)[0])
    file.write_text("schema = 1\n[core\n")
    assert check_registry(file)[0].line == 2
    file.write_bytes(b"\xff\xfe")
    assert "UTF-8" in str(check_registry(file)[0])


def test_what_the_code_decides_is_written_and_the_rest_stays(repository: Path) -> None:
    file = repository / "registry.toml"
    text = file.read_text()
    kept = text.replace('kind = "paper"\n', "").replace('status = "stable"', 'status = "stable"  # since May')
    file.write_text(kept)
    assert update_registry(file) == ["t-one"]  # kind had been left out
    written = file.read_text()
    assert update_registry(file) == []
    for line_ in (
        'hooks = ["post_layer"]\n',
        'summary = "Scales layers."\n',
        "training = true\n",
        'dtypes = ["float32"]\n',
    ):
        assert line_ in written
        file.write_text(written.replace(line_, ""))
        assert update_registry(file) == ["t-one"]
        assert check_registry(repository) == []
        assert "# since May" in file.read_text()
    change(file, "beams = false", "beams = true")
    assert update_registry(file) == ["t-one"]
    assert check_registry(repository) == []


def test_a_registry_is_not_touched_where_a_plugin_cannot_be_imported(repository: Path) -> None:
    change(repository / "packages/one/pyproject.toml", "registry_one:PLUGIN", "registry_gone:PLUGIN")
    change(repository / "registry.toml", "beams = false", "beams = true")
    before = (repository / "registry.toml").read_bytes()
    with pytest.raises(RegistryError, match=r"plugin .t-one.: .*registry_gone"):
        update_registry(repository / "registry.toml")
    assert (repository / "registry.toml").read_bytes() == before


def test_the_shipped_registry_is_well_formed_and_known_to_error_messages() -> None:
    registry = load_registry(find_registry())
    assert registry.get("pyramiddrop") is not None
    assert install_hint("pyramiddrop/other") == "install it with: pip install paperhooks-pyramiddrop"
    assert install_hint("nobody") == ""


def test_the_table_escapes_and_links(repository: Path) -> None:
    table = plugin_table_markdown(load_registry(repository / "registry.toml"))
    last = table.splitlines()[-1]
    assert last.startswith("| [t-one](packages/one) | [A \\| title](https://arxiv.org/abs/2401.00001), 2024 |")
    assert last.endswith("| `post_layer` | stable |")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('path = "packages/one"', 'repository = "https://a.b/c;rm -rf ~"', "does not have the form"),
        ('path = "packages/one"', 'repository = "https://a.b/$(x)"', "does not have the form"),
        ('path = "packages/one"', 'path = "../packages/one"', "does not have the form"),
        ('distribution = "dist-one"', 'distribution = "dist`x`"', "does not have the form"),
        ('hooks = ["post_layer"]', 'hooks = ["post_layer`|"]', "does not have the form"),
        ('command = "pytest"', 'command = "pytest; rm -rf ~"', "does not have the form"),
        ("hook_api = 1\nmodels", f"hook_api = 0x{'f' * 5000}\nmodels", "hook_api is a int"),
    ],
)
def test_what_would_do_something_elsewhere_is_refused(repository: Path, old: str, new: str, said: str) -> None:
    change(repository / "registry.toml", old, new)
    assert said in "\n".join(map(str, check_registry(repository)))


@pytest.mark.parametrize(
    "text", [f"schema = {'1' * 5000}", f"schema = {'[' * 20_000}", "schema = 1\n\0", "schema = \x1b", "schema"]
)
def test_a_registry_that_python_cannot_read_is_one_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "registry.toml").write_text(text)
    (problem,) = check_registry(tmp_path)
    assert "is not valid TOML" in str(problem)
    with pytest.raises(RegistryError, match="is not valid TOML"):
        update_registry(tmp_path / "registry.toml")


def test_a_byte_order_mark_is_no_fault(repository: Path) -> None:
    file = repository / "registry.toml"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert check_registry(repository) == []


@pytest.mark.parametrize(
    "text", ["project = 3", "[project]\nentry-points = 3\ndependencies = 'x'", f"a = {'[' * 20_000}"]
)
def test_metadata_of_a_package_of_any_shape_are_problems(repository: Path, text: str) -> None:
    (repository / "packages" / "one" / "pyproject.toml").write_text(text)
    assert "has no entry point 't-one'" in "\n".join(map(str, check_registry(repository)))
    with pytest.raises(RegistryError, match="'t-one'"):
        update_registry(repository / "registry.toml")


def test_what_others_write_does_nothing_in_the_table_and_in_the_shell(tmp_path: Path) -> None:
    third = REGISTRY.replace('path = "packages/one"', 'repository = "https://a.b/c~d"')
    (tmp_path / "registry.toml").write_text(third.replace("Scales layers.", "![x](http://a.b/c) <!-- t:end -->"))
    registry = load_registry(tmp_path / "registry.toml")
    assert registry.entries[0].pip_command == "pip install 'dist-one @ git+https://a.b/c~d'"
    assert "| ![x\\](http://a.b/c) &lt;!-- t:end --&gt; |" in plugin_table_markdown(registry)


def test_replacing_between_markers_keeps_the_rest_and_is_idempotent() -> None:
    text = "before\n<!-- t:start -->\nold\n<!-- t:end -->\nafter\n"
    new = replace_between_markers(text, "t", "new")
    assert new == "before\n<!-- t:start -->\nnew\n<!-- t:end -->\nafter\n"
    assert replace_between_markers(new, "t", "new") == new
    with pytest.raises(RegistryError, match="t:start"):
        replace_between_markers("<!-- t:end --> <!-- t:start -->", "t", "x")
