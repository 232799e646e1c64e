"""Configuration: defaults, and all mistakes in one message."""

import pytest

from tangods_receiver import config, nexus
from tangods_receiver.errors import ConfigError


def test_defaults(tmp_path):
    c = config.make({"endpoints": ["tcp://dcu:9999"], "root": str(tmp_path)})
    assert (c.name, c.protocol, c.workers, c.io_threads) == ("receiver", "stins", 1, 2)
    assert (c.dataset, c.http, c.forward) == ("entry/instrument/detector/data", "127.0.0.1:8000", ())
    assert (c.hwm_bytes, c.end_timeout, c.stall_timeout, c.commit_interval) == (256 * 2**20, 2.0, 0.0, 1.0)
    assert c.endpoints == ("tcp://dcu:9999",) and c.root == tmp_path.resolve()


def test_one_endpoint_needs_no_list(tmp_path):
    assert config.make({"endpoints": "tcp://[::1]:1", "root": tmp_path}).endpoints == ("tcp://[::1]:1",)


def test_all_mistakes_in_one_message(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config.make(
            {"endpoint": "x", "root": tmp_path / "none", "workers": "many", "protocol": "odin"}, "receiver.yaml"
        )
    text = str(caught.value)
    assert text.startswith("receiver.yaml: ")
    for part in (
        "endpoints: missing",
        "endpoint: unknown key",
        "root: ",
        "does not exist",
        "workers: ",
        "'many'",
        "odin",
    ):
        assert part in text


@pytest.mark.parametrize(
    "key, value",
    [
        ("endpoints", []),
        ("endpoints", ["ipc:///tmp/x"]),
        ("endpoints", ["tcp://host"]),
        ("endpoints", ["tcp://host:0"]),
        ("endpoints", ["tcp://host:70000"]),
        ("endpoints", ["tcp://a b:9"]),
        ("endpoints", ["tcp://a:9", "tcp://a:9"]),
        ("endpoints", 5),
        ("workers", 0),
        ("workers", True),
        ("workers", 1.5),
        ("io_threads", 0),
        ("root", __file__),
        ("root", "/\0"),
        ("root", None),
        ("dataset", "data"),
        ("dataset", "entry/../data"),
        ("dataset", "entry//data"),
        ("dataset", "entry/instrument"),
        ("dataset", "entry/instrument/detector/top_channel"),
        ("dataset", "entry/end_time"),
        ("http", "8000"),
        ("http", "localhost:99999"),
        ("forward", "tcp://*:99980"),
        ("forward", "9998"),
        ("forward", [{"endpoint": "tcp://*:1", "policy": "best"}]),
        ("forward", ["tcp://*:1", "endpoint: tcp://*:2, every: 0"]),
        ("forward", [{"socket": "pub"}]),
        ("forward", ["tcp://*:1", "tcp://*:1"]),
        ("hwm_bytes", 10),
        ("end_timeout", -1),
        ("end_timeout", float("nan")),
        ("stall_timeout", float("inf")),
        ("commit_interval", 0),
        ("name", ""),
        ("channels", "both"),
    ],
)
def test_bad_values(tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"configuration: {key}[.0-9a-z_]*: "):
        config.make({"endpoints": ["tcp://dcu:9999"], "root": tmp_path} | {key: value})


@pytest.mark.parametrize("name", sorted(nexus._TAKEN - {"data"}))
def test_images_take_no_name_that_the_file_has_for_something_else(tmp_path, name):
    with pytest.raises(ConfigError, match="something else of this name"):
        config.make({"endpoints": "tcp://a:1", "root": tmp_path, "dataset": f"entry/instrument/detector/{name}"})


def test_good_values(tmp_path):
    values = {"http": "", "dataset": "/entry/data/", "workers": 4, "end_timeout": 0, "stall_timeout": 10}
    c = config.make({"endpoints": ["tcp://127.0.0.1:9999", "tcp://b.c-d:1"], "root": tmp_path} | values)
    assert (c.http, c.dataset, c.workers) == ("", "entry/data", 4)
    assert config.make({"endpoints": "tcp://a:1", "root": tmp_path, "http": "[::1]:0"}).http == "[::1]:0"


def test_forwarding_ports(tmp_path):
    given = ["tcp://*:9998", {"endpoint": "tcp://127.0.0.1:0", "socket": "pub", "every": 10}]
    c = config.make({"endpoints": ["tcp://a:1"], "root": tmp_path, "forward": given})
    assert [(p.endpoint, p.socket, p.policy, p.every) for p in c.forward] == [
        ("tcp://*:9998", "push", "drop", 1),
        ("tcp://127.0.0.1:0", "pub", "drop", 10),
    ]
    assert [p.address for p in c.forward] == ["tcp://*:9998", "tcp://127.0.0.1:*"]
    assert config.make({"endpoints": "tcp://a:1", "root": tmp_path, "forward": ""}).forward == ()


def test_yaml(tmp_path):
    path = tmp_path / "receiver.yaml"
    path.write_text(f"endpoints: [tcp://dcu:9999]\nroot: {tmp_path}\nworkers: 2\n")
    assert config.load(path).workers == 2


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "5: 6", "\x00", "\udcff"])
def test_what_is_no_configuration(tmp_path, text):
    path = tmp_path / "receiver.yaml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match="receiver.yaml"):
        config.load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.yaml")
