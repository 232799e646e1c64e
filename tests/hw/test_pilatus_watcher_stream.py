"""Files of a Pilatus on their way: from the folder through real sockets, to a real receiver and into HDF5."""

import bz2
import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import fabio
import h5py
import hdf5plugin  # noqa: F401  the filters
import pytest
import zmq
import zmq.utils.garbage

from tangods_detector.hw.pilatus_client import PilatusStreamer
from tangods_detector.hw.pilatus_run import Options
from tangods_receiver.errors import HardwareError
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, stins
from tests.hw.pilatus_files import PATTERN, SHAPE, Template, cbf, image, paced, place, write
from tests.receiver.streaming import DATASET, running, wait_closed
from tests.waiting import wait_for

# Images of a real detector, which are not part of this repository.
DATA = Path(os.environ.get("DETECTOR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = sorted(DATA.glob("pilatus3_6m_*.cbf.bz2"))


@pytest.fixture(scope="module", autouse=True)
def collector():
    """pyzmq starts a thread of its own with the first buffer that is sent without a copy; it stays for good."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        pull.bind("inproc://collector")
        push.connect("inproc://collector")
        push.send(zmq.Frame(b"x", track=True, copy=False, copy_threshold=0), copy=False)
        pull.recv()
    yield
    zmq.utils.garbage.gc.stop()  # nothing of it for later tests, which fork servers


@pytest.fixture
def folder():
    """Images' folder on a RAM disk."""
    path = Path(tempfile.mkdtemp(prefix="test_pilatus_", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make(folder):
    """Streamers of the folder, closed at the end."""
    made = []

    def new(**options):
        made.append(PilatusStreamer.here(Options(**{"folder": str(folder), "port": 0, "file_wait": 0.3, **options})))
        return made[-1]

    yield new
    for one in made:
        one.close()


class Sink:
    """A PULL socket that keeps what comes, as long as it `takes`."""

    def __init__(self, endpoint, hwm=1000):
        self.messages = []
        self._takes, self._closing = threading.Event(), threading.Event()
        self._takes.set()
        self._endpoint, self._hwm = endpoint, hwm
        self._thread = threading.Thread(target=self._work)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._closing.set()
        self._thread.join()

    def pause(self, paused=True):
        self._takes.clear() if paused else self._takes.set()

    def _work(self):
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.rcvhwm = self._hwm
            socket.linger = 0
            socket.connect(self._endpoint)
            while not self._closing.is_set():
                if self._takes.is_set() and socket.poll(20):
                    self.messages.append(stins.decode(socket.recv_multipart()))
                elif not self._takes.is_set():
                    time.sleep(0.01)

    def frames(self):
        return [message for message in self.messages if isinstance(message, Frame)]

    def numbers(self):
        return [frame.number for frame in self.frames()]

    def ended(self):
        return bool(self.messages) and isinstance(self.messages[-1], SeriesEnd)


def files(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith(".") and name != "damaged")


def wait_empty(folder):
    """The last files go a second after the end."""
    wait_for(lambda: not files(folder), what=f"deletion of {files(folder)}")


def wait_stuck(streamer):
    """Every buffer on the way is full."""
    sent, since = -1, time.monotonic()
    while time.monotonic() - since < 0.3:
        status = wait_for(lambda: (now := streamer.status()).blocked and now)
        if status.sent != sent:
            sent, since = status.sent, time.monotonic()
        time.sleep(0.02)


# --- into a file -----------------------------------------------------------------------------------------------------


def test_a_file_of_an_earlier_series_is_not_taken_for_one_of_this(folder, make):
    """It is as old as it says, by the file system's own clock; that of the series takes its place."""
    streamer = make(rescan=0.05)
    hour_ago = time.time() - 3600
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 4)
        for number in (2, 3):
            (folder / ".old").write_bytes(cbf(image(100 + number)))
            os.utime(folder / ".old", (hour_ago, hour_ago))
            os.rename(folder / ".old", folder / (PATTERN % number))
        write(folder, range(3))
        wait_for(lambda: streamer.status().sent == 3)
        streamer.finish()
        status = streamer.wait_over(10)
        assert (status.sent, status.message) == (3, "1 of 4 images never came: 3")
        wait_for(sink.ended)
        assert [bytes(frame.data) for frame in sink.frames()] == [cbf(image(number)) for number in range(3)]


@pytest.mark.parametrize("polling", [False, True])
def test_every_pixel_arrives(folder, make, tmp_path, polling):
    streamer = make(polling=polling)
    with running(tmp_path, streamer.endpoint(), transforms=["bslz4"]) as engine:
        streamer.arm(5, "a.h5", PATTERN, 40, shape=SHAPE, metadata={"exptime": 0.099, "label": "ü"})
        assert streamer.status().phase == "armed" and streamer.status().polling == polling
        write(folder, range(40))
        status = streamer.wait_over(10)
        assert (status.phase, status.sent, status.lost, status.message) == ("done", 40, 0, "")
        assert (wait_closed(engine, 5).written, engine.snapshot().missing) == (40, 0)
        streamer.closed()
        assert files(folder) == []
    with h5py.File(tmp_path / "a.h5") as file:
        for number, pixels in enumerate(file[DATASET]):
            assert (pixels == image(number)).all()
        assert file["entry/instrument/detector/count_time"][()] == pytest.approx(0.099)


def test_series_after_series_with_numbers_that_go_on(folder, make, tmp_path):
    streamer = make()
    with running(tmp_path, streamer.endpoint()) as engine:
        for series in range(1, 4):
            streamer.arm(series, f"{series}.h5", PATTERN, 7, first=7 * series)
            write(folder, range(7), first=7 * series)
            assert streamer.wait_over(10).sent == 7
            assert wait_closed(engine, series).missing == 0
    for series in range(1, 4):
        with h5py.File(tmp_path / f"{series}.h5") as file:
            assert file[DATASET][:, -1, -1].tolist() == list(range(7))


def test_a_single_image_and_a_subfolder(folder, make):
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", "single.cbf", 1, folder="run/1")
        place(folder / "run/1", "single.cbf", cbf(image(9)))
        assert streamer.wait_over(10).phase == "done"
        wait_for(sink.ended)
        assert bytes(sink.frames()[0].data) == cbf(image(9))


def test_shuffled_renames_are_put_in_order(folder, make):
    streamer = make(gap_wait=5.0)
    numbers = list(range(200))
    chance = random.Random(3)
    for begin in range(0, 200, 10):
        part = numbers[begin : begin + 10]
        chance.shuffle(part)
        numbers[begin : begin + 10] = part
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 200)
        write(folder, numbers)
        assert streamer.wait_over(20).sent == 200
        wait_for(sink.ended)
        assert sink.numbers() == list(range(200))
        assert all(bytes(frame.data) == cbf(image(frame.number)) for frame in sink.frames())


def test_files_that_were_there_before_the_watch(folder, make):
    streamer = make()
    write(folder, range(5))
    with pytest.raises(HardwareError, match=r"5 files of these names are in .* already, such as test_00000.cbf"):
        streamer.arm(1, "", PATTERN, 8)
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 8, present="send")
        write(folder, range(5, 8))
        streamer.wait_over(10)
        wait_for(sink.ended)
        assert sink.numbers() == list(range(8))


@pytest.mark.parametrize(
    ("present", "left"), [("delete", ["else_00000.cbf", "note.txt"]), ("delete_all", ["note.txt"])]
)
def test_leftovers_are_deleted_on_demand(folder, make, present, left):
    streamer = make()
    write(folder, range(3))
    write(folder, range(1), pattern="else_%05d.cbf")
    (folder / "note.txt").write_text("not an image")
    with Sink(streamer.endpoint()):
        streamer.arm(1, "", PATTERN, 3, present=present)
        assert files(folder) == left
        streamer.stop()
        streamer.wait_over(10)


@pytest.mark.slow
def test_real_images_of_a_pilatus_6m(folder, make, tmp_path):
    if not REAL:
        pytest.skip("the recordings of a real Pilatus are not here (DETECTOR_TEST_DATA)")
    streamer = make(md5_share=1.0)
    with running(tmp_path, streamer.endpoint(), transforms=["bslz4"], end_timeout=10.0) as engine:
        streamer.arm(1, "a.h5", PATTERN, len(REAL))
        for number, path in enumerate(REAL):
            place(folder, PATTERN % number, bz2.decompress(path.read_bytes()))
        status = streamer.wait_over(60)
        assert (status.phase, status.damaged) == ("done", 0)
        assert wait_closed(engine, 1).missing == 0
    assert status.header["Detector"].startswith("PILATUS3 6M")
    with h5py.File(tmp_path / "a.h5") as file:
        for number, path in enumerate(REAL):
            assert (file[DATASET][number] == fabio.open(str(path)).data).all()


# --- bursts and rates ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_files_while_the_watcher_sleeps(folder, make, tmp_path):
    """More events than the kernel keeps: it says so once, and the folder is read again."""
    streamer = make(rescan=1e6)
    count = 10_000
    with running(tmp_path, streamer.endpoint(), end_timeout=5.0) as engine:
        streamer.arm(1, "a.h5", PATTERN, count, shape=SHAPE)
        held, go = threading.Event(), threading.Event()
        order = threading.Thread(target=streamer._stream._ask, args=(lambda: (held.set(), go.wait(60)),))
        order.start()
        held.wait(5)
        write(folder, range(count))
        go.set()
        order.join()
        status = streamer.wait_over(60)
        assert status.overflows >= 1
        assert (status.phase, status.sent, status.lost, status.late) == ("done", count, 0, 0)
        assert wait_closed(engine, 1).written == count
    with h5py.File(tmp_path / "a.h5") as file:
        assert file[DATASET][:, -1, -1].tolist() == list(range(count))


@pytest.mark.slow
def test_the_ram_disk_stays_nearly_empty(folder, make, tmp_path):
    """Pilatus 2M at 250/s, or at half of what this machine gives; less where others take their share meanwhile."""
    series, count = Template((1679, 1475)), 100
    streamer = make()

    def take(number, rate):
        """Images/s until all are in the file, and the most that were in the folder."""
        most, began = 0, time.monotonic()
        streamer.arm(number, f"{number}.h5", PATTERN, count, shape=series.shape)
        for image_number in paced(rate, count):
            series.write(folder, image_number)
            most = max(most, len(files(folder)))
        assert streamer.wait_over(60).sent == count
        assert wait_closed(engine, number).missing == 0
        return count / (time.monotonic() - began), most

    with running(tmp_path, streamer.endpoint(), transforms=["bslz4"], workers=2, end_timeout=10.0) as engine:
        possible, _ = take(1, 1e6)
        for number, share in (2, 0.5), (3, 0.25), (4, 0.12):
            _, most = take(number, min(250.0, share * possible))
            if most <= 50:
                break
    print(f"{possible:.0f} images/s as fast as possible; at {share:.2f} of it at most {most} files")
    assert most <= 50
    with h5py.File(tmp_path / f"{number}.h5") as file:
        assert (file[DATASET][::30] == image(0, series.shape)).all()


# --- what does not come, and what is no image ------------------------------------------------------------------------


def test_files_that_never_come_hold_nobody_up_and_are_told(folder, make, tmp_path):
    streamer = make(gap_wait=0.1)
    with running(tmp_path, streamer.endpoint(), end_timeout=0.5) as engine:
        streamer.arm(1, "a.h5", PATTERN, 20, shape=SHAPE)
        write(folder, [n for n in range(17) if n not in (3, 7, 8)])
        wait_for(lambda: streamer.status().sent == 14)
        assert streamer.status().phase == "running"
        streamer.finish()
        status = streamer.wait_over(10)
        assert (status.phase, status.sent, status.lost) == ("done", 14, 6)
        assert [list(pair) for pair in status.lost_numbers] == [[3, 3], [7, 8], [17, 19]]
        assert status.message == "6 of 20 images never came: 3, 7-8, 17-19"
        assert wait_closed(engine, 1).missing == 6
    with h5py.File(tmp_path / "a.h5") as file:
        last = file[DATASET][:, -1, -1]
        assert last.tolist() == [n if n not in (3, 7, 8) and n < 17 else 0 for n in range(20)]


def test_a_file_that_comes_late_is_sent_all_the_same(folder, make):
    streamer = make(gap_wait=0.05, file_wait=5.0)
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 5)
        write(folder, [0, 2, 3, 4])
        wait_for(lambda: sink.numbers() == [0, 2, 3, 4])
        streamer.finish()
        write(folder, [1])
        status = streamer.wait_over(10)
        wait_for(sink.ended)
        assert (sink.numbers(), status.late, status.lost) == ([0, 2, 3, 4, 1], 1, 0)
        assert sink.messages[-1].nframes == 5


