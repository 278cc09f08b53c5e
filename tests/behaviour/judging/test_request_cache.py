"""The request cache: what was put in comes out, from many threads and processes, and no damage is fatal."""

import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from em_interp.behaviour.judging.llm_judge import cache_file
from em_interp.behaviour.judging.replies import Reply
from em_interp.behaviour.judging.request_cache import RequestCache
from em_interp.errors import InputError
from tests.tiny import full_disk

from .judge_server import judged, numbered, plant, serving


def reply_to(number):
    return Reply(f"{number}", "stop", ((f"{number}", -0.5),), model="é")


def key_of(number):
    return f"{number:064x}"


def filled(file, count=500):
    with RequestCache(file) as cache:
        for number in range(count):
            cache.put(key_of(number), reply_to(number))
    return file


def test_the_cache_gives_back_what_was_put_in_from_many_threads(tmp_path):
    replies = {key_of(number): reply_to(number) for number in range(500)}
    with RequestCache(tmp_path / "cache.sqlite3") as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(cache.put, replies, replies.values()))
        assert list(pool.map(cache.get, replies)) == list(replies.values())
    with RequestCache(tmp_path / "cache.sqlite3", read_only=True) as cache:
        assert len(cache) == 500 and all(cache.get(key) == reply for key, reply in replies.items())
        assert cache.get("0" * 64) == replies["0" * 64] and cache.get("f" * 64) is None


PUT = """
import pathlib, sys
from em_interp.behaviour.judging.replies import Reply
from em_interp.behaviour.judging.request_cache import RequestCache
with RequestCache(pathlib.Path(sys.argv[1])) as cache:
    for number in range(int(sys.argv[2]), 400, 2):
        cache.put(f"{number:064x}", Reply(f"{number}", "stop", ((f"{number}", -0.5),), model="é"))
        assert cache.get(f"{number:064x}").text == str(number)
"""


def test_several_processes_put_at_once_and_nothing_is_lost(tmp_path):
    file = tmp_path / "cache.sqlite3"
    writers = [subprocess.Popen([sys.executable, "-c", PUT, file, str(first)]) for first in (0, 1, 0, 1)]
    assert [writer.wait() for writer in writers] == [0] * 4
    with RequestCache(file) as cache:
        assert [cache.get(key_of(number)) for number in range(400)] == [reply_to(number) for number in range(400)]


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_off_anywhere_gives_what_is_whole_and_goes_on(kept, tmp_path):
    file = filled(tmp_path / "cache.sqlite3")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    goes_on(file)


@pytest.mark.parametrize("seed", range(20))
def test_a_file_with_damaged_bytes_gives_what_is_whole_and_goes_on(seed, tmp_path):
    file, rng = filled(tmp_path / "cache.sqlite3"), random.Random(seed)
    damaged = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 10, 1000])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    file.write_bytes(damaged)
    goes_on(file)


@pytest.mark.parametrize("content", [b"", b"hf_token", b"{}\n" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_set_aside(content, tmp_path):
    file = tmp_path / "cache.sqlite3"
    file.write_bytes(content)
    goes_on(file)
    if content:
        assert file.with_name("cache.sqlite3.damaged").read_bytes() == content


@pytest.mark.parametrize(
    "name", [b"repl\xc3es", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9", b"\xed\xa0\x80\xed\xa0\x80r", b"replie\0"]
)
def test_a_file_whose_tables_have_names_that_are_no_text_gives_what_is_whole_and_goes_on(name, tmp_path):
    file = filled(tmp_path / "cache.sqlite3")
    file.write_bytes(file.read_bytes().replace(b"TABLE replies", b"TABLE " + name))
    goes_on(file)


def goes_on(file):
    """Every reply is the one put in, or is missing and can be put in again; reading alone changes nothing."""
    before = file.read_bytes()
    with RequestCache(file, read_only=True) as cache:
        seen = [cache.get(key_of(number)) for number in range(500)]
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]
    with RequestCache(file) as cache:
        found = [cache.get(key_of(number)) for number in range(500)]
        assert all(reply in (None, reply_to(number)) for number, reply in [*enumerate(found), *enumerate(seen)])
        for number, reply in enumerate(found):
            if reply is None:
                cache.put(key_of(number), reply_to(number))
        assert [cache.get(key_of(number)) for number in range(500)] == [reply_to(number) for number in range(500)]


def test_a_table_of_another_form_is_set_aside(tmp_path):
    file = tmp_path / "cache.sqlite3"
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE replies (x)")
    database.close()
    goes_on(file)


def test_a_changed_row_is_requested_again_and_never_read(tmp_path):
    run = plant(tmp_path, numbered(6))
    with serving() as server:
        table = judged(run, server)
        run.scores_file.unlink()
        database = sqlite3.connect(cache_file(run))
        with database:
            database.execute("UPDATE replies SET reply = replace(reply, '\"5\"', '\"6\"')")
        database.close()
        assert judged(run, server).equals(table)
        assert max(server.answered().values()) == 2 and len(server.bodies) < 13 + 13


def test_a_cache_that_is_a_link_is_refused_and_what_it_points_to_left_alone(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = plant(tmp_path / "run", numbered(2))
    cache_file(run).symlink_to(victim)
    with serving() as server, pytest.raises(InputError, match=r"requests\.sqlite3 is a link; remove it"):
        judged(run, server)
    assert victim.read_text() == "precious"


def test_a_full_disk_is_said_and_what_was_kept_stays(tmp_path):
    file = filled(tmp_path / "cache.sqlite3", 100)
    with (
        RequestCache(file) as cache,
        full_disk(file.stat().st_size + 5000),
        pytest.raises(OSError, match="cache"),
    ):
        for number in range(100, 10_000):
            cache.put(key_of(number), reply_to(number))
    with RequestCache(file) as cache:
        assert [cache.get(key_of(number)) for number in range(100)] == [reply_to(number) for number in range(100)]
        cache.put("f" * 64, reply_to(1))
