"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

_BASE = TyperCommand.context_class

# Where lines of help may not be broken, as they would be after "-" in the middle of a name.
_HYPHEN = "\u2011"


class _Formatter(_BASE.formatter_class):  # type: ignore[name-defined]
    """Lines of help in which names of options and protocols are whole."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Any, *args: Any, **options: Any) -> None:
        rows = [(name, text.replace("-", _HYPHEN)) for name, text in rows]
        super().write_dl(rows, *args, **options)

    def getvalue(self) -> str:
        return str(super().getvalue()).replace(_HYPHEN, "-")


class _Context(_BASE):  # type: ignore[misc,valid-type]
    formatter_class = _Formatter


class Command(TyperCommand):
    """A command whose options of several values take them in one argument, too: ``0,1``."""

    context_class = _Context

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the command line."""
        several = {o: p.nargs for p in self.params if p.nargs > 1 for o in p.opts}
        return super().parse_args(ctx, list(spread(args, several)))


def spread(arguments: list[str], several: Mapping[str, int]) -> Iterator[str]:
    """Arguments with those that hold several values, separated by commas, as one each.

    Args:
        arguments: Of the command line.
        several: Number of values of each option that takes several.

    Example:
        >>> list(spread(["a,b", "--value-range", "-1,1", "c"], {"--value-range": 2}))
        ['a,b', '--value-range', '-1', '1', 'c']
        >>> list(spread(["--value-range=0,1"], {"--value-range": 2}))
        ['--value-range', '0', '1']
    """
    before = ""
    for argument in arguments:
        name, equals, joined = argument.partition("=")
        option, values = (name, joined) if equals and name in several else (before, argument)
        parts = values.replace(",", " ").split()
        if option in several and len(parts) == several[option]:
            yield from parts if option == before else (option, *parts)
        else:
            yield argument
        before = argument


# What a table, images and settings of an evaluation may be called. The package has these names,
# too, but imports TensorFlow.
PRESET_NAMES = ("liu2019", "zigzag15", "balanced", "soft8", "jpeg", "certified")
DATASET_NAMES = ("cifar10", "cifar100", "fashion_mnist", "mnist")
PROTOCOL_NAMES = ("evademl-imagenet", "evademl-cifar10", "linf-sweep", "autoattack")
ATTACK_NAMES = ("fgsm", "bim", "pgd", "square", "autoattack", "deepfool", "cw-l2")
BASELINE_NAMES = ("none", "jpeg", "bits", "median", "slq", "tvm", "quilting")
FAMILY_NAMES = ("JPEG", "bit depth", "median", "SLQ", "TVM", "quilting")


class QuantizerName(str, Enum):
    """Choices of ``--quantizer``."""

    ROUND = "round"
    SOFT = "soft"


def path_argument(value: str) -> Path:
    """Convert a command-line argument to a path.

    Args:
        value: The argument. ``Path`` itself would convert an empty one to the current directory.

    Raises:
        ValueError: ``value`` is empty.

    Example:
        >>> path_argument("out")
        PosixPath('out')
    """
    if not str(value):
        raise ValueError("a path must not be empty")
    return Path(value)


def check_given(name: str, *given: str | Path | None, names: Iterable[str] = ()) -> None:
    """Refuse files that do not exist, before TensorFlow is imported, which takes seconds.

    Args:
        name: The argument or option.
        *given: The files; ``None`` for an option that was not given.
        names: What may be given instead, also before a colon and settings.

    Raises:
        ValueError: One of them does not exist, or is empty.

    Example:
        >>> check_given("--table", "jpeg:75", names=PRESET_NAMES)
        >>> check_given("MODEL", Path("no model"))
        Traceback (most recent call last):
        ...
        ValueError: `MODEL` does not exist. Received: no model
    """
    for file in given:
        if file == "":
            raise ValueError(f"`{name}` must not be empty. Received: {name} ''")
        if file is None or str(file).partition(":")[0] in names or os.path.lexists(file):
            continue
        if names:
            raise ValueError(
                f"`{name}` must be an existing file or one of {', '.join(names)}. Received: {file}"
            )
        raise ValueError(f"`{name}` does not exist. Received: {file}")


