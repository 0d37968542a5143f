#!/bin/bash
# start-slurm.sh DIR: a real SLURM cluster for tests on this one machine, as root and without systemd.
# Installs what is missing (Debian's packages), configures under DIR and starts munged, mariadbd, slurmdbd, slurmctld and two
# slurmd, each with a pretend GPU, all on loopback. What already runs from DIR is left running. Prints the path of slurm.conf once
# both nodes are idle; all else goes to stderr. Exit status 3: SLURM cannot be had here, and stderr says why.
set -euo pipefail
say() { echo "[start-slurm $(printf %3d $SECONDS)s] $*" >&2; }
die() { say "error: $*"; exit 1; }
cannot() { say "$*"; exit 3; }
[ $# = 1 ] || die "usage: $0 DIR"
mkdir -p "$1"; D=$(cd "$1" && pwd -P)
chmod 755 "$D" # munged refuses a socket that others could not reach
NODES=2 PB=${SLURM_TEST_PORTS:-16800}
[ "$(id -u)" = 0 ] || cannot "it takes root to start SLURM's daemons"
[ ${#D} -le 80 ] || die "DIR is too long for unix sockets (108 characters in all)"
if [ -e /etc/slurm/slurm.conf ] && [ ! -L /etc/slurm/slurm.conf ]; then
  cannot "/etc/slurm/slurm.conf is there: this machine belongs to a cluster"
fi
PATH=$PATH:/usr/sbin:/sbin
exec 9>"$D/.lock"; flock 9

# ---- 1. install (policy-rc.d in the image already keeps the packages from starting services)
need=""
for p in munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core; do
  command -v dpkg-query >/dev/null || cannot "SLURM is installed from Debian's packages, and this is no Debian"
  dpkg-query -W -f='${Status}' $p 2>/dev/null | grep -q 'ok installed' || need="$need $p"
done
if [ -n "$need" ]; then
  say "installing:$need"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends $need; } > "$D/apt.log" 2>&1 9>&- \
    || { tail -3 "$D/apt.log" >&2; cannot "apt-get could not install$need"; }
  say "installed"
fi

# ---- 2. configure
umask 022
mkdir -p "$D"/{run,log,state,spool,dev}; mkdir -p -m 700 "$D/munge"
HOST=$(hostname -s); RUN=$D/run
getent ahostsv4 "$HOST" | grep -q '^127\.' || echo "127.0.0.1 $HOST" >> /etc/hosts
[ -s "$D/munge/munge.key" ] || (umask 077; head -c 1024 /dev/urandom > "$D/munge/munge.key")
MEM=$(awk -v n=$NODES '/MemTotal/{print int($2/1024*0.9/n)}' /proc/meminfo)
CGROUP=1
if ! { [ -d /sys/fs/cgroup/freezer ] && [ -d /sys/fs/cgroup/memory ] && [ -w /sys/fs/cgroup/memory ]; }; then
  CGROUP=0; say "no writable cgroup v1 freezer+memory here: going without cgroups"
fi
{
cat <<C
ClusterName=lab
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$((PB+17))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.sock
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=5,bf_interval=2
ReturnToService=2
MinJobAge=3600
InactiveLimit=0
KillWait=5
SlurmdTimeout=60
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobRequeue=0
GresTypes=gpu
DefMemPerCPU=500
C
if [ $CGROUP = 1 ]; then
  echo "ProctrackType=proctrack/cgroup"; echo "TaskPlugin=task/cgroup"
else
  echo "ProctrackType=proctrack/linuxproc"; echo "TaskPlugin=task/none"
  echo "JobAcctGatherParams=OverMemoryKill"
fi
cat <<C
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PB+19))
AccountingStoragePass=$RUN/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
C
cat <<C
NodeName=n[1-$NODES] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[$((PB+21))-$((PB+20+NODES))] CPUs=4 RealMemory=$MEM Gres=gpu:1 Feature=pretend
PartitionName=main Nodes=n[1-$NODES] Default=YES MaxTime=1-00:00:00 DefaultTime=00:10:00 State=UP
PartitionName=gpu Nodes=n[1-$NODES] MaxTime=1-00:00:00 DefaultTime=00:10:00 State=UP
C
} > "$D/slurm.conf.new"
: > "$D/gres.conf.new"
for i in $(seq $NODES); do
  [ -e "$D/dev/gpu$i" ] || mknod "$D/dev/gpu$i" c 1 3      # a clone of /dev/null stands for the GPU
  echo "NodeName=n$i Name=gpu File=$D/dev/gpu$i" >> "$D/gres.conf.new"
