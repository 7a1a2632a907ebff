# What the templates share. They source it from the root of the repository; it is never submitted itself.
#
#   run_ranks SCRIPT [ARGUMENT ...]        the ranks of a launcher on all nodes of the job
#   run_tool USR1 TOOL [ARGUMENT ...]      one process on one node
#   for_each_task LIST FUNCTION            the task of a job array: FUNCTION gets the words of its line in LIST
#
# --dry-run as a template's first argument prints the commands and runs none of them, in a job or outside of SLURM.
#
# Preemption, by the time limit (--signal=USR1@300) or by scancel --signal=USR1: the ranks save, write the file of
# --preempted-file, and exit. The template finds the file and puts the job back into the queue, where it goes on later.

fail() {
    echo "error: $*" >&2
    exit 2
}

# --- Printing and running ---------------------------------------------------------------------------------------------

# Print a command so that a shell would read the same words again, with quotes only where they are needed.
show() {
    local word line="+"
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:,=@%+-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    printf '%s\n' "$line"
}

# Print a command and, unless this is a dry run, run it.
show_and_run() {
    show "$@"
    [[ -n $DRY_RUN ]] || "$@"
}

# --- The job and its cluster ------------------------------------------------------------------------------------------

# Outside of SLURM a dry run has an invented job: what the template's #SBATCH lines ask for.
invent_job() {
    [[ -n $DRY_RUN ]] || fail "this runs in a SLURM job: sbatch $0 ..., or: bash $0 --dry-run ..."
    SLURM_JOB_ID=1
    SLURM_JOB_NUM_NODES=$(sed -n 's/^#SBATCH --nodes=//p' "$0")
    SLURM_CPUS_PER_TASK=$(sed -n 's/^#SBATCH --cpus-per-task=//p' "$0")
}

