"""Parameters of the simulated control unit: limits, types, what a write answers, what an arm makes final."""

import io

import numpy as np
import pytest
from PIL import Image

from tangods_detector.simulators.eiger import models, table, tiff
from tangods_detector.simulators.eiger.models import MODELS, model
from tangods_detector.simulators.eiger.parameters import Detector, Refused, Stream, darray, from_darray
from tangods_receiver.errors import ConfigError

OF_TIMES = [
    "bit_depth_image", "bit_depth_readout", "count_time", "countrate_correction_count_cutoff", "frame_count_time",
    "frame_time",
]  # fmt: skip
OF_ENERGY = [
    "element", "flatfield", "incident_energy", "photon_energy", "threshold/1/energy", "threshold/1/flatfield",
    "threshold/2/energy", "threshold/2/flatfield", "threshold_energy", "wavelength",
]  # fmt: skip
OF_THRESHOLD = ["flatfield", "threshold/1/energy", "threshold/1/flatfield", "threshold/2/flatfield", "threshold_energy"]


@pytest.fixture
def eiger2():
    return Detector(model("EIGER2 500K"))


@pytest.fixture
def eiger1():
    return Detector(model("EIGER 500K"), new=False)


def refused(detector, key, value):
    before = dict(detector.values)
    with pytest.raises(Refused) as caught:
        detector.write(key, value)
    assert detector.values == before
    return caught.value.status, caught.value.text


@pytest.mark.parametrize(
    ("key", "value", "answer"),
    [
        ("count_time", 0.25, OF_TIMES),
        ("frame_time", 0.75, OF_TIMES),
        ("photon_energy", 12000.0, OF_ENERGY),
        ("incident_energy", 12000, OF_ENERGY),
        ("element", "Cu", OF_ENERGY),
        ("wavelength", 1.0, OF_ENERGY),
        ("threshold_energy", 5000.0, OF_THRESHOLD),
        ("threshold/1/energy", 5000.0, OF_THRESHOLD),
        (
            "threshold/2/energy",
            9000.0,
            ["flatfield", "threshold/1/flatfield", "threshold/2/energy", "threshold/2/flatfield"],
        ),
        ("threshold/1/mode", "disabled", ["threshold/1/mode", "threshold/difference/mode"]),
        ("threshold/2/mode", "enabled", ["threshold/2/mode", "threshold/difference/mode"]),
        ("auto_summation", False, ["auto_summation", "frame_count_time"]),
        ("roi_mode", "lines", ["count_time", "frame_time", "roi_mode"]),
        ("nimages", 7, ["nimages"]),
        ("detector_translation", [0.0, 0, 1.5], ["detector_translation"]),
    ],
)
def test_a_write_answers_the_names_of_what_it_touches(eiger2, key, value, answer):
    assert eiger2.write(key, value) == answer
    assert eiger2.read(key)["value"] == value
    assert eiger2.write(key, value) == []  # nothing changed


def test_the_odd_name_of_the_difference_mode(eiger2):
    assert refused(eiger2, "threshold/difference/mode", "enabled")[0] == 400  # one threshold only
    eiger2.write("threshold/2/mode", "enabled")
    assert eiger2.write("threshold/difference/mode", "enabled") == ["difference_mode"]
    assert "difference_mode" not in eiger2.keys
    eiger2.write("threshold/2/mode", "disabled")
    assert eiger2.read("threshold/difference/mode")["value"] == "disabled"


def test_an_old_detector_names_only_what_it_has(eiger1):
    assert eiger1.write("photon_energy", 9000.0) == [
        "element",
        "flatfield",
        "photon_energy",
        "threshold_energy",
        "wavelength",
    ]
    assert eiger1.write("threshold_energy", 4600.0) == ["flatfield", "threshold_energy"]
    assert not any(key.startswith(("threshold/", "nexpi", "extg", "fast_arm", "counting")) for key in eiger1.keys)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count_time", 0.0),
        ("count_time", 3601),
        ("count_time", "1"),
        ("count_time", True),
        ("count_time", float("nan")),
        ("nimages", 0),
        ("nimages", 2_000_000_001),
        ("nimages", 1.0),
        ("nimages", -1),
        ("compression", "gzip"),
        ("trigger_mode", "INTS"),
        ("auto_summation", 1),
        ("auto_summation", "true"),
        ("sample_name", 3),
        ("detector_translation", [1, "2", 3]),
        ("photon_energy", 100.0),
        ("bit_depth_image", 8),
        ("x_pixels_in_detector", 4),
        ("element", "Xx"),
        ("pixel_mask", [[1, 2]]),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(eiger2, key, value):
    status, text = refused(eiger2, key, value)
    assert status == 400 and len(text) > 10


