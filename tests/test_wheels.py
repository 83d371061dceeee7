"""Wheels are brought by pip itself, from a folder here, so that what is tested is what runs."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from softprompt import wheels
from softprompt.errors import ResourceError
from softprompt.wheels import Wheel, cache_root, fetch, fetched, wheel_path, writing


def make_wheel(folder: Path, project: str = "tiny-data", version: str = "1.0") -> Wheel:
    """A wheel that pip accepts, in ``folder``, and what identifies it."""
    stem = f"{project.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    data = path.read_bytes()
    return Wheel(project, version, hashlib.sha256(data).hexdigest(), len(data))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    return make_wheel(tmp_path / "index")


def no_pip(*args: object, **kwargs: object) -> None:
    raise AssertionError("pip was started")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOFTPROMPT_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.setenv("SOFTPROMPT_CACHE", "")
    assert cache_root() == tmp_path / "xdg" / "softprompt"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == tmp_path / ".cache" / "softprompt"


def test_a_wheel_is_downloaded_once(cache: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert not fetched(wheel)
    path = fetch(wheel, notify=said.append)
    assert path == wheel_path(wheel)
    assert fetched(wheel)
    assert path.read_bytes() == (cache.parent / "index" / wheel.filename).read_bytes()
    assert said == ["Downloading tiny-data 1.0 (0.0 MB)"]

    monkeypatch.setattr(subprocess, "run", no_pip)
    assert fetch(wheel, notify=said.append) == path
    assert len(said) == 1


def test_remains_of_a_killed_download_are_removed(cache: Path, wheel: Wheel) -> None:
    part = cache / "wheels" / f".{wheel.filename}.part"
    part.mkdir(parents=True)
    (part / "other.whl").write_bytes(b"half")
    wheel_path(wheel).write_bytes(b"cut short")
    fetch(wheel)
    assert fetched(wheel)
    assert not part.exists()


def test_changed_bytes_are_refused(cache: Path, wheel: Wheel) -> None:
    other = Wheel(wheel.project, wheel.version, "0" * 64, wheel.size)
    with pytest.raises(ResourceError, match=r"tiny-data 1\.0 is damaged or was changed"):
        fetch(other)
    assert [path.name for path in (cache / "wheels").iterdir() if not path.name.endswith(".lock")] == []


def test_no_network_is_said_soon(cache: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    began = time.monotonic()
    with pytest.raises(ResourceError, match="no network or the package index cannot be reached"):
        fetch(wheel)
    assert time.monotonic() - began < 20


def test_an_unknown_version_is_no_network_problem(cache: Path, wheel: Wheel) -> None:
    with pytest.raises(ResourceError, match=r"could not download tiny-data 9\.0 \(.*pip configuration"):
        fetch(Wheel(wheel.project, "9.0", wheel.sha256, wheel.size))


def test_two_processes_download_once(cache: Path, wheel: Wheel) -> None:
    code = (
        "from softprompt.wheels import Wheel, fetch\n"
        f"print(fetch(Wheel{(wheel.project, wheel.version, wheel.sha256, wheel.size)!r}, notify=print))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum(output.count("Downloading") for output in outputs) == 1
    assert all(output.strip().endswith(str(wheel_path(wheel))) for output in outputs)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("/usr/bin/python: No module named pip", "has no pip"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "no space left",
        ),
        ("ERROR: [Errno 13] Permission denied: '/x'", "may not write"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'", "no network"),
        ("ERROR: Something else.", r"\(Something else\)"),
        ("", "it gave no reason"),
    ],
)
def test_pips_complaints_become_one_sentence(
    cache: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch, stderr: str, words: str
) -> None:
    failed: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ResourceError, match=words) as caught:
        fetch(wheel)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "may not write"),
        (errno.EROFS, "may not write"),
    ],
)
def test_disk_errors_say_what_to_do(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(ResourceError, match=f"{words}.*SOFTPROMPT_CACHE"), writing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_disk_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError), writing(tmp_path):
        raise OSError(errno.EINTR, "interrupted")


def test_a_file_in_the_way_of_the_cache(cache: Path, wheel: Wheel) -> None:
    cache.write_text("not a folder")
    with pytest.raises(ResourceError, match="a file is in its way"):
        fetch(wheel)


def test_a_present_wheel_needs_no_right_to_write(
    cache: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(wheel)

    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(wheels, "FileLock", read_only)
    assert fetch(wheel).is_file()
