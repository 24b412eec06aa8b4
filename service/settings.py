"""The one settings model of the server.

A value is taken from the first of: constructor arguments (command-line flags), the environment
(`ATTUNE_` + the name in capitals), a TOML file (`ATTUNE_CONFIG`, or `attune.toml` in the working
directory), the default. A misspelt name in the environment or the file stops the start.

`python -m service.settings` prints docs/settings.md.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from service.guard.settings import GuardSettings

if TYPE_CHECKING:
    from limits import RateLimitItem

PREFIX = "ATTUNE_"
DEFAULT_FILE = Path("attune.toml")
GALLERY_NAME = r"^[a-z0-9](?:\.?[a-z0-9_-])*\.?$"
STREAM_NAME = r"^[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*\.?$"
"""Names become folders and files: no separators, no leading dot, no `..`. Snapshots: as streams."""

OTHER_NAMES: Mapping[str, str] = {
    "ATTUNE_CONFIG": "TOML file with settings (default: attune.toml in the working directory, if present)",
    "ATTUNE_URL": "address of the server for the client commands and the Python client",
    "ATTUNE_API_KEY": "key that the client commands and the Python client send with queries",
    "ATTUNE_SHARED": "folder of the reference numbers, for the tests",
    "ATTUNE_CHROMIUM": "browser of the end-to-end tests (default: the Chromium that is installed)",
}
"""Names of the environment that are no setting of the server."""

MIB = 1024 * 1024
SECONDS_OF_A_DAY = 86_400


class ConfigurationError(ValueError):
    """The settings cannot be read: an unknown name, an unreadable file, a value out of range."""


class Settings(BaseSettings):
    """Everything that can be set on a server. Frozen; plain values travel on."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    # What this process is
    role: Literal["all", "api", "worker"] = Field(
        "all",
        description="`all`: one process does everything. With Redis also `api` (HTTP, no model) and `worker` "
        "(model and stream states, probes only).",
    )

    # Where the server listens and writes
    host: str = Field(
        "127.0.0.1", description="Address to listen on. Beyond loopback an admin key is required."
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity of the log lines (JSON, on stderr)."
    )
    data_folder: Path = Field(
        Path("attune-data"),
        description="Folder for galleries, calibrations, stream states and snapshots; made if missing.",
    )
    admin_key: SecretStr | None = Field(
        None,
        description="Key for the admin routes and all gallery changes, sent as `Authorization: Bearer KEY` "
        "or `X-Attune-Admin-Key: KEY`. None: those routes are open, and only loopback is served.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Further host names (`attune.example.org`) that requests may be addressed to while only "
        "loopback is served, as behind a proxy. Others with a dot that are not the machine's own are "
        "refused, unless there are API keys: any web page can make its name lead here.",
    )

    # Model and galleries
    encoder: str = Field(
        "demo", min_length=1, description="Dual encoder: `demo`, a local folder or a Hugging Face hub name."
    )
    device: str = Field(
        "auto", min_length=1, description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`."
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="Numbers that the encoder computes with.")
    torch_threads: int | None = Field(
        None, ge=1, description="Threads of one CPU operation. None: PyTorch's own choice."
    )
    default_gallery: str = Field(
        "demo",
        max_length=64,
        pattern=GALLERY_NAME,
        description="Gallery of requests that name none.",
    )
    demo_gallery_items: int = Field(
        500,
        ge=0,
        le=100_000,
        description="Items of the demo gallery that is built at the first start; 0: none.",
    )
    index: str = Field("flat", min_length=1, description="Index kind of new galleries that ask for none.")

    # Adaptation
    default_method: str = Field("tcr", min_length=1, description="Adaptation method of new streams.")
    default_method_settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of the default method over its own defaults (JSON in the environment).",
    )
    mode: Literal["auto", "sync", "async", "off"] = Field(
        "auto",
        description="What `adapt: auto` means: `auto` is `sync` for requests of at least `sync_from_items` "
        "queries and `async` below; the others fix one.",
    )
    sync_from_items: int = Field(
        16, ge=1, description="Queries from which on `auto` adapts before it answers."
    )
    batch_size: int = Field(64, ge=1, le=4096, description="Most queries of one adaptation batch.")
    batch_max_wait_ms: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="Milliseconds to wait for more queries of the same kind before encoding.",
    )
    gather_max_age_s: float = Field(
        5.0,
        gt=0,
        description="Seconds after which queries gathered in the background adapt as a smaller batch.",
    )
    gather_min_items: int = Field(
        16, ge=1, description="Fewest queries of such a smaller batch; below, gathering goes on."
    )
    gather_capacity_items: int = Field(
        256,
        ge=1,
        description="Most queries that one track gathers; beyond, the oldest leave without adapting.",
    )
    gather_total_items: int = Field(
        4096,
        ge=1,
        description="Most queries gathered by all streams together; beyond, the longest waiting gathering "
        "leaves without adapting.",
    )
    gather_total_mib: int = Field(
        1024,
        ge=1,
        description="Most MiB of their pictures and sounds; beyond, likewise.",
    )
    answer_before_last_update: bool = Field(
        True,
        description="In `sync`, answer before the last update of the batch, which cannot change the answer.",
    )

    # Classification
    classifier: str = Field(
        "demo",
        description="Audio-video classifier of /classify: `demo`, or a local folder made by "
        "`python -m encoders.convert_cav_mae`. Empty: none; labels given as texts are still classified.",
    )
    classify_method: str = Field(
        "brimpr", min_length=1, description="Adaptation method of new streams for the classifier."
    )
    classify_method_settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of that method over its own defaults (JSON in the environment).",
    )
    clean_calibration: str = Field(
        "encoder",
        description="Calibration that knows clean pictures and texts: streams show their shift from them, "
        "and methods with `learn_from_shift` learn only from such. `encoder`: the file beside the weights.",
    )
    classify_missing: Literal["auto", "model", "impute"] = Field(
        "auto",
        description="Who answers samples that lack sound or picture: the classifier's own path (`model`), "
        "its completion (`impute`), or for each modality the one that `attune calibrate` found right more "
        "often (`auto`); docs/classify.md.",
    )

    # Guard
    guard: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of the guard over its defaults (docs/guard.md; JSON in the environment), for "
        'example `{"policy": "warn"}`.',
    )

    # Limits
    queue_capacity_items: int = Field(
        1024, ge=1, description="Most queries waiting at once; beyond, requests get 429 with Retry-After."
    )
    request_timeout_s: float = Field(
        120.0, gt=0, description="Seconds after which a waiting request gets 504."
    )
    max_queries_per_request: int = Field(256, ge=1, description="Most queries of one /retrieve.")
    max_k: int = Field(1000, ge=1, description="Most hits of one query.")
    max_text_characters: int = Field(10_000, ge=1, description="Most characters of one text.")
    max_image_bytes: int = Field(
        20 * MIB, ge=1, description="Most bytes of one picture, as sent (decoded base64)."
    )
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="Most pixels of one picture, read from its header."
    )
    max_items_per_request: int = Field(
        256, ge=1, description="Most gallery items added or removed by one request."
    )
    max_body_bytes: int = Field(64 * MIB, ge=1024, description="Most bytes of a request body.")
    max_snapshot_bytes: int = Field(256 * MIB, ge=1024, description="Most bytes of an imported snapshot.")

    # Previews
    preview_pixels: int = Field(
        256,
        ge=0,
        le=1024,
        description="Longest side of the small picture that a gallery keeps of each item added with a "
        "picture, for people to see; never enlarged. 0: none, in the demo gallery neither, whose previews "
        "have 128.",
    )

    # Calibrations
    max_calibration_bytes: int = Field(
        64 * MIB, ge=1024, description="Most bytes of a calibration that is sent in (docs/missing.md)."
    )
    max_calibration_samples: int = Field(
        20_000, ge=8, description="Most items of a gallery that one calibration is fitted to."
    )

    # Limits of /classify
    max_audio_bytes: int = Field(32 * MIB, ge=1, description="Most bytes of one sound, as sent.")
    max_audio_seconds: float = Field(60.0, gt=0, le=3600, description="Longest sound, read from its header.")
    max_clip_bytes: int = Field(32 * MIB, ge=1, description="Most bytes of one video clip, as sent.")
    max_clip_seconds: float = Field(60.0, gt=0, le=3600, description="Longest video clip.")
    max_labels: int = Field(1000, ge=2, description="Most labels that a request of /classify may name.")
    classify_connections: int = Field(
        32, ge=1, description="Most streaming requests of /classify (NDJSON and WebSocket) open at once."
    )
    classify_window_items: int = Field(
        64,
        ge=1,
        le=4096,
        description="Samples of one streaming request that are read and not yet answered; beyond, reading "
        "waits. At least twice the batch where batches are gathered.",
    )
    classify_line_bytes: int = Field(
        16 * MIB, ge=1024, description="Most bytes of one line or WebSocket message of /classify."
    )
    classify_line_timeout_s: float = Field(
        30.0, gt=0, description="Seconds in which a line of /classify must be whole once it has begun."
    )
    classify_idle_timeout_s: float = Field(
        300.0, gt=0, description="Seconds without a line after which a streaming request of /classify ends."
    )
    classify_write_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds that a client may leave answers unread; then its connection ends. Holds for "
        "every connection of the server.",
    )
    websocket_origins: tuple[str, ...] = Field(
        (),
        description="Further web origins whose pages may open a WebSocket, for example "
        "`https://shop.example` (a JSON list in the environment). Pages of the server's own address always "
        "may, others never.",
    )

    # Access and rate limits
    api_keys: tuple[SecretStr, ...] = Field(
        (),
        description="Keys for queries, for reading galleries and for /models, sent as `Authorization: Bearer "
        "KEY` or `X-Attune-Api-Key: KEY` (a JSON list in the environment). The admin key opens these too, an "
        "API key never an admin route. Empty: they are open. Needs `admin_key`.",
    )
    rate_limit_per_key: str | None = Field(
        None,
        description="Most queries of one API key, or of one client address where there are no keys, for "
        "example `600/minute`; beyond, 429 with Retry-After. None: no limit.",
    )
    rate_limit_per_stream: str | None = Field(
        None, description="Most queries of one stream, for example `120/minute`. None: no limit."
    )

    # Redis
    redis_url: SecretStr | None = Field(
        None,
        description="Redis for queue, states and rate limits, for example `redis://redis:6379/0`. None: one "
        "process holds everything.",
    )
    redis_namespace: str = Field(
        "attune",
        max_length=64,
        pattern=STREAM_NAME,
        description="First part of every key in Redis; servers that share a Redis and no data differ in it.",
    )
    redis_timeout_s: float = Field(
        2.0, gt=0, le=60, description="Seconds after which Redis counts as gone when it does not answer."
    )
    lease_s: float = Field(
        4.0,
        ge=0.5,
        le=60,
        description="Seconds for which a worker owns its streams without renewing; so long they wait when it "
        "dies.",
    )
    prefetch_items: int = Field(
        256, ge=1, description="Queries that a worker takes from Redis ahead of the batch under way."
    )
    max_attempts: int = Field(
        5, ge=1, description="Workers that may begin a query and die; then it fails with 500."
    )
    max_job_mib: int = Field(
        64, ge=1, le=512, description="Most MiB of the queries of one batch on their way through Redis."
    )
    stream_ttl_days: float = Field(
        30.0, ge=0, description="Days after which an unused, unpinned stream leaves Redis; 0: never."
    )

    # Console
    console: bool = Field(
        True,
        description="Whether browsers get the console at `/`, and /console/* is there (docs/console.md).",
    )
    console_folder: Path | None = Field(
        None,
        description="A built console to serve instead of the one that comes with Attune, for people who work "
        "on it. Read once, at the start.",
    )

    # Events
    events_interval_s: float = Field(
        1.0,
        ge=0.05,
        le=60,
        description="Seconds between two looks at the streams while somebody listens to /admin/events; more "
        "where a look takes long.",
    )
    event_connections: int = Field(
        32, ge=1, le=1000, description="Most listeners to /admin/events of one process; beyond, 503."
    )

    # Metrics and traces
    metrics_streams: int = Field(
        20,
        ge=0,
        le=1000,
        description="Most streams with figures of their own in /metrics: pinned ones first, then the most "
        "recently used.",
    )
    otel_endpoint: str | None = Field(
        None,
        description="OpenTelemetry collector (OTLP over HTTP) that gets the traces, for example "
        "`http://collector:4318`; needs the extra `otel`. None: no traces.",
    )

    # Streams and shutdown
    max_streams: int = Field(
        10_000,
        ge=1,
        description="Most streams in memory; beyond, the least recently used is saved and leaves. Pinned "
        "streams stay.",
    )
    max_stream_memory_mib: int = Field(
        4096, ge=1, description="Most MiB of stream states in memory; beyond, likewise."
    )
    shed_from_queue_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the queue's capacity that waits from which on answers come first: synchronous "
        "batches are answered without adapting, gathered ones wait.",
    )
    shed_from_wait_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of its time to the deadline that a synchronous batch may wait and still adapt.",
    )
    state_save_interval_s: float = Field(
        30.0, gt=0, description="Seconds between saves of changed stream states."
    )
    shutdown_grace_s: float = Field(
        30.0, ge=0, description="Seconds that accepted work gets to finish at shutdown."
    )

    @field_validator("admin_key")
    @classmethod
    def _key_fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _fits_a_header(value):
            raise ValueError("an admin key is printable ASCII without spaces, because it travels in a header")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_fit_a_header(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(_fits_a_header(key) for key in value):
            raise ValueError("an API key is printable ASCII without spaces, because it travels in a header")
        return value

    @field_validator("rate_limit_per_key", "rate_limit_per_stream")
    @classmethod
    def _limit_can_be_read(cls, value: str | None) -> str | None:
        if value is not None:
            rate_limit(value)
        return value

    @field_validator("otel_endpoint")
    @classmethod
    def _endpoint_is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
            raise ValueError("an endpoint looks like http://collector:4318")
        return value

    @field_validator("guard")
    @classmethod
    def _guard_is_known(cls, value: dict[str, Any]) -> dict[str, Any]:
        GuardSettings(**value)
        return value

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        if self.admin_key is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} is reachable beyond this machine and needs an admin key: "
                "set ATTUNE_ADMIN_KEY, or listen on 127.0.0.1"
            )
        if self.role != "all" and self.redis_url is None:
            raise ValueError(f"role {self.role!r} needs Redis: set ATTUNE_REDIS_URL")
        if self.api_keys and self.admin_key is None:
            raise ValueError(
                "api_keys need an admin key too: without ATTUNE_ADMIN_KEY anybody could change galleries"
            )
        if self.admin_key in self.api_keys:
            raise ValueError("the admin key is among the api_keys; an API key never opens an admin route")
        _at_most(self, "batch_size", "gather_capacity_items")
        _at_most(self, "gather_capacity_items", "gather_total_items")
        _at_most(self, "max_queries_per_request", "queue_capacity_items")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        refuse_unknown_environment(os.environ)
        file_values = read_file(settings_file(os.environ))
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=file_values)


