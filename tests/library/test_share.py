"""A prompt goes to a hub and comes back the same; a small server answers as the hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from huggingface_hub import constants

import softprompt
import tiny
from library import samples
from softprompt.cli.main import run
from softprompt.errors import ArtifactError, ResourceError
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt
from softprompt.library.share import public

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What of the hub is needed to make a repository, commit files and read them."""

    files: dict[str, dict[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer secret":
            self.reply(401, {"error": "no token"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.files[name] = {}
            self.reply(200, {"url": f"{constants.ENDPOINT}/{name}", "name": name})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.reply(200, {"files": modes})
        elif "/commit/" in self.path:
            repo = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply(
                200, {"commitUrl": f"{constants.ENDPOINT}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
            )
        else:
            self.reply(200, {"errors": [], "warnings": []})  # the README's front matter is found to be sound

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            repo = "/".join(self.path.split("?")[0].split("/")[3:5])
            if repo not in self.files:
                self.reply(404, {}, code="RepoNotFound")
                return
            held = self.files[repo].items()
            listed = [{"type": "file", "path": n, "size": len(b), "oid": n} for n, b in held]
            self.reply(200, listed if "/tree/" in self.path else {"id": repo, "sha": COMMIT, "siblings": []})
            return
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        if repo not in self.files:
            self.reply(404, b"", code="RepoNotFound")
        elif name not in self.files[repo]:
            self.reply(404, b"", code="EntryNotFound")
        else:
            self.reply(200, self.files[repo][name])

    def reply(self, status: int, content: Any, code: str = "") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    files: dict[str, dict[str, bytes]] = {}
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"files": files}))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    endpoint = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield files
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def a_prompt() -> Prompt:
    base = tiny.base()
    card = samples.bound(base, "prompt-tuning", samples.P)
    scores = {"test": {"rows": 9, "accuracy": 0.875, "nll": 0.5}}
    rows = "/home/me/secret place/rows.csv"
    about = {"origin": f"{rows} (9 of its rows, seed 0)", "rows": 9, "digest": "0" * 64}
    settings = {"data": {"train": rows, "input": "a/b {text}"}, "output": {"runs": "runs"}}
    more = {"scores": scores, "data": {"test": about}, "settings": settings}
    changed = type(card).model_validate(card.model_dump() | more)
    return Prompt(base, samples.soft(base), changed)


def test_what_is_pushed_comes_back_the_same(served: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    prompt = a_prompt()
    assert prompt.push_to_hub("me/topics").endswith("/me/topics")
    back = softprompt.load_prompt("hub:me/topics", prompt.base)
    assert back.generate("a text", max_new_tokens=4) == prompt.generate("a text", max_new_tokens=4)
    assert back.card.template == prompt.card.template
    assert softprompt.load_prompt("hub:me/topics@main", prompt.base).name == prompt.name
    everything = b"".join(served["me/topics"].values())
    assert b"secret place" not in everything
    assert b"rows.csv" in everything
    assert "adapter_config.json" in served["me/topics"]


def put(served: dict[str, dict[str, bytes]], repo: str, folder: Path) -> None:
    served[repo] = {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("spelt", ["them/lora", "hub:them/lora", "them/lora@main"])
def test_an_adapter_of_the_hub_is_imported(
    spelt: str, served: dict[str, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    wrapped: Any = peft.get_peft_model(tiny.model("llama"), config).eval()
    samples.shaken([p for p in wrapped.parameters() if p.requires_grad], seed=5)
    wrapped.save_pretrained(tmp_path / "theirs")
    about = tmp_path / "theirs" / "adapter_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"base_model_name_or_path": "a/b"}))
    put(served, "them/lora", tmp_path / "theirs")
    library = str(tmp_path / "prompts")
    wanted = ["import", spelt, "--name", "mine", "--library", library]
    assert run(wanted) == 2
    assert (
        "does not say for sure which base it was learnt on ('a/b' by its own word)" in capsys.readouterr().err
    )
    base = tmp_path / "base"
    tiny.model("llama").save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    assert run([*wanted, "--model", str(base), "--dtype", "float32"]) == 0
    prompt = softprompt.load_prompt("mine", softprompt.load_base(str(base), dtype="float32"), library)
    torch.testing.assert_close(samples.logits(prompt), samples.peft_logits(wrapped), rtol=1e-5, atol=1e-5)


def test_a_model_and_a_prompt_of_the_hub_are_read_too(
    served: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    tiny.model("llama", seed=3).save_pretrained(tmp_path / "whole")
    put(served, "them/whole", tmp_path / "whole")
    a_prompt().push_to_hub("me/topics")
    library = Library(tmp_path / "prompts")
    whole = library.load_to_import("them/whole")
    assert (whole.payload.kind, whole.card) == ("full", None)
    whole.payload.adopted(tiny.base()).write(tmp_path, "base", None)  # its files lie in the hub's cache
    assert library.load_to_import("me/topics").card is not None
    with pytest.raises(ArtifactError, match=r"has no softprompt\.json, so"):
        library.load("hub:them/whole")


def test_a_folder_here_goes_before_the_hub(
    served: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    samples.peft_folder(tmp_path / "them" / "lora")
    assert Library("prompts").load_to_import("them/lora").payload.kind == "prompt-tuning"
    assert not served


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"README.md": b""},
            r"has no softprompt\.json or adapter_config\.json or config\.json, so it is no prompt",
        ),
        (
            {"adapter_config.json": b"{}", "adapter_model.bin": b""},
            "has no safetensors weights, and pickled ones",
        ),
    ],
)
def test_what_cannot_be_imported_from_the_hub_is_a_sentence(
    files: dict[str, bytes], said: str, served: dict[str, dict[str, bytes]]
) -> None:
    served["them/x"] = files
    with pytest.raises(ArtifactError, match=said):
        Library("prompts").load_to_import("them/x")


def test_the_hub_reads_its_card(served: dict[str, dict[str, bytes]]) -> None:
    a_prompt().push_to_hub("me/topics")
    about: Any = huggingface_hub.ModelCard(served["me/topics"]["README.md"].decode()).data
    assert about.library_name == "peft"
    assert about.eval_results is not None
    found = {(one.task_type, one.metric_type): one.metric_value for one in about.eval_results}
    assert found == {("text-classification", "accuracy"): 0.875, ("text-classification", "nll"): 0.5}
    assert about.eval_results[0].dataset_split == "test"


def test_a_card_in_public_names_no_folder_and_keeps_its_texts() -> None:
    card = public(a_prompt().card)
    assert card.settings["data"] == {"train": "rows.csv", "input": "a/b {text}"}
    assert card.data["test"].origin == "rows.csv (9 of its rows, seed 0)"
    assert card.template == a_prompt().card.template
    assert public(card) == card


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hub:me", "is no prompt of the hub"),
        ("hub:me/../x", "is no prompt of the hub"),
        ("hub:me/nothing", "no folder, bundled base or hub model called 'me/nothing'"),
        ("hub:me/empty", "has no softprompt.json, so it is no prompt of softprompt"),
    ],
)
def test_what_is_not_there_is_a_sentence(served: dict[str, dict[str, bytes]], spec: str, said: str) -> None:
    served["me/empty"] = {"README.md": b""}
    with pytest.raises(ArtifactError, match=said):
        Library("prompts").load(spec)


def test_who_may_not_push_is_told_how_to(
    served: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ResourceError, match="hf auth login"):
        a_prompt().push_to_hub("me/topics")
    with pytest.raises(ArtifactError, match="write OWNER/NAME"):
        a_prompt().push_to_hub("topics")
