"""Every exception this package raises on purpose, grouped by what the reader of it should do next."""

from __future__ import annotations

from typing import ClassVar, Literal

ErrorKind = Literal["transient", "input", "setup", "system"]


class PancrafterError(Exception):
    """Root of all deliberate errors.

    The message says where, what was found, what was expected and what to do next. ``scene`` and ``asset`` name the
    place again for programs; ``kind`` decides the reaction: retry (transient), put the scene aside until the input is
    mended (input), let it wait for a setting while others go on (setup), or stop the run (system).
    """

    kind: ClassVar[ErrorKind] = "input"

    def __init__(self, message: str, *, scene: str | None = None, asset: str | None = None) -> None:
        places = (("scene", scene), ("asset", asset))
        where = " ".join(f"{what} {name}" for what, name in places if name)
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.scene = scene
        self.asset = asset

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword attributes when the error crosses a process border."""
        return (_rebuild, (type(self), self.message, self.scene, self.asset))


def _rebuild(cls: type[PancrafterError], message: str, scene: str | None, asset: str | None) -> PancrafterError:
    return cls(message, scene=scene, asset=asset)


class TransientReadError(PancrafterError):
    """A read failed in a way that may pass (network, throttling): try again."""

    kind = "transient"


class InvalidSceneError(PancrafterError):
    """The scene's own data or metadata is wrong: mend the input."""


class GridMismatchError(InvalidSceneError):
    """PAN and MS grids cannot be related to each other."""


class CatalogUnavailableError(PancrafterError):
    """The STAC API or the object store gives no answer, or fails in a way that may pass: try again."""

    kind = "transient"


class LeaseLostError(PancrafterError):
    """Another worker holds the scene now; this one must not publish it."""

    kind = "transient"


class UnexpectedError(PancrafterError):
    """Something that nobody foresaw broke the work on one scene: tried again some times, as the cause is not known."""

    kind = "transient"


class WorkerLostError(PancrafterError):
    """Workers died in the middle of a scene: try again, finished blocks are kept."""

    kind = "transient"


class ClusterLostError(PancrafterError):
    """There is no Dask scheduler any more, or no worker that could do the work: no scene can be made."""

    kind = "system"


class AccessError(PancrafterError):
    """Credentials that an access profile names cannot be read: no fault of the scene, but others may need none."""

    kind = "setup"


class BandCountError(PancrafterError):
    """The network takes another number of bands at once than the scene has: it may suit others."""

    kind = "setup"


class SourceError(PancrafterError):
    """The source catalog cannot be reached or is not STAC: nothing can be searched."""

    kind = "system"


class SinkError(PancrafterError):
    """The output place cannot be written (permissions, full disk): nothing can be published."""

    kind = "system"


class WeightsError(PancrafterError):
    """A checkpoint is missing, damaged or of another architecture."""

    kind = "system"


class ContractError(PancrafterError):
    """A sensor contract file is not valid, or a contract was asked for that does not exist."""

    kind = "system"


class LedgerError(PancrafterError):
    """The ledger cannot be opened, read or written, or belongs to another version of this package."""

    kind = "system"


class IllegalTransitionError(LedgerError):
    """A scene was asked to go from one state to another that cannot follow it: a defect of the caller."""
