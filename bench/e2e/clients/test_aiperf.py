"""aiperf, a load tool: its streams through Fairway all succeed, and what it measures of them adds up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

REQUESTS, TOKENS = 60, 32


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    """A tokenizer's directory, as aiperf wants one to make prompts with: every byte is a token."""
    path = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*alphabet, "<s>", "</s>"])}, merges=[]))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>").save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_load(target, tokenizer, tmp_path, kind):
    done = subprocess.run(
        [Path(sys.executable).with_name("aiperf"), "profile", "--url", target.url, "--model", target.model, "--endpoint-type", kind, "--streaming",
         "--concurrency", "8", "--request-count", str(REQUESTS), "--tokenizer", tokenizer, "--random-seed", "1",
         "--synthetic-input-tokens-mean", "500", "--synthetic-input-tokens-stddev", "100", "--output-tokens-mean", str(TOKENS), "--output-tokens-stddev", "0",
         "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--no-gpu-telemetry", "--no-server-metrics", "--ui-type", "none", "--artifact-dir", tmp_path],
        # Whatever it looks for outside fails at once.
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]
    (summary,) = tmp_path.rglob("profile_export_aiperf.json")
    result = json.loads(summary.read_text())
    assert not result.get("error_summary"), result["error_summary"]
    assert result["request_count"]["avg"] == REQUESTS
    assert result["output_sequence_length"]["min"] == result["output_sequence_length"]["max"] == TOKENS
