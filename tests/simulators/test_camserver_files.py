"""The files of the simulated camserver: names, headers, pixels, pace; read by programs that know nothing of it."""

import base64
import hashlib
import re
import time
from pathlib import Path

import fabio
import numpy as np
import pytest
from fabio.compression import compByteOffset, decByteOffset
from hypothesis import given, settings
from hypothesis import strategies as st

from tangods_detector.simulators.camserver import byteoffset, imagefile, models
from tangods_receiver import cbf
from tests.simulators.camserver import Watch, ask, images, running

DATA = Path(__file__).parents[3] / "shared" / "data"
RECORDED = sorted(DATA.glob("pilatus3_6m_*.cbf.bz2"))
SHAPES = {
    "100K": (195, 487),
    "200K": (407, 487),
    "300K": (619, 487),
    "300K-W": (195, 1475),
    "1M": (1043, 981),
    "2M": (1679, 1475),
    "6M": (2527, 2463),
}


@pytest.fixture(scope="module")
def shared():
    with running() as both:
        yield both


def header(path):
    """Lines of the text before the pixels."""
    return Path(path).read_bytes().split(cbf.START)[0].decode("latin-1").split("\r\n")


def checked(path, image):
    """The file holds this image: for our reader, for fabio, and by its own checksum."""
    data = Path(path).read_bytes()
    assert np.array_equal(cbf.decode(data, image.shape), image)
    with fabio.open(str(path)) as file:
        assert np.array_equal(file.data, image)
    text, binary = data.split(cbf.START, 1)
    size = int(re.search(rb"X-Binary-Size: (\d+)\r\n", text)[1])
    md5 = re.search(rb"Content-MD5: (\S+)\r\n", text)[1]
    assert base64.b64encode(hashlib.md5(binary[:size]).digest()) == md5
    assert binary[size:] == bytes(4095) + b"\r\n--CIF-BINARY-FORMAT-SECTION----\r\n;\r\n\r\n"


def pixel_md5(image):
    return hashlib.md5(np.ascontiguousarray(image, "<i4").tobytes()).hexdigest()


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", SHAPES)
def test_each_size(model):
    with running(model) as (cam, client):
        client.set(gapfill=-1)
        last = client.series(n=2, period=0.02)
        image = cam.image(1)
        assert image.shape == SHAPES[model] and image.dtype == np.int32
        checked(last, image)
        gaps, dead = models.gaps(cam.unit.model), models.dead(cam.unit.model)
        assert np.all(image[gaps] == -1) and np.all(image[dead] == -2)
        assert image[~(gaps | dead)].min() == 0 and image.max() >= imagefile.CUTOFF  # saturated
        columns, rows = cam.unit.model.modules
        assert gaps.sum() == image.size - columns * rows * 487 * 195 and dead.sum() > 10 * columns * rows
        assert image[-1, -1] == 1  # its number


def test_every_image_is_what_was_drawn(shared):
    cam, client = shared
    last = client.series("each.cbf", n=10, period=0.004)
    names = [f"each_{k:05d}.cbf" for k in range(10)]
    assert [name for name, _ in cam.written] == names and last.name == names[-1]
    for k, (name, md5) in enumerate(cam.written):
        checked(last.parent / name, cam.image(k))
        assert md5 == pixel_md5(cam.image(k))
    assert len({md5 for _, md5 in cam.written}) == 10


@pytest.mark.parametrize("gapfill", [0, -1, -2])
def test_the_value_of_gaps(gapfill):
    with running("200K") as (cam, client):
        client.set(gapfill=gapfill)
        client.series()
        assert set(np.unique(cam.image(0)[195:212])) == {gapfill}
        client.set(setenergy=12000)  # resets it
        client.series()
        assert set(np.unique(cam.image(0)[195:212])) == {0}


def test_without_the_map_bad_pixels_count(shared):
    cam, client = shared
    dead = models.dead(cam.unit.model)
    assert f"# N_excluded_pixels = {dead.sum()}" in header(client.series("a.cbf"))
    assert np.all(cam.image(0)[dead] == -2)
    client.set(ldbadpixmap="none")
    lines = header(client.series("a.cbf"))
    assert "# N_excluded_pixels = 0" in lines and "# Excluded_pixels: (nil)" in lines
    assert cam.image(0).min() == 0
    (Path(cam.folder) / "mine.tif").touch()
    client.set(ldbadpixmap="mine.tif")
    assert "# Excluded_pixels: mine.tif" in header(client.series("a.cbf"))


