"""The gate: keys, hosts, sizes, malformed bodies and the end of a server, each with its own status."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.api import house
from softprompt.serving.api.gate import Bounds, Drain
from softprompt.serving.engine import Engine
from softprompt.serving.keys import KeyFile, add_key, revoke_key

BODY = {"model": "free", "prompt": "x", "max_tokens": 1}


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    (found,) = answer.json().values()
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    return dict(found)


def post(http: httpx.Client, content: bytes | str, **headers: str) -> httpx.Response:
    return http.post(
        "/v1/completions", content=content, headers={"content-type": "application/json", **headers}
    )


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of keys and their secrets by name."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    found = {
        "boss": add_key(path, "boss", admin=True)[1],
        "news": add_key(path, "news", prompts=("free",))[1],
        "slow": add_key(path, "slow", requests_per_minute=2)[1],
        "gone": add_key(path, "gone")[1],
    }
    revoke_key(path, next(k.id for k in KeyFile(path)._ring.keys if k.name == "gone"))  # type: ignore[union-attr]
    return path, found


@pytest.fixture(scope="module")
def keyed(engine: Engine, secrets: tuple[Path, dict[str, str]]) -> Iterator[httpx.Client]:
    with house.client(engine, keys=KeyFile(secrets[0])) as made:
        yield made


def bearer(secrets: tuple[Path, dict[str, str]], name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secrets[1][name]}"}


# -- keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic eDp5", "Bearer sp-nobody", "Bearer \xff"])
def test_strangers_are_refused(keyed: httpx.Client, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for path in ("/v1/models", "/v1/completions", "/metrics", "/v1/admin/prompts"):
        answer = keyed.get(path, headers=headers)  # type: ignore[arg-type]
        assert error(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_is_refused(keyed: httpx.Client, secrets: tuple[Path, dict[str, str]]) -> None:
    error(keyed.get("/v1/models", headers=bearer(secrets, "gone")), 401)


def test_a_key_sees_only_its_own(keyed: httpx.Client, secrets: tuple[Path, dict[str, str]]) -> None:
    mine = bearer(secrets, "news")
    assert [m["id"] for m in keyed.get("/v1/models", headers=mine).json()["data"]] == ["free"]
    assert keyed.post("/v1/completions", json=BODY, headers=mine).status_code == 200
    hidden = keyed.post("/v1/completions", json=BODY | {"model": "topics"}, headers=mine)
    nothing = keyed.post("/v1/completions", json=BODY | {"model": "unheard"}, headers=mine)
    said = error(hidden, 404), error(nothing, 404)
    assert said[0]["message"].replace("topics", "") == said[1]["message"].replace("unheard", "")
    error(keyed.get("/v1/models/topics", headers=mine), 404)
    error(keyed.get("/v1/models/tiny-chat", headers=mine), 404)


def test_only_admins_administrate(keyed: httpx.Client, secrets: tuple[Path, dict[str, str]]) -> None:
    for path in ("/v1/admin/prompts", "/metrics"):
        assert keyed.get(path, headers=bearer(secrets, "boss")).status_code == 200
        error(keyed.get(path, headers=bearer(secrets, "news")), 403)


def test_a_key_has_limits(keyed: httpx.Client, secrets: tuple[Path, dict[str, str]]) -> None:
    slow = bearer(secrets, "slow")
    for _ in range(2):
        assert keyed.post("/v1/completions", json=BODY, headers=slow).status_code == 200
    answer = keyed.post("/v1/completions", json=BODY, headers=slow)
    assert error(answer, 429)["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_what_is_open_needs_no_key(keyed: httpx.Client) -> None:
    for path in ("/health", "/docs", "/openapi.json"):
        assert keyed.get(path).status_code == 200


# -- this machine only ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "10.0.0.1:80"]
)
def test_foreign_names_for_this_machine_are_refused(http: httpx.Client, host: str) -> None:
    assert error(http.get("/v1/models", headers={"host": host}), 403)["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8000"])
def test_own_names_are_not(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


def test_pages_of_other_sites_are_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/admin/prompts/free/evict", headers={"origin": "https://evil.example"})
    assert error(answer, 403)["code"] == "wrong_origin"
    own = f"http://{http.base_url.host}:{http.base_url.port}"
    assert http.get("/v1/models", headers={"origin": own}).status_code == 200
    assert "access-control-allow-origin" not in http.get("/v1/models").headers


def test_the_admin_paths_are_closed_unless_opened(engine: Engine) -> None:
    with house.client(engine) as http:
        error(http.get("/v1/admin/prompts"), 403)


# -- bodies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "free", "prompt": "x", "temperature": NaN}',
        b'{"model": "free", "prompt": "x", "unheard_of": NaN}',
        b'{"model": "free", "prompt": "x", "unheard_of": -Infinity}',
        b'{"model": "free", "prompt": "x", "temperature": 1e999}',
        b'{"model": "free", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "free", "prompt": "\\ud800"}',
        b'{"model": "free", "prompt": "x", "\\udfff": 1}',
        b'{"model": "free", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "free", "prompt": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"model": "\\u0000", "prompt": "x", "n": 1.5}',
        b'{"prompt": "x"}',
    ],
)
def test_malformed_bodies_are_refused_in_a_sentence(http: httpx.Client, content: bytes) -> None:
    assert error(post(http, content), 400)["type"] == "invalid_request_error"


def test_json_must_be_called_json(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert (
            "application/json"
            in error(post(http, b'{"model": "free", "prompt": "x"}', **{"content-type": kind}), 400)[
                "message"
            ]
        )


def test_names_that_lead_elsewhere_are_unknown(http: httpx.Client) -> None:
    for name in ("../prompts/free", "free/../free", "/etc/passwd", "free\x00", "FREE", ".hidden", "a" * 200):
        assert (
            error(http.post("/v1/completions", json=BODY | {"model": name}), 404)["code"] == "model_not_found"
        )
    error(http.post("/v1/completions", json=BODY | {"model": "a" * 201}), 400)


def test_large_bodies_are_refused_while_they_come(engine: Engine) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    with house.client(engine, bounds=Bounds(body_bytes=5_000)) as http:
        error(post(http, b" " * 6_000), 413)
        with contextlib.suppress(
            httpx.WriteError, httpx.RemoteProtocolError
        ):  # it may hang up before all is sent
            answer = http.post(
                "/v1/completions", content=chunks(), headers={"content-type": "application/json"}
            )
            error(answer, 413)
        assert http.post("/v1/completions", json=BODY).status_code == 200


def test_slow_bodies_are_given_up(engine: Engine) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with house.client(engine, bounds=Bounds(body_seconds=0.2)) as http:
        address = (http.base_url.host, http.base_url.port or 0)
        with socket.create_connection(address) as sock:
            sock.settimeout(20)
            sock.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert b" 408 " in sock.recv(65536).split(b"\r\n")[0]


# -- the rest ---------------------------------------------------------------------------------------


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    error(http.get("/v1/nothing"), 404)
    error(http.get("/nothing"), 404)
    error(http.get("/v1/completions"), 405)


def test_request_ids_come_back_if_they_are_plain(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("", "a b", "x" * 101, "<script>"):
        assert http.get("/health", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req-")


def test_a_server_that_stops_refuses_what_is_new(engine: Engine) -> None:
    drain = Drain()
    with house.client(engine, drain=drain) as http:
        assert http.get("/health").json()["status"] == "ok"
        drain.draining = True
        answer = http.post("/v1/completions", json=BODY)
        assert error(answer, 503)["code"] == "draining"
        assert "retry-after" in answer.headers
        assert http.get("/health").status_code == 503


def test_a_request_has_its_time(engine: Engine) -> None:
    with house.client(engine, bounds=Bounds(seconds=0.05)) as http:
        body = {"model": "tiny-chat", "prompt": "x", "max_tokens": 500, "temperature": 0, "n": 8}
        error(http.post("/v1/completions", json=body), 504)


def test_faults_of_the_server_tell_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret at /home/boss")

    with house.client(engine) as http:
        monkeypatch.setattr(engine, "submit", broken)
        answer = http.post("/v1/completions", json=BODY)
        assert "secret" not in str(error(answer, 500))
        assert answer.headers["x-request-id"].startswith("req-")
        body = {**BODY, "stream": True}
        assert "secret" not in str(error(http.post("/v1/completions", json=body), 500))


def test_an_engine_that_stands_still_is_not_healthy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with house.client(engine) as http:
        stuck = dataclasses.replace(engine.state(), running=1, step_began=time.monotonic() - 100)
        monkeypatch.setattr(engine, "state", lambda: stuck)
        answer = http.get("/health")
        assert answer.status_code == 503
        assert answer.json() == {"status": "stalled", "running": 1, "waiting": 0}


def test_refusals_are_counted(engine: Engine) -> None:
    with house.client(engine) as http:
        error(http.post("/v1/completions", json=BODY | {"n": 0}), 400)
        error(http.get("/v1/models", headers={"host": "evil.example"}), 403)
        assert http.post("/v1/completions", json=BODY).status_code == 200
        lines = http.get("/metrics").text.splitlines()
    assert 'softprompt:requests_refused_total{reason="invalid_value"} 1.0' in lines
    assert 'softprompt:requests_refused_total{reason="wrong_host"} 1.0' in lines
    (written,) = [
        line for line in lines if line.startswith('vllm:generation_tokens_total{model_name="free"}')
    ]
    assert written.endswith(" 1.0")


# -- what a client may not do to others, and what it may ask for --------------------------------------------


def test_a_body_that_does_not_come_does_not_hold_up_the_end(engine: Engine) -> None:
    drain = Drain()
    with house.client(engine, drain=drain) as http:
        address = ("127.0.0.1", http.base_url.port or 0)
        with socket.create_connection(address, timeout=10) as sock:
            sock.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            until = time.monotonic() + 5
            while not drain.awaited and time.monotonic() < until:
                time.sleep(0.01)
            drain.draining = True
            hurried = drain.awaited.copy()
            (limit,) = hurried
            limit._task.get_loop().call_soon_threadsafe(drain.hurry)  # type: ignore[attr-defined]
            answer = b"".join(iter(lambda: sock.recv(4096), b""))  # the server ends the connection
        assert b" 503 " in answer
        assert b"draining" in answer
        assert drain.active == 0


def test_more_text_than_is_read_at_once_is_refused_before_it_is_read(engine: Engine) -> None:
    with house.client(engine, bounds=dataclasses.replace(Bounds(), letters=1_000)) as http:
        for path, field, value in (
            ("completions", "prompt", ["x" * 600, "y" * 600]),
            ("chat/completions", "messages", [{"role": "user", "content": "z" * 1_200}]),
            ("classify", "input", "w" * 1_200),
        ):
            answer = http.post(f"/v1/{path}", json={"model": "topics", field: value})
            found = error(answer, 400)
            assert found["code"] == "context_length_exceeded"
            assert found["param"] == field
            assert "1,200 letters" in found["message"]


@pytest.mark.parametrize("field", ["guided_grammar", "documents", "truncate_prompt_tokens", "bad_words"])
def test_what_would_change_an_answer_is_not_passed_over(http: httpx.Client, field: str) -> None:
    answer = http.post("/v1/completions", json={**BODY, field: ["a"]})
    assert error(answer, 400)["message"] == f"{field} is not served; leave it out."
    assert http.post("/v1/completions", json={**BODY, field: None, "unheard_of": 1}).status_code == 200


def test_health_may_be_asked_by_its_head(http: httpx.Client) -> None:
    answer = http.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")


def test_options_needs_no_key(keyed: httpx.Client) -> None:
    assert keyed.options("/v1/completions").status_code == 405


def test_pages_of_allowed_sites_may_ask(engine: Engine) -> None:
    site = "https://example.org"
    with house.client(engine, origins=[site]) as http:
        asked = {"origin": site, "access-control-request-method": "POST"}
        answer = http.options("/v1/completions", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == site
        assert http.post("/v1/completions", json=BODY, headers={"origin": site}).status_code == 200
        assert http.post("/v1/completions", json=BODY, headers={"origin": "https://x.org"}).status_code == 403


def test_a_link_to_itself_harms_nobody(library: Path, http: httpx.Client) -> None:
    loop = library / "loop"
    loop.symlink_to(loop)
    try:
        assert http.get("/v1/models").status_code == 200
    finally:
        loop.unlink()
