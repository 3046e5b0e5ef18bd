# shellcheck shell=bash
# The launcher: finds the devices, keeps the global batch, and starts llava/train/train_mem.py on one machine or many.
# Sourced by the recipes.
#
#   LAUNCHER           auto, deepspeed, torchrun, srun or python (one process)    auto, which takes:
#                        srun in a SLURM allocation of several nodes, deepspeed with HOSTFILE, torchrun with NUM_NODES;
#                        else the first of deepspeed, torchrun and python that is there; on a CPU torchrun or python
#   DEEPSPEED_CONFIG   ZeRO settings, or none: every device holds everything      the recipe's; none if deepspeed is
#                        not installed or the launcher is python
#   DEVICE             auto, cuda, rocm or cpu; USE_CPU=True also says cpu        auto
#   NUM_DEVICES        processes on each machine                                  its GPUs; 1 on a CPU
#   CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES   which GPUs may be used   all
#   GLOBAL_BATCH_SIZE  samples of one optimizer step over all devices             the recipe's: the paper's
#   BATCH_SIZE         samples of one device in one forward pass                  the recipe's, or the largest below it
#                        that divides what one device has to do of the global batch
#   ACCUMULATION       forward passes of one optimizer step; if given it decides  follows from the two above
#   ATTENTION          sdpa, eager or flash_attention_2                           the trainer's choice; sdpa on a CPU
#   BF16, FP16         mixed precision                                            True (False on a CPU), False
#   HOSTFILE           machines for deepspeed, a line each: name slots=GPUS       none
#   NUM_NODES, NODE_RANK, MASTER_ADDR   for torchrun started on every machine     1, none, none
#   MASTER_PORT        where the processes meet                                   29500; SLURM: from the job's number
#   OMP_NUM_THREADS    threads of each process                                    cores over processes
#   NCCL_DEBUG         what NCCL and RCCL report                                  WARN
#   HSA_FORCE_FINE_GRAIN_PCIE   ROCm: GPUs joined by PCIe reach each other        1
#   TORCH_ELASTIC_SHUTDOWN_TIMEOUT   seconds that torchrun leaves for saving      600
#   PYTHON             interpreter of LAUNCHER=python                             python
#   DRY_RUN            1 only prints the command                                  0
#
# SIGTERM (a preempted job) reaches the processes that train. They save and end with status 75, which comes out here;
# the same command again goes on from there. Wrong settings end with status 2 before anything starts.

# shellcheck source=scripts/lib/checks.sh
source scripts/lib/checks.sh
# shellcheck source=scripts/lib/supervise.sh
source scripts/lib/supervise.sh
# shellcheck source=scripts/lib/devices.sh
source scripts/lib/devices.sh

ENTRY=llava/train/train_mem.py

# check_variables: refuses what a user or a scheduler has set to something else than the number, word or machine that is
# meant. Nothing is calculated before.
check_variables() {
    local name
    one_of DRY_RUN "${DRY_RUN:-0}" 0 1
    for name in USE_CPU BF16 FP16; do
        if [ -n "${!name:-}" ]; then boolean "$name" "${!name}"; fi
    done
    for name in NUM_DEVICES NUM_NODES GLOBAL_BATCH_SIZE BATCH_SIZE ACCUMULATION TORCH_ELASTIC_SHUTDOWN_TIMEOUT \
        SLURM_NNODES SLURM_CPUS_ON_NODE; do
        if [ -n "${!name:-}" ]; then whole "$name" "${!name}"; fi
    done
    if [ -n "${SLURM_JOB_ID:-}" ]; then whole SLURM_JOB_ID "$SLURM_JOB_ID" 999999999999; fi
    if [ "${SLURM_GPUS_ON_NODE:-0}" != 0 ]; then whole SLURM_GPUS_ON_NODE "$SLURM_GPUS_ON_NODE"; fi
    if [ -n "${MASTER_PORT:-}" ]; then whole MASTER_PORT "$MASTER_PORT" 65535; fi
    if [ -n "${MASTER_ADDR:-}" ]; then host MASTER_ADDR "$MASTER_ADDR"; fi
}

# === Launchers ===

