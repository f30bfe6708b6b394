"""The mixed load of ``soak.py``: what users send, good and bad, and what is expected.

Every request has a kind, and every kind the statuses it may get. Whatever else comes
back, or does not come back, is an error.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PROMPTS = Path(__file__).parent / "prompts.jsonl"
# How often each kind is sent.
KINDS = {
    "short": 30,
    "long": 10,
    "stream": 30,
    "chat": 10,
    "cancel": 10,
    "invalid": 10,
}
TIMEOUT_SECONDS = 300.0
WARM_UP_LENGTHS = 384
# Tokens of prompts that arrive together, more than the load's, and how often they do.
LONGEST, LARGEST_STEPS = 600, 4
# Bodies that no server should accept, and what it must say: vLLM's own statuses.
INVALID: tuple[tuple[bytes, int], ...] = (
    (b'{"model": "m", "prompt": ', 400),
    (b'{"model": "m", "prompt": "\xff\xfe"}', 400),
    (b'{"model": "m", "prompt": "x", "max_tokens": -1}', 400),
    (b'{"model": "other", "prompt": "x"}', 404),
    (b'{"model": "m", "prompt": "' + b"word " * 10_000 + b'"}', 400),
    (b'{"model": "m", "prompt": "x", "temperature": "hot"}', 400),
    (b"[]", 400),
    (b"", 400),
)
_JSON = {"Content-Type": "application/json"}


@dataclass
class Results:
    """What came back.

    Attributes:
        sent: requests by kind.
        errors: descriptions of what should not have been.
        gaps: of streams: when a token came (seconds since the epoch of
            ``time.monotonic``) and how long after the one before it (seconds).
    """

    sent: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)


def prompts() -> list[str]:
    """Return the prompts that ship with the benchmarks."""
    lines = PROMPTS.read_text("utf-8").splitlines()
    return [str(json.loads(line)["prompt"]) for line in lines]


def warm_up(url: str, *, concurrency: int) -> None:
    """Send prompts of many lengths, one at a time, then the longest together.

    vLLM's CPU products keep what they prepared for each number of tokens they have
    seen, 128 a layer, and oneDNN keeps 1024 of all layers and the code of each: four
    shapes of layers fill it at 256 numbers. Memory grows until then. It also grows at
    the first step that is larger than all before: the load has such steps now and then,
    when several long prompts arrive together.

    Args:
        url: of the server.
        concurrency: requests of the load at a time.
    """
    with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client:

        def send(length: int, seed: int, **options: Any) -> None:
            ids = random.Random(seed).choices(range(10, 1000), k=length)
            request = {"model": "m", "prompt": ids, "ignore_eos": True, **options}
            client.post("/v1/completions", json=request).raise_for_status()

        for length in range(16, 16 + WARM_UP_LENGTHS):
            send(length, length, max_tokens=2)
        with ThreadPoolExecutor(concurrency) as pool:
            for round_ in range(LARGEST_STEPS):
                sent = [
                    pool.submit(send, LONGEST, 10_000 * (round_ + 1) + i, max_tokens=24)
                    for i in range(concurrency)
                ]
                for one in sent:
                    one.result()


async def load(url: str, until: float, *, concurrency: int, seed: int = 0) -> Results:
    """Send requests of all kinds until ``until`` (``time.monotonic``).

    Args:
        url: of the server, which calls its model ``m``.
        until: when the last request may begin.
        concurrency: requests at a time.
        seed: of the order of kinds and prompts.
    """
    results = Results()
    texts = prompts()
    limits = httpx.Limits(max_connections=2 * concurrency)
    async with httpx.AsyncClient(
        base_url=url, timeout=TIMEOUT_SECONDS, limits=limits
    ) as client:
        await asyncio.gather(
            *(
                _user(client, until, random.Random(f"{seed} {i}"), texts, results)
                for i in range(concurrency)
            )
        )
    return results


async def _user(
    client: httpx.AsyncClient,
    until: float,
    random_: random.Random,
    texts: list[str],
    results: Results,
) -> None:
    while time.monotonic() < until:
        (kind,) = random_.choices(list(KINDS), list(KINDS.values()))
        results.sent[kind] += 1
        try:
            await _send(client, kind, random_, texts, results)
        except httpx.ConnectError as error:
            results.errors.append(f"{kind}: {error!r}")
            return  # the server is gone
        except (httpx.HTTPError, ValueError, KeyError) as error:
            results.errors.append(f"{kind}: {error!r}")


async def _send(
    client: httpx.AsyncClient,
    kind: str,
    random_: random.Random,
    texts: list[str],
    results: Results,
) -> None:
    if kind == "invalid":
        body, expected = random_.choice(INVALID)
        answer = await client.post("/v1/completions", content=body, headers=_JSON)
        if answer.status_code != expected:
            results.errors.append(
                f"invalid {body[:40]!r}: status {answer.status_code}, not {expected}"
            )
        return
    tokens = random_.randint(8, 48)
    request: dict[str, Any] = {"model": "m", "max_tokens": tokens, "ignore_eos": True}
    text = random_.choice(texts)
    if kind == "chat":
        message = {"role": "user", "content": text}
        answer = await client.post(
            "/v1/chat/completions", json={**request, "messages": [message]}
        )
        _check_usage(answer, tokens, kind, results)
    elif kind in ("stream", "cancel"):
        stop_after = random_.randint(1, 6) if kind == "cancel" else 10**9
        request |= {"prompt": text, "stream": True, "temperature": 0.0}
        await _stream(client, request, stop_after, kind, results)
    else:
        prompt = text if kind == "short" else " ".join(random_.sample(texts, 8))
        answer = await client.post(
            "/v1/completions", json={**request, "prompt": prompt}
        )
        _check_usage(answer, tokens, kind, results)


def _check_usage(
    answer: httpx.Response, tokens: int, kind: str, results: Results
) -> None:
    """Every token that was asked for was generated."""
    if answer.status_code != 200:
        results.errors.append(f"{kind}: status {answer.status_code}")
    elif answer.json()["usage"]["completion_tokens"] != tokens:
        results.errors.append(f"{kind}: usage {answer.json()['usage']}")


async def _stream(
    client: httpx.AsyncClient,
    request: dict[str, Any],
    stop_after: int,
    kind: str,
    results: Results,
) -> None:
    """Read a stream to its end, or close it after a few chunks."""
    chunks, last, done = 0, 0.0, False
    async with client.stream("POST", "/v1/completions", json=request) as answer:
        if answer.status_code != 200:
            results.errors.append(f"{kind}: status {answer.status_code}")
            return
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data:"):
                now = time.monotonic()
                if chunks:
                    results.gaps.append((now, now - last))
                chunks, last = chunks + 1, now
            if chunks >= stop_after:
                return
    if not done:
        results.errors.append(f"{kind}: ended after {chunks} chunks without [DONE]")
