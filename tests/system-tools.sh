#!/bin/sh
# Installs what the tests run against: real peers and validators, no part of the node itself. Where apt may not be
# used, names what is missing; the tests that need it are then skipped aloud, or fail with PACS_NODE_REQUIRE_ALL=1.
set -eu
PATH="$PATH:/usr/sbin:/usr/lib/postgresql/15/bin"
missing=
need() { # COMMAND-OR-FILE PACKAGE…
    case $1 in
        /*) [ -e "$1" ] && return ;;
        *) command -v "$1" >/dev/null && return ;;
    esac
    shift
    missing="$missing $*"
}
need storescu dcmtk
need dciodvfy dicom3tools
need Orthanc orthanc
need /usr/share/orthanc/plugins/libOrthancPython.so orthanc-python
need /usr/share/orthanc/plugins/libOrthancDicomWeb.so orthanc-dicomweb
need /usr/share/orthanc/plugins/libOrthancGdcm.so orthanc-gdcm
need chromium chromium
need npm npm
need initdb postgresql
need systemd-analyze systemd
docker compose version >/dev/null 2>&1 || need docker-compose docker-compose
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "Not installed, and no right to run apt:$missing. The tests that need them will be skipped." >&2
    exit 0
fi
echo "Installing for the tests:$missing"
orthanc_was_here=$(command -v Orthanc || true)
log=$(mktemp)
# Word splitting is meant: $missing is a list of package names.
# shellcheck disable=SC2086
if ! { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "apt could not install:$missing. The tests that need them will be skipped." >&2
fi
rm -f "$log"
# The tests start their own Orthanc on loopback; the service that Debian's package starts is not wanted.
if [ -z "$orthanc_was_here" ] && [ -d /run/systemd/system ]; then
    $as_root systemctl disable --now orthanc >/dev/null 2>&1 || true
fi