def check_needs(needed: str, given: Mapping[str, bool]) -> None:
    """Refuse options that do nothing without another one, which is not given.

    Args:
        needed: The other option.
        given: Options, and whether each has another value than its default.

    Raises:
        ValueError: One has.

    Example:
        >>> check_needs("--encode", {"--model": False})
    """
    idle = [option for option, used in given.items() if used]
    if idle:
        raise ValueError(f"`{idle[0]}` needs {needed}, and does nothing without it")


def check_tables(option: str, *given: str | Path | None) -> None:
    """Refuse what is no table, before TensorFlow is imported.

    Args:
        option: The argument or option.
        *given: Names of presets, with their settings, or files; ``None`` for an option that was
            not given.

    Raises:
        ValueError: A file does not exist, or a preset does not take these settings.

    Example:
        >>> check_tables("--table", "jpeg:75", "certified:2:ycbcr")
        >>> check_tables("--table", "jpeg:101")
        Traceback (most recent call last):
        ...
        ValueError: `--table` must have a whole number from 1 to 100 after jpeg:, such as jpeg:75.
        Received: --table jpeg:101
    """
    check_given(option, *given, names=PRESET_NAMES)
    for text in map(str, filter(None, given)):
        name, colon, settings = text.partition(":")
        if name not in PRESET_NAMES:
            if Path(text).is_dir():
                raise ValueError(
                    f"`{option}` must be a table's file, not a directory. Received: {option} {text}"
                )
            continue
        size, _, space = settings.partition(":")
        rule = None
        if name == "jpeg":
            if colon and not (settings.isdecimal() and 1 <= int(settings) <= 100):
                rule = "have a whole number from 1 to 100 after jpeg:, such as jpeg:75"
        elif name == "certified":
            if colon and not (_is_epsilon(size) and space in ("", "rgb", "ycbcr")):
                rule = (
                    "have a number of grey levels from 0.1 to 255 after certified:, and nothing "
                    "else but :ycbcr or :rgb, such as certified:2:ycbcr"
                )
        elif colon:
            rule = f"be {name} alone, which takes no settings"
        if rule is not None:
            raise ValueError(f"`{option}` must {rule}. Received: {option} {text}")


def _is_epsilon(text: str) -> bool:
    try:
        return 0.1 <= float(text) <= 255
    except ValueError:
        return False


def check_choices(option: str, given: Iterable[str] | None, names: Iterable[str]) -> None:
    """Refuse names that nothing has, before TensorFlow is imported.

    Args:
        option: The option.
        given: Its values, of which what follows a colon is not looked at.
        names: What is known.

    Raises:
        ValueError: A value is none of ``names``.

    Example:
        >>> check_choices("--attack", ["fgsm"], ATTACK_NAMES)
    """
    for text in given or ():
        if text.partition(":")[0] not in names:
            raise ValueError(
                f"`{option}` must be one of {', '.join(names)}. Received: {option} {text}"
            )


def check_images(images: Iterable[Path]) -> None:
    """Refuse image files of which none exists; single ones are reported where they are read.

    Args:
        images: Files and directories.

    Raises:
        ValueError: None of them exists.

    Example:
        >>> check_images([Path("."), Path("no image")])
    """
    if not any(map(os.path.lexists, images)):
        check_given("IMAGE", *images)


def path_option(text: str) -> Any:
    """Declare an option that takes a path.

    Args:
        text: Help text.

    Example:
        >>> Report = Annotated[Path, path_option("Where the report is written.")]
    """
    return typer.Option(parser=path_argument, metavar="PATH", help=text)


def model_argument(text: str) -> Any:
    """Declare the argument ``MODEL``.

    Args:
        text: Help text.

    Example:
        >>> Model = Annotated[Path, model_argument("A .keras file.")]
    """
    return typer.Argument(parser=path_argument, metavar="MODEL", help=text)


