#!/bin/bash
# Daemons as an OAR job: one for each member of the array. Change what is marked, then
#     chmod +x oar.sh && oarsub -S "./oar.sh pyexpd.yml"          and for more of them at any time: the same again
# They share the work through the database (MySQL or MariaDB), so they may start, end and be submitted again in any order.
#
#OAR -n pyexpd
#OAR --array 4
#OAR -l /nodes=1/core=8,walltime=24:00:00
#OAR -O pyexpd-%jobid%.log
#OAR -E pyexpd-%jobid%.log
#
# So many seconds before the walltime ends: nothing new is begun, what runs may finish (USR1, which is 10).
#OAR --checkpoint 600
#OAR --signal 10
#
# The daemon knows when the walltime ends: what cannot end before it is not begun, and what runs is asked to stop early enough to
# save a snapshot (Daemon.drain_timeout, plus Limits.grace, plus ten seconds for the last words).
set -euo pipefail
config=${1:-pyexpd.yml}

# CHANGE: what makes `pyexpd` and the packages of the experiments available.
# module load python/3.11 cuda
# source "$OAR_WORKING_DIRECTORY/.venv/bin/activate"

# Locks belong on a local disk; all daemons of this user on the node share the folder.
export STATE_DIRECTORY=${STATE_DIRECTORY:-/tmp/pyexpd-$(id -un)}
install -d -m 700 "$STATE_DIRECTORY"

# It is called oar-ARRAY-MEMBER, has a slot for each GPU or else for each core of the job, and ends with the allocation.
exec pyexpd -c "$config" run
