"""The names of the classes that an export holds; needs nothing but Python."""

import json
from pathlib import Path


def class_names(place, count):
    """The names of ``count`` classes, or ``None`` where nothing gives them.

    ``place`` is a text file with one name on each line, an exported SavedModel, or the base
    directory of a served model, of which the newest version is taken.
    """
    place = Path(place)
    versions = [path for path in place.glob("*") if path.name.isdecimal()]
    newest = max(versions, key=lambda path: int(path.name), default=place)
    details = [folder / "assets.extra" / "fd_keras.json" for folder in (place, newest)]
    if place.is_file():
        names = place.read_text(encoding="utf-8-sig").splitlines()
    else:
        found = [file for file in details if file.is_file()]
        names = json.loads(found[0].read_text(encoding="utf-8"))["labels"] if found else None
    if names is not None and len(names) != count:
        raise SystemExit(
            f"{place} names {len(names)} classes, and the model has {count}; give --labels"
        )
    return names


def described(index, names):
    """``class 3``, followed by its name where there is one."""
    return f"class {index}" + (f" ({names[index]})" if names else "")
