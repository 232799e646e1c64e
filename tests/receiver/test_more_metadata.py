"""What only the image files of a detector say, such as a CBF header, comes with the first images."""

import json

import h5py
import pytest

from tests.receiver.streaming import DATASET, Sender, image, running, wait_closed

DETECTOR = "entry/instrument/detector"
SAID = {"exptime": 0.1, "detector": {"description": "a detector"}, "metadata_follows": True}
MORE = {
    "exptime": 0.2,
    "detector": {"description": "another", "threshold_energy": 6344.0},
    "cbf_header": {"Tau": "0 s"},
}


def send(sender, number, metadata):
    """An image with metadata in its header."""
    head = {"htype": "image", "frame": number, "shape": list(image(0).shape), "type": "uint16", "compression": "none"}
    head |= {"msg_number": sender.serial, "series": sender.series, "metadata": metadata}
    sender.parts([json.dumps(head).encode(), image(number).tobytes()])


@pytest.mark.parametrize("values", [{}, {"workers": 2}, {"parts": 2, "workers": 2}, {"frames_per_file": 2}])
@pytest.mark.parametrize("announced", [True, False])
def test_it_is_in_the_file_once(tmp_path, values, announced):
    how = {"shape": image(0).shape, "dtype": "uint16", "codec": "none"} if announced else {}
    with Sender() as sender, running(tmp_path, sender.endpoint, **values) as engine:
        sender.start("a.h5", 1, nframes=6, metadata=SAID, **how)
        for number in range(6):
            send(sender, number, MORE)
        sender.end()
        assert wait_closed(engine, 1).written == 6 and engine.snapshot().missing == 0
    with h5py.File(tmp_path / "a.h5") as h5:
        for number, pixels in enumerate(h5[DATASET]):
            assert (pixels == image(number)).all()
        detector = h5[DETECTOR]
        assert detector["threshold_energy"][()] == 6344.0
        assert detector["count_time"][()] == 0.1, "what the start message says stays"
        assert detector["description"].asstr()[()] == "a detector"
        assert detector["header/cbf_header/Tau"].asstr()[()] == "0 s"
        assert "metadata_follows" not in detector["header"]


@pytest.mark.parametrize("metadata", [None, 3, ["a"], "text"])
def test_what_is_no_metadata_is_left_alone(tmp_path, metadata):
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start("a.h5", 1, nframes=1, metadata=SAID)
        send(sender, 0, metadata)
        assert wait_closed(engine, 1).written == 1
    with h5py.File(tmp_path / "a.h5") as h5:
        assert h5[f"{DETECTOR}/count_time"][()] == 0.1 and "threshold_energy" not in h5[DETECTOR]


def test_without_the_announcement_nothing_is_taken(tmp_path):
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start("a.h5", 1, nframes=1, metadata={"exptime": 0.1})
        send(sender, 0, MORE)
        assert wait_closed(engine, 1).written == 1
    with h5py.File(tmp_path / "a.h5") as h5:
        assert "threshold_energy" not in h5[DETECTOR]


def test_a_series_without_an_image_has_what_the_start_said(tmp_path):
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start("a.h5", 1, nframes=2, metadata=SAID, shape=image(0).shape, dtype="uint16", codec="none")
        sender.end(nframes=0)
        wait_closed(engine, 1)
    with h5py.File(tmp_path / "a.h5") as h5:
        assert h5[f"{DETECTOR}/count_time"][()] == 0.1
