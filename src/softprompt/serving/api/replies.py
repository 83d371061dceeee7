"""What clients get back: the shapes of answers, for the OpenAPI page and for whoever builds them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

__all__ = [
    "ChatCompletion",
    "Classified",
    "Detokenized",
    "ErrorBody",
    "LoadedModel",
    "ModelInfo",
    "ModelList",
    "ResponseBody",
    "ServerVersion",
    "TextCompletion",
    "Tokenized",
    "Usage",
]


class Fault(BaseModel):
    """What was wrong with a request."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: Fault


class PromptTokens(BaseModel):
    """What of the text was not read anew, and what stood in front of it."""

    cached_tokens: int
    """Always 0: texts are not cached."""
    virtual_tokens: int
    """Positions of the learnt prompt; not counted as prompt tokens, and read only once for all requests."""


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Notes(BaseModel):
    """What a client should know of its answer: that a text was cut, say."""

    notes: list[str]


class TextLogprobs(BaseModel):
    """Log-probabilities in the form of completions."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One answer to a prompt."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(BaseModel):
    """Answers to the prompts of a completion request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: Usage | None = None
    softprompt: Notes | None = None


class TopLogprob(BaseModel):
    """A token that was likely at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities in the form of chats."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    """A function, and what it is called with, as JSON."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of one of the client's functions."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Said(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)


class ChatChoice(BaseModel):
    """One answer to a chat."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """Answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    softprompt: Notes | None = None


class Shares(BaseModel):
    """The label of one input."""

    index: int
    label: str
    probabilities: dict[str, float]
    """Of every label, the likeliest first."""


class Classified(BaseModel):
    """Labels of all inputs."""

    object: Literal["list"]
    model: str
    data: list[Shares]
    usage: Usage
    softprompt: Notes | None = None


class OutputText(BaseModel):
    """The text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(BaseModel):
    """The assistant's turn."""

    type: Literal["message"]
    id: str
    status: str
    role: Literal["assistant"]
    content: list[OutputText]


class ResponseBody(BaseModel):
    """An answer in OpenAI's newer form; fields that only repeat the request are left out here."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress"]
    error: None = None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[OutputMessage]
    usage: dict[str, Any] | None
    softprompt: Notes | None = None


class Tokenized(BaseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str


class ServerVersion(BaseModel):
    """What serves."""

    version: str


class PromptFacts(BaseModel):
    """What its card says about a prompt."""

    kind: str
    """The method it was learnt with; "base" for the bare base."""
    positions: int
    """Virtual tokens in front of every text."""
    labels: list[str] | None = None
    choices: bool = False
    """Whether each row brings its own possible answers."""
    fields: list[str] = Field(default_factory=list)
    """Columns a row must have; one means that plain text will do."""
    scores: dict[str, Any] = Field(default_factory=dict)
    digest: str | None = None
    """Hash of what answers now, where it is loaded."""


class ModelInfo(BaseModel):
    """A model: the bare base, or a prompt on it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    softprompt: PromptFacts


class ModelList(BaseModel):
    """All models a client may use."""

    object: Literal["list"]
    data: list[ModelInfo]


class LoadedModel(BaseModel):
    """A prompt that is held in memory."""

    name: str
    digest: str
    bytes: int
    users: int
    pinned: bool
