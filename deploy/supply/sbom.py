"""The software bill of materials of an image: a CycloneDX document beside it.

It has the Python packages of the image's lock, with licences and what needs what. Two documents of
one commit and tag are the same. What the base image has (Python, the C library) is not in it: its
publisher's SBOM, or a scanner of images, has that.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from deploy.supply.licences import licence_of
from deploy.supply.packages import LOCKS, packages
from deploy.supply.revision import Revision

SPEC: Final = SchemaVersion.V1_6
OWN_LICENCE: Final = "Apache-2.0"
NAMESPACE: Final = uuid.UUID("6f0a3f3c-8f0d-5a41-9d38-3b0f3d9c2a57")
"""Of the documents' serial numbers."""


def document(image: str, tag: str, revision: Revision) -> str:
    """The image's SBOM as JSON. Raises RunnerError, and KeyError for an image without a lock."""
    licence = LicenseFactory()
    root = Component(
        name=image,
        version=tag,
        type=ComponentType.CONTAINER,
        bom_ref=image,
        licenses=[licence.make_from_string(OWN_LICENCE)],
        properties=[Property(name="tally:revision", value=revision.commit)],
    )
    bom = Bom(
        serial_number=uuid.uuid5(NAMESPACE, f"{image}:{tag}@{revision.commit}"),
        metadata=BomMetaData(component=root, timestamp=revision.made),
    )
    listed = packages(LOCKS[image])
    components = {
        each.name: Component(
            name=each.name,
            version=each.version,
            type=ComponentType.LIBRARY,
            bom_ref=f"{each.name}=={each.version}",
            purl=PackageURL("pypi", name=each.name, version=each.version),
            licenses=[licence.make_from_string(licence_of(each))],
        )
        for each in listed
    }
    bom.components.update(components.values())
    direct = [components[each.name] for each in listed if each.is_direct]
    bom.register_dependency(root, direct)
    for name, component in components.items():
        needed = [components[each.name] for each in listed if name in each.used_by]
        bom.register_dependency(component, needed)
    return make_outputter(bom, OutputFormat.JSON, SPEC).output_as_string(indent=2) + "\n"


def write(image: str, tag: str, revision: Revision, directory: Path) -> Path:
    """Write the image's SBOM into the directory; returns its path. Raises RunnerError."""
    text = document(image, tag, revision)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{image}-{tag}.cdx.json"
    file.write_text(text, encoding="utf-8")
    return file
