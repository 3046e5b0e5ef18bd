# syntax=docker/dockerfile:1
# Training, evaluation, chat and serving without a GPU. Build from the root of the repository:
#   docker build -f docker/cpu.Dockerfile -t duet-llava:cpu .
#   docker build -f docker/cpu.Dockerfile --build-arg EXTRAS=serve -t duet-llava:cpu-serve .
ARG PYTHON=3.11.14

FROM python:${PYTHON}-slim-bookworm AS build
ARG EXTRAS=train,eval,serve
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/duet-llava
RUN python -m venv /opt/venv
COPY constraints.txt ./
RUN pip install --constraint constraints.txt setuptools \
    && pip install --constraint constraints.txt --index-url "${TORCH_INDEX_URL}" torch
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY llava llava
COPY configs configs
RUN pip install --constraint constraints.txt --no-build-isolation --editable ".[${EXTRAS}]"

FROM python:${PYTHON}-slim-bookworm
# DeepSpeed compiles a small operation on first use. Debian's release pins the versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/duet-llava /opt/duet-llava
WORKDIR /opt/duet-llava
COPY scripts scripts
COPY playground playground
RUN useradd --create-home --uid 1001 duet \
    && mkdir -p checkpoints playground/output \
    && chown duet checkpoints playground playground/output
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 1001
EXPOSE 7860 8000
CMD ["python", "-m", "llava.doctor"]