def same_options(
    modules: list[str] | None = None,
    *,
    allow_code: bool = False,
    probabilities: bool | None = None,
    model_output: str | None = None,
    classes: Path | None = None,
) -> list[Any]:
    """The options that say how a model is read, for the command that comes next.

    Args:
        modules: Of ``--import``.
        allow_code: Of ``--allow-code``.
        probabilities: Of ``--probabilities`` and ``--logits``.
        model_output: Of ``--model-output``.
        classes: Of ``--classes``.

    Example:
        >>> same_options(["mine"], probabilities=False)
        ['--import', 'mine', '--logits']
    """
    words: list[Any] = [word for module in modules or [] for word in ("--import", module)]
    words += ["--allow-code"] * allow_code
    if probabilities is not None:
        words.append("--probabilities" if probabilities else "--logits")
    words += [] if model_output is None else ["--model-output", model_output]
    return words + ([] if classes is None else ["--classes", classes])


def read_class_names(path: Path | None) -> list[str] | None:
    r"""Read the file of ``--classes``: one name per line, in UTF-8 with or without a mark.

    Args:
        path: The file, or ``None``.

    Returns:
        The names, without empty lines; ``None`` if there is no file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not in UTF-8, or is empty.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "classes.txt"
        >>> _ = path.write_bytes("\ufeffcat\r\ndog\r\n".encode())
        >>> read_class_names(path)
        ['cat', 'dog']
    """
    if path is None:
        return None
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`--classes` must be a text file in UTF-8. Received: --classes {path} ({error.reason} "
            f"at byte {error.start})"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"`--classes` must name a class per line. Received: --classes {path}")
    return names


Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE", help="PNG, JPEG, WebP, BMP or GIF files, or directories of them."
    ),
]

Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Spread the images over the workers of this Dask scheduler, such as "
        "tcp://10.0.0.1:8786, which see the same files.",
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Spread the images over so many processes on this machine."),
]

RunDirectoryPath = Annotated[
    Path | None,
    path_option(
        "Directory that keeps each finished part of the work; the same command goes on from there."
    ),
]

# Of commands that name their files in --out. A file that an option names itself is replaced.
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files in --out that this command did not write."),
]

MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Largest number of pixels of an image. Default: 89478485."),
]

ImageKey = Annotated[
    str | None,
    typer.Option(
        help="Feature of TFRecords that is the encoded image. Default: image/encoded, image or "
        "image_raw."
    ),
]

LabelKey = Annotated[
    str | None,
    typer.Option(
        help="Feature of TFRecords that is the label, an integer or one-hot. Default: "
        "image/class/label or label."
    ),
]

Classes = Annotated[
    Path | None,
    path_option(
        "Text file with one class per line in the model's order, as the subdirectories of DATA "
        "are named."
    ),
]

LabelledData = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Labelled images: a directory with a subdirectory per class, an .npz file with "
        "x and y, a TFRecord file, or cifar10, cifar100, mnist, fashion_mnist.",
    ),
]

OutDirectory = Annotated[Path, path_option("Directory to write to; made if missing.")]

TableName = Annotated[
    str,
    typer.Option(
        help="liu2019, zigzag15, balanced, soft8, jpeg, jpeg:QUALITY, certified:EPSILON[:ycbcr], "
        "or a table's JSON file."
    ),
]

ProtocolName = Annotated[
    str, typer.Option(help="evademl-imagenet, evademl-cifar10, linf-sweep or autoattack.")
]

ValueRange = Annotated[
    tuple[float, float],
    typer.Option(help="Lowest and highest pixel value that the model takes, as 0,1 or 0 1."),
]

Probabilities = Annotated[
    bool | None,
    typer.Option(
        "--probabilities/--logits",
        help="What the model returns. Default: probabilities where its last activation or its "
        "outputs, which sum to 1, say so.",
        show_default=False,
    ),
]

StripLayer = Annotated[
    bool,
    typer.Option(
        "--strip-layer", help="Take the feature distillation layer off a MODEL that contains it."
    ),
]

ModelOutput = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The output that classifies, of a model with several: its name."
    ),
]

ImageSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        metavar="HEIGHT WIDTH", help="Size of the images, of a model that takes any size."
    ),
]

Modules = Annotated[
    list[str] | None,
    typer.Option("--import", help="Python module that registers the model's own classes."),
]

AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Run the Python code that MODEL holds, such as that of a Lambda layer: of files you "
        "trust only.",
    ),
]

Strict = Annotated[bool, typer.Option(help="Stop at the first unreadable image.")]
