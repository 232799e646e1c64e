"""Both streams of the simulated control unit: read by our receiver's protocols, by other people's decoders, compared
with messages that independent generators write, and with a recording of a real detector where it is there."""

import hashlib
import json
import threading
import time
from pathlib import Path

import cbor2
import numpy as np
import pytest
from dectris.compression import decompress

from tangods_detector.simulators.eiger.images import synthetic
from tangods_detector.simulators.eiger.models import MODELS, gaps, model
from tangods_receiver import codecs
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, dectris1, dectris2, recording
from tests.receiver import dectris, dectris2_messages
from tests.simulators.eiger import SMALL, running

RECORDING = Path(__file__).parents[3] / "shared/data/eiger1m_stream1.bin.gz"
SHAPE = (512, 1028)
TYPES = {64: "u1", 69: "<u2", 70: "<u4", 85: "<f4"}


# --- decoders that are not ours --------------------------------------------------------------------------------------


def end1(parts):
    return json.loads(parts[0])["htype"] == "dseries_end-1.0"


def end2(parts):
    return cbor(parts)["type"] == "end"


def cbor(parts):
    (message,) = parts
    assert message.startswith(b"\xd9\xd9\xf7")
    return cbor2.loads(message, tag_hook=lambda *found: next(f for f in found if isinstance(f, cbor2.CBORTag)))


def pixels1(parts):
    """Of an image of stream V1."""
    about = json.loads(parts[1])
    shape, dtype, encoding = about["shape"][::-1], np.dtype(about["type"]), about["encoding"]
    assert about["size"] == len(parts[2])
    if encoding == "<":
        return np.frombuffer(parts[2], dtype).reshape(shape)
    if encoding == "lz4<":
        plain = codecs.decompress("lz4", parts[2], tuple(shape), dtype.name)
        return plain
    assert encoding == f"bs{8 * dtype.itemsize}-lz4<"
    return np.frombuffer(decompress(parts[2], "bslz4", elem_size=dtype.itemsize), dtype).reshape(shape)


def array2(tag):
    """Of tag 40 in stream V2."""
    assert tag.tag == 40
    shape, typed = tag.value
    dtype, content = np.dtype(TYPES[typed.tag]), typed.value
    if isinstance(content, cbor2.CBORTag):
        assert content.tag == 56500
        algorithm, size, data = content.value
        assert size == dtype.itemsize
        content = decompress(data, algorithm, elem_size=size)
    return np.frombuffer(content, dtype).reshape(shape)


# --- a series --------------------------------------------------------------------------------------------------------


def series(client, n=3, time_each=0.004, **settings):
    """Taken in `ints`, disarmed."""
    client.set(nimages=n, count_time=time_each, frame_time=time_each, **settings)
    client.command("arm")
    client.command("trigger")
    client.command("disarm")


@pytest.fixture(scope="module")
def unit():
    with running(keep_sent=True) as found:
        yield found


@pytest.fixture(autouse=True)
def fresh(request):
    """What the module shares begins each test as after `initialize`, nothing waits in its sockets."""
    if "unit" in request.fixturenames:
        _, client, v1, v2 = request.getfixturevalue("unit")
        client.command("initialize")
        client.put("stream/command/initialize")
        v1.rest(0.01)
        v2.rest(0.01)


@pytest.mark.parametrize("detail", ["none", "basic", "all"])
@pytest.mark.parametrize("appendix", ["", '{"filename": "x.h5"}'])
def test_the_parts_of_stream_1_are_those_of_an_independent_generator(unit, detail, appendix):
    dcu, client, v1, v2 = unit
    client.stream("legacy", header_detail=detail, header_appendix=appendix, image_appendix="later" if appendix else "")
    series(client)
    start, *images, end = v1.until(end1)
    assert v2.rest(0.02) == []
    expected = dectris.start(1, SHAPE, detail, appendix)
    assert len(start) == len(expected)
    assert start[0] == expected[0]
    if detail != "none":
        assert list(json.loads(start[1])) == list(json.loads(expected[1]))
        told, wanted = json.loads(start[1]), json.loads(expected[1])
        # a whole number where others have a fraction is the same number
        assert {k: type(v) in (int, float) for k, v in told.items()} == {
            k: type(v) in (int, float) for k, v in wanted.items()
        }
    if detail == "all":
        assert [start[k] for k in (2, 4, 6)] == [expected[k] for k in (2, 4, 6)]
        assert [len(start[k]) for k in (3, 5, 7)] == [len(expected[k]) for k in (3, 5, 7)]
    assert not appendix or start[-1] == appendix.encode()
    assert len(images) == 3
    for n, parts in enumerate(images):
        wanted = dectris.image(1, n, pixels1(parts), appendix="later" if appendix else "")
        assert len(parts) == len(wanted) and parts[:3] == wanted[:3] and parts[4:] == wanted[4:]
        assert list(json.loads(parts[3])) == list(json.loads(wanted[3]))
        assert json.loads(parts[0])["hash"] == hashlib.md5(parts[1]).hexdigest()
    assert end == dectris.end(1)


