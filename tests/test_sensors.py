"""Contracts: the bundled ones are consistent with public figures, and wrong ones are refused with their fault."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pancrafter.errors import ContractError
from pancrafter.sensors import fold, generic_contract, get_contract, load_contracts, parse_contract

CONTRACTS = load_contracts()
KNOWN = [contract for contract in CONTRACTS.values() if contract.name != "generic"]

MINIMAL = """
name: my-sat
title: My satellite
platforms: [My Sat 1]
ratio: 3
dn_max: 4095
nodata: null
pan_asset_keys: [pan]
pan_mtf: 0.2
bands:
  - {name: red, mtf: 0.3, in_pan: true}
  - {name: green, mtf: 0.3, in_pan: true}
weights: none
source: measured
"""


@pytest.mark.parametrize(
    ("name", "ratio", "dn_max", "mtf", "pan_mtf"),
    [
        ("worldview-3", 4, 2047, [0.325, 0.355, 0.36, 0.35, 0.365, 0.36, 0.335, 0.315], 0.14),
        ("worldview-2", 4, 2047, [0.35] * 7 + [0.27], 0.11),
        ("geoeye-1", 4, 2047, [0.23] * 4, 0.16),
        ("quickbird", 4, 2047, [0.34, 0.32, 0.30, 0.22], 0.15),
        ("ikonos", 4, 2047, [0.26, 0.28, 0.29, 0.28], 0.17),
        ("gaofen-2", 4, 1023, [0.3] * 4, 0.15),
        ("pleiades", 4, 4095, [0.285, 0.285, 0.29, 0.285], 0.15),
        ("spot-6", 4, 4095, [0.33] * 4, 0.15),
        ("landsat-7", 2, 255, [0.3] * 6, 0.15),
        ("landsat-8", 2, 65535, [0.3] * 6, 0.15),
    ],
)
def test_published_figures(name: str, ratio: int, dn_max: int, mtf: list[float], pan_mtf: float) -> None:
    contract = get_contract(name)
    assert (contract.ratio, contract.dn_max, contract.pan_mtf) == (ratio, dn_max, pan_mtf)
    assert [band.mtf for band in contract.bands] == mtf


@pytest.mark.parametrize("contract", KNOWN, ids=lambda contract: contract.name)
def test_in_pan_follows_from_the_wavelengths(contract) -> None:
    low = contract.pan_center_um - contract.pan_fwhm_um / 2
    high = contract.pan_center_um + contract.pan_fwhm_um / 2
    for band in contract.bands:
        assert band.in_pan == (low <= band.center_um <= high), band.name
    assert any(band.in_pan for band in contract.bands)


@pytest.mark.parametrize("contract", KNOWN, ids=lambda contract: contract.name)
def test_colours_lie_where_they_should(contract) -> None:
    ranges = {"blue": (0.43, 0.53), "green": (0.5, 0.61), "red": (0.6, 0.72), "nir": (0.75, 0.95), "nir1": (0.75, 0.95)}
    for band in contract.bands:
        low, high = ranges.get(band.name, (0.35, 2.5))
        assert low < band.center_um < high, band.name


@pytest.mark.parametrize("contract", KNOWN, ids=lambda contract: contract.name)
def test_naming_a_sensor_takes_nothing_away(contract) -> None:
    assert contract.weights == get_contract("generic").weights


def test_no_platform_is_claimed_twice() -> None:
    claims = [
        (fold(platform), contract.name) for contract in KNOWN for platform in {fold(p) for p in contract.platforms}
    ]
    platforms = [platform for platform, _ in claims]
    assert sorted(platforms) == sorted(set(platforms))


def test_every_sensor_of_the_real_pairs_has_its_bands(shared_data: Path) -> None:
    checked = 0
    for file in sorted((shared_data / "pairs").glob("*.json")):
        pair = json.loads(file.read_text())
        if not isinstance(pair, dict) or "sensor" not in pair or pair["sensor"].startswith("unknown"):
            continue
        contract = get_contract(pair["sensor"])
        bands = contract.subset(pair["bands"])
        assert len({band.name for band in bands}) == len(pair["bands"]), file.name
        assert {band.name for band in bands} in [set(delivery.bands) for delivery in contract.band_sets], file.name
        assert contract.ratio == pair["ratio"]
        assert contract.dn_max >= max(array["max"] for array in pair["arrays"].values()), file.name
        checked += 1
    assert checked > 50


@pytest.mark.parametrize("spelling", ["worldview-3", "WV03", "wv3", "WorldView 3", "WORLDVIEW_3"])
def test_lookup_forgives_spelling(spelling: str) -> None:
    assert get_contract(spelling).name == "worldview-3"


@pytest.mark.parametrize("satellite", ["SV1-01", "SuperView-1 02"])
def test_lookup_knows_each_satellite_of_superview(satellite: str) -> None:
    assert get_contract(satellite).name == "superview-1"


def test_lookup_names_what_is_known() -> None:
    with pytest.raises(ContractError, match=r"no sensor contract 'sputnik'.*worldview-3"):
        get_contract("sputnik")


def test_bands_go_by_many_names() -> None:
    contract = get_contract("worldview-2")
    assert [band.name for band in contract.subset(["NIR", "BAND_R", "red-edge", "nir09"])] == [
        "nir1",
        "red",
        "rededge",
        "nir2",
    ]
    assert contract.find_band("swir16") is None
    with pytest.raises(ContractError, match="worldview-2 has no band 'swir16'"):
        contract.subset(["swir16"])


def test_deliveries_by_count() -> None:
    contract = get_contract("worldview-2")
    four = contract.delivery_of(4)
    assert four is not None
    assert four.bands == ("blue", "green", "red", "nir1")
    assert contract.delivery_of(5) is None
    assert get_contract("spot-6").delivery_of(4).bands == ("red", "green", "blue", "nir")  # type: ignore[union-attr]


def test_users_add_and_replace_contracts(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    contracts = load_contracts(tmp_path)
    assert contracts["my-sat"].ratio == 3
    assert get_contract("mysat1", tmp_path).name == "my-sat"
    assert "worldview-3" in contracts
    assert "my-sat" not in load_contracts()


def test_own_contract_takes_precedence_for_a_platform(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINIMAL.replace("My Sat 1", "SPOT-6"))
    assert get_contract("spot 6", tmp_path).name == "my-sat"


def test_digest_follows_content_not_layout() -> None:
    contract = parse_contract(MINIMAL, "a.yaml")
    reordered = parse_contract("# a comment\nratio: 3\n" + MINIMAL.replace("ratio: 3\n", ""), "b.yaml")
    assert contract.digest == reordered.digest
    assert len(contract.digest) == 64
    assert contract.digest != parse_contract(MINIMAL.replace("0.2", "0.21"), "c.yaml").digest


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (MINIMAL.replace("ratio: 3", "ratio: 1"), "x.yaml: ratio: .*greater than or equal to 2"),
        (MINIMAL.replace("ratio: 3", ""), "ratio: Field required"),
        (MINIMAL + "colour: blue\n", "colour: Extra inputs"),
        (MINIMAL.replace("name: green", "name: red"), "bands red and red both answer to 'red'"),
        (MINIMAL.replace("name: green,", "name: green, common_name: RED,"), "both answer to 'red'"),
        (MINIMAL + "deliveries: [{name: d, bands: [red, pink]}]\n", "unknown bands .'pink'"),
        (MINIMAL + "deliveries: [{name: d, bands: [red, red]}]\n", "repeats a band"),
        ("- a\n- b\n", "found list, expected a mapping"),
        ("a: [", "not valid YAML"),
        (MINIMAL + "ratio: 4\n", "(?s)x.yaml: not valid YAML .*'ratio' is given twice; keep one of them.*line"),
        (MINIMAL + "quality: &q {}\njoin: {max_seconds: 1, <<: *q, max_seconds: 2}\n", "'max_seconds' is given twice"),
        (
            MINIMAL.replace("dn_max: 4095", "dn_max: 02047"),
            "(?s)YAML .*found 02047; expected a decimal.*line",
        ),
        (MINIMAL.replace("nodata: null", "nodata: 1:30"), "found 1:30; expected a decimal number"),
        (MINIMAL + "010: 1\n", "found 010; expected a decimal number"),
        (MINIMAL.replace("measured", "2025-13-01"), "x.yaml: not valid YAML .*month must be in 1..12"),
    ],
)
def test_faulty_contracts_are_refused(wrong: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        parse_contract(wrong, "x.yaml")


def test_parts_of_a_contract_may_be_repeated_by_name_and_changed() -> None:
    red, green = "{name: red, mtf: 0.3, in_pan: true}", "{name: green, mtf: 0.3, in_pan: true}"
    merged = MINIMAL.replace(red, f"&red {red}").replace(green, "{<<: *red, name: green}")
    assert parse_contract(merged, "x.yaml") == parse_contract(MINIMAL, "x.yaml")
    twice = merged.replace("{<<: *red, name: green}", "{<<: {mtf: 0.3}, <<: {in_pan: true}, name: green}")
    assert parse_contract(twice, "x.yaml") == parse_contract(MINIMAL, "x.yaml")


@pytest.mark.parametrize("content", ["name: Pl\xe9iades".encode("latin-1"), None])
def test_a_contract_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content) if content else file.mkdir()
    with pytest.raises(ContractError, match=r"mine\.yaml: cannot be read .*expected a text file in UTF-8"):
        load_contracts(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    user = os.geteuid()
    tmp_path.chmod(0o300)
    if user == 0:
        os.seteuid(65534)  # root may list everything
    try:
        with pytest.raises(ContractError, match=r"cannot be listed .*expected a folder of sensor contracts"):
            load_contracts(tmp_path)
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


def test_no_file_of_a_folder_is_passed_over_by_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(MINIMAL)
    with pytest.raises(ContractError, match=r"holds no \*\.yaml file"):
        load_contracts(tmp_path)
    (tmp_path / "mine.txt").rename(tmp_path / "MINE.YAML")
    assert "my-sat" in load_contracts(tmp_path)


def test_two_contracts_of_one_name_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(MINIMAL)
    with pytest.raises(ContractError, match=r"b\.yaml: a second contract named 'my-sat'"):
        load_contracts(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="nowhere: not a folder"):
        load_contracts(tmp_path / "nowhere")


def test_generic_contract_for_any_bands() -> None:
    contract = generic_contract(5, 3, 4095)
    assert (len(contract.bands), contract.ratio, contract.dn_max) == (5, 3, 4095)
    assert contract.bands[0].mtf == pytest.approx(0.30)
    assert contract.platforms == ()
    with pytest.raises(ContractError, match="ratio 1"):
        generic_contract(4, 1, 255)