def test_a_region():
    with running("1M") as (cam, client):
        client.set(gapfill=-1, setroi="R3")
        whole = cam.unit._pictures.get()[0].array
        checked(client.series(n=1), image := cam.image(0))
        assert image.shape == SHAPES["300K"]
        assert np.array_equal(image[:-1], whole[212 : 212 + 619, 494:][:-1])


def test_sums(shared):
    cam, client = shared
    client.series("one.cbf", n=1)
    one = cam.image(0)
    client.set(nexpframe=3)
    begun = time.monotonic()
    client.series("sum.cbf", n=2, exptime=0.01, period=0.02)
    assert 0.09 < time.monotonic() - begun < 1
    three = cam.image(0)
    client.set(nexpframe=1)
    good = one >= 0
    assert np.array_equal(three[~good], one[~good]) and np.array_equal(three[good], one[good] * 3)


def test_recorded_images_are_shown_as_they_are():
    """A file of a real detector, written again: all lines of the header in their order, all bytes of the pixels."""
    if not RECORDED:
        pytest.skip("no recorded images beside this checkout")
    import bz2

    real = bz2.open(RECORDED[0]).read()
    with running("6M", images=str(RECORDED[0]), stamp=False) as (cam, client):
        client.set(setenergy=12800, headerstring="Mini kappa not in use")
        client.say("mxsettings Wavelength 0.96859 Energy_range 0,0 Detector_distance 0.351 Detector_Voffset 0 Beam_xy "
                   "1261.61,1306.96 Flux 1.396021 Filter_transmission 0.2547 Start_angle 89.9997 Angle_increment 0 "
                   "Detector_2theta 0 Polarization 0.99 Alpha 0 Kappa 0 Phi 0 Phi_increment 0 Omega 89.9997 "
                   "Omega_increment 0 Chi 0 Chi_increment 0 Oscillation_axis X.CW +SLOW N_oscillations 1")  # fmt: skip
        ours = client.series("thau_3_2_0001.cbf", n=1, exptime=0.019, period=0.02).read_bytes()
        text, binary = ours.split(cbf.START, 1)
        real_text, real_binary = real.split(cbf.START, 1)
        assert binary == real_binary
        assert cam.written == [("thau_3_2_0001.cbf", pixel_md5(cam.image(0)))]
        own = (b"# Detector:", b"# 20", b"# Count_cutoff", b"# N_excluded", b"# Flat_field", b"# Trim_file",
               b"# Image_path")  # fmt: skip
        same = [line for line in text.split(b"\r\n") if not line.startswith(own)]
        assert same == [line for line in real_text.split(b"\r\n") if not line.startswith(own)]
        kinds = [[line[: len(line) and line.find(b" ", 2)] for line in t.split(b"\r\n")] for t in (text, real_text)]
        assert len(kinds[0]) == len(kinds[1])


# --- byte offset -----------------------------------------------------------------------------------------------------

EDGES = [0, 127, 128, -127, -128, 32767, 32768, -32767, -32768, 2**31 - 1, -(2**31), -(2**31) + 1]


@given(st.lists(st.sampled_from(EDGES) | st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=60))
def test_the_code_is_that_of_fabio(values):
    pixels = np.array(values, np.int32)
    assert byteoffset.encode(pixels) == bytes(compByteOffset(pixels.astype(np.int64)))


@pytest.mark.parametrize(
    ("difference", "code"),
    [
        (127, "7f"),
        (-127, "81"),
        (128, "80 8000"),
        (-128, "80 80ff"),
        (-32767, "80 0180"),
        (-32768, "80 0080 0080ffff"),
        (2**31 - 1, "80 0080 ffffff7f"),
        (-(2**31), "80 0080 00000080 00000080ffffffff"),
        (2**31, "80 0080 00000080 0000008000000000"),
    ],
)
def test_escapes(difference, code):
    assert byteoffset.one(difference) == bytes.fromhex(code)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(EDGES) | st.integers(-100, 100), min_size=80, max_size=200))
