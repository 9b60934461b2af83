"""The words of the page, one line each."""

from typing import NamedTuple

from pbench.reports.palette import KINDS
from pbench.results import METRICS


class Term(NamedTuple):
    """A word and what it means."""

    word: str
    meaning: str


_WORDS = (
    Term("block", "a fixed number of token slots, the unit in which a paged memory allocates"),
    Term("block table", "a sequence's logical block numbers and where in the pool each block lies"),
    Term("extent", "a contiguous run of slots, the unit in which a contiguous memory reserves"),
    Term("KV", "keys and values of attention: what an engine keeps of every token so as not to compute it again"),
    Term("pool", "all KV memory of an engine, allocated once when it starts"),
    Term("preemption", "a running request loses its KV because the pool is full, and is computed again later"),
    Term("prefix hit", "prompt tokens whose KV came from the cache instead of being computed"),
    Term("slot", "room for one token's keys and values in every layer"),
    Term("TTFT", "time to first token: from a request's intended arrival to its first token"),
    Term("waste", "reserved + internal + external: slots that hold nothing and serve nobody else"),
)


def _glossary() -> tuple[Term, ...]:
    defined = {term.word for term in _WORDS}
    parts = [Term(f"{kind.label} (part of the pool)", kind.help) for kind in KINDS]
    figures = [Term(metric.label, metric.help) for metric in METRICS if metric.label not in defined]
    return tuple(sorted([*_WORDS, *parts, *figures], key=lambda term: term.word.casefold()))


GLOSSARY = _glossary()