@pytest.mark.parametrize("compression", ["bslz4", "lz4", "none"])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("format", ["legacy", "cbor"])
def test_every_type_and_compression_in_both_streams(format, bits, compression):
    with running(bit_depth=bits, keep_sent=True) as (dcu, client, v1, v2):
        client.stream(format)
        series(client, compression=compression)
        puller, decode, is_end = (v1, dectris1.decode, end1) if format == "legacy" else (v2, dectris2.decode, end2)
        messages = puller.until(is_end)
        start, *frames, end = map(decode, messages)
        assert isinstance(start, SeriesStart) and start.series == 1 and start.nframes == 3
        assert isinstance(end, SeriesEnd) and end.series == 1
        assert [f.number for f in frames] == [0, 1, 2]
        assert [bytes(f.data) for f in frames] == [blob for _, blob in dcu.sent]
        assert [n for n, _ in dcu.sent] == [0, 1, 2]
        largest = 2**bits - 1
        for f, message in zip(frames, messages[1:], strict=False):
            assert isinstance(f, Frame) and f.shape == SHAPE and f.dtype == f"uint{bits}"
            image = codecs.decompress(f.codec, f.data, f.shape, f.dtype)
            other = pixels1(message) if format == "legacy" else array2(cbor(message)["data"]["threshold_1"])
            assert np.array_equal(image, other)
            masked = image == largest
            assert masked[dcu.unit.detector.array("pixel_mask") != 0].all()
            wanted = np.minimum(synthetic(model(SMALL), f.number, 8), largest - 1)
            assert np.array_equal(image[~masked], wanted[~masked])
        assert len({bytes(f.data) for f in frames}) == 3


@pytest.mark.parametrize("detail", ["none", "basic", "all"])
def test_the_start_of_stream_2(unit, detail):
    dcu, client, _, v2 = unit
    client.stream("cbor", header_detail=detail, header_appendix={"filename": "x", "n": [1, None, -2.5, True]})
    series(client, threshold_2_mode="enabled")
    start, *_ = v2.until(end2)
    told = cbor(start)
    expected = dectris2_messages.start(1, SHAPE, "all" if detail == "all" else "basic", "x", channels=2)
    keys = [key for key in cbor(expected) if key != "user_data"]
    assert list(told) == [*keys, "user_data"]
    assert [*told["channels"]] == ["threshold_1", "threshold_2"]
    assert told["user_data"]["filename"] == "x" and [*told["user_data"]["n"]] == [1, None, -2.5, True]
    assert (told["image_size_x"], told["image_size_y"], told["number_of_images"]) == (1028, 512, 3)
    assert told["arm_date"].tzinfo and len(told["series_unique_id"]) == 26
    assert told["series_unique_id"] == client.value("detector/status/series_unique_id")
    if detail == "all":
        assert np.array_equal(array2(told["pixel_mask"]["threshold_2"]), dcu.unit.detector.array("pixel_mask"))
        assert np.array_equal(array2(told["flatfield"]["threshold_1"]), dcu.unit.detector.array("flatfield"))
        table = told["countrate_correction_lookup_table"]
        assert table.tag == 70 and len(decompress(table.value.value[2], "bslz4", elem_size=4)) == 4 * 65536
    assert dectris2.decode(start).nframes == 3