def test_a_series_that_ended_earlier(folder, make):
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 1000)
        write(folder, range(10))
        streamer.finish(10)
        status = streamer.wait_over(10)
        wait_for(sink.ended)
        assert (status.phase, status.sent, status.lost, status.nframes) == ("done", 10, 0, 10)
        assert sink.messages[-1].nframes == 10


def test_a_file_that_is_still_being_written_is_waited_for(folder, make):
    """Whoever writes under the final name."""
    streamer = make(damaged_wait=5.0)
    data = cbf(image(1))
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 3)
        write(folder, [0])
        (folder / (PATTERN % 1)).write_bytes(data[:3000])
        write(folder, [2])
        time.sleep(0.2)
        assert 1 not in sink.numbers() and streamer.status().damaged == 0
        with open(folder / (PATTERN % 1), "ab") as file:
            file.write(data[3000:])
        assert streamer.wait_over(10).sent == 3
        wait_for(sink.ended)
        assert bytes(next(frame for frame in sink.frames() if frame.number == 1).data) == data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[: len(data) // 2], "bytes of"),
        (lambda data: b"", "0 bytes and no pixels yet"),
        (lambda data: b"II*\0" + data, "not a miniCBF file"),
        (lambda data: cbf(image(0, (4, 4))), "image of (4, 4), not (12, 10)"),
        (lambda data: data.replace(b"Content-MD5: ", b"Content-MD5: x"), "MD5 of the pixels is"),
    ],
)
def test_a_damaged_file_is_put_aside_and_told(folder, make, change, words):
    streamer = make(damaged_wait=0.1, md5_share=1.0)
    spoilt = change(cbf(image(1)))
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 4, shape=SHAPE)
        write(folder, [0])
        place(folder, PATTERN % 1, spoilt)
        write(folder, [2, 3])
        status = streamer.wait_over(10)
        wait_for(sink.ended)
    assert sorted(sink.numbers()) == [0, 2, 3]
    assert (status.phase, status.sent, status.damaged, status.lost) == ("done", 3, 1, 0)
    assert status.message.startswith("1 damaged: test_00001.cbf: ") and words in status.message
    assert (folder / "damaged" / (PATTERN % 1)).read_bytes() == spoilt
    assert sink.messages[-1].nframes == 4


