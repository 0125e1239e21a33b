"""Field types of what operator and agents tell each other: bounded, lenient to newer fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict
from pydantic.alias_generators import to_camel

Bytes = Annotated[int, Strict(), Field(ge=0, le=2**62)]
Count = Annotated[int, Strict(), Field(ge=0, le=2**53)]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
Percent = Annotated[int, Strict(), Field(ge=0, le=100)]
Text = Annotated[str, Field(max_length=253)]
Message = Annotated[str, Field(max_length=1024)]
Time = Annotated[str, Field(max_length=40)]  # RFC 3339, UTC


class NodeModel(BaseModel):
    """camelCase outside, unknown fields ignored, immutable once read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)