def test_the_images_of_stream_2_are_those_of_an_independent_generator(unit):
    _, client, _, v2 = unit
    client.stream("cbor", image_appendix="later")
    series(client, threshold_2_mode="enabled", **{"threshold/difference/mode": "enabled"})
    start, *images, end = v2.until(end2)
    unique = cbor(start)["series_unique_id"]
    began = []
    for n, parts in enumerate(images):
        told = cbor(parts)
        pixels = {name: array2(tag) for name, tag in told["data"].items()}
        assert list(pixels) == ["threshold_1", "threshold_2", "difference"]
        times = {name: told[name] for name in ("real_time", "start_time", "stop_time")}
        times["series_date"] = cbor2.CBORTag(0, told["series_date"].isoformat(timespec="microseconds"))
        wanted = dectris2_messages.image(
            1, n, pixels, user_data="later", data_first=True, series_unique_id=unique, **times
        )
        assert parts == wanted
        assert all(told[name][1] == 50_000_000 for name in ("real_time", "start_time", "stop_time"))
        began.append(told["start_time"][0] / 50e6)
        seen = pixels["threshold_1"] != 65535
        difference = pixels["threshold_1"][seen] - pixels["threshold_2"][seen]
        assert np.array_equal(pixels["difference"][seen], difference)
    assert began[0] == 0 and began == pytest.approx([0, 0.004, 0.008], abs=1e-4)
    assert end == dectris2_messages.end(1, series_unique_id=unique)


def test_an_eiger_1_leaves_out_what_the_real_one_left_out():
    with running("EIGER 500K") as (_, client, _, v2):
        client.stream("cbor")
        series(client, 1)
        told = cbor(v2.until(end2)[0])
        assert "goniometer" not in told and "image_dtype" not in told and "threshold_energy" in told


def test_the_old_version_has_numbers_for_booleans():
    with running("EIGER 500K", api="1.6.0") as (_, client, v1, _):
        client.stream(header_detail="basic")
        series(client, 2)
        start, *images, _ = v1.until(end1)
        config = json.loads(start[1])
        assert config["pixel_mask_applied"] == 1 and type(config["pixel_mask_applied"]) is int
        assert config["software_version"].startswith("1.6") and "incident_energy" not in config
        assert dectris1.decode(start).metadata["detector"]["pixel_mask_applied"] is True
        assert len(images) == 2


def test_masked_pixels_and_mask_to_zero(unit):
    dcu, client, v1, _ = unit
    client.stream("legacy")
    mask = dcu.unit.detector.array("pixel_mask")
    assert (mask > 1).any()
    series(client, 1)
    assert (pixels1(v1.until(end1)[1])[mask != 0] == 65535).all()
    series(client, 1, mask_to_zero=True)
    assert (pixels1(v1.until(end1)[1])[mask != 0] == 0).all()
    series(client, 1, pixel_mask_applied=False)
    raw = pixels1(v1.until(end1)[1])
    assert (raw[mask > 1] < 1000).all() and (raw[mask == 1] == 65535).all()


def test_a_disabled_stream_sends_nothing(unit):
    _, client, v1, v2 = unit
    series(client)
    assert v1.rest() == v2.rest(0.01) == []


def test_the_header_comes_at_arm(unit):
    _, client, v1, _ = unit
    client.stream("legacy")
    client.command("arm")
    assert json.loads(v1.message(0.5)[0])["htype"] == "dheader-1.0"
    client.command("disarm")
    assert end1(v1.message(0.5))


def test_images_keep_the_pace_of_frame_time(unit):
    _, client, v1, _ = unit
    client.stream("legacy")
    client.set(nimages=10, count_time=0.02, frame_time=0.05)
    client.command("arm")
    v1.message()
    begun = time.monotonic()
    thread = threading.Thread(target=client.command, args=("trigger",))
    thread.start()
    came = []
    for _ in range(10):
        told = json.loads(v1.message()[3])
        came.append(time.monotonic() - begun)
        assert told["stop_time"] - told["start_time"] == pytest.approx(0.02e9, abs=100)
        assert told["real_time"] == pytest.approx(0.02e9 * 0.994, rel=0.01)
    thread.join()
    assert all(at >= 0.05 * n + 0.02 for n, at in enumerate(came))
    assert came[-1] < 1.5


@pytest.mark.parametrize("how", ["disarm", "cancel", "abort"])
@pytest.mark.parametrize("format", ["legacy", "cbor"])
def test_every_way_to_end_sends_the_end_message_once(unit, format, how):
    _, client, v1, v2 = unit
    client.stream(format)
    puller, is_end = (v1, end1) if format == "legacy" else (v2, end2)
    client.set(nimages=1000, count_time=0.05, frame_time=0.05)
    client.command("arm")
    thread = threading.Thread(target=client.command, args=("trigger",))
    thread.start()
    first = puller.messages(3)  # header, two images
    client.command(how)
    thread.join()
    rest = puller.until(is_end, 2.0)
    assert len(rest) < 100 and puller.rest(0.1) == []  # of a thousand
    assert not any(map(is_end, first))
    client.command("disarm")
    assert puller.rest(0.05) == []


