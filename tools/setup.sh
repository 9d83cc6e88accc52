#!/usr/bin/env bash
# Makes .venv with canal and its pinned dependencies; "test" and "browser" add what tests need. Skipped when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
want=${1:-run}
venv=.venv

fail() { echo "setup: $*" >&2; exit 1; }

case "$PWD" in
  *[:\"\$\`\\?]* | *%[0-9a-fA-F][0-9a-fA-F]* | *$'\n'*)
    fail "the project lies in $PWD: its tools misread a path with : \" \$ \` \\ ? or % and two digits in it; rename that folder" ;;
esac

# The digest of all that decides what is installed; a stamp of it says that the work was done, and where.
fingerprint() { { cat pyproject.toml constraints.txt; echo "$want ${TORCH_INDEX:-}"; } | sha256sum | cut -c1-64; }

stamp=$venv/.canal-$want
if [ -x "$venv/bin/canal" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint; pwd)" ]; then
  exit 0
fi

# pip writes absolute paths: a moved environment names a Python that is gone, a copied one that of the first folder.
if [ -x "$venv/bin/python" ] && [ -f tools/relocate.py ]; then
  changed=$("$venv/bin/python" tools/relocate.py "$venv")
  if [ "$changed" != 0 ]; then
    echo "setup: $venv came from another folder; $changed of its files name this one now"
    for one in "$venv"/.canal-*; do
      [ -f "$one" ] && { head -n 1 "$one"; pwd; } >"$one.new" && mv "$one.new" "$one"
    done
    [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint; pwd)" ] && exit 0
  fi
fi

python=""
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
  case "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" in
    3.11 | 3.12 | 3.13) python=$candidate; break ;;
  esac
done
[ -n "$python" ] || fail "Python 3.11, 3.12 or 3.13 is needed, found $(python3 --version 2>&1 || true); name one with PYTHON=/path/to/python3.12"

began=$SECONDS
log=$venv/setup.log
# Tells which package pip is at: on a terminal in one line, in a log the more rarely the longer it lasts.
tell_progress() {
  local package="" line told=$SECONDS
  while sleep 2; do
    package=$(sed -nE 's/^ *(Collecting|Downloading|Using cached|Building wheel for|Installing collected packages)[: ]+([A-Za-z0-9._-]+).*/\1 \2/p' "$log" 2>/dev/null | tail -n 1 | sed -E 's/-[0-9].*//; s/collected packages .*/packages/')
    line="setup: ${package:-still at work} ($((SECONDS - began)) s so far)"
    if [ -t 1 ]; then
      printf '\r\033[K%s' "$line"
    elif ((SECONDS - told >= (SECONDS - began) / 10)); then
      echo "$line"
      told=$SECONDS
    fi
  done
}

# Runs a command and tells meanwhile how long it has been.
telling() {
  tell_progress &
  local pid=$! code=0
  trap "kill $pid 2>/dev/null" EXIT
  "$@" || code=$?
  kill $pid 2>/dev/null || true
  wait $pid 2>/dev/null || true
  trap - EXIT
  [ -t 1 ] && printf '\r\033[K'
  return $code
}

if ! "$venv/bin/python" -c "" 2>/dev/null; then
  clear=""
  [ -e "$venv" ] && clear=--clear && echo "setup: the Python of $venv is gone"
  echo "setup: making $venv with $("$python" --version)"
  telling "$python" -m venv $clear "$venv" || fail "could not make a virtual environment; is the venv module installed (python3-venv)?"
fi

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check -c constraints.txt "$@" >"$log" 2>&1; }
install() {
  : >"$log"
  telling pip_install "$@" && return
  if grep -qiE 'connection|resolve|timed out|network|retrying' "$log"; then
    fail "pip cannot reach its package index; is there a network? (details in $log)"
  fi
  fail "pip failed: $(grep -m1 ERROR "$log" || tail -n1 "$log") (details in $log)"
}

extra="[compression,parquet,serve]"  # serve includes project
case "$want" in
  test | browser)
    extra="[$want]"
    echo "setup: tests, make lint and make docs need the extra $want: test tools, and what draws the site" ;;
esac
echo "setup: installing canal-cells$extra and its pinned dependencies (2-4 minutes on a new machine)"
if [ -n "${TORCH_INDEX:-}" ]; then
  install --index-url "$TORCH_INDEX" torch==2.13.0
fi
# canal was called so itself before it was on an index, where that name is another project's.
"$venv/bin/python" -m pip uninstall --yes canal >"$log" 2>&1 || true
install -e ".$extra"
{ fingerprint; pwd; } >"$stamp"
echo "setup: done in $((SECONDS - began)) s"
