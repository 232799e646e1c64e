"""`tangods-detector`: one function per sub-command; the work is done elsewhere."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tangods_detector import __version__
from tangods_receiver import logs
from tangods_receiver.errors import ConfigError, DaqError

console = Console(soft_wrap=True, highlight=False)


class Commands(click.Group):
    """Errors that we raise on purpose end as one sentence and exit code 1, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DaqError as exc:
            raise click.ClickException(f"{type(exc).__name__}: {exc}") from exc


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log decisions too, not only series and anomalies.")
def main(verbose: bool) -> None:
    """Detector data acquisition: demonstrate, register, receive, replay, check and mend."""
    logs.of_a_program(verbose)
    for noisy in ("httpx", "httpcore", "uvicorn.access", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@main.command()
@click.option("--frames", default=100, show_default=True, type=click.IntRange(1), help="Images to take.")
@click.option("--rate", default=100.0, show_default=True, type=click.FloatRange(0.1, 10_000), help="Images per second.")
@click.option(
    "--size", nargs=2, default=(1024, 1024), show_default=True, type=click.IntRange(16), help="Rows, columns."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder for the file and the picture [default: a new one]."
)
@click.option("--keep", is_flag=True, help="Leave database and servers running until Ctrl-C.")
@click.option("--gui", is_flag=True, help="Open the window before them; they run until it is closed.")
def demo(frames: int, rate: float, size: tuple[int, int], output: Path | None, keep: bool, gui: bool) -> None:
    """Database, Detector and StreamReceiver on this machine: one series from the simulator, checked and drawn."""
    from tangods_detector.demo import run_demo

    run_demo(console, frames, rate, size, output, keep, gui)


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--instance", default="1", show_default=True, help="Instance of both servers.")
@click.option("--detector", default="test/det/1", show_default=True, help="Name of the Detector device.")
@click.option("--receiver", default="test/rec/1", show_default=True, help="Name of the StreamReceiver device.")
@click.option("--backend", default="simulator", show_default=True, help="Kind of detector.")
@click.option(
    "--option", "-o", "options", multiple=True, metavar="KEY=VALUE", help="Option of the backend; repeatable."
)
@click.option("--endpoint", "-e", "endpoints", multiple=True, help="Where the stream is pulled from; repeatable.")
@click.option("--root", help="Folder below which the receiver may write.")
@click.option("--dry-run", is_flag=True, help="Only show what would change: - is in the database now, + would be.")
def register(
    file: Path | None,
    instance: str,
    detector: str,
    receiver: str,
    backend: str,
    options: tuple[str, ...],
    endpoints: tuple[str, ...],
    root: str | None,
    dry_run: bool,
) -> None:
    """Register a Detector and its StreamReceiver in the database that TANGO_HOST names; safe to repeat.

    From the options below, or from FILE, YAML or JSON, for a whole beamline: `servers` and `classes` in dsconfig's
    form, `starter` with run levels, `sardana` as sardana-config loads it; resources/registration.md has an example.
    What FILE does not name stays; a property that is null goes."""
    import tango

    from tangods_detector.register import load_registration, pair
    from tangods_detector.register import run as put

    if file:
        wanted = load_registration(file)
    elif root is None or not endpoints:
        raise ConfigError("register: give FILE, or at least --root and --endpoint")
    else:
        wanted = pair(
            instance,
            detector,
            receiver,
            {"Backend": backend, "BackendOptions": list(options)},
            {"Root": root, "Endpoints": list(endpoints)},
        )
    try:
        console.print(put(tango.Database(), wanted, dry_run), markup=False)
    except tango.DevFailed as exc:
        raise ConfigError(f"the Tango database does not answer (TANGO_HOST): {exc.args[0].desc}") from exc


@main.command()
@click.argument("servers", nargs=-1, metavar="[SERVER/INSTANCE]...")
@click.option("--memorised", is_flag=True, help="Also what attributes were set to last.")
@click.option("--sardana", metavar="DEVICE", help="Also the elements of the pools of this MacroServer.")
def export(servers: tuple[str, ...], memorised: bool, sardana: str | None) -> None:
    """Print what the database has of these servers (patterns too, such as 'Detector/*') as YAML for `register`.

    Without servers: all of Detector and StreamReceiver."""
    import tango

    from tangods_detector.export import OURS, as_yaml
    from tangods_detector.export import export as read

    try:
        click.echo(as_yaml(read(tango.Database(), servers or OURS, memorised, sardana)), nl=False)
    except tango.DevFailed as exc:
        raise ConfigError(f"the Tango database does not answer (TANGO_HOST): {exc.args[0].desc}") from exc


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
def receive(config: Path) -> None:
    """Receive and write without Tango: the engine alone, from a YAML file, until SIGINT or SIGTERM."""
    from tangods_receiver.config import load
    from tangods_receiver.engine import Engine

    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    settings = load(config)
    with Engine(settings) as engine:
        where = f", status on port {engine.http_port}" if engine.http_port else ""
        logging.info("%s receives from %s%s", settings.name, ", ".join(settings.endpoints), where)
        stop.wait()


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--endpoint", default="tcp://127.0.0.1:9999", show_default=True, help="Address to bind the PUSH socket to."
)
@click.option("--filename", help="Name of the file that the receiver writes [default: as recorded].")
@click.option(
    "--rate",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Messages per second; 0 is as fast as possible.",
)
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1), help="Send each image so many times.")
@click.option(
    "--reorder", default=0, show_default=True, type=click.IntRange(0), help="Shuffle images in windows of so many."
)
@click.option("--cut", default=0, show_default=True, type=click.IntRange(0), help="Lose every so-manieth image.")
@click.option("--seed", default=0, show_default=True, help="Of the shuffle.")
@click.option("--curve-key", default="", help="This sender's .key_secret file: encrypt (see keygen).")
@click.option("--curve-clients", default="", help="Directory with the .key files of receivers that may connect.")
@click.option("--allow-peer", "allow_peers", multiple=True, help="Address or network that may connect; repeatable.")
def replay(
    files: tuple[Path, ...],
    endpoint: str,
    filename: str | None,
    rate: float,
    repeat: int,
    reorder: int,
    cut: int,
    seed: int,
    curve_key: str,
    curve_clients: str,
    allow_peers: tuple[str, ...],
) -> None:
    """Send recorded streams (.bin, .bin.gz), or CBF files (.cbf, .cbf.gz, .cbf.bz2) as one series, to a receiver."""
    from tangods_detector.replay import open_files
    from tangods_detector.replay import replay as send
    from tangods_receiver import security

    guard = security.guard(curve_key, curve_clients, allow_peers)
    with progress_bar("sent") as step:
        sent = send(
            open_files(files, filename),
            endpoint,
            rate,
            repeat=repeat,
            reorder=reorder,
            cut=cut,
            seed=seed,
            progress=lambda n: step(n, None),
            guard=guard,
        )
    console.print(f"{sent} messages sent")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Verify a series file: index against records, checksums, every frame decoded, the books."""
    from tangods_receiver.recovery import check as check_file

    _report(lambda progress: check_file(file, progress=progress), "checking")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def recover(file: Path) -> None:
    """Mend a series file that a killed receiver left: every frame that was written becomes readable."""
    from tangods_receiver.recovery import recover as recover_file

    _report(lambda progress: recover_file(file, progress=progress), "recovering")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="File to write [default: FILE with _assembled].")
@click.option(
    "--frames", default=":", metavar="A:B", help="From frame A to before B, counted from 0; either may be left out."
)
@click.option(
    "--geometry",
    type=click.Path(path_type=Path),
    help="YAML file with what is to be used instead of what FILE says, or beside it.",
)
def assemble(file: Path, output: Path | None, frames: str, geometry: Path | None) -> None:
    """Write the images of a file in modules as whole images, each a bslz4 chunk; of any geometry, also turned.

    Modules that are not turned show as one image in FILE itself (`assembled`); this is for all others, and for
    programs that read no virtual datasets. FILE is left as it is; an OUTPUT that exists is refused.

    \b
    Geometry, one key: value a line; from the start message in FILE, or the YAML file:
      x, y            [numbers] column and row of each module, in pixels from 0
      rotation        [degrees] of each, or one for all: counter-clockwise, row 0 on top
      full_shape      [rows, columns] of the image; left out: as large as needed
      rotation_about  what x, y are the place of: `box` (first column and row of the
                      turned module; the default), `corner` (its own first corner, about
                      which it is turned), `centre` (the module before it was turned about
                      its centre)

    Turns by 90, 180 and 270 degrees are exact; positions are rounded to whole pixels. At other angles each pixel is
    that of the module where its centre lies: nothing is interpolated. Between the modules: 0 in unsigned images, -1 in
    signed, NaN in those of real numbers; pixel_mask tells them."""
    from tangods_receiver import assemble as tool

    output = output or file.with_name(f"{file.stem}_assembled.h5")
    values = tool.load_geometry(geometry) if geometry else None
    with progress_bar("assembling") as step:
        done = tool.assemble(file, output, frames, values, step)
    rows, columns = done.full_shape
    console.print(f"{done.path}: {done.frames} images of {rows} x {columns}")
    if not done.closed:
        console.print("the series was not closed: these are the frames that could be read until now")


@main.command()
@click.argument("name", required=False)
@click.option(
    "--directory", default=".", show_default=True, type=click.Path(path_type=Path), help="Where the files are made."
)
@click.option("--token", type=click.Path(path_type=Path), help="Make a token for a receiver's HTTP side, in this file.")
def keygen(name: str | None, directory: Path, token: Path | None) -> None:
    """Make a pair of CURVE keys, NAME.key and NAME.key_secret, or a token; nothing that is there is replaced.

    Each machine that sends or receives has a pair of its own; resources/security.md says what goes where."""
    from tangods_receiver import security

    if not name and not token:
        raise ConfigError("keygen: give NAME, the name of the pair, or --token FILE")
    if name:
        public, secret = security.generate(name, directory)
        console.print(f"{secret}: stays on this machine, mode 0600")
        console.print("    a receiver's: curve_key (Tango: CurveKey); a sender's: option curve_key")
        console.print(f"{public}: {security.public_key(public).decode()}", markup=False)
        console.print("    of a sender: copy it to its receivers, and name it in curve_server_keys (CurveServerKeys)")
        console.print("    of a receiver: copy it into the senders' directories curve_clients")
    if token:
        console.print(
            f"{security.generate_token(token)}: http_token_file (TokenFile) of the receiver, and its clients'"
        )


@main.command("stream-pilatus", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="FOLDER [OPTIONS]")
def stream_pilatus(arguments: tuple[str, ...]) -> None:
    """Send what camserver writes into a RAM disk, on the detector's own computer; --help says more.

    Where this package cannot be installed: resources/make-pilatus-zipapp makes it one file for Python 3.6."""
    from tangods_detector.hw.pilatus_control import main as stream

    sys.exit(stream(list(arguments), program="tangods-detector stream-pilatus"))


@main.command("stream-lambda", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="--xspd HOST | --libxsp LIBRARY [OPTIONS]")
def stream_lambda(arguments: tuple[str, ...]) -> None:
    """Send the frames of the modules of one Lambda control unit, on its own computer; --help says more."""
    from tangods_detector.hw.lambda_control import main as stream

    sys.exit(stream(list(arguments), program="tangods-detector stream-lambda"))


@main.group()
def simulate() -> None:
    """A vendor's control unit that is not there, for tests; until SIGINT or SIGTERM."""