def test_damaged_pixels_are_as_many_as_they_were(values):
    code = byteoffset.encode(np.array([*values, *range(1, 40)] * 2, np.int32))
    head, changed, rest = imagefile.damaged([b"head", memoryview(code), b"rest"])
    assert (head, rest) == (b"head", b"rest") and len(changed) == len(code)
    assert sum(a != b for a, b in zip(changed, code, strict=True)) == 1
    assert len(decByteOffset(changed)) == len(decByteOffset(code))


# --- headers ---------------------------------------------------------------------------------------------------------


def test_the_header(shared):
    cam, client = shared
    client.set(ldbadpixmap="0", setenergy=12688)
    client.set(mxsettings="Start_angle 10 Angle_increment 0.1 Wavelength 0.97715 Beam_xy (243.5, 97.5) Phi 3")
    client.set(setretriggermode=1, headerstring="x" * 80)
    last = client.series("h.cbf", n=3, exptime=0.099, period=0.1)
    lines = header(last)
    assert lines[:7] == [
        "###CBF: VERSION 1.5, CBFlib v0.7.8 - PILATUS detectors", "", "data_h_00002", "",
        '_array_data.header_convention "PILATUS_1.2"', "_array_data.header_contents", ";",
    ]  # fmt: skip
    end = lines.index(";", 7)
    assert re.fullmatch(r"# \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}", lines[8])
    assert [lines[7], *lines[9:end]] == [
        "# Detector: PILATUS3 100K, S/N 1-0127",
        "# Pixel_size 172e-6 m x 172e-6 m",
        "# Silicon sensor, thickness 0.000450 m",
        "# Exposure_time 0.0990000 s",
        "# Exposure_period 0.1000000 s",
        "# Tau = 0 s",
        "# Count_cutoff 1009797 counts",
        "# Threshold_setting: 6344 eV",
        "# Gain_setting: autog (vrf = 1.000)",
        "# N_excluded_pixels = 0",
        "# Excluded_pixels: (nil)",
        "# Flat_field: FF_p1-0127_E12688_T6344_vrf_m0p100.tif",
        "# Trim_file: p1-0127_E12688_T6344.bin",
        f"# Image_path: {cam.folder}/",
        f"# Comment: {'x' * 68}",
        "# Ratecorr_lut_directory: ContinuousStandard_v1.1",
        "# Retrigger_mode: 1",
        "# Wavelength 0.97715 A",
        "# Beam_xy (243.50, 97.50) pixels",
        "# Start_angle 10.2000 deg.",
        "# Angle_increment 0.1000 deg.",
        "# Phi 3.0000 deg.",
    ]
    dates = [header(last.parent / f"h_{k:05d}.cbf")[8][2:] for k in range(3)]
    seconds = [float(date[-6:]) for date in dates]
    assert all(abs((b - a) % 60 - 0.1) < 0.002 for a, b in zip(seconds, seconds[1:], strict=False))
    client.say("resetcam")


@pytest.mark.parametrize("suffix", ["tif", "edf", "img"])
def test_other_formats(shared, suffix):
    cam, client = shared
    last = client.series(f"other.{suffix}", n=2)
    data = last.read_bytes()
    offset = {"tif": 4096, "edf": 1024, "img": 0}[suffix]
    image = cam.image(1)
    assert np.array_equal(np.frombuffer(data, "<i4", offset=offset).reshape(image.shape), image)
    if suffix != "img":
        with fabio.open(str(last)) as file:
            assert np.array_equal(file.data, image)
    if suffix == "tif":
        assert b"# Exposure_time 0.0020000 s\r\n" in data[:4096]
        from PIL import Image

        with Image.open(last) as tiff:
            assert tiff.tag_v2[270].startswith("# Detector: PILATUS3 100K, S/N 1-0127")
    assert cam.written[1][1] == pixel_md5(image)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "n", "names"),
    [
        ("test.cbf", 1, ["test.cbf"]),
        ("test_010.cbf", 1, ["test_010.cbf"]),
        ("test.cbf", 2, ["test_00000.cbf", "test_00001.cbf"]),
        ("test_.cbf", 2, ["test_00000.cbf", "test_00001.cbf"]),
        ("test_010.cbf", 3, ["test_010.cbf", "test_011.cbf", "test_012.cbf"]),
        ("test_999.cbf", 2, ["test_999.cbf", "test_1000.cbf"]),
        ("test6_2_0035.tif", 2, ["test6_2_0035.tif", "test6_2_0036.tif"]),
        ("test_01.cbf", 2, ["test_01_00000.cbf", "test_01_00001.cbf"]),
        ("test010.cbf", 2, ["test010_00000.cbf", "test010_00001.cbf"]),
    ],
)
def test_numbers_in_names(typed, n, names):
    assert [imagefile.name(typed, n, k) for k in range(n)] == names


