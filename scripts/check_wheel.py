#!/usr/bin/env python3
"""Checks a wheel of the package before anybody installs it: what its name promises, and its size.

    .runtime/wheel-tools/bin/python scripts/check_wheel.py WHEEL

The platform tag may ask for no older system than auditwheel finds in the symbols that the extension wants, the extension may use
nothing beyond Python's stable interface of 3.10 (abi3audit), and the file stays below 25 MB.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

LIMIT = 25 * 10**6


def tool(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    # Beside this Python, whatever else is installed.
    return subprocess.run([sys.executable, "-m", name, *words], capture_output=True, text=True)


def glibc(tag: str) -> tuple[int, int] | None:
    """The oldest C library that a platform tag runs with; None for a tag that promises none."""
    found = re.match(r"manylinux_(\d+)_(\d+)_", tag.replace("manylinux2014", "manylinux_2_17"))
    return (int(found[1]), int(found[2])) if found else None


def faults(wheel: Path) -> list[str]:
    python, abi, platform = wheel.stem.split("-")[-3:]
    found = []
    if (python, abi) != ("cp310", "abi3"):
        found.append(f"it is for {python}-{abi}, not for every Python from 3.10 (cp310-abi3)")
    audited = tool("auditwheel", "show", "--json", str(wheel))
    if audited.returncode != 0:
        return [*found, f"auditwheel cannot read it: {audited.stderr.strip()}"]
    needed = json.loads(audited.stdout)["overall_tag"]
    promised, wanted = [glibc(tag) for tag in platform.split(".")], glibc(needed)
    if wanted is None or any(tag is None or tag < wanted for tag in promised):
        found.append(f"its name says {platform}, but by its symbols auditwheel finds {needed}")
    stable = tool("abi3audit", "--strict", str(wheel))
    if stable.returncode != 0:
        found.append(f"it uses more than the stable interface of Python: {stable.stdout}{stable.stderr}".strip())
    size = wheel.stat().st_size
    if size >= LIMIT:
        found.append(f"it has {size / 1e6:.1f} MB, and should stay below {LIMIT / 1e6:.0f}")
    return found


def main() -> None:
    (wheel,) = map(Path, sys.argv[1:])
    found = faults(wheel)
    if found:
        sys.exit("\n".join(f"{wheel.name}: {fault}" for fault in found))
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; auditwheel and abi3audit agree with its name")


main()
