"""What every client asks for: small enough that random weights reach its end."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

USER: Any = [{"role": "user", "content": "Who?"}]


class Person(pydantic.BaseModel):
    """A person."""

    name: str = pydantic.Field(pattern="^[a-z]{1,5}$")
    mood: Literal["glad", "sad"]
    tags: list[Literal["a", "b"]] = pydantic.Field(max_length=2)


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
