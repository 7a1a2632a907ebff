# One image for a laptop's smoke test and for a cluster (with Apptainer: apptainer build prealign.sif docker-daemon://prealign-ds).
#
#   docker build -t prealign-ds .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD/data:/work/data" -v "$PWD/runs:/work/runs" prealign-ds \
#       deepspeed launchers/pretrain.py launchers/recipes/quickstart.yaml
#
# The base has CUDA's compiler, which DeepSpeed needs to build its fused Adam, and PyTorch; ours does not replace it.
ARG BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-devel
FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /work
COPY . .
RUN grep --invert-match '^torch==' requirements.txt > /tmp/requirements.txt \
    && python -m pip install --no-cache-dir -r /tmp/requirements.txt liger-kernel
