"""The composed application on real Ray: what a client sees, and what is left when it ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import httpx
import openai
import psutil
import pytest
from running_server import SWITCHYARD, free_port, is_alive, start_server

CHAT = "/v1/chat/completions"


def chat(text: str, **fields) -> dict:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


@pytest.fixture(scope="module")
def collection(server) -> str:
    for name in ("volumes", "machines", "secrets"):
        url = f"{server.url}/v1/collections/serving/documents/docs/{name}.md"
        text = f"# {name.title()}\n\nAll about {name}: how {name} work and what they cost."
        assert httpx.put(url, json={"text": text}, timeout=60).status_code == 200
    return "serving"


def test_the_openai_client_reads_whole_answers_and_the_extension(server, collection):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    answer = client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "how do volumes work?"}],
        max_tokens=8,
        extra_body={"switchyard": {"route": "rag", "collection": collection}},
    )
    assert answer.choices[0].message.content is not None
    assert answer.usage is not None and answer.usage.completion_tokens >= 1
    outcome = answer.model_extra["switchyard"]
    assert outcome["route"] == "rag"
    assert outcome["passages"][0]["document"].startswith("docs/")


def test_the_openai_client_reads_streams_and_the_extension(server, collection):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "how do volumes work?"}],
            max_tokens=8,
            stream=True,
            extra_body={"switchyard": {"route": "rag", "collection": collection}},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert chunks[0].model_extra["switchyard"]["route"] == "rag"
    assert chunks[-1].model_extra["switchyard"]["citations"] is not None


def test_the_openai_client_raises_its_own_errors(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="model 'gpt-5' is unknown"):
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="n is not implemented"):
        client.chat.completions.create(model="auto", n=2, messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b'{"model": "auto", "top_p": NaN, "messages": []}', 400),
        (b'{"model": "auto", "messages": [{"role": "user", "content": "\\udc00"}]}', 400),
        (b'{"model": "auto", "messages": [{"role": "user", "content": ""}]}', 400),
        (b'{"model": "auto", "messages": [{"role": "user", "content": "' + b"x" * 1_000_000 + b'"}]}', 413),
        (b"\x00" * 1000, 400),
    ],
    ids=["broken", "nan", "surrogate", "empty question", "1 MB question", "binary"],
)
def test_bad_bodies_get_a_clear_error_and_the_server_stays_up(server, content, status):
    headers = {"Content-Type": "application/json"}
    response = httpx.post(server.url + CHAT, content=content, headers=headers, timeout=60)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
    assert "Traceback" not in response.text
    assert httpx.get(server.url + "/readyz", timeout=60).json()["ready"] is True


def test_document_of_several_megabytes_reaches_the_retriever(server):
    url = f"{server.url}/v1/collections/large/documents/docs/spaced.md"
    text = f"# Spaced\n\n{' ' * 5 * 1024 * 1024}The end."
    assert httpx.put(url, json={"text": text}, timeout=60).json()["chunks"] == 1


def generator_stats(server) -> dict:
    return httpx.get(server.url + "/readyz", timeout=60).json()["components"]["generator"]


def test_a_client_that_leaves_frees_its_place_before_its_answer_is_complete(server):
    body = chat("tell me everything", max_tokens=400, switchyard={"route": "direct"})
    whole = httpx.post(server.url + CHAT, json=body, timeout=60).json()["usage"]["completion_tokens"]
    assert whole == 400, "the answer must be long enough to be left"
    before = generator_stats(server)["output_tokens"]
    with httpx.stream("POST", server.url + CHAT, json=body | {"stream": True}, timeout=60) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 20
    while (stats := generator_stats(server))["running"] + stats["waiting"]:
        assert time.monotonic() < deadline, stats
        time.sleep(0.05)
    assert stats["output_tokens"] - before < whole


@pytest.mark.skipif(sys.platform != "linux", reason="ray[serve] brings HAProxy for Linux alone")
def test_haproxy_is_what_clients_reach_and_not_rays_own_proxy(server):
    port = int(server.url.rpartition(":")[2])
    listening = {
        process.name()
        for process in server.processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"haproxy"}


def test_everything_listens_on_loopback_only(server):
    listening = {
        connection.laddr.ip
        for process in server.processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def test_the_token_of_ray_lies_in_the_data_folder_and_is_private(server):
    token = server.data / "ray_token"
    assert len(token.read_text()) == 64
    assert token.stat().st_mode & 0o077 == 0


def test_a_second_server_on_the_same_port_says_so_at_once(server, tmp_path):
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [SWITCHYARD, "serve", "--port", port, "--data", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_server_on_the_same_data_folder_says_so_at_once(server):
    command = [SWITCHYARD, "serve", "--port", str(free_port()), "--data", str(server.data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"in use by another server (pid {server.process.pid})" in done.stderr
    assert f"switchyard stop --data {server.data}" in done.stderr
    assert httpx.get(server.url + "/readyz", timeout=60).json()["ready"] is True


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--set", "generator.max_num_seq=1"], 1, "did you mean max_num_seqs?"),
        (["--set", "generator"], 1, "is not KEY=VALUE"),
        (["--config", "none.yaml"], 1, "none.yaml: cannot be read"),
        (["--data", "/proc/nowhere"], 1, "cannot write to the data folder"),
        (["--set", "generator.model=/nowhere"], 1, "/nowhere"),
        (["--port", "99999"], 2, "99999"),
    ],
)
def test_serve_refuses_bad_settings_in_one_line(tmp_path, options, code, message):
    command = [SWITCHYARD, "serve", "--port", str(free_port()), "--data", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_router_deployment_answers_as_the_one_in_process(tmp_path, tiny_models):
    server = start_server(tmp_path, *tiny_models, "--set", "router.placement=deployment")
    try:
        answer = httpx.post(server.url + CHAT, json=chat("hello"), timeout=60).json()
        assert answer["switchyard"]["versions"]["router"] == "score-rule-1"
    finally:
        left = server.stop()
    assert not left
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(server.url.rpartition(":")[2])))


@pytest.mark.slow
def test_stop_ends_the_server_of_a_data_folder(tmp_path, tiny_models):
    server = start_server(tmp_path, *tiny_models)
    processes = server.processes()
    try:
        done = subprocess.run([SWITCHYARD, "stop", "--data", server.data], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        server.process.wait(timeout=15)
        assert not [process for process in processes if is_alive(process)]
    finally:
        server.stop()
