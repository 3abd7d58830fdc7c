"""`rlalign doctor` says what is wrong and what to do, also where nothing works."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlalign.cli import machine_checks, package_checks

ROOT = Path(__file__).resolve().parents[3]
Found = list[dict[str, str]]


def doctor(
    folder: Path,
    *arguments: str,
    unset: tuple[str, ...] = (),
    before: Callable[[], Any] | None = None,
    **environment: str,
) -> tuple[Found, int]:
    """Its findings and exit status, told by a process of its own in an empty folder."""
    folder.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k not in unset and not k.startswith("RLALIGN_")}
    done = subprocess.run(
        [sys.executable, "-m", "rlalign", "doctor", "--json", *arguments],
        env={**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        cwd=folder,
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return json.loads(done.stdout)["findings"], done.returncode


def about(found: Found, what: str, state: str) -> str:
    """The findings of this state, as text; each one that is not ok says what to do."""
    assert all(bool(one["remedy"]) == (one["state"] != "ok") for one in found)
    chosen = [one for one in found if one["about"] == what and one["state"] == state]
    return "\n".join(f"{one['said']} → {one['remedy']}" for one in chosen)


@pytest.fixture
def no_torch(tmp_path: Path) -> str:
    """A path on which torch cannot be imported, as with a library that is missing; so plugins take no time."""
    site = tmp_path / "site"
    (site / "torch").mkdir(parents=True)
    (site / "torch/__init__.py").write_text(
        "raise ImportError('libcudart.so.13: cannot open shared object file')\n"
    )
    return os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])


def package(site: Path, name: str, points: str = "", more: str = "") -> None:
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{more}\n")
    (info / "entry_points.txt").write_text(f"[rlalign]\n{points}\n")


@pytest.mark.slow  # every plugin is imported: eight seconds of a processor
def test_plugins_that_are_broken_rival_or_too_old(tmp_path):
    site = tmp_path / "site"
    package(site, "broken", "never-there = absent_module:Never\nnor-this = absent_module:Nor")
    package(site, "rival", "kl = rlalign.builtin.kl:KL")
    needs = "Requires-Dist: rlalign<0.1\nRequires-Dist: never-made>=3; python_version > '3'"
    package(
        site,
        "old",
        "of-old = rlalign.builtin.kl:KL",
        f"{needs}\nRequires-Dist: not-asked-for; extra == 'more'",
    )
    package(
        site, "careful", "careful = rlalign.builtin.kl:KL", "Requires-Dist: click==0.1; extra == 'tested'"
    )
    found, status = doctor(
        tmp_path / "here", PYTHONPATH=os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    )
    assert status == 1
    plugins = about(found, "plugins", "wrong")
    assert re.search(
        r"`never-there` \(broken 1\.0\) cannot be imported: ModuleNotFoundError.*and so `nor-this`", plugins
    )
    assert re.search(
        r"`kl` is in rival 1\.0 and rlalign .*; say which one: `rival:kl` or `rlalign:kl`", plugins
    )
    assert len(plugins.splitlines()) == 2
    versions = about(found, "versions", "wrong")
    assert re.search(r"old 1\.0 requires rlalign<0\.1; installed is 0\.", versions)
    assert "old 1.0 requires never-made>=3" in versions and "not-asked-for" not in versions
    assert re.search(r"click \S+ \(tested: ==0\.1\)", about(found, "versions", "note"))


def test_without_torch(tmp_path, no_torch):
    found, status = doctor(tmp_path / "here", PYTHONPATH=no_torch)
    assert status == 1
    assert "cannot be imported: ImportError: libcudart.so.13" in about(found, "torch", "wrong")
    assert "torch above" in about(found, "plugins", "note")
    assert {"python", "versions", "threads", "runs", "hub cache", "/dev/shm"} <= {
        one["about"] for one in found
    }
    shown = subprocess.run(
        [sys.executable, "-m", "rlalign", "doctor"],
        env={**os.environ, "PYTHONPATH": no_torch},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    assert re.search(r"^wrong +torch +cannot be imported: .*\n +→ install it", shown.stdout, re.MULTILINE)
    assert re.search(r"^\d+ wrong, \d+ to note, \d+ ok$", shown.stdout, re.MULTILINE)


def test_a_torch_that_kills_its_process(tmp_path, no_torch):
    Path(no_torch.split(os.pathsep)[0], "torch/__init__.py").write_text("import os\nos.abort()\n")
    found, status = doctor(tmp_path / "here", PYTHONPATH=no_torch)
    assert status == 1
    assert "ended its process by SIGABRT" in about(found, "torch", "wrong")


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"OMP_NUM_THREADS": "4096"}, "4096 threads on"),
        ({"OMP_NUM_THREADS": "all"}, "OMP_NUM_THREADS='all' is no number of threads"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "threads that wait spin"),
    ],
)
def test_threads(tmp_path, no_torch, setting, said):
    found, _ = doctor(tmp_path / "here", PYTHONPATH=no_torch, **setting)
    wrong = about(found, "threads", "wrong")
    assert said in wrong and re.search(r"→ export OMP_\w+=\w+", wrong)
    fine, _ = doctor(tmp_path / "here", PYTHONPATH=no_torch)
    assert not about(fine, "threads", "wrong")


def test_a_containers_quota(tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine_checks.cores(tmp_path)[0] == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine_checks.cores(tmp_path)[0] == len(os.sched_getaffinity(0))


def test_folders_that_cannot_be_written(tmp_path, no_torch):
    """/proc is read-only whoever asks; a limit on the size of files stands in for a full disk."""
    found, status = doctor(
        tmp_path / "here", PYTHONPATH=no_torch, HF_HUB_OFFLINE="0", HF_HOME="/proc/self/fdinfo"
    )
    assert status == 1
    assert re.search(
        r"/proc/self/fdinfo/hub: nothing can be written to .*HF_HOME=", about(found, "hub cache", "wrong")
    )
    offline, _ = doctor(tmp_path / "here", PYTHONPATH=no_torch, HF_HOME="/proc/self/fdinfo")
    assert about(offline, "hub cache", "note")
    full, _ = doctor(
        tmp_path / "here",
        PYTHONPATH=no_torch,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert "nothing can be written" in about(full, "runs", "wrong")
    assert not list((tmp_path / "here").iterdir())


def test_variables_and_limits(tmp_path, no_torch):
    found, _ = doctor(
        tmp_path / "here",
        PYTHONPATH=no_torch,
        RLALIGN_WAIT="long",
        RLALIGN_CASHE="/tmp",
        RLALIGN_SERVE_TOKEN="a-token-nobody-sees",
        WORLD_SIZE="2",
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 4096)),
    )
    assert "RLALIGN_WAIT=long is no number of seconds" in about(found, "variables", "wrong")
    notes = about(found, "variables", "note")
    assert "did you mean `RLALIGN_CACHE`?" in notes and "WORLD_SIZE: set as torchrun does" in notes
    assert "RLALIGN_SERVE_TOKEN is set" in about(found, "variables", "ok")
    assert "a-token-nobody-sees" not in json.dumps(found)
    assert "ulimit -n 4096" in about(found, "open files", "note")


def test_it_knows_every_variable_of_ours():
    named = set()
    for file in ROOT.glob("**/src/**/*.py"):
        if "site-packages" not in file.parts:
            named |= set(re.findall(r"\bRLALIGN_[A-Z_]+\b", file.read_text()))
    assert named == set(machine_checks.VARIABLES)


class Answer(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


def test_the_hub_is_asked_only_where_it_is_wanted(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    (found,) = machine_checks.hub(online=True)
    assert (found.state, found.said) == ("ok", f"{address} answers")
    monkeypatch.setattr(Answer, "status", 503)
    assert next(machine_checks.hub(online=True)).state == "note"
    server.shutdown()
    server.server_close()
    (found,) = machine_checks.hub(online=True)
    assert found.state == "wrong" and "cannot be reached" in found.said and "HF_HUB_OFFLINE=1" in found.remedy
    assert next(machine_checks.hub(online=False)).said == "not asked; --online does"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert next(machine_checks.hub(online=True)).state == "note"


GPU: Mapping[str, Any] = {"name": "H", "capability": [9, 0], "free": 8e10, "total": 8.5e10}
TORCH: Mapping[str, Any] = {
    "version": "2",
    "cuda": "12.8",
    "hip": None,
    "why": "",
    "vectors": "AVX2",
    "threads": 1,
}


@pytest.mark.parametrize(
    "built, change, state",
    [
        (["sm_80", "sm_90"], {}, "ok"),
        (["sm_80", "compute_80"], {}, "ok"),
        (["sm_80", "sm_100"], {}, "wrong"),
        (["sm_90a"], {"free": 1e9}, "note"),
    ],
)
def test_a_gpu_and_what_torch_is_built_for(built, change, state):
    (found,) = package_checks.devices({**TORCH, "devices": [{**GPU, **change}], "built_for": built})
    assert found.state == state and "capability 9.0" in found.said


def test_a_driver_without_a_use(monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\n")
    monkeypatch.setattr(package_checks, "_DRIVERS", (driver, tmp_path / "none"))
    none = {**TORCH, "devices": [], "built_for": [], "why": "The NVIDIA driver on your system is too old"}
    (found,) = package_checks.devices(none)
    assert found.state == "wrong" and "too old" in found.said and "570.86.15" in found.said
    (found,) = package_checks.torch_finding({**none, "cuda": None})
    assert found.state == "wrong" and "CPU build" in found.said


def test_nothing_of_the_current_folder_is_imported(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('read from the current folder')\n")
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "from rlalign.cli.package_checks import _ask; print(_ask('-c', 'import json'))",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "('', '')"


def test_a_process_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(package_checks, "PATIENCE", 0.5)
    assert package_checks._ask("-c", "import time; time.sleep(60)") == ("", "was not done after 0.5 s")
