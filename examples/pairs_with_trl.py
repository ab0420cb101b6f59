"""Train on a model's own pairs with TRL's DPOTrainer: its arguments, checkpoints and callbacks, another loss.

pip install 'paperhooks-sso[trl]'
python examples/pairs_with_trl.py
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import paperhooks
from datasets import Dataset
from paperhooks_sso import SSO, HooksDPOTrainer
from paperhooks_sso.data import ChatFormat, PrincipleBank, conversation_of, system_message
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ANSWERS = {
    "Why is the sky blue ?": ("Air scatters blue light most .", "It is painted .", "Light is scattered ."),
    "What is a prime ?": ("A number with two divisors .", "Any odd number .", "A number like seven ."),
}


def small_tokenizer() -> Any:
    """Words as tokens, with a chat template; stands for that of your chat model."""
    bank = PrincipleBank.load()
    texts = [*ANSWERS, *(" ".join(each) for each in ANSWERS.values())]
    texts += [system_message([each], good) for each in bank.values() for good in (True, False)]
    special = ["<pad>", "<system>", "<user>", "<assistant>", "<end>"]
    words = special + sorted({word for text in texts for word in text.split()})
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE,
        additional_special_tokens=special[1:4],
    )  # fmt: skip


def pairs(tokenizer: Any) -> Dataset:
    """Prompts and answers as ids. `paperhooks sso` samples the answers; here they are written out."""
    chat, principle = ChatFormat(tokenizer), [PrincipleBank.load().pick("Accuracy")]
    records = []
    for question, answers in ANSWERS.items():
        asked = conversation_of(question, question)
        names = ("chosen_ids", "rejected_ids", "ordinary_ids")
        records.append({
            "id": asked.id,
            "plain_prompt": chat.prompt_ids(asked),
            "good_prompt": chat.prompt_ids(asked, system_message(principle, good=True)),
            "bad_prompt": chat.prompt_ids(asked, system_message(principle, good=False)),
            **{name: chat.response_ids(text) for name, text in zip(names, answers, strict=True)},
        })  # fmt: skip
    return Dataset.from_list(records)


def main() -> None:
    tokenizer = small_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    model, start = (LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval() for _ in range(2))
    start.load_state_dict(model.state_dict())

    method = SSO(preset="v1-dpo", reference=start)
    with TemporaryDirectory() as out, paperhooks.attach(model, method):
        arguments = DPOConfig(
            out, use_cpu=True, bf16=False, max_steps=10, logging_steps=5, learning_rate=1e-3, save_strategy="no",
            gradient_checkpointing=False, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = HooksDPOTrainer(
            model, ref_model=start, args=arguments, train_dataset=pairs(tokenizer), processing_class=tokenizer,
            data_collator=method.collator(tokenizer.pad_token_id),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    for entry in (entry for entry in trainer.state.log_history if "loss" in entry):
        shown = {name.rpartition("/")[2]: round(value, 3) for name, value in entry.items() if "margin" in name}
        print(f"step {entry['step']}: loss {entry['loss']:.3f}, {shown}")


if __name__ == "__main__":
    main()
