"""The compile cache: whole entries or none, damage found, and never a failure of the program."""

import errno
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import pytest

from shorthaul.runtime import cache as cache_module
from shorthaul.runtime.cache import Cache, CacheWarning, default_directory, make_key


@pytest.fixture(autouse=True)
def _warnings_come_again():
    cache_module._warn_once.cache_clear()


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def test_an_entry_comes_back_with_its_files(tmp_path):
    source = tmp_path / "made.bin"
    source.write_bytes(b"\x00\x01")
    cache = Cache("things", tmp_path / "cache")
    key = make_key("a")
    assert cache.get(key) is None
    folder = cache.put(key, {"one.bin": source, "two.txt": b"text"})
    assert cache.get(key) == folder
    assert (folder / "one.bin").read_bytes() == b"\x00\x01"
    assert (folder / "two.txt").read_bytes() == b"text"
    assert not leftovers(tmp_path)


def test_kinds_do_not_mix(tmp_path):
    Cache("a", tmp_path).put(make_key("k"), {"f": b"a"})
    assert Cache("b", tmp_path).get(make_key("k")) is None


def test_keys_depend_on_how_the_parts_are_cut():
    keys = {make_key("ab", "c"), make_key("a", "bc"), make_key("abc"), make_key("abc", ""), make_key(b"ab", "c")}
    assert len(keys) == 4  # text and the same bytes are the same part


def test_json_values(tmp_path):
    cache = Cache("plans", tmp_path)
    assert cache.get_json(make_key("k")) is None
    cache.put_json(make_key("k"), {"tile": [32, 64], "name": "ä"})
    assert cache.get_json(make_key("k")) == {"tile": [32, 64], "name": "ä"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "f").write_bytes(b"contents with an error"),
        lambda folder: (folder / "f").write_bytes(b"cont"),
        lambda folder: (folder / "f").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text('{"format": 0, "files": {}}'),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
    ids=["changed", "truncated", "missing file", "no json", "wrong json", "old format", "no manifest"],
)
def test_a_damaged_entry_is_removed_reported_once_and_made_again(tmp_path, damage):
    cache, key = Cache("things", tmp_path), make_key("k")
    folder = cache.put(key, {"f": b"contents without error"})
    damage(folder)
    with pytest.warns(CacheWarning, match="damaged") as caught:
        assert cache.get(key) is None
    assert len(caught) == 1
    assert not folder.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(key) is None
        assert (cache.put(key, {"f": b"contents without error"}) / "f").read_bytes() == b"contents without error"
        assert cache.get(key) == folder


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("where", ["mkdir", "write_bytes", "rename"])
def test_a_full_or_read_only_disk_gives_a_warning_and_a_temporary_entry(tmp_path, monkeypatch, code, where):
    cache, key = Cache("things", tmp_path / "cache"), make_key("k")

    def refuse_inside(original):
        def refuse(path, *arguments, **options):
            if str(path).startswith(str(tmp_path)):
                raise OSError(code, os.strerror(code), str(path))
            return original(path, *arguments, **options)

        return refuse

    owner = os if where == "rename" else Path
    monkeypatch.setattr(owner, where, refuse_inside(getattr(owner, where)))
    with pytest.warns(CacheWarning, match="SHORTHAUL_CACHE_DIR") as caught:
        first, second = (cache.put(k, {"f": data}) for k, data in ((key, b"data"), (make_key("other"), b"other")))
    assert len(caught) == 1, "one warning for the whole process"
    assert (first / "f").read_bytes() == b"data"
    assert (second / "f").read_bytes() == b"other"
    assert not str(first).startswith(str(tmp_path))
    monkeypatch.undo()
    assert cache.get(key) is None
    assert not leftovers(tmp_path)


def test_a_directory_that_cannot_exist(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = Cache("things", tmp_path / "file" / "cache")
    assert cache.get(make_key("k")) is None
    with pytest.warns(CacheWarning, match="cannot be written"):
        folder = cache.put(make_key("k"), {"f": b"data"})
    assert (folder / "f").read_bytes() == b"data"


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    cache = Cache("things", tmp_path)
    monkeypatch.setattr(Path, "write_text", interrupt)  # the manifest, written last
    with pytest.raises(KeyboardInterrupt):
        cache.put(make_key("k"), {"f": b"data"})
    monkeypatch.undo()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert cache.get(make_key("k")) is None


def test_the_least_recently_used_entries_go_first(tmp_path):
    cache = Cache("things", tmp_path, limit=10_000)
    keys = [make_key(str(i)) for i in range(3)]
    for age, key in enumerate(keys):
        folder = cache.put(key, {"f": bytes(2500)})
        os.utime(folder / "manifest.json", (1000 + age, 1000 + age))
    assert cache.get(keys[0]) is not None  # used now: no longer the oldest
    newest = make_key("newest")
    Cache("others", tmp_path, limit=10_000).put(newest, {"f": bytes(2500)})  # all kinds count together
    assert cache.get(keys[1]) is None
    assert cache.get(keys[0]) is not None
    assert Cache("others", tmp_path).get(newest) is not None
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 9000


def test_an_entry_larger_than_the_limit_is_kept_for_its_maker(tmp_path):
    cache = Cache("things", tmp_path, limit=100)
    folder = cache.put(make_key("large"), {"f": bytes(1000)})
    assert (folder / "f").exists()


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    cache = Cache("things", tmp_path)
    folder = cache.put(make_key("k"), {"f": b"data"})
    old, young = folder.parent / ".old", folder.parent / ".young"
    old.mkdir()
    young.mkdir()
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    cache.put(make_key("another"), {"f": b"data"})
    assert not old.exists()
    assert young.exists()


def test_the_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_directory() == tmp_path / "named"
    monkeypatch.delenv("SHORTHAUL_CACHE_DIR")
    assert default_directory() == tmp_path / "xdg" / "shorthaul"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_directory() == tmp_path / "home" / ".cache" / "shorthaul"


def _put_and_get_many(directory: Path, barrier, results, seed: int) -> None:
    cache, wrong = Cache("things", directory), 0
    barrier.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(60):
            key = make_key(str(i))
            cache.put(key, {"f": bytes([i]) * 5000})
            folder = cache.get(key)
            wrong += folder is None or (folder / "f").read_bytes() != bytes([i]) * 5000
    results.put(wrong)


def test_two_processes_that_make_the_same_entries(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_put_and_get_many, args=(tmp_path, barrier, results, i)) for i in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [0, 0]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert len(list(tmp_path.glob("things/*/*/manifest.json"))) == 60
    assert not leftovers(tmp_path)