done
cat > "$D/cgroup.conf.new" <<C
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
ConstrainCores=no
ConstrainDevices=no
AllowedRAMSpace=100
C
[ $CGROUP = 1 ] || rm -f "$D/cgroup.conf.new" "$D/cgroup.conf"
cat > "$D/slurmdbd.conf.new" <<C
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.sock
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PB+19))
SlurmUser=root
CommunicationParameters=NoInAddrAny
LogFile=$D/log/slurmdbd.log
PidFile=$RUN/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PB+6))
StorageUser=slurm
StoragePass=lab
StorageLoc=slurm_acct_db
C
chmod 600 "$D/slurmdbd.conf.new"
changed=0
for f in slurm.conf gres.conf cgroup.conf slurmdbd.conf; do
  [ -e "$D/$f.new" ] || continue
  if cmp -s "$D/$f.new" "$D/$f"; then rm "$D/$f.new"; else mv "$D/$f.new" "$D/$f"; changed=1; fi
done
export SLURM_CONF=$D/slurm.conf

# ---- 3. start what does not run.  A pid file counts only if that pid is that program, and no zombie.
alive() { local p; p=$(cat "$1" 2>/dev/null) && [ -n "$p" ] && [ "$(cat /proc/$p/comm 2>/dev/null)" = "$2" ] && ! grep -q '^State:.Z' /proc/$p/status; }
until_ok() { local t=$1 i; shift; for ((i=0; i<t*10; i++)); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; return 1; }
if [ $changed = 1 ] && alive "$RUN/slurmctld.pid" slurmctld; then
  say "configuration changed: restarting"; flock -u 9; "$(dirname "$(readlink -f "$0")")/stop-slurm.sh" "$D" >&2; flock 9
fi
# The jobstep executor of Snakemake strips every SLURM_* variable, SLURM_CONF too, before its inner srun:
# so a conf must also be found at the default place.
mkdir -p /etc/slurm
ln -sfn "$D/slurm.conf" /etc/slurm/slurm.conf
if ! alive "$RUN/munged.pid" munged; then
  rm -f "$RUN"/munge.sock*
  munged --socket=$RUN/munge.sock --key-file=$D/munge/munge.key --log-file=$D/munge/munged.log \
    --pid-file=$RUN/munged.pid --seed-file=$D/munge/munged.seed --num-threads=4 9>&-
  until_ok 10 munge -S $RUN/munge.sock -n || die "munged: $(tail -3 $D/munge/munged.log)"; say "munged up"
fi
sql() { mariadb --no-defaults -S $RUN/mysql.sock "$@"; }
if ! alive "$RUN/mysql.pid" mariadbd; then
  [ -d "$D/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$D/db" --skip-test-db \
      --auth-root-authentication-method=socket > "$D/log/install-db.log" 2>&1 || die "see $D/log/install-db.log"
  setsid mariadbd --no-defaults --user=root --datadir="$D/db" --socket=$RUN/mysql.sock --pid-file=$RUN/mysql.pid \
    --bind-address=127.0.0.1 --port=$((PB+6)) --log-error=$D/log/mariadb.log --innodb-buffer-pool-size=128M \
    --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=2 < /dev/null > /dev/null 2>&1 9>&- &
  until_ok 30 sql -e 'select 1' || die "mariadbd: $(tail -3 $D/log/mariadb.log)"
  sql -e "create database if not exists slurm_acct_db; create or replace user slurm@'127.0.0.1' identified by 'lab';
          create or replace user slurm@localhost identified by 'lab';
          grant all on slurm_acct_db.* to slurm@'127.0.0.1'; grant all on slurm_acct_db.* to slurm@localhost;"
  say "mariadbd up"
fi
if ! alive "$RUN/slurmdbd.pid" slurmdbd; then
  slurmdbd -s 9>&-
  until_ok 30 sacctmgr -n list cluster || die "slurmdbd: $(tail -3 $D/log/slurmdbd.log)"; say "slurmdbd up"
fi
if ! alive "$RUN/slurmctld.pid" slurmctld; then
  slurmctld -s 9>&-
  until_ok 30 scontrol ping || die "slurmctld: $(tail -3 $D/log/slurmctld.log)"; say "slurmctld up"
fi
for i in $(seq $NODES); do
  alive "$RUN/slurmd.n$i.pid" slurmd || slurmd -s -N n$i 9>&- || die "slurmd n$i: $(tail -3 $D/log/slurmd.n$i.log)"
done
# a node that was left down or drained by an earlier stop comes back by itself (ReturnToService=2); do not wait for it
ready() { [ "$(sinfo -h -N -p main -o %T | grep -cE '^(idle|mixed|allocated|completing)$')" = "$NODES" ]; }
until_ok 40 ready || { sinfo -N -l >&2; tail -n 5 "$D"/log/slurmd.*.log >&2; die "nodes did not become idle"; }
say "$(sinfo -h -N -p main -o '%N:%T:%ccpu:%mMB:%G' | tr '\n' ' ')"
echo "$D/slurm.conf"