# choose_launcher: settles LAUNCHER and refuses what does not go together.
choose_launcher() {
    LAUNCHER=${LAUNCHER:-auto}
    one_of LAUNCHER "$LAUNCHER" auto deepspeed torchrun srun python
    if [ "$LAUNCHER" = auto ]; then LAUNCHER=$(suitable_launcher); fi
    if [ -n "${HOSTFILE:-}" ] && [ "$LAUNCHER" != deepspeed ]; then
        refuse "HOSTFILE is for the deepspeed launcher, but LAUNCHER is $LAUNCHER; torchrun takes NUM_NODES," \
            "NODE_RANK and MASTER_ADDR on every machine."
    fi
    case $LAUNCHER in
        srun)
            [ -n "${SLURM_JOB_ID:-}" ] || refuse "LAUNCHER is srun, which needs a SLURM allocation (sbatch, salloc)."
            ;;
        python)
            if [ "${NUM_DEVICES:-1}" != 1 ]; then
                refuse "LAUNCHER=python starts one process, but NUM_DEVICES is $NUM_DEVICES; use torchrun or deepspeed."
            fi
            ;;
    esac
}

# suitable_launcher: prints the launcher that fits what is there.
suitable_launcher() {
    if [ -n "${HOSTFILE:-}" ]; then
        echo deepspeed
    elif [ -n "${SLURM_JOB_ID:-}" ] && [ "${SLURM_NNODES:-1}" -gt 1 ] && has srun; then
        echo srun
    elif [ "${NUM_NODES:-1}" != 1 ]; then
        echo torchrun
    elif [ "$DEVICE" = cpu ]; then # deepspeed would compile an extension first
        if [ "${NUM_DEVICES:-1}" = 1 ]; then echo python; else echo torchrun; fi
    elif has deepspeed && [[ $visible =~ ^[0-9,]*$ ]]; then # it cannot take GPUs by UUID
        echo deepspeed
    elif has torchrun && [ "${NUM_DEVICES:-$found}" != 1 ]; then
        echo torchrun
    else
        echo python
    fi
}

# choose_engine DEFAULT: sets config to the file with ZeRO's settings, or to none.
choose_engine() {
    config=${DEEPSPEED_CONFIG:-}
    if [ "$LAUNCHER" = python ]; then
        if [ "${config:-none}" != none ]; then
            refuse "DEEPSPEED_CONFIG is '$config', but LAUNCHER is python; use deepspeed or torchrun."
        fi
        config=none
    elif [ -z "$config" ] && has deepspeed; then
        config=$1
    elif [ -z "$config" ]; then
        config=none
        note "deepspeed is not installed: every device holds all weights, gradients and optimizer state."
    fi
    if [ "$config" = none ] && [ "$LAUNCHER" = deepspeed ]; then
        refuse "DEEPSPEED_CONFIG is none, but LAUNCHER is deepspeed; use torchrun for plain data parallelism."
    fi
    [ "$config" = none ] || [ -f "$config" ] || refuse "DEEPSPEED_CONFIG is '$config', which is not a file."
}

# count_nodes: sets nodes; for a host file also slots, the GPUs of each machine.
count_nodes() {
    slots=''
    case $LAUNCHER in
        srun) nodes=${SLURM_NNODES:-1} ;;
        deepspeed)
            nodes=1
            if [ -n "${HOSTFILE:-}" ]; then read_hostfile; fi
            ;;
        torchrun) nodes=${NUM_NODES:-1} ;;
        python) nodes=1 ;;
    esac
    if [ "$nodes" -gt 1 ] && [ "$LAUNCHER" = torchrun ]; then
        is_count "${NODE_RANK:-}" && [ "$NODE_RANK" -lt "$nodes" ] ||
            refuse "NODE_RANK is '${NODE_RANK:-}'; it numbers the $nodes machines from 0 to $((nodes - 1))."
        [ -n "${MASTER_ADDR:-}" ] || refuse "MASTER_ADDR is missing; name the machine with NODE_RANK=0."
    fi
}

# read_hostfile: sets nodes and slots from HOSTFILE.
read_hostfile() {
    local name gpus rest
    [ -f "$HOSTFILE" ] || refuse "HOSTFILE is '$HOSTFILE', which is not a file."
    nodes=0
    while read -r name gpus rest || [ -n "$name" ]; do
        if [ -z "$name" ]; then continue; fi
        if [ -n "$rest" ] || [[ $gpus != slots=* ]] || ! is_count "${gpus#slots=}"; then
            nodes=0
            break
        fi
        host "HOSTFILE: a machine" "$name"
        whole "HOSTFILE: the number of GPUs of $name" "${gpus#slots=}"
        slots+="${gpus#slots=} " nodes=$((nodes + 1))
    done < <(tr -d '\0' <"$HOSTFILE" | sed 's/#.*//')
    if [ "$nodes" -eq 0 ]; then
        refuse "HOSTFILE '$HOSTFILE' must have a line 'name slots=GPUS' for each machine."
    fi
}

