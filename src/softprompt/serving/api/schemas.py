"""What clients may send: knows the fields, their types and their ranges, not models or prompts.

OpenAI's fields, and vLLM's ``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens``, ``ignore_eos`` and
``stop_token_ids``. A null stands for a field that was left out; fields nobody knows are passed over, as
OpenAI's clients expect, but not those that would change the answer (``UNSERVED``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

__all__ = [
    "ChatRequest",
    "ClassifyRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "Message",
    "ResponsesRequest",
    "SaidToolCall",
    "SamplingRequest",
    "StreamOptions",
    "TokenizeRequest",
    "Tool",
]

MOST_STOPS = 16
LONGEST_STOP = 1_000
MOST_BIASES = 1_024
MOST_CHOICES = 128
MOST_LOGPROBS = 20
MOST_TOKENS = 2**18
LARGEST_TOKEN = 2**31 - 1


def _integral(value: Any) -> Any:
    """JSON has one kind of number: 16.0 is 16."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """A list of texts or of token rows, whichever of the four forms was sent."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(_PROMPT)
    if all(isinstance(part, str) for part in value):
        return value
    rows = [value] if not isinstance(value[0], list) else value
    if any(not isinstance(row, list) or not row for row in rows):
        raise ValueError(_PROMPT)
    if sum(map(len, rows)) > MOST_TOKENS:
        raise ValueError(f"may hold at most {MOST_TOKENS:,} token ids in all")
    rows = [[_integral(token) for token in row] for row in rows]
    if any(type(token) is not int or not 0 <= token <= LARGEST_TOKEN for row in rows for token in row):
        raise ValueError(_PROMPT)
    return rows


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(stops, list) or any(not isinstance(stop, str) or not stop for stop in stops):
        raise ValueError("must be a text or a list of texts, none of them empty")
    if len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
        raise ValueError(f"may hold at most {MOST_STOPS} texts of at most {LONGEST_STOP:,} letters")
    return tuple(stops)


def _biases(value: Any) -> dict[int, float]:
    """OpenAI's map from token ids, which JSON spells as text, to what is added to their logits."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise ValueError(f"must be an object of at most {MOST_BIASES:,} token ids")
    found = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise ValueError(f"has the key {key[:20]!r}, which is no token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"must give token {key} a number from -100 to 100")
        found[int(key)] = float(bias)
    return found


def _inputs(value: Any) -> list[str | dict[str, Any]]:
    inputs = value if isinstance(value, list) else [value]
    if not inputs or any(not isinstance(part, str | dict) for part in inputs):
        raise ValueError("must be a text, an object with a value for each column, or a list of these")
    return inputs


_PROMPT = "must be a text, a list of texts, a list of token ids or a list of such lists, and not be empty"
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_ROW = {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": True}]}

Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_prompts),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, _TEXTS, _TOKENS, {"type": "array", "items": _TOKENS, "minItems": 1}]}
    ),
]
Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP},
                    "maxItems": MOST_STOPS,
                },
                {"type": "null"},
            ]
        }
    ),
]
Biases = Annotated[
    dict[int, float],
    PlainValidator(_biases),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                    "maxProperties": MOST_BIASES,
                },
                {"type": "null"},
            ]
        }
    ),
]
Inputs = Annotated[
    list[str | dict[str, Any]],
    PlainValidator(_inputs),
    WithJsonSchema({"anyOf": [*_ROW["anyOf"], {"type": "array", "items": _ROW, "minItems": 1}]}),
]
Whole = Annotated[int, BeforeValidator(_integral)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)


class StreamOptions(_Body):
    """How an answer is streamed."""

    include_usage: bool | None = None
    """Whether a last chunk tells the tokens used."""


UNSERVED = (
    "guided_grammar",
    "truncate_prompt_tokens",
    "chat_template",
    "documents",
    "use_beam_search",
    "bad_words",
    "allowed_token_ids",
    "prompt_embeds",
)
"""Fields of vLLM's clients that change the answer and are not served."""


