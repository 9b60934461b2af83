"""A plausible run, made by a small simulation of the two memories, written the way the harness writes it."""

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pbench.reports.report import render_report
from pbench.results import (
    DEVICE_COLUMNS,
    METRICS,
    POOL_MAP_COLUMNS,
    POOL_MAP_FILE,
    PREFIX_COLUMNS,
    PREFIX_FILE,
    REQUEST_COLUMNS,
    STEP_COLUMNS,
    EngineResult,
    PhaseTime,
    Repeat,
    Run,
    RunResult,
    write_result,
    write_table,
)
from pbench.summary.intervals import interval_of

BLOCK_SIZE = 16
NUM_SLOTS = 16_384
SLOT_BYTES = 131_072
MAX_LENGTH = 2048
MAP_STRIDE = 7  # steps between two maps of the pool
SHARED_TOKENS = 64  # every prompt begins with them; a multiple of BLOCK_SIZE
WEIGHTS_BYTES = 1_300_000_000
STEP_COST = {"weights_bytes": WEIGHTS_BYTES, "token_flops": 1_300_000_000, "sample_flops": 10**8, "pair_flops": 10**5}
PARTITION = ("token_state", "reserved", "internal", "external", "cached", "free")

Row = dict[str, Any]


class Simulation:
    """Serves requests offered at once, one token a step for whoever fits the pool, and writes down every step."""

    def __init__(self, spec: str, prompts: npt.NDArray[np.int64], outputs: npt.NDArray[np.int64]) -> None:
        self.spec = spec
        self.is_paged = spec.startswith("paged")
        self.prompts, self.outputs = prompts.tolist(), outputs.tolist()
        self.waiting = list(range(len(prompts)))
        self.num_done: dict[int, int] = {}  # tokens generated, by running request
        self.times: list[Row] = [{"num_preemptions": 0} for _ in prompts]
        self.steps: list[Row] = []
        self.spans: list[Row] = []  # of the pool's maps
        self.now_ns = 0

    def run(self) -> "Simulation":
        while self.waiting or self.num_done:
            self._step()
        return self

    def _held(self, request: int, num_done: int) -> int:
        """Slots that a request takes by itself; a shared prefix is taken once, by the pool."""
        if not self.is_paged:
            return MAX_LENGTH
        return int(-(-(self.prompts[request] - SHARED_TOKENS + num_done) // BLOCK_SIZE) * BLOCK_SIZE)

    def _used(self, num_ahead: int) -> int:
        shared = SHARED_TOKENS if self.is_paged and self.num_done else 0
        return shared + sum(self._held(request, done + num_ahead) for request, done in self.num_done.items())

    def _step(self) -> None:
        num_prefill = num_hits = num_preempted = 0
        while self.waiting and self._used(1) + self._held(self.waiting[0], 1) + SHARED_TOKENS <= NUM_SLOTS:
            request = self.waiting.pop(0)
            hits = SHARED_TOKENS if self.is_paged and self.num_done else 0
            self.num_done[request] = 0
            num_prefill += self.prompts[request] - hits
            num_hits += hits
            self.times[request].setdefault("first_scheduled_ns", self.now_ns)
            self.times[request].setdefault("num_prefix_hit_tokens", hits)
        while self._used(1) > NUM_SLOTS:
            request = max(self.num_done)
            del self.num_done[request]
            self.waiting.insert(0, request)
            self.times[request]["num_preemptions"] += 1
            num_preempted += 1
        num_running = len(self.num_done)
        start_ns = self.now_ns
        self.now_ns += 20_000_000 + 100_000 * num_running + 20_000 * num_prefill
        leaving = []
        for request in self.num_done:
            self.num_done[request] += 1
            self.times[request].setdefault("first_token_ns", self.now_ns)
            if self.num_done[request] >= self.outputs[request]:
                leaving.append(request)
        self.steps.append(
            dict.fromkeys(STEP_COLUMNS, 0)
            | {"repeat": 1}
            | {
                "engine": self.spec,
                "step": len(self.steps),
                "start_ns": start_ns,
                "end_ns": self.now_ns,
                "num_prefill_tokens": num_prefill,
                "num_decode_tokens": num_running,
                "num_output_tokens": num_running,
                "num_prefix_hit_tokens": num_hits,
                "num_running": num_running,
                "num_waiting": len(self.waiting),
                "num_finished": len(leaving),
                "num_preempted": num_preempted,
                "num_copied_blocks": 3 if self.is_paged and len(self.steps) % 37 == 5 else 0,
                "num_evicted_blocks": 2 * num_preempted,
                "is_memory_blocked": bool(self.waiting),
            }
            | self._usage()
        )
        if len(self.steps) % MAP_STRIDE == 1:
            self.spans += self._map()
        for request in leaving:
            del self.num_done[request]
            self.times[request]["finished_ns"] = self.now_ns

    def _usage(self) -> Row:
        used = self._used(0)
        saved = SHARED_TOKENS * (len(self.num_done) - 1) if self.is_paged else 0
        live = sum(self.prompts[request] + done for request, done in self.num_done.items()) - saved
        to_come = 0
        for request, done in self.num_done.items():
            own = self.prompts[request] + done - (SHARED_TOKENS if self.is_paged else 0)
            to_come += min(self.outputs[request] - done, self._held(request, done) - own)
        free = NUM_SLOTS - used
        external = min(free, MAX_LENGTH - 1) if self.waiting and not self.is_paged else 0
        cached = free // 2 if self.is_paged else 0
        return {
            "token_state": live,
            "reserved": to_come,
            "internal": used - live - to_come,
            "external": external,
            "cached": cached,
            "free": free - external - cached,
            "shared_saved": saved,
        }

    def _map(self) -> list[Row]:
        """The pool with the shared prefix first, then what each request holds, then what is cached and what is free."""
        usage = self._usage()
        shared = SHARED_TOKENS if self.is_paged else 0
        spans = [(shared, min(self.num_done), len(self.num_done), shared, 0, 0, 0)] if shared else []
        for request, done in self.num_done.items():
            held, tokens = self._held(request, done), self.prompts[request] + done - shared
            reserved = min(self.outputs[request] - done, held - tokens)
            spans.append((held, request, 1, tokens, reserved, held - tokens - reserved, 0))
        num_left = NUM_SLOTS - sum(span[0] for span in spans)
        spans += [(usage["cached"], -1, 0, 0, 0, 0, usage["cached"]), (num_left - usage["cached"], -1, 0, 0, 0, 0, 0)]
        names = ("length", "request_id", "num_sharers", "token_state", "reserved", "internal", "cached")
        rows = []
        start = 0
        for span in (span for span in spans if span[0]):
            row: Row = dict(zip(names, span, strict=True))
            row |= {"engine": self.spec, "time_ns": self.now_ns, "start": start, "free": span[0] - sum(span[3:])}
            rows.append(row)
            start += span[0]
        return rows

    def requests(self) -> list[Row]:
        return [
            dict.fromkeys(REQUEST_COLUMNS, 0)
            | {"repeat": 1}
            | {
                "engine": self.spec,
                "request_id": request,
                "status": "finished",
                "added_ns": 1000 * request,
                "num_prompt_tokens": self.prompts[request],
                "num_output_tokens": self.outputs[request],
                "num_sequences": 1,
            }
            | self.times[request]
            for request in range(len(self.prompts))
        ]

    def device(self, has_nvml: bool) -> list[Row]:
        rng = np.random.default_rng(1)
        pool_bytes = NUM_SLOTS * SLOT_BYTES
        rows = []
        for time_ns in range(0, self.now_ns, 100_000_000):
            row: Row = dict.fromkeys(DEVICE_COLUMNS)
            row |= {
                "engine": self.spec,
                "time_ns": time_ns,
                "source": "nvml" if has_nvml else "process",
                "process_rss_bytes": 900_000_000 + int(rng.integers(0, 50_000_000)),
            }
            if has_nvml:
                row |= {
                    "torch_allocated_bytes": pool_bytes + WEIGHTS_BYTES,
                    "torch_reserved_bytes": pool_bytes + WEIGHTS_BYTES + 300_000_000,
                    "device_used_bytes": pool_bytes + WEIGHTS_BYTES + 1_100_000_000,
                    "gpu_utilization_pct": 93.0,
                    "power_w": 600.0 + float(rng.integers(0, 30)),
                    "energy_j": 610.0 * time_ns / 1e9,
                    "sm_clock_mhz": 1980.0,
                    "memory_clock_mhz": 3201.0,
                    "temperature_c": 55.0,
                    "throttle_reasons": 0,
                }
            rows.append(row)
        return rows


def summarise(steps: list[Row], requests: list[Row], device: list[Row]) -> dict[str, float | int | None]:
    """The figures of METRICS, in a few lines; what they are worth the harness's own tests say."""
    columns = {name: np.array([step[name] for step in steps]) for name in STEP_COLUMNS}
    widths_ns = columns["end_ns"] - columns["start_ns"]
    duration_ns = int(columns["end_ns"][-1])
    num_out, num_in = (sum(row[f"num_{kind}_tokens"] for row in requests) for kind in ("output", "prompt"))

    def peak(column: str) -> int | None:
        return max((row[column] for row in device if row[column] is not None), default=None)

    def mean(column: str) -> float:
        return float((columns[column] * widths_ns).sum() / widths_ns.sum())

    joules = [row["energy_j"] for row in device if row["energy_j"] is not None]
    summary: dict[str, float | int | None] = {metric.name: None for metric in METRICS}
    summary |= {
        "output_tokens_per_s": num_out / duration_ns * 1e9,
        "total_tokens_per_s": (num_out + num_in) / duration_ns * 1e9,
        "requests_per_s": len(requests) / duration_ns * 1e9,
        "duration_s": duration_ns / 1e9,
        "peak_running": int(columns["num_running"].max()),
        "mean_running": mean("num_running"),
        **{f"{part}_pct": mean(part) / NUM_SLOTS * 100 for part in PARTITION},
        "waste_pct": sum(mean(part) for part in ("reserved", "internal", "external")) / NUM_SLOTS * 100,
        "prefix_hit_rate_pct": sum(row["num_prefix_hit_tokens"] for row in requests) / num_in * 100,
        "shared_saved_pct": mean("shared_saved") / (mean("shared_saved") + mean("token_state")) * 100,
        "preemptions": int(columns["num_preempted"].sum()),
        "recomputed_tokens": 0,
        "copied_blocks": int(columns["num_copied_blocks"].sum()),
        "evicted_blocks": int(columns["num_evicted_blocks"].sum()),
        "peak_device_used_bytes": peak("device_used_bytes"),
        "peak_torch_reserved_bytes": peak("torch_reserved_bytes"),
        "peak_torch_allocated_bytes": peak("torch_allocated_bytes"),
        "peak_process_rss_bytes": peak("process_rss_bytes"),
        "joules_per_output_token": joules[-1] / num_out if joules else None,
        "num_steps": len(steps),
        "num_finished": len(requests),
    }
    ttft_ms = np.array([row["first_token_ns"] for row in requests]) / 1e6
    e2e_ms = np.array([row["finished_ns"] for row in requests]) / 1e6
    gaps = np.maximum(1, np.array([row["num_output_tokens"] for row in requests]) - 1)
    for name, values in (("ttft", ttft_ms), ("tpot", (e2e_ms - ttft_ms) / gaps), ("e2e", e2e_ms)):
        summary |= {f"{name}_ms_p{q}": float(np.percentile(values, q)) for q in (50, 90, 99)}
    return summary


class RunBuilder:
    """Builds a run folder engine by engine; ``write`` puts it on disk."""

    def __init__(self, folder: Path, num_requests: int = 120, seed: int = 0) -> None:
        self.folder = folder
        rng = np.random.default_rng(seed)
        self.prompts = np.clip(rng.lognormal(4.9, 0.7, num_requests), SHARED_TOKENS + 8, 700).astype(np.int64)
        self.outputs = np.clip(rng.lognormal(4.8, 0.7, num_requests), 4, 700).astype(np.int64)
        self.engines: list[EngineResult] = []
        self.steps: list[Row] = []
        self.requests: list[Row] = []
        self.device: list[Row] = []
        self.spans: list[Row] = []
        self.prefixes: list[Row] = []

    def add_engine(self, spec: str, *, has_nvml: bool = True, **fields: Any) -> "RunBuilder":
        """An engine that served everything; ``fields`` replace those of its EngineResult."""
        simulation = Simulation(spec, self.prompts, self.outputs).run()
        requests, device = simulation.requests(), simulation.device(has_nvml)
        engine = EngineResult(
            spec=spec,
            status="complete",
            summary=summarise(simulation.steps, requests, device),
            config={"memory": spec, "block_size": BLOCK_SIZE, "max_length": MAX_LENGTH},
            pool={
                "num_slots": NUM_SLOTS,
                "slot_bytes": SLOT_BYTES,
                "pool_bytes": NUM_SLOTS * SLOT_BYTES,
                "block_size": BLOCK_SIZE,
                "weights_bytes": WEIGHTS_BYTES,
            },
            cost=STEP_COST,
        )
        peak = engine.summary["peak_device_used_bytes"] or engine.summary["peak_process_rss_bytes"]
        parts = {"weights": WEIGHTS_BYTES, "pool": NUM_SLOTS * SLOT_BYTES, "buffers": 5_000_000, "graphs": 0}
        account = {**parts, "unexplained": int(peak or 0) - sum(parts.values()), "peak": int(peak or 0)}
        self.engines.append(replace(engine, **({"memory": account} | fields)))
        self.steps += simulation.steps
        self.requests += requests
        self.device += device
        self.spans += simulation.spans
        hits = [row["num_prefix_hit_tokens"] for row in requests]
        self.prefixes += [
            {"engine": spec, "prefix": 0, "parent": -1, "start": 0, "num_tokens": SHARED_TOKENS}
            | {"num_requests": len(requests), "num_hit_requests": sum(map(bool, hits)), "hit_tokens": sum(hits)}
        ]
        return self

    def add_failed_engine(self, spec: str, reason: str) -> "RunBuilder":
        """An engine that died before its first step."""
        self.engines.append(EngineResult(spec=spec, status="failed", reason=reason))
        return self

    def interrupt(self) -> "RunBuilder":
        """Mark the last engine as interrupted, the second half of its requests never scheduled."""
        last = self.engines[-1]
        self.engines[-1] = replace(last, status="interrupted", reason="Ctrl-C")
        rows = [row for row in self.requests if row["engine"] == last.spec]
        for row in rows[len(rows) // 2 :]:
            row |= {"status": "unfinished", "first_scheduled_ns": None, "first_token_ns": None, "finished_ns": None}
        return self

    def repeat(self) -> "RunBuilder":
        """Let every engine so far have run three times, 2 % apart; the rows are those of the first, the typical one."""
        for index, engine in enumerate(self.engines):
            speed = float(engine.summary["output_tokens_per_s"] or 0)
            speeds = [speed, 0.98 * speed, 1.02 * speed]
            repeats = tuple(
                Repeat(
                    number + 1,
                    "complete",
                    position=len(self.engines) * number + index,
                    summary=dict(engine.summary) | {"output_tokens_per_s": each},
                )
                for number, each in enumerate(speeds)
            )
            interval = interval_of(speeds)
            assert interval is not None
            summary = dict(engine.summary) | {"output_tokens_per_s": sum(speeds) / len(speeds)}
            intervals = {"output_tokens_per_s": interval}
            self.engines[index] = replace(engine, repeats=repeats, intervals=intervals, summary=summary)
        return self

    def time_phases(self) -> "RunBuilder":
        """Let every engine so far have timed its steps' phases, on the host and within those launched by kernels."""
        phases = (
            PhaseTime("host", "all", "schedule", 0.5, 5.0),
            PhaseTime("host", "all", "launch", 8.5, 85.0),
            PhaseTime("host", "all", "wait", 1.0, 10.0),
            PhaseTime("device", "launched", "attention", 6.0, 75.0, 32),
            PhaseTime("device", "launched", "mlp", 2.0, 25.0, 32),
        )
        self.engines = [
            replace(engine, repeats=(Repeat(1, "complete", summary=engine.summary, phases=phases),))
            for engine in self.engines
        ]
        return self

    def with_pool(self, pool_bytes: int) -> "RunBuilder":
        """Say that every engine so far had a pool of this size, one of a sweep."""
        self.engines = [replace(engine, pool=dict(engine.pool) | {"pool_bytes": pool_bytes}) for engine in self.engines]
        return self

    def forget_tables(self) -> "RunBuilder":
        """Keep the summaries, and not a row of the tables."""
        for rows in (self.steps, self.requests, self.device, self.spans, self.prefixes):
            rows.clear()
        return self

    def write(self, **overrides: Any) -> Run:
        """Write the folder; ``overrides`` replace fields of the RunResult."""
        self.folder.mkdir(parents=True, exist_ok=True)
        statuses = {engine.status for engine in self.engines}
        result = RunResult(
            run_id=self.folder.name,
            created_at="2026-11-23T04:05:06Z",
            status=next((status for status in ("failed", "interrupted") if status in statuses), "complete"),
            command=("pbench", "run", "--workload", "chat-shared-prompt", "--kv-memory", "2GiB", "--out", "my runs"),
            workload={
                "name": "chat-shared-prompt",
                "description": "one system prompt, many users",
                "source": "built-in",
                "sha256": "ab" * 32,
                "seed": 0,
                "arrivals": "all",
                "parameters": {"num_requests": len(self.prompts), "shared_tokens": SHARED_TOKENS},
                "num_requests": len(self.prompts),
                "num_offered": len(self.prompts),
                "num_dropped_too_long": 0,
                "total_input_tokens": int(self.prompts.sum()),
                "total_output_tokens": int(self.outputs.sum()),
            },
            config={"model": "llama-8b", "dtype": "bfloat16", "max_length": MAX_LENGTH, "block_size": BLOCK_SIZE},
            environment={
                "os": "Linux 6.1",
                "python": "3.12.4",
                "packages": {"torch": "2.11.0", "triton": "3.6.0"},
                "gpu": {"name": "NVIDIA H200", "memory_bytes": 150_754_820_096, "driver": "580.159.04"},
            },
            engines=tuple(self.engines),
        )
        write_result(self.folder, replace(result, **overrides))
        write_table(self.folder / "steps.parquet", self.steps, STEP_COLUMNS)
        write_table(self.folder / "requests.parquet", self.requests, REQUEST_COLUMNS)
        write_table(self.folder / "device.parquet", self.device, DEVICE_COLUMNS)
        if self.spans:
            write_table(self.folder / POOL_MAP_FILE, self.spans, POOL_MAP_COLUMNS)
        if self.prefixes:
            write_table(self.folder / PREFIX_FILE, self.prefixes, PREFIX_COLUMNS)
        return Run(self.folder)


@dataclass
class Element:
    """One element of a page: its attributes, and the text in it and in all below it."""

    tag: str
    attributes: dict[str, str]
    parents: tuple["Element", ...]
    text: str = ""


VOID_TAGS = frozenset({"meta", "link", "img", "input", "br", "hr", "path", "rect"})


class PageReader(HTMLParser):
    """A page as a browser's parser would take it apart; it insists on well-formed nesting."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {[element.tag for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, tuple(self._open))
        self.elements.append(element)
        if tag not in VOID_TAGS:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}, tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        element = self._open.pop()
        assert element.tag == tag, f"</{tag}> closes <{element.tag} {element.attributes}>"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements of that tag that carry these attributes; ``class_`` and ``data_x`` stand for class and data-x."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element.tag == tag and all(element.attributes.get(name) == value for name, value in wanted.items())
        ]

    def by_id(self, element_id: str) -> Element:
        (element,) = [element for element in self.elements if element.attributes.get("id") == element_id]
        return element

    def json(self, element_id: str) -> Any:
        return json.loads(self.by_id(element_id).text)

    def figures(self) -> dict[str, Any]:
        """Every chart's figure, as plotly gets it, by the chart's id."""
        blocks = self.all("script", type="application/json")
        suffix = "-figure"
        return {
            block.attributes["id"].removesuffix(suffix): json.loads(block.text)
            for block in blocks
            if block.attributes["id"].endswith(suffix)
        }

    def visible_text(self) -> str:
        """All text but that of scripts and styles."""
        main = self.all("body")[0].text
        for element in self.all("script") + self.all("style"):
            main = main.replace(element.text, "")
        return main


@pytest.fixture(scope="session")
def render() -> Callable[..., PageReader]:
    """Renders runs and reads the page: ``render(run, other)``. Without plotly.js in it, unless asked: it is 5 MB."""

    def make(*runs: Run, plotlyjs: str = "directory") -> PageReader:
        stream = io.StringIO()
        render_report(runs, stream, plotlyjs=plotlyjs)
        return PageReader(stream.getvalue())

    return make


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], PageReader]:
    """Takes a page's source apart."""
    return PageReader


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunBuilder]:
    """Makes a RunBuilder for a folder of its own: ``builder("run-a", num_requests=1)``."""

    def make(name: str = "run-a", **options: Any) -> RunBuilder:
        return RunBuilder(tmp_path_factory.mktemp("runs") / name, **options)

    return make


def module_beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def big_run() -> ModuleType:
    """The module that writes runs of any size."""
    return module_beside("big_run")


@pytest.fixture(scope="session")
def gate_result() -> Callable[..., Any]:
    """Makes results of a throughput gate: six pairs that count and one that was left out."""
    make: Callable[..., Any] = module_beside("gate_results").result
    return make


@pytest.fixture(scope="session")
def two_engines(builder: Callable[..., RunBuilder]) -> Run:
    """A complete run of paged and contiguous:max."""
    return builder().add_engine("paged").add_engine("contiguous:max").time_phases().write()


@pytest.fixture(scope="session")
def two_engines_page(two_engines: Run, render: Callable[..., PageReader]) -> PageReader:
    """Its page, plotly.js in it."""
    return render(two_engines, plotlyjs="inline")