def test_an_unknown_key_is_a_404(eiger2):
    assert refused(eiger2, "no/such", 1)[0] == 404


def test_a_heavy_element_is_out_of_range_of_light_sensors(eiger2):
    assert refused(Detector(model("EIGER2 500K", "CdTe")), "element", "Fe")[0] == 400
    eiger2.write("element", "Fe")
    assert eiger2.values["photon_energy"] == 6403.8 and eiger2.values["element"] == "Fe"
    eiger2.write("photon_energy", 6500.0)
    assert eiger2.values["element"] == ""


def test_an_energy_takes_its_threshold_with_it(eiger2):
    eiger2.write("photon_energy", 12398.4198)
    assert eiger2.values["threshold_energy"] == eiger2.values["threshold/1/energy"] == pytest.approx(6199.2099)
    assert eiger2.values["wavelength"] == pytest.approx(1.0)
    eiger2.write("wavelength", 1.5)
    assert eiger2.values["incident_energy"] == eiger2.values["photon_energy"] == pytest.approx(8265.613)


def test_frame_time_follows_count_time_up_and_is_clamped_at_arm(eiger2):
    eiger2.write("count_time", 2.0)
    assert eiger2.values["frame_time"] == pytest.approx(2.0 + 1e-7)
    eiger2.write("frame_time", 1.0)  # accepted now ...
    assert eiger2.read("frame_time")["value"] == 1.0
    assert eiger2.arm().values["frame_time"] == eiger2.values["frame_time"] == pytest.approx(2.0 + 1e-7)  # ... not here


@pytest.mark.parametrize(("name", "shortest"), [("EIGER 500K", 1.1011e-4), ("EIGER2 4M", 1 / 750)])
def test_frame_time_has_the_limit_of_its_model(name, shortest):
    d = Detector(model(name))
    assert d.read("frame_time")["min"] == shortest
    assert refused(d, "frame_time", shortest * 0.99)[0] == 400


def test_a_region_changes_the_shortest_frame_time_and_the_shape():
    d = Detector(model("EIGER2 9M"))
    d.write("count_time", 1e-3)
    d.write("roi_mode", "4M")
    assert d.read("frame_time")["min"] == 1 / 750
    d.write("frame_time", 1 / 750)
    assert d.arm().shape == (2162, 2068)
    d.write("roi_mode", "disabled")
    assert d.values["frame_time"] == 1 / 238
    assert d.arm().shape == (3262, 3108)
    d.write("roi_mode", "merge2x2")
    assert d.arm().shape == (1631, 1554)
    d.write("roi_mode", "lines")
    d.write("roi_y_size", 64)
    setup = d.arm()
    assert setup.shape == setup.masks[0].shape == setup.flatfields[0].shape == (64, 3108)


def test_a_small_detector_has_no_regions(eiger1):
    assert eiger1.read("roi_mode")["value"] == ""
    assert Detector(model("EIGER 16M")).read("roi_mode")["allowed_values"] == ["disabled", "4M"]


@pytest.mark.parametrize(
    ("summed", "frame_time", "bits"), [(True, 0.01, 32), (True, 0.0099, 16), (False, 1.0, 16), (True, 2, 32)]
)
def test_the_detector_chooses_the_type_of_its_images(eiger2, summed, frame_time, bits):
    eiger2.write("auto_summation", summed)
    eiger2.write("count_time", 1e-3)
    eiger2.write("frame_time", frame_time)
    assert eiger2.values["bit_depth_image"] == bits
    assert eiger2.arm().dtype == f"uint{bits}"
    assert eiger2.values["countrate_correction_count_cutoff"] < 2**bits


def test_eight_bits_where_lines_are_read_so(eiger2):
    for key, value in (("auto_summation", False), ("roi_mode", "lines"), ("roi_bit_depth", 8)):
        eiger2.write(key, value)
    assert eiger2.arm().dtype == "uint8"


