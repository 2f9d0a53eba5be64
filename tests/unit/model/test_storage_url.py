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
    "s4://bucket": "no protocol that orch opens",
    "S3://bucket": "no protocol that orch opens",
    "sftp://host/x": "not known to refuse overwriting",
    "webhdfs://host/x": "no protocol that orch opens",
    "://x": "no protocol that orch opens",
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


def test_unfenced_accepts_what_may_overwrite_but_not_what_is_dangerous():
    for url in ("sftp://host/x", "smb://me@host:445/x", "hdfs://namenode:8020/x"):
        assert check_storage_url(url, unfenced=True) == []
    for url in (
        "http://host/x",
        "memory://x",
        "simplecache::s3://b",
        "-x://host/y",
        "sftp://host/../x",
        "webhdfs://host/x",  # follows redirects
        "unheard-of://host/x",
        "sftp://169.254.169.254/x",
        "sftp://me@metadata.google.internal/x",
        "ssh://0xa9fea9fe/x",
        "abfs://container@169.254.169.254/x",
    ):
        assert check_storage_url(url, unfenced=True), url


def test_a_bucket_is_no_host():
    assert check_storage_url("s3://metadata/x") == []


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
        {"token": "hush"},
        {"session_token": "hush"},
        {"accessKeySecret": "hush"},
        {"sas_token": "hush"},
        {"sas": "hush"},
        {"connection_string": "AccountKey=hush"},
        {"key_file_passphrase": "hush"},
        {"api_key": 7},
        {"endpoint_url": "https://me:hush@example.org"},
        {"config_kwargs": {"proxies": {"https": "http://me:hush@127.0.0.1:3128"}}},
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
        "token": "google_default",
        "aws_access_key_id": "AKIA",
        "request_checksum_calculation": "when_required",
        "read_timeout": 5,
    }
    assert check_storage_options(options) == []


LINK_LOCAL = (
    "http://169.254.169.254",
    "https://169.254.169.254:443/latest",
    "http://169.254.170.2",
    "http://user@169.254.169.254/",
    "http://2852039166",
    "http://0xA9FEA9FE/",
    "http://0251.0376.0251.0376",
    "http://169.254.43518",
    "http://169.16689662./",
    "http://[fe80::1]",
    "http://[fe80::1%25eth0]:80",
    "http://[::ffff:169.254.169.254]:80/",
    "http://[::ffff:a9fe:a9fe]",
    "http://[64:ff9b::a9fe:a9fe]",
    "http://[2002:a9fe:a9fe::1]",
    "http://[fd00:ec2::254]",
    "http://METADATA.google.internal.",
    "http://168.63.129.16",
    "http://100.100.100.200",
    "//169.254.169.254/x",
)


@pytest.mark.parametrize("address", LINK_LOCAL)
def test_no_option_leads_to_the_machine_itself(address):
    for options in (
        {"endpoint_url": address},
        {"client_kwargs": {"endpoint_url": address}},
        {"config_kwargs": {"proxies": {"http": address}}},
        {"a": [[{"b": address}]]},
    ):
        (problem,) = check_storage_options(options)
        assert "no storage" in problem.message


def test_hosts_without_a_url():
    for options in ({"host": "169.254.169.254"}, {"account_host": "metadata"}, {"x": "169.254.169.254:80"}):
        assert check_storage_options(options), options


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9000",
        "https://10.0.0.5",
        "http://[::1]:9000",
        "https://s3.eu-central-1.amazonaws.com",
        "http://169.253.1.1",
        "http://2130706433",
        "http://metadata.example.org",
        "http://1.2.3.4.5",
        "http://[oops",
    ],
)
def test_private_addresses_are_storages(address):
    assert check_storage_options({"endpoint_url": address}) == []


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
