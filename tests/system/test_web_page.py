"""The live page in a real browser, before a real receiver that gets a real stream: its pixels are looked at."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tangods_receiver import codecs
from tangods_receiver.pictures import COLOURS, MASKED, SATURATED, colormap
from tangods_receiver.protocol import stins
from tests.receiver.streaming import Sender, running, wait_closed
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.system]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FOUR_M = (2167, 2070)
TOP = 2**32 - 1
READ = """
    const reader = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const read = (x, y) => {
        reader.drawImage(document.getElementById('image'), x, y, 1, 1, 0, 0, 1, 1);
        return [...reader.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    };"""  # the page's own canvas is left as it is


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver: resources/install-apt test")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # chromium's own rule for root
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture
def sender():
    with Sender() as sender:
        yield sender


@pytest.fixture
def page(browser):
    """Afterwards: nothing in the console, nothing from elsewhere."""
    page = Page(browser)
    yield page
    # the receiver has ended, the page looks for it
    log, asked = [line for line in page.console() if "ERR_CONNECTION_" not in line], page.asked()
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_script("localStorage.clear()")
    browser.get("about:blank")
    assert log == [] or page.was_cut_off, log
    assert asked and all(name.startswith(page.address) or name in page.tried for name in asked), asked


class Page:
    def __init__(self, browser):
        self.browser = browser
        self.address = ""
        self.was_cut_off = False
        self.tried = ()  # what a test itself asked for elsewhere

    def open(self, engine):
        self.address = f"http://127.0.0.1:{engine.http_port}/"
        self.browser.get(self.address)
        wait_for(lambda: self.text("state") not in ("connecting", ""))

    def console(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def asked(self):
        """All that the page fetched, and connected to."""
        return self.browser.execute_script(
            "return performance.getEntries().filter(e => /navigation|resource/.test(e.entryType)).map(e => e.name)"
        )

    def one(self, name):
        return self.browser.find_element(By.ID, name)

    def text(self, name):
        return self.one(name).text

    def is_shown(self, name):
        return self.one(name).is_displayed()

    def press(self, *keys):
        self.browser.switch_to.active_element.send_keys(*keys)

    def focus_image(self):
        self.browser.execute_script("document.getElementById('image').focus()")

    def set_range(self, low, high):
        for name, value in (("low", low), ("high", high)):
            self.browser.execute_script(
                "const [e, v] = arguments; e.value = v; e.dispatchEvent(new Event('input', {bubbles: true}))",
                self.one(name),
                value,
            )

    def choose(self, name, value):
        Select(self.one(name)).select_by_value(value)

    def size(self):
        """Width and height of the canvas, in its own pixels."""
        return self.browser.execute_script("const c = document.getElementById('image'); return [c.width, c.height]")

    def colour(self, x, y):
        """Of one pixel of the canvas."""
        return tuple(self.browser.execute_script(f"{READ} return read(...arguments)", int(x), int(y)))

    def fitted(self, rows, columns):
        """Scale, left and top of an image that fits into the canvas (one canvas pixel for each of CSS)."""
        width, height = self.size()
        scale = min(width / columns, height / rows)
        left, top = ((width - columns * scale) / 2, (height - rows * scale) / 2)
        return scale, math.ceil(left - 0.5), math.ceil(top - 0.5)  # in whole pixels, as it is drawn

    def place(self, row, column, shape):
        """Where the middle of a pixel is, while the whole image is shown."""
        scale, left, top = self.fitted(*shape)
        return left + (column + 0.5) * scale, top + (row + 0.5) * scale

    def corner(self):
        """Where the canvas begins on the screen, in whole pixels as it is drawn."""
        box = self.browser.execute_script("return document.getElementById('image').getBoundingClientRect()")
        return round(box["x"]), round(box["y"])

    def point(self, x, y):
        """The mouse goes to this pixel of the canvas, or to the nearest that is in it; returns which."""
        width, height = self.size()
        x, y = (min(max(0, int(v)), size - 1) for v, size in ((x, width), (y, height)))
        self.move_mouse(x, y)
        self.drawn()
        return x, y

    def move_mouse(self, x, y):
        left, top = self.corner()
        actions = ActionBuilder(self.browser, duration=10)
        actions.pointer_action.move_to_location(left + x, top + y)
        actions.perform()

    def drawn(self):
        """Browsers tell a page of the mouse before they draw, and not at once."""
        self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def turn_wheel(self, x, y, delta):
        width, height = self.size()
        origin = ScrollOrigin.from_element(self.one("image"), round(x - width / 2), round(y - height / 2))
        ActionChains(self.browser, duration=10).scroll_from_origin(origin, 0, delta).perform()

    def cursor(self):
        """(row, column, value, mark) that the page tells; None while it does not know."""
        found = re.fullmatch(r"row (\d+)\s+column (\d+)\s+value (no value|-?[\d.e+]+)( \(\w+\))?", self.text("cursor"))
        if not found:
            return None
        value = None if found[3] == "no value" else float(found[3])
        return int(found[1]), int(found[2]), value, (found[4] or "").strip(" ()")

    def screenshot(self):
        return np.asarray(Image.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB"))


def start(sender, root, image, series=1, **more):
    """A series of which one image has come."""
    sender.start(root / f"a{series}.h5", series, **more)
    sender.frame(0, image)


def shown(page, number=0):
    wait_for(lambda: re.match(rf"\w+ {number}\b", page.text("badge")), what=lambda: page.text("badge"))


# --- pixels ----------------------------------------------------------------------------------------------------------


def quadrants(dtype="uint16"):
    image = np.full((200, 300), 60, dtype)
    image[:100, :150], image[:100, 150:] = 0, 100
    image[100:, 150:] = np.iinfo(dtype).max
    return image


@pytest.mark.parametrize("name", ["viridis", "magma", "grey_r", "turbo"])
def test_a_known_image_has_the_right_colours_in_the_right_places(page, sender, tmp_path, name):
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, quadrants())
        page.open(engine)
        shown(page)
        page.choose("map", name)
        page.set_range(0, 100)
        colours = [tuple(int(v) for v in colormap(name)[i]) for i in (0, 255, 153)] + [COLOURS[MASKED]]
        places = [(50, 75), (50, 225), (150, 75), (150, 225)]
        found = [page.colour(*page.place(row, column, (200, 300))) for row, column in places]
        assert found == colours
        # to the pixel: on either side of the borders
        edges = [(50, 149), (50, 150), (99, 75), (100, 75)]
        found = [page.colour(*page.place(row, column, (200, 300))) for row, column in edges]
        assert found == [colours[0], colours[1], colours[0], colours[2]]
        # what is on the screen is what is in the canvas
        corner_x, corner_y = page.corner()
        screen = page.screenshot()
        for (row, column), colour in zip(places, colours, strict=True):
            x, y = page.place(row, column, (200, 300))
            assert tuple(screen[corner_y + int(y), corner_x + int(x)]) == colour
        # nothing is drawn beside the image
        scale, left, _ = page.fitted(200, 300)
        if left > 3:
            assert page.colour(left - 2, 100) not in colours


def test_a_logarithmic_scale_and_the_range(page, sender, tmp_path):
    image = np.array([[1, 10], [100, 10000]], np.uint32).repeat(50, 0).repeat(50, 1)
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, image)
        page.open(engine)
        shown(page)
        page.choose("map", "grey")
        places = [(25, 25), (25, 75), (75, 25), (75, 75)]

        def greys():
            return [page.colour(*page.place(*place, image.shape))[0] for place in places]

        page.set_range(1, 10000)
        assert greys() == [0, 0, 3, 255]
        page.one("log").click()
        assert greys() == [0, 64, 128, 255]
        assert page.one("log").get_attribute("aria-pressed") == "true"
        page.set_range(1, 100)
        assert greys() == [0, 128, 255, 255]
        page.one("auto").click()
        assert greys() == [0, 64, 128, 255]
        page.one("log").click()
        assert greys() == [0, 0, 3, 255]


@pytest.mark.parametrize("shape", [(300, 400), (1500, 1300)])
def test_masked_and_saturated_pixels_have_their_colours_at_any_size(page, sender, tmp_path, shape):
    image = np.full(shape, 5, np.uint32)
    rows, columns = shape
    image[: rows // 4] = TOP
    image[rows // 2 : rows // 2 + 12, columns // 2 : columns // 2 + 12] = 5000
    image[-1] = image[:, -1] = 50
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, image, metadata={"saturation_value": 5000})
        page.open(engine)
        shown(page)
        place = page.place(rows // 8, columns // 2, shape)
        assert page.colour(*place) == COLOURS[MASKED]
        middle = page.place(rows // 2 + 5, columns // 2 + 5, shape)
        assert page.colour(*middle) == COLOURS[SATURATED]
        for name, colour in (("masked-colour", COLOURS[MASKED]), ("saturated-colour", COLOURS[SATURATED])):
            shade = page.one(name).value_of_css_property("background-color")
            assert tuple(map(int, re.findall(r"\d+", shade)[:3])) == colour  # the legend
        page.point(*place)
        wait_for(lambda: (page.cursor() or [0])[-1] == "masked", what="masked")
        page.point(*middle)
        wait_for(lambda: (page.cursor() or [0])[2:] == (5000, "saturated"), what="saturated")
        box = page.one("saturation")
        box.send_keys("6000", Keys.TAB)
        wait_for(lambda: page.colour(*middle) != COLOURS[SATURATED])
        box.send_keys(Keys.CONTROL + "a")
        box.send_keys("5", Keys.TAB)
        wait_for(lambda: page.colour(*page.place(rows // 2 - 20, 20, shape)) == COLOURS[SATURATED])


@pytest.mark.parametrize("shape", [(61, 83), (1200, 1600)])
def test_the_value_under_the_cursor_is_that_of_the_detectors_pixel(page, sender, tmp_path, shape):
    """At any zoom, also where what is shown was made smaller."""
    image = np.random.default_rng(3).integers(0, 2**31, shape).astype(np.uint32)
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, image)
        page.open(engine)
        shown(page)
        rows, columns = shape
        scale, left, top = page.fitted(*shape)

        def under(first, at):
            """What may be under the middle of a pixel of the canvas; two where that is the border of two."""
            return {math.floor((at + 0.5 - first) / scale + rim) for rim in (-1e-6, 1e-6)}

        def within(at, first, number):
            """The nearest pixel of the canvas whose middle is in the image."""
            last = math.ceil(first + number * scale - 0.5 - 1e-6) - 1
            return min(max(int(at), math.ceil(first - 0.5 + 1e-6)), last)

        for row, column in [(0, 0), (rows - 1, columns - 1), (rows // 3, columns // 2), (rows - 2, 2), (7, 11)]:
            x, y = page.place(row, column, shape)
            x, y = page.point(within(x, left, columns), within(y, top, rows))
            found = wait_for(page.cursor, what=f"the value at {row}, {column}")
            assert found[0] in under(top, y) and found[1] in under(left, x)
            assert abs(found[0] - row) <= 1 + 1 / scale and abs(found[1] - column) <= 1 + 1 / scale
            assert found[2] == image[found[0], found[1]]
        x, y = (round(v) for v in page.place(rows // 3, columns // 2, shape))
        page.point(x, y)
        before = wait_for(page.cursor)
        for delta in (-200, -400, -700):
            page.turn_wheel(x, y, delta)
            page.point(x + 1, y)
            page.point(x, y)
            row, column, value, _ = wait_for(page.cursor, what=lambda: page.text("cursor"))
            assert abs(row - before[0]) <= 1 + 1 / scale and abs(column - before[1]) <= 1 + 1 / scale
            assert value == image[row, column]
        # close up: each pixel of the screen shows the pixel that the cursor tells
        wait_for(lambda: "smaller" not in page.text("about"))
        page.set_range(0, 2**31)
        page.choose("map", "grey")
        for dx, dy in [(0, 0), (120, 40), (-90, -110), (7, 3), (-13, 22)]:
            page.point(x + dx, y + dy)
            row, column, value, _ = wait_for(page.cursor)
            assert value == image[row, column]
            assert abs(page.colour(x + dx, y + dy)[0] - 255 * value / 2**31) <= 1
        page.one("fit").click()
        page.point(x, y)
        wait_for(lambda: (page.cursor() or (-1, -1))[:2] == before[:2], what="the same pixel after Fit")


def test_a_picture_that_is_drawn_late_does_not_take_the_value_under_the_cursor_away(page, sender, tmp_path):
    image = np.random.default_rng(4).integers(0, 2**31, (1200, 1600)).astype(np.uint32)
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, image)
        page.open(engine)
        shown(page)
        x, y = page.point(*page.place(300, 400, image.shape))
        before = wait_for(page.cursor)
        page.browser.execute_script(
            "window.held = []; window.atOnce = requestAnimationFrame; window.requestAnimationFrame = f => held.push(f)"
        )
        sender.frame(1, image)
        wait_for(lambda: page.browser.execute_script("return held.length"), what="a picture that waits to be drawn")
        page.move_mouse(x + 40, y + 20)
        row, column, value, _ = wait_for(lambda: (found := page.cursor()) and found[:2] != before[:2] and found)
        assert value == image[row, column]
        page.browser.execute_script("window.requestAnimationFrame = atOnce; for (const f of held) f(performance.now())")
        shown(page, 1)
        assert wait_for(page.cursor, what=lambda: page.text("cursor"))[:3] == (row, column, value)


def test_the_value_follows_the_newest_image(page, sender, tmp_path):
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, np.full((1200, 1200), 7, np.uint16))
        page.open(engine)
        shown(page)
        page.point(*page.place(600, 600, (1200, 1200)))
        wait_for(lambda: (page.cursor() or [0] * 3)[2] == 7)
        sender.frame(1, np.full((1200, 1200), 9, np.uint16))
        wait_for(lambda: (page.cursor() or [0] * 3)[2] == 9)


# --- the stream ------------------------------------------------------------------------------------------------------


@contextmanager
def four_m_stream(sender, root, rate=12.0):
    """Images of a 4M detector, bslz4, without end."""
    random = np.random.default_rng(1)
    payloads = []
    for k in range(4):
        image = random.poisson(5, FOUR_M).astype(np.uint32)
        image[514:551] = TOP
        image[1000:1200, 1000:1200] = 1000 * (k + 1)
        payloads.append(bytes(codecs.compress("bslz4", image)))
    stop = threading.Event()

    def send():
        number = 0
        while not stop.wait(1 / rate):
            head = stins.encode_frame_header(number, FOUR_M, "uint32", "bslz4", serial=sender.serial, series=1)
            sender.parts([head, payloads[number % 4]])
            number += 1
        sender.end()

    sender.start(root / "a.h5", 1)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_five_pictures_a_second_of_a_four_m_detector(page, sender, tmp_path):
    """Counted where they arrive, in the pixels of the canvas. The best of several looks: other programs run as well."""
    count = """
        const [done, seconds] = [arguments[1], arguments[0]], canvas = document.getElementById('image');
        const [x, y] = [canvas.width / 2 | 0, canvas.height / 2 | 0];
        const numbers = new Set(), colours = new Set(), end = performance.now() + 1000 * seconds;
        const look = () => {
            colours.add(read(x, y).join());
            numbers.add(document.getElementById('shown').textContent);
            performance.now() < end ? setTimeout(look, 20) : done([numbers.size, colours.size]);
        };
        look();"""
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine, four_m_stream(sender, tmp_path):
        page.open(engine)
        wait_for(lambda: page.text("shown"), timeout=20)
        page.choose("map", "turbo")
        page.set_range(0, 5000)
        rates = []
        while len(rates) < 6 and max(rates, default=0) < 5:
            pictures, colours = page.browser.execute_async_script(READ + count, 3)
            rates.append((pictures - 1) / 3)
            assert colours >= 4
        print("pictures per second:", rates)
        assert max(rates) >= 5, rates
        x, y = page.place(530, 300, FOUR_M)
        assert page.colour(x, y) == COLOURS[MASKED]


def test_kinds(page, sender, tmp_path):
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, np.full((40, 40), 3, np.uint16))
        page.open(engine)
        shown(page)
        page.point(*page.place(20, 20, (40, 40)))
        wait_for(lambda: (page.cursor() or [0] * 3)[2] == 3)
        page.choose("kind", "sum")
        wait_for(lambda: page.text("shown").startswith("sum of 1"))
        for number in (1, 2):
            sender.frame(number, np.full((40, 40), 5, np.uint16))
            wait_for(lambda n=number: page.text("shown").startswith(f"sum of {n + 1}"))
        wait_for(lambda: (page.cursor() or [0] * 3)[2] == 13)
        page.choose("kind", "max")
        wait_for(lambda: page.text("shown").startswith("maximum"))
        wait_for(lambda: (page.cursor() or [0] * 3)[2] == 5)


def test_counters_file_and_the_last_series(page, sender, tmp_path):
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        page.open(engine)
        assert page.text("nothing") == "No image has been received yet." and page.is_shown("nothing")
        assert (page.text("state"), page.text("series-rows")) == ("idle", "none yet")
        start(sender, tmp_path, quadrants(), nframes=4)
        wait_for(lambda: page.text("state") == "running")
        wait_for(lambda: page.text("written") == "1" and page.text("percent") == "25 %")
        assert not page.is_shown("nothing")
        assert page.text("file") == str(tmp_path / "a1.h5") and page.text("expected") == "4"
        sender.frame(1, quadrants())
        sender.lose()
        sender.frame(3, quadrants())
        sender.end()
        wait_closed(engine, 1)
        wait_for(lambda: page.text("state") == "idle" and "is over" in page.text("what"))
        counts = [page.text(name) for name in ("received", "written", "missing", "expected")]
        assert counts == ["3", "3", "1", "4"]
        assert "1 missing" in page.text("losses") and "1 of 4 frames missing: 2" in page.text("error")
        wait_for(lambda: "a1.h5" in page.text("series-rows"))
        assert "3 / 4" in page.text("series-rows") and "1 of 4 frames missing: 2" in page.text("series-rows")
        start(sender, tmp_path, quadrants(), 2, nframes=1)
        sender.end()
        wait_closed(engine, 2)
        wait_for(lambda: page.text("series-rows").splitlines()[0].startswith("2 a2.h5"))
        wait_for(lambda: not page.is_shown("error"))
        assert page.browser.execute_script("return document.getElementById('plot').width") > 100


def test_an_error_says_its_sentence(page, sender, tmp_path):
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        page.open(engine)
        sender.start("/etc/a.h5", 1, nframes=1)
        wait_for(lambda: page.text("state") == "error")
        assert "/etc/a.h5: outside" in page.text("error") and "choose a path below it" in page.text("error")
        assert page.one("error").get_attribute("role") == "alert"
        assert page.browser.title.startswith("error")
        engine.reset()
        wait_for(lambda: page.text("state") == "idle" and not page.is_shown("error"))


def test_it_survives_a_restart_of_the_receiver_and_says_so_meanwhile(page, sender, tmp_path):
    page.was_cut_off = True
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        port = engine.http_port
        start(sender, tmp_path, quadrants())
        sender.end()
        page.open(engine)
        shown(page)
        assert page.console() == [] and not page.is_shown("gone")
    wait_for(lambda: page.text("state") == "no connection")
    assert "No connection to the receiver since" in page.text("gone") and page.is_shown("gone")
    assert "old" in page.one("image").get_attribute("class") and "stale" in page.one("badge").get_attribute("class")
    assert page.browser.title.startswith("no connection")
    with running(tmp_path, sender.endpoint, http=f"127.0.0.1:{port}") as engine:
        wait_for(lambda: page.text("state") == "idle" and not page.is_shown("gone"))
        start(sender, tmp_path, np.full((30, 60), 40, np.uint16), 2)
        wait_for(lambda: page.text("about").startswith("30 × 60 uint16"))
        wait_for(lambda: "stale" not in page.one("badge").get_attribute("class"))
        wait_for(lambda: page.text("state") == "running")
        assert "old" not in page.one("image").get_attribute("class")


def test_a_picture_that_is_not_new_says_how_old_it_is(page, sender, tmp_path):
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, quadrants())
        wait_for(lambda: engine.snapshot().written == 1)
        time.sleep(2.5)
        page.open(engine)  # also when nobody looked while it was new
        shown(page)
        age = float(re.search(r"([\d.]+) s ago", page.text("badge"))[1])
        assert 2.4 < age < 30 and "stale" in page.one("badge").get_attribute("class")
        sender.frame(1, quadrants())
        wait_for(lambda: page.text("badge") == "image 1 · now")
        assert "stale" not in page.one("badge").get_attribute("class")


# --- its page ---------------------------------------------------------------------------------------------------------


def test_every_command_in_the_page_about_it_works(sender, tmp_path):
    page = (Path(__file__).parents[2] / "resources" / "web.md").read_text()
    blocks = "".join(re.findall(r"```bash\n(.*?)```", page, re.S))
    commands = [line for line in blocks.replace("\\\n", " ").splitlines() if line.startswith("curl ")]
    assert len(commands) == 12
    image = np.arange(300 * 400).reshape(300, 400).astype(np.uint32)
    said = {}
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0", http_token_file=str(tmp_path / "token")) as engine:
        start(sender, tmp_path, image)
        wait_for(lambda: engine.snapshot().written == 1)
        for command in commands:
            here = command.replace("curl -s", "curl -sS --fail").replace(
                "127.0.0.1:8000", f"127.0.0.1:{engine.http_port}"
            )
            ran = subprocess.run(["bash", "-c", here], cwd=tmp_path, capture_output=True, text=True, timeout=20)
            assert ran.returncode == 0, (command, ran.stderr)
            said[re.search(r":8000/(\w+)", command)[1]] = ran.stdout
        wait_closed(engine, 1)
    assert json.loads(said["status"])["received"] == 1 and json.loads(said["series"]) == {"series": []}
    assert json.loads(said["pixel"])["value"] == image[100, 200]
    assert (np.load(tmp_path / "image.npy") == image).all()
    with Image.open(tmp_path / "image.png") as picture:
        assert picture.size == (400, 300)
    part = np.fromfile(tmp_path / "part.raw", np.uint32).reshape(32, 64)
    assert part[0, 0] == image[1, 1] and part[-1, -1] == image[63, 127]
    assert "viridis" in json.loads(said["colormaps"])["maps"] and "/last_frame" in json.loads(said["openapi"])["paths"]
    assert "tangods_" in said["metrics"] or "# HELP" in said["metrics"]
    assert json.loads(said["reset"])["state"] != "error" and json.loads(said["rois"])["rois"][0]["name"] == "beam"


# --- people ----------------------------------------------------------------------------------------------------------


def test_keys_alone_are_enough(page, sender, tmp_path):
    image = np.arange(200 * 300).reshape(200, 300).astype(np.uint32)
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, image)
        page.open(engine)
        shown(page)
        reached = []
        while "image" not in reached and len(reached) < 30:
            page.press(Keys.TAB)
            active = page.browser.switch_to.active_element
            reached.append(active.get_attribute("id"))
            assert active.value_of_css_property("outline-style") == "solid", reached[-1]
            assert active.accessible_name, reached[-1]
        wanted = {"theme", "keys", "kind", "map", "log", "auto", "low", "high", "in", "out", "fit", "method", "image"}
        assert wanted <= set(reached)
        page.focus_image()
        page.press(Keys.SHIFT + Keys.ARROW_RIGHT)
        row, column, value, _ = wait_for(page.cursor)
        assert (row, column) == (100, 151) and value == image[100, 151]
        page.browser.switch_to.active_element.send_keys(Keys.SHIFT + Keys.ARROW_UP + Keys.ARROW_UP)
        wait_for(lambda: (page.cursor() or [0])[:3] == (98, 151, image[98, 151]))

        def corner():
            page.point(60, 3)  # not beside the image
            return wait_for(page.cursor)[:2]

        whole = corner()
        page.focus_image()
        page.press("+", "+", "+")
        close = corner()
        assert close[0] > whole[0] + 20 and close[1] > whole[1] + 20
        page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
        further = corner()
        assert further[0] > close[0] + 3 and further[1] > close[1] + 3
        page.press(Keys.ARROW_LEFT, Keys.ARROW_UP)
        assert corner() == close
        page.press("-")
        assert corner()[0] < close[0]
        page.press("0")
        assert corner() == whole
        for key, name in (("l", "log"), ("a", "auto")):
            before = page.one(name).get_attribute("aria-pressed")
            page.press(key)
            assert page.one(name).get_attribute("aria-pressed") != before
        before = page.one("map").get_attribute("value")
        page.press("c")
        assert page.one("map").get_attribute("value") != before
        page.press("C")
        assert page.one("map").get_attribute("value") == before
        page.press("k")
        assert page.one("kind").get_attribute("value") == "sum"
        page.press("?")
        assert page.is_shown("help") and "move the cursor" in page.text("help")
        page.press(Keys.ESCAPE)
        assert not page.is_shown("help")


def test_dragging_moves_and_the_wheel_zooms(page, sender, tmp_path):
    image = np.arange(400 * 400).reshape(400, 400).astype(np.uint32)
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        start(sender, tmp_path, image)
        page.open(engine)
        shown(page)
        width, height = page.size()
        page.turn_wheel(width / 2, height / 2, -600)
        page.point(width / 2 + 40, height / 2 + 40)
        row, column, *_ = wait_for(page.cursor)
        ActionChains(page.browser, duration=20).click_and_hold().move_by_offset(-60, -30).release().perform()
        again = wait_for(page.cursor)
        assert again[:2] == (row, column)  # the pixel came along
        page.point(width / 2 + 40, height / 2 + 40)
        there = wait_for(page.cursor)
        assert there[0] > row and there[1] > column


def test_a_phone(page, sender, tmp_path):
    browser = page.browser
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        image = np.arange(1000 * 1000).reshape(1000, 1000).astype(np.uint32)
        with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
            start(sender, tmp_path, image)
            page.open(engine)
            shown(page)
            width, seen = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert (width, seen) == (390, 390)  # nothing sticks out
            box = browser.execute_script("return document.getElementById('stage').getBoundingClientRect()")
            assert box["width"] == 390 and box["y"] + 200 < 844  # the image comes first
            assert page.size()[0] == 780
            small = browser.execute_script(
                "return [...document.querySelectorAll('button, select, input')]"
                ".filter(e => e.offsetParent && e.offsetHeight < 32).map(e => e.id)"
            )
            assert small == []  # a finger can hit them

            def touch(kind, *points):
                touches = [{"x": x, "y": box["y"] + y, "id": k} for k, (x, y) in enumerate(points)]
                browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

            touch("touchStart", (195, 195))
            touch("touchEnd")
            row, column, value, _ = wait_for(page.cursor)
            assert value == image[row, column] and abs(row - 500) < 40 and abs(column - 500) < 40
            touch("touchStart", (185, 195), (205, 195))
            for gap in (20, 40, 80, 120):
                touch("touchMove", (195 - gap, 195), (195 + gap, 195))
            touch("touchEnd")
            touch("touchStart", (20, 20))
            touch("touchEnd")
            corner = wait_for(lambda: (found := page.cursor()) and found[:2] != (row, column) and found)
            assert corner[0] > 300 and corner[1] > 300  # it was near 0, 0 before
            assert corner[2] == image[corner[0], corner[1]]
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_dark_and_light(page, sender, tmp_path):
    def shade():
        colour = page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    def system(value):
        features = [{"name": "prefers-color-scheme", "value": value}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        system("light")
        page.open(engine)
        assert shade() > 200
        system("dark")
        wait_for(lambda: shade() < 60)
        for theme, dark in (("dark", True), ("light", False), ("system", True)):
            page.one("theme").click()
            assert page.text("theme") == f"Theme: {theme}" and (shade() < 60) == dark
        page.one("theme").click()
        page.open(engine)  # it is remembered
        assert page.text("theme") == "Theme: dark"
        assert json.loads(page.browser.execute_script("return localStorage.getItem('live')"))["theme"] == "dark"


def test_nothing_but_the_page_itself_may_run_in_it(page, sender, tmp_path):
    """The policy holds in a real browser: scripts, styles, pictures and connections from elsewhere are refused."""
    page.was_cut_off = True  # the refusals are in the console
    page.tried = ("http://127.0.0.1:9/x.png", "http://127.0.0.1:9/")
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        page.open(engine)
        done = page.browser.execute_async_script(
            """const done = arguments[0], refused = [];
            document.addEventListener('securitypolicyviolation', e => refused.push(e.effectiveDirective));
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
            const style = document.createElement('style');
            style.textContent = 'body { color: red }';
            document.head.append(style);
            new Image().src = 'http://127.0.0.1:9/x.png';
            fetch('http://127.0.0.1:9/').catch(() => {});
            setTimeout(() => done([refused.sort(), window.ran === true]), 300);"""
        )
        assert done == [["connect-src", "img-src", "script-src-elem", "style-src-elem"], False]
