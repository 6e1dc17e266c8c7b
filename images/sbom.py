"""Prints what this image has installed, Python's packages and Debian's, as a CycloneDX 1.6 document."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote


def python() -> list[dict[str, Any]]:
    found = []
    for distribution in distributions():
        name, version = distribution.name.lower().replace("_", "-").replace(".", "-"), distribution.version
        component = {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{quote(version)}"}
        # An expression of SPDX where the package says one; what others say in words is not always a license's name.
        if expression := distribution.metadata.get("License-Expression"):
            component["licenses"] = [{"expression": expression}]
        found.append(component)
    return found


def debian() -> list[dict[str, Any]]:
    if not shutil.which("dpkg-query"):
        return []
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines() if "=" in line
    )
    system = release["ID"].strip('"')
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/{system}/{quote(name)}@{quote(version)}?arch={architecture}",
        }
        for name, version, architecture in (line.split("\t") for line in listed.splitlines())
    ]


if __name__ == "__main__":
    title, release = sys.argv[1:]
    components = sorted(python() + debian(), key=lambda component: component["purl"])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": title, "version": release}},
        "components": [{"bom-ref": component["purl"], **component} for component in components],
    }
    json.dump(document, sys.stdout, indent=1)
