"""A small server answers as the hub does, so the real client's errors are what is translated."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

import tiny
from softprompt.checkpoints.hub import DESCRIPTION, bring, is_hub_id, must_stay_local
from softprompt.checkpoints.load import open_model
from softprompt.errors import BaseModelError, ResourceError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"
REFUSALS = {
    "owner/gated": (403, "GatedRepo"),
    "owner/none": (404, "RepoNotFound"),
    "owner/hidden": (401, "RepoNotFound"),
    "owner/login": (403, ""),
    "owner/data": (404, "EntryNotFound"),
    "owner/sick": (503, ""),
}


class Hub(BaseHTTPRequestHandler):
    folder: Path

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if self.path.startswith("/api/models/"):
            self.reply(200, json.dumps(self.listing()).encode())
            return
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        file = self.folder / name
        status, code = REFUSALS.get(repo, (200, ""))
        if status == 200 and revision not in ("main", COMMIT):
            status, code = 404, "RevisionNotFound"
        elif status == 200 and not (name and file.is_file()):
            status, code = 404, "EntryNotFound"
        self.reply(status, file.read_bytes() if status == 200 else b"", code)

    def listing(self) -> object:
        files = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
            for file in self.folder.iterdir()
        ]
        return files if "/tree/" in self.path else {"id": "owner/good", "sha": COMMIT, "siblings": []}

    def reply(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "served"
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"folder": folder}))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    endpoint = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + TEMPLATE)
    yield folder
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["gpt2", "owner/name", "owner/name-1.5_b", "a"])
def test_hub_ids(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["", "./x", "/x/y", "a/b/c", "~/x", "a b", "a/", "-x", "a\\b", "x\n"])
def test_what_is_no_hub_id(name: str) -> None:
    assert not is_hub_id(name)


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("owner/gated", BaseModelError, "is gated: ask for access"),
        ("owner/none", BaseModelError, "no folder, bundled base or hub model called 'owner/none'"),
        ("owner/hidden", BaseModelError, "hf auth login"),
        ("owner/login", BaseModelError, "refuses owner/login"),
        ("owner/data", BaseModelError, "no config.json"),
        ("owner/sick", ResourceError, "the hub does not answer"),
    ],
)
def test_refusals(server: Path, source: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        must_stay_local(source, None)
    assert "\n" not in str(caught.value)


def test_an_unknown_revision(server: Path) -> None:
    with pytest.raises(BaseModelError, match="no revision 'v9'"):
        must_stay_local("owner/good", "v9")


def test_a_hub_model_is_opened_at_its_commit(server: Path) -> None:
    said: list[str] = []
    loaded = open_model("owner/good", device="cpu", dtype="fp32", notify=said.append)
    assert loaded.revision == COMMIT
    assert said == ["Opening owner/good from the hub"]


def test_without_network_the_cache_answers(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_model("owner/good", device="cpu", dtype="fp32")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said: list[str] = []
    loaded = open_model("owner/good", device="cpu", dtype="fp32", notify=said.append)
    assert loaded.revision == COMMIT
    assert said == ["Opening owner/good from the local cache"]


def test_no_own_code_is_downloaded_unasked(server: Path) -> None:
    (server / "own.py").write_text("raise SystemExit('the code ran')")
    loaded = open_model("owner/good", device="cpu", dtype="fp32")
    assert not (Path(loaded.model.config._name_or_path) / "own.py").exists()


def test_no_safetensors(server: Path) -> None:
    (server / "model.safetensors").rename(server / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="owner/good has no safetensors weights"):
        open_model("owner/good", device="cpu")


def test_a_download_that_broke_off(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small files arrived, the weights did not; then the network went."""
    bring("owner/good", None, DESCRIPTION, offline=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="could not all be had"):
        open_model("owner/good", device="cpu")


def test_nothing_in_the_cache(server: Path) -> None:
    with pytest.raises(ResourceError, match="could not all be had"):
        bring("owner/good", None, DESCRIPTION, offline=True)


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_is_said_soon(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9" + TEMPLATE)
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"no network.*\(did you mean smollm2-135m\?\)"):
        open_model("smolm2-135m")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EACCES, "may not write")]
)
def test_disk_trouble_is_found_behind_other_errors(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("wrapped") from OSError(number, "x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ResourceError, match=words):
        bring("owner/good", None, DESCRIPTION, offline=False)