class SamplingRequest(_Body):
    """How answers are drawn; the same for completions and chats."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unserved(cls, body: Any) -> Any:
        """What would change the answer is honoured or refused, never passed over."""
        if isinstance(body, dict):
            asked = [name for name in UNSERVED if body.get(name) not in (None, False, [], {}, "")]
            if asked:
                raise ValueError(f"{asked[0]} is not served; leave it out")
        return body

    model: Name
    """The name of a prompt, or of the base for its bare self."""
    max_tokens: Whole | None = Field(default=None, ge=0, le=2**31)
    """The most tokens of an answer."""
    max_completion_tokens: Whole | None = Field(default=None, ge=0, le=2**31)
    """The newer name of the same."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the likeliest token; 1 where it is left out."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Draw among the likeliest that together hold this much probability."""
    top_k: Whole | None = Field(default=None, ge=-1, le=2**31)
    """Draw among this many likeliest; 0 or -1 for all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Leave out what is less likely than this share of the likeliest."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken off a token that was written before."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken off a token for each time it was written before."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    """What logits of tokens seen before are divided by."""
    logit_bias: Biases = Field(default_factory=dict)
    """Added to the logits of token ids."""
    seed: Whole | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    """Fixes the draws."""
    prompt_logprobs: Whole | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """How many likeliest tokens to report at each place of the text that was read; not in streams."""
    n: Whole | None = Field(default=None, ge=1, le=MOST_CHOICES)
    """How many answers to each prompt."""
    stop: Stops = ()
    """An answer ends before the first of these."""
    min_tokens: Whole | None = Field(default=None, ge=0, le=2**31)
    """An answer neither ends nor is searched for stops before it has so many tokens."""
    ignore_eos: bool | None = None
    """The end token does not end an answer."""
    stop_token_ids: list[Whole] | None = Field(default=None, max_length=MOST_BIASES)
    """An answer ends before any of these tokens."""
    response_format: Any = None
    """The form to answer in: ``{"type": "text"}``, ``json_object``, or ``json_schema`` with a schema."""
    guided_json: Any = None
    """A JSON schema to hold the answer to."""
    guided_regex: Any = None
    """A regular expression that the whole answer matches."""
    guided_choice: Any = None
    """Texts, one of which is the answer."""
    structured_outputs: Any = None
    """The same three in one object: ``json``, ``regex`` or ``choice``."""
    stream: bool | None = None
    """Whether the answer comes piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Passed over."""

    @property
    def asked_tokens(self) -> int | None:
        """The most new tokens, if a number was given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends by telling the tokens used."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(SamplingRequest):
    """A text to go on from.

    Text goes through the prompt's own template; token ids stand behind it as they are.
    """

    prompt: Prompts
    """Text, token ids, or a list of either."""
    echo: bool | None = None
    """Whether the prompt comes back in front of the answer."""
    logprobs: Whole | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """How many likeliest tokens to report at each place."""
    best_of: Whole | None = Field(default=None, ge=1, le=MOST_CHOICES)
    """Must equal n."""
    suffix: str | None = None
    """Not served: a causal model does not read what comes after."""


class TextPart(_Body):
    """A piece of a message; only text is served."""

    type: str
    text: str | None = None


FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class SaidFunction(_Body):
    """A function and what it was called with."""

    name: FunctionName
    arguments: str = "{}"
    """As JSON."""


class SaidToolCall(_Body):
    """A call that an assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: SaidFunction


class Function(_Body):
    """A function that may be called."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments."""


class Tool(_Body):
    """What a model may use; only functions are."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Body):
    """The function that must be called."""

    name: FunctionName


class NamedTool(_Body):
    """The tool that must be used."""

    type: Literal["function"]
    function: NamedFunction


class Message(_Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[SaidToolCall] | None = Field(default=None, max_length=128)
    """Functions that an assistant called."""
    tool_call_id: str | None = None
    """Which call the turn of a tool answers."""


class ChatRequest(SamplingRequest):
    """A chat to answer."""

    messages: list[Message] = Field(min_length=1, max_length=1_000)
    logprobs: bool | None = None
    """Whether to report the log-probability of every token."""
    top_logprobs: Whole | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """How many likeliest tokens to report at each place."""
    tools: list[Tool] | None = Field(default=None, max_length=128)
    """Functions that the model may call."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """Whether it may call them, must, or must call this one."""
    parallel_tool_calls: bool | None = None
    """Whether there may be several calls in one answer; a required call is one."""
    add_generation_prompt: bool | None = None
    """Whether the assistant's turn is begun behind the messages, as it is where this is left out."""
    continue_final_message: bool | None = None
    """Whether the answer goes on in the last message, which stays open."""
    functions: Any = None
    """Not served."""
    function_call: Any = None
    """Not served, but "none" and "auto" are let pass."""
    modalities: Any = None
    """Only text is served."""
    audio: Any = None
    """Not served."""


class ResponsesRequest(_Body):
    """A text or a chat to answer, in OpenAI's newer form."""

    model: Name
    """The name of a prompt, or of the base for its bare self."""
    input: str | Annotated[list[Message], Field(min_length=1, max_length=1_000)]
    """A user's text, or the messages of a chat."""
    instructions: str | None = None
    """A system's message in front of it."""
    max_output_tokens: Whole | None = Field(default=None, ge=1, le=2**31)
    """The most tokens of the answer."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the likeliest token; 1 where it is left out."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Draw among the likeliest that together hold this much probability."""
    text: dict[str, Any] | None = None
    """``{"format": ...}``: text, json_object, or json_schema with name and schema."""
    stream: bool | None = None
    """Whether the answer comes piece by piece, as server-sent events."""
    metadata: dict[str, Any] | None = None
    """Comes back as it is."""
    tools: Any = None
    """Not served here."""
    previous_response_id: Any = None
    """Not served: nothing is kept."""
    conversation: Any = None
    """Not served: nothing is kept."""
    prompt: Any = None
    """Not served: prompts are named by ``model``."""
    background: Any = None
    """Not served."""


class TokenizeRequest(_Body):
    """A text or a chat to tell the tokens of."""

    model: Name | None = None
    """The name of a prompt; the base where it is left out."""
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=1_000)
    add_generation_prompt: bool | None = None
    """Whether the assistant's turn is begun behind the messages; it is where this is left out."""
    return_token_strs: bool | None = None
    """Whether to tell the tokens as the vocabulary spells them, too."""


class DetokenizeRequest(_Body):
    """Tokens to tell the text of."""

    model: Name | None = None
    """The name of a prompt; the base where it is left out."""
    tokens: list[Annotated[Whole, Field(ge=0, le=LARGEST_TOKEN)]] = Field(max_length=MOST_TOKENS)


class ClassifyRequest(_Body):
    """Texts or rows to tell the label of."""

    model: Name
    """The name of a prompt with labels or choices."""
    input: Inputs
    """A text, an object with a value for each column, or a list of these."""
