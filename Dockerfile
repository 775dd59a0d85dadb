# The commands and JupyterLab in a container. For CPUs:
#
#   docker build -t tunebook .
#   docker run -it -p 8888:8888 -v "$PWD/runs:/project/runs" tunebook
#
# For NVIDIA GPUs (driver 580 or newer, NVIDIA's container toolkit):
#
#   docker build -t tunebook --build-arg BASE=nvidia/cuda:13.0.0-devel-ubuntu24.04 .
#   docker run -it --gpus all --ipc host -p 8888:8888 -v "$PWD/runs:/project/runs" tunebook
#
# Not yet built with the GPU base.
ARG BASE=ubuntu:24.04
FROM ${BASE}
# The compiler and Python's headers are for Triton, which builds its kernels on the machine.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates git python3 python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir --break-system-packages uv
# Compiled once here: else each new container compiles 5,000 modules before its first command.
ENV UV_COMPILE_BYTECODE=1
WORKDIR /project
# First what changes seldom: the packages.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --no-install-project
COPY . .
RUN uv sync
ENV PATH="/project/.venv/bin:${PATH}"
EXPOSE 8888
CMD ["jupyter", "lab", "--ip", "0.0.0.0", "--allow-root", "--no-browser"]
