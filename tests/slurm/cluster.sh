#!/usr/bin/env bash
# A real Slurm on one machine for the tests: a controller and two node daemons, without systemd, cgroups or a database.
#
#   cluster.sh install          the Debian packages, without starting their services
#   cluster.sh up               start; does nothing where it runs already
#   cluster.sh status           nodes and jobs
#   cluster.sh node-down NAME   take a node away (n1 or n2): its jobs are killed and queued again
#   cluster.sh node-up NAME     give it back
#   cluster.sh down [--purge]   cancel what runs and stop; --purge removes the state folder
#
# Everything is in one folder, SLURM_TEST_DIR: configuration, a munge key and socket of its own, logs, pid files, by which
# alone processes are stopped. Outside of it there is only the link /etc/slurm/slurm.conf, which jobs need (the executor
# drops SLURM_CONF from their environment); where that is a file or link of somebody else, nothing is started.
# SLURM_TEST_PORT is the first of the ports that it listens on, all of them at 127.0.0.1.
set -euo pipefail

STATE=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/kv-transition-slurm}
PORT=${SLURM_TEST_PORT:-16917}
NODES=(n1 n2)
CPUS=4
MEMORY=6000
PACKAGES=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge)
LINK=/etc/slurm/slurm.conf
HOST=$(hostname -s 2>/dev/null || hostname)
export PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$STATE/etc/slurm.conf

say() { printf 'cluster.sh: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# Whether a pid file names a running process of that program.
running() { # program, pid file
    [ -s "$2" ] && [ "$(cat "/proc/$(cat "$2")/comm" 2>/dev/null)" = "$1" ]
}

wait_until() { # seconds, command...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

stopped() { ! running "$@"; }

stop() { # program, pid file
    if running "$1" "$2"; then
        kill "$(cat "$2")" 2>/dev/null || true
        if ! wait_until 15 stopped "$1" "$2"; then kill -9 "$(cat "$2")" 2>/dev/null || true; fi
    fi
    rm -f "$2"
}

check_machine() {
    [ "$(uname -s)" = Linux ] || fail "Slurm runs on Linux only"
    [ "$(id -u)" = 0 ] || fail "only root can start Slurm's daemons so that they run jobs; run it as root"
}

check_programs() {
    installed || fail "Slurm or munge is not installed; run cluster.sh install"
    getent hosts "$HOST" >/dev/null || fail "the name $HOST does not resolve; add '127.0.0.1 $HOST' to /etc/hosts"
}

check_link() {
    if [ -e "$LINK" ] || [ -L "$LINK" ]; then
        [ "$(readlink "$LINK")" = "$SLURM_CONF" ] || fail "$LINK ($(readlink "$LINK" || echo a file)) belongs to another Slurm; nothing was started"
    fi
}

installed() { type slurmctld slurmd sbatch squeue scontrol sinfo munged xargs >/dev/null 2>&1; }

install_packages() {
    if installed; then return; fi
    # Debian starts services on installation unless this file forbids it.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=yes
    fi
    local done_well=yes
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}" >/dev/null; } || done_well=
    [ -z "$made" ] || rm -f "$policy"
    [ -n "$done_well" ] || fail "apt-get could not install ${PACKAGES[*]}"
}

write_configuration() {
    mkdir -p "$STATE"/{etc,run,log,spool,state,munge}
    chmod 755 "$STATE" "$STATE"/{etc,run,log,spool,state}
    chmod 700 "$STATE/munge"
    {
        cat <<CONF
ClusterName=kvtransition
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that was queued again is held until its old credential has expired.
AuthInfo=socket=$STATE/run/munge.sock,cred_expire=10
StateSaveLocation=$STATE/state
SlurmdSpoolDir=$STATE/spool/%n
SlurmctldPidFile=$STATE/run/slurmctld.pid
SlurmdPidFile=$STATE/run/slurmd-%n.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
# Memory limits without cgroups: each job is looked at every second.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
# The least loaded node first, so that both have jobs.
SelectTypeParameters=CR_Core_Memory,CR_LLN
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
DefMemPerCPU=200
# A node has more CPUs here than the machine may have.
SlurmdParameters=config_overrides
# A node that was set down stays down.
ReturnToService=0
SlurmdTimeout=30
KillWait=2
OverTimeLimit=0
InactiveLimit=0
MinJobAge=300
JobRequeue=1
GresTypes=gpu
CONF
        local i
        for i in "${!NODES[@]}"; do
            printf 'NodeName=%s NodeHostname=%s NodeAddr=127.0.0.1 Port=%d CPUs=%d RealMemory=%d Gres=gpu:1 State=UNKNOWN\n' \
                "${NODES[$i]}" "$HOST" $((PORT + 1 + i)) "$CPUS" "$MEMORY"
        done
        echo "PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP"
    } >"$SLURM_CONF.new"
    mv "$SLURM_CONF.new" "$SLURM_CONF"
    # A GPU that is none, so that requests for one can be tried.
    for node in "${NODES[@]}"; do echo "NodeName=$node Name=gpu File=/dev/null"; done >"$STATE/etc/gres.conf"
    mkdir -p "$(dirname "$LINK")"
    ln -sfn "$SLURM_CONF" "$LINK"
}

start_munge() {
    [ -s "$STATE/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$STATE/munge/key")
    # --force: the folder of the state may be writable for others, like /tmp.
    munged --force --num-threads=2 --key-file="$STATE/munge/key" --socket="$STATE/run/munge.sock" \
        --pid-file="$STATE/run/munged.pid" --seed-file="$STATE/munge/seed" --log-file="$STATE/munge/log" </dev/null
    wait_until 10 munge -n --socket="$STATE/run/munge.sock" || fail "munged does not answer, see $STATE/munge/log"
}

ready() { [ "$(sinfo --noheader --Node --partition main --format %t | grep -cxE 'idle|mix|alloc')" = "${#NODES[@]}" ]; }

up() {
    check_machine
    check_programs
    check_link
    if running slurmctld "$STATE/run/slurmctld.pid" && ready 2>/dev/null; then
        say "it is up"
        return
    fi
    write_configuration
    running munged "$STATE/run/munged.pid" || start_munge
    if ! running slurmctld "$STATE/run/slurmctld.pid"; then
        slurmctld -f "$SLURM_CONF" </dev/null
        wait_until 20 scontrol ping || fail "slurmctld does not answer, see $STATE/log/slurmctld.log"
    fi
    local node
    for node in "${NODES[@]}"; do
        mkdir -p "$STATE/spool/$node"
        running slurmd "$STATE/run/slurmd-$node.pid" || slurmd -N "$node" -f "$SLURM_CONF" </dev/null
    done
    # What was down when the cluster was stopped is down still.
    for node in "${NODES[@]}"; do
        if sinfo --noheader --node "$node" --format %t | grep -q '^down'; then node_up "$node"; fi
    done
    wait_until 30 ready || fail "the nodes do not become idle, see $STATE/log"
    say "up; to use it: export SLURM_CONF=$SLURM_CONF"
}

check_node() {
    case " ${NODES[*]} " in
    *" ${1:-} "*) ;;
    *) fail "name a node: ${NODES[*]}" ;;
    esac
}