read_cluster() {
    local file=${PREALIGN_CLUSTER:-launchers/slurm/cluster.env} name
    [[ -f $file ]] || fail "$file: no such cluster file (PREALIGN_CLUSTER names it)"
    # Not from the shell that called sbatch: the address of another job would be worse than none.
    unset MASTER_ADDR MASTER_PORT
    set -a
    source "$file"
    set +a
    for name in RANKS_PER_NODE LAUNCHER SETUP JOB_FOLDER; do
        [[ -n ${!name+set} ]] || fail "$file: does not set $name"
    done
    [[ $LAUNCHER == torchrun || $LAUNCHER == deepspeed ]] || fail "$file: LAUNCHER=$LAUNCHER; give torchrun or deepspeed"
    [[ $RANKS_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "$file: RANKS_PER_NODE=$RANKS_PER_NODE; give a number of processes"
    if [[ ${SLURM_GPUS_ON_NODE:-$RANKS_PER_NODE} != "$RANKS_PER_NODE" ]]; then
        echo "warning: $file: RANKS_PER_NODE=$RANKS_PER_NODE, but SLURM gave $SLURM_GPUS_ON_NODE GPUs on a node" >&2
    fi
    echo "+ $SETUP"
    if [[ -z $DRY_RUN ]]; then
        # The scripts of modules and virtual environments read variables that are not set.
        set +u
        eval "$SETUP" || fail "$file: SETUP failed: $SETUP"
        set -u
    fi
}

# The names of the job's nodes, one a line, in the order of SLURM_NODEID.
node_names() {
    if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
        scontrol show hostnames "$SLURM_JOB_NODELIST"
    else
        seq --format='node%g' 1 "$SLURM_JOB_NUM_NODES"
    fi
}

# --- Running ----------------------------------------------------------------------------------------------------------

# srun with the same number of tasks on each of so many nodes: one.
# Without --export, a job of `sbatch --export=NONE` would hide SETUP from its steps. And a step does not inherit
# --cpus-per-task from its job (since SLURM 22.05): without it all ranks of a node would share one core.
srun_words() {
    SRUN=(srun --kill-on-bad-exit=1 --export=ALL --nodes="$1" --ntasks="$1" --ntasks-per-node=1)
    [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || SRUN+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
}

# Put this job back into the queue and end it. Submitted again by hand, it would go on in the same way.
requeue() {
    # The number of an array's last task is also that of the whole array: all its tasks would be requeued.
    local job=$SLURM_JOB_ID
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "preempted: job $job goes back into the queue"
    scontrol requeue "$job" && exit 0
    echo "error: job $job could not be requeued; submit the same command again, it goes on" >&2
    exit 85
}

run_ranks() {
    local script=$1 nodes=$SLURM_JOB_NUM_NODES code=0
    shift
    local files="$JOB_FOLDER/$SLURM_JOB_ID"
    [[ $files == /* ]] || files="$PWD/$files" # deepspeed ignores a hostfile that it does not find
    local mark="$files.preempted" hostfile="$files.hosts"
    # world_size: the script refuses to run when another number of ranks has come up.
    local ranks=("$script" --preempted-file "$mark" "$@" "world_size=$((nodes * RANKS_PER_NODE))")
    local address port=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
    address=${MASTER_ADDR:-$(node_names | sed -n 1p)}
    srun_words "$nodes"

    # SLURM's signal reaches the launchers too. USR1 would end them before the ranks have saved: they ignore it, and so do
    # the ranks, until they have set up their own answer.
    # torchrun passes TERM on to its ranks and then waits, as long as SLURM does after USR1 instead of 30 s.
    # deepspeed is two processes: the first would die of TERM at once; the second passes it on and waits 30 s.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}
    if [[ $LAUNCHER == torchrun ]]; then
        # is_host: torchrun would guess it from the address, wrongly where a node has several names.
        SRUN+=(
            bash -c 'trap "" USR1; exec torchrun --rdzv-conf=is_host=$((SLURM_NODEID == 0)) "$@"' torchrun
            --nnodes="$nodes" --nproc-per-node="$RANKS_PER_NODE"
            --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$address:$port"
        )
    else
        echo "+ for $hostfile:"
        node_names | sed "s/\$/ slots=$RANKS_PER_NODE/"
        SRUN+=(
            bash -c 'trap "" USR1 TERM; exec deepspeed --node_rank="$SLURM_NODEID" "$@"' deepspeed
            --hostfile="$hostfile" --no_ssh --master_addr="$address" --master_port="$port"
        )
    fi
    if [[ -z $DRY_RUN ]]; then
        mkdir -p "$(dirname "$files")"
        rm -f "$mark" # of an earlier start of this job
        node_names | sed "s/\$/ slots=$RANKS_PER_NODE/" >"$hostfile"
    fi

    show_and_run "${SRUN[@]}" "${ranks[@]}" || code=$?
    [[ -z $DRY_RUN ]] || return 0
    rm -f "$hostfile"
    if [[ $code != 0 && -e $mark ]]; then
        echo "preempted: $(<"$mark")"
        rm -f "$mark"
        requeue
    fi
    [[ $code == 0 ]] || exit "$code"
}

# A tool has no answer to USR1 of its own. "stop": USR1 ends it and the job is requeued, for tools that go on where they
# stopped. "ignore": it runs until the time limit, for tools that would begin anew and never finish.
run_tool() {
    local usr1=$1 code=0
    shift
    srun_words 1
    [[ $usr1 == stop ]] || SRUN+=(bash -c 'trap "" USR1; exec "$@"' tool)
    show_and_run "${SRUN[@]}" python "$@" || code=$?
    [[ $usr1 != stop || $code != $((128 + 10)) ]] || requeue # 128 + USR1
    [[ $code == 0 ]] || exit "$code"
}

# Call FUNCTION with the words of one line of LIST, the line of this array task; comments and empty lines do not count.
# A dry run outside of an array shows all tasks.
for_each_task() {
    local list=$1 function=$2 lines numbers number words
    [[ -f $list ]] || fail "$list: no such list of tasks"
    mapfile -t lines < <(grep -Ev '^[[:space:]]*(#|$)' "$list")
    [[ ${#lines[@]} -gt 0 ]] || fail "$list: has no tasks"
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        numbers=$SLURM_ARRAY_TASK_ID
    elif [[ -n $DRY_RUN ]]; then
        numbers=$(seq 1 "${#lines[@]}")
    else
        fail "$list has ${#lines[@]} tasks: submit with --array=1-${#lines[@]}"
    fi
    for number in $numbers; do
        ((1 <= number && number <= ${#lines[@]})) || fail "$list has ${#lines[@]} tasks, there is no task $number"
        read -ra words <<<"${lines[number - 1]}"
        echo "+ task $number of $list: ${lines[number - 1]}"
        "$function" "${words[@]}"
    done
}

# --- At the start of every template -----------------------------------------------------------------------------------

DRY_RUN=
if [[ ${1:-} == --dry-run ]]; then
    DRY_RUN=yes
    shift # from the template's arguments: a file that is sourced without arguments shares them
fi
[[ -n ${SLURM_JOB_ID:-} ]] || invent_job
read_cluster
