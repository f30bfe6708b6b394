"""Load runs and soaks: what they compute from what servers said."""

from __future__ import annotations

import argparse
import json

import pytest


@pytest.fixture(autouse=True)
def scripts(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))


def run(speed, ttft=0.1, itl=0.02):
    """Return what the generator returns for two requests of three tokens."""
    return {
        "output_throughput": speed,
        "completed": 2,
        "total_input_tokens": 20,
        "total_output_tokens": 6,
        "ttfts": [ttft, ttft],
        "itls": [[itl, itl], [itl, itl]],
    }


def test_ratios_are_of_the_same_round():
    import serve_load

    found = {
        # The second round was twice as slow for both: the ratio does not move.
        ("stock", 4): [run(10.0), run(5.0)],
        ("8:16", 4): [run(15.0, ttft=0.3), run(7.0)],
    }
    stock, sparse = serve_load.make_rows(found, {"model": "m"})
    assert stock["speed_vs_stock"] == 1.0
    assert sparse["speed_vs_stock"] == 1.45
    assert (sparse["speed_vs_stock_min"], sparse["speed_vs_stock_max"]) == (1.4, 1.5)
    assert sparse["ttft_p50_ms"] == 200.0
    assert sparse["itl_p95_ms"] == 20.0
    assert (sparse["rounds"], sparse["requests"]) == (2, 4)


def test_servers_take_turns_in_another_order_every_round(monkeypatch, tmp_path):
    import serve_load

    clock = iter(range(0, 1000, 10))
    sent = []

    def generate(url, tokenizer, *, concurrency, **options):
        sent.append((url, concurrency, options["num_prompts"]))
        return run(1.0)

    monkeypatch.setattr(serve_load, "generate", generate)
    monkeypatch.setattr(serve_load.time, "monotonic", lambda: next(clock))
    servers = {name: argparse.Namespace(url=name) for name in ("stock", "off")}
    # Ten seconds a call of the clock: a cell takes ten, and two rounds fit.
    found = serve_load.measure(
        servers, tmp_path, tokens=8, until=55, concurrencies=[1, 4]
    )
    warm, timed = sent[::2], sent[1::2]
    assert [url for url, *_ in warm] == [url for url, *_ in timed], "each is warmed up"
    first = [("stock", 1, 3), ("off", 1, 3), ("stock", 4, 8), ("off", 4, 8)]
    assert timed[:4] == first
    assert [url for url, *_ in timed[4:]] == ["off", "stock"], "and no third cell"
    assert [len(found["stock", c]) for c in (1, 4)] == [2, 1]


def test_every_concurrency_is_measured_once_whatever_it_takes(monkeypatch, tmp_path):
    import serve_load

    monkeypatch.setattr(serve_load, "generate", lambda *args, **more: run(1.0))
    servers = {"stock": argparse.Namespace(url="x")}
    found = serve_load.measure(servers, tmp_path, tokens=8, until=0)
    assert {cell: len(runs) for cell, runs in found.items()} == {
        ("stock", concurrency): 1 for concurrency in (1, 4, 16, 64)
    }


def test_prompts_are_many_and_different():
    import soak_load

    prompts = soak_load.prompts()
    assert len(set(prompts)) == len(prompts) >= 64
    assert min(map(len, prompts)) < 30
    assert max(map(len, prompts)) > 500


def test_a_made_tokenizer_knows_every_id(tmp_path):
    import load_tokenizer
    import soak_load
    from transformers import AutoTokenizer

    (tmp_path / "config.json").write_text('{"vocab_size": 5000}')
    tokens = AutoTokenizer.from_pretrained(load_tokenizer.find(tmp_path, tmp_path))
    assert len(tokens) == 5000
    assert all(tokens.decode([i]) != "" for i in range(1, 5000))
    for prompt in soak_load.prompts():
        ids = tokens(prompt).input_ids
        assert tokens.decode(ids) == prompt
        assert len(ids) < len(prompt) / 2


def test_slope_and_drift():
    import soak

    points = [(60.0 * i, 100 + 2.0 * i) for i in range(20)]
    points[7] = (60.0 * 7, 900.0)  # an outlier
    assert soak.slope(points) == pytest.approx(2.0)
    gaps = [(float(i), 0.01 if i < 30 else 0.02) for i in range(90)]
    assert soak.drift(gaps)["itl_drift"] == 2.0


class Watched:
    """What ``soak.Watch`` saw: one process, a counter, memory by minute."""

    def __init__(self, growth, **final):
        self.names = {7: "Worker"}
        self.memory = {7: [(60.0 * i, 50 + growth * i) for i in range(20)]}
        self.problems = []
        self.final = {"vllm_sparse_linear_tokens_total": 3.0, **final}


@pytest.mark.parametrize(
    ("growth", "final", "errors", "reason"),
    [
        (0.0, {}, [], None),
        (0.9, {}, [], None),
        (1.1, {}, [], "memory grows by 1.10 MiB a minute after 6.0 minutes"),
        (0.0, {"vllm_sparse_poll_errors_total": 7.0}, [], "7 polls"),
        (0.0, {"vllm_sparse_poll_errors_total": 6.0}, [], None),
        (0.0, {}, ["short: status 500"], "status 500"),
    ],
)
def test_verdict(growth, final, errors, reason):
    import soak
    import soak_load

    results = soak_load.Results(errors=errors)
    fields, why = soak.verdict(Watched(growth, **final), results, 1200)
    assert fields["slope_mib_per_minute"] == pytest.approx(growth)
    assert bool(why) == (reason is not None)
    assert reason is None or reason in why[0]


def test_a_counter_that_falls_is_noted(monkeypatch):
    import soak

    texts = iter(
        [
            'vllm_sparse_linear_tokens_total{kind="o"} 5.0\n',
            'vllm_sparse_linear_tokens_total{kind="o"} 4.0\n',
        ]
    )

    class Answer:
        def read(self):
            return next(texts).encode()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(soak.urllib.request, "urlopen", lambda *a, **b: Answer())
    watch = soak.Watch(argparse.Namespace(url="http://x"))
    watch.counters()
    assert watch.problems == []
    watch.counters()
    (problem,) = watch.problems
    assert "fell from 5.0 to 4.0" in problem


def test_tables(monkeypatch, tmp_path):
    import rows
    import serve_tables

    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    load = {
        "model": "m",
        "hardware": "machine",
        "date": "2026-01-01",
        "note": "busy",
        "concurrency": 4,
        "mode": "8:16",
        "rounds": 3,
        "output_tokens_per_s": 12.34,
        "speed_vs_stock": 1.25,
        "speed_vs_stock_min": 1.1,
        "speed_vs_stock_max": 1.3,
        **{f"{x}_p{p}_ms": p for x in ("ttft", "itl") for p in (50, 95)},
    }
    (tmp_path / "serve_load.jsonl").write_text(json.dumps(load) + "\n")
    cells = serve_tables.load().splitlines()[-1]
    assert "| 12.3 | 1.25x (1.10 to 1.30) | 50, 95 | 50, 95 | 3 |" in cells
    assert "2026-01-01, machine; busy" in cells
    assert serve_tables.soak() == "No rows yet."
