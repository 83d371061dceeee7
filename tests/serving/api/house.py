"""A small base that chats, a library of prompts on it, and servers around them on ports of their own."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
import uvicorn
from starlette.types import ASGIApp
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import tiny
from library import samples
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import freeze
from softprompt.library.prompt import Prompt
from softprompt.serving.api.app import create_app
from softprompt.serving.engine import Engine
from softprompt.serving.service import Service

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


@functools.cache
def tokenizer() -> Any:
    """One token a letter, and two marks of a chat."""
    letters = ["\n", *map(chr, range(32, 32 + tiny.VOCABULARY - len(SPECIAL) - 1))]
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *letters))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT,
    )


@functools.cache
def base() -> Base:
    """A frozen tiny base with a chat template."""
    return freeze(tiny.model("llama"), tokenizer(), "tiny-chat")


TEMPLATE = {
    "front": "{soft:4}",
    "input": "Headline: {text}\nTopic:",
    "target": " {label}",
    "labels": {"sport": "sport", "business": "money", "tech": "bits"},
    "label_column": "label",
    "end_of_text": False,
    "max_tokens": 200,
}
FREE = TEMPLATE | {"target": " {summary}", "labels": None, "label_column": None, "input": "Say: {text}\n"}


def prompt(name: str, template: dict[str, Any], seed: int = 3, **about: Any) -> Prompt:
    """A soft prompt of four random vectors, with a card."""
    made = samples.bound(base(), "prompt-tuning", samples.P, name=name, template=template, **about)
    return Prompt(base(), samples.soft(base(), seed), made)


def fill(library: Path) -> dict[str, Prompt]:
    """Save prompts of every kind; what they are by name."""
    two = {"input": "{premise} and {hypothesis}:", "calibrate": True}
    choices = {"labels": None, "label_column": "label", "choices": "options", "target": " {choice}"}
    found = [
        prompt("topics", TEMPLATE),
        prompt("careful", TEMPLATE | {"calibrate": True, "normalise": "length", "end_of_text": True}, 4),
        prompt("pairs", TEMPLATE | two, 5),
        prompt("choices", TEMPLATE | choices, 6),
        prompt("free", FREE, 7),
        prompt("chatty", FREE | {"input": "<|im_start|>user\n{text}" + TAIL}, 8),
        prompt("brought", FREE, 9, data={}),
        samples.lora(base(), "tuned", positions=2),
    ]
    for one in found:
        one.save(library)
    return {one.name: one for one in found}


@contextlib.contextmanager
def running(app: ASGIApp, **config: Any) -> Iterator[str]:
    """Serve an app from a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", **config))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def client(engine: Engine, **options: Any) -> Iterator[httpx.Client]:
    """A client of an engine's own server."""
    with (
        running(create_app(Service(engine), **options)) as url,
        httpx.Client(base_url=url, timeout=60) as made,
    ):
        yield made


def greedy(version_prompt: Prompt, text: str, tokens: int) -> str:
    """What the library itself answers."""
    with torch.no_grad():
        return version_prompt.generate(text, max_new_tokens=tokens)
