#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice (v2 to v6e), through preemptions.
#
#   export TPU=hive ZONE=us-east5-b TYPE=v6e-8 RUNTIME=v2-alpha-tpuv6e WORKDIR=gs://bucket/run
#   tools/launch_tpu.sh run --config configs/stage1.py:paper --config.mesh.fsdp=4
#   tools/launch_tpu.sh logs | delete   what each host printed, into ./*.log | the slice
#
# `run` creates the slice unless it is there, installs this checkout's last commit on
# every host, and trains. After exit code 75 (saved on SIGTERM, a process was lost, or the
# bucket did not answer), or 137 (killed), or when the slice is gone, it does so again, and
# resumes from the last checkpoint; other codes end it.
#   TPU, ZONE  name of the slice, and where; TYPE: accelerator type, e.g. v5litepod-16
#   RUNTIME    software: v2-alpha-tpuv6e, v2-alpha-tpuv5 (v5p), v2-alpha-tpuv5-lite
#              (v5e) or tpu-ubuntu2204-base (v4 and older)
#   WORKDIR    of the run: gs://BUCKET/NAME, which the service account of the slice may
#              write, or a folder of a disk that all hosts have and that outlives the slice
#   PREPARE    shell command for every host, e.g. to mount such a disk; default: none
#   SPOT       1 (default): spot capacity; 0: on-demand
#   QUEUED     1 (default): waits for capacity in the queue; 0: now or never
#   POLL       seconds between looks at the slice; default: 30
#   MAX_RESTARTS  of one command; default: 100
set -euo pipefail
here=$PWD; cd "$(dirname "$0")/.."

tpu() { gcloud compute tpus "$1" "$2" "$TPU" --zone="$ZONE" "${@:3}"; }
state_of() { tpu "$1" describe --format="value($2)" 2>/dev/null || echo MISSING; }
ready() { [ "$(state_of tpu-vm state)" = READY ]; }
wait_a_while() { sleep "${POLL:-30}"; }
on_all_hosts() { tpu tpu-vm ssh --worker=all --command="$1" "${@:2}"; }

create() {
  if ready; then return; fi
  local options=(--accelerator-type="${TYPE:?e.g. v6e-32}")
  if [ "${SPOT:-1}" = 1 ]; then options+=(--spot); fi
  if [ "${QUEUED:-1}" = 0 ]; then
    until [ "$(state_of tpu-vm state)" = MISSING ]; do delete || wait_a_while; done
    tpu tpu-vm create "${options[@]}" --version="${RUNTIME:?see $0}"
    return
  fi
  until ready; do # a slice that was preempted has to go before another has its name
    case $(state_of tpu-vm state):$(state_of queued-resources state.state) in
      *:MISSING) tpu queued-resources create "${options[@]}" --node-id="$TPU" \
        --runtime-version="${RUNTIME:?see $0}" ;;
      *:FAILED) echo "launch_tpu: no slice, the request has failed" >&2; exit 69 ;;
      PREEMPTED:* | TERMINATED:* | *:SUSPENDED) delete || wait_a_while ;;
      *) wait_a_while ;;
    esac
  done
}

delete() {
  if [ "${QUEUED:-1}" = 0 ]; then tpu tpu-vm delete --quiet
  else tpu queued-resources delete --force --quiet; fi
}

install() ( # the images have Python 3.10; uv fetches a newer one
  folder=$(mktemp -d); archive=$folder/hive_jax.tar.gz
  trap 'rm -rf "$folder"' EXIT # of this subshell, however it ends
  git archive --prefix=hive_jax/ --output="$archive" HEAD &&
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:" --zone="$ZONE" --worker=all &&
    on_all_hosts "set -e; ${PREPARE:-true}; tar xzf hive_jax.tar.gz; rm hive_jax.tar.gz
      pip install -q uv; python3 -m uv venv -q --clear --python 3.12 env
      python3 -m uv pip install -q --python env/bin/python -e './hive_jax[gcs,tpu]'"
)

run() {
  local code command restarts=0 workdir=${WORKDIR:?of the run}
  command=$(printf '%q ' JAX_COMPILATION_CACHE_DIR="${workdir%/*}/compilation" \
    ../env/bin/python -m hive_jax.train --workdir "$workdir" "$@")
  while true; do
    create
    install && on_all_hosts "set -o pipefail; cd hive_jax
      env $command 2>&1 | tee -p -a ../train.log" && return
    code=$?
    case $code in 75 | 137) ;; *) if ready; then exit "$code"; fi ;; esac
    # A process that is killed for its memory is killed again.
    if [ $((restarts += 1)) -gt "${MAX_RESTARTS:-100}" ]; then exit "$code"; fi
    echo "launch_tpu: stopped with code $code; going on from the last checkpoint" >&2
  done
}

logs() { on_all_hosts 'cat train.log' --output-directory="$here"; }
: "${TPU:?name of the slice}" "${ZONE:?e.g. us-east5-b}"
case ${1:-} in create | install | run | logs | delete) "$@" ;;
  *) sed -n 4,6p "$0" >&2; exit 64 ;; esac
