"""The pixel work: each step against plain NumPy, their order, compressed data, modules, threads, and mistakes."""

import io
import threading

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tangods_receiver import codecs, kernels, nexus, transforms
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.protocol import Frame, stins
from tangods_receiver.records import FileHeader, ImageLayout
from tests.receiver.streaming import DATASET, Sender, running, wait_closed
from tests.receiver.test_codecs import cbf_file

COMPILED = kernels.pixels
PIXELS = np.random.default_rng(5).poisson(40, (31, 47)).astype("int32")
PIXELS[PIXELS > 50] = -1
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]


@pytest.fixture(params=["compiled", "libraries"], autouse=True)
def ways(request, monkeypatch):
    if request.param == "libraries":
        monkeypatch.setattr(kernels, "pixels", None)
    elif COMPILED is None:
        pytest.skip("the compiled part was not built")


def frame(pixels, codec="none", number=3, **more):
    data = codecs.compress(codec, pixels)
    return Frame(number, pixels.shape, pixels.dtype.name, codec, data, **more)


def done(steps, pixels, codec="none", root=None):
    """The pixels after the steps; also checks that `stored` had promised what came."""
    chain = transforms.build(steps, root)
    out = chain.apply(frame(pixels, codec))
    assert (out.shape, out.dtype, out.codec) == chain.stored(pixels.shape, pixels.dtype.name, codec)
    return codecs.decompress(out.codec, out.data, out.shape, out.dtype)


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


# --- single steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "step, expected",
    [
        ({"rotate": 90}, lambda a: np.rot90(a)),
        ({"rotate": 180}, lambda a: np.rot90(a, 2)),
        ({"rotate": 270}, lambda a: np.rot90(a, 3)),
        ("fliplr", np.fliplr),
        ("flipud", np.flipud),
        ("rotate: 90", lambda a: np.rot90(a)),  # as a line of a Tango property
        ({"crop": {"rows": [3, 9], "columns": [0, 47]}}, lambda a: a[3:9]),
        ({"crop": {"columns": [46, 47]}}, lambda a: a[:, 46:]),
        ("decode", lambda a: a),
        ("bslz4", lambda a: a),
        ("lz4", lambda a: a),
    ],
)
def test_pixels_that_only_move(step, expected, dtype):
    pixels = PIXELS.astype(dtype)
    same(done([step], pixels), expected(pixels))


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(DTYPES))
def test_bins(rows, columns, dtype):
    if rows == columns == 1:
        return
    limits = None if dtype.startswith("float") else np.iinfo(dtype)
    pixels = np.full((20, 30), 3 if limits is None or limits.bits == 64 else limits.max, dtype)
    pixels[0] = 0
    high, broad = 20 // rows, 30 // columns
    cut = pixels[: high * rows, : broad * columns].reshape(high, rows, broad, columns).astype(object)
    found = done([{"bin": [rows, columns]}], pixels)
    assert found.tolist() == cut.sum(axis=(1, 3)).tolist()  # by Python's own numbers: nothing can overflow
    assert found.dtype.kind == pixels.dtype.kind and found.dtype.itemsize >= pixels.dtype.itemsize


def test_types_of_bins():
    for given_type, size, expected in [
        ("uint8", 2, "uint16"),
        ("uint8", 17, "uint32"),
        ("uint16", 2, "uint32"),
        ("int32", 2, "int64"),
        ("uint64", 2, "uint64"),
        ("float32", 2, "float32"),
    ]:
        assert transforms.build([{"bin": size}]).stored((40, 40), given_type, "none")[1] == expected


def test_mask_of_a_rectangle():
    expected = PIXELS.copy()
    expected[2:5, 7:9] = -2
    same(done([{"mask": {"rows": [2, 5], "columns": [7, 9], "value": -2}}], PIXELS), expected)
    expected = PIXELS.astype("float32")
    expected[2:5] = np.nan
    same(done([{"mask": {"rows": [2, 5], "value": float("nan")}}], PIXELS.astype("float32")), expected)


@pytest.fixture
def mask():
    return np.random.default_rng(3).random(PIXELS.shape) < 0.1


