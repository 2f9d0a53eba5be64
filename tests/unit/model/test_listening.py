"""Where the server may listen: never for other machines without TLS or an explicit word."""

from __future__ import annotations

import pytest

from orch.model.errors import WrongUse
from orch.model.listening import Listen, listen_from, server_context
from support.certificates import make_certificate

FILES = {"certificate": "cert.pem", "key": "key.pem"}


@pytest.mark.parametrize(
    "address", ["0.0.0.0:8443", "10.0.0.5:80", "[::]:8443", "[2001:db8::1]:1", "[fe80::1]:65535"]
)
def test_for_other_machines_only_with_tls_or_an_explicit_word(address, tmp_path):
    for given in ({}, {"insecure": False}, {"names": ["a.example"]}):
        with pytest.raises(ValueError, match="--insecure-listen"):
            listen_from({"address": address, **given}, tmp_path)
    with_tls = listen_from({"address": address, **FILES}, tmp_path)
    assert with_tls.url == f"https://{address}"
    assert with_tls.certificate == str(tmp_path / "cert.pem")
    assert listen_from({"address": address, "insecure": True}, tmp_path).url == f"http://{address}"


def test_loopback_needs_neither(tmp_path):
    for address in ("127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1"):
        assert listen_from({"address": address}, tmp_path).certificate is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "missing"),
        ({"address": 8443}, "missing"),
        ({"address": "0.0.0.0"}, "no port"),
        ({"address": "0.0.0.0:0"}, "no port"),
        ({"address": "0.0.0.0:65536"}, "no port"),
        ({"address": "0.0.0.0:" + "9" * 10_000}, "no port"),
        ({"address": "0.0.0.0:٣"}, "no port"),
        ({"address": "example.org:80"}, "no IP address"),
        ({"address": "0:80"}, "no IP address"),
        ({"address": ":80"}, "no IP address"),
        ({"address": "0.0.0.0:1", "certificate": "a"}, "both"),
        ({"address": "0.0.0.0:1", "key": "a"}, "both"),
        ({"address": "0.0.0.0:1", "certificate": 1, "key": "a"}, "no path"),
        ({"address": "0.0.0.0:1", "certificate": "a\0", "key": "a"}, "no path"),
        ({"address": "0.0.0.0:1", "insecure": "yes"}, "true or false"),
        ({"address": "0.0.0.0:1", "insecure": True, "names": "a"}, "no list"),
        ({"address": "0.0.0.0:1", "insecure": True, "names": ["a b"]}, "no name"),
        ({"address": "0.0.0.0:1", "insecure": True, "names": ["*"]}, "no name"),
        ({"address": "0.0.0.0:1", "insecure": True, "tls": 1}, "unknown key"),
    ],
)
def test_what_makes_no_sense(document, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        listen_from(document, tmp_path)


def test_it_survives_its_way_through_json(tmp_path):
    for listen in (
        Listen("::", 8443, "/a", "/b", ("x.example",)),
        Listen("10.0.0.1", 1, insecure=True),
    ):
        assert listen_from(listen.to_dict(), tmp_path) == listen


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


def listening(files):
    return Listen("127.0.0.1", 1, str(files.certificate), str(files.key))


def test_a_certificate_that_can_be_used(files):
    assert server_context(listening(files)) is not None
    assert server_context(Listen("127.0.0.1", 1)) is None


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o601])
def test_a_key_that_others_can_read_is_refused(files, mode):
    files.key.chmod(mode)
    with pytest.raises(WrongUse, match="open to others"):
        server_context(listening(files))
    files.key.chmod(0o640)  # as an orchestrator mounts one
    assert server_context(listening(files))


def test_a_certificate_that_cannot_be_used(files, tmp_path):
    files.key.chmod(0o600)
    for certificate, key in (
        (tmp_path / "none", files.key),
        (files.certificate, tmp_path / "none"),
        (files.key, files.key),
        (files.certificate, make_certificate(tmp_path).key),
    ):
        with pytest.raises(WrongUse, match="is not possible"):
            server_context(Listen("127.0.0.1", 1, str(certificate), str(key)))


def test_a_key_with_a_passphrase_is_not_waited_for(tmp_path):
    files = make_certificate(tmp_path, passphrase=b"open sesame")
    with pytest.raises(WrongUse, match="passphrase"):
        server_context(listening(files))
