"""A tiny GGUF file, written here, becomes a folder that transformers loads; half a folder is never taken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt.checkpoints import convert as module
from softprompt.checkpoints.convert import build_once, convert, converted
from softprompt.errors import BaseModelError, ResourceError

WIDTH, HEADS, GROUPS, INNER = 64, 4, 2, 96


def write_gguf(path: Path, *, pre: str = "smollm", architecture: str = "llama", without: str = "") -> Path:
    """A random one-layer llama with one token a byte."""
    random = np.random.default_rng(0)
    tokens = ["<|end|>", "<|start|>", *(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "ĠĠ", "12", "th"]
    out = gguf.GGUFWriter(path, architecture)
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(GROUPS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    out.add_token_merges(["Ġ Ġ", "1 2", "t h"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(0)
    out.add_unk_token_id(0)
    narrow = WIDTH // HEADS * GROUPS
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (narrow, WIDTH),
        "blk.0.attn_v": (narrow, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    for name, shape in shapes.items():
        if name != without:
            out.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_becomes_a_plain_folder(
    tiny_gguf: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    folder = converted(tiny_gguf, notify=said.append)
    assert capfd.readouterr() == ("", "")
    assert said == [f"Converting tiny.gguf (once; the result is kept in {cache / 'converted'})"]
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"

    model = AutoModelForCausalLM.from_pretrained(folder)
    direct = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, direct(ids).logits)
    assert AutoTokenizer.from_pretrained(folder).decode([35, 36]) == "BC"


def test_it_is_converted_once_and_anew_after_a_change(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def fake(gguf: Path, folder: Path) -> None:
        calls.append(gguf)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(module, "convert", fake)
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF one")
    first = converted(file)
    assert converted(file) == first
    assert len(calls) == 1
    file.write_bytes(b"GGUF two!")
    assert converted(file) != first
    assert len(calls) == 2


@pytest.mark.parametrize(("pre", "words"), [("smollm", ["th", "Ġ", "1", "2"]), ("gpt-2", ["th", "Ġ", "12"])])
def test_digits_are_split_where_the_file_asks_for_it(tmp_path: Path, pre: str, words: list[str]) -> None:
    file = write_gguf(tmp_path / "m.gguf", pre=pre)
    (tmp_path / "out").mkdir()
    convert(file, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("th 12") == words


def test_a_missing_file_and_a_foreign_one(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BaseModelError, match="cannot be read"):
        converted(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(BaseModelError, match="not a GGUF file"):
        converted(tmp_path / "text.gguf")


@pytest.mark.parametrize("kept", [4, 100, 0.5, 0.95])
def test_a_file_cut_short(tiny_gguf: Path, tmp_path: Path, cache: Path, kept: float) -> None:
    data = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(BaseModelError, match=r"cut\.gguf is damaged or incomplete"):
        converted(cut)
    assert [path.name for path in (cache / "converted").iterdir() if not path.name.endswith(".lock")] == []


def test_a_file_that_lacks_a_tensor(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", without="blk.0.attn_k")
    with pytest.raises(BaseModelError, match=r"lacks 1 .*layers\.0\.self_attn\.k_proj\.weight"):
        converted(file)


def test_an_unknown_architecture(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BaseModelError, match="of a kind that transformers cannot read"):
        converted(write_gguf(tmp_path / "m.gguf", architecture="plankton"))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (Exception("I/O error: No space left on device (os error 28)"), ResourceError, "cannot be written"),
        (OSError(28, "No space left on device"), ResourceError, "no space left"),
    ],
)
def test_a_full_disk(
    tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type, words: str
) -> None:
    class Full:
        def save_pretrained(self, folder: Path) -> None:
            raise error

    monkeypatch.setattr(module, "_read", lambda gguf: (Full(), Full()))
    with pytest.raises(kind, match=words):
        converted(tiny_gguf)


def test_too_little_memory(tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(gguf: Path) -> Any:
        raise MemoryError

    monkeypatch.setattr(module, "_read", exhausted)
    with pytest.raises(ResourceError, match="not enough memory"):
        converted(tiny_gguf)


def test_remains_are_not_taken_for_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    part = tmp_path / ".model.part"
    part.mkdir()
    (part / "config.json").write_text("from a killed process")
    build_once(target, lambda folder: (folder / "new").touch())
    assert [path.name for path in target.iterdir()] == ["new"]
    assert not part.exists()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        build_once(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


SLOW = """
import sys, time
from pathlib import Path
from softprompt.checkpoints.convert import build_once
def fill(folder):
    (folder / "config.json").write_text("half")
    print("filling", flush=True)
    time.sleep(float(sys.argv[2]))
    with open(sys.argv[1] + ".log", "a") as log: log.write("filled\\n")
    (folder / "model").write_text("whole")
print(build_once(Path(sys.argv[1]), fill))
"""


def start(target: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(target), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_no_model(tmp_path: Path) -> None:
    target = tmp_path / "model"
    run = start(target, 60)
    assert run.stdout is not None
    assert run.stdout.readline() == "filling\n"
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert (tmp_path / ".model.part" / "config.json").exists()
    assert not target.exists()

    def fill(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        (folder / "model").write_text("whole")

    build_once(target, fill)
    assert [path.name for path in target.iterdir()] == ["model"]
    assert not (tmp_path / ".model.part").exists()


def test_two_processes_convert_once(tmp_path: Path) -> None:
    runs = [start(tmp_path / "model", 0.5) for _ in range(2)]
    outputs = [run.communicate(timeout=60)[0] for run in runs]
    assert all(output.endswith(f"{tmp_path / 'model'}\n") for output in outputs)
    assert (tmp_path / "model.log").read_text() == "filled\n"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model"]