def test_only_the_last_damaged_files_are_kept(folder, make):
    streamer = make()
    with Sink(streamer.endpoint()):
        streamer.arm(1, "", PATTERN, 30)
        for number in range(30):
            place(folder, PATTERN % number, b"x" * 70000)
        assert streamer.wait_over(10).damaged == 30
    assert len(os.listdir(folder / "damaged")) == 10


def test_foreign_files_stay(folder, make):
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 3, first=5)
        write(folder, [4, 5, 6, 7, 8])
        status = streamer.wait_over(10)
        wait_for(sink.ended)
        assert (sink.numbers(), status.foreign) == ([0, 1, 2], 2)
        wait_for(lambda: files(folder) == [PATTERN % 4, PATTERN % 8])


def test_header_lines_are_compared_with_what_was_set(folder, make):
    streamer = make()
    with Sink(streamer.endpoint()):
        streamer.arm(1, "", PATTERN, 1, expect={"Exposure_time": 0.099, "Threshold_setting": 6300})
        write(folder, [0])
        status = streamer.wait_over(10)
    assert status.header["Wavelength"] == "0.9763 A"
    assert status.differences == {"Threshold_setting": "6344 eV, expected 6300"}
    assert status.message == "header: Threshold_setting 6344 eV, expected 6300"


