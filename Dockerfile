# Two targets:
#   docker build --target cpu -t kdpipe:cpu .
#   docker build --target gpu -t kdpipe:gpu .
#
# Build arguments:
#   BASE_IMAGE       of the CPU image: a Debian or Ubuntu with Python 3.11 to 3.13
#   GPU_BASE_IMAGE   of the GPU image: the same with NVIDIA's CUDA runtime
#   TORCH_INDEX      package index that torch and torchvision come from, if not pip's own
#                    (PyTorch's install page names the one of the small CPU builds)
#   EXTRAS           of kdpipe, comma-separated: openvino, tensorrt, rtx, s3, tracking, ray
#
# The user's folder is mounted at /project; the store is /project/.kdpipe:
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/project" kdpipe:cpu run resnet_to_mobilenet
ARG BASE_IMAGE=python:3.12-slim
ARG GPU_BASE_IMAGE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04

FROM ${BASE_IMAGE} AS cpu
ARG TORCH_INDEX=""
ARG EXTRAS="openvino"
COPY . /src
RUN sh /src/docker/install.sh
ENV PATH=/opt/kdpipe/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
USER kdpipe
WORKDIR /project
ENTRYPOINT ["kdpipe"]
CMD ["--help"]

FROM ${GPU_BASE_IMAGE} AS gpu
ARG TORCH_INDEX=""
ARG EXTRAS="openvino"
COPY . /src
RUN sh /src/docker/install.sh
ENV PATH=/opt/kdpipe/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER kdpipe
WORKDIR /project
ENTRYPOINT ["kdpipe"]
CMD ["--help"]
