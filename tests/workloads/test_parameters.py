import pytest

from pbench.workloads.errors import WorkloadError
from pbench.workloads.parameters import Parameter, resolve

PARAMETERS = (
    Parameter("num_requests", 10, "requests in all", 1, 1000),
    Parameter("output_mean", 50.0, "mean answer", 1, 500),
    Parameter("own_min", 5, "shortest", 1, 100),
    Parameter("own_max", 50, "longest", 1, 100),
    Parameter("turns", "first", "which turns", choices=("first", "all")),
    Parameter("shots", 5, "examples", choices=(1, 5)),
    Parameter("folder", "", "a folder"),
)
DEFAULTS = {each.name: each.default for each in PARAMETERS}


def test_values_take_the_kind_of_the_default() -> None:
    given = {"num_requests": " 7 ", "output_mean": "80", "turns": "all", "shots": "1", "folder": "a b"}
    values = resolve(PARAMETERS, given, "it")
    assert values == DEFAULTS | {"num_requests": 7, "output_mean": 80.0, "turns": "all", "shots": 1, "folder": "a b"}
    assert list(values) == list(DEFAULTS)
    assert isinstance(values["output_mean"], float)


def test_without_overrides_the_defaults_stand() -> None:
    assert resolve(PARAMETERS, {}, "it") == DEFAULTS


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("num_requests", "0", "a whole number in 1..1,000"),
        ("num_requests", "1001", "a whole number in 1..1,000"),
        ("num_requests", "7.5", "a whole number in 1..1,000"),
        ("num_requests", "many", "a whole number in 1..1,000"),
        ("num_requests", "", "a whole number in 1..1,000"),
        ("output_mean", "nan", "a number in 1..500"),
        ("output_mean", "inf", "a number in 1..500"),
        ("output_mean", "-3", "a number in 1..500"),
        ("turns", "last", "one of first, all"),
        ("shots", "3", "one of 1, 5"),
    ],
)
def test_a_wrong_value_is_refused_with_the_range(name: str, text: str, allowed: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        resolve(PARAMETERS, {name: text}, "workload x")
    assert f"workload x: {name}={text} cannot be; {name} is {allowed}" in str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(WorkloadError, match=r"no parameter 'output_maen'; did you mean 'output_mean'\?.*num_requests"):
        resolve(PARAMETERS, {"output_maen": "3"}, "workload x")
    with pytest.raises(WorkloadError, match="it has no parameters"):
        resolve((), {"anything": "3"}, "a file")


def test_bounds_must_be_in_order() -> None:
    with pytest.raises(WorkloadError, match="own_min=60 is above own_max=50"):
        resolve(PARAMETERS, {"own_min": "60"}, "workload x")
    assert resolve(PARAMETERS, {"own_min": "50"}, "workload x")["own_min"] == 50