# --- receivers that wait or go ---------------------------------------------------------------------------------------


def test_without_a_receiver_nothing_is_armed(make):
    streamer = make(arm_limit=0.3)
    with pytest.raises(HardwareError, match=r"no receiver connected to tcp://127.0.0.1:\d+ within 0.3 s"):
        streamer.arm(1, "", PATTERN, 3)
    assert streamer.status().phase == "error"
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(2, "", PATTERN, 3)
        wait_for(lambda: sink.messages)
        assert [message.series for message in sink.messages] == [2]
        streamer.stop()
        streamer.wait_over(10)


def test_a_receiver_that_takes_nothing_makes_the_files_wait(folder, make):
    """They are the queue: nothing is dropped, and all go when it takes again."""
    series, count = Template((619, 487)), 100
    streamer = make()
    with Sink(streamer.endpoint(), hwm=1) as sink:
        streamer.arm(1, "", PATTERN, count)
        sink.pause()
        for number in range(count):
            series.write(folder, number)
        wait_stuck(streamer)
        assert streamer.status().phase == "running" and len(files(folder)) > 20
        sink.pause(False)
        assert streamer.wait_over(20).sent == count
        wait_for(sink.ended)
        assert sink.numbers() == list(range(count))
        wait_empty(folder)


def test_a_file_stays_until_it_has_left_and_newer_ones_too(folder, make):
    streamer = make(keep=5)
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 100)
        write(folder, range(40))
        wait_for(lambda: sink.numbers() == list(range(40)))
        wait_for(lambda: len(files(folder)) <= 5)
        assert files(folder) == [PATTERN % n for n in range(35, 40)]
        streamer.stop()
        streamer.wait_over(10)


