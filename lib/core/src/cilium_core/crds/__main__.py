"""Writes the custom resource definitions as YAML files: `python -m cilium_core.crds FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from cilium_core.crds.definitions import DEFINITIONS, Definition

_HEAD = "# Made by `make crds` from the models; edit those.\n"


class _Dumper(yaml.SafeDumper):
    """Writes every value out, since Kubernetes' readers know no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        """Everything."""
        return True


def text_of(definition: Definition) -> str:
    """The file of one definition."""
    body = yaml.dump(
        definition.to_yaml(), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True
    )
    return _HEAD + body


def write(folder: Path) -> None:
    """Write every definition into a folder, and remove files of definitions that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{definition.plural}.yaml": text_of(definition) for definition in DEFINITIONS}
    for name, text in texts.items():
        (folder / name).write_text(text)
    for path in folder.glob("*.yaml"):
        if path.name not in texts:
            path.unlink()


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(prog="python -m cilium_core.crds", description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
