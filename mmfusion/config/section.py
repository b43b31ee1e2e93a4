"""The base of all sections of a recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of a recipe: frozen, and no key that it does not know.

    Example:
        >>> from mmfusion.config.section import Section
        >>> Section.model_config["extra"]
        'forbid'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