def write(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, mask=array)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["entry/mask"] = array
    else:
        Image.fromarray(array.astype("uint8")).save(path)


@pytest.mark.parametrize("name", ["m.npy", "m.npz", "m.npz::mask", "m.h5", "m.h5::/entry/mask", "m.tif", "m.tiff"])
def test_mask_from_a_file(tmp_path, name, mask):
    write(tmp_path / name.partition("::")[0], mask)
    expected = np.where(mask, np.int32(-2), PIXELS)
    same(done([{"mask": {"file": name, "value": -2}}], PIXELS, root=tmp_path), expected)
    same(done([{"mask": {"file": str(tmp_path / name), "value": -2}}], PIXELS), expected)


def test_calibration(tmp_path):
    rng = np.random.default_rng(1)
    dark, flat, gain = rng.normal(5, 1, PIXELS.shape), rng.uniform(0.5, 2, PIXELS.shape), np.full(PIXELS.shape, 3.0)
    flat[3, 4] = 0
    for name, table in (("dark", dark), ("flat", flat), ("gain", gain)):
        np.save(tmp_path / f"{name}.npy", table)
    found = done([{"calibrate": {n: f"{n}.npy" for n in ("dark", "flat", "gain")}}], PIXELS, root=tmp_path)
    assert np.isnan(found[3, 4]) and found.dtype == np.float32
    flat[3, 4] = np.nan
    np.testing.assert_allclose(found, (PIXELS - dark) / (flat * gain), rtol=1e-4, atol=1e-4)
    same(done([{"calibrate": {"dark": "dark.npy"}}], PIXELS, root=tmp_path), PIXELS.astype("f4") - dark.astype("f4"))


@pytest.mark.parametrize("dtype", [name for name in DTYPES if not name.startswith("float")])
def test_time_over_threshold(tmp_path, dtype):
    table = np.random.default_rng(2).normal(size=(*PIXELS.shape, 45))
    np.savez(tmp_path / "t.npz", tot_to_energy_tensor=table, other=1)
    pixels = np.random.default_rng(3).integers(-5 if dtype.startswith("i") else 0, 60, PIXELS.shape).astype(dtype)
    pixels[0, :2] = 44, 45
    pixels[1, :2] = np.iinfo(dtype).max, np.iinfo(dtype).min
    expected = np.empty(pixels.shape, "float32")
    for place, value in np.ndenumerate(pixels):
        expected[place] = -1 if value < 0 else -2 if value >= 45 else table[(*place, int(value))]
    for argument in ("t.npz", {"file": "t.npz"}):
        same(done([{"tot": argument}], pixels, root=tmp_path), expected)
    turned = done([{"rotate": 90}, {"rotate": 270}, {"tot": "t.npz"}], pixels, root=tmp_path)
    same(turned, expected)


# --- lists -----------------------------------------------------------------------------------------------------------


def test_the_order_is_that_of_the_list():
    crop, turn = {"crop": {"rows": [0, 10], "columns": [0, 20]}}, {"rotate": 90}
    same(done([crop, turn], PIXELS), np.rot90(PIXELS[:10, :20]))
    same(done([turn, crop], PIXELS), np.rot90(PIXELS)[:10, :20])
    mask = {"mask": {"rows": [0, 1], "value": 0}}
    below = PIXELS.copy()
    below[-1] = 0
    same(done(["flipud", mask, "flipud"], PIXELS), below)


quick = st.sampled_from(
    [
        ({"rotate": 90}, lambda a: np.rot90(a)),
        ({"rotate": 180}, lambda a: np.rot90(a, 2)),
        ("fliplr", np.fliplr),
        ("flipud", np.flipud),
        ({"crop": {"rows": [1, 29]}}, lambda a: a[1:29]),
        (
            {"mask": {"columns": [2, 4], "value": 9}},
            lambda a: np.concatenate((a[:, :2], a[:, 2:4] * 0 + 9, a[:, 4:]), 1),
        ),
    ]
)