def test_after_a_broken_connection_nothing_is_missing(folder, make):
    """What a PUSH socket held for a peer that went is dropped without a word: the files are still there."""
    series, count = Template((619, 487)), 110
    streamer = make(keep=100)  # of so small ones the kernels hold many
    with Sink(streamer.endpoint(), hwm=1) as first:
        streamer.arm(1, "", PATTERN, count)
        wait_for(lambda: first.messages)
        for number in range(10):
            series.write(folder, number)
        wait_for(lambda: len(first.frames()) == 10)
        first.pause()
        for number in range(10, count):
            series.write(folder, number)
        wait_stuck(streamer)
        assert streamer.status().sent > 10
    with Sink(streamer.endpoint()) as second:
        status = streamer.wait_over(20)
        wait_for(second.ended)
        assert set(first.numbers()) | set(second.numbers()) == set(range(count))
        assert status.sent == count and status.sent_again > 0 and status.connections_lost >= 1


def test_the_last_files_stay_when_the_receiver_goes_at_once(folder, make):
    """Until somebody knows that the series is closed there."""
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 5)
        with pytest.raises(HardwareError, match="closed: series 1 is armed"):
            streamer.closed()
        write(folder, range(5))
        streamer.wait_over(10)
        wait_for(sink.ended)
    wait_for(lambda: streamer.status().connections_lost)
    time.sleep(1.2)
    assert len(files(folder)) == 5
    streamer.closed()
    assert files(folder) == []


# --- stop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [0, 1, 25])
def test_stop_keeps_what_is_there(folder, make, written):
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 100)
        write(folder, range(written))
        streamer.stop()
        streamer.stop()
        status = streamer.wait_over(10)
        wait_for(sink.ended)
        assert (status.phase, status.sent, status.lost) == ("done", written, 0)
        assert sink.numbers() == list(range(written)) and sink.messages[-1].nframes == written
        wait_empty(folder)
        streamer.stop()
        assert streamer.status().phase == "done"


def test_stop_while_a_receiver_is_waited_for(make):
    streamer = make(arm_limit=30.0)
    stopper = threading.Timer(0.2, streamer.stop)
    stopper.start()
    with pytest.raises(HardwareError, match="stopped before a receiver had taken the start message"):
        streamer.arm(1, "", PATTERN, 3)
    stopper.join()


def test_an_end_at_once_leaves_the_files(folder, make):
    series = Template((619, 487))
    streamer = make()
    with Sink(streamer.endpoint(), hwm=1) as sink:
        streamer.arm(1, "", PATTERN, 100)
        wait_for(lambda: sink.messages)
        sink.pause()
        for number in range(100):
            series.write(folder, number)
        wait_stuck(streamer)
        began = time.monotonic()
        streamer.stop(keep=False)
        status = streamer.wait_over(10)
        assert time.monotonic() - began < 5.0
        assert (status.sent + status.waiting, status.lost) == (100, 0)
        assert len(files(folder)) >= status.waiting > 0
        # the kernel's buffers may grow meanwhile and take the end message, or not
        ends = (
            "the receiver took no end message",
            "the end message was sent, but the last images have not left after 1 s",
        )
        assert status.phase == "done" or status.message in ends
        sink.pause(False)
        streamer.arm(2, "", PATTERN, 2, present="delete")
        write(folder, range(2))
        assert streamer.wait_over(10).phase == "done"
        wait_for(sink.ended)
        assert [frame.number for frame in sink.frames() if frame.series == 2] == [0, 1]


