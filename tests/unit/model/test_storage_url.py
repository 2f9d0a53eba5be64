from __future__ import annotations

import pytest

from orch.model.storage_url import check_storage_options, check_storage_url, missing_extra, split_storage_url


@pytest.mark.parametrize(
    "url",
    [
        "/data/checkpoints",
        "/data/with space/ü",
        "/data/",
        "file:///data",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/a/b/",
        "gs://bucket/a",
        "gcs://bucket/a",
        "az://container/a",
        "abfs://container@account.dfs.core.windows.net/a",
    ],
)
def test_what_may_be_a_storage(url):
    assert check_storage_url(url) == []


REFUSED = {
    "": "no storage",
    " /a": "no storage",
    "/a\nb": "no storage",
    "/" + "x" * 2000: "no storage",
    "relative/path": "not an absolute path",
    "/": "root of the file system",
    "/./": "root of the file system",
    "/a/../b": "'..'",
    "file:///a/../b": "'..'",
    "file://host/a": "not an absolute path",
    "s3:/bucket": "neither a path nor a URL",
    "s3://": "no bucket",
    "s3:///x": "no bucket",
    "s3://b/../c": "'..' part",
    "s3://b//c": "empty",
    "s3://b/a b": "no prefix may have",
    "s3://b/a?versionId=1": "no prefix may have",
    "s3://bu cket": "can be no bucket",
    "s3://-b": "can be no bucket",
    "s3://key:hush@bucket/x": "password",
    "simplecache::http://169.254.169.254/": "chained",
    "s3::file:///x": "chained",
    "http://host/x": "cannot be written to",
    "https://host/x": "cannot be written to",
    "memory://x": "is lost",
    "reference://x": "cannot be written to",
    "simplecache://x": "wraps",
    "s4://bucket": "not known to refuse overwriting",
    "S3://bucket": "not known to refuse overwriting",
    "sftp://host/x": "not known to refuse overwriting",
    "://x": "not known to refuse overwriting",
}


@pytest.mark.parametrize(("url", "message"), REFUSED.items())
def test_what_may_not(url, message):
    (problem,) = check_storage_url(url)
    assert message in problem.message
    assert problem.allowed
    assert "hush" not in f"{problem.value}{problem}"


def test_near_matches():
    assert check_storage_url("s4://bucket/x")[0].near == "s3://bucket/x"
    assert check_storage_url("S3://bucket/x")[0].near == "s3://bucket/x"
    assert check_storage_url("s3:/bucket/x")[0].near == "s3://bucket/x"


def test_unfenced_accepts_what_is_unknown_but_not_what_is_dangerous():
    assert check_storage_url("sftp://host/x", unfenced=True) == []
    for url in ("http://host/x", "memory://x", "simplecache::s3://b", "-x://host/y", "sftp://host/../x"):
        assert check_storage_url(url, unfenced=True)


def test_splitting():
    assert split_storage_url("s3://bucket/a/b") == ("s3", "bucket/a/b")
    assert split_storage_url("/a/b") == ("file", "/a/b")


@pytest.mark.parametrize(
    "options",
    [
        {"secret": "hush"},
        {"Password": "hush"},
        {"client_kwargs": {"aws_secret_access_key": "hush"}},
        {"a": [{"b": {"account_key": "hush"}}]},
    ],
)
def test_secrets_do_not_stand_in_options(options):
    (problem,) = check_storage_options(options)
    assert "`secrets`" in problem.message
    assert "hush" not in str(problem)


def test_harmless_options():
    options = {
        "key": "AKIA",
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:1"},
        "n": 1.5,
        "secret": None,
    }
    assert check_storage_options(options) == []


def test_options_are_json():
    (problem,) = check_storage_options({"a": [1.0, float("nan")]})
    assert "'a' is nan" in problem.message


def test_a_missing_extra_is_named_with_its_command():
    problem = missing_extra("s3://key:hush@bucket/x", lambda _module: None)
    assert problem is not None
    assert problem.path == "checkpoint.storage"
    assert "s3fs" in problem.message
    assert 'pip install "orch[s3]"' in problem.message
    assert "hush" not in f"{problem.value}{problem}"
    assert missing_extra("s3://bucket", lambda _module: object()) is None
    assert missing_extra("/data", lambda _module: None) is None
    assert "gcsfs" in str(missing_extra("gs://b", lambda _module: None))