@given(
    st.lists(quick, max_size=3), st.sampled_from(["none", "bslz4", "lz4"]), st.sampled_from(["", *transforms.TARGETS])
)
def test_lists_of_steps(steps, codec, target):
    """Recompressed to what it came as, unless the list says otherwise, wherever it says so."""
    chosen = [step for step, _ in steps]
    pixels = expected = PIXELS
    crops = sum("crop" in step for step in chosen)
    if crops > 1:
        return
    for _, function in steps:
        expected = function(expected)
    given_steps = [target, *chosen] if target else chosen
    same(done(given_steps, pixels, codec), expected)
    stored = transforms.build(given_steps).stored(pixels.shape, "int32", codec)
    assert stored[2] == (transforms.TARGETS[target] if target else codec)


CBF = cbf_file(np.ascontiguousarray(np.diff(PIXELS.reshape(-1), prepend=0).astype("int8")).tobytes(), *PIXELS.shape)


@pytest.mark.parametrize("steps, codec", [([], "none"), (["bslz4"], "bslz4"), (["lz4"], "lz4"), (["decode"], "none")])
@pytest.mark.parametrize("turned", [False, True])
def test_cbf(steps, codec, turned):
    chain = transforms.build([*([{"rotate": 90}] if turned else []), *steps])
    out = chain.apply(Frame(0, PIXELS.shape, "uint16", "cbf", CBF))
    assert (out.shape, "int32", codec) == chain.stored(PIXELS.shape, "uint16", "cbf")
    assert (out.dtype, out.codec) == ("int32", codec)
    expected = np.rot90(PIXELS) if turned else PIXELS
    same(codecs.decompress(codec, out.data, out.shape, out.dtype), expected)


@pytest.mark.parametrize("codec", codecs.PACKED)
def test_twelve_bits_become_plain(codec):
    pixels = np.arange(15, dtype="uint16").reshape(3, 5) * 273
    chain = transforms.build([])
    out = chain.apply(Frame(0, (3, 5), "uint16", codec, codecs.compress(codec, pixels)))
    assert (out.shape, out.dtype, out.codec) == chain.stored((3, 5), "uint16", codec) == ((3, 5), "uint16", "none")
    assert bytes(out.data) == pixels.tobytes()


def test_what_is_not_touched():
    """The very same frame goes on."""
    for steps, untouched in [
        ([], {"none"}),
        (["bslz4"], set()),
        (["decode"], {"none"}),
        (["lz4"], set()),
        ([{"rotate": 90}], set()),
    ]:
        chain = transforms.build(steps)
        assert chain.untouched == untouched
        for codec in untouched:
            given_frame = Frame(0, (2, 2), "uint8", codec, b"whatever")
            assert chain.apply(given_frame) is given_frame


@pytest.mark.parametrize("steps", [[], ["bslz4"]])
def test_compressed_frames_are_looked_at_and_go_on(steps):
    """What would crash a reader of the file is not stored; what is a chunk is stored as it came."""
    chain, data = transforms.build(steps), codecs.compress("bslz4", PIXELS)
    frame = Frame(3, PIXELS.shape, "int32", "bslz4", data)
    assert chain.apply(frame) is frame
    two = frame._replace(more=(data,))
    assert chain.apply(two) is two
    for broken in (data[:-1], data + b"x", data[:12] + b"\xff" + data[13:], data[:8] + b"\0\0\0\7" + data[12:]):
        with pytest.raises(StreamError, match="image 3: bslz4"):
            chain.apply(frame._replace(data=broken))
        with pytest.raises(StreamError, match="image 3: bslz4"):
            chain.apply(two._replace(more=(broken,)))


def test_the_message_itself_is_not_changed():
    """Pixels lie in the memory of the socket, which others look at too."""
    data = bytearray(PIXELS.tobytes())
    before = bytes(data)
    steps = [{"mask": {"rows": [0, 31], "value": 7}}, "flipud", {"mask": {"rows": [0, 3], "value": 8}}]
    out = transforms.build(steps).apply(Frame(0, PIXELS.shape, "int32", "none", data))
    assert bytes(data) == before and out.data.nbytes == len(before)