def load(**flags: Any) -> Settings:
    """The settings of this process; flags that are None count as not given.

    Raises:
        ConfigurationError: with one readable line a mistake.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError("\n".join(_readable(mistake) for mistake in error.errors())) from error
    except SettingsError as error:
        raise ConfigurationError(
            f'{error} (in the environment lists and tables are written as JSON, such as ["one", "two"])'
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def rate_limit(text: str) -> RateLimitItem:
    """`600/minute` or `10 per 5 seconds` as a limit. Raises ValueError unless it is one of at most a day."""
    from limits import parse_many  # takes a fifth of a second, and only some servers have limits

    try:
        (limit,) = parse_many(text)
    except ValueError:
        raise ValueError("a rate limit looks like 600/minute, with second, minute, hour or day") from None
    if limit.amount < 1 or not 1 <= limit.get_expiry() <= SECONDS_OF_A_DAY:
        raise ValueError("a rate limit lets at least 1 query through, in at most a day")
    return limit


def _fits_a_header(key: SecretStr) -> bool:
    """Printable ASCII without spaces."""
    return re.fullmatch(r"[!-~]+", key.get_secret_value()) is not None


def settings_file(environment: Mapping[str, str]) -> Path | None:
    """The TOML file to read, or None. Raises ConfigurationError where the named file is missing."""
    named = environment.get("ATTUNE_CONFIG")
    if named:
        if not Path(named).is_file():
            raise ConfigurationError(f"ATTUNE_CONFIG names {named!r}, which is no file")
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def read_file(path: Path | None) -> dict[str, Any]:
    """The values of a TOML file. Raises ConfigurationError for unreadable files and unknown keys."""
    if path is None:
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    for key in values:
        if key not in Settings.model_fields:
            raise ConfigurationError(f"{path}: unknown setting {key!r}{_nearest(key, Settings.model_fields)}")
    return values


def refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    """Raises ConfigurationError for the first ATTUNE_ name that means nothing."""
    known = [PREFIX + name.upper() for name in Settings.model_fields] + list(OTHER_NAMES)
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise ConfigurationError(f"unknown environment variable {name}{_nearest(name.upper(), known)}")


def _nearest(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else "; docs/settings.md lists all settings"


def _at_most(settings: Settings, small: str, large: str) -> None:
    if getattr(settings, small) > getattr(settings, large):
        raise ValueError(
            f"{small} ({getattr(settings, small)}) must not exceed {large} ({getattr(settings, large)})"
        )


def _readable(mistake: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in mistake["loc"])
    message = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        return f"unknown setting {where!r}{_nearest(where, Settings.model_fields)}"
    return f"{where}: {message}" if where else message


def reference() -> str:
    """docs/settings.md: every setting with its default, its values and what it does."""
    lines = [
        "# Settings",
        "",
        "Made by `python -m service.settings > docs/settings.md`; a test checks that it is current.",
        "",
        "A value is taken from the first of: flag of `attune serve`, environment variable, TOML file",
        "(`ATTUNE_CONFIG`, or `attune.toml` in the working directory), default. The TOML key is the name",
        "below; the environment variable is `ATTUNE_` and the name in capitals. Unknown names stop the",
        "start.",
        "",
        "| name | default | values | meaning |",
        "|---|---|---|---|",
    ]
    lines += [_row(name, field) for name, field in Settings.model_fields.items()]
    lines += ["", "Other environment variables:", "", "| name | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in OTHER_NAMES.items()]
    return "\n".join(lines) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    shown = json.dumps(str(default) if isinstance(default, Path) else default).replace("null", "none")
    return f"| `{name}` | `{shown}` | {_values(name)} | {field.description} |"


def _values(name: str) -> str:
    """The accepted values of a setting in words, from its JSON schema."""
    schema = Settings.model_json_schema()["properties"][name]
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    return _value_words(choices[0])


def _value_words(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    words["array"] = "list"
    kind = {"path": "path", "directory-path": "path", "password": "secret"}.get(
        schema.get("format", ""), words.get(schema.get("type", ""), "table")
    )
    if "minimum" in schema and "maximum" in schema:
        return f"{kind}, {schema['minimum']:g} to {schema['maximum']:g}"
    if "minimum" in schema:
        return f"{kind}, at least {schema['minimum']:g}"
    return f"{kind}, above {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else kind


if __name__ == "__main__":
    sys.stdout.write(reference())
