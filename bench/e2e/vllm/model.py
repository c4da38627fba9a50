"""Makes what the engines serve: a tiny Llama with random weights, its tokenizer and three LoRA adapters.

    python model.py DIRECTORY

writes DIRECTORY/tiny and DIRECTORY/adapter-{1,2,3}. Nothing is downloaded: the weights are drawn from a fixed
seed, and the tokenizer is trained on the source text of an installed package.
"""

import json
import pathlib
import sys

import torch
import vllm
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
HIDDEN = 256
LAYERS = 2
HEADS = 8
KV_HEADS = 4
RANK = 8  # of the adapters

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    BEGIN
    + "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    + END
    + "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted((pathlib.Path(vllm.__file__).parent / "entrypoints").rglob("*.py"))
    tokenizer.train([str(path) for path in sources], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=8192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(torch.bfloat16)


def save_adapter(directory: pathlib.Path, seed: int) -> None:
    """Draws weights large enough for the adapter's answers to differ from the model's own."""
    draw = torch.Generator().manual_seed(seed)
    widths = {"q_proj": HIDDEN, "v_proj": HIDDEN * KV_HEADS // HEADS}
    tensors = {}
    for layer in range(LAYERS):
        for module, width in widths.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=draw)
            tensors[f"{name}.lora_B.weight"] = torch.randn(width, RANK, generator=draw)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(widths),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    directory = pathlib.Path(sys.argv[1])
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory / "tiny")
    make_model(tokenizer).save_pretrained(directory / "tiny")
    for seed in (1, 2, 3):
        save_adapter(directory / f"adapter-{seed}", seed)


if __name__ == "__main__":
    main()