# count_devices: sets devices, the processes of all machines.
count_devices() {
    local each
    devices=$((nodes * NUM_DEVICES))
    if [ -n "$slots" ] && [ -z "$asked_devices" ]; then
        devices=0
        for each in $slots; do devices=$((devices + each)); done
    fi
    whole "the number of all devices ($nodes machines)" "$devices"
}

# launcher_words: sets launcher to the words that stand before the script, and depth to how many generations below the
# first of them the processes are that SIGTERM is for.
launcher_words() {
    local port=${MASTER_PORT:-29500}
    depth=0 # torchrun passes SIGTERM on
    case $LAUNCHER in
        python) launcher=("${PYTHON:-python}") ;;
        deepspeed) deepspeed_words ;;
        torchrun)
            launcher=(torchrun --nproc_per_node "$NUM_DEVICES")
            if [ "$nodes" -gt 1 ]; then
                launcher+=(--nnodes "$nodes" --node_rank "$NODE_RANK")
                launcher+=(--master_addr "$MASTER_ADDR" --master_port "$port")
            elif [ -n "${MASTER_PORT:-}" ]; then
                launcher+=(--master_port "$port")
            else
                launcher+=(--standalone) # any free port
            fi
            ;;
        srun) srun_words ;;
    esac
    case $LAUNCHER in
        # Saving a large model takes minutes; the default of 30 s would cut it short.
        torchrun | srun) hint "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}" ;;
    esac
}

# Across machines deepspeed passes on variables that begin with NCCL or PYTHON; others belong into ~/.deepspeed_env.
deepspeed_words() {
    launcher=(deepspeed)
    if [ -n "${HOSTFILE:-}" ]; then
        launcher+=(--hostfile "$HOSTFILE" ${asked_devices:+--num_gpus "$asked_devices"})
        launcher+=(${MASTER_ADDR:+--master_addr "$MASTER_ADDR"})
    else
        depth=2 # its first process forgets its children at SIGTERM, its second kills them after 30 s
        if [ "$DEVICE" = cuda ] && [ -n "$visible" ]; then
            [[ $visible =~ ^[0-9,]+$ ]] ||
                refuse "CUDA_VISIBLE_DEVICES is '$visible'; deepspeed takes numbers only. Set LAUNCHER=torchrun."
            launcher+=(--include "localhost:$visible") # beside --num_gpus it would ignore the variable
        else
            launcher+=(--num_gpus "$NUM_DEVICES")
        fi
    fi
    launcher+=(${MASTER_PORT:+--master_port "$MASTER_PORT"})
}

# check_remote WORD...: DeepSpeed joins the command, and variables whose names begin like these, to a line that the
# shells of the machines read, in which it quotes nothing but blanks.
check_remote() {
    local name word read_by_shells='[[:cntrl:]$`"'"'"'\\;|&<>()*?!#~{}%]'
    while read -r name; do
        [[ ! ${!name} =~ [[:space:]]|$read_by_shells ]] || refuse "$name is '${!name}', which the shells of the" \
            "machines in HOSTFILE would not read as it stands; unset it, or leave such characters out."
    done < <(compgen -e | grep -E '^(NCCL|PYTHON|MLFLOW|MV2|UCX)')
    for word in "$@"; do
        [[ ! $word =~ $read_by_shells ]] || refuse "'$word' would not be read as it stands by the shells of the" \
            "machines in HOSTFILE; name a path, or give a value, without such characters."
    done
}

