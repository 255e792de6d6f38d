"""Prints the line coverage of an lcov file by source file, with the lines that nothing ran; fails below a percentage.

    coverage.py FILE.lcov PERCENT

What is only for tests does not count: files named tests.rs or fake.rs, and what follows `mod tests {` in a file.
"""

import re
import sys
from pathlib import Path

TEST_FILES = {"tests.rs", "fake.rs"}


def first_line_of_tests(path: Path) -> int:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line == "mod tests {":
            return number - 1  # its #[cfg(test)]
    return sys.maxsize


def ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def main() -> None:
    lcov, least = Path(sys.argv[1]).read_text(), float(sys.argv[2])
    run: dict[str, dict[int, int]] = {}
    for record in lcov.split("end_of_record"):
        source = re.search(r"^SF:(.*)$", record, re.M)
        if source is None or Path(source[1]).name in TEST_FILES:
            continue
        end = first_line_of_tests(Path(source[1]))
        lines = run.setdefault(str(Path(source[1]).relative_to(Path.cwd())), {})
        for line, count in re.findall(r"^DA:(\d+),(\d+)", record, re.M):
            if int(line) < end:
                lines[int(line)] = max(lines.get(int(line), 0), int(count))
    if not run:
        sys.exit("no source file was measured")
    covered = total = 0
    for source, lines in sorted(run.items()):
        missed = sorted(line for line, count in lines.items() if count == 0)
        covered, total = covered + len(lines) - len(missed), total + len(lines)
        print(f"{source:46} {len(lines) - len(missed):5} of {len(lines):5}  {ranges(missed)}")
    percent = 100 * covered / total
    print(f"{'in all':46} {covered:5} of {total:5}  {percent:.1f} %")
    if percent < least:
        sys.exit(f"the coverage is below {least:g} %")


if __name__ == "__main__":
    main()
