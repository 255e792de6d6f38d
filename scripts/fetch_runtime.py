#!/usr/bin/env python3
"""Fetch the runtime libraries (and, with --test, the Python packages of the tests) into .runtime/.

Versions and sha256 are pinned in requirements-runtime.txt (by machine), and for the tests in requirements-test-runtime.txt and
requirements-test.txt, beside this script; pip checks the hashes. A second call with the same pins does nothing, so everything works offline once fetched. Nothing is
installed outside .runtime/.
"""

import argparse
import fnmatch
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
RUNTIME = SCRIPTS.parent / ".runtime"
MACHINE = platform.machine()
PINS = {"x86_64": "requirements-runtime.txt", "aarch64": "requirements-runtime-aarch64.txt"}
WHEEL_TARGET = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
WHEEL_TARGET += [word for abi in ("cp312", "abi3", "none") for word in ("--abi", abi)]
WHEEL_TARGET += [
    word
    for name in ("_2_28", "_2_27", "_2_17", "2014", "2010")
    for word in ("--platform", f"manylinux{name}_{MACHINE}")
]


def fail(message: str) -> None:
    sys.exit(f"fetch_runtime: {message}")


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    if subprocess.run(command).returncode != 0:
        fail("pip could not fetch the packages named above; is the package index reachable? (pip's message is above)")


def stamp_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fetch_libraries(requirements: Path) -> None:
    for line in requirements.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement, _, comment = line.rpartition("#")
        folder_name, pattern = comment.split()
        folder = RUNTIME / folder_name
        stamp = folder / "stamp"
        if stamp.exists() and stamp.read_text() == stamp_of(line):
            continue
        print(f"fetching {requirement.split()[0]}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=RUNTIME) as work:
            pins = Path(work) / "pin.txt"
            pins.write_text(requirement + "\n")
            pip("download", "--no-deps", "--require-hashes", *WHEEL_TARGET, "-d", work, "-r", str(pins))
            (wheel,) = Path(work).glob("*.whl")
            unpacked = Path(work) / "unpacked"
            unpacked.mkdir()
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    base = name.rsplit("/", 1)[-1]
                    if fnmatch.fnmatch(base, pattern) or base.upper().startswith("LICENSE"):
                        with archive.open(name) as source, open(unpacked / base, "wb") as target:
                            shutil.copyfileobj(source, target)
            (unpacked / "stamp").write_text(stamp_of(line))
            shutil.rmtree(folder, ignore_errors=True)
            unpacked.rename(folder)


def fetch_test_packages(requirements: Path) -> None:
    folder = RUNTIME / "python"
    stamp = folder / "stamp"
    content = stamp_of(requirements.read_text() + sys.version)
    if stamp.exists() and stamp.read_text() == content:
        return
    print("fetching the Python packages of the tests", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=RUNTIME) as work:
        target = Path(work) / "python"
        pip("install", "--require-hashes", "--only-binary=:all:", "--no-deps", "--target", str(target),
            "-r", str(requirements))
        (target / "stamp").write_text(content)
        shutil.rmtree(folder, ignore_errors=True)
        target.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", action="store_true", help="also fetch the Python packages that the tests use")
    options = parser.parse_args()
    if sys.platform != "linux" or MACHINE not in PINS:
        fail("the pinned libraries are for Linux on x86-64 and aarch64; elsewhere install ONNX Runtime yourself and set "
             "ORT_DYLIB_PATH to its shared library")
    if options.test and MACHINE != "x86_64":
        fail(f"the packages of the tests are pinned for x86-64, not for {MACHINE}; `make build` works without them")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        fail("pip is missing; install it with: apt-get install python3-pip (or: python3 -m ensurepip --user)")
    RUNTIME.mkdir(exist_ok=True)
    fetch_libraries(SCRIPTS / PINS[MACHINE])
    if options.test:
        if sys.version_info < (3, 11):
            fail("the tests compare with Python packages that need Python 3.11 or newer; "
                 f"this is {platform.python_version()}")
        fetch_libraries(SCRIPTS / "requirements-test-runtime.txt")
        fetch_test_packages(SCRIPTS / "requirements-test.txt")


if __name__ == "__main__":
    main()