def test_modes_with_one_image_need_it_first(eiger2):
    eiger2.write("nimages", 5)
    assert "nimages" in refused(eiger2, "trigger_mode", "inte")[1]
    assert refused(eiger2, "trigger_mode", "exte")[0] == 400
    eiger2.write("nimages", 1)
    eiger2.write("trigger_mode", "exte")
    assert refused(eiger2, "nimages", 5)[0] == 400  # and out of it the mode goes first
    eiger2.write("trigger_mode", "exts")
    eiger2.write("nimages", 5)


def test_trigger_modes_by_family(eiger1, eiger2):
    assert eiger1.read("trigger_mode")["allowed_values"] == ["ints", "inte", "exts", "exte"]
    assert eiger2.read("trigger_mode")["allowed_values"][4:] == ["eies", "extg"]


def test_extg_needs_plain_counting(eiger2):
    eiger2.write("trigger_mode", "extg")
    with pytest.raises(Refused, match="countrate_correction_applied"):
        eiger2.arm()
    eiger2.write("countrate_correction_applied", False)
    assert eiger2.arm().values["trigger_mode"] == "extg"


def test_no_threshold_no_image(eiger2):
    eiger2.write("threshold/1/mode", "disabled")
    with pytest.raises(Refused, match="threshold"):
        eiger2.arm()


def test_channels(eiger2):
    assert eiger2.arm().channels == ("threshold_1",)
    eiger2.write("threshold/2/mode", "enabled")
    eiger2.write("threshold/difference/mode", "enabled")
    assert eiger2.arm().channels == ("threshold_1", "threshold_2", "difference")
    assert len(eiger2.arm().masks) == 2


def test_booleans_of_the_old_version_are_numbers(eiger1):
    assert eiger1.read("auto_summation") == {"access_mode": "rw", "value": 1, "value_type": "bool"}
    assert eiger1.write("auto_summation", 0) == ["auto_summation", "frame_count_time"]
    assert eiger1.values["auto_summation"] is False
    assert eiger1.write("auto_summation", True) and refused(eiger1, "auto_summation", 2)[0] == 400


def test_versions_differ_in_keys():
    old, new = table.module_config("stream", False), table.module_config("stream", True)
    assert set(new) - set(old) == {"format"}
    assert "status_update" in table.detector_commands(model("EIGER 1M"), False)
    assert "status_update" not in table.detector_commands(model("EIGER 1M"), True)
    assert "builder/dcu_buffer_free" in table.detector_status(model("EIGER 1M"), False)
    assert "hv_reset" in table.detector_commands(model("EIGER2 1M", "CdTe"), True)
    assert "hv_reset" not in table.detector_commands(model("EIGER2 1M"), True)


SPEC_1_8 = """auto_summation beam_center_x beam_center_y bit_depth_image bit_depth_readout chi_increment chi_start
compression count_time counting_mode countrate_correction_applied countrate_correction_count_cutoff
data_collection_date description detector_distance detector_number detector_readout_time detector_translation
eiger_fw_version element extg_mode fast_arm flatfield flatfield_correction_applied frame_count_time frame_time
incident_energy incident_particle_type instrument_name kappa_increment kappa_start mask_to_zero nexpi nimages ntrigger
ntriggers_skipped number_of_excluded_pixels omega_increment omega_start phi_increment phi_start photon_energy pixel_mask
pixel_mask_applied roi_mode sample_name sensor_material sensor_thickness software_version source_name
threshold/1/energy threshold/1/flatfield threshold/1/mode threshold/1/number_of_excluded_pixels threshold/1/pixel_mask
threshold/2/energy threshold/2/flatfield threshold/2/mode threshold/2/number_of_excluded_pixels threshold/2/pixel_mask
threshold/difference/lower_threshold threshold/difference/mode threshold/difference/upper_threshold threshold_energy
total_flux trigger_mode trigger_start_delay two_theta_increment two_theta_start virtual_pixel_correction_applied
x_pixel_size x_pixels_in_detector y_pixel_size y_pixels_in_detector"""


def test_the_listed_keys_are_those_of_the_vendor(eiger2):
    assert set(SPEC_1_8.split()) == set(eiger2.listed()) - {"roi_bit_depth", "roi_y_size"}
    assert "wavelength" in eiger2.keys and "wavelength" not in eiger2.listed()


