"""Use a plugin: PyramidDrop on the test bed's vision-language model, compared with the model as it is.

python examples/use_a_plugin.py
"""

from __future__ import annotations

from typing import Any

import paperhooks
import torch
from paperhooks_pyramiddrop import PyramidDrop
from paperhooks_testbed import load_vlm, prompt, question_set


def answer(model: Any, processor: Any, question: Any) -> str:
    """The model's word on one question."""
    inputs = processor(images=question.image(), text=prompt(question), return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    return str(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def main() -> None:
    """Ask four questions with every image token, then with fewer and fewer of them in deeper layers."""
    model, processor = load_vlm()
    questions = question_set("test", 4)
    plain = [answer(model, processor, question) for question in questions]
    with paperhooks.attach(model, PyramidDrop(stages={2: 0.5, 4: 0.25, 6: 0.125})) as session:
        print(session.describe())
        dropped = [answer(model, processor, question) for question in questions]
    again = [answer(model, processor, question) for question in questions]
    print(f"\n{'question':<45}{'right':<12}{'all tokens':<12}{'PyramidDrop':<12}")
    for question, before, with_method in zip(questions, plain, dropped, strict=True):
        print(f"{question.text:<45}{question.answer:<12}{before:<12}{with_method:<12}")
    print("\nafter the session the model answers as before:", again == plain)


if __name__ == "__main__":
    main()
