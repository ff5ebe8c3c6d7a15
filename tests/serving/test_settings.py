from dataclasses import replace
from pathlib import Path

import pytest

from serving.errors import InvalidInputError
from serving.settings import ServerSettings, from_environment


def test_nothing_set_gives_the_defaults() -> None:
    assert from_environment({}) == ServerSettings()
    assert ServerSettings().host == "127.0.0.1"


def test_every_variable_is_read() -> None:
    settings = from_environment(
        {
            "UNDERSTUDY_HOME": "/srv/understudy",
            "UNDERSTUDY_SERVE_HOST": "0.0.0.0",  # noqa: S104
            "UNDERSTUDY_SERVE_PORT": "9000",
            "UNDERSTUDY_SERVE_PHASE": "hitchhiker",
            "UNDERSTUDY_SERVE_ALLOW_PREFER_QUALITY": "True",
            "UNDERSTUDY_SERVE_ENV": "prod",
            "UNDERSTUDY_SERVE_REQUEST_DEADLINE_SECONDS": "2.5",
            "UNDERSTUDY_SERVE_MAX_CONCURRENCY": "4",
            "UNDERSTUDY_SERVE_STUDENT_SHARE": "0.4",
        }
    )
    assert settings == ServerSettings(
        home=Path("/srv/understudy"),
        host="0.0.0.0",  # noqa: S104
        port=9000,
        phase="hitchhiker",
        allow_prefer_quality=True,
        env="prod",
        request_deadline_seconds=2.5,
        max_concurrency=4,
        student_share=0.4,
    )
    assert settings.student_seconds == 1.0
    assert settings.segments_folder == Path("/srv/understudy/traces/segments")


def test_a_server_may_write_outside_its_home() -> None:
    settings = from_environment({"UNDERSTUDY_HOME": "/h", "UNDERSTUDY_SERVE_TRACES": "/var/t"})
    assert settings.segments_folder == Path("/var/t/segments")
    assert settings.feedback_folder == Path("/var/t/feedback")
    assert settings.releases_folder == Path("/h/releases")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("UNDERSTUDY_SERVE_STUDENT_SHARE", "0"),
        ("UNDERSTUDY_SERVE_STUDENT_SHARE", "1.1"),
        ("UNDERSTUDY_SERVE_TRACES", "s3://bucket/traces"),
        ("UNDERSTUDY_SERVE_PORT", "http"),
        ("UNDERSTUDY_SERVE_PORT", "0"),
        ("UNDERSTUDY_SERVE_PORT", "80.5"),
        ("UNDERSTUDY_SERVE_PHASE", "impostor"),
        ("UNDERSTUDY_SERVE_SHADOW_RATIO", "1.5"),
        ("UNDERSTUDY_SERVE_LOG_FORMAT", "xml"),
        ("UNDERSTUDY_SERVE_OTLP_ENDPOINT", "collector:4318"),
        ("UNDERSTUDY_SERVE_ALLOW_PREFER_QUALITY", "maybe"),
        ("UNDERSTUDY_SERVE_ENV", "my env"),
        ("UNDERSTUDY_SERVE_REQUEST_DEADLINE_SECONDS", "nan"),
        ("UNDERSTUDY_SERVE_REQUEST_DEADLINE_SECONDS", "-1"),
        ("UNDERSTUDY_SERVE_MAX_CONCURRENCY", "0"),
        ("UNDERSTUDY_SERVE_PROT", "8321"),
        ("UNDERSTUDY_HOME", "s3://bucket/home"),
    ],
)
def test_a_wrong_value_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        from_environment({variable: value})
    assert variable in str(caught.value)


def test_a_secret_is_read_by_name_and_never_printed() -> None:
    settings = from_environment({"TEACHER_API_KEY": "sk-very-secret"})
    assert settings.read_secret("TEACHER_API_KEY") == "sk-very-secret"
    assert settings.read_secret(None) is None
    assert "sk-very-secret" not in repr(settings)
    with pytest.raises(InvalidInputError, match="OTHER_KEY"):
        settings.read_secret("OTHER_KEY")


def test_replacing_a_field_keeps_the_secrets() -> None:
    settings = replace(from_environment({"K": "v"}), port=1)
    assert settings.read_secret("K") == "v"
