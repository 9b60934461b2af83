import shlex
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pbench.reports.details import command_line, config_differences, facts
from pbench.reports.subjects import load_subjects
from pbench.results import Run


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_the_command_splits_into_the_words_it_was_made_of(words: list[str]) -> None:
    assert shlex.split(command_line(words)) == words


def test_every_leaf_of_a_record_is_a_fact_with_its_path() -> None:
    record = {"gpu": {"memory_bytes": 2**30, "driver": None}, "is_chunked": True, "seed": 12345, "sizes": [1, 2]}
    assert [tuple(fact) for fact in facts(record)] == [
        ("gpu, memory", "1\u00a0GiB (1\u202f073\u202f741\u202f824 bytes)"),
        ("gpu, driver", "none"),
        ("chunked", "yes"),
        ("seed", "12345"),
        ("sizes", "1, 2"),
    ]


def test_differences_hold_what_differs_and_nothing_else(two_engines: Run) -> None:
    rows = config_differences(load_subjects([two_engines]))
    assert [(row.name, row.texts) for row in rows] == [("memory", ("paged", "contiguous:max"))]


def test_an_environment_that_differs_between_runs_is_named(builder: Callable[..., Any]) -> None:
    one = builder("one").add_engine("paged").write(environment={"packages": {"torch": "2.11"}})
    other = builder("other").add_engine("paged").write(environment={"packages": {"torch": "2.13"}})
    (row,) = config_differences(load_subjects([one, other]))
    assert (row.name, row.texts) == ("environment, packages, torch", ("2.11", "2.13"))
