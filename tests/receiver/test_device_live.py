"""The live view's Tango attributes, as their clients see them."""

import struct
import threading

import numpy as np
import pytest
import tango

from tangods_receiver.config import make
from tangods_receiver.device import StreamReceiver
from tangods_receiver.engine import Engine
from tests.receiver.streaming import SHAPE, Sender, image
from tests.tangocontext import started
from tests.waiting import wait_for

ROI_VALUES = ("RoiSum", "RoiMean", "RoiMax", "RoiCentreX", "RoiCentreY", "RoiPixels")


@pytest.fixture
def sender():
    with Sender() as sender:
        yield sender


@pytest.fixture
def properties(sender, tmp_path):
    return {"Root": str(tmp_path), "Endpoints": [sender.endpoint], "Http": "none", "InitialRois": ["a 0 0 2 1"]}


@pytest.fixture
def device(properties):
    with started(StreamReceiver, properties=properties) as proxy:
        yield proxy


def show(device, sender, number, pixels=None):
    sender.frame(number, pixels)
    wait_for(lambda: device.LastImageNumber == number)


def decoded(value):
    """As LImA's clients do it."""
    format, data = value
    assert format == "VIDEO_IMAGE"
    magic, version, mode, number, width, height, endian, size, _, _ = struct.unpack("!IHHqiiHHHH", data[:32])
    assert (magic, version, endian, size) == (0x5644454F, 1, 0, 32)
    dtype = {0: np.uint8, 1: np.uint16, 2: np.uint32, 3: np.uint64}[mode]
    return number, np.frombuffer(bytes(data[size:]), dtype).reshape(height, width)


# --- images ----------------------------------------------------------------------------------------------------------


def test_lima_viewers_get_the_image_in_its_own_type(device, sender):
    number, empty = decoded(device.video_last_image)
    assert (number, empty.size, device.video_last_image_counter) == (-1, 0, -1)
    sender.start("", 1)
    for number in (0, 5):
        pixels = image(number)
        pixels[0, 0] = 65535
        show(device, sender, number, pixels)
        found, shown = decoded(device.video_last_image)
        assert found == number == device.video_last_image_counter and shown.dtype == pixels.dtype
        np.testing.assert_array_equal(shown, pixels)
    sender.end()


def test_the_image_is_made_smaller(device, sender):
    pixels = np.arange(8 * 2050, dtype="uint32").reshape(8, 2050)
    sender.start("", 1)
    show(device, sender, 0, pixels)
    assert device.LiveDownsample == 1 and device.LastImage.shape == (8, 2050)
    device.LiveDownsample = 4
    np.testing.assert_array_equal(device.LastImage, pixels[3:8:4, 3:2048:4])
    np.testing.assert_array_equal(decoded(device.video_last_image)[1], pixels[3:8:4, 3:2048:4])
    device.LiveDownsample = 0
    assert device.LastImage.shape == (2, 683), "into 1024 x 1024"
    with pytest.raises(tango.DevFailed, match="range|limit|allowed"):
        device.LiveDownsample = -1
    sender.end()


# --- regions of interest ---------------------------------------------------------------------------------------------


def test_regions_of_the_newest_image_are_read(device, sender):
    """As an alignment scan does: an image came, its values are read, nothing is waited for."""
    assert list(device.RoiNames) == ["a"] and device.RoiFrameNumber == -1
    sender.start("", 7)
    for number in range(5):
        show(device, sender, number)
        values = {one.name: one.value for one in device.read_attributes([*ROI_VALUES, "RoiFrameNumber", "RoiSeries"])}
        assert (values["RoiFrameNumber"], values["RoiSeries"]) == (number, 7)
        first, second = (int(n) for n in image(number)[0, :2])
        assert [values[name][0] for name in ROI_VALUES] == pytest.approx(
            [first + second, (first + second) / 2, second, second / (first + second), 0, 2]
        )
    history = device.RoiHistory
    assert history.shape[1] == 9 and history[-1, :2].tolist() == [7, 4]
    assert history[:, 3].tolist() == [image(int(number))[0, :2].sum() for number in history[:, 1]]
    sender.end()


def test_regions_are_set_at_run_time(device, sender):
    assert list(device.Rois) == ["a 0 0 2 1"]
    sender.start("", 1)
    show(device, sender, 3)
    device.Rois = ["left 0 0 5 6", "outside 50 50 4 4"]
    assert list(device.Rois) == ["left 0 0 5 6", "outside 50 50 4 4"]
    assert list(device.RoiNames) == ["left", "outside"]
    assert list(device.RoiSum) == [image(3)[:, :5].sum(), 0] and list(device.RoiPixels) == [30, 0]
    assert np.isnan(device.RoiCentreX[1]) and np.isnan(device.RoiMax[1])
    assert device.RoiHistory.shape == (1, 15)
    with pytest.raises(tango.DevFailed) as failed:
        device.Rois = ["left 0 0 5"]
    assert failed.value.args[0].reason == "ConfigError" and "name x y width height" in failed.value.args[0].desc
    assert list(device.RoiNames) == ["left", "outside"]
    device.Rois = [""]
    assert len(device.RoiNames or ()) == 0 and len(device.RoiSum if device.RoiSum is not None else ()) == 0
    sender.end()


def test_regions_are_pushed_while_frames_come(device, sender):
    seen, lock = [], threading.Lock()

    def keep(event):
        if not event.err and event.attr_value.value is not None:
            with lock:
                seen.append(event.attr_value.value[0])

    one = device.subscribe_event("RoiSum", tango.EventType.CHANGE_EVENT, keep)
    try:
        sender.start("", 1)
        number = 0
        while len(set(seen)) < 4:
            assert number < 2000
            sender.frame(number)
            number += 1
            threading.Event().wait(0.01)
        assert set(seen) <= {0.0, *(float(image(k)[0, :2].sum()) for k in range(number))}
    finally:
        device.unsubscribe_event(one)
    wait_for(lambda: device.LiveFrameNumber == number - 1)
    assert 0 < device.LiveRate < 30 and device.nLiveDamaged == 0
    sender.end()


def test_the_regions_of_an_engine_elsewhere(sender, tmp_path):
    values = {"root": str(tmp_path), "endpoints": [sender.endpoint], "http": "127.0.0.1:0", "rois": ["a 1 1 2 2"]}
    with Engine(make(values | {"http_token_file": str(tmp_path / "token")})) as engine:
        properties = {"Address": f"http://127.0.0.1:{engine.http_port}", "TokenFile": str(tmp_path / "token")}
        with started(StreamReceiver, properties=properties) as device:
            wait_for(lambda: list(device.RoiNames or ()) == ["a"])
            device.Rois = ["b 0 0 10 6"]
            wait_for(lambda: list(device.RoiNames) == ["b"])
            sender.start("", 1)
            sender.frame(2)
            wait_for(lambda: device.RoiFrameNumber == 2)
            assert list(device.RoiSum) == [image(2).sum()] and list(device.RoiPixels) == [image(2).size]
            assert device.RoiHistory[-1, :2].tolist() == [1, 2]
            assert decoded(device.video_last_image)[1].shape == SHAPE
            with pytest.raises(tango.DevFailed, match="name x y width height"):
                device.Rois = ["b"]
            sender.end()