def test_pixels_that_begin_at_an_odd_byte(tmp_path):
    np.savez(tmp_path / "t.npz", tot_to_energy_tensor=np.ones((*PIXELS.shape, 60)))
    data = memoryview(b"x" + PIXELS.tobytes())[1:]
    for step in ({"tot": "t.npz"}, {"rotate": 90}, {"bin": 2}, "bslz4", "lz4", {"mask": {"rows": [0, 1], "value": 0}}):
        chain = transforms.build([step], tmp_path)
        odd = chain.apply(Frame(0, PIXELS.shape, "int32", "none", data))
        even = chain.apply(Frame(0, PIXELS.shape, "int32", "none", PIXELS.tobytes()))
        assert bytes(odd.data) == bytes(even.data)


def test_modules(tmp_path):
    """Each for itself; a table may have a part for each."""
    modules = [PIXELS + k for k in range(3)]
    where = np.zeros((4, *PIXELS.shape), bool)
    for k in range(4):
        where[k, k] = True
    np.save(tmp_path / "m.npy", where)
    chain = transforms.build([{"mask": {"file": "m.npy", "value": 0}}, {"rotate": 90}], tmp_path)
    first, *more = (codecs.compress("bslz4", pixels) for pixels in modules)
    for module in (0, 1):
        out = chain.apply(Frame(0, PIXELS.shape, "int32", "bslz4", first, module=module, more=tuple(more)))
        assert out.module == module and len(out.more) == 2 and out.shape == (47, 31)
        for k, data in enumerate((out.data, *out.more)):
            same(
                codecs.decompress("bslz4", data, out.shape, "int32"),
                np.rot90(np.where(where[module + k], np.int32(0), modules[k])),
            )
    with pytest.raises(StreamError, match="image 9: mask: module 4, the table has 4"):
        chain.apply(Frame(9, PIXELS.shape, "int32", "bslz4", first, module=2, more=tuple(more)))


