"""The quality gate's decision: measured figures in, pass, classical fallback or hold out. Measuring is ``assess``.

A fault of the result (wrong weights, swapped bands, shift, wrong scale, damaged blocks) is mended by the classical
result. A fault of the input (PAN of other ground) is not, and neither is a classical result that fails as well: such a
scene is held for a person.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from pancrafter.types import Quality, Record

Verdict = Literal["pass", "fallback", "hold"]


class Decision(NamedTuple):
    """What becomes of a result, and why when it does not pass."""

    verdict: Verdict
    reason: str = ""


class QualityRule(Record):
    """What a scene must reach, per sensor contract. Limits come from docs/quality-gate.md unless a contract sets them.

    ERGAS limits are multiplied by the ratio: a relative error of the same size gives the same product at any ratio.
    """

    min_gain: float = Field(
        default=-0.07,
        description="Least gain, reduced scale, over the classical method that would take the result's place: good "
        "results at full resolution come so low there.",
    )
    min_detail_correlation: float = Field(default=0.92, description="PAN's fine detail explained by the result's.")
    max_consistency: float = Field(default=12.0, gt=0, description="Consistency ERGAS times ratio.")
    max_consistency_sam_deg: float = Field(default=4.5, gt=0)
    max_of_detail: float = Field(
        default=0.75,
        ge=0,
        description="Of the ERGAS and SAM of MS without its detail; above the two limits, it counts.",
    )
    max_bias: float = Field(default=0.05, gt=0, description="Relative difference of a band's mean from its MS.")
    max_band_confusion: float = Field(default=1.0, gt=0, description="RMSE against own over nearest other MS band.")
    max_block: float = Field(default=0.85, gt=0, le=10, description="Error over contrast of the worst block.")
    max_residual_shift_px: float = Field(default=1.0, gt=0, description="Shift left between PAN and a band.")
    max_displacement_px: float = Field(default=0.75, gt=0, description="Displacement of a band against its MS input.")
    min_pan_correlation: float = Field(default=0.35, description="PAN detail explained by MS detail; below: hold.")
    min_hqnr: float = 0.6
    on_miss: Literal["fallback", "hold"] = Field(default="fallback", description="What a fault of the result leads to.")

    def verdict(self, quality: Quality, ratio: int, *, classical: bool = False) -> Decision:
        """Whether a result may be published.

        Args:
            quality: What ``assess`` measured.
            ratio: MS over PAN pixel size.
            classical: The result is a classical one already: there is nothing left to fall back to, and its gain over
                itself says nothing.
        """
        of_input = list(self._faults_of_input(quality))
        problems = [*of_input, *self._faults_of_result(quality, ratio)]
        if not classical and (gain := quality.gain_over_fallback) is not None and gain < self.min_gain:
            problems.append(f"gain over the classical result {gain:+.1%} < {self.min_gain:+.1%}")
        if not problems:
            return Decision("pass")
        hold = bool(of_input) or classical or self.on_miss == "hold"
        return Decision("hold" if hold else "fallback", "; ".join(problems))

    def _faults_of_input(self, quality: Quality) -> list[str]:
        found = quality.pan_correlation
        if found is not None and found < self.min_pan_correlation:
            return [
                f"PAN detail hardly follows MS (correlation {found:.2f} < {self.min_pan_correlation:g}): other ground?"
            ]
        return []

    def _faults_of_result(self, quality: Quality, ratio: int) -> list[str]:
        max_ergas = max(self.max_consistency / ratio, self.max_of_detail * quality.detail_ergas)
        max_sam_deg = max(self.max_consistency_sam_deg, self.max_of_detail * quality.detail_sam_deg)
        checks = (
            ("consistency ERGAS", quality.consistency_ergas, max_ergas, ""),
            ("consistency SAM", quality.consistency_sam_deg, max_sam_deg, " deg"),
            ("radiometric bias", quality.radiometric_bias, self.max_bias, ""),
            ("band confusion", quality.band_confusion, self.max_band_confusion, ""),
            ("worst block", quality.worst_block_error, self.max_block, ""),
            ("displacement", quality.displacement_px, self.max_displacement_px, " px"),
            ("residual shift", quality.residual_shift_px, self.max_residual_shift_px, " px"),
        )
        problems = [
            f"{name} {found:.3g}{unit} > {limit:.3g}"
            for name, found, limit, unit in checks
            if found is not None and not found <= limit
        ]
        fine = quality.detail_correlation
        if fine is not None and not fine >= self.min_detail_correlation:
            problems.append(f"detail correlation {fine:.3f} < {self.min_detail_correlation:g}")
        if not quality.hqnr >= self.min_hqnr:
            problems.append(f"HQNR {quality.hqnr:.3f} < {self.min_hqnr:g}")
        return problems
