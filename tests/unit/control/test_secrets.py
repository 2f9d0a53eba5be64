import stat

import pytest

from orch.control.home import Home
from orch.control.secrets import SecretBox, SecretsLostError
from orch.model.errors import Blocked


def test_round_trip_and_nothing_readable_in_between(home: Home) -> None:
    values = {"KEY": "s3cret-välue", "OTHER": "line\nline"}
    sealed = SecretBox.of(home).seal("a-1", values)
    assert SecretBox.of(home).unseal("a-1", sealed) == values
    assert all(b"s3cret" not in token for token in sealed.values())
    assert stat.S_IMODE(home.secret_key.stat().st_mode) == 0o600


def test_without_secrets_no_key_is_made(home: Home) -> None:
    assert SecretBox.of(home).seal("a-1", {}) == {}
    assert SecretBox.of(home).unseal("a-1", {}) == {}
    assert not home.secret_key.exists()


def test_a_lost_key_blocks(home: Home) -> None:
    sealed = SecretBox.of(home).seal("a-1", {"KEY": "v"})
    home.secret_key.unlink()
    with pytest.raises(Blocked, match="is gone"):
        SecretBox.of(home).unseal("a-1", sealed)


def test_another_key_blocks(home: Home) -> None:
    sealed = SecretBox.of(home).seal("a-1", {"KEY": "v"})
    home.secret_key.unlink()
    SecretBox.of(home).seal("a-2", {"KEY": "w"})
    with pytest.raises(SecretsLostError, match="not the one that sealed KEY"):
        SecretBox.of(home).unseal("a-1", sealed)


def test_a_file_that_is_no_key_blocks(home: Home) -> None:
    sealed = SecretBox.of(home).seal("a-1", {"KEY": "v"})
    home.secret_key.write_text("nonsense")
    with pytest.raises(SecretsLostError, match="is no key"):
        SecretBox.of(home).unseal("a-1", sealed)


@pytest.mark.parametrize(("job", "name"), [("a-2", "KEY"), ("a-1", "OTHER")])
def test_a_moved_secret_does_not_open(home: Home, job: str, name: str) -> None:
    sealed = SecretBox.of(home).seal("a-1", {"KEY": "v"})
    with pytest.raises(SecretsLostError, match="something else"):
        SecretBox.of(home).unseal(job, {name: sealed["KEY"]})