def test_a_second_series_of_the_same_name_overwrites_and_removes_nothing(shared):
    cam, client = shared
    client.set(imgpath="again")
    client.series("x_000.cbf", n=4)
    former = Path(cam.folder, "again/x_003.cbf").stat().st_ino
    last = client.series("x_000.cbf", n=2)
    assert images(cam, "again") == [f"x_{k:03d}.cbf" for k in range(4)] and last.name == "x_001.cbf"
    assert Path(cam.folder, "again/x_003.cbf").stat().st_ino == former
    checked(last, cam.image(1))


def test_files_arrive_by_a_rename_in_their_order(shared):
    cam, client = shared
    client.set(imgpath="watched")
    with Watch(Path(cam.folder, "watched")) as watch:
        client.series("w.cbf", n=20, period=0.004)
        events = list(watch.events())
    names = [f"w_{k:05d}.cbf" for k in range(20)]
    assert [name for kind, name in events if kind == "moved to"] == names
    assert [name for kind, name in events if kind == "created"] == [f".{name}.tmp" for name in names]


# --- pace ------------------------------------------------------------------------------------------------------------


def test_images_come_with_the_period(shared):
    cam, client = shared
    client.set(imgpath="pace", nimages=20, exptime=0.01, expperiod=0.02)
    begun = time.time()
    assert client.say("exposure a.cbf").startswith("15 OK")
    last = client.end()
    took = time.time() - begun
    assert 0.385 < took < 2  # 19 periods, one exposure, the read-out, arming
    times = [(last.parent / name).stat().st_mtime - begun for name in images(cam, "pace")]
    assert all(t > k * 0.02 + 0.0109 - 0.01 for k, t in enumerate(times))  # none before its time; coarse clocks


def test_edges_have_their_own_times_and_those_in_the_readout_are_lost(shared):
    cam, client = shared
    client.set(nimages=4, exptime=0.01, expperiod=0.02)
    assert client.say("extmtrigger e.cbf").startswith("15 OK")
    cam.edge(7, period=0.0105)  # every second one comes before the read-out of 0.95 ms is over
    assert client.end().name == "e_00003.cbf"
    assert cam.unit.shown.course.skipped == 3
    assert client.say("extenable g.cbf").startswith("15 OK")
    begun = time.monotonic()
    ask(cam, edge=4, width=0.05)
    client.end()
    assert 0.2 < time.monotonic() - begun < 2


def test_files_of_a_slow_network_come_after_the_seven():
    with running(delay=0.3) as (cam, client):
        last = client.series(n=3, period=0.004)
        assert not last.exists() and images(cam) == []
        time.sleep(0.5)
        assert images(cam) == [f"a_{k:05d}.cbf" for k in range(3)]
        checked(last, cam.image(2))


def test_a_2M_leaves_one_core_time_to_spare(record_property):
    """250 images/s are 4 ms each. Measured is the work, not the clock: others compute on this machine too."""
    with running("2M", limits=False) as (cam, client):
        client.set(gapfill=-1, imgpath="a")
        client.series(n=1, exptime=1e-5, period=1e-4)  # its pictures are encoded
        work, begun = time.process_time(), time.monotonic()
        last = client.series("b.cbf", n=100, exptime=1e-5, period=1e-4)
        work, took = time.process_time() - work, time.monotonic() - begun
        record_property("files_per_second", 100 / took)
        print(f"2M: {100 / took:.0f} files/s, {work * 10:.2f} ms of work each")
        assert work / 100 < 0.004
        assert len(images(cam, "a")) == 101 and len(cam.written) == 100
        checked(last, cam.image(99))
