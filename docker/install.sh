#!/bin/sh
# Installs kdpipe from /src into /opt/kdpipe, for both targets of the Dockerfile.
# Reads TORCH_INDEX and EXTRAS, the Dockerfile's build arguments.
set -eu
if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    apt-get update
    apt-get install -y --no-install-recommends python3 python3-venv
    rm -rf /var/lib/apt/lists/*
fi
python3 -m venv /opt/kdpipe
if [ -n "${TORCH_INDEX:-}" ]; then
    /opt/kdpipe/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision
fi
/opt/kdpipe/bin/pip install --no-cache-dir "/src${EXTRAS:+[$EXTRAS]}"
useradd --create-home --uid 10001 kdpipe
install -d -o kdpipe -g kdpipe /project
rm -rf /src
