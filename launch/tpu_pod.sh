#!/usr/bin/env bash
# Runs frozen_jax.main on every host of a TPU slice, from any machine that has gcloud.
#
#   PRESET=v5e-16 TPU_NAME=my-pod ZONE=us-central1-a launch/tpu_pod.sh \
#     --config=configs/recursive.py:llama3_8b --workdir=gs://BUCKET/recursive [--delete] [--dry-run]
#
# Asks for the slice as a queued resource unless it is there, waits for it, copies this clone,
# installs it, starts the run on all hosts and shows the output of the first. Ctrl-C ends the
# showing, not the run; the same command shows it again. If the slice is preempted, another one is
# asked for and the run resumes from its last checkpoint. The exit status is that of the run.
#
# The workdir must be on a bucket, or on a file system that all hosts share. The copy has what git
# knows, with changes that are not committed; a new file counts after `git add`.
# gcloud reaches all hosts at once only after: ssh-add ~/.ssh/google_compute_engine
#
# --dry-run     anywhere: print the commands and run nothing
# --delete      anywhere: delete the slice after the run, or where it cannot start; not upon Ctrl-C,
#               nor where the hosts do not answer. Without other arguments: now
# --stop        anywhere: stop the run that goes on, which saves, and do nothing else
# TPU_NAME      name of the TPU and of its queued resource            ZONE    its zone
# PRESET        a name of presets.txt: what to ask for, and the mesh. Without it the TPU must exist,
#               with the clone installed on it, and the run is started in the foreground
# CREATE_FLAGS  for `gcloud compute tpus queued-resources create`: --spot, --reserved, --network=...
# FOLDER        the clone on each host: a path in its home folder, or from / on (default: frozen_jax)
# PYTHON        the interpreter there (default: .venv/bin/python with PRESET, else python3)
# POLL_SECONDS  between two looks at the queued resource (default: 30)
set -euo pipefail

dry_run=false
delete=false
stop=false
for argument; do # these stand anywhere among the arguments
  shift
  case $argument in
    --dry-run) dry_run=true ;;
    --delete) delete=true ;;
    --stop) stop=true ;;
    --help | -h) # what stands above
      sed --quiet '2,/^set /s/^# \{0,1\}//p' "$0"
      exit
      ;;
    *) set -- "$@" "$argument" ;;
  esac
done

fail() { # STATUS MESSAGE...
  local status=$1
  shift
  echo "error: $*" >&2
  exit "$status"
}

lost() { # MESSAGE: the run may go on, so nothing is deleted
  delete=false
  fail 1 "$1; see above. It may still run: TPU_NAME=$TPU_NAME ZONE=$ZONE $0 --delete deletes it"
}

if [[ -z ${TPU_NAME:-} || -z ${ZONE:-} ]]; then
  fail 2 "set TPU_NAME and ZONE; the head of $0 shows how"
fi

# gcloud's own rule for both; they stand in file names and in commands, too.
for name in TPU_NAME ZONE; do
  [[ ${!name} =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail 2 "$name=${!name} must be small letters, digits and hyphens, with a letter first"
done
[[ ${POLL_SECONDS:-30} =~ ^[0-9]+$ ]] || fail 2 "POLL_SECONDS=$POLL_SECONDS is no number of seconds"
if ! $dry_run && ! command -v gcloud >/dev/null; then
  fail 2 "gcloud is not installed (https://cloud.google.com/sdk), or not on the PATH"
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
poll=${POLL_SECONDS:-30}
archive=${TMPDIR:-/tmp}/frozen_jax-$TPU_NAME.tar.gz
folder=${FOLDER:-frozen_jax}
folder=${folder#'~/'} # the hosts' shells start in the home folder
[[ -n $folder && $folder != '~'* ]] || fail 2 "FOLDER=$FOLDER: give a path in the home folder, or from / on"
printf -v folder '%q' "$folder"

value_of() { # NAME ARGUMENT...: the value of a flag; of several the last one counts
  local name=$1 value="" following=false argument
  shift
  for argument; do
    if $following; then
      value=$argument
      following=false
    else
      case $argument in
        "-$name="* | "--$name="*) value=${argument#*=} ;;
        "-$name" | "--$name") following=true ;;
      esac
    fi
  done
  echo "$value"
}

check_run() { # ARGUMENT...: before a slice is asked for
  local workdir
  [[ -n $(value_of config "$@") ]] || fail 2 "give --config=; the head of $0 shows how"
  workdir=$(value_of workdir "$@")
  case $workdir in
    gs://?* | s3://?* | /?*) ;;
    *)
      fail 2 "--workdir=$workdir would be on the disk of each host; put it on a bucket (gs://, s3://)," \
        "or on a file system that all hosts share, by its whole path"
      ;;
  esac
  git -C "$root" rev-parse --quiet --verify HEAD >/dev/null ||
    fail 2 "$root is no git clone with a commit; the hosts get what git knows"
}

# shellcheck disable=SC2329  # invoked at the end
finish() { # deletes the slice where that was asked for, however the script ends
  local status=$?
  trap - EXIT
  if $delete && ! remove; then
    echo "error: $TPU_NAME may still be there; delete it: TPU_NAME=$TPU_NAME ZONE=$ZONE $0 --delete" >&2
    ((status)) || status=1
  fi
  exit "$status"
}

run() { # a command, or with --dry-run its text
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queued_resources() { # VERB FLAG...
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$TPU_NAME" "--zone=$ZONE" "$@"
}

on_worker() { # WHICH COMMAND
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE" "--worker=$1" "--command=$2"
}

create() {
  local flags
  read -ra flags <<<"${CREATE_FLAGS:-}"
  queued_resources create "--node-id=$TPU_NAME" "--accelerator-type=$accelerator_type" \
    "--runtime-version=$runtime_version" ${flags[@]+"${flags[@]}"}
}

remove() {
  queued_resources delete --force --quiet
}

state() { # of the queued resource; ABSENT: there is none; UNKNOWN: gcloud could not say
  local said errors
  errors=$(mktemp)
  if said=$(queued_resources describe '--format=value(state.state)' 2>"$errors"); then
    echo "$said"
  elif grep --quiet --extended-regexp 'NOT_FOUND|was not found' "$errors"; then
    echo ABSENT
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}

provision() { # until the slice is there
  local now created=false unknown=0
  while :; do
    now=$(state)
    if [[ $now != UNKNOWN ]]; then
      unknown=0
    elif ((++unknown == 20)); then
      lost "gcloud could not say what became of $TPU_NAME, 20 times"
    fi
    case $now in
      ACTIVE) return ;;
      ABSENT)
        echo "asking for $TPU_NAME, $accelerator_type in $ZONE" >&2
        create
        created=true
        ;;
      FAILED | SUSPENDED)
        if $created && [[ $now == FAILED ]]; then
          fail 1 "the request for $TPU_NAME failed; see: gcloud compute tpus" \
            "queued-resources describe $TPU_NAME --zone=$ZONE"
        fi
        echo "$TPU_NAME is $now; deleting it" >&2
        remove
        ;;
      *)
        echo "$TPU_NAME is $now" >&2
        sleep "$poll"
        ;;
    esac
  done
}

