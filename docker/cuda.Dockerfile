# syntax=docker/dockerfile:1
# Training, evaluation, chat and serving on NVIDIA GPUs. Build from the root of the repository:
#   docker build -f docker/cuda.Dockerfile -t duet-llava:cuda .
#   docker build -f docker/cuda.Dockerfile --build-arg EXTRAS=serve --build-arg VARIANT=base -t duet-llava:cuda-serve .
# VARIANT=devel has the compiler that DeepSpeed's fused optimizers and FlashAttention need; torch brings CUDA's libraries.
ARG CUDA=13.0.1
ARG VARIANT=devel

FROM nvidia/cuda:${CUDA}-${VARIANT}-ubuntu24.04
ARG EXTRAS=train,eval,serve
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130
# 1 compiles FlashAttention-2 against the installed torch, which takes long; PyTorch's own SDPA serves without it.
ARG FLASH_ATTENTION=0
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# Ubuntu's release pins the versions. Triton, which torch.compile and Liger use, needs a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/duet-llava
RUN python3 -m venv /opt/venv
COPY constraints.txt ./
RUN pip install --constraint constraints.txt setuptools \
    && pip install --constraint constraints.txt --index-url "${TORCH_INDEX_URL}" torch
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY llava llava
COPY configs configs
RUN pip install --constraint constraints.txt --no-build-isolation --editable ".[${EXTRAS}]" "liger-kernel==0.8.5" \
    && if [ "${FLASH_ATTENTION}" = 1 ]; then pip install --no-build-isolation "flash-attn==2.8.3.post2"; fi
COPY scripts scripts
COPY playground playground
RUN useradd --create-home --uid 1001 duet \
    && mkdir -p checkpoints playground/output \
    && chown duet checkpoints playground playground/output
USER 1001
EXPOSE 7860 8000
CMD ["python", "-m", "llava.doctor"]
