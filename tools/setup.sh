#!/usr/bin/env bash
# Makes .venv with canal and its pinned dependencies; "test" adds what the tests need. Skipped when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
want=${1:-run}
venv=.venv

fail() { echo "setup: $*" >&2; exit 1; }

# The digest of all that decides what is installed; a stamp of it says that the work was done.
fingerprint() { { cat pyproject.toml constraints.txt; echo "$want ${TORCH_INDEX:-}"; pwd; } | sha256sum | cut -c1-64; }

stamp=$venv/.canal-$want
if [ -x "$venv/bin/canal" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint)" ]; then
  exit 0
fi

python=""
for candidate in ${PYTHON:-python3.11 python3 python}; do
  if command -v "$candidate" >/dev/null 2>&1 &&
    [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.11 ]; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11 is needed, found $(python3 --version 2>&1 || true); name one with PYTHON=/path/to/python3.11"

began=$SECONDS
if [ ! -x "$venv/bin/python" ]; then
  echo "setup: making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || fail "could not make a virtual environment; is the venv module installed (python3.11-venv)?"
fi

log=$venv/setup.log
install() {
  "$venv/bin/python" -m pip install --disable-pip-version-check -c constraints.txt "$@" >"$log" 2>&1 && return
  if grep -qiE 'connection|resolve|timed out|network|retrying' "$log"; then
    fail "pip cannot reach its package index; is there a network? (details in $log)"
  fi
  fail "pip failed: $(grep -m1 ERROR "$log" || tail -n1 "$log") (details in $log)"
}

extra=""
[ "$want" = test ] && extra="[test]"
echo "setup: installing canal$extra and its pinned dependencies (2-4 minutes on a new machine)"
if [ -n "${TORCH_INDEX:-}" ]; then
  install --index-url "$TORCH_INDEX" torch==2.13.0
fi
install -e ".$extra"
fingerprint >"$stamp"
echo "setup: done in $((SECONDS - began)) s"
