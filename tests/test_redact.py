"""No secret reaches the files of a run or the output of a command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import yaml

from mnist_exp.redact import redact, shows_secret
from tests.helpers.commands import Case, commands, environment

SECRET = "s3cr3t-Xy9"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"https://user:{SECRET}@example.org/a/b.git", "https://example.org/a/b.git"),
        (f"https://{SECRET}@example.org/a", "https://example.org/a"),
        (f"postgresql://user:p@{SECRET}2@host:5432/db", "postgresql://host:5432/db"),
        (f"postgresql+psycopg://user:pa/{SECRET}@host/db", "postgresql+psycopg://host/db"),
        (f"http://host/a?private_token={SECRET}&page=2", "http://host/a?private_token=REDACTED&page=2"),
        (f"https://host/a?page=2&X-Amz-Signature={SECRET}", "https://host/a?page=2&X-Amz-Signature=REDACTED"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer REDACTED"),
        (f"{{'Authorization': 'Basic {SECRET}'}}", "{'Authorization': 'Basic REDACTED'}"),
        (f"data.password={SECRET} seed=1", "data.password=REDACTED seed=1"),
        (f"MLFLOW_TRACKING_PASSWORD={SECRET}", "MLFLOW_TRACKING_PASSWORD=REDACTED"),
        (f"two http://a:{SECRET}@b/c and\nhttp://d:{SECRET}@e", "two http://b/c and\nhttp://e"),
    ],
)
def test_only_the_secret_is_removed(text, kept):
    assert redact(text) == kept
    assert redact(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a@b",
        "https://example.org:8080/a",
        "git@example.org:a/b.git",
        "/home/me/a@b",
        "sqlite:///a@b.db",
        "password: null",
        "password: ${oc.env:PASSWORD}",
        "model.cls_token=mean",
        "basic blocks, bearer of news",
    ],
)
def test_other_text_is_kept(text):
    assert redact(text) == text


@pytest.mark.parametrize("tail", ["", "(", "@", "'"], ids=["end", "bracket", "at", "quote"])
@pytest.mark.parametrize("unit", ["a.", "a-", "a", "password", "password.", "password=", "a://a:", "a@", "bearer "])
def test_time_is_linear_in_the_length_of_a_text(unit, tail):
    """A text of 100,000 characters in which a match could begin at every unit."""
    text = unit * (100_000 // len(unit)) + tail
    began = time.process_time()
    redact(text)
    shows_secret("a.py", text)
    assert time.process_time() - began < 1


def test_a_secret_after_an_expression_of_the_same_word_is_removed():
    assert redact(f"a.password=b.secret=f(x) c.d.password={SECRET}, e") == (
        "a.password=b.secret=f(x) c.d.password=REDACTED, e"
    )


def test_redacted_json_and_yaml_can_be_read():
    tree = {"uri": f"http://a:{SECRET}@b", "api_key": SECRET, "n": [1]}
    clean = {"uri": "http://b", "api_key": "REDACTED", "n": [1]}
    assert json.loads(redact(json.dumps(tree))) == clean
    assert yaml.safe_load(redact(yaml.safe_dump(tree))) == clean


@pytest.mark.parametrize(
    ("name", "text", "secret"),
    [
        ("a.py", f'PASSWORD = "{SECRET}"', True),
        ("a.py", f'connect("postgresql://user:{SECRET}@host/db")', True),
        ("a.py", "-----BEGIN OPENSSH PRIVATE KEY-----", True),
        ("a.py", "api_key = read_key()\ntoken = tokens[0]", False),
        ("a.yaml", f"password: {SECRET}", True),
        ("a.yaml", "password: ${oc.env:PASSWORD}\nclass_token: mean", False),
    ],
)
def test_a_secret_in_source_code_is_a_literal(name, text, secret):
    assert shows_secret(name, text) is secret


def left(folder):
    """Names of the files below a folder that contain the secret, except `.env`, where it belongs."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".env"]
    assert files
    return [str(path.relative_to(folder)) for path in files if SECRET.encode() in path.read_bytes()]


def test_no_file_or_output_of_a_command_contains_a_secret(with_store, tmp_path):
    """Cases: a refused address, and a run with secrets in its overrides, in Hydra's files and in its folder."""
    folder = with_store(tmp_path / "a")
    (folder / ".env").write_text(f"API_KEY={SECRET}\n")
    address = f"http://user:p@{SECRET}@127.0.0.1:9/?access_token={SECRET}"
    quick = ["data=digits", "model=linear", "trainer.epochs=1"]
    cases = {
        "refused": Case([*quick, f"tracking.uri='{address}'"], str(folder)),
        "run": Case([*quick, f"+hydra.job.env_set.API_KEY={SECRET}"], str(folder)),
        "sweep": Case(["-m", *quick, "seed=1,2", f"+hydra.job.env_set.API_KEY={SECRET}"], str(folder)),
    }
    said = commands(cases)
    assert [done.code for done in said.values()] == [2, 0, 0], said
    for done in said.values():
        assert SECRET not in done.out + done.err
    assert "tracking.uri=http://127.0.0.1:9" in said["refused"].err
    assert left(folder) == []


@pytest.mark.slow
def test_the_password_of_a_server_is_not_recorded(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = environment(tmp_path) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"],
        cwd=tmp_path, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(port)
        secret = {"MLFLOW_TRACKING_URI": f"http://user:{SECRET}@127.0.0.1:{port}", "MY_TOKEN": SECRET}
        arguments = ["-m", "data=digits", "model=linear", "trainer.epochs=1", "seed=0,1"]
        command = [sys.executable, "-m", "mnist_exp.train", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path) | secret, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert SECRET.encode() not in done.stdout + done.stderr
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert left(tmp_path) == []


def wait_for(port):
    """Waits until a server answers on a port of this machine."""
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("the server does not answer")
