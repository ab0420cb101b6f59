"""Small real models and data for paperhooks, with no network: a vision-language model, scenes, texts, problems.

>>> from paperhooks_testbed import load_vlm, prompt, question_set  # doctest: +SKIP
>>> model, processor = load_vlm()  # doctest: +SKIP
>>> question = question_set("test", 1)[0]  # doctest: +SKIP
>>> inputs = processor(images=question.image(), text=prompt(question), return_tensors="pt")  # doctest: +SKIP
>>> processor.decode(model.generate(**inputs, max_new_tokens=2)[0, -2], skip_special_tokens=True)  # doctest: +SKIP
'yes'

Importing this package imports neither torch nor transformers; the names below are loaded when they are first used.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
