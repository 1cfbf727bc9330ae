"""Data sets by name: from a folder, from a download, from the cache; what is said if none works."""

import dataclasses
import functools
import hashlib
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from gp_deq.datasets import NAMES, Dataset, load
from gp_deq.datasets.sources import SOURCES, Source

SHAPES = {
    "diabetes": (442, 10),
    "yacht": (308, 6),
    "energy-heating": (768, 8),
    "energy-cooling": (768, 8),
    "concrete": (1030, 8),
    "wine": (1599, 11),
    "wine-white": (4898, 11),
    "kin8nm": (8192, 8),
    "powerplant": (9568, 4),
    "elevators": (16599, 18),
    "protein": (45730, 9),
    "bike": (17379, 12),
}
OWN_FOLDER = os.environ.get("GP_DEQ_DATA")
OWN_CACHE = os.environ.get("GP_DEQ_CACHE")
DOCS = Path(__file__).parents[2] / "docs"

# Two rows as "yacht" has them, as a download and as a CSV file.
RAW = b"1 2 3 4 5 6 0.5\n7 8 9 10 11 12 0.25\n"
CSV = b"a,b,c,d,e,f,y\n" + RAW.replace(b" ", b",")
X = torch.arange(1, 13, dtype=torch.float64).reshape(2, 6)
Y = torch.tensor([0.5, 0.25], dtype=torch.float64)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends one content, or the first part of it, and counts how often."""

    content = RAW
    cut = 0
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - self.server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no folder of the user's, and no proxy to ask for this machine."""
    monkeypatch.delenv("GP_DEQ_DATA", raising=False)
    monkeypatch.setenv("GP_DEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


def source(port: int, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Of "yacht", with the contents above, on this machine."""
    changed = dataclasses.replace(
        SOURCES["yacht"],
        sha256=sha256(CSV),
        raw_sha256=sha256(RAW),
        url=f"http://127.0.0.1:{port}/yacht.data",
        raw_file="yacht.data",
    )
    monkeypatch.setitem(SOURCES, "yacht", changed)
    return changed


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        source(running.server_port, monkeypatch)
        thread = threading.Thread(target=functools.partial(running.serve_forever, 0.01))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Nothing listens where "yacht" should come from."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return source(port, monkeypatch)


def assert_is_yacht(data: Dataset) -> None:
    assert torch.equal(data.X, X) and torch.equal(data.y, Y)
    assert data.X.dtype == data.y.dtype == torch.float64
    assert data.name == "yacht" and data.target_name == "residuary_resistance"
    assert data.feature_names[-1] == "froude_number"


def test_names() -> None:
    assert tuple(SHAPES) == NAMES


def test_diabetes_needs_no_file(offline: Source) -> None:
    data = load("diabetes")
    assert data.X.shape == SHAPES["diabetes"] and data.name == "diabetes"


@pytest.mark.parametrize("name", ["yahct", "", "Yacht"])
def test_unknown_name_lists_the_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*{', '.join(NAMES)}"):
        load(name)


def test_energy_has_two_targets() -> None:
    with pytest.raises(ValueError, match="'energy-heating' or 'energy-cooling'"):
        load("energy")


def test_own_folder(offline: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yacht.csv").write_bytes(CSV)
    monkeypatch.setenv("GP_DEQ_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)  # the extra is not needed
    assert_is_yacht(load("yacht"))


def test_own_file_with_another_checksum(
    offline: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = CSV.replace(b"0.5", b"0.6")
    (tmp_path / "yacht.csv").write_bytes(changed)
    monkeypatch.setenv("GP_DEQ_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="Replace the file") as caught:
        load("yacht")
    for part in (str(tmp_path / "yacht.csv"), sha256(changed), sha256(CSV)):
        assert part in str(caught.value)


def test_own_copy_of_the_original_file(
    offline: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yacht.data").write_bytes(RAW)
    monkeypatch.setenv("GP_DEQ_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert_is_yacht(load("yacht"))
    (tmp_path / "yacht.csv").write_bytes(b"damaged")
    assert_is_yacht(load("yacht"))
    (tmp_path / "yacht.data").write_bytes(RAW[:9])
    with pytest.raises(ValueError, match="Replace the file") as caught:
        load("yacht")
    for part in ("yacht.csv", sha256(CSV), "yacht.data", sha256(RAW[:9]), sha256(RAW), offline.url):
        assert part in str(caught.value)


def test_own_copy_may_have_either_form_under_the_same_name(
    offline: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = dataclasses.replace(offline, raw_file=offline.file)
    monkeypatch.setitem(SOURCES, "yacht", same)
    monkeypatch.setenv("GP_DEQ_DATA", str(tmp_path))
    for content in (RAW, CSV):
        (tmp_path / "yacht.csv").write_bytes(content)
        assert_is_yacht(load("yacht"))


def test_cache_that_cannot_be_written_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = tmp_path / "file" / "cache"  # for an administrator too
    monkeypatch.setenv("GP_DEQ_CACHE", str(folder))
    with pytest.raises(
        FileNotFoundError, match=r"cannot be read or written.*GP_DEQ_CACHE"
    ) as caught:
        load("yacht")
    assert str(folder) in str(caught.value) and "internet" not in str(caught.value)


def test_download_is_cached(server: Server, cache: Path) -> None:
    assert_is_yacht(load("yacht"))
    assert [file.read_bytes() for file in cache.iterdir()] == [RAW]
    assert_is_yacht(load("yacht"))
    assert server.requests == 1


def test_own_folder_without_the_file_downloads(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GP_DEQ_DATA", str(tmp_path))
    assert_is_yacht(load("yacht"))
    assert server.requests == 1


def test_underscore_is_a_hyphen(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "wine-white", SOURCES["yacht"])
    assert load("wine_white").name == "wine-white"


def test_damaged_cache_is_downloaded_again(server: Server, cache: Path) -> None:
    load("yacht")
    (file,) = cache.iterdir()
    file.write_bytes(RAW[:9])
    assert_is_yacht(load("yacht"))
    assert server.requests == 2


def test_download_with_another_checksum_is_not_kept(server: Server, cache: Path) -> None:
    server.content = RAW + b"0 0 0 0 0 0 0\n"
    with pytest.raises(ValueError, match=r"yacht\.data gave another file.*GP_DEQ_DATA") as caught:
        load("yacht")
    assert sha256(RAW) in str(caught.value) and sha256(server.content) in str(caught.value)
    assert not list(cache.iterdir())


def test_download_that_breaks_off_is_not_kept(server: Server, cache: Path) -> None:
    server.cut = 5
    with pytest.raises((FileNotFoundError, ValueError), match="GP_DEQ_DATA"):
        load("yacht")
    assert not list(cache.iterdir())
    server.cut = 0
    assert_is_yacht(load("yacht"))


@pytest.mark.parametrize("folder", [None, "", "nowhere"])
def test_offline_and_absent_says_both_ways(
    offline: Source, folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder is not None:
        monkeypatch.setenv("GP_DEQ_DATA", folder)
    with pytest.raises(FileNotFoundError) as caught:
        load("yacht")
    message = str(caught.value)
    state = "nowhere has neither" if folder else "it is not set"
    for part in (
        "GP_DEQ_DATA",
        "yacht.data",
        "yacht.csv",
        state,
        "connect to the internet",
        offline.url,
    ):
        assert part in message


def test_download_without_pooch(offline: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"gp_deq\[data\].*GP_DEQ_DATA.*yacht\.csv"):
        load("yacht")


@pytest.mark.parametrize("name", SOURCES)
def test_source(name: str) -> None:
    entry = SOURCES[name]
    assert len(entry.feature_names) == SHAPES[name][1]
    assert entry.target_name not in entry.feature_names
    assert entry.columns is None or len(set(entry.columns)) == SHAPES[name][1] + 1
    assert re.fullmatch(
        r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+", entry.url
    )
    for checksum in (entry.sha256, entry.raw_sha256):
        assert re.fullmatch("[0-9a-f]{64}", checksum)


def test_original_files_have_different_names() -> None:
    """Those of one folder; two data sets may share one file."""
    names = {entry.raw_file for entry in SOURCES.values()}
    assert len(names) == len({entry.raw_sha256 for entry in SOURCES.values()})


def test_docs_list_every_data_set() -> None:
    page = (DOCS / "api" / "datasets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) × (\d+) \|", page, re.MULTILINE)
    assert {name: (int(n), int(d)) for name, n, d in rows} == SHAPES
    page = (DOCS / "howto" / "datasets.md").read_text(encoding="utf-8")
    for name, entry in SOURCES.items():
        assert all(f"`{item}`" in page for item in (name, entry.file, entry.raw_file))
        assert entry.url in page


@pytest.mark.skipif(not OWN_FOLDER, reason="GP_DEQ_DATA names no folder of data sets")
@pytest.mark.parametrize("name", SOURCES)
def test_files_of_own_folder(name: str) -> None:
    data = load(name)
    assert tuple(data.X.shape) == SHAPES[name]
    assert data.X.isfinite().all() and data.y.isfinite().all()
    assert data.X.is_contiguous() and data.y.is_contiguous()
    with open(Path(OWN_FOLDER) / SOURCES[name].file, "rb") as file:
        if not SOURCES[name].file.endswith(".gz"):
            header = file.readline().decode().strip().split(",")
            assert header == [*data.feature_names, data.target_name]


@pytest.mark.skipif(not (OWN_FOLDER and OWN_CACHE), reason="GP_DEQ_DATA or GP_DEQ_CACHE not set")
@pytest.mark.parametrize("name", SOURCES)
def test_download_has_the_numbers_of_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads whatever GP_DEQ_CACHE does not have yet."""
    expected = load(name)
    monkeypatch.delenv("GP_DEQ_DATA")
    data = load(name)
    assert torch.equal(data.X, expected.X) and torch.equal(data.y, expected.y)