@simulate.command()
@click.option("--model", default="EIGER2 1M", show_default=True, help="EIGER, EIGER2: 500K, 1M, 4M, 9M, 16M.")
@click.option("--api", default="1.8.0", show_default=True, type=click.Choice(["1.6.0", "1.8.0"]))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Of the HTTP side [default: any free one].")
@click.option("--stream-port", default=0, type=click.IntRange(0, 65535), help="Of stream V1 [default: any free one].")
@click.option("--cbor-port", default=0, type=click.IntRange(0, 65535), help="Of stream V2 [default: any free one].")
@click.option(
    "--speed", default=0.01, show_default=True, help="Factor of all delays but exposures; 1: as the real one."
)
@click.option("--images", default="synthetic", show_default=True, help="Or a recorded stream V1.")
@click.option(
    "--bit-depth", default="0", show_default=True, type=click.Choice(["0", "8", "16", "32"]), help="0: chosen."
)
@click.option("--state", default="idle", show_default=True, type=click.Choice(["idle", "na"]), help="At the start.")
@click.option("--hwm", default=1000, show_default=True, help="Messages that wait before images are dropped.")
@click.option("--failures", default="{}", metavar="JSON", help="What goes wrong, as of POST /simulator/failures.")
def eiger(failures: str, bit_depth: str, **options: Any) -> None:
    """A DECTRIS control unit (SIMPLON): EIGER, EIGER2, PILATUS4. Prints its addresses in one line.

    Edges come by POST /simulator/edge, faults by POST /simulator/failures."""
    import json

    from tangods_detector.simulators.eiger import EigerOptions, EigerSimulator, Failures

    try:
        wanted = Failures.from_json(json.loads(failures))
    except (ValueError, AttributeError) as exc:
        raise ConfigError(f"failures: {failures!r} is no JSON object ({exc})") from exc
    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    with EigerSimulator(EigerOptions(bit_depth=int(bit_depth), **options)) as unit:  # type: ignore[arg-type]
        unit.fail(wanted)
        console.print(f"{unit.options.model} http://{unit.address} {unit.endpoint_v1} {unit.endpoint_v2}")
        stop.wait()


