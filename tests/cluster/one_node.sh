#!/usr/bin/env bash
# A Slurm cluster of one node on this machine, and a batch of notebooks on it: submitted, one job cancelled in the middle
# and started again by itself, all of them done in the end; and a batch that asks for too much, which says so.
#
#   sudo apt install slurm-wlm munge
#   .venv/bin/pip install "snakemake-executor-plugin-slurm>=2,<3"
#   sudo tests/cluster/one_node.sh                          (about 20 minutes on two cores)
#   sudo tests/cluster/one_node.sh notebooks/00_early_exit_from_scratch.ipynb      (these notebooks only)
#
# Needs root, for the daemons, and writes /etc/slurm/slurm.conf where there is none; both go when it ends.

set -euo pipefail
cd "$(dirname "$0")/../.."
FOLDER=$(mktemp -d)
HOST=$(hostname -s)
CONFIG=/etc/slurm/slurm.conf
export EEUTILS_RUNS=$FOLDER/runs  # trained anew, so that a job runs long enough to be cancelled

fail() {
    echo "one_node: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "the daemons need root; run it with sudo"
for program in munged slurmctld slurmd squeue; do
    command -v $program >/dev/null || fail "$program is missing; apt install slurm-wlm munge"
done
[ ! -e $CONFIG ] || fail "$CONFIG exists: this machine is part of a cluster already; remove the file if it is not"

end_batch() {
    # A group of its own: make, Snakemake and what it started.
    [ -z "${BATCH:-}" ] || kill -TERM -- "-$BATCH" 2>/dev/null || true
    [ -z "${BATCH:-}" ] || wait "$BATCH" 2>/dev/null || true
    BATCH=
}

stop() {
    end_batch
    for daemon in slurmd slurmctld munged; do
        [ ! -e "$FOLDER/$daemon.pid" ] || kill "$(cat "$FOLDER/$daemon.pid")" 2>/dev/null || true
    done
    for _ in $(seq 20); do
        pgrep -x 'slurmd|slurmctld|munged' >/dev/null || break
        sleep 0.5
    done
    rm -rf "$FOLDER" $CONFIG
}
trap stop EXIT

mkdir -p "$FOLDER/state" "$FOLDER/spool" /run/munge /etc/slurm
chown munge: /run/munge
cat > $CONFIG <<CONF
ClusterName=one
SlurmctldHost=$HOST(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
MinJobAge=86400
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=$HOST Default=YES MaxTime=INFINITE State=UP
CONF
touch "$FOLDER/munged.pid" && chown munge: "$FOLDER" "$FOLDER/munged.pid"
su munge -s /bin/sh -c "munged --pid-file='$FOLDER/munged.pid'"
slurmctld -f $CONFIG -L "$FOLDER/slurmctld.log"
slurmd -f $CONFIG -L "$FOLDER/slurmd.log"
for _ in $(seq 30); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null)" != idle ] || break
    sleep 1
done
[ "$(sinfo --noheader --format=%T)" = idle ] || fail "the node did not come up: $(tail -3 "$FOLDER/slurmd.log")"

# The profile that we ship, with what this node has.
mkdir "$FOLDER/profile"
sed -e 's/^\( *gpu:\)/  # \1/' -e 's/^\( *cpus_per_task:\).*/\1 1/' -e 's/^\( *mem_mb:\).*/\1 3000/' \
    workflow/slurm/config.yaml > "$FOLDER/profile/config.yaml"
GIVEN=(PROFILE=smoke CLUSTER="$FOLDER/profile")
UNTIL=
for notebook in "$@"; do
    UNTIL="${UNTIL:---until} notebook_$(basename "$notebook" .ipynb)"
done
rm -rf reproduced/smoke

echo "one_node: a batch that asks for more than the node has says so"
mkdir "$FOLDER/greedy"
sed -e 's/^\( *cpus_per_task:\).*/\1 64/' "$FOLDER/profile/config.yaml" > "$FOLDER/greedy/config.yaml"
setsid make reproduce PROFILE=smoke CLUSTER="$FOLDER/greedy" FLAGS="$UNTIL" > "$FOLDER/greedy.log" 2>&1 &
BATCH=$!
for _ in $(seq 90); do
    kill -0 $BATCH 2>/dev/null || break
    ! grep -q "it will never start\|Requested node configuration is not available" "$FOLDER/greedy.log" || break
    sleep 2
done
grep -m1 "it will never start\|Requested node configuration is not available" "$FOLDER/greedy.log" ||
    fail "nothing was said: $(tail -5 "$FOLDER/greedy.log")"
end_batch
scancel --user=root
rm -rf .snakemake/locks reproduced/smoke

echo "one_node: the batch, with one job cancelled in the middle"
setsid make reproduce "${GIVEN[@]}" FLAGS="$UNTIL" > "$FOLDER/batch.log" 2>&1 &
BATCH=$!
for _ in $(seq 120); do
    JOB=$(squeue --noheader --states=RUNNING --format=%i | head -1)
    [ -z "$JOB" ] || break
    sleep 1
done
[ -n "${JOB:-}" ] || fail "no job started: $(tail -5 "$FOLDER/batch.log")"
sleep 15
scancel "$JOB"
echo "one_node: job $JOB cancelled"
wait $BATCH || fail "the batch failed: $(tail -20 "$FOLDER/batch.log")"
BATCH=
grep -q "Trying to restart job" "$FOLDER/batch.log" || fail "the cancelled job was not started again"
squeue --noheader --states=all --format='%i %T %k'
ls reproduced/smoke/movie/seed0/*.ipynb
echo "one_node: all done, the cancelled job too"