def test_a_stop_gives_up_on_a_receiver_that_takes_nothing(folder, make):
    streamer = make(stop_limit=0.5)
    series = Template((619, 487))
    with Sink(streamer.endpoint(), hwm=1) as sink:
        streamer.arm(1, "", PATTERN, 100)
        wait_for(lambda: sink.messages)
        sink.pause()
        for number in range(100):
            series.write(folder, number)
        wait_stuck(streamer)
        streamer.stop()
        status = streamer.wait_over(10)
        assert status.phase == "error"
        assert status.message.startswith("the receiver takes nothing; ")


def test_a_process_that_ends_ends_the_series(folder, make):
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 100)
        write(folder, range(3))
        wait_for(lambda: sink.numbers() == [0, 1, 2])
        streamer.close()
        wait_for(sink.ended)
    assert files(folder) == []


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_folder_that_goes_ends_the_series(folder, make):
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 100, folder="run")
        shutil.rmtree(folder / "run")
        status = streamer.wait_over(10)
        wait_for(sink.ended)
        assert status.phase == "error" and status.message.startswith(f"{folder}/run: the watched folder is gone")


def test_a_stream_that_fails_says_so_and_leaves_the_files(folder, make, monkeypatch):
    def fail(_):
        raise zmq.ZMQError(zmq.ETERM)

    streamer = make()
    with Sink(streamer.endpoint()):
        streamer.arm(1, "", PATTERN, 10)
        monkeypatch.setattr("tangods_detector.hw.pilatus_run.Run._take", fail)
        write(folder, range(3))
        status = streamer.wait_over(10)
        assert status.phase == "error" and status.message.startswith("ZMQError: ")
        wait_for(lambda: not streamer._stream.alive)
        with pytest.raises(HardwareError, match="the stream has ended; see its log"):
            streamer.stop()
    assert len(files(folder)) == 3


def test_a_full_ram_disk_is_not_armed(folder, make):
    streamer = make(room_for=10**9)
    with pytest.raises(HardwareError, match=r"arm: .* has \d+ MB free, \d+ MB are needed for 900000 images"):
        streamer.arm(1, "", PATTERN, 900_000, shape=(2527, 2463))
    status = streamer.status()
    assert status.phase == "idle" and 0 < status.lowest_free_bytes <= status.free_bytes <= status.total_bytes


def test_a_ram_disk_that_fills_is_told(folder, make, monkeypatch):
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(1, "", PATTERN, 10)
        write(folder, range(2))
        wait_for(lambda: sink.numbers() == [0, 1])
        assert streamer.status().message == ""
        monkeypatch.setattr("tangods_detector.hw.pilatus_stream.room", lambda _: (10_000, 10**9))
        wait_for(lambda: streamer.status().message == "the RAM disk is nearly full")
        assert streamer.status().lowest_free_bytes == 10_000
        streamer.stop()
        streamer.wait_over(10)


def test_a_second_series_is_refused_while_one_is_open(make):
    streamer = make()
    with Sink(streamer.endpoint()):
        streamer.arm(1, "", PATTERN, 3)
        with pytest.raises(HardwareError, match="arm: series 1 is armed; stop it first"):
            streamer.arm(2, "", PATTERN, 3)
        streamer.stop()
        streamer.wait_over(10)
    with pytest.raises(HardwareError, match="finish: no series is open"):
        streamer.finish()


def test_the_start_says_what_the_receiver_needs(make):
    streamer = make()
    with Sink(streamer.endpoint()) as sink:
        streamer.arm(8, "x.h5", PATTERN, 3, shape=SHAPE, metadata={"exptime": 0.5})
        wait_for(lambda: sink.messages)
        start = sink.messages[0]
        assert isinstance(start, SeriesStart)
        assert (start.series, start.nframes, start.shape, start.dtype, start.codec) == (8, 3, SHAPE, "int32", "cbf")
        assert start.metadata["exptime"] == 0.5
        streamer.stop()
        streamer.wait_over(10)