def test_cancel_waits_for_the_image_in_progress_and_abort_does_not(unit):
    _, client, v1, _ = unit
    client.stream("legacy")
    for how, images in (("cancel", 1), ("abort", 0), ("disarm", 0)):
        client.set(trigger_mode="inte", ntrigger=3, count_time=0.2)
        client.command("arm")
        client.command("trigger")
        begun = time.monotonic()
        client.command(how)
        assert (time.monotonic() - begun > 0.15) == (how == "cancel")
        assert len(v1.until(end1)) == images + 2, how


@pytest.mark.parametrize("when", ["disarm", "complete"])
def test_when_a_complete_series_ends(when):
    with running(end_message=when) as (_, client, v1, _):
        client.stream("legacy")
        client.set(nimages=2, count_time=0.004, frame_time=0.004)
        client.command("arm")
        client.command("trigger")
        messages = v1.rest(0.2)
        assert len(messages) == (4 if when == "complete" else 3)
        client.command("disarm")
        assert len(v1.rest()) == (0 if when == "complete" else 1)


def test_a_series_that_was_not_disarmed_ends_at_the_next_arm(unit):
    _, client, v1, _ = unit
    client.stream("legacy")
    client.set(count_time=0.004, frame_time=0.004)
    client.command("arm")
    client.command("trigger")
    client.command("arm")
    kinds = [(json.loads(parts[0])["htype"], json.loads(parts[0])["series"]) for parts in v1.rest()]
    assert kinds == [("dheader-1.0", 1), ("dimage-1.0", 1), ("dseries_end-1.0", 1), ("dheader-1.0", 2)]


MODES = {  # trigger mode: settings, edges, width, images
    "exts": ({"nimages": 4, "ntrigger": 3}, 3, 0.0, 12),
    "exte": ({"ntrigger": 5}, 5, 0.01, 5),
    "eies": ({"ntrigger": 6}, 6, 0.0, 5),
    "extg": ({"nimages": 2, "nexpi": 3, "countrate_correction_applied": False}, 6, 0.004, 2),
}


@pytest.mark.parametrize("mode", MODES)
def test_external_modes(unit, mode):
    dcu, client, v1, _ = unit
    client.stream("legacy")
    settings, edges, width, images = MODES[mode]
    client.set(trigger_mode=mode, count_time=0.004, frame_time=0.005, **settings)
    client.command("arm")
    dcu.edge(edges + 2, width)  # too many are ignored
    found = v1.messages(images + 1)
    assert v1.rest(0.1) == []
    assert client.state == ("ready" if mode == "extg" else "idle")
    assert [json.loads(parts[0])["frame"] for parts in found[1:]] == [*range(images)]
    times = [json.loads(parts[3]) for parts in found[1:]]
    if mode == "exte":
        assert all(t["stop_time"] - t["start_time"] == pytest.approx(0.01e9, abs=100) for t in times)
    client.command("disarm")
    assert end1(v1.message())


# --- the queue -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["legacy", "cbor"])
def test_with_no_peer_images_wait_up_to_the_high_water_mark(format):
    with running(hwm=5, pull=False) as (dcu, client, *_):
        client.stream(format)
        client.set(nimages=20, count_time=0.002, frame_time=0.002)
        client.command("arm")
        client.command("trigger")
        client.command("disarm")
        assert client.value("stream/status/dropped") == 16  # the header waits too
        import zmq

        from tests.simulators.eiger import Puller

        with zmq.Context() as context:
            puller = Puller(context, dcu.endpoint_v1 if format == "legacy" else dcu.endpoint_v2)
            assert len(puller.until(end1 if format == "legacy" else end2)) == 6
            puller.socket.close(0)
        client.put("stream/command/initialize")
        assert client.value("stream/status/dropped") == 0


