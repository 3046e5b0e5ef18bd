# shellcheck shell=bash
# What this machine has, and what each kind of device needs: the only place that knows CUDA, ROCm and CPU apart.
# Sourced by scripts/lib/launch.sh, which documents the variables, and used by scripts/lib/eval.sh too. The functions
# share the variables of launch_training.
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

# usable LIST COUNT: prints the entries of LIST that torch sees among COUNT GPUs (0 if unknown): those before the first
# that is no GPU, such as -1; none if one stands there twice.
usable() {
    awk -F, -v count="$2" '{
        for (i = 1; i <= NF; i++) {
            gsub(/ /, "", $i)
            if ($i in seen) { kept = ""; break }
            if ($i !~ /^([0-9]+|(GPU|MIG)-.+)$/ || ($i ~ /^[0-9]+$/ && count > 0 && $i + 0 >= count)) break
            seen[$i] = 1
            kept = kept (kept == "" ? "" : ",") $i
        }
        print kept
    }' <<<"$1"
}

# look_for KIND: sets shown (how many GPUs of KIND, cuda or rocm, this machine shows), visible (the list that restricts
# them, or empty), found (how many can be used, 0 if unknown) and hidden (the variable that leaves none, or empty). A
# variable that is set but empty hides all. Of HIP_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES, the first that is set counts
# on ROCm, among what ROCR_VISIBLE_DEVICES leaves.
look_for() {
    local name names=(CUDA_VISIBLE_DEVICES)
    shown=$("count_$1")
    visible='' found=$shown hidden=''
    if [ "$1" = rocm ]; then
        if [ -n "${HIP_VISIBLE_DEVICES+x}" ]; then names=(HIP_VISIBLE_DEVICES); fi
        names=(ROCR_VISIBLE_DEVICES "${names[@]}")
    fi
    for name in "${names[@]}"; do
        if [ -z "${!name+x}" ]; then continue; fi
        plain_text "$name" "${!name}"
        visible=$(usable "${!name}" "$found")
        found=$(awk -F, '{ print NF }' <<<"$visible")
        if [ "$found" -eq 0 ]; then
            hidden=$name
            break
        fi
    done
}

# look_for_any: look_for the first of cuda and rocm of which this machine shows GPUs that can be used. Sets kind to it;
# to cpu if there is none, and hidden to the variable that hides what is there.
look_for_any() {
    local culprit=''
    for kind in cuda rocm; do
        look_for "$kind"
        if [ "$shown" -eq 0 ]; then continue; fi
        if [ "$found" -gt 0 ]; then return; fi
        culprit=${culprit:-$hidden}
    done
    kind=cpu visible='' found=0 hidden=$culprit
}

# find_devices: sets DEVICE (cuda, rocm or cpu) and what look_for sets.
find_devices() {
    local kind shown
    DEVICE=${DEVICE:-auto}
    one_of DEVICE "$DEVICE" auto cuda rocm cpu
    if is_true "${USE_CPU:-False}"; then DEVICE=cpu; fi
    case $DEVICE in
        auto)
            look_for_any
            if [ "$kind" = cpu ]; then without_gpu; else DEVICE=$kind; fi
            ;;
        cpu) visible='' found=0 hidden='' ;;
        *) look_for "$DEVICE" ;;
    esac
}

# without_gpu: sets DEVICE where none was chosen and no GPU can be used.
without_gpu() {
    if [ -n "${USE_CPU:-}" ]; then
        DEVICE=cuda # USE_CPU=False promises a GPU, even one that no tool shows
        look_for cuda
    elif [ -n "${SLURM_GPUS_ON_NODE:-}${SLURM_GPUS_PER_NODE:-}${SLURM_JOB_GPUS:-}" ]; then
        refuse "the SLURM allocation has GPUs but this machine shows none; set DEVICE to cuda or rocm."
    else
        DEVICE=cpu
        if [ -n "$hidden" ]; then
            note "$hidden is '${!hidden}', which leaves no GPU: this trains on the CPU."
        else
            note "No GPU was found (nvidia-smi, amd-smi, rocm-smi): this trains on the CPU."
        fi
    fi
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
    if [ -n "$hidden" ] && [ "$DEVICE" != cpu ] && [ "$LAUNCHER" != srun ] && [ -z "${HOSTFILE:-}" ]; then
        refuse "$hidden is '${!hidden}', which leaves no GPU; unset it, or set DEVICE to cpu."
    fi
    if [ "$NUM_DEVICES" = 0 ]; then
        if [ -n "$hidden" ]; then refuse "$hidden is '${!hidden}', and no GPU can be counted here; set NUM_DEVICES."; fi
        refuse "no GPU can be counted here; set NUM_DEVICES."
    fi
    whole "the number of devices on a machine" "$NUM_DEVICES"
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
        cores=${SLURM_CPUS_ON_NODE:-$(nproc 2>/dev/null || true)}
        is_count "$cores" || refuse "nproc prints '$cores', no number of cores; set OMP_NUM_THREADS."
        hint "OMP_NUM_THREADS=$((cores > NUM_DEVICES ? cores / NUM_DEVICES : 1))"
    fi
    device_flags+=(--bf16 "${BF16:-$bf16}" --fp16 "${FP16:-False}" ${attention:+--attn_implementation "$attention"})
}
