"""A machine is found again from the steps of a run: here from runs of a machine that is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import MistralConfig

from pbench.engine.roofline import Speed
from pbench.errors import UsageError
from pbench.job import WorkloadChoice
from pbench.live import LineView
from pbench.results import RunResult
from pbench.simulation.machine_fit import Work, fit_machine, fit_speed, predicted_seconds
from pbench.simulation.run import Simulation, SimulationPlan
from pbench.simulation.settings import SimulationOptions, SimulationSettings, resolve_simulation

CHAT = WorkloadChoice("chat-shared-prompt", limit=150)
LONG = WorkloadChoice("mixed", limit=80, max_length=8192)
PRIOR = Speed(4e12, 7e14, 0)


def run_on(folder: Path, settings: SimulationSettings, speed: Speed, *, is_simulated: bool = False) -> RunResult:
    (size,) = settings.sizes
    folder.mkdir()
    environment = {"gpu": {"name": "a machine"}, "is_simulated": is_simulated}
    plan = SimulationPlan(folder, "a-run", "", (), size.workload, size.engines, settings.hardware, speed, environment)
    return Simulation(plan, LineView(lambda line: None), lambda: False).run()


def settings_for(choice: WorkloadChoice, **options: object) -> SimulationSettings:
    return resolve_simulation(replace(SimulationOptions(engines=("paged",), kv_memory="4GiB"), **options), choice)  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [CHAT, LONG], ids=lambda choice: choice.spec)
@pytest.mark.parametrize(
    "speed",
    [
        Speed(3e12, 4e14, 800_000),
        Speed(2e12, 5e14, 300_000, prompt_step_ns=15_000_000),
        Speed(4e9, 2e11, 1_000_000),  # far from the prior: a processor
    ],
    ids=["plain", "prompts are launched slowly", "slow"],
)
def test_a_known_machine_is_found_again(choice: WorkloadChoice, speed: Speed, tmp_path: Path) -> None:
    run_on(tmp_path / "run", settings_for(choice), speed)
    fit = fit_machine(tmp_path / "run", PRIOR)
    assert fit.speed.bandwidth_bytes_per_s == pytest.approx(speed.bandwidth_bytes_per_s, rel=0.05)
    assert fit.speed.flops_per_s == pytest.approx(speed.flops_per_s, rel=0.1)
    assert fit.error_pct_p50 < 1
    assert "a-run on a machine" in fit.line()


@pytest.mark.parametrize("choice", [CHAT, LONG], ids=lambda choice: choice.spec)
def test_a_simulation_like_a_run_takes_as_long(choice: WorkloadChoice, tmp_path: Path) -> None:
    """Fitted to one workload, it tells the time of another."""
    speed = Speed(2.5e12, 3e14, 900_000, prompt_step_ns=12_000_000)
    run_on(tmp_path / "fitted-to", settings_for(CHAT), speed)
    measured = run_on(tmp_path / "measured", settings_for(choice), speed)
    settings = settings_for(choice, like=tmp_path / "fitted-to")
    assert "fitted to a-run" in settings.note
    told = run_on(tmp_path / "told", settings, settings.speed)
    seconds = [result.engines[0].summary["duration_s"] for result in (measured, told)]
    assert seconds[1] == pytest.approx(seconds[0], rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_single_steps_and_not_the_whole(seed: int) -> None:
    """Steps of a busy machine, some of them ten times too long: the fit takes as long as they did together."""
    source = np.random.default_rng(seed)
    num_bytes, num_flops = source.uniform(1e10, 3e10, 2000), source.uniform(1e12, 4e13, 2000)
    has_prompts = source.random(2000) < 0.2
    work = Work(num_bytes, num_flops, has_prompts, np.ones(2000))
    seconds = predicted_seconds(work, Speed(3e12, 4e14, 800_000, 20_000_000)) * source.lognormal(0, 0.7, 2000)
    work = work._replace(seconds=seconds)
    told = predicted_seconds(work, fit_speed(work, PRIOR))
    assert told.sum() == pytest.approx(seconds.sum(), rel=0.01)


def test_what_a_run_cannot_tell_is_taken_from_the_prior(tmp_path: Path) -> None:
    """Where nothing is bound by arithmetic, its rate stays what it was."""
    run_on(tmp_path / "run", settings_for(CHAT), Speed(1e11, 1e18, 0))
    assert fit_machine(tmp_path / "run", PRIOR).speed.bandwidth_bytes_per_s == pytest.approx(1e11, rel=0.05)


def test_runs_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    run_on(tmp_path / "simulated", settings_for(CHAT), PRIOR, is_simulated=True)
    with pytest.raises(UsageError, match="is a simulated run"):
        fit_machine(tmp_path / "simulated", PRIOR)
    short = WorkloadChoice("uniform", limit=1, overrides={"output_max": "20", "output_min": "20"})
    run_on(tmp_path / "short", settings_for(short), PRIOR)
    with pytest.raises(UsageError, match="at least 50 are needed"):
        fit_machine(tmp_path / "short", PRIOR)


def test_a_run_with_a_sliding_window_is_refused(tmp_path: Path) -> None:
    MistralConfig(num_hidden_layers=2, sliding_window=300, architectures=["MistralForCausalLM"]).save_pretrained(
        tmp_path
    )
    run_on(tmp_path / "run", settings_for(CHAT, model=str(tmp_path)), PRIOR)
    with pytest.raises(UsageError, match="has a sliding window of 300 tokens"):
        fit_machine(tmp_path / "run", PRIOR)


def test_a_fit_excludes_what_it_fits() -> None:
    with pytest.raises(UsageError, match="leave out --step-overhead"):
        settings_for(CHAT, like=Path("run"), step_overhead=5.0)
