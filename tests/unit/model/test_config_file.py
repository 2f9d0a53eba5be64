"""The config file is refused as precisely as a job file, and is light to read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orch.model.config import (
    CONFIG_KEYS,
    Config,
    ConfigError,
    Machines,
    cluster_kind,
    load_config,
    orch_home,
)
from orch.model.listening import Listen


@pytest.fixture
def home(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path

    return write


def refusal(home, env=None):
    with pytest.raises(ConfigError) as caught:
        load_config(home, env or {})
    assert caught.value.exit_code == 2
    return caught.value


def test_without_a_file_everything_is_default(tmp_path):
    assert load_config(tmp_path, {}) == Config()


def test_an_empty_file_is_no_config(home):
    assert load_config(home("# nothing yet\n"), {}) == Config()


def test_every_key(home):
    folder = home(
        "cluster: 10.0.0.5:6379\nstore: postgresql+psycopg://me:pw@db/orch\n"
        "storage: {url: s3://bucket/x, options: {endpoint_url: 'http://127.0.0.1:8333'}}\n"
        "port: 8265\ncpus: 2\ngpus: 0\nkeep_logs: 30d\nlease: 90s\nray_state: disk\n"
        "machines: [{count: 4, cpus: 8, memory: 20GiB}, {gpus: 1}]\n"
        "listen: {address: '10.0.0.5:8443', certificate: a.pem, key: b.pem, names: [Orch.example.org]}\n"
    )
    config = load_config(folder, {})
    assert config.cluster == "10.0.0.5:6379"
    assert config.storage.url == "s3://bucket/x"
    assert config.storage.options == {"endpoint_url": "http://127.0.0.1:8333"}
    assert (config.port, config.cpus, config.gpus, config.keep_logs_s) == (8265, 2, 0, 30 * 86400)
    assert config.lease_s == 90
    assert config.listen == Listen(
        "10.0.0.5", 8443, str(folder / "a.pem"), str(folder / "b.pem"), ("orch.example.org",)
    )
    assert config.ray_state == "disk"
    assert config.machines == (Machines(4, 8, 0, 20 << 30), Machines(1, 1, 1, 0))
    assert config.store == "postgresql+psycopg://me:pw@db/orch"
    assert "pw" not in repr(config)
    assert config.origins["port"] == f"{folder / 'config.yaml'} line 4"
    assert set(config.origins) == set(CONFIG_KEYS)


def test_the_environment_goes_before_the_file(home):
    config = load_config(home("cluster: a:1\n"), {"ORCH_CLUSTER": "b:2", "ORCH_STORE": "sqlite:////x.db"})
    assert (config.cluster, config.store) == ("b:2", "sqlite:////x.db")
    assert config.origins == {"cluster": "ORCH_CLUSTER", "store": "ORCH_STORE"}


def test_a_relative_storage_is_taken_from_the_home(home, tmp_path):
    assert load_config(home("storage: ck\n"), {}).storage.url == str(tmp_path / "ck")


def test_unlimited_logs(home):
    assert load_config(home("keep_logs: unlimited\n"), {}).keep_logs_s is None


@pytest.mark.parametrize("lease", ["1s", "5m", "0", "soon", "true", "unlimited"])
def test_a_lease_that_cannot_be(home, lease):
    assert refusal(home(f"lease: {lease}\n")).problems[0].allowed == "a duration from 2s to 240s"


def test_all_problems_at_once_with_their_lines(home):
    error = refusal(
        home(
            "clustr: a:1\nport: -1\ncluster: auto\nkeep_logs: unlimitd\n"
            "storage: s4://b\ncpus: true\nport: 3\n"
        )
    )
    found = {(problem.line, problem.path): problem for problem in error.problems}
    assert found[1, "clustr"].near == "cluster"
    assert found[3, "cluster"].message.startswith("'auto' may pick any Ray")
    assert found[4, "keep_logs"].near == "unlimited"
    assert found[5, "storage"].near == "s3://b"
    assert found[6, "cpus"].allowed == "a whole number from 1 to 65536"
    assert "twice" in found[7, "port"].message


@pytest.mark.parametrize("text", ["- a\n", "just text\n"])
def test_what_is_no_mapping_is_refused(home, text):
    assert refusal(home(text)).problems[0].allowed == "a mapping"


def test_machines_of_the_wrong_shape(home):
    assert "is 3" in str(refusal(home("machines: 3\n")))
    assert "unknown key 'cpu'" in str(refusal(home("machines: [{cpu: 3}]\n")))
    assert "a whole number from 1" in str(refusal(home("machines: [{count: 0}]\n")))
    assert "memory" in str(refusal(home("machines: [{memory: 3 apples}]\n")))


def test_storage_of_the_wrong_shape(home):
    assert "is a list" in str(refusal(home("storage: [a]\n")))
    assert "without a url" in str(refusal(home("storage: {}\n")))
    assert "unknown key 'urls'" in str(refusal(home("storage: {url: /a, urls: x}\n")))
    assert "options is a list" in str(refusal(home("storage: {url: /a, options: [x]}\n")))
    assert "secrets" in str(refusal(home("storage: {url: 's3://b', options: {secret: hush}}\n")))


def test_a_password_is_never_shown(home):
    assert "hush" not in str(refusal(home("store: mysql://me:hush@db/x\nstorage: s3://k:hush@b/x\n")))
    assert "hush" not in str(refusal(home(""), {"ORCH_STORE": "mysql://me:hush@db/x"}))


def test_a_bad_variable_is_named(home):
    problem = refusal(home(""), {"ORCH_CLUSTER": "-oProxyCommand=x"}).problems[0]
    assert (problem.file, problem.line, problem.path) == ("ORCH_CLUSTER", None, "")


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    assert "is a directory" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("10.0.0.5:6379", "ray"),
        ("head.example:6379", "ray"),
        ("[::1]:6379", "ray"),
        ("http://127.0.0.1:8000", "api"),
        ("https://orch.example/base", "api"),
        ("ssh://me@host", "ssh"),
        ("ssh://host:22", "ssh"),
    ],
)
def test_kinds_of_clusters(text, kind):
    assert cluster_kind(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "auto",
        "ray://h:10001",
        "host",
        "-oX:1",
        "ssh://-oProxyCommand=x",
        "ssh://a@-b",
        "http://u:p@h",
        "a:1\n",
    ],
)
def test_what_is_no_cluster(text):
    with pytest.raises(ValueError, match=r"is an address|may pick|is no address"):
        cluster_kind(text)


def test_the_home_folder(tmp_path):
    assert orch_home({"ORCH_HOME": str(tmp_path)}) == tmp_path
    assert orch_home({"ORCH_HOME": "relative"}) == Path.cwd() / "relative"
    assert orch_home({}).name == "orch"


def test_reading_the_config_stays_light():
    script = (
        "import sys, orch.model.config; "
        "print([m for m in ('pydantic', 'fsspec', 'ray', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
