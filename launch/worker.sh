#!/usr/bin/env bash
# What every worker of a slice does for the launcher, which copies this file there. A verb ends with a line
#     mmrl-worker HOST WORD ...
# that the launcher reads: not every status of a remote command comes back through gcloud.
set -euo pipefail

job="$HOME/mmrl-job"   # this file, the code's archive, log, pid, status
code="$HOME/mmrl"
venv="$HOME/mmrl-venv"
export PATH="$HOME/.local/bin:$PATH"

say() { echo "mmrl-worker $(hostname) $*"; }

# Unpack TREE.tar.gz and install it, once.
install_code() {
  local tree="$1"
  if [[ "$(cat "$job/installed" 2>/dev/null)" == "$tree" ]]; then
    say installed
    return
  fi
  rm -rf "$code" "$job/installed"
  mkdir -p "$code"
  tar -xzf "$job/$tree.tar.gz" -C "$code"
  cd "$code"
  # The images have an older Python than mmrl needs; uv brings its own.
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  uv venv --quiet --allow-existing --python 3.11 "$venv"
  uv pip install --quiet --python "$venv/bin/python" --constraint constraints.txt --editable ".[tpu]"
  echo "$tree" >"$job/installed"
  say installed
}

# Mount a bucket at a folder. Nothing is cached of what is there, since other workers write there as well.
mount_bucket() {
  local bucket="$1" folder="$2"
  if mountpoint -q "$folder"; then
    say mounted
    return
  fi
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc from=https://packages.cloud.google.com/apt
    curl -fsS "$from/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $from gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    # A fresh machine updates itself at first, and holds the lock.
    sudo apt-get -q -o DPkg::Lock::Timeout=600 update
    sudo apt-get -qy -o DPkg::Lock::Timeout=600 install gcsfuse
  fi
  sudo mkdir -p "$folder"
  sudo chown "$(id -u)" "$folder"
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$folder"
  say mounted
}

boot() { cat /proc/sys/kernel/random/boot_id; }

running() {
  [[ -f "$job/pid" && ! -f "$job/status" && "$(cat "$job/boot")" == "$(boot)" ]] && kill -0 "$(cat "$job/pid")" 2>/dev/null
}

# Start a command that outlives this connection; its status is left in a file. Starting it again is no harm.
start() {
  if running; then
    if [[ "$(cat "$job/command")" == "$*" ]]; then
      say started
      return
    fi
    say busy "$(cat "$job/command")"
    return
  fi
  rm -f "$job/status"
  echo "$*" >"$job/command"
  boot >"$job/boot"
  cd "$code"
  # A trap, unlike ignoring the signal, is not inherited by the command; this shell stays to write its status.
  # shellcheck disable=SC2016
  PATH="$venv/bin:$PATH" setsid nohup bash -c '
    trap : TERM INT
    "${@:2}" & child=$!
    trap "kill -TERM $child 2>/dev/null" TERM
    status=0; wait $child || status=$?
    while kill -0 $child 2>/dev/null; do status=0; wait $child || status=$?; done
    echo $status >"$1/status.new"; mv "$1/status.new" "$1/status"
  ' mmrl-job "$job" "$@" >>"$job/log" 2>&1 </dev/null &
  echo $! >"$job/pid"
  say started
}

look() {
  if [[ -f "$job/status" ]]; then
    say ended "$(cat "$job/status")"
  elif running; then
    say running "$(cat "$job/installed")"
  elif [[ -f "$job/pid" ]]; then
    say gone
  else
    say idle
  fi
}

# What was logged from byte OFFSET on, a part of it at a time; the last line says where it ends.
log() {
  local offset="$1" size
  size=$(stat -c %s "$job/log" 2>/dev/null || echo 0)
  if ((offset > size)); then offset=0; fi
  local end=$((size - offset > 65536 ? offset + 65536 : size))
  if ((end > offset)); then tail -c +$((offset + 1)) "$job/log" | head -c $((end - offset)); fi
  echo
  say log "$end"
}

# Ask the command to end, as a machine that is taken away would, and wait up to SECONDS for it.
stop() {
  local left="$1"
  if running; then
    kill -TERM "$(cat "$job/pid")" || true
    while running && ((left-- > 0)); do sleep 1; done
  fi
  look
}

verb="$1"
shift
case "$verb" in
  install | mount)
    # In a shell of its own: there `set -e` holds. The connection gets what went wrong at last, not all of pip.
    if ! bash "$0" "$verb-loudly" "$@" >"$job/$verb.log" 2>&1; then
      tail -n 20 "$job/$verb.log"
      say failed "$verb"
      exit 1
    fi
    tail -n 1 "$job/$verb.log"
    ;;
  install-loudly) install_code "$@" ;;
  mount-loudly) mount_bucket "$@" ;;
  start | look | log | stop) "$verb" "$@" ;;
  *)
    echo "worker.sh: unknown verb $verb" >&2
    exit 2
    ;;
esac