@simulate.command("andor")
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="Where the library is put.")
@click.option(
    "--camera",
    "cameras",
    multiple=True,
    metavar="MODEL SERIAL",
    help="zyla, zyla42, balor, marana or sona; repeatable.",
)
@click.option("--tell", "commands", multiple=True, help="To the Detector that uses it, such as 'edge 10'; repeatable.")
def libatcore(folder: Path, cameras: tuple[str, ...], commands: tuple[str, ...]) -> None:
    """Andor's SDK3 without a camera: makes a libatcore.so in FOLDER and prints its path, for the option library.

    With --tell nothing is made. simulators/fake_atcore.c lists what can be told: edges, faults, temperature."""
    from tangods_detector.simulators import andor

    if commands:
        for words in commands:
            andor.tell(folder / andor.NAME, words)
        return
    console.print(str(andor.make(folder.absolute(), cameras or ("zyla SIM-1",))), markup=False)


@simulate.command("hamamatsu")
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="Where the library is put.")
@click.option(
    "--camera", "cameras", multiple=True, metavar="MODEL SERIAL", help="flash4, fusion or lightning; repeatable."
)
@click.option("--tell", "commands", multiple=True, help="To the Detector that uses it, such as 'edge 10'; repeatable.")
def libdcamapi(folder: Path, cameras: tuple[str, ...], commands: tuple[str, ...]) -> None:
    """Hamamatsu's DCAM-API without a camera: makes a libdcamapi.so in FOLDER, prints its path, for the option library.

    With --tell nothing is made. simulators/fake_dcam.c lists what can be told: edges, faults, losses."""
    from tangods_detector.simulators import hamamatsu

    if commands:
        for words in commands:
            hamamatsu.tell(folder / hamamatsu.NAME, words)
        return
    console.print(str(hamamatsu.make(folder.absolute(), cameras or ("flash4 000123",))), markup=False)


