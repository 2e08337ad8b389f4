"""What the flows can be told; Prefect's UI makes forms of these models."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pancrafter.selection import made_by, read_ids
from pancrafter.settings import Bbox, Settings


class Selection(BaseModel):
    """What a backfill is about; everything given must hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: datetime | None = Field(default=None, description="Earliest acquisition time.")
    until: datetime | None = Field(default=None, description="Latest acquisition time.")
    bbox: Bbox | None = Field(default=None, description="West, south, east, north in degrees.")
    aoi: str | None = Field(default=None, description="GeoJSON file with the area of interest.")
    collections: tuple[str, ...] = Field(default=(), description="Source collections; empty: all.")
    ids_file: str | None = Field(default=None, description="Text file with one source item id per line.")
    made_with: str | None = Field(
        default=None, description="Only scenes whose present result was made with these weights (name or sha256)."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Selection:
        if self.since and self.until and self.since > self.until:
            raise ValueError(f"since {self.since} is after until {self.until}; exchange them")
        return self

    def applied_to(self, settings: Settings) -> Settings:
        """The settings of a run over this selection.

        Raises:
            SelectionError: A file of the selection is of no use, or nothing was made with the weights.
        """
        chosen = {
            name: value
            for name, value in self.model_dump(exclude={"ids_file", "made_with"}).items()
            if value not in (None, ())
        }
        ids = [set(read_ids(self.ids_file))] if self.ids_file else []
        ids += [set(made_by(settings.sink, self.made_with))] if self.made_with else []
        if ids:
            chosen["ids"] = tuple(sorted(set.intersection(*ids)))
        return settings.model_copy(update=chosen)
