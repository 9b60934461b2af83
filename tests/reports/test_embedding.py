import base64
import zlib
from collections.abc import Callable
from typing import Any

from pbench.reports.embedding import attachments, plotly_script, plotlyjs_source
from pbench.results import Run


def test_raw_files_come_back_byte_for_byte(two_engines: Run) -> None:
    carried = attachments([two_engines])
    assert [file.file_name for file in carried] == [
        "run.json",
        "steps.parquet",
        "requests.parquet",
        "device.parquet",
        "prefixes.parquet",
        "pool_map.parquet",
    ]
    for file in carried:
        assert file.base64_text is not None
        assert base64.b64decode(file.base64_text) == (two_engines.path / file.file_name).read_bytes()


def test_what_is_too_large_is_named_with_its_place(two_engines: Run) -> None:
    sizes = sorted(path.stat().st_size for path in two_engines.path.iterdir())
    left_out = [file for file in attachments([two_engines], sum(sizes[:-1])) if file.base64_text is None]
    assert len(left_out) == 1
    assert left_out[0].where == str(two_engines.path / left_out[0].file_name)


def test_files_of_several_runs_have_names_of_their_own(builder: Callable[..., Any]) -> None:
    runs = [builder(name, num_requests=2).add_engine("paged").write() for name in ("one", "two")]
    names = [file.file_name for file in attachments(runs)]
    assert len(set(names)) == 12


def test_plotlyjs_travels_as_the_package_ships_it() -> None:
    deflated = plotly_script("inline").deflated
    assert deflated is not None
    assert zlib.decompress(base64.b64decode(deflated)).decode() == plotlyjs_source()
    assert len(deflated) < len(plotlyjs_source()) / 2
