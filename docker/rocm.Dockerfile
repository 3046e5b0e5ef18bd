# syntax=docker/dockerfile:1
# Training, evaluation, chat and serving on AMD GPUs. Build from the root of the repository:
#   docker build -f docker/rocm.Dockerfile -t duet-llava:rocm .
#   docker build -f docker/rocm.Dockerfile --build-arg EXTRAS=serve -t duet-llava:rocm-serve .
# ROCM and TORCH_INDEX_URL go together: the index of the ROCm that the image has.
ARG ROCM=7.0.2

FROM rocm/dev-ubuntu-24.04:${ROCM}-complete
ARG EXTRAS=train,eval,serve
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/rocm7.0
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# The image's own user may not be root, which installing needs; the last USER is not root.
# hadolint ignore=DL3002
USER 0
# Ubuntu's release pins the versions.
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
RUN pip install --constraint constraints.txt --no-build-isolation --editable ".[${EXTRAS}]"
COPY scripts scripts
COPY playground playground
# The devices belong to the groups video and render, which `docker run --group-add` gives.
RUN useradd --create-home --uid 1001 duet \
    && mkdir -p checkpoints playground/output \
    && chown duet checkpoints playground playground/output
USER 1001
EXPOSE 7860 8000
CMD ["python", "-m", "llava.doctor"]
