"""`python -m deploy.kubernetes`: rendering, validation and Secrets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes import __main__ as command
from deploy.kubernetes import manifests, release, rendering, validation
from deploy.kubernetes.manifests import ManifestsError
from deploy.kubernetes.secrets import as_yaml, local_secret_objects, secret_objects
from deploy.local.plan import Backends
from deploy.local.postgres_roles import ServiceUrls


def config_map(**more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, **more}


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that renders every overlay as the content of the returned file."""
    program, content = tmp_path / "kubectl", tmp_path / "content.yaml"
    program.write_text(f'#!/bin/sh\ntest "$1" = kustomize && cat {content}\n')
    program.chmod(0o700)
    monkeypatch.setattr(rendering, "kubectl", lambda: str(program))
    monkeypatch.setattr(manifests, "DIRECTORY", tmp_path)
    content.write_text("kind: One\n")
    return content


def test_an_unknown_field_is_a_problem() -> None:
    assert validation.problems([config_map(data={"a": "b"})]) == []
    (one, two) = validation.problems([config_map(dada={"a": "b"})])
    assert one.startswith("configmap/one, Kubernetes 1.31: ")
    assert two.startswith("configmap/one, Kubernetes 1.37: ")
    assert "dada" in one


def test_an_unknown_kind_is_a_problem() -> None:
    found = validation.problems([{**config_map(), "kind": "ConfigMaps"}], ["1.37"])
    assert found == ["configmaps/one, Kubernetes 1.37: there is no ConfigMaps in v1"]


def test_the_objects_of_operators_are_not_validated() -> None:
    """An overlay with the components `prometheus` and `tls-cert-manager` has them."""
    components = manifests.DIRECTORY / "components"
    files = ("prometheus/pod-monitor", "tls-cert-manager/peers", "tls-external-secrets/secrets")
    for name in files:
        text = (components / f"{name}.yaml").read_text(encoding="utf-8")
        objects = list(yaml.safe_load_all(text))
        assert validation.problems(objects) == []
        [problem] = validation.problems([{**objects[0], "apiVersion": "other.io/v1"}], ["1.37"])
        assert "there is no" in problem


@pytest.mark.parametrize("version", ["1.2", "1.99", "newest"])
def test_a_version_without_schemas_is_an_error(version: str) -> None:
    with pytest.raises(ManifestsError, match=f"no schemas of Kubernetes {version}"):
        validation.problems([], [version])


def test_committed_files_name_the_release_of_the_project() -> None:
    assert release.drift() == []


def test_a_new_release_is_drift_until_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "release"
    shutil.copytree(release.FOLDER, folder)
    monkeypatch.setattr(release, "FOLDER", folder)
    monkeypatch.setattr(release, "number", lambda: "12.3.4")
    assert len(release.drift()) == len(release.PLACES)
    release.write()
    assert release.drift() == []
    assert yaml.safe_load((folder / "job-names.yaml").read_text())["suffix"] == "-12-3-4"
    images = yaml.safe_load((folder / "kustomization.yaml").read_text())["images"]
    assert {image["name"]: image["newTag"] for image in images} == {
        "tally": "12.3.4",
        "tally-simulator": "12.3.4",
    }


def test_drift_is_reported_until_render(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.render(check=True) == command.BAD
    assert command.render() == command.GOOD
    assert command.render(check=True) == command.GOOD
    kubectl.write_text("kind: Two\n")
    assert command.render(check=True) == command.BAD
    printed = capsys.readouterr().err
    for line in ("-kind: One", "+kind: Two", "make manifests"):
        assert line in printed


def test_an_error_of_kubectl_is_passed_on(kubectl: Path) -> None:
    kubectl.unlink()
    with pytest.raises(ManifestsError, match=r"local: .*content\.yaml"):
        command.render()


def test_check_passes_with_a_note_without_kubectl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendering, "kubectl", lambda: None)
    assert command.render(check=True) == command.GOOD
    assert "kubectl is not installed" in capsys.readouterr().out
    with pytest.raises(ManifestsError, match="kubectl is not installed"):
        command.render()


def test_a_missing_rendering_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "DIRECTORY", tmp_path)
    with pytest.raises(ManifestsError, match="local is not rendered"):
        manifests.objects("local")


def test_every_password_is_new_each_time() -> None:
    first, second = (
        {
            (each["metadata"]["name"], key): value
            for each in local_secret_objects()
            for key, value in each["stringData"].items()
        }
        for _ in range(2)
    )
    assert first.keys() == second.keys()
    assert not first.items() & second.items()


def test_printed_secrets_are_the_same_as_yaml() -> None:
    objects = local_secret_objects()
    assert list(yaml.safe_load_all(as_yaml(objects))) == objects


def test_secrets_hold_the_addresses_of_the_backends() -> None:
    urls = ServiceUrls(
        **{
            kind: f"postgresql://{kind}:secret@127.0.0.9:5/db"
            for kind in ("owner", "runtime", "audit")
        }
    )
    backends = Backends({"payment": urls}, "redis://127.0.0.9:6/0", "http://127.0.0.9:7", "key")
    found = {each["metadata"]["name"]: each["stringData"] for each in secret_objects(backends)}
    assert found == {
        "payment-runtime": {
            "TALLY_PAYMENT_DATABASE_URL": urls.runtime,
            "TALLY_REDIS_URL": "redis://127.0.0.9:6/0",
            "TALLY_PAYMENT_GATEWAY_SECRET_KEY": "key",
        },
        "payment-owner": {"TALLY_PAYMENT_OWNER_DATABASE_URL": urls.owner},
        "gateway": {"secret-key": "key"},
        "audit": {"TALLY_PAYMENT_AUDIT_DATABASE_URL": urls.audit},
    }
