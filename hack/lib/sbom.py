#!/usr/bin/env python3
"""Corrects the document of cargo-cyclonedx by what cargo compiled.

usage: sbom.py DOCUMENT MESSAGES RUSTC_VERSION   MESSAGES of `cargo build --message-format json`; prints the SBOM

cargo-cyclonedx reads `cargo metadata`, which also has optional crates that are in Cargo.lock and never compiled
(rust-lang/cargo#10801). The document names Pristine by the folder of its sources; the SBOM does not, so that it is the same
for every folder.
"""
import json
import sys


def main() -> None:
    document, messages, rustc = sys.argv[1:]
    with open(document, encoding="utf-8") as file:
        text = file.read()
    own = json.loads(text)["metadata"]["component"]
    name = f"pkg:cargo/{own['name']}@{own['version']}"
    sbom = json.loads(text.replace(own["bom-ref"], name))

    with open(messages, encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    compiled = {message["package_id"] for message in read if message["reason"] == "compiler-artifact"}
    compiled = {name if crate == own["bom-ref"] else crate for crate in compiled}
    sbom["components"] = [component for component in sbom["components"] if component["bom-ref"] in compiled]
    missing = compiled - {component["bom-ref"] for component in sbom["components"]} - {name}
    if missing or name not in compiled:
        sys.exit(f"error: the SBOM does not have what was compiled: {sorted(missing) or name}")
    sbom["dependencies"] = [
        dependency | {"dependsOn": [crate for crate in dependency.get("dependsOn", []) if crate in compiled]}
        for dependency in sbom["dependencies"]
        if dependency["ref"] in compiled
    ]
    sbom["metadata"]["tools"].append({"vendor": "Rust", "name": "rustc", "version": rustc})
    json.dump(sbom, sys.stdout, indent=1)
    print()


main()
