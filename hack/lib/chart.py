#!/usr/bin/env python3
"""Writes the generated parts of manifests/chart, from what kustomize renders: see hack/generate.

usage: chart.py templates FOLDER OUT   FOLDER has base.yaml, and COMPONENT.yaml for the base with that component
       chart.py schema FILE            FILE with the definitions of the configuration's JSON Schema (standard input)

The chart is the text of install.yaml. Where a component changes a line, the chart has both texts and a condition; the
objects that a component adds are a template of its own. Few lines depend on other values: VALUES.
"""
import difflib
import json
import pathlib
import re
import sys

HEAD = "{{- /* Made by hack/generate from manifests/base and manifests/components. */}}\n"
# single-replica is the value `replicas`.
NO_VALUE = {"single-replica"}

# The object, a pattern that matches once in it, and what is there instead.
VALUES = [
    # Helm would delete the namespace before it deletes its own record of the release, which is in that namespace.
    ("Namespace", r"(?m)^  annotations:\n", r"\g<0>    helm.sh/resource-policy: keep\n"),
    ("Deployment", r"(?m)^  replicas: 2\n", "  replicas: {{ .Values.replicas }}\n"),
    # Changed rules restart the replicas, so that `helm upgrade --wait` ends when they are in force, and fails if they are invalid.
    ("Deployment", r"(?m)^      annotations:\n",
     "\\g<0>{{- with .Values.configuration }}\n        checksum/configuration: {{ toYaml . | sha256sum }}\n{{- end }}\n"),
    ("Deployment", r"(?m)^        env:\n", "{{- range .Values.flags }}\n        - {{ . | quote }}\n{{- end }}\n\\g<0>"),
    ("Deployment", r"(?m)^        image: .*\n", '        image: {{ include "pristine.image" . }}\n'),
    ("Deployment", r"(?m)^        resources:\n(?:          .*\n)+", "        resources:\n          {{- toYaml .Values.resources | nindent 10 }}\n"),
    ("Deployment", r"(?m)^      priorityClassName:.*\n",
     "{{- with .Values.image.pullSecrets }}\n      imagePullSecrets:\n        {{- toYaml . | nindent 8 }}\n{{- end }}\n\\g<0>"),
]


def value(component):
    first, *rest = component.split("-")
    return ".Values.components." + first + "".join(word.title() for word in rest)


def objects(text):
    """The objects of a stream of YAML by kind, namespace and name, as text."""
    found = {}
    for document in text.split("\n---\n"):
        kind = re.search(r"(?m)^kind: (.*)$", document)[1]
        metadata = re.search(r"(?m)^metadata:\n((?:  .*\n)+)", document + "\n")[1]
        names = dict(re.findall(r"(?m)^  (name|namespace): (.*)$", metadata))
        found[kind, names.get("namespace"), names["name"]] = document.rstrip("\n") + "\n"
    return found


def escaped(text):
    return text.replace("{{", '{{ "{{" }}')


def conditional(condition, text):
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"


def merge(base, changed):
    """The text of an object, with a condition around each line that some component adds or removes. `changed` has what
    each of those components makes of it."""
    lines = base.splitlines(keepends=True)
    added = [[] for _ in range(len(lines) + 1)]
    removed = [None] * (len(lines) + 1)
    for component, text in changed.items():
        new = text.splitlines(keepends=True)
        for tag, i, j, k, l in difflib.SequenceMatcher(None, lines, new, autojunk=False).get_opcodes():
            if tag == "equal":
                continue
            for at in range(i, j):
                if removed[at]:
                    sys.exit(f"error: the components {removed[at]} and {component} change the same line: {lines[at]}")
                removed[at] = component
            if k < l:
                # What only adds a line comes before what replaces one.
                added[i].insert(0 if tag == "insert" else len(added[i]), (component, "".join(new[k:l])))
    merged, at = "", 0
    while at <= len(lines):
        merged += "".join(conditional(value(component), escaped(text)) for component, text in added[at])
        end = at + 1
        while end < len(lines) and removed[at] and removed[end] == removed[at] and not added[end]:
            end += 1
        text = escaped("".join(lines[at:end]))
        merged += conditional("not " + value(removed[at]), text) if removed[at] else text
        at = end
    return merged


def templates(folder, out):
    rendered = {path.stem: objects(path.read_text()) for path in sorted(folder.glob("*.yaml"))}
    base = rendered.pop("base")
    rendered = {component: found for component, found in rendered.items() if component not in NO_VALUE}
    for component, found in rendered.items():
        if missing := base.keys() - found.keys():
            sys.exit(f"error: the component {component} removes {missing}, which chart.py cannot express")
    texts = []
    for key, text in base.items():
        merged = merge(text, {component: found[key] for component, found in rendered.items() if found[key] != text})
        for kind, pattern, replacement in VALUES:
            if kind == key[0]:
                merged, count = re.subn(pattern, replacement, merged)
                if count != 1:
                    sys.exit(f"error: {count} lines of the {kind} match {pattern}, not one: change VALUES in hack/lib/chart.py")
        texts.append(merged)
    (out / "install.yaml").write_text(HEAD + "---\n".join(texts))
    for component, found in rendered.items():
        if more := [escaped(text) for key, text in found.items() if key not in base]:
            (out / f"{component}.yaml").write_text(HEAD + conditional(value(component), "---\n".join(more)))


def schema(file):
    configuration = json.load(sys.stdin)
    definitions = configuration.pop("$defs")
    del configuration["$schema"]
    values = json.loads(file.read_text())
    values["$defs"] = {"Configuration": configuration, **definitions}
    print(json.dumps(values, indent=2, ensure_ascii=False))


if sys.argv[1] == "templates":
    templates(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
else:
    schema(pathlib.Path(sys.argv[2]))
