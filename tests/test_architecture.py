"""Who may import whom, what no module may do, and how large a module may be."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path

import paperhooks
import pytest
from paperhooks.testing import run_python
from repository import CORE, PACKAGES, PAPERS, PLUGINS, ROOT, TESTBED, TOOLKITS, imports, sources, tree
from rooms import ORDER, Graph, deep, relative, room, underscores

FILES = sources(*PACKAGES)
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FOREIGN = ("torch", "transformers", "accelerate", "tokenizers", "numpy")
#: Names of transformers that have changed or may; core/src/paperhooks/compat/ alone spells them.
CHANGING = {
    "past_key_values", "past_key_value", "layer_past", "cache_params", "create_masks_for_generate",
    "_prepare_generation_config", "_attn_implementation", "_loss_function", "is_compileable", "get_mask_sizes",
}  # fmt: skip
#: As strings only: core has a method and a field of these names.
CHANGING_STRINGS = CHANGING | {"full_attention", "sliding_attention", "position_embeddings"}
CHANGING_IMPORTS = (
    "DynamicCache", "StaticCache", "DynamicLayer", "EncoderDecoderCache", "GradientCheckpointingLayer",
    "cache_utils", "masking_utils", "modeling_layers",
)  # fmt: skip
GLOBAL_SEEDS = {"torch.manual_seed", "torch.seed", "random.seed", "numpy.random.seed", "np.random.seed"}


def short(file: Path) -> str:
    """For test names."""
    return file.relative_to(ROOT).as_posix()


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain; subscripts and calls inside it are looked through."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    return node.id if isinstance(node, ast.Name) else ""


# -- what the rules find -----------------------------------------------------------------------------------------------


def unpickling(module: ast.Module) -> list[str]:
    """Imports of modules that unpickle, and calls that do."""
    found = [f"line {each.line}: import {each.target}" for each in imports(module) if each.top in UNPICKLERS]
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            pickled = any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords)
            if dotted(node.func) == "torch.load" or pickled:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def patches(module: ast.Module) -> list[str]:
    """Assignments, deletions and registrations into objects imported from other libraries."""
    foreign = {each.bound for each in imports(module) if each.top in FOREIGN}
    return [f"line {node.lineno}: {ast.unparse(node)}" for node, owner in _written(module) if owner in foreign]


def _written(module: ast.Module) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    for node in ast.walk(module):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and dotted(node.func) in ("setattr", "delattr"):
            yield node, dotted(node.args[0]).partition(".")[0]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith((".register", ".update", ".setdefault")):
            yield node, dotted(node.func).partition(".")[0]
        for target in targets:
            if isinstance(target, ast.Attribute | ast.Subscript):
                yield node, dotted(target).partition(".")[0]  # type: ignore[misc]


def global_seeds(module: ast.Module) -> list[str]:
    """Calls that change global random state, unless inside ``with ...fork_rng(...)``."""
    forked = {
        id(inner)
        for node in ast.walk(module)
        if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
        for inner in ast.walk(node)
    }
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and dotted(node.func) in GLOBAL_SEEDS and id(node) not in forked
    ]


def strays(module: ast.Module) -> list[str]:
    """Names of transformers that change, as strings, keywords, parameters, attributes or imports."""
    found = [
        (each.line, each.target)
        for each in imports(module)
        if each.top == "transformers" and set(each.target.split(".")) & set(CHANGING_IMPORTS)
    ]
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in CHANGING_STRINGS:
            found.append((node.lineno, repr(node.value)))
        elif isinstance(node, ast.keyword | ast.arg) and node.arg in CHANGING:
            found.append((node.lineno, f"{node.arg}="))
        elif isinstance(node, ast.Attribute) and node.attr in CHANGING:
            found.append((node.lineno, ast.unparse(node)))
    return [f"line {line}: {what}" for line, what in sorted(found)]


def assertions(module: ast.Module) -> list[str]:
    """Assertions that check something; those that only tell a type checker what cannot be otherwise are fine.

    Assertions vanish under ``python -O``: errors of users are exceptions.
    """
    found = [node for node in ast.walk(module) if isinstance(node, ast.Assert)]
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in found if node.msg or not _narrows(node.test)]


def _narrows(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp):
        return isinstance(test.op, ast.And) and all(map(_narrows, test.values))
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], ast.IsNot) and ast.unparse(test.comparators[0]) == "None"
    return isinstance(test, ast.Call) and dotted(test.func) == "isinstance"


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (assertions, "assert x > 0"),
        (assertions, "assert x is not None, 'give x'"),
        (unpickling, "import pickle"),
        (unpickling, "def f():\n    from dill import loads"),
        (unpickling, "import torch\ntorch.load('x', weights_only=True)"),
        (unpickling, "import numpy\nnumpy.load('x', allow_pickle=True)"),
        (patches, "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as A\nA['x'] = 1"),
        (patches, "from transformers import AttentionInterface\nAttentionInterface.register('x', f)"),
        (patches, "import transformers\ntransformers.models.llama.modeling_llama.f = g"),
        (patches, "import torch\nsetattr(torch.nn.Linear, 'forward', f)"),
        (patches, "def f():\n    from torch import nn\n    del nn.Linear.forward"),
        (global_seeds, "import torch\ntorch.manual_seed(0)"),
        (strays, "def f(**kwargs):\n    return kwargs.get('past_key_values')"),
        (strays, "def f(hidden_states, layer_past=None): ..."),
        (strays, "model(ids, past_key_values=cache)"),
        (strays, "cache = model(ids).past_key_values"),
        (strays, "kwargs['position_embeddings'] = tables"),
        (strays, "if kind == 'sliding_attention': ..."),
        (strays, "kernel = getattr(config, '_attn_implementation', None)"),
        (strays, "masks = cache.get_mask_sizes(1, 0)"),
        (strays, "from transformers import StaticCache"),
        (strays, "def f():\n    from transformers.masking_utils import create_causal_mask"),
        (strays, "import transformers.cache_utils"),
    ],
)
def test_the_rules_find_what_they_forbid(rule, code: str) -> None:
    assert rule(ast.parse(code))


def test_core_s_own_names_and_what_is_said_of_them_are_allowed() -> None:
    code = "view.full_attention(3)\ninputs.replace(position_embeddings=tables)\nraise E('needs a DynamicCache')"
    assert not strays(ast.parse(code))


def test_seeding_inside_a_fork_is_allowed() -> None:
    assert not global_seeds(ast.parse("with torch.random.fork_rng():\n    torch.manual_seed(0)"))


# -- every file --------------------------------------------------------------------------------------------------------


def findings(rule, files: list[Path]) -> dict[str, list[str]]:
    """What a rule finds, file by file."""
    return {short(file): found for file in files if (found := rule(tree(file)))}


@pytest.mark.parametrize("rule", [unpickling, patches, global_seeds, assertions], ids=lambda rule: rule.__name__)
def test_no_file_breaks_a_rule(rule) -> None:
    files = [file for file in FILES if rule is not assertions or CORE.source / "testing" not in file.parents]
    assert findings(rule, files) == {}


def test_names_of_transformers_that_change_stand_in_one_room() -> None:
    """Where a stray is found, give ``compat`` a function or a constant for it."""
    found = findings(strays, [file for file in FILES if CORE.source / "compat" not in file.parents])
    # What a layer's inputs call their rotary tables is core's name: hooks write it.
    inputs = found.pop(short(CORE.source / "hooks" / "inputs.py"), [])
    assert [line for line in inputs if not line.endswith("'position_embeddings'")] == []
    assert found == {}
    assert any(strays(tree(file)) for file in FILES if CORE.source / "compat" in file.parents), (
        "the rule finds nothing at all"
    )


def test_modules_have_one_purpose_and_a_readable_size() -> None:
    sizes = {short(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: lines for file, lines in sizes.items() if not (1 if "/__" in file else 10) <= lines <= 400} == {}
    assert [short(file) for file in FILES if not ast.get_docstring(tree(file))] == []


# -- who imports whom --------------------------------------------------------------------------------------------------


def imported(*tops: str, lazily: bool = True):
    """A rule that finds imports of some top-level packages."""

    def rule(module: ast.Module) -> list[str]:
        found = [each for each in imports(module) if each.top in tops and (lazily or not each.lazy)]
        return [f"line {each.line}: {each.target}" for each in found]

    return rule


def exported_by(stub: Path) -> list[str]:
    """What the stub of a face lists."""
    body = ast.parse(stub.read_text(encoding="utf-8")).body
    return [alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]


GRAPHS = {package.name: Graph(package) for package in PACKAGES}
#: Names of others that carry an underscore and have no public form.
THEIRS = {
    *("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_model_mapping", "_from_config", "_apply_gate", "_attn_implementation"),
    *("_current_frames", "_getframe", "_version", "_hf_hook", "_is_protocol", "_replace", "_asdict", "_fingerprint"),
    *("_active_ddp_module", "_get_default_store", "_exit", "_reset_state"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_no_package_has_a_circle_of_imports(name: str) -> None:
    assert GRAPHS[name].cycles() == []


def test_rooms_of_core_import_downward_only() -> None:
    level = {name: number for number, line in enumerate(ORDER) for name in line}
    core = GRAPHS[CORE.name]
    assert {room(module) for module in core.files} == set(level), "every room has its place in the order"
    pairs = {(a, b) for a, found in core.edges.items() for b in found if room(a) != room(b)}
    assert sorted((a, b) for a, b in pairs if level[room(b)] >= level[room(a)]) == []


def test_core_imports_no_plugin_and_names_none_but_the_table_of_the_root() -> None:
    siblings = [package.module for package in PACKAGES if package != CORE]
    assert set(findings(imported(*siblings), sources(CORE))) == {"core/src/paperhooks/__init__.py"}
    names = {package.folder.name for package in PAPERS} | set(siblings)

    def named(module: ast.Module) -> list[str]:
        texts = [node.value for node in ast.walk(module) if isinstance(node, ast.Constant)]
        return [t for t in texts if isinstance(t, str) and (t in names or t.partition(".")[0] in siblings)]

    found = findings(named, sources(CORE))
    assert set(found) == {"core/src/paperhooks/__init__.py"}, "the lazy names of the evaluation toolkit, and no others"
    assert set(found["core/src/paperhooks/__init__.py"]) == {"paperhooks_evaluation"}


@pytest.mark.parametrize("package", [TESTBED, *PLUGINS], ids=str)
def test_packages_import_core_and_toolkits_and_no_other_plugin(package) -> None:
    others = [each.module for each in PLUGINS if each != package and each not in TOOLKITS]
    assert findings(imported(*others), sources(package)) == {}
    papers = [each.module for each in PAPERS if each != package]
    assert findings(imported(*papers), scripts(package)) == {}


@pytest.mark.parametrize("package", PLUGINS, ids=str)
def test_plugins_import_the_test_bed_only_where_it_is_used(package) -> None:
    assert findings(imported(TESTBED.module, lazily=False), sources(package)) == {}
    assert findings(imported(package.module), sources(package)), "the rule finds nothing at all"


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_other_packages_are_taken_by_their_faces(package) -> None:
    files = [*sources(package), *(package.folder / "tests").rglob("*.py"), *scripts(package)]
    files += [] if package != CORE else (ROOT / "examples").glob("*.py")
    assert findings(lambda module: deep(module, package.module, GRAPHS.values()), files) == {}


@pytest.mark.parametrize(
    "code",
    [
        "from paperhooks.sessions.chain import Chain",
        "import paperhooks.sessions.session",
        "from paperhooks.sessions import chain",
        "from paperhooks_evaluation.scoring import score_response",
        "def f():\n    importlib.import_module('paperhooks.sessions.chain')",
    ],
)
def test_what_goes_past_a_face_is_found(code: str) -> None:
    assert deep(ast.parse(code), "paperhooks_cca", GRAPHS.values())


@pytest.mark.parametrize(
    "code",
    ["import paperhooks", "from paperhooks import attach", "from paperhooks.sessions import Session",
     "from paperhooks.errors import DataError", "from paperhooks_evaluation import Task"],
)  # fmt: skip
def test_faces_may_be_imported(code: str) -> None:
    assert not deep(ast.parse(code), "paperhooks_cca", GRAPHS.values())


def test_no_import_is_relative() -> None:
    assert relative(ast.parse("from ..sessions import Session"))
    assert findings(relative, [*FILES, *(file for package in PACKAGES for file in scripts(package))]) == {}


def test_a_circle_through_a_face_is_found(tmp_path: Path) -> None:
    package = type(CORE)(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "paperhooks-x"\n')
    source = tmp_path / "src" / "paperhooks_x"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("")
    (source / "__init__.pyi").write_text("from .method import X as X\n")
    (source / "method.py").write_text("from paperhooks_x.algorithm import y\n")
    (source / "algorithm.py").write_text("def y():\n    from paperhooks_x import X\n")
    assert Graph(package).cycles() == [["paperhooks_x.algorithm", "paperhooks_x.method"]]


def test_nobody_reads_the_underscore_of_another() -> None:
    def rule(module: ast.Module) -> list[str]:
        return [line for line in underscores(module) if line.rpartition(".")[2] not in THEIRS]

    files = [*FILES, *(file for package in PACKAGES for file in scripts(package))]
    assert findings(rule, [file for file in files if "compat" not in (file.stem, file.parent.name)]) == {}
    for code in (
        "getattr(session, '_flags')",
        "session._flags",
        "class A:\n    def f(self):\n        self._x = 1\n\nB()._x",
    ):
        assert underscores(ast.parse(code))


def scripts(package) -> list[Path]:
    """The benchmarks of a package."""
    return sorted((package.folder / "benchmarks").rglob("*.py"))


FACES = {file: sorted(exported_by(file)) for file in (f.with_suffix(".pyi") for f in FILES) if file.is_file()}


def test_the_faces_are_those_that_were_agreed_on() -> None:
    """A name that is taken out of a face is missing in somebody's code: change tests/faces.json on purpose."""
    found = {}
    for stub in FACES:
        package = next(each for each in PACKAGES if each.source in stub.parents)
        module = ".".join(stub.parent.relative_to(package.folder / "src").parts)
        found[module] = sorted(set(importlib.import_module(module).__all__) - {"__version__"})
    assert found == json.loads((ROOT / "tests" / "faces.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("stub", FACES, ids=short)
def test_every_name_of_a_face_is_there(stub: Path) -> None:
    package = next(each for each in PACKAGES if each.source in stub.parents)
    module = importlib.import_module(".".join(stub.parent.relative_to(package.folder / "src").parts))
    for name in module.__all__:
        assert not inspect.ismodule(getattr(module, name))


def test_modules_are_named_by_nouns_and_not_like_a_name_of_the_face_beside_them() -> None:
    allowed = {"training", "testing", "authoring", "scoring", "hashing"}
    names = {(short(file), part) for file in FILES for part in (file.stem, file.parent.name)}
    assert {file for file, name in names if name.endswith("ing") and name not in allowed} == set()
    faces = {**FACES, CORE.source / "__init__.pyi": paperhooks.__all__}
    modules = {(file.with_name("__init__.pyi"), file.stem) for file in FILES}
    rooms = {(file.parent.with_name("__init__.pyi"), file.parent.name) for file in FILES}
    assert sorted(f"{short(face)}: {name}" for face, name in modules | rooms if name in faces.get(face, ())) == []


#: Calls that make a class.
MAKERS = ("namedtuple", "NamedTuple", "TypedDict", "make_dataclass")


def classes(body: list[ast.stmt]) -> Iterator[str]:
    """Names of the public classes of a module, also under a condition, and of those that a call makes."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from classes([*node.body, *node.orelse])
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.Assign) and dotted(getattr(node.value, "func", node)).rpartition(".")[2] in MAKERS:
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_a_public_class_name_stands_for_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for file in FILES:
        for name in classes(tree(file).body):
            homes.setdefault(name, []).append(short(file))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


@pytest.mark.parametrize("package", PLUGINS, ids=str)
def test_the_light_description_loads_no_torch(package) -> None:
    assert loaded_after(f"import {package.module}.plugin") & {"torch", "transformers"} == set()


def files_of_tests(folder: Path) -> set[Path]:
    """Its test modules and what they import from beside them; other files there are tools of the noxfile."""
    found: set[Path] = set()
    queue = [*folder.rglob("test_*.py"), *folder.rglob("conftest.py")]
    while queue:
        file = queue.pop()
        if file not in found and file.is_file():
            found.add(file)
            queue += [folder / f"{each.top}.py" for each in imports(tree(file))]
    return found


TESTS = sorted(file for folder in [ROOT, *(p.folder for p in PACKAGES)] for file in files_of_tests(folder / "tests"))


def test_tests_start_processes_by_the_helper_alone() -> None:
    """Limits, ports, groups that are left in order, and nothing that stays behind: paperhooks.testing.processes."""
    rule = imported("subprocess", "multiprocessing")
    assert findings(rule, [CORE.source / "testing" / "processes.py"]), "the rule finds nothing at all"
    assert findings(rule, TESTS) == {}


# -- what importing costs ----------------------------------------------------------------------------------------------

HEAVY = ["torch", "transformers", "accelerate", "matplotlib", "numpy"]


def loaded_after(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after running code."""
    script = f"import sys\n{code}\nprint('loaded:', *[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = run_python("-c", script, environment={key: None for key in os.environ if key.startswith("PAPERHOOKS_")})
    return set(done.stderr.rpartition("loaded:")[2].split())


def test_the_probe_sees_what_is_loaded() -> None:
    assert "numpy" in loaded_after("import numpy")


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_importing_a_package_loads_nothing_heavy(package) -> None:
    assert loaded_after(f"import {package.module}") & {"torch", "transformers"} == set()


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"], ["plugins", "--available"], ["--help"]])
def test_listing_plugins_loads_nothing_heavy(arguments: list[str]) -> None:
    run = f"from paperhooks.cli import main\ntry:\n    main({arguments!r})\n"
    code = run + "except SystemExit as end:\n    assert not end.code"
    assert loaded_after(code) & {"torch", "transformers"} == set()