node_down() {
    check_node "$@"
    scontrol update "nodename=$1" state=down reason=test
}

node_up() {
    check_node "$@"
    scontrol update "nodename=$1" state=resume
}

no_jobs() { [ -z "$(squeue --noheader)" ]; }

down() {
    if running slurmctld "$STATE/run/slurmctld.pid"; then
        # A job that was stopped by a signal does not notice that it is cancelled.
        squeue --noheader --format %i | xargs --no-run-if-empty timeout 10 scancel --signal=CONT || true
        timeout 10 scancel --user=root || true
        wait_until 10 no_jobs || true
    fi
    local node
    for node in "${NODES[@]}"; do stop slurmd "$STATE/run/slurmd-$node.pid"; done
    stop slurmctld "$STATE/run/slurmctld.pid"
    stop munged "$STATE/run/munged.pid"
    if [ "$(readlink "$LINK" || true)" = "$SLURM_CONF" ]; then rm -f "$LINK"; fi
    if [ "${1:-}" = --purge ]; then rm -rf "$STATE"; fi
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
install) check_machine && install_packages ;;
up) up ;;
down) check_machine && down "$@" ;;
status) sinfo --Node --long && squeue --long ;;
node-down) node_down "$@" ;;
node-up) node_up "$@" ;;
*)
    sed -n '2,/^set/p' "$0" | sed '/^set/d; s/^# \{0,1\}//'
    exit 2
    ;;
esac
