"""The base of all sections of a recipe."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A section of a recipe: frozen, and no key that it does not know.

    Example:
        >>> from mmfusion.config.section import Section
        >>> Section.model_config["extra"]
        'forbid'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_guessing(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic takes true for 1, "3" for 3 and 1 for true: in a recipe, each is a slip.
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        for item in value if isinstance(value, list | tuple) else [value]:
            slip = (
                (isinstance(item, bool) and bool not in kinds and kinds & {int, float})
                or (isinstance(item, str) and str not in kinds and kinds & {int, float, bool})
                or (isinstance(item, int | float) and not isinstance(item, bool) and bool in kinds)
            )
            if slip and Any not in kinds:
                raise PydanticCustomError("wrong_kind", "wrong kind")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    parts = get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}
