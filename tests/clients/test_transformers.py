"""transformers and peft in a LightningModule, as their users wrap them, with their own collators."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _checks import checks_of, verify
from _harness import Case, step_of, trainer
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

EXAMPLES, BATCH, WORDS = 192, 16, 50


class Wrapped(pl.LightningModule):
    """What the documentation of both shows: the model returns its own loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["[PAD]", *(f"w{i}" for i in range(1, WORDS))])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), pad_token="[PAD]")


def texts(ragged: bool, labels: bool) -> list[dict[str, Any]]:
    """Sequences that count up by one to three from a random word, and by how much."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(EXAMPLES):
        first, by, length = (int(torch.randint(*span, (), generator=generator)) for span in ((5, 15), (1, 4), (6, 13)))
        ids = [first + by * t for t in range(length if ragged else 12)]
        found.append({"input_ids": ids, "attention_mask": [1] * len(ids), **({"labels": by - 1} if labels else {})})
    return found


def gpt(double: bool) -> GPT2LMHeadModel:
    rate = 0.0 if double else 0.1
    sizes = {"vocab_size": WORDS, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=rate))


def fit(model: Any, data: list[dict[str, Any]], collate: Any, callbacks: list[Any], double: bool) -> None:
    loader = DataLoader(data, BATCH, shuffle=True, collate_fn=collate)
    trainer(callbacks, double).fit(Wrapped(model), loader)


def fit_causal(callbacks: list[Any], double: bool) -> None:
    data = [{"input_ids": text["input_ids"], "labels": text["input_ids"]} for text in texts(False, False)]
    fit(gpt(double), data, default_data_collator, callbacks, double)


def fit_bert(callbacks: list[Any], double: bool) -> None:
    rate = 0.0 if double else 0.1
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    config = BertConfig(**sizes, **rates, intermediate_size=32, max_position_embeddings=16, num_labels=3)
    collate = DataCollatorWithPadding(tokenizer())
    fit(BertForSequenceClassification(config), texts(True, True), collate, callbacks, double)


def fit_vit(callbacks: list[Any], double: bool) -> None:
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=32, num_labels=3)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (EXAMPLES,), generator=generator)
    images = torch.randn(EXAMPLES, 3, 16, 16, generator=generator) + labels[:, None, None, None]
    data = [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, labels, strict=True)]
    fit(ViTForImageClassification(config), data, default_data_collator, callbacks, double)


def fit_lora(callbacks: list[Any], double: bool) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], lora_dropout=0.0 if double else 0.1)
    collate = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    fit(get_peft_model(gpt(double), config), texts(True, False), collate, callbacks, double)


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    """The loss of one example without the padding of its batch."""
    if i >= BATCH:
        raise IndexError(i)
    one = {key: value[i : i + 1] for key, value in batch.items()}
    if "attention_mask" in one:
        length = int(one["attention_mask"].sum())
        one = {key: value[:, :length] if value.dim() == 2 else value for key, value in one.items()}
    return step_of(module, one)


def tokens_of(batch: Any) -> torch.Tensor:
    """How many of the tokens that the batch predicts are each text's, over the mean."""
    counts = (batch["labels"][:, 1:] != -100).sum(1).double()
    return counts / counts.mean()


CASES = [
    Case("transformers:causal-lm", fit_causal, loss_of),
    Case("transformers:bert-padded", fit_bert, loss_of),
    Case("transformers:vit", fit_vit, loss_of),
    Case("transformers:peft-lora", fit_lora, loss_of, tokens_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_transformers(case: Case, check: Any) -> None:
    verify(case, check)
