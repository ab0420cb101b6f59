"""A loop that takes seconds: the tiny reference model, short principles, few prompts; with a backend that counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.generation import Prompt, Response, TransformersBackend
from paperhooks_sso import AlarmLimits
from paperhooks_sso.loop import Pace
from sso_models import REFERENCE
from transformers import AutoTokenizer

#: No alarm at all: answers of the tiny model are noise.
OFF: Final = AlarmLimits(
    min_pairs=1, cut=None, same=None, leaking=None, length_growth=None, gap_kept=None, margin_fall=None
)
PROMPTS: Final = [f"What is {number}?" for number in range(8)]
#: What is not the same in two runs: when and how long; and logs whose rows say so.
_PASSING: Final = {"started", "finished", "timings", "seconds", "host", "pid", "versions"}
_BANK: Final = '[Plain]\nadjectives = ["plain", "ornate"]\ngood = "Be plain."\nbad = "Be ornate."\n'


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(REFERENCE / "tiny_llama")


def quick(folder: Path, **changed: Any) -> dict[str, Any]:
    """Options for :func:`align` beside model, prompts and out."""
    folder.mkdir(parents=True, exist_ok=True)
    bank = folder / "principles.toml"
    bank.write_text(_BANK)
    return {
        "tokenizer": tokenizer(), "limits": OFF, "pace": Pace(sample_batch=8), "report": False,
        "features": ["Plain"], "principles": [str(bank)], "concision": 0.0, "max_new_tokens": 12, "keep_cut": True,
        "drop_leaks": False, "batch": 4, "learning_rate": 1e-3, "seed": 5, **changed,
    }  # fmt: skip


class CountingBackend(TransformersBackend):
    """Counts what is asked, in this process, or in a file over all of them; may fail at one of its answers."""

    asked: Counter[str] = Counter()
    fails_at: int | None = None
    log: Path | None = None

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[Mapping[int, Response]]:
        cls = type(self)
        if cls.fails_at is not None and cls.asked.total() >= cls.fails_at:
            raise KeyboardInterrupt
        for some in super().answers(prompts):
            yield some
            # By now they are written down, and must never be asked again; seeds tell iterations apart.
            asked = [(prompts[at].id, prompts[at].request.sampling) for at in some]
            cls.asked.update(key for key, _ in asked)
            if cls.log is not None:
                with cls.log.open("a") as handle:
                    handle.writelines(f"{key} {sampling and sampling.seed}\n" for key, sampling in asked)


def products(out: Path) -> dict[str, Any]:
    """What a loop has left, by name, without times."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and "samples" not in file.parts]
    return {
        str(file.relative_to(out)): _content(file)
        for file in files
        if file.suffix not in (".html", ".md", ".svg", ".png")
    }


def _content(file: Path) -> Any:
    raw = file.read_bytes()
    return _lasting(json.loads(raw)) if file.name == "result.json" else raw


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in _PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value
