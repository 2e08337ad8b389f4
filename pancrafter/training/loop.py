"""A training run: one L1 loss per mode, a schedule, and a folder from which it goes on."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from pancrafter.errors import PancrafterError, SinkError, WeightsError
from pancrafter.heap import keep_freed_memory, usable_cores
from pancrafter.model.conditions import build_conditions
from pancrafter.model.devices import DeviceError, is_out_of_memory, use_full_float32
from pancrafter.model.network import MS_MODE, PAN_MODE, PanCrafter
from pancrafter.model.reprojection import BLUR_RADIUS_MS_PX, reprojected
from pancrafter.model.weights import load_checkpoint, save_checkpoint
from pancrafter.resample import GENERIC_MTF_GAIN
from pancrafter.training.config import TrainConfig, read_config
from pancrafter.training.images import load_data
from pancrafter.training.record import MadeFrom, MetricsLog, provenance
from pancrafter.training.samples import Sample, batches
from pancrafter.training.validation import require_scores, validate

Floats = NDArray[np.float32]

_log = logging.getLogger(__name__)


def batch_loss(network: PanCrafter, ratio: int, samples: list[Sample], config: TrainConfig, device: str) -> Tensor:
    """Mean |F - GT| over the MS half plus lambda mean |P' - P| over the PAN half of the same pairs.

    Eq. 4 of PAN-Crafter (arXiv 2505.23367v2). Every sample counts by its ``weight``; with ``config.pan_share``
    below 1 the PAN half is that of the first samples.
    With ``config.reprojection`` F is the network's result brought into agreement with MS (PAN is not put back). Its
    outermost MS pixels are not counted, because the step would need what lies beyond the patch.
    """

    def stacked(values: list[Floats]) -> Tensor:
        return torch.from_numpy(np.stack(values)).to(device)

    pan, ms = stacked([s.pan for s in samples])[:, None], stacked([s.ms for s in samples])
    truth = stacked([s.truth for s in samples])
    phases = torch.from_numpy(np.stack([s.phases for s in samples]))
    injection = stacked([s.injection for s in samples]) if config.network.injected_detail else None
    n = len(samples)
    again = max(1, round(config.pan_share * n)) if config.network.mars else 0
    mode = torch.tensor([MS_MODE] * n + [PAN_MODE] * again, device=device)
    twice = [*range(n), *range(again)]
    told = [samples[i].mtf for i in twice] if config.network.matched_lowpass else [GENERIC_MTF_GAIN]
    conditions = build_conditions(
        pan[twice],
        ms[twice],
        ratio,
        phases[twice],
        None if injection is None else injection[twice],
        told,
        [samples[i].uncertainty for i in twice],
    )
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
        output: Tensor = network(conditions, mode)
    bands = config.network.bands
    sharpened, counted = output[:n, :bands], slice(None)
    if config.reprojection:
        mtfs = torch.tensor([[s.mtf] * bands for s in samples], dtype=torch.float64)
        sharpened = reprojected(output[:n].float(), ms, ratio, phases, mtfs)
        counted = slice(BLUR_RADIUS_MS_PX * ratio, -BLUR_RADIUS_MS_PX * ratio)
    weights = torch.tensor([s.weight for s in samples], device=device)[:, None, None, None]
    loss: Tensor = (weights * (sharpened - truth)[..., counted, counted].abs()).mean()
    if again:
        loss = loss + config.pan_weight * (weights[:again] * (output[n:, :bands] - pan[:again]).abs()).mean()
    return loss


def _starting_network(config: TrainConfig) -> PanCrafter:
    """A fresh network, or the one that fine-tuning starts from.

    Raises:
        WeightsError: ``start`` has another architecture than ``network``; ``injected_detail``, ``matched_lowpass``,
            ``told_uncertainty`` and ``weighs_ms`` may be added to it.
    """
    if config.start is None:
        return PanCrafter(config.network)
    checkpoint = load_checkpoint(config.start)
    trained = checkpoint.network.config
    addable = {"injected_detail", "matched_lowpass", "told_uncertainty"}
    if trained.told_uncertainty:
        addable.remove("injected_detail")  # whose input would come before
    new: dict[str, int] = {name: False for name in addable if not getattr(trained, name)}
    new["weighs_ms"] = min(trained.weighs_ms, config.network.weighs_ms)
    if trained != config.network.model_copy(update=new):
        raise WeightsError(
            f"weights {config.start} are of {trained}, expected {config.network}; "
            "give the same network in the configuration, or start afresh"
        )
    network, weights = PanCrafter(config.network), checkpoint.network.state_dict()
    stem = torch.zeros_like(network.stem.weight)  # inputs that are new count for nothing until they are trained
    stem[:, : trained.stem_channels] = weights["stem.weight"]
    head = {name: torch.zeros_like(value) for name, value in network.state_dict().items() if name.startswith("head.")}
    for name, value in head.items():  # nor do outputs
        value[: trained.head_channels] = weights[name]
    network.load_state_dict({**weights, **head, "stem.weight": stem})
    return network


def _other_network(config: TrainConfig) -> PanCrafter | None:
    """That whose mean with the trained one is validated and kept, if the configuration names one.

    Raises:
        WeightsError: It is of another architecture.
    """
    if config.mean_with is None:
        return None
    other = load_checkpoint(config.mean_with).network
    if other.config != config.network:
        raise WeightsError(
            f"weights {config.mean_with} are of {other.config}, expected {config.network}; "
            "mean_with takes those of the same network"
        )
    return other


def _mean(network: PanCrafter, other: PanCrafter) -> PanCrafter:
    mean, others = copy.deepcopy(network), other.state_dict()
    mean.load_state_dict(
        {name: value.lerp(others[name].to(value), 0.5) for name, value in network.state_dict().items()}
    )
    return mean


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


_TORN = (AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError, UnpicklingError)
"""What ``torch.load`` raises on damaged files."""


@dataclass
class Run:
    """The state of a training run in its folder: ``state.pt`` to resume, ``best.safetensors``, ``metrics.csv``."""

    folder: Path
    network: PanCrafter
    optimiser: torch.optim.Optimizer
    made_from: MadeFrom
    step: int = 0
    best: float = math.inf
    saved_step: int | None = None
    recent: list[float] = field(default_factory=list)
    """Losses of the last hundred steps."""

    @property
    def kept(self) -> str:
        """Of which step the state in the folder is, in words."""
        return "nothing was saved yet" if self.saved_step is None else f"of step {self.saved_step}"

    def save(self) -> None:
        """Write the resumable state; the file appears only when whole."""
        partial, content = self.folder / "state.partial", BytesIO()  # to a file, torch would hide why it fails
        torch.save(
            {
                "network": self.network.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "best": self.best,
                "recent": self.recent,
                "made_from": self.made_from.model_dump(mode="json"),
            },
            content,
        )
        partial.write_bytes(content.getbuffer())
        partial.replace(self.folder / "state.pt")
        self.saved_step = self.step

    def restore(self) -> None:
        """Continue from ``state.pt`` where there is one.

        Raises:
            PancrafterError: It is damaged, or what it was made from differs in more than length and learning rate.
        """
        path = self.folder / "state.pt"
        try:
            content = BytesIO(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as err:
            raise PancrafterError(f"{path} cannot be read ({err}); mend its rights, or use another folder") from err
        try:
            state = torch.load(content, map_location="cpu", weights_only=True)
        except _TORN as err:
            reason = str(err).split(".")[0] or f"it ends after {len(content.getbuffer())} bytes"
            raise PancrafterError(
                f"{path} is damaged ({reason}); use another folder, or delete the file to begin anew"
            ) from err
        try:
            self._require_same_origin(path, state)
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.best, self.recent = state["step"], state["best"], state.get("recent", [])
            self.saved_step = self.step
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as err:
            raise PancrafterError(
                f"{path} cannot be continued with this configuration: {err}; use another folder, or delete the file"
            ) from err

    def _require_same_origin(self, path: Path, state: dict[str, Any]) -> None:  # Any: what torch saves
        if "network" in state and "made_from" not in state:
            _log.warning("%s was written before runs kept what they are made from: going on unchecked", path)
            return
        if different := MadeFrom.model_validate(state["made_from"]).differences(self.made_from):
            raise PancrafterError(
                f"{path} cannot be continued with this configuration: {'; '.join(different)}; only steps and "
                "learning_rate may change, so restore the others, use another folder, or delete the file"
            )


def train(config_path: Path, folder: Path, *, device: str = "cpu", loaders: int | None = None) -> Path:
    """Train as ``config_path`` says; a second call on the same ``folder`` continues where the first one stopped.

    Args:
        config_path: A ``TrainConfig`` as YAML.
        folder: Where the run lives.
        device: ``cpu`` or ``cuda``.
        loaders: Processes that prepare batches; by default as ``loaders_for`` says. They do not change what is trained.

    Returns:
        The checkpoint with the best validation ERGAS.

    Raises:
        PancrafterError: The configuration or an image is not usable, the folder holds a run made from something else,
            or the loss is no longer finite; the last good state stays in the folder.
        DeviceError: The device's memory does not hold a step.
        SinkError: The folder cannot be written.
    """
    keep_freed_memory()
    use_full_float32()
    loaders = loaders_for(device) if loaders is None else loaders
    config, best = read_config(config_path), folder / "best.safetensors"
    made_from = MadeFrom.of(config, config_path.parent)
    torch.manual_seed(config.seed)
    network = _starting_network(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    other = _other_network(config)
    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    run = Run(folder, network, optimiser, made_from)
    run.restore()
    if run.step >= config.steps:
        if not best.is_file():
            raise PancrafterError(
                f"{best} is not there, and all {run.step} steps are done: only the last one's state is kept; put the "
                "file back, raise steps, or train in another folder"
            )
        return best
    if not best.is_file():
        run.best = math.inf  # no file is left to be better than
    with _unwritable_is_named(run):
        folder.mkdir(parents=True, exist_ok=True)
    images, validation = load_data(config, config_path.parent)
    require_scores(validation)
    record = provenance(made_from, images, validation)
    with _unwritable_is_named(run):
        (folder / "config.yaml").write_text(config_path.read_text())
        (folder / "run.json").write_text(json.dumps({**record, "device": device}, indent=2) + "\n")
        table = MetricsLog(folder, run.step)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with _full_memory_is_named(run, device), Progress(*columns) as progress, table as log:
        bar = progress.add_task("", total=config.steps, completed=run.step, note="")
        for loss in _steps(run, batches(images, config, run.step, loaders), config, device):
            progress.update(bar, completed=run.step)
            if run.step % config.validate_every == 0 or run.step == config.steps:
                judged = network if other is None else _mean(network, other)
                scores = validate(judged, validation, device, reprojection=config.reprojection)
                _require_finite(scores["ergas"], "validation ERGAS", run)
                progress.update(bar, note=f"ERGAS {scores['ergas']:.3f} (cubic {scores['ergas_cubic']:.3f})")
                with _unwritable_is_named(run):
                    log.begin()
                    if scores["ergas"] < run.best:
                        run.best = scores["ergas"]
                        save_checkpoint(best, judged, {**record, "step": run.step, **scores})
                    run.save()  # before the table: a run that is killed in between must not write this step twice
                    log.write(run.step, {"loss": loss, **scores, "learning_rate": learning_rate(run.step - 1, config)})
    return best


MOST_LOADERS = 4
"""One core prepares a batch of training/open-quality.yaml in 0.06 s, all of its 16,000 in 16 minutes."""


def loaders_for(device: str) -> int:
    """A GPU waits for a core that cuts, blurs and turns patches, so a few do; a CPU has no core to spare."""
    return 0 if device == "cpu" else max(1, min(MOST_LOADERS, usable_cores() - 1))


@contextmanager
def _full_memory_is_named(run: Run, device: str) -> Iterator[None]:
    """Say what to do where a device does not hold a step, or a validation.

    Raises:
        DeviceError: It does not.
    """
    try:
        yield
    except RuntimeError as err:
        if not is_out_of_memory(err):
            raise
        raise DeviceError(
            f"{device} has no memory for step {run.step + 1} ({str(err).splitlines()[0]}); the last state is in "
            f"{run.folder} ({run.kept}), to go on with more memory; or lower batch or patch_px, and begin in another "
            "folder"
        ) from err


@contextmanager
def _unwritable_is_named(run: Run) -> Iterator[None]:
    """Say what is kept where a run's folder cannot be written.

    Raises:
        SinkError: It cannot.
    """
    try:
        yield
    except OSError as err:
        raise SinkError(
            f"{run.folder}: cannot be written ({err}); the last state in it: {run.kept}; make room or mend its rights "
            "and run again to go on, or give another folder"
        ) from err


def _require_finite(value: float, name: str, run: Run) -> None:
    if not math.isfinite(value):
        raise PancrafterError(
            f"{name} is {value} at step {run.step}; the last good state is in {run.folder} ({run.kept}); lower "
            "learning_rate"
        )


def _steps(run: Run, prepared: Iterator[tuple[int, list[Sample]]], config: TrainConfig, device: str) -> Iterator[float]:
    """Optimise until the last step, yielding the mean loss of the last hundred steps."""
    run.network.train()
    for ratio, samples in prepared:
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(run.step, config)
        loss = batch_loss(run.network, ratio, samples, config, device)
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(run.network.parameters(), config.clip_norm or math.inf)
        value = float(loss.detach())
        _require_finite(value, "loss", run)
        _require_finite(float(norm), "gradient norm", run)
        run.optimiser.step()
        run.step += 1
        run.recent = [*run.recent[-99:], value]
        yield float(np.mean(run.recent))
