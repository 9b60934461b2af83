"""The words of the page, one line each."""

import re
from typing import NamedTuple

from markupsafe import Markup, escape

from pbench.reports.palette import KINDS
from pbench.reports.text import visible
from pbench.results import METRICS


class Term(NamedTuple):
    """A word and what it means."""

    word: str
    meaning: str


_WORDS = (
    Term("baseline", "the engine that the others are compared with: contiguous preallocation where it ran"),
    Term("block", "a fixed number of token slots, the unit in which a paged memory allocates"),
    Term("block table", "a sequence's logical block numbers and where in the pool each block lies"),
    Term("extent", "a contiguous run of slots, the unit in which a contiguous memory reserves"),
    Term("KV", "keys and values of attention: what an engine keeps of every token so as not to compute it again"),
    Term("copy-on-write", "a block that several sequences share is copied only when one of them writes into it"),
    Term("decode", "computing one further token of a sequence whose prompt is done"),
    Term("eviction", "a block kept only for the prefix cache is given up for new data"),
    Term("interval", "where the mean of many more repeats would lie, with 95 % confidence (Student's t)"),
    Term("MSER", "a rule for where a start-up ends: what it leaves out makes the mean of the rest most certain"),
    Term("NVML", "NVIDIA's management library: what the driver itself says of memory, power and clocks"),
    Term("p90", "the 90th percentile: all but one in ten are below it"),
    Term("p99", "the 99th percentile: all but one in a hundred are below it"),
    Term("prefill", "computing the KV of a prompt's tokens, many in one step"),
    Term("repeat", "one more run of the same engine with the same workload, in a fresh process"),
    Term("step", "one pass of the model over all requests that run just then"),
    Term("pool", "all KV memory of an engine, allocated once when it starts"),
    Term("preemption", "a running request loses its KV because the pool is full, and is computed again later"),
    Term("prefix hit", "prompt tokens whose KV came from the cache instead of being computed"),
    Term("roofline", "the most that memory bandwidth and arithmetic allow, by how much is computed of each byte"),
    Term("RSS", "resident set size: the host memory that a process really holds"),
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

_MEANINGS = {term.word.casefold(): term.meaning for term in _WORDS}
_NAMES = "|".join(sorted(map(re.escape, _MEANINGS), key=len, reverse=True))
_MENTION = re.compile(rf"(?<![\w-])({_NAMES})(s?)(?![\w-])", re.IGNORECASE)  # not within --kv-memory


def explained(text: str) -> Markup:
    """``text``, escaped, with every word of the glossary explained on hover where it first comes."""
    told: set[str] = set()

    def explain(match: re.Match[str]) -> str:
        word = match[1].casefold()
        if word in told:
            return match[0]
        told.add(word)
        return f'<abbr title="{escape(_MEANINGS[word])}">{match[0]}</abbr>'

    return Markup(_MENTION.sub(explain, str(escape(visible(text)))))
