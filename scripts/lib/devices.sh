# shellcheck shell=bash
# What this machine has, and what each kind of device needs: the only place that knows CUDA, ROCm and CPU apart.
# Sourced by scripts/lib/launch.sh, which documents the variables. The functions share those of launch_training.
# shellcheck disable=SC2154

# count_cuda, count_rocm: print how many GPUs this machine shows; 0 without driver or tool.
count_cuda() {
    if has nvidia-smi; then nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true; else echo 0; fi
}

count_rocm() {
    if has amd-smi; then
        amd-smi list --csv 2>/dev/null | grep -c '^[0-9]' || true
    elif has rocm-smi; then
        rocm-smi --showid --csv 2>/dev/null | grep -c '^card' || true
    else
        echo 0
    fi
}

# find_devices: sets DEVICE (cuda, rocm or cpu), visible (the list that restricts this machine's GPUs, or empty) and
# found (how many GPUs can be used, 0 if unknown).
find_devices() {
    local cuda=0 rocm=0
    DEVICE=${DEVICE:-auto}
    one_of DEVICE "$DEVICE" auto cuda rocm cpu
    if is_true "${USE_CPU:-False}"; then DEVICE=cpu; fi
    case $DEVICE in auto | cuda) cuda=$(count_cuda) ;; esac
    case $DEVICE in auto | rocm) rocm=$(count_rocm) ;; esac
    if [ "$DEVICE" = auto ]; then
        if [ "$cuda" -gt 0 ]; then
            DEVICE=cuda
        elif [ "$rocm" -gt 0 ]; then
            DEVICE=rocm
        elif [ -n "${USE_CPU:-}" ]; then
            DEVICE=cuda # USE_CPU=False promises a GPU, even one that no tool shows
        elif [ -n "${SLURM_GPUS_ON_NODE:-}${SLURM_GPUS_PER_NODE:-}${SLURM_JOB_GPUS:-}" ]; then
            refuse "the SLURM allocation has GPUs but this machine shows none; set DEVICE to cuda or rocm."
        else
            note "No GPU was found (nvidia-smi, amd-smi, rocm-smi): this trains on the CPU."
            DEVICE=cpu
        fi
    fi
    visible='' found=0
    case $DEVICE in
        cuda) visible=${CUDA_VISIBLE_DEVICES:-} found=$cuda ;;
        rocm) visible=${HIP_VISIBLE_DEVICES:-${CUDA_VISIBLE_DEVICES:-${ROCR_VISIBLE_DEVICES:-}}} found=$rocm ;;
    esac
    if [ -n "$visible" ]; then found=$(awk -F, '{ print NF }' <<<"$visible"); fi
}

# count_processes: sets NUM_DEVICES, the processes on each machine.
count_processes() {
    local available=$found
    if [ -n "${HOSTFILE:-}" ] && [ -z "${NUM_DEVICES:-}" ]; then
        NUM_DEVICES=${slots%% *}
    elif [ "$LAUNCHER" = srun ]; then
        available=0 # this may be a login node
        NUM_DEVICES=${NUM_DEVICES:-${SLURM_GPUS_ON_NODE:-$found}}
    elif [ "$DEVICE" = cpu ] || [ "$LAUNCHER" = python ]; then
        NUM_DEVICES=${NUM_DEVICES:-1}
    else
        NUM_DEVICES=${NUM_DEVICES:-$found}
    fi
    if [ "$NUM_DEVICES" = 0 ]; then refuse "no GPU can be counted here; set NUM_DEVICES."; fi
    whole NUM_DEVICES "$NUM_DEVICES"
    if [ -z "${HOSTFILE:-}" ] && [ "$available" -gt 0 ] && [ "$NUM_DEVICES" -gt "$available" ]; then
        refuse "NUM_DEVICES is $NUM_DEVICES, but only $available GPUs can be used here${visible:+ ($visible)}."
    fi
}

# restrict_devices: leaves the first NUM_DEVICES of the visible GPUs, under one name. Torch reads HIP_VISIBLE_DEVICES
# on ROCm and falls back on CUDA_VISIBLE_DEVICES, so both together could choose twice. Under srun each node has its own.
restrict_devices() {
    if [ "$DEVICE" = cpu ] || [ "$LAUNCHER" = srun ] || [ -n "${HOSTFILE:-}" ]; then return; fi
    if [ -z "$visible" ] && [ "$LAUNCHER" = python ] && [ "$found" -gt 1 ]; then visible=0; fi
    if [ -z "$visible" ]; then return; fi
    visible=$(cut -d, -f "1-$NUM_DEVICES" <<<"$visible")
    if [ "$DEVICE" = cuda ]; then
        hint "CUDA_VISIBLE_DEVICES=$visible"
    elif [ -n "${HIP_VISIBLE_DEVICES:-${CUDA_VISIBLE_DEVICES:-}}" ] || [ -z "${ROCR_VISIBLE_DEVICES:-}" ]; then
        unset CUDA_VISIBLE_DEVICES
        hint "HIP_VISIBLE_DEVICES=$visible"
    fi
}

# hint NAME=VALUE: an environment variable for the processes, printed by DRY_RUN.
hint() {
    hints+=("$1")
    export "${1?}"
}

# device_settings: what the kind of device needs: variables in hints, flags in device_flags.
device_settings() {
    local cores bf16=True attention=${ATTENTION:-}
    if is_true "${FP16:-False}"; then bf16=False; fi
    device_flags=()
    case $DEVICE in
        cuda) if [ -z "${NCCL_DEBUG:-}" ]; then hint NCCL_DEBUG=WARN; fi ;; # errors of the network in words
        rocm)
            if [ -z "${NCCL_DEBUG:-}" ]; then hint NCCL_DEBUG=WARN; fi # RCCL reads NCCL's variables
            # RCCL's documentation asks for this where GPUs are joined by PCIe; others are not affected.
            if [ -z "${HSA_FORCE_FINE_GRAIN_PCIE:-}" ]; then hint HSA_FORCE_FINE_GRAIN_PCIE=1; fi
            ;;
        cpu)
            bf16=False attention=${ATTENTION:-sdpa}
            device_flags+=(--use_cpu True)
            if [ "$config" != none ]; then hint DS_ACCELERATOR=cpu; fi
            ;;
    esac
    # Torchrun would choose 1, too few for an optimizer on the CPU; without a choice all processes take all cores.
    if [ -z "${OMP_NUM_THREADS:-}" ] && [ "$NUM_DEVICES" -gt 1 ]; then
        cores=${SLURM_CPUS_ON_NODE:-$(nproc)}
        hint "OMP_NUM_THREADS=$((cores > NUM_DEVICES ? cores / NUM_DEVICES : 1))"
    fi
    device_flags+=(--bf16 "${BF16:-$bf16}" --fp16 "${FP16:-False}" ${attention:+--attn_implementation "$attention"})
}