# One torchrun a machine, with all processors of the job's: a step gets those of one task otherwise.
# SIGTERM goes to the steps of the job by way of SLURM: sent to srun itself, it would kill them.
srun_words() {
    depth=slurm
    local head=${MASTER_ADDR:-} port=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
    if [ -z "$head" ]; then
        [[ ${SLURM_JOB_NODELIST:-} != -* ]] || refuse "SLURM_JOB_NODELIST is '$SLURM_JOB_NODELIST', which names no machine."
        read -r head < <(scontrol show hostnames "${SLURM_JOB_NODELIST:-}") ||
            refuse "scontrol names no machine of '${SLURM_JOB_NODELIST:-}'; set MASTER_ADDR."
        host "the first machine that scontrol names" "$head"
    fi
    launcher=(srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --kill-on-bad-exit=1)
    launcher+=(${SLURM_CPUS_ON_NODE:+--cpus-per-task "$SLURM_CPUS_ON_NODE"})
    launcher+=(torchrun --nnodes "$nodes" --nproc_per_node "$NUM_DEVICES")
    launcher+=(--rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$head:$port")
}

# === The global batch ===

# divisors NUMBER: prints all its divisors, a line each.
divisors() {
    local candidate larger=''
    for ((candidate = 1; candidate * candidate <= $1; candidate++)); do
        if (($1 % candidate)); then continue; fi
        echo "$candidate"
        if ((candidate * candidate < $1)); then larger=$(($1 / candidate))$'\n'$larger; fi
    done
    printf '%s' "$larger"
}

# resolve_batch GLOBAL BATCH: sets BATCH_SIZE and ACCUMULATION so that all devices together take GLOBAL_BATCH_SIZE
# (GLOBAL if unset) samples a step, BATCH at most at a time unless BATCH_SIZE is given.
resolve_batch() {
    local global=${GLOBAL_BATCH_SIZE:-$1} share workable
    if [ -n "${ACCUMULATION:-}" ]; then
        BATCH_SIZE=${BATCH_SIZE:-$2}
        share=$((devices * BATCH_SIZE * ACCUMULATION))
        if [ "$share" = "$global" ]; then return; fi
        if [ -n "${GLOBAL_BATCH_SIZE:-}" ]; then
            refuse "ACCUMULATION $ACCUMULATION and BATCH_SIZE $BATCH_SIZE on $devices devices make a global batch of" \
                "$share, not $global; leave ACCUMULATION or GLOBAL_BATCH_SIZE unset."
        fi
        note "The global batch is $share ($devices devices x $BATCH_SIZE x ACCUMULATION $ACCUMULATION)," \
            "not the recipe's $global."
        return
    fi
    if ((global % devices)); then
        workable=$(divisors "$global")
        refuse "a global batch of $global cannot be shared equally by $devices devices; set GLOBAL_BATCH_SIZE to a" \
            "multiple of $devices, or NUM_DEVICES so that there are one of ${workable//$'\n'/, }."
    fi
    share=$((global / devices))
    if [ -z "${BATCH_SIZE:-}" ]; then
        BATCH_SIZE=$(divisors "$share" | awk -v most="$2" '$1 <= most { best = $1 } END { print best }')
    elif ((share % BATCH_SIZE)); then
        workable=$(divisors "$share")
        refuse "BATCH_SIZE is $BATCH_SIZE, but $devices devices reach a global batch of $global only with one of" \
            "${workable//$'\n'/, } (or set ACCUMULATION and accept another global batch)."
    fi
    ACCUMULATION=$((share / BATCH_SIZE))
}

# === Start ===

# launch_training CONFIG GLOBAL BATCH FLAG...: runs the trainer with these flags, or prints the command with DRY_RUN=1.
# CONFIG, GLOBAL and BATCH are the recipe's defaults for DEEPSPEED_CONFIG, GLOBAL_BATCH_SIZE and BATCH_SIZE.
launch_training() {
    local default_config=$1 default_global=$2 default_batch=$3 output=${OUTPUT_DIR:?} asked_devices=${NUM_DEVICES:-}
    local visible found hidden nodes slots devices config depth hints=() device_flags launcher command
    shift 3
    check_variables
    find_devices
    choose_launcher
    choose_engine "$default_config"
    count_nodes
    count_processes
    count_devices
    resolve_batch "$default_global" "$default_batch"
    restrict_devices
    device_settings
    launcher_words
    command=("${launcher[@]}" "$ENTRY")
    if [ "$config" != none ]; then command+=(--deepspeed "$config"); fi
    command+=("${device_flags[@]}" --per_device_train_batch_size "$BATCH_SIZE")
    command+=(--gradient_accumulation_steps "$ACCUMULATION" "$@")
    if [ -n "${HOSTFILE:-}" ]; then check_remote "${command[@]}"; fi
    if [ "${DRY_RUN:-0}" = 1 ]; then
        print_command "${hints[@]}" "${command[@]}"
        return
    fi
    runnable "${LAUNCHER/#python/PYTHON}" "${command[0]}"
    if [ "$LAUNCHER" = python ]; then exec "${command[@]}"; fi
    start "$depth" "$output" "${command[@]}"
}

# start DEPTH OUTPUT COMMAND...: runs COMMAND and ends with its status. Torchrun turns every failure into 1, so a file
# that a preempted trainer leaves in OUTPUT says what it was.
start() {
    local depth=$1 marker=$2/preempted.json before='' status=0
    shift 2
    if grep -qs '^{"step": ' -- "$marker"; then
        rm -f -- "$marker"
    elif [ -f "$marker" ]; then
        before=$(cksum <"$marker") # not the trainer's
    fi
    supervise "$depth" "$@" || status=$?
    if [ "$status" -ne 0 ] && [ -f "$marker" ] && [ "$(cksum <"$marker")" != "$before" ]; then status=$PREEMPTED; fi
    exit "$status"
}
