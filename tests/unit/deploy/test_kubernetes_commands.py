"""`python -m deploy.kubernetes`: what it renders, finds wrong, and makes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes import __main__ as command
from deploy.kubernetes import manifests, release, rendering, validation
from deploy.kubernetes.manifests import OVERLAYS, ManifestsError
from deploy.kubernetes.secrets import as_yaml, local_secret_objects, secret_objects
from deploy.local.plan import Backends
from deploy.local.postgres_roles import ServiceUrls


def config_map(**more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, **more}


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that renders every overlay as one file says, and a place for the renderings."""
    program, says = tmp_path / "kubectl", tmp_path / "says.yaml"
    program.write_text(f'#!/bin/sh\ntest "$1" = kustomize && cat {says}\n')
    program.chmod(0o700)
    monkeypatch.setattr(rendering, "kubectl", lambda: str(program))
    monkeypatch.setattr(manifests, "DIRECTORY", tmp_path)
    says.write_text("kind: One\n")
    return says


def test_a_field_that_the_kind_does_not_have_is_a_problem() -> None:
    assert validation.problems([config_map(data={"a": "b"})]) == []
    (one, two) = validation.problems([config_map(dada={"a": "b"})])
    assert one.startswith("configmap/one, Kubernetes 1.31: ")
    assert two.startswith("configmap/one, Kubernetes 1.37: ")
    assert "dada" in one


def test_a_kind_that_kubernetes_does_not_have_is_a_problem() -> None:
    told = validation.problems([{**config_map(), "kind": "ConfigMaps"}], ["1.37"])
    assert told == ["configmaps/one, Kubernetes 1.37: there is no ConfigMaps in v1"]


@pytest.mark.parametrize("version", ["1.2", "1.99", "newest"])
def test_a_version_without_schemas_is_refused(version: str) -> None:
    with pytest.raises(ManifestsError, match=f"no schemas of Kubernetes {version}"):
        validation.problems([], [version])


def test_what_is_committed_names_the_projects_release() -> None:
    assert release.drift() == []


def test_another_release_is_noticed_and_written(
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


def test_drift_is_noticed_and_mended(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.render(check=True) == command.BAD
    assert command.render() == command.GOOD
    assert command.render(check=True) == command.GOOD
    kubectl.write_text("kind: Two\n")
    assert command.render(check=True) == command.BAD
    told = capsys.readouterr().err
    assert "-kind: One" in told
    assert "+kind: Two" in told
    assert "make manifests" in told


def test_what_kubectl_says_is_told(kubectl: Path) -> None:
    kubectl.unlink()
    with pytest.raises(ManifestsError, match=r"local: .*says\.yaml"):
        command.render()


def test_without_kubectl_nothing_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendering, "kubectl", lambda: None)
    assert command.render(check=True) == command.GOOD
    assert "kubectl is not installed" in capsys.readouterr().out
    with pytest.raises(ManifestsError, match="kubectl is not installed"):
        command.render()


def test_a_rendering_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "DIRECTORY", tmp_path)
    with pytest.raises(ManifestsError, match="local is not rendered"):
        manifests.objects("local")


def test_every_password_is_new_each_time() -> None:
    first, second = (
        {each["metadata"]["name"]: each["stringData"] for each in local_secret_objects()}
        for _ in range(2)
    )
    assert first.keys() == second.keys()
    for name, data in first.items():
        for key, value in data.items():
            assert value != second[name][key], f"{name}/{key}"


def test_the_printed_secrets_are_those_made() -> None:
    objects = local_secret_objects()
    assert list(yaml.safe_load_all(as_yaml(objects))) == objects


def test_secrets_are_made_for_servers_of_any_address() -> None:
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


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_rendered(overlay: str) -> None:
    assert [each for each in manifests.objects(overlay) if each["kind"] == "Secret"] == []
