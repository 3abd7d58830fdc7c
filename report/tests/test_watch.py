"""The live page: whom it answers, and that it follows a run."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from rlalign_report.run import Run
from rlalign_report.watch import Watch

from .written import HOSTILE, append, evaluation, iteration, sample, written


@pytest.fixture
def watch(tmp_path) -> Iterator[Watch]:
    with Watch(Run(tmp_path / "run")) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.close()
        thread.join(10)
        assert not thread.is_alive()


def asked(watch, path, **headers):
    host, _, port = watch.address.removeprefix("http://").partition("/")[0].partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_only_who_knows_the_token_is_answered(watch):
    status, body, headers = asked(watch, f"/{watch.token}/")
    assert status == 200 and b"connect-src 'self'" in body
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert watch.token.encode() not in body
    for path in (
        "/",
        f"/{watch.token[:-1]}/",
        f"/{watch.token}",
        f"/{watch.token}/../x",
        "/favicon.ico",
        "/%C3%A9/",
    ):
        assert asked(watch, path)[0] == 404
    assert asked(watch, f"/{watch.token}/", Host="evil.example")[0] == 404


def test_it_is_not_there_for_other_machines(watch):
    assert watch.address.startswith("http://127.0.0.1:")


def test_it_follows_a_run_from_before_it_begins(watch, tmp_path):
    def data(have=""):
        status, body, _ = asked(watch, f"/{watch.token}/data?have={have}")
        return status, json.loads(body) if body else None

    status, found = data()
    assert status == 200 and found["runs"][0]["state"] == "waiting"
    assert until_other(data, found["watched"], tries=1) is None
    written(tmp_path / "run", [evaluation(0)], [sample(0, "p", HOSTILE)], finished=False)
    found = until_other(data, found["watched"])
    assert found["runs"][0]["state"] == "stopped" and found["runs"][0]["iterations"] == 0
    assert found["runs"][0]["samples"]["evaluations"][0]["rows"][0]["response"] == HOSTILE
    append(tmp_path / "run/metrics.jsonl", [iteration(1)])
    found = until_other(data, found["watched"])
    assert found["runs"][0]["iterations"] == 1
    (tmp_path / "run/model").mkdir()
    found = until_other(data, found["watched"])
    assert found["runs"][0]["state"] == "finished"


def until_other(data, have, tries=50):
    for _ in range(tries):
        status, found = data(have)
        if status == 200:
            return found
        assert status == 204
        threading.Event().wait(0.05)
    assert tries == 1, "it noticed nothing"
    return None


def test_ctrl_c_ends_the_command(tmp_path):
    code = f"from rlalign_report.command import watch; watch([{str(tmp_path / 'run')!r}])"
    process = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("watching ")
    assert process.stdout.readline().strip().startswith("http://127.0.0.1:")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