def test_every_key_reads_and_its_default_is_within_its_limits():
    for name in MODELS:
        for new in (False, True):
            if name.endswith(("4M", "9M", "16M")) or (not new and "2" in name.split()[0]):
                continue
            d = Detector(model(name), new)
            for key in d.keys:
                told = d.read(key)
                assert told["value_type"] and told["access_mode"] in ("r", "rw"), key
                if "min" in told:
                    assert told["min"] <= told["value"] <= told["max"], (name, key)
                if "allowed_values" in told:
                    assert told["value"] in told["allowed_values"], (name, key)


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_arrays_go_through_json_and_tiff(eiger2):
    mask = eiger2.array("pixel_mask")
    told = eiger2.read("pixel_mask")
    assert told["value_type"] == "uint[][]" and told["value"]["shape"] == [512, 1028] and told["value"]["type"] == "<u4"
    assert np.array_equal(from_darray(told["value"]), mask)
    assert np.array_equal(tiff.decode(eiger2.as_tiff("pixel_mask")), mask)
    assert eiger2.read("flatfield")["value"]["type"] == "<f4"


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<f4"])
def test_tiff_is_what_others_read(dtype):
    image = np.arange(35, dtype=dtype).reshape(5, 7)
    data = tiff.encode(image)
    assert np.array_equal(tiff.decode(data), image) and tiff.decode(data).dtype == image.dtype
    with Image.open(io.BytesIO(data)) as seen:
        assert np.array_equal(np.asarray(seen), image)


def test_a_tiff_of_others_is_read():
    image = np.arange(35, dtype="<f4").reshape(5, 7)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "TIFF")
    assert np.array_equal(tiff.decode(file.getvalue()), image)
    for bad in (b"", b"II*\0", b"MM\0*" + bytes(20), file.getvalue()[:60]):
        with pytest.raises(ValueError):
            tiff.decode(bad)


def test_a_mask_is_permanent_after_the_next_arm(eiger2):
    mask = eiger2.array("pixel_mask").copy()
    mask[100, 100:110] = 2
    assert eiger2.write("pixel_mask", darray(mask)) == ["pixel_mask", "threshold/1/pixel_mask"]
    excluded = eiger2.values["number_of_excluded_pixels"]
    assert excluded == np.count_nonzero(mask)
    eiger2.reset()
    assert eiger2.values["number_of_excluded_pixels"] < excluded  # lost: no arm
    eiger2.write("threshold/1/pixel_mask", tiff.encode(mask))
    setup = eiger2.arm()
    eiger2.reset()
    assert np.array_equal(eiger2.array("pixel_mask"), mask) and np.array_equal(setup.masks[0], mask)


@pytest.mark.parametrize(
    "change", [{"shape": [512, 1027]}, {"type": "<u2"}, {"filters": []}, {"data": "?"}, {"type": "x"}]
)
def test_a_wrong_array_is_refused(eiger2, change):
    told = {**darray(eiger2.array("pixel_mask")), **change}
    assert refused(eiger2, "pixel_mask", told)[0] == 400


def test_a_mask_of_the_wrong_type_is_refused(eiger2):
    assert "type" in refused(eiger2, "pixel_mask", darray(np.zeros((512, 1028), "<f4")))[1]
    assert "shape" in refused(eiger2, "flatfield", darray(np.zeros((4, 4), "<f4")))[1]
    assert eiger2.write("flatfield", darray(np.ones((512, 1028), "<f4"))) == ["flatfield", "threshold/1/flatfield"]


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "gap_rows"),
    [("EIGER 1M", (1065, 1030), range(514, 551)), ("EIGER2 1M", (1062, 1028), range(512, 550))],
)
def test_gaps(name, shape, gap_rows):
    gaps = models.gaps(model(name))
    assert gaps.shape == shape
    assert [*np.flatnonzero(gaps.all(axis=1))] == [*gap_rows]


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith("EIGER")])
def test_modules_fill_every_detector(name):
    m = model(name)
    columns, rows = ((m.width + m.gap[0]) / (m.module[0] + m.gap[0]), (m.height + m.gap[1]) / (m.module[1] + m.gap[1]))
    assert columns == int(columns) and rows == int(rows)


def test_a_model_that_is_not():
    with pytest.raises(ConfigError, match="EIGER2 1M"):
        model("EIGER3 1M")


def test_appendices_are_texts_in_the_old_stream_and_anything_in_the_new_one():
    stream = Stream(table.module_config("stream", True))
    with pytest.raises(Refused):
        stream.write("header_appendix", {"a": 1})
    stream.write("format", "cbor")
    assert stream.write("header_appendix", {"a": 1}) == ["header_appendix"]
