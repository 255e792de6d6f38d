#!/usr/bin/env bash
# Names each missing prerequisite with the command that installs it.
set -u
missing=0
need() { # need COMMAND WHAT INSTALL
  command -v "$1" >/dev/null 2>&1 && return
  printf 'missing: %s (%s); install it with: %s\n' "$1" "$2" "$3" >&2
  missing=1
}
need cargo "Rust 1.92 or newer" "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
need g++ "a C++ compiler" "apt-get install g++"
need python3 "Python 3, which fetches the runtime libraries" "apt-get install python3 python3-pip"
exit $missing
