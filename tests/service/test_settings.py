from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import ConfigurationError, Settings, is_loopback, load, rate_limit, reference


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an environment without our names."""
    for name in list(os.environ):
        if name.upper().startswith("ATTUNE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_flag_beats_environment_beats_file_beats_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load().batch_size == 64
    (folder / "attune.toml").write_text("batch_size = 1\nport = 1\nmax_k = 1\n")
    monkeypatch.setenv("ATTUNE_BATCH_SIZE", "2")
    monkeypatch.setenv("ATTUNE_PORT", "2")
    settings = load(batch_size=3, port=None)
    assert (settings.batch_size, settings.port, settings.max_k) == (3, 2, 1)


def test_file_named_by_the_environment_replaces_the_default_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "attune.toml").write_text("port = 1\n")
    (folder / "other.toml").write_text("batch_size = 7\n[default_method_settings]\nsteps = 2\n")
    monkeypatch.setenv("ATTUNE_CONFIG", "other.toml")
    settings = load()
    assert (settings.port, settings.batch_size) == (8080, 7)
    assert settings.default_method_settings == {"steps": 2}


def test_unknown_name_in_the_environment_fails_with_the_nearest_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATTUNE_BACH_SIZE", "2")
    with pytest.raises(ConfigurationError, match=r"ATTUNE_BACH_SIZE; did you mean ATTUNE_BATCH_SIZE\?"):
        load()


def test_unknown_key_in_the_file_fails_with_the_nearest_right_one(folder: Path) -> None:
    (folder / "attune.toml").write_text("bach_size = 2\n")
    with pytest.raises(
        ConfigurationError, match=r"attune.toml: unknown setting 'bach_size'; did you mean batch_size\?"
    ):
        load()


def test_unknown_flag_fails() -> None:
    with pytest.raises(ConfigurationError, match="did you mean batch_size"):
        load(bach_size=2)


@pytest.mark.parametrize("name", ["ATTUNE_SHARED", "ATTUNE_URL"])
def test_names_for_the_client_and_the_tests_are_known(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    load()


@pytest.mark.parametrize(
    ("content", "words"),
    [("port = ", "attune.toml"), ("port = 99999", "port: "), ('port = "many"', "port: ")],
)
def test_unreadable_file_and_values_are_named(folder: Path, content: str, words: str) -> None:
    (folder / "attune.toml").write_text(content)
    with pytest.raises(ConfigurationError, match=words):
        load()


def test_missing_named_file_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_CONFIG", "none.toml")
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        load()


def test_tables_in_the_environment_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_DEFAULT_METHOD_SETTINGS", '{"steps": 2}')
    assert load().default_method_settings == {"steps": 2}
    monkeypatch.setenv("ATTUNE_DEFAULT_METHOD_SETTINGS", "steps=2")
    with pytest.raises(ConfigurationError, match="JSON"):
        load()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "attune.example"])
def test_listening_beyond_loopback_needs_an_admin_key(host: str) -> None:
    with pytest.raises(ConfigurationError, match="ATTUNE_ADMIN_KEY"):
        load(host=host)
    assert load(host=host, admin_key="secret").host == host


def test_loopback_addresses_need_no_key() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))


def test_empty_admin_key_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_ADMIN_KEY", "")
    assert load().admin_key is None
    with pytest.raises(ConfigurationError, match="header"):
        load(admin_key="with space")


def test_key_is_never_shown() -> None:
    settings = load(admin_key="hidden-words")
    assert "hidden-words" not in repr(settings) + str(settings.model_dump())
    with pytest.raises(ConfigurationError) as failure:
        load(admin_key="hidden words")
    assert "hidden" not in str(failure.value)


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 512},
        {"queue_capacity_items": 10},
        {"default_gallery": "../x"},
        {"request_timeout_s": float("nan")},
        {"max_k": 0},
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        load(**values)


def test_settings_cannot_be_changed() -> None:
    settings = load()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_reference_in_docs_is_current() -> None:
    document = Path(__file__).parents[2] / "docs" / "settings.md"
    assert document.read_text(encoding="utf-8") == reference(), (
        "run: python -m service.settings > docs/settings.md"
    )


def test_api_keys_come_as_a_list_and_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_API_KEYS", '["first-key", "second-key"]')
    settings = load(admin_key="secret")
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "second-key"]
    assert "first-key" not in repr(settings) + str(settings.model_dump())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"api_keys": ["a"]}, "ATTUNE_ADMIN_KEY"),
        ({"api_keys": ["a", "b"], "admin_key": "b"}, "among the api_keys"),
        ({"api_keys": ["with space"], "admin_key": "b"}, "header"),
        ({"api_keys": [""], "admin_key": "b"}, "header"),
    ],
)
def test_api_keys_that_protect_nothing_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load(**values)


def test_rate_limit_is_read_as_text() -> None:
    limit = rate_limit(load(rate_limit_per_key="10 per 5 minutes").rate_limit_per_key or "")
    assert (limit.amount, limit.get_expiry()) == (10, 300)


@pytest.mark.parametrize(
    "text", ["many", "10", "0/minute", "5/minute; 10/hour", "3/fortnight", "1/year", "-1/minute"]
)
@pytest.mark.parametrize("name", ["rate_limit_per_key", "rate_limit_per_stream"])
def test_rate_limit_that_cannot_be_read_is_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}: a rate limit"):
        load(**{name: text})


@pytest.mark.parametrize(
    "address", ["collector:4318", "grpc://collector", "http://", "http://key@collector", "a b"]
)
def test_collector_that_is_no_web_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="otel_endpoint: "):
        load(otel_endpoint=address)
