"""Two real servers on one cache folder: bad clients, crowds, then signals.

docs/reliability.md says what must happen. The last two tests end the servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.processes import outlived, tree
from support.server import serve

pytestmark = pytest.mark.server

JSON = {"Content-Type": "application/json"}
LARGE, SMALL = "12000", "256"
STOP_SECONDS = 30


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def servers(long_model, cache):
    """Start two servers at once, with a large and a small ``max_model_len``."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        starting = [
            serve(
                str(long_model),
                *("--activation-sparsity", "8:16", "--max-model-len", length),
                *("--shutdown-timeout", seconds),
                NMSPARSE_CACHE=str(cache),
            )
            for length, seconds in ((LARGE, "0"), (SMALL, "20"))
        ]
        yield list(pool.map(stack.enter_context, starting))


@pytest.fixture(scope="module")
def large(servers):
    return servers[0]


@pytest.fixture(scope="module")
def small(servers):
    return servers[1]


def post(server, content, path="/v1/completions"):
    return httpx.post(server.url + path, content=content, headers=JSON, timeout=60)


def complete(server, prompt="abcde", max_tokens=8):
    request = {"model": "m", "prompt": prompt, "max_tokens": max_tokens}
    request |= {"temperature": 0.0, "ignore_eos": True}
    return post(server, json.dumps(request).encode())


@contextlib.contextmanager
def stream(server, max_tokens):
    """Open a stream; yield its lines once the first has arrived."""
    request = {"model": "m", "prompt": "go", "max_tokens": max_tokens}
    request |= {"temperature": 0.0, "ignore_eos": True, "stream": True}
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=request, timeout=60
    ) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        yield lines


def wait(check, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        time.sleep(0.2)
    return check()


def test_two_servers_share_a_cache_folder(servers, cache):
    (path,) = cache.glob("dispatch-*.json")  # one file, and no rest of a temporary one
    assert list(cache.iterdir()) == [path]
    tables = json.loads(path.read_text())["tables"]
    assert len(tables) == 5  # shapes of qkv, o, gate_up, down and the head
    first, second = (complete(server).json()["choices"][0] for server in servers)
    assert first["text"] == second["text"]
    for server in servers:
        assert server.get("/sparsity").json()["active"] is True
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'{"model": "m", "prompt": ',
        b'{"model": "m", "prompt": "x"}}',
        b'{"model": "m", "prompt": "\xff\xfe"}',
        b"\x80\x81\x82",
        b'{"model": "m", "prompt": "' + b"\xc3" * 50 + b'"}',
        b'{"model": "m", "prompt": "x", "max_tokens": "many"}',
        b"[" * 100_000,
    ],
    ids=[
        *("empty", "list", "null", "truncated", "trailing", "utf-8 in text"),
        *("utf-8 alone", "half characters", "type", "deep"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_malformed_bodies_are_the_clients_fault(small, content, path):
    answer = post(small, content, path)
    assert answer.status_code == 400
    # vLLM's own form; FastAPI's where it cannot even read the text.
    assert answer.json().keys() & {"error", "detail"}
    assert small.get("/health").status_code == 200


def test_a_prompt_of_10000_tokens(large, small):
    prompt = "0123456789" * 1000
    answer = complete(large, prompt, max_tokens=2)
    assert answer.status_code == 200
    assert answer.json()["usage"] == answer.json()["usage"] | {
        "prompt_tokens": 10_001,
        "completion_tokens": 2,
    }
    refused = complete(small, prompt, max_tokens=2)
    assert refused.status_code == 400
    assert SMALL in refused.json()["error"]["message"]
    assert complete(small).status_code == 200


def test_a_client_that_goes_away_is_not_served_on(large):
    asked = 10_000
    before = large.metric("vllm:generation_tokens_total")
    with stream(large, asked) as lines:
        next(lines)
        assert large.metric("vllm:num_requests_running") == 1
    assert wait(lambda: large.metric("vllm:num_requests_running") == 0)
    generated = large.metric("vllm:generation_tokens_total") - before
    assert 0 < generated < asked / 2
    # Nobody asks for more: what is still generated would be for the lost request.
    time.sleep(2)
    assert large.metric("vllm:generation_tokens_total") - before == generated
    assert complete(large).status_code == 200


def test_200_connections(small):
    async def ask():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:
            request = {"model": "m", "max_tokens": 4, "ignore_eos": True}
            return await asyncio.gather(
                *(
                    client.post(
                        f"{small.url}/v1/completions",
                        json=request | {"prompt": f"request {i}"},
                    )
                    for i in range(200)
                )
            )

    answers = asyncio.run(ask())
    assert {answer.status_code for answer in answers} == {200}
    assert {x.json()["usage"]["completion_tokens"] for x in answers} == {4}
    assert small.metric("vllm:num_requests_running") == 0
    assert small.metric("vllm_sparse_poll_errors_total") == 0


def read_all(lines):
    """Read a stream until it ends; return whether all tokens came."""
    found = []
    with contextlib.suppress(httpx.RemoteProtocolError):  # cut off is ended, too
        found.extend(lines)
    reasons = [
        json.loads(x[6:]).get("choices") for x in found if x.startswith("data: {")
    ]
    return any(x and x[0]["finish_reason"] == "length" for x in reasons)


def test_sigterm_under_load(large):
    """vLLM's default, ``--shutdown-timeout 0``: running requests are aborted."""
    processes = tree(large)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        streams = [stack.enter_context(stream(large, 10_000)) for _ in range(8)]
        ends = [pool.submit(read_all, lines) for lines in streams]
        large.process.send_signal(signal.SIGTERM)
        status = large.process.wait(STOP_SECONDS)
        assert [end.result(1) for end in ends] == 8 * [False]
    assert status == 0
    assert outlived(processes, 5) == []
    with pytest.raises(httpx.ConnectError):
        large.get("/health")


def test_sigterm_with_time_to_finish(small):
    """``--shutdown-timeout``: what runs is finished, nothing new is taken."""
    processes = tree(small)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        streams = [stack.enter_context(stream(small, 200)) for _ in range(8)]
        ends = [pool.submit(read_all, lines) for lines in streams]
        small.process.send_signal(signal.SIGTERM)
        status = small.process.wait(STOP_SECONDS)
        assert [end.result(1) for end in ends] == 8 * [True]
    assert status == 0
    assert outlived(processes, 5) == []
