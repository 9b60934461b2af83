"""ShareGPT's conversations: a JSON array of what people and a model said to each other, as text.

Lengths come from a tokenizer (``--set tokenizer=FOLDER``, a Hugging Face folder), or else from an estimate: one token
for every ``bytes_per_token`` bytes of UTF-8. Four bytes a token is the usual rule for English text and a BPE
vocabulary of tens of thousands; code and other languages have fewer bytes a token, so the estimate is too low there.

A conversation gives one request, its first message of a person and the answer to it (``turns=first``, the usual
benchmark), or one for every answer, with all that was said before as its prompt (``turns=all``). Equal messages become
equal tokens. A conversation without a question and an answer is dropped and counted.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pbench.workloads.errors import WorkloadError
from pbench.workloads.parameters import Parameter, Values
from pbench.workloads.readers.fields import first_line
from pbench.workloads.readers.format import Format
from pbench.workloads.readers.source import Source
from pbench.workloads.request import Segment
from pbench.workloads.row import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PEOPLE = ("human", "user")
_MODELS = ("gpt", "assistant", "chatgpt", "bing", "bard", "model")
_OTHERS = ("system", "tool")

CountTokens = Callable[[str], int]


def read(source: Source, parameters: Values) -> Iterator[Row]:
    """Rows of the file, in its order, without times."""
    count_tokens = _token_counter(str(parameters["tokenizer"]), float(parameters["bytes_per_token"]))
    for line, conversation in _array_items(source):
        messages = _messages(source, line, conversation)
        rows = list(_rows(line, messages, count_tokens))
        if parameters["turns"] == "first":
            rows = rows[:1]
        yield from rows or [Row(line, None, 0, 0, ())]


def _rows(line: int, messages: list[tuple[str, str]], count_tokens: CountTokens) -> Iterator[Row]:
    history: tuple[Segment, ...] = ()
    has_question = False
    for speaker, text in messages:
        segment = Segment(_key(text), count_tokens(text))
        if speaker in _MODELS and has_question:
            yield Row(line, None, sum(part.length for part in history), segment.length, history)
        has_question = has_question or speaker in _PEOPLE
        if segment.length:
            history += (segment,)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1


def _messages(source: Source, line: int, conversation: object) -> list[tuple[str, str]]:
    """(speaker, text) of one item of the array, checked."""
    if not isinstance(conversation, dict):
        raise source.fault(line, f"an item of the array is {type(conversation).__name__}, not a conversation")
    messages = conversation.get("conversations")
    if not isinstance(messages, list):
        raise source.fault(line, "field 'conversations' is missing or no list")
    checked: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        speaker = message.get("from") if isinstance(message, dict) else None
        text = message.get("value") if isinstance(message, dict) else None
        if speaker not in _PEOPLE + _MODELS + _OTHERS:
            known = ", ".join(_PEOPLE + _MODELS + _OTHERS)
            raise source.fault(line, f"field 'from' of message {index} is {speaker!r}, not one of {known}")
        if not isinstance(text, str):
            raise source.fault(line, f"field 'value' of message {index} is {type(text).__name__}, not text")
        checked.append((speaker, text))
    return checked


def _array_items(source: Source) -> Iterator[tuple[int, Any]]:
    """The items of a JSON array, one at a time, and the line on which each begins."""
    decoder = json.JSONDecoder()
    chunks = source.chunks()
    buffer = ""
    line = 1
    is_inside = False  # behind the opening bracket
    is_item_next = True  # an item comes next, not a comma
    wanted = 1  # characters before it is worth trying again
    while True:
        stripped = buffer.lstrip(" \t\r\n")
        line += buffer.count("\n", 0, len(buffer) - len(stripped))
        buffer = stripped
        if len(buffer) < wanted:
            chunk = next(chunks, None)
            if chunk is None and not buffer:
                raise source.fault(line, "the JSON array does not end (cut off?)")
            if chunk is not None:
                buffer += chunk
                continue
        if not is_inside:
            if buffer[0] != "[":
                raise source.fault(line, f"not a JSON array: begins with {buffer[:20]!r}")
            is_inside, buffer = True, buffer[1:]
        elif buffer[0] == "]":
            _refuse_rest(source, line, buffer[1:], chunks)
            return
        elif not is_item_next:
            if buffer[0] != ",":
                raise source.fault(line, f"a comma or ] is wanted between conversations, not {buffer[:20]!r}")
            is_item_next, buffer = True, buffer[1:]
        else:
            try:
                item, end = decoder.raw_decode(buffer)
            except RecursionError:
                raise source.fault(line, "a conversation is nested too deeply") from None
            except ValueError as error:
                chunk = next(chunks, None)
                if chunk is None:
                    raise source.fault(line, f"a conversation is not JSON: {error} (cut off?)") from None
                buffer += chunk
                wanted = 2 * len(buffer)  # doubling keeps the work of trying again linear in the item's size
                continue
            yield line, item
            line += buffer.count("\n", 0, end)
            is_item_next, buffer = False, buffer[end:]
        wanted = 1


def _refuse_rest(source: Source, line: int, rest: str, chunks: Iterator[str]) -> None:
    while rest.strip() == "":
        line += rest.count("\n")
        chunk = next(chunks, None)
        if chunk is None:
            return
        rest = chunk
    line += rest.count("\n", 0, len(rest) - len(rest.lstrip()))
    raise source.fault(line, f"text after the end of the JSON array: {rest.strip()[:20]!r}")


def _token_counter(folder: str, bytes_per_token: float) -> CountTokens:
    if not folder:
        return lambda text: round(len(text.encode("utf-8", "surrogatepass")) / bytes_per_token) or bool(text.strip())
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise WorkloadError(f"tokenizer={folder}: transformers cannot be imported ({error}); install it") from error
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WorkloadError(f"tokenizer={folder} is not a folder with a Hugging Face tokenizer: {error}") from error
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


SHAREGPT = Format(
    name="sharegpt",
    description="ShareGPT conversations: a JSON array of {conversations: [{from, value}]}; lengths by a"
    " tokenizer or an estimate",
    recognise=lambda head: first_line(head).startswith("[") and '"conversations"' in head,
    read=read,
    time_field=None,
    parameters=(
        Parameter("tokenizer", "", "Hugging Face tokenizer folder that measures lengths; empty: an estimate"),
        Parameter("bytes_per_token", 4.0, "bytes of UTF-8 that the estimate takes for one token", 0.5, 64.0),
        Parameter(
            "turns",
            "first",
            "requests of a conversation: its first answer, or every answer",
            choices=("first", "all"),
        ),
    ),
)