install_and_start() {
  local commit=HEAD install="mkdir -p $folder && tar xzf frozen_jax.tar.gz -C $folder"
  if ! $dry_run; then # the files as they are; empty if none is changed
    commit=$(git -C "$root" -c user.name=tpu_pod -c user.email=tpu_pod stash create) || return
  fi
  run git -C "$root" archive --format=tar.gz "--output=$archive" "${commit:-HEAD}" &&
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:frozen_jax.tar.gz" "--zone=$ZONE" \
      --worker=all &&
    run rm -f "$archive" &&
    on_worker all "$install && bash $folder/launch/install.sh tpu" &&
    on_worker all \
      "cd $folder && FROZEN_JAX_DISTRIBUTED=auto exec bash launch/detached.sh start $program"
}

follow() {
  on_worker 0 "cd $folder && exec bash launch/detached.sh follow"
}

try_again() { # WHY; at most 20 times
  ((++tries < 20)) || lost "$TPU_NAME $1, 20 times"
  sleep "$poll"
}

run_to_the_end() { # over preemptions and lost connections; sets `status`
  local now started=false tries=0
  while :; do
    provision
    # gcloud's own failures have exit statuses too; so what the host says is read, not returned.
    now=$(on_worker 0 "cd $folder 2>/dev/null && bash launch/detached.sh status || echo none") ||
      now=""
    case $now in
      running)
        started=true
        tries=0
        follow || true # what it comes to is read at the next look
        continue
        ;;
      none)
        if $started; then
          try_again "went down during the run"
        fi
        started=false
        ;;
      "ended "*)
        status=${now#ended }
        if $started; then
          # 0: done; 2: a mistake of the user. The cause of another may not show in the state yet.
          ((status == 0 || status == 2)) || sleep "$poll"
          case $(state) in
            ACTIVE | UNKNOWN) return ;;
          esac
          echo "$TPU_NAME was taken away; the run goes on from its last checkpoint" >&2
          started=false
          continue
        fi
        ;;
      *)
        try_again "did not answer"
        continue
        ;;
    esac
    if install_and_start; then
      started=true
      follow || true
    else
      sleep "$poll"
      [[ $(state) != ACTIVE ]] || fail 1 "could not install and start on $TPU_NAME; see above"
    fi
  done
}

if $stop; then
  on_worker all "cd $folder && exec bash launch/detached.sh stop"
  exit
fi
if $delete && (($# == 0)); then
  remove
  exit
fi

if [[ -n ${PRESET:-} ]]; then
  read -r _ accelerator_type runtime_version _ _ topology _ _ mesh < <(
    awk -v name="$PRESET" '$1 == name && !/^#/' "$root/launch/presets.txt"
  ) || fail 2 "PRESET=$PRESET is not in $root/launch/presets.txt"
  [[ $topology != - ]] || fail 2 "PRESET=$PRESET is no TPU; see $root/launch/presets.txt"
  check_run "$@"
  IFS=, read -r data fsdp tensor <<<"$mesh"
  # What is given later counts.
  set -- "--config.mesh.data=$data" "--config.mesh.fsdp=$fsdp" "--config.mesh.tensor=$tensor" "$@"
  python=.venv/bin/python
fi
arguments=""
if (($#)); then
  printf -v arguments ' %q' "$@"
fi
printf -v python '%q' "${PYTHON:-${python:-python3}}"
program="$python -m frozen_jax.main${arguments}"

trap finish EXIT
trap 'trap - EXIT; exit 130' INT TERM HUP
status=0
if [[ -z ${PRESET:-} ]]; then
  on_worker all "cd $folder && FROZEN_JAX_DISTRIBUTED=auto exec $program" || status=$?
elif $dry_run; then
  create
  install_and_start
  follow
else
  run_to_the_end
fi
exit "$status"