def test_many_threads_share_a_chain(tmp_path):
    np.savez(tmp_path / "t.npz", tot_to_energy_tensor=np.random.default_rng(1).normal(size=(200, 300, 20)))
    chain = transforms.build([{"tot": "t.npz"}, {"rotate": 90}, "bslz4"], tmp_path)
    images = [np.random.default_rng(k).integers(-1, 25, (200, 300)).astype("int32") for k in range(8)]
    expected = [bytes(chain.apply(frame(pixels, "bslz4")).data) for pixels in images]
    wrong = []

    def work(first):
        for k in range(40):
            index = (first + k) % len(images)
            if bytes(chain.apply(frame(images[index], "bslz4")).data) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step, found",
    [
        ("rotat", "no such step, there are: bin, bslz4, calibrate, crop, decode, fliplr"),
        ({"rotate": 45}, "90, 180 or 270"),
        ({"rotate": True}, "90, 180 or 270"),
        ("rotate", "90, 180 or 270"),
        ({"fliplr": 1}, "takes no argument"),
        ({"bslz4": 1}, "takes no argument"),
        ({"crop": {}}, "needs rows"),
        ({"crop": {"rows": [5, 5]}}, "empty"),
        ({"crop": {"rows": [-1, 5]}}, "empty"),
        ({"crop": {"rows": [1, 2, 3]}}, r"not \[first, last\]"),
        ({"crop": {"row": [1, 2]}}, "unknown row, there are: rows, columns"),
        ({"crop": 3}, "needs rows, columns"),
        ({"bin": 0}, "by a number of pixels"),
        ({"bin": 1}, "by a number of pixels"),
        ({"bin": [2, 2, 2]}, "by a number of pixels"),
        ({"bin": 2.0}, "by a number of pixels"),
        ({"mask": {"rows": [0, 1]}}, "needs value"),
        ({"mask": {"rows": [0, 1], "value": 10**400}}, "needs value"),
        ({"mask": {"value": 1}}, "needs rows and columns, or file"),
        ({"mask": {"value": 1, "rows": [0, 1], "file": "m.npy"}}, "not both"),
        ({"mask": {"value": 1, "file": "no.npy"}}, "no such file"),
        ({"mask": {"value": 1, "file": "m.txt"}}, "not a kind of file"),
        ({"mask": {"value": 1, "file": 7}}, "not the name of a file"),
        ({"mask": {"value": 1, "file": "line.npy"}}, r"shape \(5,\)"),
        ({"mask": {"value": 1, "file": "text.npy"}}, "not an array of numbers"),
        ({"mask": {"value": 1, "file": "junk.npy"}}, "cannot be read"),
        ({"mask": {"value": 1, "file": "junk.h5"}}, "cannot be read"),
        ({"mask": {"value": 1, "file": "junk.tif"}}, "cannot be read"),
        ({"mask": {"value": 1, "file": "junk.npz"}}, "not an npz file"),
        ({"mask": {"value": 1, "file": "two.npz"}}, "say which array, like two.npz::name; there are: a, b"),
        ({"mask": {"value": 1, "file": "two.npz::c"}}, "no array 'c'; there are: a, b"),
        ({"mask": {"value": 1, "file": "two.h5"}}, "say which array, like two.h5::name; there are: a, g/b"),
        ({"mask": {"value": 1, "file": "two.h5::g"}}, "no dataset 'g'"),
        ({"calibrate": {}}, "one or more of dark"),
        ({"calibrate": {"drak": "m.npy"}}, "unknown drak, there are: dark, flat, gain"),
        ({"calibrate": {"dark": "two.npz::a", "flat": "two.npz::b"}}, "dark has the shape"),
        ({"tot": "two.npz"}, "no array 'tot_to_energy_tensor'; there are: a, b"),
        ({"tot": "line.npy"}, "not \\(rows, columns, times\\)"),
        ({"tot": None}, "not the name of a file"),
        (3, "neither a step's name"),
        ({"rotate": 90, "fliplr": None}, "neither a step's name"),
        ("rotate: [", "not YAML"),
    ],
)
def test_mistakes_are_refused_at_the_start(tmp_path, step, found):
    np.save(tmp_path / "line.npy", np.zeros(5))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((3, 3)))
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"] = file["g/b"] = np.zeros((2, 2))
    for name in ("junk.npy", "junk.npz", "junk.h5", "junk.tif", "m.txt"):
        (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(ConfigError, match=found) as refused:
        transforms.build(["fliplr", step], tmp_path)
    assert "step 2" in str(refused.value)


def test_all_mistakes_in_one_message():
    with pytest.raises(ConfigError, match="step 1, 'a': .*step 3, 'b'"):
        transforms.build(["a", "decode", "b"])


@pytest.mark.parametrize(
    "step, dtype, found",
    [
        ({"crop": {"rows": [0, 32]}}, "int32", "rows 0 to 32 of an image of 31 x 47"),
        ({"mask": {"columns": [40, 48], "value": 0}}, "int32", "columns 40 to 48"),
        ({"mask": {"rows": [0, 1], "value": -1}}, "uint16", "uint16 cannot hold -1"),
        ({"mask": {"rows": [0, 1], "value": 0.5}}, "int32", "int32 cannot hold 0.5"),
        ({"mask": {"rows": [0, 1], "value": float("nan")}}, "int32", "int32 cannot hold nan"),
        ({"mask": {"rows": [0, 1], "value": 1e300}}, "float32", "float32 cannot hold 1e"),
        ({"bin": [32, 1]}, "int32", "bins of 32 x 1"),
        ({"mask": {"file": "a.npy", "value": 0}}, "int32", "mask: 30 x 47 pixels for an image of 31 x 47"),
        ({"calibrate": {"dark": "a.npy"}}, "int32", "dark: 30 x 47"),
        ({"calibrate": {"gain": "a.npy"}}, "int32", "flat and gain: 30 x 47"),
        ({"tot": "t.npz"}, "int32", "a table of 31 x 46 x 3 for an image of 31 x 47"),
    ],
)
def test_images_that_do_not_fit(tmp_path, step, dtype, found):
    np.save(tmp_path / "a.npy", np.zeros((30, 47)))
    np.savez(tmp_path / "t.npz", tot_to_energy_tensor=np.zeros((31, 46, 3)))
    chain = transforms.build([step], tmp_path)
    with pytest.raises(StreamError, match=found):
        chain.stored(PIXELS.shape, dtype, "none")
    with pytest.raises(StreamError, match=f"image 77: .*{found}"):
        chain.apply(frame(np.zeros(PIXELS.shape, dtype), "bslz4", number=77))


def test_times_of_floats():
    chain = transforms.Chain([transforms.TimeOverThreshold(np.zeros((31, 47, 2), "float32"))])
    with pytest.raises(StreamError, match="not whole numbers"):
        chain.stored(PIXELS.shape, "float32", "none")


def test_damaged_data_name_the_image():
    chain = transforms.build([])
    for codec in ("cbf", "lz4", "mono12p", "zip"):
        with pytest.raises(StreamError, match="image 7: "):
            chain.apply(Frame(7, (20, 20), "int32", codec, b"x"))
    with pytest.raises(StreamError, match="image 7: bslz4"):
        transforms.build(["decode"]).apply(Frame(7, (2, 2), "int32", "bslz4", b"x"))


@pytest.mark.parametrize("modules", [1, 3])
@pytest.mark.parametrize("codec", ["none", "bslz4", "lz4"])
def test_a_file_holds_what_the_chain_stores(codec, modules):
    """The dataset that is made for a codec reads its chunks, and tells the codec again."""
    header = FileHeader(1, "entry/instrument/detector/data", 2, 0.0, {})
    layout = ImageLayout(PIXELS.shape, "int32", codec, modules)
    image = bytearray(nexus.build(header, layout, 1)[0])
    with h5py.File(io.BytesIO(image), "r+") as file:
        data = file["entry/instrument/detector/data"]
        assert nexus.layout_of(data) == layout
        chunk = transforms.build([codec if codec != "none" else "decode"]).apply(frame(PIXELS)).data
        data.id.write_direct_chunk((1, 2, 0, 0) if modules > 1 else (1, 0, 0), bytes(chunk))
        same(data[1, 2] if modules > 1 else data[1], PIXELS)


# --- through the receiver --------------------------------------------------------------------------------------------

TWELVE = np.clip(PIXELS, 0, 4095).astype("uint16")
SENT = {  # what STINS calls type and compression, the payload, the pixels
    "cbf": ("int32", "cbf", CBF, PIXELS),
    "lz4 block": ("int32", "lz4", bytes(codecs.compress("lz4", PIXELS))[16:], PIXELS),
    "lz4 chunk": ("int32", "lz4", bytes(codecs.compress("lz4", PIXELS)), PIXELS),
    "bslz4": ("int32", "bslz4", bytes(codecs.compress("bslz4", PIXELS)), PIXELS),
    "mono12p": ("mono12p", "none", bytes(codecs.compress("mono12p", TWELVE)), TWELVE),
    "mono12packed": ("mono12packed", "", bytes(codecs.compress("mono12packed", TWELVE)), TWELVE),
    "padded": ("uint16", "none", b"".join(row.tobytes() + b"padding" for row in TWELVE), TWELVE),
}


@pytest.mark.parametrize("ways", ["libraries"], indirect=True)
@pytest.mark.parametrize("announced, steps", [(False, []), (True, []), (False, [{"rotate": 270}, "bslz4"])])
@pytest.mark.parametrize("sent", SENT)
def test_from_the_socket_into_the_file(tmp_path, sent, steps, announced):
    dtype, codec, payload, pixels = SENT[sent]
    said = {"shape": pixels.shape, "dtype": dtype, "codec": codec or "none"} if announced else {}
    with Sender() as sender, running(tmp_path, sender.endpoint, transforms=steps) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=3, **said)
        for number in range(3):
            data = payload if number != 1 else payload[:-1]
            stride = len(payload) // len(pixels) if sent == "padded" else None
            head = stins.encode_frame_header(number, pixels.shape, dtype, codec, sender.serial, series=1, stride=stride)
            sender.parts([head, data])
        sender.end()
        snapshot = wait_closed(engine, 1)
    with h5py.File(tmp_path / "a.h5") as file:
        for number in (0, 2):
            same(file[DATASET][number], np.rot90(pixels, 3) if steps else pixels)
    unseen = sent == "lz4 block" and not steps  # nobody decompresses what is stored as it came
    assert snapshot.written == (3 if unseen else 2)