@simulate.command()
@click.option("--model", default="2M", show_default=True, help="6M, 2M, 1M, 300K, 300K-W, 200K or 100K.")
@click.option(
    "--kind", default="PILATUS3 X", show_default=True, type=click.Choice(["PILATUS3 X", "PILATUS3 S", "PILATUS2"])
)
@click.option("--folder", default="", help="Where relative image paths begin [default: a new one in /dev/shm].")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Of camserver [default: any free one].")
@click.option("--test-port", default=0, type=click.IntRange(0, 65535), help="Of edges, faults [default: any free one].")
@click.option(
    "--speed", default=0.01, show_default=True, help="Factor of all delays but exposures; 1: as the real one."
)
@click.option("--images", default="synthetic", show_default=True, help="Or a CBF file, or a folder of them.")
@click.option("--stamp/--no-stamp", default=True, show_default=True, help="The last pixel is the image's number.")
@click.option("--limits/--no-limits", default=True, show_default=True, help="No: any period, no read-out.")
@click.option("--capacity", default=0, help="Bytes of the image disk [default: what the file system has].")
@click.option("--failures", default="{}", metavar="JSON", help="What goes wrong first.")
def pilatus(failures: str, **options: Any) -> None:
    """DECTRIS camserver: PILATUS2, PILATUS3. Prints its address, its test-only port and its folder in one line.

    Edges and faults come as lines of JSON to the test-only port: {"edge": 1, "width": 0.0}, {"fail": {...}}."""
    import json

    from tangods_detector.simulators.camserver import CamserverOptions, CamserverSimulator, Failures

    try:
        wanted = Failures.from_json(json.loads(failures))
    except (ValueError, AttributeError) as exc:
        raise ConfigError(f"failures: {failures!r} is no JSON object ({exc})") from exc
    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    with CamserverSimulator(CamserverOptions(**options)) as cam:
        cam.fail(wanted)
        host = cam.options.host
        console.print(f"{cam.unit.model.name} {host}:{cam.port} {host}:{cam.test_port} {cam.folder}")
        stop.wait()


