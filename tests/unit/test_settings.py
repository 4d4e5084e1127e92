"""What the environment and the settings say, and that no password is ever repeated."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from hybrid_memory import Settings
from hybrid_memory.errors import InvalidInput
from hybrid_memory.settings import Environment, check_opening, read_environment, settings_of

SECRET = "s3cret-p@ss/word?#%"
HOME = {"HOME": "/nowhere"}
CHOICES = ("auto", "embedded", "off")


def _read(**variables: str) -> Environment:
    return read_environment(HOME | variables)


def test_an_empty_environment_names_no_postgres() -> None:
    read = _read()
    assert (read.dsn, read.admin_dsn, read.named, read.ssl, read.pool_size) == (None, None, False, False, None)
    assert read.data_dir == Path("/nowhere/.local/share/hybrid_memory")


@pytest.mark.parametrize("name", ["DSN", "ADMIN_DSN", "LISTEN_DSN", "DATA_DIR", "POOLER"])
def test_an_empty_variable_is_as_good_as_none(name: str) -> None:
    assert _read(**{f"HYBRID_MEMORY_{name}": ""}) == _read()


@pytest.mark.parametrize("name", ["DB", "USER", "PASSWORD", "HOST", "PORT"])
def test_an_empty_part_of_a_server_is_as_good_as_none(name: str) -> None:
    assert not _read(**{f"POSTGRES_{name}": ""}).named


def test_a_dsn_is_taken_before_the_parts() -> None:
    read = _read(HYBRID_MEMORY_DSN="postgresql://h/d", POSTGRES_HOST="other", HYBRID_MEMORY_ADMIN_DSN="postgresql://a")
    assert (read.dsn, read.admin_dsn, read.named) == ("postgresql://h/d", "postgresql://a", True)


def test_parts_left_out_have_the_usual_values() -> None:
    assert _read(POSTGRES_USER="ann").dsn == "postgresql://ann@localhost:5432/ann"
    assert _read(POSTGRES_DB="d").dsn == "postgresql://postgres@localhost:5432/d"
    assert _read(POSTGRES_HOST="db.example").dsn == "postgresql://postgres@db.example:5432/postgres"


def test_all_parts_stand_in_the_dsn_whatever_characters_they_hold() -> None:
    dsn = _read(
        POSTGRES_DB="d/b", POSTGRES_USER="us:er", POSTGRES_PASSWORD=SECRET, POSTGRES_HOST="h", POSTGRES_PORT="6543"
    ).dsn
    assert dsn == "postgresql://us%3Aer:s3cret-p%40ss%2Fword%3F%23%25@h:6543/d%2Fb"


def test_the_directory_of_a_socket_may_be_the_host() -> None:
    dsn = _read(POSTGRES_HOST="/run/post gres", POSTGRES_DB="d", POSTGRES_USER="u").dsn
    assert dsn == "postgresql://u@/d?host=%2Frun%2Fpost%20gres&port=5432"


@pytest.mark.parametrize("host", ["::1", "fe80::1%eth0"])
def test_an_address_with_colons_stands_in_brackets(host: str) -> None:
    assert urlsplit(_read(POSTGRES_HOST=host).dsn or "").netloc == f"postgres@[{host}]:5432"


@pytest.mark.parametrize("host", ["a@b", "h/d", "h?x=1", "h#", "a b", "h\n", "a,b", " ", "h\0"])
def test_a_host_that_would_mean_something_else_in_a_dsn_is_refused(host: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _read(POSTGRES_HOST=host)
    assert caught.value.field == "POSTGRES_HOST"


_NO_NUMBERS = ["x", "-1", "0", "1.5", " 5", "5 ", "٣", "²", "1_000", "+5", "9" * 5000]


@pytest.mark.parametrize("port", [*_NO_NUMBERS, "65536"])
def test_a_wrong_port_is_refused_by_its_variables_name(port: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _read(POSTGRES_PORT=port, POSTGRES_PASSWORD=SECRET)
    assert caught.value.field == "POSTGRES_PORT"
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize("size", [*_NO_NUMBERS, "10001"])
def test_a_wrong_pool_size_is_refused_by_its_variables_name(size: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _read(POSTGRES_POOL_SIZE=size)
    assert caught.value.field == "POSTGRES_POOL_SIZE"


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("true", True),
        ("TRUE", True),
        (" 1 ", True),
        ("yes", True),
        ("on", True),
        ("require", True),
        ("false", False),
        ("0", False),
        ("No", False),
        ("off", False),
        ("disable", False),
        ("", False),
    ],
)
def test_tls_is_switched_by_words(text: str, flag: bool) -> None:
    assert _read(POSTGRES_SSL=text).ssl is flag


@pytest.mark.parametrize("text", ["maybe", "2", "verify-full"])
def test_another_word_for_tls_is_refused_rather_than_taken_for_no(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _read(POSTGRES_SSL=text)
    assert caught.value.field == "POSTGRES_SSL"


def test_the_data_lies_where_it_is_said_to() -> None:
    assert _read(HYBRID_MEMORY_DATA_DIR="/data/x").data_dir == Path("/data/x")
    assert _read(XDG_DATA_HOME="/data").data_dir == Path("/data/hybrid_memory")


def test_no_password_is_shown_with_an_environment() -> None:
    read = _read(HYBRID_MEMORY_DSN=f"postgresql://u:{SECRET}@h/d", HYBRID_MEMORY_ADMIN_DSN=f"postgresql://{SECRET}@h")
    for shown in (repr(read), str(read), f"{read!r:>5}"):
        assert SECRET not in shown
    assert SECRET not in repr(_read(POSTGRES_PASSWORD=SECRET))
    assert "s3cret" not in repr(_read(POSTGRES_PASSWORD=SECRET))


def test_a_pooler_and_the_way_past_it_are_said_by_the_environment_unless_settings_do() -> None:
    direct = f"postgresql://u:{SECRET}@h/d"
    read = _read(HYBRID_MEMORY_POOLER="transaction", HYBRID_MEMORY_LISTEN_DSN="postgresql://h/d")
    said = settings_of(read, Settings(batch_size=5))
    assert (said.pooler, said.listen_dsn, said.batch_size) == ("transaction", "postgresql://h/d", 5)
    assert settings_of(read, Settings(pooler="none", listen_dsn=None)) == Settings(pooler="none", listen_dsn=None)
    assert settings_of(_read(), None).pooler == "none"
    assert "s3cret" not in repr(Settings(listen_dsn=direct))


@pytest.mark.parametrize("mode", ["session", "yes", "Transaction"])
def test_another_word_for_a_pooler_is_refused(mode: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _read(HYBRID_MEMORY_POOLER=mode)
    assert caught.value.field == "HYBRID_MEMORY_POOLER"


def test_a_way_past_the_pooler_that_no_driver_could_read_is_refused() -> None:
    settings = Settings(listen_dsn="postgresql://h:port/d")
    with pytest.raises(InvalidInput) as caught:
        check_opening(dsn=None, data_dir=None, postgres="auto", choices=CHOICES, settings=settings)
    assert caught.value.field == "settings.listen_dsn"


def test_defaults_are_those_promised() -> None:
    settings = Settings()
    assert (settings.pool_size, settings.ssl) == (20, False)
    assert settings.refresh_limit == timedelta(seconds=60)
    assert settings.stale_thread_after == timedelta(hours=24)
    assert settings.content_bytes == 2**20


def test_the_environment_fills_in_what_settings_do_not_say() -> None:
    read = _read(POSTGRES_SSL="true", POSTGRES_POOL_SIZE="7")
    assert settings_of(read, None) == Settings(ssl=True, pool_size=7)
    assert settings_of(read, Settings(batch_size=5)) == Settings(batch_size=5, ssl=True, pool_size=7)
    assert settings_of(read, Settings(ssl=False, pool_size=3)) == Settings(ssl=False, pool_size=3)
    assert settings_of(_read(), Settings(ssl=True)) == Settings(ssl=True)
    assert settings_of(_read(), None) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pool_size", 0),
        ("pool_size", True),
        ("pool_size", "5"),
        ("pool_size", 1.0),
        ("ssl", "yes"),
        ("pooler", "session"),
        ("queue_entries", 0),
        ("queue_bytes", -1),
        ("batch_size", 0),
        ("batch_size", 1001),
        ("poll_interval", timedelta(0)),
        ("poll_interval", 5),
        ("refresh_limit", timedelta(seconds=-1)),
        ("stale_thread_after", timedelta(0)),
        ("sweep_interval", timedelta(0)),
        ("receipts_kept", timedelta(0)),
        ("drain_on_close", timedelta(seconds=-1)),
        ("index_bytes", 0),
        ("content_bytes", 0),
        ("unknown", 1),
    ],
)
def test_settings_take_nothing_that_does_not_fit(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings.model_validate({name: value})


def test_nothing_need_be_waited_for_at_the_end() -> None:
    assert Settings(drain_on_close=timedelta(0)).drain_on_close == timedelta(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dsn", ""),
        ("dsn", 5),
        ("dsn", b"postgresql://h"),
        ("dsn", f"postgresql://u:{SECRET}@h/\0"),
        ("dsn", "postgresql://u:s3cret@h:1:2:x/d"),
        ("dsn", "postgresql://u:s3cret@h:65536/d"),
        ("dsn", "postgresql://u:s3cret@a:1,b:x/d"),
        ("dsn", "postgresql://u:s3cret@[::1/d"),
        ("dsn", "postgresql://u:s3cret@h/d?port=x"),
        ("data_dir", "data"),
        ("data_dir", ""),
        ("data_dir", Path("a\0b")),
        ("postgres", None),
        ("postgres", ""),
        ("postgres", "OFF"),
        ("postgres", "none"),
        ("postgres", True),
        ("settings", {}),
        ("settings", "x"),
    ],
)
def test_a_manager_is_not_opened_with_anything_unknown(field: str, value: object) -> None:
    asked: dict[str, object] = {"dsn": None, "data_dir": None, "postgres": "auto", "settings": None}
    with pytest.raises(InvalidInput) as caught:
        check_opening(**(asked | {field: value}), choices=CHOICES)
    assert caught.value.field == field
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("name", ["HYBRID_MEMORY_DSN", "HYBRID_MEMORY_ADMIN_DSN"])
def test_a_dsn_of_the_environment_that_cannot_be_read_is_refused_by_its_variables_name(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _read(**{name: "postgresql://u:s3cret@h:port/d"})
    assert caught.value.field == name
    assert "s3cret" not in repr(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://h/d",
        "postgresql:///d",
        "postgresql://u:p%40@[::1]:5432/d",
        "postgresql://u@a:5432,b:5433,[::1]:5434,c/d",
        "postgresql://u@/d?host=/run/x&port=5433",
        "postgresql://u@%2Frun%2Fx:5433/d",
        "postgres://u:p@h/d?sslmode=require&application_name=x",
    ],
)
def test_a_dsn_that_a_driver_can_read_is_taken(dsn: str) -> None:
    check_opening(dsn=dsn, data_dir=None, postgres="auto", choices=CHOICES, settings=None)