@pytest.mark.parametrize("format", ["legacy", "cbor"])
def test_a_thousand_images_at_the_full_rate(format):
    with running(keep_sent=True, hwm=2000) as (dcu, client, v1, v2):
        client.stream(format)
        client.set(nimages=1000, count_time=1e-4, frame_time=1.2e-4)
        puller, decode, is_end = (v1, dectris1.decode, end1) if format == "legacy" else (v2, dectris2.decode, end2)
        client.command("arm")
        thread = threading.Thread(target=client.command, args=("trigger",))
        begun = time.monotonic()
        thread.start()
        messages = puller.messages(1001)
        took = time.monotonic() - begun
        thread.join()
        client.command("disarm")
        messages += puller.until(is_end)
        frames = [decode(parts) for parts in messages[1:-1]]
        assert [f.number for f in frames] == [*range(1000)]
        assert [bytes(f.data) for f in frames] == [blob for _, blob in dcu.sent]
        assert client.value("stream/status/dropped") == 0
        assert took < 10  # 0.12 s on a machine that does nothing else


# --- models and pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EIGER 1M", "EIGER2 1M", "PILATUS4 260K"])
def test_models(name):
    with running(name) as (dcu, client, _, v2):
        client.stream("cbor")
        series(client, 1)
        _, image, _ = v2.until(end2)
        pixels = array2(cbor(image)["data"]["threshold_1"])
        assert pixels.shape == (MODELS[name].height, MODELS[name].width)
        assert (pixels[gaps(MODELS[name])] == 65535).all()


def test_a_part_of_a_large_detector():
    with running("EIGER2 9M") as (_, client, v1, _):
        client.stream("legacy")
        series(client, 1, 0.01, roi_mode="4M")
        _, image, _ = v1.until(end1)
        assert json.loads(image[1])["shape"] == [2068, 2162]


def test_the_type_of_images_may_change_between_series(unit):
    _, client, v1, _ = unit
    client.stream("legacy")
    found = []
    for seconds in (0.004, 0.02, 0.004):
        series(client, 1, seconds)
        found.append(json.loads(v1.until(end1)[1][1])["type"])
    assert found == ["uint16", "uint32", "uint16"]


def test_images_of_a_recorded_stream(tmp_path):
    shape = (514, 1030)
    recorded = [np.random.default_rng(k).poisson(3, shape).astype(np.uint32) for k in range(3)]
    messages = [dectris.start(7, shape), *(dectris.image(7, k, image) for k, image in enumerate(recorded))]
    recording.write(tmp_path / "r.bin.gz", messages)
    with running("EIGER 500K", images=str(tmp_path / "r.bin.gz")) as (dcu, client, v1, _):
        client.stream("legacy")
        series(client, 4, pixel_mask_applied=False)
        sent = [pixels1(parts) for parts in v1.until(end1)[1:-1]]
        assert all(np.array_equal(sent[k], recorded[k % 3]) for k in range(4))


# --- a real detector -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not RECORDING.exists(), reason="the recording of a real detector is not here")
def test_messages_are_like_those_of_a_real_detector():
    real = list(recording.read(RECORDING))
    with running("EIGER 1M", images=str(RECORDING), bit_depth=32) as (_, client, v1, _):
        client.stream("legacy", header_detail="all", header_appendix='{"filename": "", "rotate": 0}')
        series(client, 9)
        ours = v1.until(end1)
    assert [len(parts) for parts in ours[:-1]] == [len(parts) for parts in real]
    for k, (mine, theirs) in enumerate(zip(ours[0], real[0], strict=True)):
        if k in (0, 1, 2, 4, 6):
            told, wanted = json.loads(mine), json.loads(theirs)
            assert list(told) == list(wanted)
            same = {key for key in wanted if type(wanted[key]) is not type(told[key])}
            assert same == set()
        else:
            assert len(mine) == len(theirs)
    assert ours[0][8] == real[0][8]
    table = [np.frombuffer(message[7], "<f4").reshape(-1, 2) for message in (ours[0], real[0])]
    assert np.array_equal(table[0][:, 0], table[1][:, 0])
    for mine, theirs in zip(ours[1:-1], real[1:], strict=True):
        for k in (0, 1, 3):
            assert list(json.loads(mine[k])) == list(json.loads(theirs[k]))
        assert mine[2][:12] == theirs[2][:12]  # size and block
        assert json.loads(mine[1])["encoding"] == "bs32-lz4<"
        seen = pixels1(theirs) != 2**32 - 1
        good = seen & (pixels1(mine) != 2**32 - 1)
        assert good.sum() > 0.9 * good.size and np.array_equal(pixels1(mine)[good], pixels1(theirs)[good])