@simulate.command("lambda")
@click.option(
    "--layout", default="single", show_default=True, type=click.Choice(["single", "pair", "square", "windmill", "ten"])
)
@click.option("--modules", default="", help="Those of the layout that this unit has, such as 3-4 [default: all].")
@click.option("--ports", default="modules", show_default=True, type=click.Choice(["modules", "combined"]))
@click.option("--chip", default=256, show_default=True, help="Pixels along a chip; a module has 6 x 2 chips.")
@click.option("--sensor", default="Si", show_default=True, type=click.Choice(["Si", "GaAs", "CdTe"]))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Of the REST side [default: any free one].")
@click.option("--first-data-port", default=0, type=click.IntRange(0, 65535), help="[default: any free ones]")
@click.option(
    "--speed", default=0.01, show_default=True, help="Factor of all delays but exposures; 1: as the real one."
)
@click.option("--max-frames", default=6930, show_default=True, help="Frames that fit into the RAM of a module.")
@click.option("--state", default="ready", show_default=True, type=click.Choice(["ready", "connected"]))
@click.option("--hwm", default=1000, show_default=True, help="Messages that wait before frames are dropped.")
@click.option("--failures", default="{}", metavar="JSON", help="What goes wrong, as of POST /simulator/failures.")
def xspd(failures: str, **options: Any) -> None:
    """X-Spectrum's xspd with a Lambda. Prints the addresses of REST side and data ports in one line.

    Edges come by POST /simulator/edge, faults by POST /simulator/failures."""
    import json

    from tangods_detector.simulators.xspd import Failures, XspdOptions, XspdSimulator

    try:
        wanted = Failures.from_json(json.loads(failures))
    except (ValueError, AttributeError) as exc:
        raise ConfigError(f"failures: {failures!r} is no JSON object ({exc})") from exc
    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    with XspdSimulator(XspdOptions(**options)) as unit:
        unit.fail(wanted)
        console.print(f"{unit.options.layout} http://{unit.address} {' '.join(unit.endpoints)}")
        stop.wait()


def _report(work: Callable[[Callable[[int, int], None]], Any], title: str) -> None:
    with progress_bar(title) as step:
        report = work(step)
    for line in report.lines():
        console.print(line)
    if not report.ok:
        sys.exit(1)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Gives what is called with done and total; the bar goes when the work is over or was refused, and there is none
    where nobody watches.

    Python drops a KeyboardInterrupt that happens to come while a weak reference or `__del__` is called, so the next
    step raises it; who cannot wait for that presses Ctrl-C once more."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    task = bar.add_task(title, total=None)
    interrupted = False

    def interrupt(sign: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            signal.default_int_handler(sign, frame)
        interrupted = True

    def step(done: int, total: int | None) -> None:
        if interrupted:
            raise KeyboardInterrupt
        bar.update(task, completed=done, total=total)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with bar:
            yield step
    finally:
        signal.signal(signal.SIGINT, before)
