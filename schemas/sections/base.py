"""A section of the federation file: unknown keys are refused, values are frozen, true is not a number."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true for a number: pydantic reads it as 1."""
        if isinstance(value, bool) and info.field_name:
            types = _types(cls.model_fields[info.field_name].annotation)
            if bool not in types and (int in types or float in types):
                raise PydanticCustomError("int_type" if int in types else "float_type", "not a number")
        return value


def _types(annotation: Any) -> set[Any]:
    args = get_args(annotation)
    return set().union(*map(_types, args)) if args else {annotation} if isinstance(annotation, type) else set()
